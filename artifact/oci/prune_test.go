package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
)

// age makes every blob two days old.
func age(t *testing.T, s *Store) {
	t.Helper()
	old := time.Now().Add(-48 * time.Hour)
	es, err := os.ReadDir(s.blobDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		if err := os.Chtimes(filepath.Join(s.blobDir(), e.Name()), old, old); err != nil {
			t.Fatal(err)
		}
	}
}

// An old image is removed and pruned while a new one that shares its chunks is
// written: at whatever moment that happens, the new one is whole.
func TestPruneDuringWrite(t *testing.T) {
	shared := noise(1, 100*chunkSize)
	data := slices.Concat(noise(2, 40*chunkSize), shared, noise(3, 40*chunkSize))
	for name, moment := range map[string]int{"at the first read": 1, "half way": 6, "late": 11} {
		t.Run(name, func(t *testing.T) {
			s := openTemp(t)
			bake(t, s, "old", diskOf(shared))
			age(t, s)
			var mu sync.Mutex
			reads := 0
			d := diskOf(data)
			d.before = func() {
				mu.Lock()
				defer mu.Unlock()
				if reads++; reads != moment {
					return
				}
				if err := s.Remove(t.Context(), artifact.Ref{Name: "web", Tag: "old"}); err != nil {
					t.Error(err)
				}
				if _, err := s.Prune(t.Context(), 24*time.Hour, nil); err != nil {
					t.Error(err)
				}
			}
			img := bake(t, s, "new", d)
			if reads < moment {
				t.Fatalf("only %d reads", reads)
			}
			if err := s.Verify(t.Context(), img, nil); err != nil {
				t.Error(err)
			}
			if _, err := s.Prune(t.Context(), 0, nil); err != nil {
				t.Fatal(err)
			}
			if err := s.Verify(t.Context(), img, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// With no grace at all a write may fail, and say so; but what is registered is whole.
func TestPruneWithoutGraceNeverHurtsAnImage(t *testing.T) {
	s := openTemp(t)
	bake(t, s, "base", diskOf(noise(1, 20*chunkSize)))
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			var mu sync.Mutex
			r := rand.New(rand.NewPCG(uint64(w), 1))
			try := func(version string, data []byte) error {
				d := diskOf(data)
				d.before = func() {
					mu.Lock()
					defer mu.Unlock()
					if r.IntN(8) == 0 {
						if _, err := s.Prune(t.Context(), 0, nil); err != nil {
							t.Errorf("prune: %v", err)
						}
					}
				}
				content, _, err := s.Write(t.Context(), d, nil)
				if err == nil {
					_, err = s.Register(t.Context(), artifact.Image{Name: "web", Version: version, Content: content})
				}
				return err
			}
			for i := range 4 {
				version, data := fmt.Sprint(w, "-", i), slices.Concat(noise(byte(10*w+i), 3*chunkSize), noise(1, 20*chunkSize))
				err := try(version, data)
				for n := 0; err != nil && n < 100; n++ {
					if !errors.Is(err, artifact.ErrCorrupt) && !errors.Is(err, os.ErrNotExist) {
						t.Errorf("push: %v", err)
					}
					err = try(version, data)
				}
				if err != nil {
					t.Errorf("push failed a hundred times: %v", err)
				}
			}
		})
	}
	wg.Wait()
	all, err := s.List(t.Context(), "")
	if err != nil || len(all) != 1+4*4 {
		t.Fatalf("%d images, %v", len(all), err)
	}
	for _, img := range all {
		if err := s.Verify(t.Context(), img, nil); err != nil {
			t.Errorf("%s: %v", img.Version, err)
		}
	}
}

// What others put into the layout is not shown, and stays.
func TestForeignManifestsStay(t *testing.T) {
	s := openTemp(t)
	put := func(b []byte) v1.Descriptor {
		d, _, err := s.putBlob("application/x", b)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	encode := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	layer, config, lost := put([]byte("layer")), put([]byte("{}")), put([]byte("lost"))
	mani := put(encode(v1.Manifest{Config: config, Layers: []v1.Descriptor{layer}, MediaType: v1.MediaTypeImageManifest}))
	index := put(encode(v1.Index{Manifests: []v1.Descriptor{mani}, MediaType: v1.MediaTypeImageIndex}))
	index.MediaType = v1.MediaTypeImageIndex
	index.Annotations = map[string]string{v1.AnnotationRefName: "web:1"}
	if err := s.change(t.Context(), func(idx *v1.Index) error {
		idx.Manifests = append(idx.Manifests, index)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	img := bake(t, s, "1", diskOf(noise(1, chunkSize))) // the same name, as ours
	all, err := s.List(t.Context(), "")
	if err != nil || len(all) != 1 || all[0].Digest != img.Digest {
		t.Errorf("list: %v, %v", all, err)
	}
	if _, err := s.Prune(t.Context(), 0, nil); err != nil {
		t.Fatal(err)
	}
	for what, d := range map[string]v1.Descriptor{"layer": layer, "config": config, "manifest": mani, "index": index} {
		if _, err := s.blob(artifact.Digest(d.Digest)); err != nil {
			t.Errorf("the %s is gone: %v", what, err)
		}
	}
	if _, err := s.blob(artifact.Digest(lost.Digest)); err == nil {
		t.Error("what nobody needs is still there")
	}
	if err := s.Remove(t.Context(), artifact.Ref{Name: "web", Tag: "1"}); err != nil {
		t.Fatal(err)
	}
	if idx, err := s.index(); err != nil || len(idx.Manifests) != 1 {
		t.Errorf("the index has %d entries, %v", len(idx.Manifests), err)
	}
}

// Files of dead processes go, those of live ones stay.
func TestCleanTellsTheDeadFromTheLiving(t *testing.T) {
	s := openTemp(t)
	live, err := s.newBlob()
	if err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(s.blobDir(), tempPrefix+"dead")
	other := filepath.Join(s.dir, "notes")
	for _, p := range []string{dead, other} {
		if err := os.WriteFile(p, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	gone, err := s.Clean(t.Context())
	if err != nil || !slices.Equal(gone, []string{dead}) {
		t.Errorf("gone: %v, %v", gone, err)
	}
	if _, err := live.Write([]byte("live")); err != nil {
		t.Fatal(err)
	}
	desc, isNew, err := live.commit("x")
	if err != nil || !isNew {
		t.Fatal(err)
	}
	if b, err := s.blob(artifact.Digest(desc.Digest)); err != nil || string(b) != "live" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
}
