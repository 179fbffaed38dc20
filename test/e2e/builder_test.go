//go:build e2e

package e2e

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/builder/qemu"
	vm "github.com/rebake/rebake/internal/qemu"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/test/conformance"
	"github.com/rebake/rebake/test/fake"
)

// The base comes over HTTP, so that every read of it is counted.
func TestTheQEMUBuilderKeepsItsContract(t *testing.T) {
	conformance.Builder(t, func(t *testing.T) conformance.BuilderWorld {
		w := newWorld(t)
		var fetched atomic.Int32
		origin := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			fetched.Add(1)
			http.ServeFile(rw, r, guest.path)
		}))
		t.Cleanup(origin.Close)
		deps := qemu.Deps{State: state.Dir(w.home), Store: &fake.Store{}}
		open := func(t *testing.T, disk template.Size) builder.Builder {
			cfg := qemu.Config{Memory: 192 << 20, Disk: disk, From: qemu.From{URL: origin.URL + "/tiny.raw", Checksum: guest.sum, Seed: "credentials"}}
			b, err := qemu.New(cfg, deps)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		return conformance.BuilderWorld{
			Builder: open(t, 0), Port: 80, Patience: 2 * time.Minute,
			Again:   func(t *testing.T) builder.Builder { return open(t, 0) },
			Other:   func(t *testing.T) builder.Builder { return open(t, 512<<20) },
			Fetched: func() int { return int(fetched.Load()) },
			Kill: func(t *testing.T, id string) {
				m, err := vm.Attach(deps.State.Build(id))
				if err != nil {
					t.Fatal(err)
				}
				if err := syscall.Kill(m.PID(), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			},
			Leftovers: func(t *testing.T) []string {
				left := append(files(t, deps.State.Builds()), w.sockets()...)
				for _, p := range w.processes() {
					if strings.Contains(p, filepath.Join(w.home, "builds")) {
						left = append(left, p)
					}
				}
				return left
			},
		}
	})
}
