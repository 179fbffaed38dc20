package ssh

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/rebake/rebake/provisioner"
	"golang.org/x/crypto/ssh"
)

// wrapper is all that the guest's process list shows at first: a shell that
// reads code up to a line "#<mark>" from stdin and runs it. The rest of stdin is
// the command's own. A stream that is cut off runs nothing.
const wrapper = `sh -c 'p=; while :; do IFS= read -r l || exit 255; case $l in "#%s") break;; esac; p="$p$l
"; done; eval "$p"'`

// marker is set in a command's environment: whatever it started can be found
// and killed by it, in other sessions and process groups too.
const marker = "REBAKE_RUN"

// killer ends everything that carries the marker, or is a wrapper that has not
// got so far yet: politely, then not. The bracket keeps grep from finding itself.
const killer = `s=TERM; e=0; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do ` +
	`l=$(grep -l -e "` + marker + `=$T" -e "[#]$T" /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null); ` +
	`if [ -z "$l" ]; then e=$((e+1)); [ $e -lt 2 ] || exit 0; else e=0; fi; ` +
	`for f in $l; do f=${f#/proc/}; kill -$s "${f%%/*}" 2>/dev/null; done; ` +
	`[ $i -lt 3 ] || s=KILL; sleep 0.1 2>/dev/null || sleep 1; done; exit 1`

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// Run implements provisioner.Guest.
func (c *Client) Run(ctx context.Context, cmd provisioner.Cmd) error {
	release, err := c.slot(ctx)
	if err != nil {
		return err
	}
	defer release()
	n, err := c.use()
	if err != nil {
		return err
	}
	return c.run(ctx, n, cmd)
}

func (c *Client) run(ctx context.Context, n *conn, cmd provisioner.Cmd) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	mark, err := newMark()
	if err != nil {
		return err
	}
	code, err := prelude(mark, cmd)
	if err != nil {
		return err
	}
	sudo := cmd.Sudo && c.target.User != "root"
	line := fmt.Sprintf(wrapper, mark)
	if sudo {
		line = "sudo -n " + line
	}
	tail := &tailBuffer{}
	err = n.exec(ctx, line, io.MultiReader(strings.NewReader(code), orEmpty(cmd.Stdin)),
		tee(cmd.Stdout, tail), tee(cmd.Stderr, tail), func() { c.kill(ctx, n, mark, sudo) })
	var exit *provisioner.ExitError
	if errors.As(err, &exit) {
		exit.Output = tail.String()
	}
	return err
}

// kill ends a command through a second session: a server may ignore signals.
func (c *Client) kill(ctx context.Context, n *conn, mark string, sudo bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	line := "sh -c '" + "T=" + mark + "; " + killer + "'"
	if sudo {
		line = "sudo -n " + line
	}
	// Nobody is left to tell: the caller's context ended, which is its error.
	_ = n.exec(ctx, line, orEmpty(nil), io.Discard, io.Discard, func() {})
}

func newMark() (string, error) {
	b := make([]byte, 12)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	return hex.EncodeToString(b), nil
}

// prelude is the code that the wrapper reads. A value may hold anything but NUL.
func prelude(mark string, cmd provisioner.Cmd) (string, error) {
	names := make([]string, 0, len(cmd.Env))
	for k, v := range cmd.Env {
		if !envName.MatchString(k) {
			return "", fmt.Errorf("environment variable %q: not a name (letters, digits, _)", k)
		}
		if strings.ContainsRune(v, 0) {
			return "", fmt.Errorf("environment variable %s: its value holds a NUL byte", k)
		}
		names = append(names, k)
	}
	if strings.ContainsRune(cmd.Line, 0) {
		return "", errors.New("the command holds a NUL byte")
	}
	sort.Strings(names)
	var b strings.Builder
	for _, k := range names {
		fmt.Fprintf(&b, "export %s=%s\n", k, provisioner.Quote(cmd.Env[k]))
	}
	fmt.Fprintf(&b, "export %s=%s\nexec \"${SHELL:-/bin/sh}\" -c %s\n#%s\n", marker, mark, provisioner.Quote(cmd.Line), mark)
	return b.String(), nil
}

// drained is how long output may stay silent after a command's end while
// something that it left behind holds the pipes open.
const drained = 2 * time.Second

// exec runs a line in a session of its own. When ctx ends it calls kill and
// gives the command a moment to be gone. It works on the bare channel: the
// library's Session cannot tell a command's end from the end of its output, and
// so hangs on daemons. Nothing is written to out or errOut after exec returned,
// and the two are never written at the same time.
func (n *conn) exec(ctx context.Context, line string, in io.Reader, out, errOut io.Writer, kill func()) error {
	ch, reqs, err := n.openSession(ctx)
	if err != nil {
		return err
	}
	defer ch.Close()
	status := make(chan error, 1)
	var g gate
	defer g.shut()
	copied := make(chan error, 2)
	go func() {
		ok, err := ch.SendRequest("exec", true, ssh.Marshal(struct{ Command string }{line}))
		switch {
		case err != nil:
			status <- errNoStatus
			return
		case !ok:
			status <- errors.New("the guest refused to run a command")
			return
		}
		go func() {
			_, _ = io.Copy(ch, in) // a command need not read its input; its exit status tells
			_ = ch.CloseWrite()
		}()
		waitStatus(reqs, status)
	}()
	go func() { copied <- g.copy(out, ch) }()
	go func() { copied <- g.copy(errOut, ch.Stderr()) }()

	select {
	case err = <-status:
	case <-ctx.Done():
		_, _ = ch.SendRequest("signal", false, ssh.Marshal(struct{ Name string }{"TERM"}))
		kill()
		select {
		case <-status:
		case <-time.After(drained):
		}
		return context.Cause(ctx)
	}
	if errors.Is(err, errNoStatus) {
		return n.cutOff(err)
	}
	if werr := g.drain(ctx, copied); err == nil && werr != nil {
		return fmt.Errorf("pass on the command's output: %w", werr)
	}
	return err
}

// cutOff waits a moment to find out whether the whole connection is gone.
func (n *conn) cutOff(err error) error {
	select {
	case <-n.dead:
		return n.lost()
	case <-time.After(time.Second):
		return fmt.Errorf("%w: %w", provisioner.ErrDisconnected, err)
	}
}

func (n *conn) openSession(ctx context.Context) (ssh.Channel, <-chan *ssh.Request, error) {
	type opened struct {
		ch   ssh.Channel
		reqs <-chan *ssh.Request
		err  error
	}
	done := make(chan opened, 1)
	go func() {
		ch, reqs, err := n.OpenChannel("session", nil)
		done <- opened{ch, reqs, err}
	}()
	select {
	case o := <-done:
		if o.err != nil {
			if n.isDead() || !isOpenError(o.err) {
				return nil, nil, n.cutOff(o.err)
			}
			return nil, nil, fmt.Errorf("open a session: %w", o.err)
		}
		return o.ch, o.reqs, nil
	case <-ctx.Done():
		go func() {
			if o := <-done; o.err == nil {
				go ssh.DiscardRequests(o.reqs)
				o.ch.Close()
			}
		}()
		return nil, nil, context.Cause(ctx)
	}
}

func isOpenError(err error) bool {
	var o *ssh.OpenChannelError
	return errors.As(err, &o)
}

var errNoStatus = errors.New("the session ended without an exit status")

// waitStatus reads a session's requests to their end and tells the first status.
func waitStatus(reqs <-chan *ssh.Request, status chan<- error) {
	told := false
	tell := func(err error) {
		if !told {
			told = true
			status <- err
		}
	}
	for r := range reqs {
		switch r.Type {
		case "exit-status":
			var m struct{ Status uint32 }
			if err := ssh.Unmarshal(r.Payload, &m); err != nil {
				tell(err)
			} else if m.Status == 0 {
				tell(nil)
			} else {
				tell(&provisioner.ExitError{Code: int(m.Status)})
			}
		case "exit-signal":
			var m struct {
				Signal     string
				CoreDumped bool
				Message    string
				Lang       string
			}
			if err := ssh.Unmarshal(r.Payload, &m); err != nil {
				tell(err)
			} else {
				tell(&provisioner.ExitError{Code: 128, Signal: m.Signal})
			}
		}
		if r.WantReply {
			_ = r.Reply(false, nil)
		}
	}
	tell(errNoStatus)
}

// gate passes a command's output on until it is shut, and knows when any last came.
type gate struct {
	mu     sync.Mutex
	last   time.Time
	isShut bool
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.isShut = true
}

func (g *gate) copy(w io.Writer, r io.Reader) error {
	buf := make([]byte, 32<<10)
	var failed error
	for {
		n, err := r.Read(buf)
		if n > 0 {
			g.mu.Lock()
			g.last = time.Now()
			if failed == nil && !g.isShut { // what cannot be written must not block the guest
				_, failed = w.Write(buf[:n])
			}
			g.mu.Unlock()
		}
		if err != nil {
			return failed
		}
	}
}

// drain waits for both copies, or until output was silent for long enough.
func (g *gate) drain(ctx context.Context, copied <-chan error) error {
	began := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var errs []error
	for len(errs) < 2 {
		select {
		case err := <-copied:
			errs = append(errs, err)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			g.mu.Lock()
			quiet := time.Since(g.last)
			g.mu.Unlock()
			if min(quiet, time.Since(began)) > drained {
				return errors.Join(errs...)
			}
		}
	}
	return errors.Join(errs...)
}

// tailBuffer keeps the end of what was written.
type tailBuffer struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 4 << 10

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[max(0, len(p)-tailSize):]...)
	if over := len(t.buf) - tailSize; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tailBuffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.ToValidUTF8(bytes.TrimSpace(t.buf), []byte("?")))
}

func tee(w io.Writer, t *tailBuffer) io.Writer {
	if w == nil {
		return t
	}
	return io.MultiWriter(w, t)
}

func orEmpty(r io.Reader) io.Reader {
	if r == nil {
		return strings.NewReader("")
	}
	return r
}
