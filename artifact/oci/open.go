package oci

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/rebake/rebake/artifact"
)

// OpenDisk implements artifact.Opener.
func (s *Store) OpenDisk(_ context.Context, content, parent artifact.Digest) (artifact.Disk, error) {
	m, err := s.readMap(content)
	if err != nil {
		return nil, err
	}
	d := &storedDisk{s: s, m: m, parent: parent}
	if parent != "" {
		if d.below, err = s.readMap(parent); err != nil {
			return nil, fmt.Errorf("the disk to compare with: %w", err)
		}
	}
	return d, nil
}

// storedDisk reads a disk from its chunks.
type storedDisk struct {
	s      *Store
	m      *diskMap
	parent artifact.Digest
	below  *diskMap // of the parent; nil without one

	mu     sync.Mutex
	leaves []openLeaf // those used last, newest first
	tools  sync.Pool  // of *frameTools
}

const openLeaves = 4

type openLeaf struct {
	index   int
	entries []entry // by chunk
}

type frameTools struct {
	dec         *zstd.Decoder
	packed, raw []byte
}

func (d *storedDisk) Size() int64             { return d.m.Size }
func (d *storedDisk) Parent() artifact.Digest { return d.parent }

func (d *storedDisk) Close() error {
	for {
		t, ok := d.tools.Get().(*frameTools)
		if !ok {
			return nil
		}
		t.dec.Close()
	}
}

// ReadAt implements io.ReaderAt. Each chunk is checked.
func (d *storedDisk) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 || off >= d.m.Size {
		return 0, io.EOF
	}
	n = int(min(int64(len(p)), d.m.Size-off))
	clear(p[:n])
	es, err := d.between(off/chunkSize, (off+int64(n)-1)/chunkSize)
	if err != nil {
		return 0, err
	}
	t, err := d.tool()
	if err != nil {
		return 0, err
	}
	defer d.tools.Put(t)
	place := func(chunk int64, raw []byte) error {
		at := chunk*chunkSize - off
		if at < 0 {
			raw, at = raw[-at:], 0
		}
		copy(p[at:n], raw)
		return nil
	}
	for len(es) > 0 {
		k := frameRun(es)
		if t.packed, t.raw, err = d.s.frame(t.dec, es[:k], t.packed, t.raw, place); err != nil {
			return 0, err
		}
		es = es[k:]
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// frameRun is how many entries at the start are in one frame.
func frameRun(es []entry) int {
	n := 1
	for n < len(es) && es[n].pack == es[0].pack && es[n].offset == es[0].offset && es[n].length == es[0].length {
		n++
	}
	return n
}

func (d *storedDisk) tool() (*frameTools, error) {
	if t, ok := d.tools.Get().(*frameTools); ok {
		return t, nil
	}
	dec, err := newFrameDecoder()
	if err != nil {
		return nil, err
	}
	return &frameTools{dec: dec}, nil
}

// newFrameDecoder decodes one frame at a time, and nothing larger than one.
func newFrameDecoder() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(frameSize), zstd.WithDecoderMaxWindow(frameSize))
}

// between returns the entries of chunks first to last, sorted by frame.
func (d *storedDisk) between(first, last int64) ([]entry, error) {
	var out []entry
	for i := first / leafChunks; i <= last/leafChunks; i++ {
		es, err := d.leaf(int(i))
		if err != nil {
			return nil, err
		}
		from := sort.Search(len(es), func(k int) bool { return es[k].chunk >= first })
		to := sort.Search(len(es), func(k int) bool { return es[k].chunk > last })
		out = append(out, es[from:to]...)
	}
	slices.SortFunc(out, byFrame)
	return out, nil
}

func byFrame(a, b entry) int {
	return cmp.Or(strings.Compare(string(a.pack), string(b.pack)), cmp.Compare(a.offset, b.offset), cmp.Compare(a.length, b.length))
}

func (d *storedDisk) leaf(index int) ([]entry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.IndexFunc(d.leaves, func(l openLeaf) bool { return l.index == index }); i >= 0 {
		l := d.leaves[i]
		d.leaves = slices.Insert(slices.Delete(d.leaves, i, i+1), 0, l)
		return l.entries, nil
	}
	es, err := d.s.leafOf(d.m, index)
	if err != nil {
		return nil, err
	}
	d.leaves = slices.Insert(d.leaves, 0, openLeaf{index, es})
	d.leaves = d.leaves[:min(len(d.leaves), openLeaves)]
	return es, nil
}

// leafOf returns the entries of a GiB of a disk, none if all of it is zeros.
func (s *Store) leafOf(m *diskMap, index int) ([]entry, error) {
	i, ok := slices.BinarySearchFunc(m.Leaves, index, func(l leafRef, index int) int { return cmp.Compare(l.Index, index) })
	if !ok {
		return nil, nil
	}
	return s.entries(m, m.Leaves[i])
}

// Extents implements artifact.Disk: nothing but the maps is read.
func (d *storedDisk) Extents(ctx context.Context) ([]artifact.Extent, error) {
	var out []artifact.Extent
	add := func(chunks int64, zero, inherited bool) {
		at := int64(0)
		if n := len(out); n > 0 {
			at = out[n-1].Offset + out[n-1].Length
			if last := &out[n-1]; last.Zero == zero && last.Inherited == inherited {
				last.Length = min(at+chunks*chunkSize, d.m.Size) - last.Offset
				return
			}
		}
		if length := min(at+chunks*chunkSize, d.m.Size) - at; length > 0 {
			out = append(out, artifact.Extent{Offset: at, Length: length, Zero: zero, Inherited: inherited})
		}
	}
	for index := 0; int64(index)<<30 < d.m.Size; index++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		mine, err := d.s.leafOf(d.m, index)
		if err != nil {
			return nil, err
		}
		var theirs []entry
		if d.below != nil {
			if theirs, err = d.s.leafOf(d.below, index); err != nil {
				return nil, err
			}
		}
		at, end := int64(index)*leafChunks, int64(index+1)*leafChunks
		for at < end {
			next := end
			has, had := len(mine) > 0 && mine[0].chunk == at, len(theirs) > 0 && theirs[0].chunk == at
			switch {
			case has || had:
				next = at + 1
			default: // zeros in both until the next chunk of either
				if len(mine) > 0 {
					next = min(next, mine[0].chunk)
				}
				if len(theirs) > 0 {
					next = min(next, theirs[0].chunk)
				}
			}
			same := has == had && (!has || mine[0].sum == theirs[0].sum)
			add(next-at, !has, d.below != nil && same)
			if has {
				mine = mine[1:]
			}
			if had {
				theirs = theirs[1:]
			}
			at = next
		}
	}
	return out, nil
}
