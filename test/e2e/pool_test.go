//go:build e2e

package e2e

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/qemu"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/test/conformance"
)

// The machines are real; that their guests serve is the swap's test.
func TestTheQEMUPoolKeepsItsContract(t *testing.T) {
	store, err := oci.Open(filepath.Join(t.TempDir(), "store"))
	must(t, err)
	const page = "tiny guest: ready as"
	img := tinyImage(t, store, "1", page, page)
	conformance.Pool(t, func(t *testing.T) conformance.PoolWorld {
		w := newWorld(t)
		open := func(t *testing.T) fleet.Pool {
			p, err := qemu.New(qemu.Config{Memory: 96 << 20, Shutdown: template.Duration(time.Second)}, // most are retired before they are up
				qemu.Deps{State: state.Dir(w.home), Store: store}, "suite")
			must(t, err)
			return p
		}
		first := &launched{Pool: open(t)}
		return conformance.PoolWorld{
			Pool: first, Again: open, Patience: time.Minute,
			Spec: fleet.Spec{Image: img, Size: 2, Ports: []int{80}},
			Kill: func(t *testing.T, i fleet.Instance) { must(t, syscall.Kill(i.PID, syscall.SIGKILL)) },
			Leftovers: func(t *testing.T) []string {
				dir := state.Dir(w.home).Fleet("suite")
				left := append(files(t, filepath.Join(dir, "instances")), files(t, filepath.Join(dir, "groups"))...)
				for _, id := range first.ids {
					left = append(left, there(state.RunFor("i", filepath.Join(dir, "instances", id)))...)
				}
				for _, p := range w.processes() {
					if strings.Contains(p, dir) {
						left = append(left, p)
					}
				}
				return left
			},
		}
	})
}

// launched keeps the names of instances, because their sockets are in a
// directory that every rebake of this user shares.
type launched struct {
	fleet.Pool
	ids []string
}

func (l *launched) Launch(ctx context.Context, id fleet.GroupID, spec fleet.Spec) error {
	err := l.Pool.Launch(ctx, id, spec)
	groups, gerr := l.Groups(context.WithoutCancel(ctx), id.Fleet)
	for _, g := range groups {
		for _, i := range g.Instances {
			l.ids = append(l.ids, i.ID)
		}
	}
	return errors.Join(err, gerr)
}
