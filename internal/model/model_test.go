package model_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/model"
	"github.com/rebake/rebake/test/conformance"
)

func TestPool(t *testing.T) {
	conformance.Pool(t, func(t *testing.T) conformance.PoolWorld {
		p := &model.Pool{}
		return conformance.PoolWorld{
			Pool: p, Spec: fleet.Spec{Image: artifact.Image{Digest: "sha256:a"}, Size: 2, Ports: []int{80, 22}},
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
	conformance.Router(t, func(t *testing.T) conformance.RouterWorld {
		status, addrs := map[string]int{}, map[string]string{}
		r := &model.Router{Every: 1e7, Check: func(addr string) string {
			if status[addr] == 200 {
				return "L7OK"
			}
			return fmt.Sprintf("L7STS/%d", status[addr])
		}}
		return conformance.RouterWorld{
			Router: r,
			Backend: func(*testing.T) (string, func(int)) {
				addr := fmt.Sprintf("127.0.0.1:%d", 9000+len(status))
				status[addr] = 200
				return addr, func(s int) { status[addr] = s }
			},
			Send: func(bool) (string, func() error, error) {
				id, end := r.Send()
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
			Kill: func(*testing.T) { r.Kill() },
		}
	})
}
