package haproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// maxAnswer bounds what is read from the socket: thousands of servers fit.
const maxAnswer = 8 << 20

// errDown says that nobody listens on the socket.
var errDown = errors.New("the router does not run")

// refusedError is an answer that does not mean success.
type refusedError struct{ command, answer string }

func (e *refusedError) Error() string {
	return fmt.Sprintf("HAProxy refused %q: %s", e.command, e.answer)
}

// ask sends one command and returns the whole answer. HAProxy closes the
// connection after it.
func (r *Router) ask(ctx context.Context, command string) (string, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", r.socketPath())
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return "", errDown
	}
	if err != nil {
		return "", fmt.Errorf("reach the router: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, command+"\n"); err != nil {
		return "", lost(command, err)
	}
	answer, err := io.ReadAll(io.LimitReader(conn, maxAnswer+1))
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		return "", lost(command, err)
	}
	if len(answer) == 0 { // each answer has at least an empty line
		return "", lost(command, io.ErrUnexpectedEOF)
	}
	if len(answer) > maxAnswer {
		return "", fmt.Errorf("the router's answer to %q is longer than %d bytes", command, maxAnswer)
	}
	return string(answer), nil
}

// lost tells a router that died under a command from other trouble.
func lost(command string, err error) error {
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it went away during %q", errDown, command)
	}
	return fmt.Errorf("ask the router %q: %w", command, err)
}

// command is for commands that answer nothing when they succeed.
func (r *Router) command(ctx context.Context, command string) error {
	return r.expect(ctx, command, "")
}

// expect runs a command that must give this answer: HAProxy has no status, all
// other text is an error.
func (r *Router) expect(ctx context.Context, command, answer string) error {
	got, err := r.ask(ctx, command)
	if err != nil {
		return err
	}
	got = strings.TrimSpace(got)
	if got == answer {
		return nil
	}
	if got == "" {
		got = "(no answer)"
	}
	if len(got) > 300 {
		got = got[:300] + "…"
	}
	return &refusedError{command, got}
}
