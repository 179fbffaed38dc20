package registry

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/test/conformance"
)

// TestStore runs the suites of every store on each kind of registry.
func TestStore(t *testing.T) {
	for name, start := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := start(t)
			var n atomic.Int64
			open := func(t *testing.T) (*Store, string) {
				dir := t.TempDir()
				local, err := oci.Open(dir)
				if err != nil {
					t.Fatal(err)
				}
				s, err := Open(local, at(t, fmt.Sprintf("oci://%s/suite/%d", addr, n.Add(1))), patient)
				if err != nil {
					t.Fatal(err)
				}
				return s, dir
			}
			conformance.StoreOver(t, func(t *testing.T) artifact.Store { s, _ := open(t); return s })
			conformance.StoreAttach(t, func(t *testing.T) (artifact.Store, func([]byte)) {
				s, dir := open(t)
				return s, func(body []byte) {
					path := filepath.Join(dir, "blobs", "sha256", fmt.Sprintf("%x", sha256.Sum256(body)))
					if err := os.WriteFile(path, append([]byte("!"), body[1:]...), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			})
		})
	}
}
