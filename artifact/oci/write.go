package oci

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/rebake/rebake/artifact"
	"golang.org/x/sync/errgroup"
)

// Write implements artifact.Store. Bytes flow through three stages: one reader
// of extents, workers that hash and compress, one packer in the disk's order.
// At most a few frames for each core are in memory.
func (s *Store) Write(ctx context.Context, d artifact.Disk, progress func(done, total int64)) (artifact.Digest, int64, error) {
	size := d.Size()
	if size < 0 || size > maxDisk {
		return "", 0, fmt.Errorf("a disk of %d bytes cannot be stored", size)
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	extents, err := d.Extents(ctx)
	if err != nil {
		return "", 0, fmt.Errorf("list the disk's extents: %w", err)
	}
	parent, known, err := s.known(ctx, d.Parent())
	if err != nil {
		return "", 0, err
	}
	plan, kept, err := planRead(extents, size, parent, d.Parent() != "")
	if err != nil {
		return "", 0, err
	}
	w := &writer{s: s, d: d, size: size, known: known}
	defer w.abort()
	if err := w.run(ctx, plan, progress); err != nil {
		return "", 0, err
	}
	all := append(kept, w.entries...)
	slices.SortFunc(all, func(a, b entry) int { return int(a.chunk - b.chunk) })
	content, added, err := s.writeMap(size, all)
	if err != nil {
		return "", 0, err
	}
	m, err := s.readMap(content)
	if err == nil {
		err = s.touch(m.Packs)
	}
	if err != nil {
		return "", 0, err
	}
	progress(size, size)
	return content, added + w.added, nil
}

// known is what the store has: the parent's entries, and where each chunk of
// any registered image or of the parent is.
func (s *Store) known(ctx context.Context, parent artifact.Digest) (map[int64]entry, map[sum]place, error) {
	places := map[sum]place{}
	of := map[int64]entry{}
	idx, err := s.index()
	if err != nil {
		return nil, nil, err
	}
	seen := map[artifact.Digest]bool{}
	leaves := func(content artifact.Digest, each func(entry)) error {
		m, err := s.readMap(content)
		if err != nil {
			return err
		}
		for _, l := range m.Leaves {
			if each == nil && seen[l.Digest] {
				continue
			}
			seen[l.Digest] = true
			es, err := s.entries(m, l)
			if err != nil {
				return err
			}
			for _, e := range es {
				places[e.sum] = e.place
				if each != nil {
					each(e)
				}
			}
		}
		return ctx.Err()
	}
	for _, m := range idx.Manifests {
		if isTag(m) {
			continue
		}
		img, err := s.image(artifact.Digest(m.Digest))
		if err == nil {
			err = leaves(img.Content, nil)
		}
		if errors.Is(err, artifact.ErrCorrupt) {
			continue // a damaged image gives nothing to share; `images verify` tells
		}
		if err != nil {
			return nil, nil, err
		}
	}
	if parent != "" {
		if err := leaves(parent, func(e entry) { of[e.chunk] = e }); err != nil {
			return nil, nil, fmt.Errorf("read the parent's map: %w", err)
		}
	}
	return of, places, nil
}

// planRead says which chunks must be read, in order, and which are the
// parent's. A chunk that is only in part inherited or zero is read.
func planRead(extents []artifact.Extent, size int64, parent map[int64]entry, hasParent bool) (read []int64, kept []entry, err error) {
	chunks := (size + chunkSize - 1) / chunkSize
	end := int64(0)
	for _, e := range extents {
		if e.Offset != end || e.Length <= 0 || e.Inherited && !hasParent {
			return nil, nil, fmt.Errorf("extent at %d, %d bytes, does not fit the disk", e.Offset, e.Length)
		}
		end += e.Length
	}
	if end != size {
		return nil, nil, fmt.Errorf("the extents end at %d, the disk at %d", end, size)
	}
	i := 0
	for c := range chunks {
		from, to := c*chunkSize, min((c+1)*chunkSize, size)
		for extents[i].Offset+extents[i].Length <= from {
			i++
		}
		e := extents[i]
		switch whole := e.Offset+e.Length >= to; {
		case whole && e.Zero:
		case whole && e.Inherited:
			if p, ok := parent[c]; ok {
				kept = append(kept, p)
			}
		default:
			read = append(read, c)
		}
	}
	return read, kept, nil
}

// batch is a run of chunks on its way through the stages.
type batch struct {
	chunks []int64
	raw    []byte // chunkSize each
	sums   []sum
	zero   []bool
	frames []frame
	done   chan struct{}
}

// frame is a run of new chunks of a batch, compressed.
type frame struct {
	from, n int // in the batch
	data    []byte
}

type writer struct {
	s       *Store
	d       artifact.Disk
	size    int64
	known   map[sum]place
	entries []entry
	pending []entry // of the open pack
	blob    *blobWriter
	added   int64
}

func (w *writer) run(ctx context.Context, plan []int64, progress func(done, total int64)) error {
	workers := max(1, runtime.GOMAXPROCS(0))
	g, ctx := errgroup.WithContext(ctx)
	todo := make(chan *batch, workers)
	order := make(chan *batch, 2*workers)
	g.Go(func() error {
		defer close(todo)
		defer close(order)
		return w.read(ctx, plan, todo, order)
	})
	for range workers {
		g.Go(func() error { return w.digest(ctx, todo) })
	}
	g.Go(func() error {
		for b := range order {
			select {
			case <-b.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := w.pack(b); err != nil {
				return err
			}
			progress(min(b.chunks[len(b.chunks)-1]*chunkSize, w.size), w.size)
		}
		return w.closePack()
	})
	return g.Wait()
}

func (w *writer) read(ctx context.Context, plan []int64, todo, order chan<- *batch) error {
	const most = frameSize / chunkSize
	for len(plan) > 0 {
		n := min(most, len(plan))
		b := &batch{chunks: plan[:n], raw: make([]byte, n*chunkSize), done: make(chan struct{})}
		plan = plan[n:]
		for i := 0; i < n; {
			j := i + 1 // a run of neighbours is one read
			for j < n && b.chunks[j] == b.chunks[j-1]+1 {
				j++
			}
			at := b.chunks[i] * chunkSize
			buf := b.raw[i*chunkSize : j*chunkSize]
			if rest := w.size - at; rest < int64(len(buf)) {
				buf = buf[:rest]
			}
			if k, err := w.d.ReadAt(buf, at); err != nil && !(errors.Is(err, io.EOF) && k == len(buf)) {
				return fmt.Errorf("read the disk at %d: %w", at, err)
			}
			i = j
		}
		for _, c := range []chan<- *batch{order, todo} {
			select {
			case c <- b:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// digest hashes a batch's chunks and compresses those that the store lacks.
func (w *writer) digest(ctx context.Context, todo <-chan *batch) error {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(frameSize))
	if err != nil {
		return err
	}
	defer enc.Close()
	for b := range todo {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := len(b.chunks)
		b.sums, b.zero = make([]sum, n), make([]bool, n)
		fresh := make([]bool, n)
		for i := range n {
			raw := b.raw[i*chunkSize : (i+1)*chunkSize]
			if b.zero[i] = isZero(raw); b.zero[i] {
				continue
			}
			b.sums[i] = sha256.Sum256(raw)
			_, have := w.known[b.sums[i]] // read only while workers run
			fresh[i] = !have
		}
		for i := 0; i < n; {
			if !fresh[i] {
				i++
				continue
			}
			j := i + 1
			for j < n && fresh[j] {
				j++
			}
			b.frames = append(b.frames, frame{i, j - i, enc.EncodeAll(b.raw[i*chunkSize:j*chunkSize], nil)})
			i = j
		}
		b.raw = nil
		close(b.done)
	}
	return nil
}

// pack appends a batch's new frames to the open pack and notes every chunk.
func (w *writer) pack(b *batch) error {
	placed := map[int]place{}
	for _, f := range b.frames {
		if w.blob == nil {
			var err error
			if w.blob, err = w.s.newBlob(); err != nil {
				return err
			}
		}
		at := w.blob.n
		if _, err := w.blob.Write(f.data); err != nil {
			return fmt.Errorf("write a pack: %w", err)
		}
		for k := range f.n {
			placed[f.from+k] = place{offset: at, length: uint32(len(f.data)), at: uint8(k)}
		}
	}
	for i, c := range b.chunks {
		switch p, fresh := placed[i]; {
		case b.zero[i]:
		case fresh:
			w.pending = append(w.pending, entry{c, b.sums[i], p})
		default:
			w.entries = append(w.entries, entry{c, b.sums[i], w.known[b.sums[i]]})
		}
	}
	if w.blob != nil && w.blob.n >= packSize {
		return w.closePack()
	}
	return nil
}

func (w *writer) closePack() error {
	if w.blob == nil {
		return nil
	}
	desc, isNew, err := w.blob.commit(typePack)
	w.blob = nil
	if err != nil {
		return fmt.Errorf("store a pack: %w", err)
	}
	w.added += newBytes(desc, isNew)
	for _, e := range w.pending {
		e.pack = artifact.Digest(desc.Digest)
		w.entries = append(w.entries, e)
	}
	w.pending = nil
	return nil
}

func (w *writer) abort() {
	if w.blob != nil {
		w.blob.abort()
	}
}

func isZero(b []byte) bool {
	for len(b) >= 8 {
		if b[0]|b[1]|b[2]|b[3]|b[4]|b[5]|b[6]|b[7] != 0 {
			return false
		}
		b = b[8:]
	}
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}

// touch makes the packs young again that a new map shares with old images, so
// that a Prune which runs before Register leaves them.
func (s *Store) touch(packs []packRef) error {
	now := time.Now()
	for _, p := range packs {
		path, err := s.blobPath(p.Digest)
		if err != nil {
			return err
		}
		if err := os.Chtimes(path, now, now); err != nil {
			return err
		}
	}
	return nil
}
