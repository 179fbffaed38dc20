package oci

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rebake/rebake/artifact"
)

func sumN(n int) sum { return sum(sha256.Sum256(fmt.Append(nil, n))) }

func TestKnownFindsWhatWasPut(t *testing.T) {
	k := newKnown(nil, 5000)
	for n := range 10_000 {
		s := sumN(n)
		k.put(&s, spot{uint32(n), uint32(n%(2*frameSize) + 1), int64(n) << 10, uint8(n % 16)})
	}
	for n := range 10_000 {
		s := sumN(n)
		r := k.slot(&s)
		if n >= 5000 { // more than it may hold
			if r.pack != 0 {
				t.Fatalf("%d is in the table", n)
			}
			continue
		}
		if want := (spot{uint32(n), uint32(n%(2*frameSize) + 1), int64(n) << 10, uint8(n % 16)}); r.pack == 0 || r.spot() != want {
			t.Fatalf("%d is %+v, want %+v", n, r.spot(), want)
		}
	}
	if k.n != 5000 {
		t.Errorf("it holds %d", k.n)
	}
	if full := newKnown(nil, maxKnown); full.max*8 > 7<<19 {
		t.Error("a full table is larger than maxKnown says")
	}
}

// writeWith writes a disk with other limits than usual.
func writeWith(t *testing.T, s *Store, data []byte, known int, limit func(*packer)) (*diskMap, artifact.Digest, int64) {
	t.Helper()
	k := newKnown(s, known)
	p := newPacker(s, k, int64(len(data)))
	limit(p)
	w := &writer{d: diskOf(data), size: int64(len(data)), known: k, packer: p}
	extents, err := checkedExtents(t.Context(), w.d)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.run(t.Context(), &planner{extents: extents, size: w.size}, func(int64, int64) {}); err != nil {
		t.Fatal(err)
	}
	content, added, err := p.finish()
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.readMap(content)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := s.Fetch(t.Context(), content, path, nil); err != nil {
		t.Fatal(err)
	}
	sameFile(t, path, data)
	return m, content, added
}

// A table that is too small costs room in the store and nothing else.
func TestAFullTableLosesNothing(t *testing.T) {
	data := noise(1, 60*chunkSize)
	data = slices.Concat(data, data, noise(2, 7))
	if _, _, added := writeWith(t, openTemp(t), data, 10, func(*packer) {}); added < 110*chunkSize {
		t.Errorf("%d bytes were added: the table was not full", added)
	}
	if _, _, added := writeWith(t, openTemp(t), data, 1000, func(*packer) {}); added > 62*chunkSize {
		t.Errorf("%d bytes were added, of %d distinct ones", added, 60*chunkSize)
	}
}

func TestPacksAreCut(t *testing.T) {
	data := noise(3, 160*chunkSize)
	for name, c := range map[string]struct {
		limit func(*packer)
		packs int
	}{
		"as usual":       {func(*packer) {}, 1},
		"by their size":  {func(p *packer) { p.most.size = 2 << 20 }, 5},
		"by their count": {func(p *packer) { p.most.chunks = 20 }, 5}, // a frame has 16
	} {
		if m, _, _ := writeWith(t, openTemp(t), data, 1000, c.limit); len(m.Packs) != c.packs {
			t.Errorf("%s: %d packs, want %d", name, len(m.Packs), c.packs)
		}
	}
}

// What is after the end of a disk is zeros, not what a buffer held before.
func TestTheLastChunkIsPadded(t *testing.T) {
	s := openTemp(t)
	data := noise(4, 2000*chunkSize+100) // more than there are buffers for
	m, _, _ := writeWith(t, s, data, 10_000, func(*packer) {})
	es, err := s.entries(m, m.Leaves[0])
	if err != nil {
		t.Fatal(err)
	}
	want := sum(sha256.Sum256(append(data[2000*chunkSize:], make([]byte, chunkSize-100)...)))
	if got := es[len(es)-1]; got.chunk != 2000 || got.sum != want {
		t.Errorf("chunk %d has other bytes", got.chunk)
	}
}

// An image whose chunks are gone is refused, whichever blob it is.
func TestRegisterLooksForEveryBlob(t *testing.T) {
	s := openTemp(t)
	m, content, _ := writeWith(t, s, noise(5, 10*chunkSize), 1000, func(*packer) {})
	for what, d := range map[string]artifact.Digest{"map": content, "leaf": m.Leaves[0].Digest, "pack": m.Packs[0].Digest} {
		path, err := s.blobPath(d)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, damage := range []func() error{
			func() error { return os.Truncate(path, int64(len(whole)-1)) },
			func() error { return os.Remove(path) },
		} {
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Register(t.Context(), artifact.Image{Name: "web", Version: "1", Content: content}); !errors.Is(err, artifact.ErrCorrupt) {
				t.Errorf("without the %s: %v", what, err)
			}
			if s.Has(content) {
				t.Errorf("without the %s the store has it", what)
			}
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := s.List(t.Context(), ""); err != nil || len(all) != 0 {
		t.Errorf("%d images, %v", len(all), err)
	}
	bake(t, s, "1", diskOf(noise(5, 10*chunkSize)))
}

// Packs that compress to nothing, and leaves that wait for them.
func TestManyLeavesInOnePack(t *testing.T) {
	s := openTemp(t)
	d := &holes{size: 9 << 30, at: []int64{0, 1<<30 - chunkSize, 1 << 30, 4<<30 + 5*chunkSize, 9<<30 - chunkSize}}
	first, added, err := s.Write(t.Context(), d, nil)
	if err != nil || added == 0 {
		t.Fatal(err)
	}
	again, added, err := s.Write(t.Context(), d, nil) // nothing is registered: found by its blobs
	if err != nil || again != first || added != 0 {
		t.Errorf("the same disk is %s, was %s; %d bytes added, %v", again, first, added, err)
	}
	m, err := s.readMap(first)
	if err != nil || len(m.Leaves) != 4 || len(m.Packs) != 1 {
		t.Fatalf("%d leaves, %d packs, %v", len(m.Leaves), len(m.Packs), err)
	}
	var got []int64
	for _, l := range m.Leaves {
		es, err := s.entries(m, l)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			got = append(got, e.chunk*chunkSize)
		}
	}
	if !slices.Equal(got, d.at) {
		t.Errorf("chunks at %v, want %v", got, d.at)
	}
	// One block of a child changes one leaf; the others are the same blobs.
	kid := &holes{size: d.size, at: []int64{4<<30 + 5*chunkSize}, parent: first, fill: 'y'}
	content, _, err := s.Write(t.Context(), kid, nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := s.readMap(content)
	if err != nil || len(k.Leaves) != 4 || len(k.Packs) != 2 {
		t.Fatalf("the child has %d leaves, %d packs, %v", len(k.Leaves), len(k.Packs), err)
	}
	for i := range m.Leaves {
		if same := m.Leaves[i] == k.Leaves[i]; same != (i != 2) {
			t.Errorf("leaf %d is the same blob: %v", i, same)
		}
	}
}
