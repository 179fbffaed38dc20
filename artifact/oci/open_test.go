package oci

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/rebake/rebake/artifact"
)

// A disk that is read from its chunks is the one that was written, at any place
// and length, and its extents say exactly which chunks its parent has alike.
func TestAnOpenDiskReadsAsItWasWritten(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	s := open(t)
	for range 6 {
		old := randomDisk(r, 1+r.IntN(5<<20))
		now := bytes.Clone(old)
		switch r.IntN(3) {
		case 0:
			now = append(now, make([]byte, r.IntN(2<<20))...)
		case 1:
			now = now[:1+r.IntN(len(now))]
		}
		for range r.IntN(6) {
			at := r.IntN(len(now))
			part := now[at:min(len(now), at+1+r.IntN(300<<10))]
			if r.IntN(2) == 0 {
				fill(r, part)
			} else {
				clear(part)
			}
		}
		below, _ := write(t, s, &memDisk{data: old})
		content, _ := write(t, s, &memDisk{data: now})
		d, err := s.OpenDisk(t.Context(), content, below)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			at := r.IntN(len(now))
			got := make([]byte, 1+r.IntN(1<<20))
			n, err := d.ReadAt(got, int64(at))
			want := now[at:min(len(now), at+len(got))]
			if n != len(want) || !bytes.Equal(got[:n], want) || (n < len(got)) != errors.Is(err, io.EOF) {
				t.Fatalf("read of %d bytes at %d of %d: %d bytes, %v", len(got), at, len(now), n, err)
			}
		}
		extents, err := d.Extents(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		chunk := func(b []byte, i int) []byte {
			c := make([]byte, chunkSize)
			if at := i * chunkSize; at < len(b) {
				copy(c, b[at:])
			}
			return c
		}
		at := int64(0)
		for _, e := range extents {
			if e.Offset != at || e.Length <= 0 {
				t.Fatalf("extent %+v begins at the wrong place", e)
			}
			for ; at < e.Offset+e.Length; at += chunkSize {
				mine := chunk(now, int(at/chunkSize))
				if zero := bytes.Equal(mine, make([]byte, chunkSize)); zero != e.Zero {
					t.Fatalf("chunk at %d: zero is %t, extent %+v", at, zero, e)
				}
				if same := bytes.Equal(mine, chunk(old, int(at/chunkSize))); same != e.Inherited {
					t.Fatalf("chunk at %d: the same is %t, extent %+v", at, same, e)
				}
			}
			at = min(at, d.Size())
		}
		if at != int64(len(now)) {
			t.Fatalf("extents end at %d of %d", at, len(now))
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAnOpenDiskReadsNothingThatIsDamaged(t *testing.T) {
	s := open(t)
	data := randomDisk(rand.New(rand.NewPCG(3, 4)), 1<<20)
	fill(rand.New(rand.NewPCG(5, 6)), data[:chunkSize])
	content, _ := write(t, s, &memDisk{data: data})
	m, err := s.readMap(content)
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
	raw[len(raw)/2] ^= 1
	if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, raw, 0o600)); err != nil {
		t.Fatal(err)
	}
	d, err := s.OpenDisk(t.Context(), content, "")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size())); !errors.Is(err, artifact.ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}
