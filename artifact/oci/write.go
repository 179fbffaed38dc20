package oci

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"github.com/rebake/rebake/artifact"
	"golang.org/x/sync/errgroup"
)

const (
	batchChunks = frameSize / chunkSize
	maxWorkers  = 8 // more would take more memory than they save time
	// packChunks bounds how many entries wait for their pack's digest, when
	// chunks compress to almost nothing.
	packChunks = 4 * leafChunks
)

// Write implements artifact.Store. Batches of chunks flow in the disk's order
// through planning, reading and hashing (in parallel), the question which of
// them are new, compressing (in parallel), and packing. The same disk written
// to the same store gives the same blobs, however the work is scheduled.
func (s *Store) Write(ctx context.Context, d artifact.Disk, progress func(done, total int64)) (artifact.Digest, int64, error) {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	size := d.Size()
	extents, err := checkedExtents(ctx, d)
	if err != nil {
		return "", 0, err
	}
	k := newKnown(s, maxKnown)
	var parent *diskMap
	if d.Parent() != "" {
		if parent, err = s.readMap(d.Parent()); err != nil {
			return "", 0, fmt.Errorf("read the parent's map: %w", err)
		}
		if err := k.useAll(ctx, parent); err != nil {
			return "", 0, err
		}
	}
	if err := k.load(ctx, parent); err != nil {
		return "", 0, err
	}
	p := newPacker(s, k, size)
	defer p.abort()
	w := &writer{d: d, size: size, known: k, packer: p}
	if err := w.run(ctx, &planner{extents: extents, size: size, below: cursor{s: s, m: parent}}, progress); err != nil {
		return "", 0, err
	}
	content, added, err := p.finish()
	if err == nil {
		progress(size, size)
	}
	return content, added, err
}

// chunkState is what is to be done with a chunk that was read.
type chunkState uint8

const (
	stored chunkState = iota // the store has it, or this batch or one before it stores it
	zero                     // nothing
	fresh                    // compress it and store it
)

// batch is a run of chunks of one leaf on its way through the stages.
type batch struct {
	leaf   int
	kept   []entry // the parent's, not read
	chunks []int64 // to be read
	end    int64   // bytes of the disk that are dealt with after it

	*buffers
	sums  [batchChunks]sum
	state [batchChunks]chunkState
	frame []byte        // the fresh ones, compressed
	done  chan struct{} // closed when the stage that is at work on it is through
	err   error         // of that stage
}

// buffers are used again: there are as many as batches may be on their way.
type buffers struct {
	raw, frame []byte
}

type writer struct {
	d      artifact.Disk
	size   int64
	known  *known
	packer *packer
	enc    *zstd.Encoder
}

func (w *writer) run(ctx context.Context, plan *planner, progress func(done, total int64)) error {
	workers := min(max(1, runtime.GOMAXPROCS(0)), maxWorkers)
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(workers), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(frameSize))
	if err != nil {
		return err
	}
	defer enc.Close()
	w.enc = enc
	free := make(chan *buffers, 3*workers)
	for range cap(free) {
		free <- &buffers{raw: make([]byte, frameSize)}
	}
	running := make(chan struct{}, workers)
	g, ctx := errgroup.WithContext(ctx)
	start := func(b *batch, stage func(*batch) error) {
		b.done = make(chan struct{})
		done := b.done
		g.Go(func() error { // as many as there are buffers, at most
			running <- struct{}{}
			b.err = stage(b)
			<-running
			close(done)
			return nil
		})
	}
	hashed, packed := make(chan *batch, cap(free)), make(chan *batch, cap(free))
	g.Go(func() error {
		defer close(hashed)
		return plan.each(ctx, func(b *batch) error {
			if len(b.chunks) > 0 {
				select {
				case b.buffers = <-free:
				case <-ctx.Done():
					return ctx.Err()
				}
				start(b, w.read)
			}
			return send(ctx, hashed, b)
		})
	})
	g.Go(func() error {
		defer close(packed)
		return each(ctx, hashed, func(b *batch) error {
			n := len(b.chunks)
			if n > 0 {
				if err := w.known.claim(ctx, b.sums[:n], b.state[:n]); err != nil {
					return err
				}
				start(b, w.compress)
			}
			return send(ctx, packed, b)
		})
	})
	g.Go(func() error {
		return each(ctx, packed, func(b *batch) error {
			if err := w.packer.add(b); err != nil {
				return err
			}
			if b.buffers != nil {
				b.buffers.frame = b.frame[:0]
				free <- b.buffers
			}
			progress(b.end, w.size)
			return nil
		})
	})
	return g.Wait()
}

func send(ctx context.Context, to chan<- *batch, b *batch) error {
	select {
	case to <- b:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// each hands on every batch, in order, when the stage that works on it is through.
func each(ctx context.Context, from <-chan *batch, next func(*batch) error) error {
	for {
		select {
		case b, ok := <-from:
			if !ok {
				return nil
			}
			if b.done != nil {
				<-b.done // is never long: stages neither wait nor stop
			}
			if err := cmp.Or(b.err, ctx.Err()); err != nil {
				return err
			}
			if err := next(b); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// read fills and hashes a batch's chunks.
func (w *writer) read(b *batch) error {
	n := len(b.chunks)
	for i := 0; i < n; {
		j := i + 1 // a run of neighbours is one read
		for j < n && b.chunks[j] == b.chunks[j-1]+1 {
			j++
		}
		at := b.chunks[i] * chunkSize
		buf := b.raw[i*chunkSize : j*chunkSize]
		if rest := w.size - at; rest < int64(len(buf)) {
			clear(buf[rest:])
			buf = buf[:rest]
		}
		if k, err := w.d.ReadAt(buf, at); err != nil && !(errors.Is(err, io.EOF) && k == len(buf)) {
			return fmt.Errorf("read the disk at %d: %w", at, err)
		}
		i = j
	}
	for i := range n {
		raw := b.raw[i*chunkSize : (i+1)*chunkSize]
		if isZero(raw) {
			b.state[i] = zero
		} else {
			b.sums[i] = sha256.Sum256(raw)
		}
	}
	return nil
}

// compress makes one frame of the batch's fresh chunks.
func (w *writer) compress(b *batch) error {
	n := 0
	for i := range b.chunks {
		if b.state[i] == fresh {
			if n != i {
				copy(b.raw[n*chunkSize:(n+1)*chunkSize], b.raw[i*chunkSize:])
			}
			n++
		}
	}
	b.frame = b.buffers.frame[:0]
	if n > 0 {
		b.frame = w.enc.EncodeAll(b.raw[:n*chunkSize], b.frame)
	}
	return nil
}

// packer fills packs and writes the leaves of the map. It is used by one
// goroutine; packs are fsynced beside it.
type packer struct {
	s       *Store
	known   *known
	root    rootMap
	seen    map[uint32]bool // packs of root
	leaf    *leaf           // being filled
	waiting []*leaf         // for the open pack's digest
	blob    *blobWriter     // the open pack
	open    uint32          // its number
	chunks  int             // in it
	most    struct {        // of one pack
		size   int64
		chunks int
	}
	sync  errgroup.Group
	added atomic.Int64
}

type leaf struct {
	index   int
	entries []slot
	open    bool // an entry is in the open pack
}

// slot is an entry whose pack may have no digest yet.
type slot struct {
	chunk int64
	sum   sum
	spot
}

func newPacker(s *Store, k *known, size int64) *packer {
	p := &packer{s: s, known: k, seen: map[uint32]bool{},
		root: rootMap{Format: 1, Size: size, Chunk: chunkSize, Leaves: []leafRef{}, Packs: []packRef{}}}
	p.most.size, p.most.chunks = packSize, packChunks
	p.sync.SetLimit(2)
	return p
}

func (p *packer) add(b *batch) error {
	if p.leaf == nil || p.leaf.index != b.leaf {
		if err := p.endLeaf(); err != nil {
			return err
		}
		p.leaf = &leaf{index: b.leaf}
	}
	l := p.leaf
	for i := range b.kept {
		e := &b.kept[i]
		p.known.mu.Lock()
		at := p.known.spot(e)
		p.known.mu.Unlock()
		l.entries = append(l.entries, slot{e.chunk, e.sum, at})
	}
	if len(b.chunks) == 0 {
		return nil
	}
	at := spot{length: uint32(len(b.frame))}
	if len(b.frame) > 0 {
		if p.blob == nil {
			var err error
			if p.blob, err = p.s.newBlob(); err != nil {
				return err
			}
			p.open = p.known.opened()
		}
		at.pack, at.offset = p.open, p.blob.n
		if _, err := p.blob.Write(b.frame); err != nil {
			return fmt.Errorf("write a pack: %w", err)
		}
	}
	for i, c := range b.chunks {
		switch b.state[i] {
		case fresh:
			p.known.stored(&b.sums[i], at)
			l.entries = append(l.entries, slot{c, b.sums[i], at})
			at.at++
			p.chunks++
		case stored:
			l.entries = append(l.entries, slot{c, b.sums[i], p.known.find(&b.sums[i])})
		}
		if e := len(l.entries) - 1; e >= 0 && p.blob != nil && l.entries[e].pack == p.open {
			l.open = true
		}
	}
	if p.blob != nil && (p.blob.n >= p.most.size || p.chunks >= p.most.chunks) {
		return p.closePack()
	}
	return nil
}

// closePack names the open pack, and writes the leaves that waited for it.
func (p *packer) closePack() error {
	if p.blob == nil {
		return nil
	}
	blob := p.blob
	p.blob, p.chunks = nil, 0
	p.known.closed(p.open, packRef{blob.digest(), blob.n})
	p.sync.Go(func() error {
		desc, isNew, err := blob.commit(typePack)
		if err != nil {
			return fmt.Errorf("store a pack: %w", err)
		}
		p.added.Add(newBytes(desc, isNew))
		return nil
	})
	if p.leaf != nil {
		p.leaf.open = false
	}
	for _, l := range p.waiting {
		if err := p.writeLeaf(l); err != nil {
			return err
		}
	}
	p.waiting = nil
	return nil
}

func (p *packer) endLeaf() error {
	l := p.leaf
	p.leaf = nil
	switch {
	case l == nil || len(l.entries) == 0:
		return nil
	case l.open:
		p.waiting = append(p.waiting, l)
		return nil
	}
	return p.writeLeaf(l)
}

func (p *packer) writeLeaf(l *leaf) error {
	slices.SortFunc(l.entries, func(a, b slot) int { return cmp.Compare(a.chunk, b.chunk) })
	out := make([]entry, len(l.entries))
	for i, e := range l.entries {
		ref := p.known.ref(e.pack)
		if !p.seen[e.pack] {
			p.seen[e.pack] = true
			p.root.Packs = append(p.root.Packs, ref)
		}
		out[i] = entry{e.chunk, e.sum, place{ref.Digest, e.offset, e.length, e.at}}
	}
	raw, err := encodeLeaf(out)
	if err != nil {
		return err
	}
	desc, isNew, err := p.s.putBlob(typeLeaf, raw)
	if err != nil {
		return fmt.Errorf("store a part of the chunk map: %w", err)
	}
	p.added.Add(newBytes(desc, isNew))
	p.root.Leaves = append(p.root.Leaves, leafRef{l.index, artifact.Digest(desc.Digest), desc.Size})
	return nil
}

// finish writes the root of the map, after all that it points at is safe.
func (p *packer) finish() (artifact.Digest, int64, error) {
	if err := errors.Join(p.endLeaf(), p.closePack(), p.sync.Wait()); err != nil {
		return "", 0, err
	}
	slices.SortFunc(p.root.Leaves, func(a, b leafRef) int { return cmp.Compare(a.Index, b.Index) })
	desc, isNew, err := p.s.putRoot(p.root)
	if err != nil {
		return "", 0, fmt.Errorf("store the chunk map: %w", err)
	}
	return artifact.Digest(desc.Digest), p.added.Load() + newBytes(desc, isNew), nil
}

// abort forgets the open pack. Packs that are closed stay for Prune, or for the
// next try, which finds that they are there.
func (p *packer) abort() {
	if p.blob != nil {
		p.blob.abort()
	}
	_ = p.sync.Wait() // its error was returned, or another one was first
}

var zeros [chunkSize]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }
