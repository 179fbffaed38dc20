package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/rebake/rebake/artifact"
)

const block = 64 << 10

// memDisk is a virtual disk in memory: zeros but for its parts. It refuses to
// read a whole block that its extents call zero or inherited, so that a store
// which reads more than it must is found out.
type memDisk struct {
	size    int64
	parts   []part // in order, not overlapping
	extents []artifact.Extent
	parent  artifact.Digest
	fail    error // of a read at or after failAt
	failAt  int64
	reads   atomic.Int64 // bytes read
}

type part struct {
	at   int64
	data []byte
}

var errNeedless = errors.New("read of a block that need not be read")

func (d *memDisk) Size() int64                                        { return d.size }
func (d *memDisk) Parent() artifact.Digest                            { return d.parent }
func (d *memDisk) Close() error                                       { return nil }
func (d *memDisk) Extents(context.Context) ([]artifact.Extent, error) { return d.extents, nil }

func (d *memDisk) ReadAt(p []byte, off int64) (int, error) {
	if d.fail != nil && off+int64(len(p)) > d.failAt {
		return 0, d.fail
	}
	d.reads.Add(int64(len(p)))
	for _, e := range d.extents {
		if e.Zero || e.Inherited {
			from := (max(e.Offset, off) + block - 1) / block * block
			to := min(e.Offset+e.Length, off+int64(len(p)))
			if from+block <= to {
				return 0, fmt.Errorf("%w: at %d", errNeedless, from)
			}
		}
	}
	n := int(max(0, min(int64(len(p)), d.size-off)))
	clear(p[:n])
	for _, q := range d.parts {
		if from := max(q.at, off); from < min(q.at+int64(len(q.data)), off+int64(n)) {
			copy(p[from-off:n], q.data[from-q.at:])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// flat is a disk of these bytes, all in one extent.
func flat(data []byte) *memDisk {
	d := &memDisk{size: int64(len(data)), parts: []part{{0, data}}}
	if len(data) > 0 {
		d.extents = []artifact.Extent{{Length: d.size}}
	}
	return d
}

// sparse is a disk with known holes between its parts.
func sparse(size int64, parts ...part) *memDisk {
	d := &memDisk{size: size, parts: parts}
	at := int64(0)
	add := func(to int64, zero bool) {
		if to > at {
			d.extents = append(d.extents, artifact.Extent{Offset: at, Length: to - at, Zero: zero})
			at = to
		}
	}
	for _, p := range parts {
		add(p.at, true)
		add(p.at+int64(len(p.data)), false)
	}
	add(size, true)
	return d
}

// noise is n bytes that do not compress, the same for the same seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	c := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 1})
	_, _ = c.Read(b) // it never fails
	return b
}

// child makes a disk over a parent's bytes: data changed, zeroed, grown or
// shrunk at random, never at the borders of blocks alone.
func child(r *rand.Rand, below []byte, parent artifact.Digest) (*memDisk, []byte) {
	data := slices.Clone(below)
	switch r.IntN(4) {
	case 0:
		data = append(data, make([]byte, r.IntN(5*block))...)
	case 1:
		data = data[:len(data)-r.IntN(len(data)/2+1)]
	}
	size := int64(len(data))
	d := &memDisk{size: size, parent: parent}
	for at := int64(0); at < size; {
		n := 1 + r.Int64N(6*block)
		if r.IntN(2) == 0 { // as a qcow2 overlay has it
			n = (n + block - 1) / block * block
		}
		n = min(n, size-at)
		e := artifact.Extent{Offset: at, Length: n}
		here := data[at : at+n]
		switch r.IntN(5) {
		case 0:
			e.Zero = true
			clear(here)
		case 1:
			copy(here, noise(r.Uint64(), int(n)))
		case 2: // something that is elsewhere too, so that there are twins
			copy(here, below[min(int64(len(below)), block*r.Int64N(8)):])
		case 3:
			if n > 100 {
				here[n/2] ^= 0xff
			}
		default:
			e.Inherited = true
		}
		d.extents = append(d.extents, e)
		at += n
	}
	d.parts = []part{{0, data}}
	return d, data
}

// same fails the test unless the file holds the disk, bytes and size.
func same(t *testing.T, path string, d *memDisk) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() != d.size {
		t.Fatalf("the file has %d bytes, the disk %d", st.Size(), d.size)
	}
	at := int64(0)
	zeros := func(to int64) {
		if to-at > 8<<20 { // of a very large hole, its borders
			checkAt(t, f, at, make([]byte, block))
			at = to - block
		}
		checkAt(t, f, at, make([]byte, to-at))
		at = to
	}
	for _, p := range d.parts {
		zeros(p.at)
		checkAt(t, f, p.at, p.data)
		at = p.at + int64(len(p.data))
	}
	zeros(d.size)
}

func checkAt(t *testing.T, f *os.File, at int64, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, at); err != nil && len(want) > 0 {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		i := 0
		for got[i] == want[i] {
			i++
		}
		t.Fatalf("byte %d is %#x, want %#x", at+int64(i), got[i], want[i])
	}
}
