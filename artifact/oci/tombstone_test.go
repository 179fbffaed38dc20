package oci

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	orasoci "oras.land/oras-go/v2/content/oci"
)

// After an image was retired and pruned others can still open the layout, copy what
// is there, and copy the tombstone, which is whole.
func TestOrasReadsALayoutWithTombstones(t *testing.T) {
	s := openTemp(t)
	gone, kept := bake(t, s, "1", diskOf(noise(1, 3*chunkSize))), bake(t, s, "2", diskOf(noise(2, 3*chunkSize)))
	a, err := s.Attach(t.Context(), gone.Digest, said(1), []byte(`{"a":1}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Retire(t.Context(), gone, "old", time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prune(t.Context(), 0, nil); err != nil {
		t.Fatal(err)
	}
	theirs, err := orasoci.NewFromFS(t.Context(), os.DirFS(s.dir))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := theirs.Resolve(t.Context(), "web:1"); err == nil {
		t.Error("others take the tombstone for the image")
	}
	to := memory.New()
	if d, err := oras.Copy(t.Context(), theirs, "web:2", to, "x", oras.DefaultCopyOptions); err != nil || artifact.Digest(d.Digest) != kept.Digest {
		t.Errorf("copied %s, %v; want %s", d.Digest, err, kept.Digest)
	}
	idx, err := s.index()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, m := range idx.Manifests {
		if kind(m) == kindRemoved {
			found = true
			if _, err := oras.Copy(t.Context(), theirs, string(m.Digest), to, "stone", oras.DefaultCopyOptions); err != nil {
				t.Errorf("copy the tombstone: %v", err)
			}
		}
	}
	subject, err := theirs.Resolve(t.Context(), string(gone.Digest))
	if err != nil || !found {
		t.Fatalf("a tombstone is there: %v; its image's manifest: %v", found, err)
	}
	refs, err := theirs.Predecessors(t.Context(), subject)
	if err != nil || !slices.ContainsFunc(refs, func(d v1.Descriptor) bool { return artifact.Digest(d.Digest) == a.Digest }) {
		t.Errorf("referrers: %v, %v; want %s among them", refs, err, a.Digest)
	}
}

// What comes back by a pull is the image that was removed, or is refused.
func TestAPulledImageReplacesItsTombstoneAlone(t *testing.T) {
	s, elsewhere := openTemp(t), openTemp(t)
	img, other := bake(t, s, "1", diskOf(noise(1, 3*chunkSize))), bake(t, elsewhere, "1", diskOf(noise(2, 3*chunkSize)))
	raw, _, _, err := s.ReadManifest(img.Digest)
	if err != nil {
		t.Fatal(err)
	}
	theirs, _, _, err := elsewhere.ReadManifest(other.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Retire(t.Context(), img, "old", time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	blobs, err := os.ReadDir(elsewhere.blobDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		if err := os.Link(filepath.Join(elsewhere.blobDir(), b.Name()), filepath.Join(s.blobDir(), b.Name())); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	ref := artifact.Ref{Name: "web", Tag: "1"}
	if _, err := s.Adopt(t.Context(), theirs, ref); !errors.Is(err, artifact.ErrExists) {
		t.Errorf("another image of a removed version: %v; want ErrExists", err)
	}
	if back, err := s.Adopt(t.Context(), raw, ref); err != nil || back.Digest != img.Digest {
		t.Errorf("the same image: %s, %v", back.Digest, err)
	}
	if got, err := s.Resolve(t.Context(), ref); err != nil || got.Digest != img.Digest {
		t.Errorf("resolved: %s, %v", got.Digest, err)
	}
	if gone, err := s.Removed(t.Context(), ""); err != nil || len(gone) != 0 {
		t.Errorf("its tombstone is there still: %v, %v", gone, err)
	}
}

// A damaged tombstone is found out, and does not let its version go.
func TestADamagedTombstoneIsFoundOut(t *testing.T) {
	s := openTemp(t)
	img := bake(t, s, "1", diskOf(noise(1, chunkSize)))
	if err := s.Retire(t.Context(), img, "old", time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	idx, err := s.index()
	if err != nil || len(idx.Manifests) != 1 {
		t.Fatalf("%v, %v", idx.Manifests, err)
	}
	path, err := s.blobPath(artifact.Digest(idx.Manifests[0].Digest))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if all, err := s.Removed(t.Context(), ""); err == nil {
		t.Errorf("read as %v", all)
	}
	if _, err := s.Resolve(t.Context(), artifact.Ref{Name: "web", Tag: "1"}); err == nil {
		t.Error("resolved")
	}
	if freed, err := s.Prune(t.Context(), 0, nil); err == nil {
		t.Errorf("prune freed %d", freed)
	}
	other := bake(t, s, "2", diskOf(noise(2, chunkSize)))
	if _, err := s.Register(t.Context(), artifact.Image{Name: "web", Version: "1", Content: other.Content}); err == nil {
		t.Error("the version was given away")
	}
}
