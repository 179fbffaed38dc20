package conformance_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/haproxy"
	"github.com/rebake/rebake/test/conformance"
)

func TestHAProxy(t *testing.T) {
	if _, err := exec.LookPath("haproxy"); err != nil {
		t.Fatal("this test needs the real HAProxy: apt-get install haproxy")
	}
	conformance.Router(t, func(t *testing.T) conformance.RouterWorld {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		_ = l.Close()
		run, err := os.MkdirTemp("/tmp", "rebake-test-")
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		r, err := haproxy.New(haproxy.Config{Listen: addr}, dir, filepath.Join(run, "r"), "web",
			fleet.HealthCheck{Interval: 50 * time.Millisecond, Timeout: time.Second, Rise: 2, Fall: 2})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := r.Remove(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
			if err := os.RemoveAll(run); err != nil {
				t.Error(err)
			}
		})
		return conformance.RouterWorld{Router: r, Backend: conformance.HTTPBackend, Send: conformance.HTTPSend(addr), Kill: func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join(dir, "haproxy.pid"))
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
			if err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(5 * time.Second); syscall.Kill(pid, 0) == nil && time.Now().Before(end); {
				if st, _ := r.Status(t.Context()); !st.Up {
					return
				}
				<-time.After(5 * time.Millisecond)
			}
		}}
	})
}
