package ssh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/provisioner"
	"golang.org/x/crypto/ssh"
)

// maxSessions stays under sshd's MaxSessions (10), with room for the sessions that kill.
const maxSessions = 7

// Client is a guest seen through SSH. It is safe for concurrent use.
type Client struct {
	target Target
	opts   Options
	slots  chan struct{} // sessions in use

	noTar, noSFTP, noPipe atomic.Bool // what the guest was found not to have
	piping                sync.Mutex  // the pipe has one user at a time

	redial sync.Mutex // held while reconnecting
	mu     sync.Mutex
	conn   *conn
	closed bool
}

var _ provisioner.Guest = (*Client)(nil)

// conn is one connection, until it dies.
type conn struct {
	*ssh.Client
	dead chan struct{} // closed when the connection is no more
	mu   sync.Mutex
	why  error // set before dead is closed if we know
}

func newConn(c *ssh.Client, o Options) *conn {
	n := &conn{Client: c, dead: make(chan struct{})}
	go func() {
		err := c.Wait()
		n.fail(err)
		close(n.dead)
	}()
	go n.keepalive(o.Keepalive, o.Dead)
	return n
}

func (n *conn) fail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.why == nil {
		n.why = err
	}
}

// lost is the error of something that was cut off by the connection's end.
func (n *conn) lost() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.why == nil {
		return provisioner.ErrDisconnected
	}
	return fmt.Errorf("%w: %w", provisioner.ErrDisconnected, n.why)
}

func (n *conn) isDead() bool {
	select {
	case <-n.dead:
		return true
	default:
		return false
	}
}

// keepalive closes a connection whose other end answers nothing: no FIN comes
// from a machine that was cut off.
func (n *conn) keepalive(every, limit time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-n.dead:
			return
		case <-tick.C:
		}
		if !n.ping(limit) {
			n.fail(fmt.Errorf("the guest answered nothing for %s", short(limit)))
			n.Close()
			return
		}
	}
}

// ping tells whether the other end answers in time; any answer will do.
func (n *conn) ping(limit time.Duration) bool {
	answer := make(chan error, 1)
	go func() {
		_, _, err := n.SendRequest("keepalive@openssh.com", true, nil)
		answer <- err
	}()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case err := <-answer:
		return err == nil
	case <-n.dead:
		return false
	case <-t.C:
		return false
	}
}

// use returns the live connection.
func (c *Client) use() (*conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return nil, net.ErrClosed
	case c.conn.isDead():
		return nil, c.conn.lost()
	}
	return c.conn, nil
}

// slot waits for one of the sessions that sshd allows.
func (c *Client) slot(ctx context.Context) (release func(), err error) {
	select {
	case c.slots <- struct{}{}:
		return func() { <-c.slots }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Close ends the connection; commands in flight end with ErrDisconnected.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	if err := c.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// lingering is how long Reconnect waits for a guest to go down.
const lingering = 30 * time.Second

// Reconnect waits for the old connection to die and dials again, as patiently
// as Dial. A guest that is still there after 30 s did not go away: the old
// connection stays. Many callers share one reconnect.
func (c *Client) Reconnect(ctx context.Context) error {
	c.redial.Lock()
	defer c.redial.Unlock()
	c.mu.Lock()
	old, closed := c.conn, c.closed
	c.mu.Unlock()
	if closed {
		return net.ErrClosed
	}
	if gone, err := c.waitGone(ctx, old); err != nil || !gone {
		return err
	}
	event.Waiting(ctx, "the guest to come back on %s, at most %s", c.target.Addr, short(c.opts.Timeout))
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		conn.Close()
		return net.ErrClosed
	}
	c.conn = conn
	return nil
}

func (c *Client) waitGone(ctx context.Context, old *conn) (bool, error) {
	if old.isDead() {
		return true, nil
	}
	event.Waiting(ctx, "the guest to go down, at most %s", short(min(lingering, c.opts.Dead)))
	end := time.Now().Add(min(lingering, c.opts.Dead))
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for time.Now().Before(end) {
		select {
		case <-old.dead:
			return true, nil
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-tick.C:
		}
		// A rebooted machine answers a probe of the old connection with a reset.
		if !old.ping(time.Until(end)) {
			old.Close()
			return true, nil
		}
	}
	return false, nil
}

// DialPort opens a connection to a port on the guest's own loopback.
func (c *Client) DialPort(ctx context.Context, port int) (net.Conn, error) {
	n, err := c.use()
	if err != nil {
		return nil, err
	}
	return n.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
}

// DialAddr opens a connection from the guest to an address that it reaches.
func (c *Client) DialAddr(ctx context.Context, addr string) (net.Conn, error) {
	n, err := c.use()
	if err != nil {
		return nil, err
	}
	return n.DialContext(ctx, "tcp", addr)
}
