package registry

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/internal/lifecycle"
)

// descend registers an image that was made from another.
func descend(t *testing.T, s *oci.Store, name string, base artifact.Image) artifact.Image {
	t.Helper()
	img := base
	img.Name, img.Version, img.Tags = name, "1", nil
	img.Lineage = artifact.Lineage{Parent: base.Name + ":" + base.Version, ParentDigest: base.Digest}
	if base.Lineage.Parent != "" {
		img.Lineage.Ancestors = append([]artifact.Ancestor{{Ref: base.Lineage.Parent, Digest: base.Lineage.ParentDigest}}, base.Lineage.Ancestors...)
	}
	img, err := s.Register(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// Who pulls an image alone knows, too, that one which it was made from is revoked.
func TestRevokedAncestorsArePulled(t *testing.T) {
	for name, start := range kinds() {
		t.Run(name, func(t *testing.T) {
			addr, one, two := start(t), store(t), store(t)
			base := bake(t, one, "1", noise(20, 1<<20))
			middle := descend(t, one, "middle", base) // never pushed
			web := descend(t, one, "web", middle)
			attach(t, one, base, 10, `"not of a kind that comes"`)
			who := lifecycle.Author{By: "anna", Now: time.Now}
			push := func(img artifact.Image) {
				t.Helper()
				if _, err := Push(t.Context(), one, img, at(t, "oci://"+addr+"/x"), quick); err != nil {
					t.Fatal(err)
				}
			}
			pulled := func(attached int) string {
				t.Helper()
				o := quick
				o.Ancestry = []string{lifecycle.RevocationKind}
				o.Warn = func(text string) { t.Error(text) }
				res, err := Pull(t.Context(), at(t, "oci://"+addr+"/x/web:1"), two, "amd64", o)
				if err != nil || res.Attached != attached {
					t.Fatalf("%d came, %v; want %d", res.Attached, err, attached)
				}
				why, err := lifecycle.Revoked(t.Context(), two, res.Image, time.Now())
				if err != nil {
					t.Fatal(err)
				}
				return why
			}
			push(web)
			if why := pulled(0); why != "" {
				t.Errorf("nothing is revoked: %q", why)
			}
			if _, err := lifecycle.Revoke(t.Context(), one, who, base, time.Time{}, "leaks"); err != nil {
				t.Fatal(err)
			}
			push(base)
			if why := pulled(1); !strings.Contains(why, "it was made from team/web:1, which is revoked: leaks") {
				t.Errorf("revoked: %q", why)
			}
			// It is not an image of the store, and stays known when space is freed.
			if all, err := two.List(t.Context(), ""); err != nil || len(all) != 1 {
				t.Errorf("%d images, %v", len(all), err)
			}
			if _, err := two.Prune(t.Context(), 0, nil); err != nil {
				t.Fatal(err)
			}
			if why := pulled(0); why == "" {
				t.Error("pruned, and not revoked any more")
			}
			if _, err := lifecycle.Restore(t.Context(), one, who, base, "did not"); err != nil {
				t.Fatal(err)
			}
			push(base)
			if why := pulled(1); why != "" {
				t.Errorf("restored: %q", why)
			}
		})
	}
}

// Operators on machines of their own promote in one registry at once.
func TestChannelsInARegistry(t *testing.T) {
	for name, start := range kinds() {
		t.Run(name, func(t *testing.T) {
			addr, maker := start(t), store(t)
			open := func() *Store {
				s, err := Open(store(t), at(t, "oci://"+addr+"/x"), quick)
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			const n = 4
			for i := range n {
				img := bake(t, maker, fmt.Sprint(i), noise(uint64(i), 1<<16))
				if _, err := Push(t.Context(), maker, img, at(t, "oci://"+addr+"/x"), quick); err != nil {
					t.Fatal(err)
				}
			}
			var all sync.WaitGroup
			for i := range n {
				s := open()
				all.Go(func() {
					img, err := s.Resolve(t.Context(), artifact.Ref{Name: "team/web", Tag: fmt.Sprint(i)})
					if err == nil {
						_, err = lifecycle.Promote(t.Context(), s, lifecycle.Me(), img, "stable", "x", nil)
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			s := open()
			h, err := lifecycle.History(t.Context(), s, "team/web", "stable")
			if err != nil || len(h.Entries) != n || h.Moved != "" || h.Holds == nil || h.Holds.Version != h.Entries[0].To.Version {
				t.Fatalf("%+v, %v", h, err)
			}
			img, err := s.Resolve(t.Context(), artifact.Ref{Name: "team/web", Tag: "stable"})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := lifecycle.Revoke(t.Context(), s, lifecycle.Me(), img, time.Time{}, "leaks"); err != nil {
				t.Fatal(err)
			}
			if why, err := lifecycle.Revoked(t.Context(), open(), img, time.Now()); err != nil || !strings.HasPrefix(why, "leaks ") {
				t.Errorf("another machine: %q, %v", why, err)
			}
		})
	}
}
