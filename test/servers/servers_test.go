package servers_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/test/conformance"
	"github.com/rebake/rebake/test/servers"
)

func TestPool(t *testing.T) {
	conformance.Pool(t, func(t *testing.T) conformance.PoolWorld {
		p := &servers.Pool{Handler: func(string) http.Handler { return http.NotFoundHandler() }}
		t.Cleanup(func() {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
		return conformance.PoolWorld{
			Pool: p, Spec: fleet.Spec{Image: artifact.Image{Digest: "sha256:a"}, Size: 2, Ports: []int{80}},
			Kill: func(t *testing.T, i fleet.Instance) {
				if err := p.Kill(i.ID); err != nil {
					t.Error(err)
				}
			},
			Leftovers: func(t *testing.T) []string {
				gs, err := p.Groups(t.Context(), "suite")
				if err != nil {
					t.Fatal(err)
				}
				return strings.Fields(strings.Repeat("group ", len(gs)))
			},
		}
	})
}
