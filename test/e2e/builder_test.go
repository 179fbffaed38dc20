//go:build e2e

package e2e

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/builder/qemu"
	vm "github.com/rebake/rebake/internal/qemu"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/test/conformance"
	"github.com/rebake/rebake/test/fake"
)

// The base comes over HTTP, so that every read of it is counted.
func TestTheQEMUBuilderKeepsItsContract(t *testing.T) { conformance.Builder(t, qemuBuilder) }

func TestTheQEMUBuilderMakesCheckpoints(t *testing.T) { conformance.Checkpointer(t, qemuBuilder) }

func qemuBuilder(t *testing.T) conformance.BuilderWorld {
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
	named := &recorder{Builder: open(t, 0)}
	return conformance.BuilderWorld{
		Builder: named, Port: 80, Patience: 2 * time.Minute,
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
			left := append(files(t, deps.State.Builds()), named.sockets(deps.State)...)
			for _, p := range w.processes() {
				if strings.Contains(p, filepath.Join(w.home, "builds")) {
					left = append(left, p)
				}
			}
			return left
		},
	}
}

// recorder keeps the names of machines, because their sockets are in a
// directory that every rebake of this user shares.
type recorder struct {
	builder.Builder
	mu  sync.Mutex
	ids []string
}

func (r *recorder) record(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ids = append(r.ids, id)
}

func (r *recorder) Boot(ctx context.Context, id string) (builder.Machine, error) {
	r.record(id)
	return r.Builder.Boot(ctx, id)
}

func (r *recorder) BootTest(ctx context.Context, id string, d artifact.Disk, ports []int) (builder.Machine, error) {
	r.record(id)
	return r.Builder.BootTest(ctx, id, d, ports)
}

func (r *recorder) Find(ctx context.Context, key artifact.Digest) (builder.Checkpoint, bool, error) {
	return r.Builder.(builder.Checkpointer).Find(ctx, key)
}

func (r *recorder) BootFrom(ctx context.Context, id string, c builder.Checkpoint) (builder.Machine, error) {
	r.record(id)
	return r.Builder.(builder.Checkpointer).BootFrom(ctx, id, c)
}

func (r *recorder) Save(ctx context.Context, m builder.Machine, key artifact.Digest, memory bool, note []byte) (func(context.Context) error, error) {
	return r.Builder.(builder.Checkpointer).Save(ctx, m, key, memory, note)
}

func (r *recorder) sockets(d state.Dir) (left []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range r.ids {
		left = append(left, there(state.RunFor("b", d.Build(id)))...)
	}
	return left
}

// there is path, if something is there.
func there(path string) []string {
	if _, err := os.Lstat(path); err != nil {
		return nil
	}
	return []string{path}
}
