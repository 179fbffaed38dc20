package ssh

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// Target says which guest to dial, and what proves that it is the one.
type Target struct {
	Addr     string // host:port
	User     string
	Signer   ssh.Signer
	HostKeys []ssh.PublicKey // pinned; empty is refused
}

// Options tune a client. The zero value is right for a guest under emulation.
type Options struct {
	Timeout   time.Duration // for the guest to accept SSH; 0: 5 minutes
	Alive     func() error  // asked often while waiting: an error (the VM died) ends the wait at once; may be nil
	Grace     time.Duration // how long a refusal (key, host key) is retried: a guest may still be configuring itself; 0: 20 s
	Keepalive time.Duration // between two probes of an idle connection; 0: 5 s
	Dead      time.Duration // a guest that answers nothing for this long is gone; 0: 60 s
	Pipe      Pipe          // the zero value: there is none
}

// Pipe is a way for bytes into the guest that needs no network and no cipher: a
// virtio port of that name. Without KVM it is several times as fast as SSH.
type Pipe struct {
	Name string
	Dial func(context.Context) (net.Conn, error)
}

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&o.Timeout, 5*time.Minute)
	set(&o.Grace, 20*time.Second)
	set(&o.Keepalive, 5*time.Second)
	set(&o.Dead, time.Minute)
	if o.Alive == nil {
		o.Alive = func() error { return nil }
	}
	return o
}

// Sentinels of Dial.
var (
	ErrNoHostKey = errors.New("no pinned host key: refusing to trust whatever answers")
	ErrHostKey   = errors.New("the guest's host key is not the pinned one")
	ErrRefused   = errors.New("the guest refused the key")
)

const (
	firstPause, maxPause   = 20 * time.Millisecond, 500 * time.Millisecond
	firstBanner, maxBanner = 500 * time.Millisecond, 3 * time.Second
	handshakeTimeout       = time.Minute
)

// Dial connects to a guest that may still be booting. Each try is a fresh TCP
// connection with a short wait for the banner: QEMU's user network accepts
// connections long before the guest listens, and delivers those late. After
// the banner the handshake may take its time.
func Dial(ctx context.Context, t Target, o Options) (*Client, error) {
	if len(t.HostKeys) == 0 {
		return nil, ErrNoHostKey
	}
	if t.Signer == nil {
		return nil, errors.New("no key to log in with")
	}
	c := &Client{target: t, opts: o.withDefaults(), slots: make(chan struct{}, maxSessions)}
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	c.conn = conn
	return c, nil
}

func (c *Client) dial(ctx context.Context) (*conn, error) {
	cause := fmt.Errorf("guest did not accept SSH within %s (ssh.timeout)", short(c.opts.Timeout))
	ctx, cancel := context.WithTimeoutCause(ctx, c.opts.Timeout, cause)
	defer cancel()
	ctx, stop := c.whileAlive(ctx)
	defer stop()

	pause, banner := firstPause, firstBanner
	var last error
	var refused time.Time
	for {
		if ctx.Err() != nil {
			if err := context.Cause(ctx); !errors.Is(err, cause) || last == nil {
				return nil, err
			}
			return nil, fmt.Errorf("%w; the last try ended with: %w", cause, last)
		}
		conn, err := c.try(ctx, banner)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() == nil {
			last = err
		}
		switch {
		case !errors.Is(err, ErrHostKey) && !errors.Is(err, ErrRefused):
			refused = time.Time{}
		case refused.IsZero():
			refused = time.Now()
		case time.Since(refused) > c.opts.Grace:
			return nil, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause, banner = min(pause*3/2, maxPause), min(banner*5/4, maxBanner)
	}
}

// whileAlive returns a context that ends with Alive's error.
func (c *Client) whileAlive(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			if err := c.opts.Alive(); err != nil {
				cancel(err)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

// try is one fresh connection, up to a logged-in client.
func (c *Client) try(ctx context.Context, banner time.Duration) (*conn, error) {
	d := net.Dialer{Timeout: maxBanner}
	tcp, err := d.DialContext(ctx, "tcp", c.target.Addr)
	if err != nil {
		return nil, err
	}
	unhook := context.AfterFunc(ctx, func() { tcp.Close() })
	defer unhook()
	br := bufio.NewReader(tcp)
	if err := tcp.SetDeadline(time.Now().Add(banner)); err != nil {
		tcp.Close()
		return nil, err
	}
	if _, err := br.Peek(4); err != nil {
		tcp.Close()
		return nil, fmt.Errorf("no SSH banner: %w", err)
	}
	if err := tcp.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		tcp.Close()
		return nil, err
	}
	var wrongKey error
	raw, chans, reqs, err := ssh.NewClientConn(peeked{tcp, br}, c.target.Addr, &ssh.ClientConfig{
		User:              c.target.User,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(c.target.Signer)},
		HostKeyAlgorithms: algorithms(c.target.HostKeys),
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			wrongKey = c.pinned(key)
			return wrongKey
		},
	})
	if err != nil {
		tcp.Close()
		switch {
		case wrongKey != nil:
			return nil, wrongKey
		case strings.Contains(err.Error(), "unable to authenticate"): // x/crypto has no sentinel for it
			return nil, fmt.Errorf("%w (user %s)", ErrRefused, c.target.User)
		}
		return nil, fmt.Errorf("SSH handshake: %w", err)
	}
	if !unhook() {
		raw.Close()
		return nil, context.Cause(ctx)
	}
	if err := tcp.SetDeadline(time.Time{}); err != nil {
		raw.Close()
		return nil, err
	}
	return newConn(ssh.NewClient(raw, chans, reqs), c.opts), nil
}

func (c *Client) pinned(key ssh.PublicKey) error {
	for _, k := range c.target.HostKeys {
		if bytes.Equal(k.Marshal(), key.Marshal()) {
			return nil
		}
	}
	return fmt.Errorf("%w: %s answers with %s", ErrHostKey, c.target.Addr, ssh.FingerprintSHA256(key))
}

// algorithms asks the guest for a key of a kind that is pinned.
func algorithms(keys []ssh.PublicKey) []string {
	var l []string
	for _, k := range keys {
		names := []string{k.Type()}
		if k.Type() == ssh.KeyAlgoRSA {
			names = []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
		}
		for _, n := range names {
			if !slices.Contains(l, n) {
				l = append(l, n)
			}
		}
	}
	return l
}

// peeked is a connection whose first bytes were looked at.
type peeked struct {
	net.Conn
	r *bufio.Reader
}

func (p peeked) Read(b []byte) (int, error) { return p.r.Read(b) }

// short is 5m, not 5m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
