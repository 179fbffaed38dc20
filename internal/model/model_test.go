package model_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/fault"
	"github.com/rebake/rebake/internal/model"
	"github.com/rebake/rebake/test/conformance"
)

// none is an injector of no faults: what it wraps keeps its contract.
func none() *fault.Injector { return fault.New(fault.Plan{Seed: 1}) }

func TestPool(t *testing.T) {
	testPool(t, func(p fleet.Pool) fleet.Pool { return p })
}

func TestAPoolBehindNoFaults(t *testing.T) { testPool(t, none().Pool) }

func testPool(t *testing.T, wrap func(fleet.Pool) fleet.Pool) {
	conformance.Pool(t, func(t *testing.T) conformance.PoolWorld {
		p := &model.Pool{}
		return conformance.PoolWorld{
			Pool: wrap(p), Spec: fleet.Spec{Image: artifact.Image{Digest: "sha256:a"}, Size: 2, Ports: []int{80, 22}},
			Kill: func(t *testing.T, i fleet.Instance) {
				if !p.Kill(i.ID) {
					t.Errorf("no %s", i.ID)
				}
			},
			Leftovers: func(t *testing.T) (left []string) {
				gs, err := p.Groups(t.Context(), "suite")
				if err != nil {
					t.Fatal(err)
				}
				return strings.Fields(strings.Repeat("group ", len(gs)))
			},
		}
	})
}

func TestRouter(t *testing.T) {
	testRouter(t, func(r fleet.Router) fleet.Router { return r })
}

func TestARouterBehindNoFaults(t *testing.T) { testRouter(t, none().Router) }

func testRouter(t *testing.T, wrap func(fleet.Router) fleet.Router) {
	conformance.Router(t, func(t *testing.T) conformance.RouterWorld {
		status, addrs := map[string]int{}, map[string]string{}
		real := &model.Router{Every: 1e7, Check: func(addr string) string {
			if status[addr] == 200 {
				return "L7OK"
			}
			return fmt.Sprintf("L7STS/%d", status[addr])
		}}
		r := wrap(real)
		return conformance.RouterWorld{
			Router: r,
			Backend: func(*testing.T) (string, func(int)) {
				addr := fmt.Sprintf("127.0.0.1:%d", 9000+len(status))
				status[addr] = 200
				return addr, func(s int) { status[addr] = s }
			},
			Send: func(bool) (string, func() error, error) {
				id, end := real.Send()
				if id == "" {
					return "", nil, errors.New("nobody took it")
				}
				st, err := r.Status(t.Context())
				for _, ms := range st.Members {
					for _, m := range ms {
						addrs[m.ID] = m.Addr
					}
				}
				return addrs[id], func() error { end(); return nil }, err
			},
			Kill: func(*testing.T) { real.Kill() },
		}
	})
}

func TestGroup(t *testing.T) {
	conformance.InPlace(t, func(t *testing.T) conformance.InPlaceWorld {
		g := model.NewGroup(4)
		return conformance.InPlaceWorld{Group: g, Bake: 1e6 * time.Second, Cancel: func(*testing.T) { g.Cancel() },
			Spec: func(n int, sick bool) fleet.Spec {
				d := artifact.Digest(fmt.Sprintf("sha256:%d", n))
				if sick {
					g.Sick[d] = "L7STS/500"
				}
				return fleet.Spec{Image: artifact.Image{Digest: d}, Size: 4, Ports: []int{80}}
			}}
	})
}
