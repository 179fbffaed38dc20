//go:build e2e

package e2e

import (
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
		return conformance.PoolWorld{
			Pool: open(t), Again: open, Patience: time.Minute,
			Spec: fleet.Spec{Image: img, Size: 2, Ports: []int{80}},
			Kill: func(t *testing.T, i fleet.Instance) { must(t, syscall.Kill(i.PID, syscall.SIGKILL)) },
			Leftovers: func(t *testing.T) []string {
				dir := state.Dir(w.home).Fleet("suite")
				left := append(files(t, filepath.Join(dir, "instances")), files(t, filepath.Join(dir, "groups"))...)
				left = append(left, w.sockets()...)
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
