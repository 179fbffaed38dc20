package qemu

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// fakeQMP greets who calls its socket, answers the first command, and then does what
// then does before it hangs up.
func fakeQMP(t *testing.T, then func(c net.Conn, in *bufio.Scanner)) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, `{"QMP": {}}`+"\n")
		in := bufio.NewScanner(c)
		in.Scan() // qmp_capabilities
		_, _ = io.WriteString(c, `{"return": {}}`+"\n")
		then(c, in)
	}()
	return path
}

// A QEMU that hangs up, before or while it is told something, has gone away: the
// callers of run wait for its end then.
func TestAQEMUThatHangsUpHasGoneAway(t *testing.T) {
	for _, name := range []string{"before a command", "instead of an answer"} {
		t.Run(name, func(t *testing.T) {
			hangUp := make(chan struct{})
			path := fakeQMP(t, func(_ net.Conn, in *bufio.Scanner) {
				if name == "before a command" {
					<-hangUp
					return
				}
				in.Scan()
			})
			m, err := dialQMP(t.Context(), path, nil)
			if err != nil {
				t.Fatal(err)
			}
			close(hangUp)
			if name == "before a command" {
				<-m.closed
			}
			if err := m.run(t.Context(), "system_powerdown", nil); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Whoever waits for a QEMU that is silent is told why the waiting ended, at
// whatever moment that is.
func TestASilentQEMUIsLeftForTheContextsCause(t *testing.T) {
	path := fakeQMP(t, func(c net.Conn, _ *bufio.Scanner) { _, _ = io.Copy(io.Discard, c) })
	m, err := dialQMP(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	cause := errors.New("told to stop")
	for i := range 200 {
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Duration(i)*10*time.Microsecond, cause)
		if err := m.run(ctx, "system_powerdown", nil); !errors.Is(err, cause) {
			t.Errorf("after %d0 µs: %v, want the context's cause", i, err)
		}
		cancel()
	}
}
