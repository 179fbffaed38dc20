package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/rebake/rebake/artifact"
)

// bytesDisk is a disk of these bytes.
type bytesDisk struct {
	*bytes.Reader
	parent artifact.Digest
	before func() // of each read
}

func diskOf(b []byte) *bytesDisk { return &bytesDisk{Reader: bytes.NewReader(b)} }

func (d *bytesDisk) Parent() artifact.Digest { return d.parent }
func (d *bytesDisk) Close() error            { return nil }
func (d *bytesDisk) Extents(context.Context) ([]artifact.Extent, error) {
	return []artifact.Extent{{Length: d.Size()}}, nil
}

func (d *bytesDisk) ReadAt(p []byte, off int64) (int, error) {
	if d.before != nil {
		d.before()
	}
	return d.Reader.ReadAt(p, off)
}

func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func openTemp(t testing.TB) *Store {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func bake(t testing.TB, s *Store, version string, d artifact.Disk) artifact.Image {
	t.Helper()
	content, _, err := s.Write(t.Context(), d, nil)
	if err != nil {
		t.Fatal(err)
	}
	img, err := s.Register(t.Context(), artifact.Image{Name: "web", Version: version, Content: content})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// A map that lies, with blobs whose digests are right.
func TestFetchOfLies(t *testing.T) {
	s := openTemp(t)
	blob := func(b []byte) artifact.Digest {
		desc, _, err := s.putBlob("x", b)
		if err != nil {
			t.Fatal(err)
		}
		return artifact.Digest(desc.Digest)
	}
	data := noise(1, 2*chunkSize)
	one, two := sum(sha256.Sum256(data[:chunkSize])), sum(sha256.Sum256(data[chunkSize:]))
	frame := compressed(t, data)
	pack := blob(frame)
	at := place{pack, 0, uint32(len(frame)), 0}
	second := at
	second.at = 1
	bomb := compressed(t, make([]byte, 256<<20))
	bombs := blob(bomb)
	// Frames that do not say how much they hold.
	var streamed bytes.Buffer
	enc, err := zstd.NewWriter(&streamed)
	if err != nil {
		t.Fatal(err)
	}
	for range 256 {
		if _, err := enc.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := enc.Close(); err != nil {
		t.Fatal(err)
	}
	// Each frame is small, all of them are not.
	many := bytes.Repeat(compressed(t, make([]byte, frameSize)), 256)

	type lie struct {
		entries []entry
		packs   []packRef
		size    int64
		root    func(*rootMap)
	}
	packs := []packRef{{pack, int64(len(frame))}}
	good := lie{entries: []entry{{0, one, at}, {1, two, second}}, packs: packs, size: 2 * chunkSize}
	write := func(l lie) artifact.Digest {
		raw, err := encodeLeaf(l.entries)
		if err != nil {
			t.Fatal(err)
		}
		m := rootMap{Format: 1, Size: l.size, Chunk: chunkSize, Leaves: []leafRef{{0, blob(raw), int64(len(raw))}}, Packs: l.packs}
		if l.root != nil {
			l.root(&m)
		}
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return blob(b)
	}
	dir := t.TempDir()
	if err := s.Fetch(t.Context(), write(good), filepath.Join(dir, "good"), nil); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "good")); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("what is true is fetched as other bytes, %v", err)
	}
	with := func(f func(*lie)) lie {
		l := good
		l.entries = append([]entry{}, good.entries...)
		f(&l)
		return l
	}
	withBomb := func(b []byte) lie {
		d := blob(b)
		return with(func(l *lie) {
			l.packs = []packRef{{d, int64(len(b))}}
			l.entries[0].place = place{d, 0, uint32(len(b)), 0}
			l.entries = l.entries[:1]
		})
	}
	for name, l := range map[string]lie{
		"chunk of other bytes":         with(func(l *lie) { l.entries[0].sum = two }),
		"chunks swapped":               with(func(l *lie) { l.entries[0].at, l.entries[1].at = 1, 0 }),
		"chunk after its frame":        with(func(l *lie) { l.entries[1].at = 2 }),
		"chunk after the disk":         with(func(l *lie) { l.size = chunkSize }),
		"pack not listed":              with(func(l *lie) { l.packs = nil }),
		"pack not there":               with(func(l *lie) { l.packs = []packRef{{digestN(9), 1 << 30}}; l.entries[0].pack = digestN(9) }),
		"pack smaller than it says":    with(func(l *lie) { l.packs = []packRef{{pack, 1 << 30}}; l.entries[0].offset = 1 << 20 }),
		"frame after its pack":         with(func(l *lie) { l.entries[0].offset = 1 }),
		"frame of other bytes":         with(func(l *lie) { l.entries[0].offset, l.entries[0].length = 5, 100 }),
		"frame cut off":                with(func(l *lie) { l.entries[0].length -= 7 }),
		"frame is a bomb":              withBomb(bomb),
		"frame is a streamed bomb":     withBomb(streamed.Bytes()),
		"frame is many":                withBomb(many),
		"leaf not there":               with(func(l *lie) { l.root = func(m *rootMap) { m.Leaves[0].Digest = digestN(8) } }),
		"leaf is a bomb":               with(func(l *lie) { l.root = func(m *rootMap) { m.Leaves[0] = leafRef{0, bombs, int64(len(bomb))} } }),
		"leaf has another size":        with(func(l *lie) { l.root = func(m *rootMap) { m.Leaves[0].Size++ } }),
		"format of the future":         with(func(l *lie) { l.root = func(m *rootMap) { m.Format = 2 } }),
		"pack in place of the map":     with(func(l *lie) { l.root = func(m *rootMap) { *m = rootMap{} } }),
		"leaf of chunks after the end": with(func(l *lie) { l.root = func(m *rootMap) { m.Leaves[0].Index = 7 } }),
	} {
		content := write(l)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := s.Fetch(t.Context(), content, filepath.Join(dir, "bad"), nil)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, artifact.ErrCorrupt) {
			t.Errorf("%s: %v; want ErrCorrupt", name, err)
		}
		if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 64 {
			t.Errorf("%s: %d MiB allocated", name, n)
		}
	}
	if es, err := os.ReadDir(dir); err != nil || len(es) != 1 {
		t.Errorf("failed fetches left %v, %v", es, err)
	}
}

// One bit of any blob: Verify tells, whichever it is.
func TestVerifyFindsEveryDamage(t *testing.T) {
	s := openTemp(t)
	img := bake(t, s, "1", diskOf(noise(2, 3*chunkSize+5)))
	if err := s.Verify(t.Context(), img, nil); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(s.blobDir())
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 5 { // manifest, config, map, leaf, pack
		t.Fatalf("%d blobs", len(entries))
	}
	for _, e := range entries {
		path := filepath.Join(s.blobDir(), e.Name())
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		damages := map[string][]byte{"is gone": nil, "is empty": {}, "is cut off": whole[:len(whole)-1], "is longer": append(bytes.Clone(whole), 0)}
		flipped := bytes.Clone(whole)
		flipped[len(flipped)/2] ^= 1
		damages["has another bit"] = flipped
		for name, b := range damages {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if b != nil {
				if err := os.WriteFile(path, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Verify(t.Context(), img, nil); !errors.Is(err, artifact.ErrCorrupt) {
				t.Errorf("blob %s of %d bytes %s: %v; want ErrCorrupt", e.Name(), len(whole), name, err)
			}
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Verify(t.Context(), img, nil); err != nil {
		t.Fatal(err)
	}
	// The index: a clear error, and a Prune that deletes nothing.
	if err := os.WriteFile(s.indexPath(), []byte(`{"manifests":[`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(t.Context(), ""); !errors.Is(err, artifact.ErrCorrupt) {
		t.Errorf("list with a damaged index: %v", err)
	}
	if _, err := s.Prune(t.Context(), 0, nil); !errors.Is(err, artifact.ErrCorrupt) {
		t.Errorf("prune with a damaged index: %v", err)
	}
	if now, err := os.ReadDir(s.blobDir()); err != nil || len(now) != len(entries) {
		t.Errorf("prune with a damaged index left %d of %d blobs", len(now), len(entries))
	}
}

// holes is a disk with a block at each of these offsets; of a child, the rest
// is its parent's.
type holes struct {
	size   int64
	at     []int64
	parent artifact.Digest
	fill   byte
}

func (d *holes) Size() int64             { return d.size }
func (d *holes) Parent() artifact.Digest { return d.parent }
func (d *holes) Close() error            { return nil }

func (d *holes) Extents(context.Context) ([]artifact.Extent, error) {
	var out []artifact.Extent
	end := int64(0)
	gap := func(to int64) {
		if to > end {
			out = append(out, artifact.Extent{Offset: end, Length: to - end, Zero: d.parent == "", Inherited: d.parent != ""})
		}
	}
	for _, at := range d.at {
		gap(at)
		out = append(out, artifact.Extent{Offset: at, Length: chunkSize})
		end = at + chunkSize
	}
	gap(d.size)
	return out, nil
}

func (d *holes) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = d.fill + byte(off>>30) + 1
	}
	return len(p), nil
}

func sameFile(t *testing.T, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d (%v); or other ones", len(got), len(want), err)
	}
}
