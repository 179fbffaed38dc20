package amazon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rebake/rebake/internal/child"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/ssh"
	gossh "golang.org/x/crypto/ssh"
)

// forwarder is a port of this computer's loopback whose connections go elsewhere.
type forwarder struct {
	l      net.Listener
	dial   func(ctx context.Context) (net.Conn, error)
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func forward(dial func(ctx context.Context) (net.Conn, error)) (*forwarder, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f := &forwarder{l: l, dial: dial}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	f.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.wg.Go(func() { f.serve(c) })
		}
	})
	return f, nil
}

func (f *forwarder) addr() string { return f.l.Addr().String() }

// Close ends the port and its connections.
func (f *forwarder) Close() error {
	f.cancel()
	err := f.l.Close()
	f.wg.Wait()
	return err
}

func (f *forwarder) serve(near net.Conn) {
	defer near.Close()
	ctx, cancel := context.WithTimeout(f.ctx, 30*time.Second)
	far, err := f.dial(ctx)
	cancel()
	if err != nil {
		return // as a port on which nothing listens
	}
	defer far.Close()
	stop := context.AfterFunc(f.ctx, func() { near.Close(); far.Close() })
	defer stop()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		both.Go(func() {
			_, _ = io.Copy(way[1], way[0]) // either end may go at any time
			if half, ok := way[1].(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite()
			} else {
				way[1].Close()
			}
		})
	}
	both.Wait()
}

// dialPort reaches a port of the machine's own loopback through its sshd: no
// security group need let it in.
func (m *machine) dialPort(ctx context.Context, port int) (net.Conn, error) {
	c, err := ssh.Dial(ctx, ssh.Target{Addr: m.addr, User: m.user, Signer: m.login.Signer, HostKeys: []gossh.PublicKey{m.host.Signer.PublicKey()}},
		ssh.Options{Timeout: 20 * time.Second, Grace: time.Second})
	if err != nil {
		return nil, err
	}
	conn, err := c.DialPort(ctx, port)
	if err == nil {
		return through{conn, c}, nil
	}
	err = errors.Join(err, c.Close())
	var open *gossh.OpenChannelError
	if !errors.As(err, &open) || open.Reason != gossh.Prohibited && open.Reason != gossh.UnknownChannelType || m.direct == "" {
		return nil, err
	}
	// A guest that is hardened forwards nothing: its security groups may let us in.
	conn, derr := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(m.direct, strconv.Itoa(port)))
	if derr != nil {
		m.sayOnce.Do(func() {
			m.warn("port %d: the guest's sshd forwards no connections (AllowTcpForwarding), and from here it is not reached: give network.security_groups that let it in (%v)", port, derr)
		})
		return nil, errors.Join(err, derr)
	}
	return conn, nil
}

// through is a connection that was opened for one connection in it.
type through struct {
	net.Conn
	c io.Closer
}

func (t through) Close() error { return errors.Join(t.Conn.Close(), t.c.Close()) }

func (t through) CloseWrite() error {
	if half, ok := t.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// throughBastion is a local port whose connections go through a bastion to addr.
func throughBastion(b *Bastion, dir string, timeout time.Duration, addr string) (*forwarder, error) {
	path := b.Key
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("ssh.bastion.key: %w", err)
	}
	key, err := ssh.ParseKey(pem)
	if err != nil {
		return nil, fmt.Errorf("ssh.bastion.key: %s: %w", b.Key, err)
	}
	pinned, err := ssh.ParseAuthorized(b.HostKey)
	if err != nil {
		return nil, fmt.Errorf("ssh.bastion.host_key: %w", err)
	}
	port := b.Port
	if port == 0 {
		port = 22
	}
	target := ssh.Target{Addr: net.JoinHostPort(b.Host, strconv.Itoa(port)), User: b.User, Signer: key.Signer, HostKeys: []gossh.PublicKey{pinned}}
	return forward(func(ctx context.Context) (net.Conn, error) {
		c, err := ssh.Dial(ctx, target, ssh.Options{Timeout: min(timeout, 20*time.Second), Grace: time.Millisecond})
		if err != nil {
			return nil, fmt.Errorf("bastion: %w", err)
		}
		conn, err := c.DialAddr(ctx, addr)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("bastion: %w", err), c.Close())
		}
		return through{conn, c}, nil
	})
}

// session is a port forwarding of Session Manager: a program of AWS's, which is
// started again when it ends while the machine runs.
type session struct {
	near   string
	cancel context.CancelFunc
	done   chan struct{}
}

func (s *session) addr() string { return s.near }

// Close ends the program and what it started.
func (s *session) Close() error {
	s.cancel()
	<-s.done
	return nil
}

// sessionManager forwards a free local port to a port of the instance. The
// instance's agent registers some time after the instance runs, so that the first
// tries may fail; that SSH is not reached in the end says ssh.timeout.
func sessionManager(ctx context.Context, region, instance string, port int) (*session, error) {
	for _, p := range []string{"aws", "session-manager-plugin"} {
		if _, err := exec.LookPath(p); err != nil {
			return nil, fmt.Errorf("ssh.ssm: %w (AWS's documentation of Session Manager tells how to install it)", err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	near := l.Addr().String()
	_, local, err := net.SplitHostPort(near)
	if err = errors.Join(err, l.Close()); err != nil {
		return nil, err
	}
	s := &session{near: near, done: make(chan struct{})}
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(s.done)
		told := ""
		for ctx.Err() == nil {
			var out bytes.Buffer
			cmd := exec.CommandContext(ctx, "aws", "ssm", "start-session", "--region", region, "--target", instance,
				"--document-name", "AWS-StartPortForwardingSession",
				"--parameters", fmt.Sprintf("portNumber=%d,localPortNumber=%s", port, local))
			cmd.Stdout, cmd.Stderr = &out, &out
			err := child.RunGroup(cmd)
			if say := strings.TrimSpace(out.String()); err != nil && ctx.Err() == nil && say != told {
				event.Infof(ctx, "aws ssm start-session: %v: %s", err, say[max(0, len(say)-300):])
				told = say
			}
			_ = pause(ctx, 2*time.Second)
		}
	}()
	return s, nil
}
