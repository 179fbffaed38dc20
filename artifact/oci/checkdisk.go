package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/rebake/rebake/artifact"
	"golang.org/x/sync/errgroup"
)

// CheckDisk compares a disk that Fetch made with the chunk map that it was made
// from: its size, the sum of every chunk, zeros elsewhere. artifact.ErrCorrupt if
// it holds anything else. Holes of the file are not read.
func (s *Store) CheckDisk(ctx context.Context, content artifact.Digest, path string) error {
	m, err := s.readMap(content)
	if err != nil {
		return err
	}
	d, err := artifact.FileDisk(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if d.Size() != m.Size {
		return fmt.Errorf("%w: %s has %d bytes, and the image %d", artifact.ErrCorrupt, path, d.Size(), m.Size)
	}
	extents, err := d.Extents(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(min(max(1, runtime.GOMAXPROCS(0)), maxWorkers))
	leaves := map[int]leafRef{}
	for _, l := range m.Leaves {
		leaves[l.Index] = l
	}
	for gib := int64(0); gib*leafChunks*chunkSize < m.Size; gib++ { // one leaf in memory at a time
		want := map[int64]sum{}
		if l, ok := leaves[int(gib)]; ok {
			es, err := s.entries(m, l)
			if err != nil {
				return errors.Join(err, g.Wait())
			}
			for _, e := range es {
				want[e.chunk] = e.sum
			}
		}
		written := writtenChunks(extents, gib*leafChunks, (gib+1)*leafChunks)
		for c := range want {
			written[c] = true
		}
		const batch = 64
		var chunks []int64
		flush := func() {
			these := chunks
			chunks = nil
			g.Go(func() error { return checkChunks(ctx, d, path, these, want) })
		}
		for c := range written {
			if chunks = append(chunks, c); len(chunks) == batch {
				flush()
			}
			if ctx.Err() != nil {
				return g.Wait()
			}
		}
		flush()
	}
	return g.Wait()
}

// writtenChunks are the chunks from first to below end that a file has bytes in.
func writtenChunks(extents []artifact.Extent, first, end int64) map[int64]bool {
	out := map[int64]bool{}
	for _, e := range extents {
		if e.Zero || e.Length == 0 {
			continue
		}
		for c := max(first, e.Offset/chunkSize); c < end && c*chunkSize < e.Offset+e.Length; c++ {
			out[c] = true
		}
	}
	return out
}

func checkChunks(ctx context.Context, d artifact.Disk, path string, chunks []int64, want map[int64]sum) error {
	buf := make([]byte, chunkSize)
	for _, c := range chunks {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		at := c * chunkSize
		n := min(chunkSize, d.Size()-at)
		if k, err := d.ReadAt(buf[:n], at); err != nil && !(errors.Is(err, io.EOF) && int64(k) == n) {
			return fmt.Errorf("read %s at %d: %w", path, at, err)
		}
		clear(buf[n:]) // the last chunk is stored with zeros after its end
		is, have := want[c]
		if have && sha256.Sum256(buf) != is || !have && !bytes.Equal(buf, zeros[:len(buf)]) {
			return fmt.Errorf("%w: %s holds other bytes than the image at %d: remove that file once no instance runs on it, and it is made again from the store", artifact.ErrCorrupt, path, at)
		}
	}
	return nil
}
