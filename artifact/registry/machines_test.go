package registry

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/test/disks"
)

// Two machines share a place in a registry: what one does the other sees.
func TestTwoMachines(t *testing.T) {
	addr := server(t)
	open := func() *Store {
		t.Helper()
		s, err := Open(store(t), at(t, "oci://"+addr+"/x"), patient)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	one, two := open(), open()
	data := noise(80, 3<<20)
	write := func(s *Store, version string, data []byte) artifact.Image {
		t.Helper()
		return disks.Bake(t, s, artifact.Image{Name: "web", Version: version, Arch: "amd64"}, data)
	}
	img := write(one, "1", data)
	if two.Has(img.Content) {
		t.Error("the second machine has what it never asked for")
	}
	got, err := two.Resolve(t.Context(), artifact.Ref{Name: "web", Tag: "1"})
	if err != nil || got.Digest != img.Digest || !two.Has(img.Content) {
		t.Fatalf("%s, %v", got.Digest, err)
	}
	// A disk that is there is compared by the maps alone: no pack is fetched.
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := two.CheckDisk(t.Context(), img.Content, path); err != nil || two.local.Has(img.Content) {
		t.Errorf("compared: %v; all was fetched: %t", err, two.local.Has(img.Content))
	}
	last := int64(-1)
	if err := two.Fetch(t.Context(), img.Content, path, func(done, total int64) {
		if done < last || done > total || total != int64(len(data)) {
			t.Errorf("%d of %d after %d", done, total, last)
		}
		last = done
	}); err != nil || last != int64(len(data)) {
		t.Fatalf("fetched to %d, %v", last, err)
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, data) {
		t.Fatalf("other bytes, %v", err)
	}
	// The second one's child shares the first one's chunks, here and there.
	child := bytes.Clone(data)
	copy(child[1<<20:], noise(81, 64<<10))
	write(two, "2", child)
	next, err := one.Resolve(t.Context(), artifact.Ref{Name: "web", Tag: "2"})
	if err != nil {
		t.Fatal(err)
	}
	_, m, _, err := one.local.ReadManifest(next.Digest)
	if err != nil {
		t.Fatal(err)
	}
	missing, err := one.local.Missing(t.Context(), m.Layers)
	if n := one.c.sum(missing).total; err != nil || n == 0 || n > 200<<10 {
		t.Errorf("a changed block makes the first machine fetch %d bytes, %v", n, err)
	}
	// Away from the network nothing is answered and nothing deleted.
	gone, err := Open(two.local, at(t, "oci://127.0.0.1:1/x"), quick)
	if err != nil {
		t.Fatal(err)
	}
	var away *UnreachableError
	if _, err := gone.Resolve(t.Context(), artifact.Ref{Name: "web", Tag: "1"}); !errors.As(err, &away) {
		t.Errorf("resolve: %v", err)
	}
	if _, err := gone.local.Keep(t.Context(), gone.String(), manifestOf(t, two, img), configOf(t, two, img)); err != nil {
		t.Fatal(err)
	}
	if n, err := gone.Prune(t.Context(), 0, nil); !errors.As(err, &away) || n != 0 {
		t.Errorf("prune: %d, %v", n, err)
	}
	if err := gone.local.Forget(t.Context(), gone.String(), func(artifact.Digest) bool { return true }); err != nil {
		t.Fatal(err)
	}
	// What the first one removes the second one's prune frees.
	for _, tag := range []string{"1", "2"} {
		if err := one.Remove(t.Context(), artifact.Ref{Name: "web", Tag: tag}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := two.Resolve(t.Context(), artifact.Ref{Name: "web", Tag: "1"}); !errors.Is(err, artifact.ErrNotFound) {
		t.Errorf("what was removed: %v", err)
	}
	if n, err := two.Prune(t.Context(), 0, []artifact.Digest{img.Content}); err != nil || n == 0 || !two.local.Has(img.Content) {
		t.Errorf("a content that is kept: freed %d, %v", n, err)
	}
	if n, err := two.Prune(t.Context(), 0, nil); err != nil || n < 3<<20 || two.Has(img.Content) {
		t.Errorf("freed %d, %v", n, err)
	}
}

func manifestOf(t *testing.T, s *Store, img artifact.Image) []byte {
	t.Helper()
	raw, _, _, err := s.local.ReadManifest(img.Digest)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func configOf(t *testing.T, s *Store, img artifact.Image) []byte {
	t.Helper()
	_, m, _, err := s.local.ReadManifest(img.Digest)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := s.local.ReadConfig(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
