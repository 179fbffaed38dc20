package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
)

// memDisk is a disk in memory, over a parent that is in the store.
type memDisk struct {
	data    []byte
	parent  artifact.Digest
	changed map[int]bool // chunks that differ from the parent
	fail    int64        // reads at or after it fail; 0: none
}

func (d *memDisk) ReadAt(p []byte, off int64) (int, error) {
	if d.fail > 0 && off+int64(len(p)) > d.fail {
		return 0, errors.New("the disk is broken here")
	}
	return bytes.NewReader(d.data).ReadAt(p, off)
}
func (d *memDisk) Size() int64             { return int64(len(d.data)) }
func (d *memDisk) Parent() artifact.Digest { return d.parent }
func (d *memDisk) Close() error            { return nil }

func (d *memDisk) Extents(context.Context) ([]artifact.Extent, error) {
	var out []artifact.Extent
	for at := 0; at < len(d.data); at += chunkSize {
		n := min(chunkSize, len(d.data)-at)
		e := artifact.Extent{Offset: int64(at), Length: int64(n)}
		e.Inherited = d.parent != "" && !d.changed[at/chunkSize]
		e.Zero = !e.Inherited && isZero(d.data[at:at+n])
		out = append(out, e)
	}
	return out, nil
}

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func write(t *testing.T, s *Store, d artifact.Disk) (artifact.Digest, int64) {
	t.Helper()
	c, added, err := s.Write(t.Context(), d, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, added
}

func register(t *testing.T, s *Store, version string, c artifact.Digest) artifact.Image {
	t.Helper()
	img, err := s.Register(t.Context(), artifact.Image{Name: "web", Version: version, Content: c, Created: time.Unix(1e9, 0).UTC()})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func randomDisk(r *rand.Rand, size int) []byte {
	b := make([]byte, size)
	for at := 0; at < size; at += chunkSize {
		if r.IntN(3) > 0 {
			fill(r, b[at:min(at+chunkSize, size)])
		}
	}
	return b
}

func fill(r *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

func TestFetchGivesBackTheBytesOfDisksAndTheirChildren(t *testing.T) {
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := open(t)
		d := &memDisk{data: randomDisk(r, 1+r.IntN(60*chunkSize))}
		for generation := range 4 {
			c, added := write(t, s, d)
			path := filepath.Join(t.TempDir(), "disk")
			if err := s.Fetch(t.Context(), c, path, nil); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, d.data) {
				t.Fatalf("seed %d, generation %d: other bytes came back (%v)", seed, generation, err)
			}
			img := register(t, s, fmt.Sprint(generation), c)
			if err := s.Verify(t.Context(), img, nil); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if _, again := write(t, s, d); again != 0 {
				t.Errorf("seed %d: the same disk added %d bytes", seed, again)
			}
			next := &memDisk{data: bytes.Clone(d.data), parent: c, changed: map[int]bool{}}
			if n := len(next.data) / chunkSize; n > 0 {
				k := r.IntN(n)
				fill(r, next.data[k*chunkSize:(k+1)*chunkSize])
				next.changed[k] = true
			}
			if generation > 0 && added > 2*chunkSize {
				t.Errorf("seed %d: one changed chunk added %d bytes", seed, added)
			}
			d = next
		}
	}
}

func TestVersionsStayAndTagsMove(t *testing.T) {
	s, ctx := open(t), t.Context()
	r := rand.New(rand.NewPCG(1, 2))
	c1, _ := write(t, s, &memDisk{data: randomDisk(r, 5*chunkSize)})
	c2, _ := write(t, s, &memDisk{data: randomDisk(r, 5*chunkSize)})
	if l, err := s.List(ctx, ""); err != nil || len(l) != 0 {
		t.Fatalf("visible before Register: %v, %v", l, err)
	}
	a, b := register(t, s, "1.0", c1), register(t, s, "1.1", c2)
	if _, err := s.Register(ctx, artifact.Image{Name: "web", Version: "1.0", Content: c2}); !errors.Is(err, artifact.ErrExists) {
		t.Errorf("a version was changed: %v", err)
	}
	for _, to := range []artifact.Image{a, b} {
		if err := s.Tag(ctx, "web", "stable", to.Digest); err != nil {
			t.Fatal(err)
		}
		got, err := s.Resolve(ctx, artifact.Ref{Name: "web", Tag: "stable"})
		if err != nil || got.Digest != to.Digest {
			t.Errorf("stable is %s, %v; want %s", got.Digest, err, to.Digest)
		}
	}
	if err := s.Tag(ctx, "web", "1.0", b.Digest); !errors.Is(err, artifact.ErrExists) {
		t.Errorf("a version was moved as a tag: %v", err)
	}
	if got, err := s.Resolve(ctx, artifact.Ref{Name: "web", Digest: a.Digest[:len("sha256:")+12]}); err != nil || got.Version != "1.0" {
		t.Errorf("by digest prefix: %v, %v", got.Version, err)
	}
	if _, err := s.Resolve(ctx, artifact.Ref{Name: "web", Tag: "none"}); !errors.Is(err, artifact.ErrNotFound) {
		t.Errorf("none: %v", err)
	}
	if err := s.Remove(ctx, artifact.Ref{Name: "web", Tag: "stable"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, artifact.Ref{Name: "web", Tag: "1.0"}); err != nil {
		t.Fatal(err)
	}
	freed, err := s.Prune(ctx, 0, nil)
	if err != nil || freed == 0 {
		t.Errorf("prune freed %d, %v", freed, err)
	}
	if err := s.Verify(ctx, b, nil); err != nil {
		t.Errorf("prune hurt what stays: %v", err)
	}
	if s.Has(c1) {
		t.Error("prune left what nobody needs")
	}
}

func TestManyWritersLoseNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			s, err := Open(dir) // a store of its own, as another process has
			if err != nil {
				t.Error(err)
				return
			}
			r := rand.New(rand.NewPCG(uint64(w), 3))
			for i := range 10 {
				c, _, err := s.Write(t.Context(), &memDisk{data: randomDisk(r, 2*chunkSize)}, nil)
				if err != nil {
					t.Error(err)
					return
				}
				v := fmt.Sprintf("%d.%d", w, i)
				img, err := s.Register(t.Context(), artifact.Image{Name: "web", Version: v, Content: c})
				if err == nil {
					err = s.Tag(t.Context(), "web", "t"+v, img.Digest)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.List(t.Context(), "web")
	if err != nil || len(l) != 80 {
		t.Fatalf("%d images, %v", len(l), err)
	}
	for _, img := range l {
		if len(img.Tags) != 1 {
			t.Errorf("%s has tags %v", img.Version, img.Tags)
		}
	}
}

func TestDamageIsFound(t *testing.T) {
	s := open(t)
	c, _ := write(t, s, &memDisk{data: randomDisk(rand.New(rand.NewPCG(4, 4)), 40*chunkSize)})
	img := register(t, s, "1", c)
	m, err := s.readMap(c)
	if err != nil {
		t.Fatal(err)
	}
	path, err := s.blobPath(m.Packs[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{"cut": raw[:len(raw)/2], "flipped": append(bytes.Clone(raw[:len(raw)-9]), make([]byte, 9)...)} {
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "disk")
		if err := s.Fetch(t.Context(), c, out, nil); !errors.Is(err, artifact.ErrCorrupt) {
			t.Errorf("%s: fetch says %v", name, err)
		}
		if left, _ := os.ReadDir(filepath.Dir(out)); len(left) > 0 {
			t.Errorf("%s: fetch left %v", name, left)
		}
		if err := s.Verify(t.Context(), img, nil); !errors.Is(err, artifact.ErrCorrupt) {
			t.Errorf("%s: verify says %v", name, err)
		}
	}
}

func TestABrokenDiskLeavesNothingOfItself(t *testing.T) {
	s := open(t)
	d := &memDisk{data: randomDisk(rand.New(rand.NewPCG(5, 5)), 80*chunkSize), fail: 50 * chunkSize}
	if _, _, err := s.Write(t.Context(), d, nil); err == nil {
		t.Fatal("no error")
	}
	left, err := os.ReadDir(filepath.Join(s.dir, "blobs", "sha256"))
	if err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func FuzzLeaf(f *testing.F) {
	good, err := encodeLeaf([]entry{{chunk: 3, place: place{pack: "sha256:" + artifact.Digest(bytes.Repeat([]byte("a"), 64)), offset: 7, length: 9}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("no leaf"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = decodeLeaf(b, 0)
	})
}
