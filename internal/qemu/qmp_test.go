package qemu

import (
	"bufio"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
)

// A QEMU that hangs up, before or while it is told something, has gone away: the
// callers of run wait for its end then.
func TestAQEMUThatHangsUpHasGoneAway(t *testing.T) {
	for name, answers := range map[string]int{"before a command": 1, "instead of an answer": 1} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			hangUp := make(chan struct{})
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				_, _ = io.WriteString(c, `{"QMP": {}}`+"\n")
				sc := bufio.NewScanner(c)
				for range answers {
					if sc.Scan() {
						_, _ = io.WriteString(c, `{"return": {}}`+"\n")
					}
				}
				if name == "before a command" {
					<-hangUp
					return
				}
				sc.Scan()
			}()
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
