package fake

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// SSHD is a real SSH server in this process: it runs commands with the
// machine's /bin/sh, serves sftp and forwards ports. Set its fields before Start.
type SSHD struct {
	HostKey    ssh.Signer
	Authorized ssh.PublicKey
	Shell      string        // $SHELL of sessions; "" is /bin/sh
	Path       string        // $PATH of sessions; "" is this process's
	Root       string        // what is "/" for sftp; sessions start in its root/, their HOME, where the authorized keys are; "" is this machine's
	NoSFTP     bool          // as dropbear without sftp-server
	NoForward  bool          // forward no connection, as a hardened guest
	NoSignals  bool          // ignore signal requests, as servers may
	Delay      time.Duration // added to each direction of a connection
	Mute       bool          // accept connections and say nothing, as QEMU does for a guest that is down

	l     net.Listener
	mu    sync.Mutex
	conns map[net.Conn]*stall
	wg    sync.WaitGroup
	execs int
}

// Start listens on addr ("" is a free port on loopback).
func (s *SSHD) Start(addr string) error {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	s.l, s.conns = l, map[net.Conn]*stall{}
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			st := newStall(c, s.Delay)
			s.mu.Lock()
			s.conns[c] = st
			mute := s.Mute
			s.mu.Unlock()
			if !mute {
				s.wg.Go(func() { s.serve(st) })
			}
		}
	})
	return nil
}

// Addr is where it listens.
func (s *SSHD) Addr() string { return s.l.Addr().String() }

// Execs counts the commands run so far.
func (s *SSHD) Execs() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.execs
}

// SetMute changes Mute for new connections.
func (s *SSHD) SetMute(v bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Mute = v
}

// Freeze stops every byte of every connection without closing one.
func (s *SSHD) Freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.conns {
		st.freeze()
	}
}

// Drop closes every connection, as a reboot does.
func (s *SSHD) Drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
	clear(s.conns)
}

// Stop ends the server and its connections.
func (s *SSHD) Stop() {
	s.l.Close()
	s.Drop()
	s.wg.Wait()
}

func (s *SSHD) serve(nc net.Conn) {
	cfg := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
		if !s.authorized(k) {
			return nil, errors.New("not authorized")
		}
		return nil, nil
	}}
	cfg.AddHostKey(s.HostKey)
	conn, chans, reqs, err := ssh.NewServerConn(nc, cfg)
	if err != nil {
		nc.Close()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	go ssh.DiscardRequests(reqs)
	var wg sync.WaitGroup
	for nch := range chans {
		switch nch.ChannelType() {
		case "session":
			ch, reqs, err := nch.Accept()
			if err == nil {
				wg.Go(func() { s.session(ctx, ch, reqs) })
			}
		case "direct-tcpip":
			if s.NoForward {
				_ = nch.Reject(ssh.Prohibited, "")
				continue
			}
			wg.Go(func() { forward(nch) })
		default:
			_ = nch.Reject(ssh.UnknownChannelType, "")
		}
	}
	cancel()
	conn.Close()
	wg.Wait()
}

// authorized looks into the tree's authorized_keys, if there is a tree.
func (s *SSHD) authorized(k ssh.PublicKey) bool {
	if s.Root == "" {
		return bytes.Equal(k.Marshal(), s.Authorized.Marshal())
	}
	rest, err := os.ReadFile(filepath.Join(s.Root, "root/.ssh/authorized_keys"))
	for err == nil && len(rest) > 0 {
		var one ssh.PublicKey
		if one, _, _, rest, err = ssh.ParseAuthorizedKey(rest); err == nil && bytes.Equal(one.Marshal(), k.Marshal()) {
			return true
		}
	}
	return false
}

func forward(nch ssh.NewChannel) {
	var m struct {
		Host  string
		Port  uint32
		OHost string
		OPort uint32
	}
	if err := ssh.Unmarshal(nch.ExtraData(), &m); err != nil {
		_ = nch.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	c, err := net.Dial("tcp", net.JoinHostPort(m.Host, itoa(m.Port)))
	if err != nil {
		_ = nch.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	ch, reqs, err := nch.Accept()
	if err != nil {
		c.Close()
		return
	}
	go ssh.DiscardRequests(reqs)
	go func() { _, _ = io.Copy(c, ch); c.Close() }()
	_, _ = io.Copy(ch, c)
	ch.Close()
}

func (s *SSHD) session(ctx context.Context, ch ssh.Channel, reqs <-chan *ssh.Request) {
	defer ch.Close()
	var cmd *exec.Cmd
	ended := make(chan struct{})
	for {
		select {
		case <-ended:
			return
		case r, ok := <-reqs:
			if !ok {
				return // the command, if any, runs on: a real server does not kill it
			}
			good := true
			switch r.Type {
			case "exec", "shell":
				var m struct{ Command string }
				if r.Type == "exec" {
					_ = ssh.Unmarshal(r.Payload, &m)
				}
				cmd = s.command(r.Type, m.Command)
				good = s.start(ctx, cmd, ch, ended) == nil
			case "subsystem":
				if good = !s.NoSFTP; good {
					go func() {
						defer close(ended)
						s.sftp(ch)
					}()
				}
			case "signal":
				if cmd != nil && !s.NoSignals {
					_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
				}
			case "pty-req", "window-change":
			default:
				good = false
			}
			if r.WantReply {
				_ = r.Reply(good, nil)
			}
		}
	}
}

func (s *SSHD) sftp(ch ssh.Channel) {
	if s.Root == "" {
		if srv, err := sftp.NewServer(ch); err == nil {
			_ = srv.Serve()
		}
		return
	}
	root, err := os.OpenRoot(s.Root)
	if err != nil {
		return
	}
	defer root.Close()
	t := tree{root}
	_ = sftp.NewRequestServer(ch, sftp.Handlers{FileGet: t, FilePut: t, FileCmd: t, FileList: t}, sftp.WithStartDirectory("/root")).Serve()
}

func (s *SSHD) command(kind, line string) *exec.Cmd {
	shell := s.Shell
	if shell == "" {
		shell = "/bin/sh"
	}
	path := s.Path
	if path == "" {
		path = os.Getenv("PATH")
	}
	cmd := exec.Command(shell, "-c", line)
	if kind == "shell" {
		cmd = exec.Command(shell)
	}
	cmd.Env = []string{"SHELL=" + shell, "HOME=/nonexistent", "PATH=" + path}
	if s.Root != "" {
		cmd.Dir = filepath.Join(s.Root, "root")
		cmd.Env[1] = "HOME=" + cmd.Dir
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

func (s *SSHD) start(ctx context.Context, cmd *exec.Cmd, ch ssh.Channel, ended chan struct{}) error {
	s.mu.Lock()
	s.execs++
	s.mu.Unlock()
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	// Pipes of our own: as in sshd, the exit status does not wait for their end.
	or, ow, err := os.Pipe()
	if err != nil {
		return err
	}
	er, ew, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = ow, ew
	err = cmd.Start()
	ow.Close()
	ew.Close()
	if err != nil {
		or.Close()
		er.Close()
		return err
	}
	go func() { _, _ = io.Copy(in, ch); in.Close() }()
	var out sync.WaitGroup
	out.Go(func() { _, _ = io.Copy(ch, or); or.Close() })
	out.Go(func() { _, _ = io.Copy(ch.Stderr(), er); er.Close() })
	go func() {
		defer close(ended)
		_ = cmd.Wait()
		st := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if st.Signaled() {
			name := strings.TrimPrefix(map[syscall.Signal]string{syscall.SIGTERM: "TERM", syscall.SIGKILL: "KILL"}[st.Signal()], "SIG")
			_, _ = ch.SendRequest("exit-signal", false, ssh.Marshal(struct {
				Name string
				Core bool
				Msg  string
				Lang string
			}{Name: name}))
		} else {
			_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ S uint32 }{uint32(st.ExitStatus())}))
		}
		done := make(chan struct{})
		go func() { out.Wait(); close(done) }()
		select {
		case <-done:
			_ = ch.CloseWrite()
		case <-ctx.Done():
			or.Close()
			er.Close()
		}
	}()
	return nil
}
