package oci

import (
	"context"
	"fmt"

	"github.com/rebake/rebake/artifact"
)

// checkedExtents are a disk's extents, which must cover it without a gap.
func checkedExtents(ctx context.Context, d artifact.Disk) ([]artifact.Extent, error) {
	size := d.Size()
	if size < 0 || size > maxDisk {
		return nil, fmt.Errorf("a disk of %d bytes cannot be stored", size)
	}
	extents, err := d.Extents(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the disk's extents: %w", err)
	}
	end := int64(0)
	for _, e := range extents {
		if e.Offset != end || e.Length <= 0 || e.Length > size-end || e.Inherited && d.Parent() == "" {
			return nil, fmt.Errorf("extent at %d, %d bytes, does not fit the disk", e.Offset, e.Length)
		}
		end += e.Length
	}
	if end != size {
		return nil, fmt.Errorf("the extents end at %d, the disk at %d", end, size)
	}
	return extents, nil
}

// planner says which chunks are read and which are the parent's. A chunk that
// is only in part zero or inherited is read.
type planner struct {
	extents []artifact.Extent
	size    int64
	below   cursor
}

func (p *planner) each(ctx context.Context, emit func(*batch) error) error {
	b := &batch{}
	next := func(c int64) error { // what is planned of b ends before chunk c
		if len(b.chunks) > 0 || len(b.kept) > 0 {
			b.end = min(c*chunkSize, p.size)
			if err := emit(b); err != nil {
				return err
			}
		}
		b = &batch{leaf: int(c / leafChunks)}
		return ctx.Err()
	}
	i := 0
	for c, chunks := int64(0), (p.size+chunkSize-1)/chunkSize; c < chunks; {
		if int(c/leafChunks) != b.leaf {
			if err := next(c); err != nil {
				return err
			}
		}
		from, to := c*chunkSize, min((c+1)*chunkSize, p.size)
		for p.extents[i].Offset+p.extents[i].Length <= from {
			i++
		}
		e := p.extents[i]
		end := e.Offset + e.Length
		switch {
		case end >= to && e.Zero:
			c = max(c+1, end/chunkSize)
			continue
		// The last chunk is the parent's only if it is whole: what the parent has
		// after this disk's end must not come back when the disk is made larger.
		case end >= to && e.Inherited && to-from == chunkSize:
			have, ok, err := p.below.at(c)
			if err != nil {
				return err
			}
			if ok {
				b.kept = append(b.kept, have)
			}
		default:
			b.chunks = append(b.chunks, c)
		}
		c++
		if len(b.chunks) == batchChunks {
			if err := next(c); err != nil {
				return err
			}
		}
	}
	return next((p.size + chunkSize - 1) / chunkSize)
}

// cursor walks through a map's entries, one leaf in memory at a time.
type cursor struct {
	s    *Store
	m    *diskMap
	next int // leaf of m to read
	es   []entry
}

// at is the entry of chunk c; it is asked for in ascending order.
func (k *cursor) at(c int64) (entry, bool, error) {
	for {
		for len(k.es) > 0 && k.es[0].chunk < c {
			k.es = k.es[1:]
		}
		if len(k.es) > 0 {
			return k.es[0], k.es[0].chunk == c, nil
		}
		for k.next < len(k.m.Leaves) && int64(k.m.Leaves[k.next].Index) < c/leafChunks {
			k.next++
		}
		if k.next == len(k.m.Leaves) || int64(k.m.Leaves[k.next].Index) > c/leafChunks {
			return entry{}, false, nil
		}
		var err error
		if k.es, err = k.s.entries(k.m, k.m.Leaves[k.next]); err != nil {
			return entry{}, false, fmt.Errorf("read the parent's map: %w", err)
		}
		k.next++
	}
}
