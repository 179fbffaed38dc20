package oci

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/rebake/rebake/artifact"
)

// maxKnown bounds the memory that looking for twins may take, to 23 MiB: these
// chunks are 27 GiB of distinct data, and the newest images come first. What is
// beyond is stored as if it were new, except what a disk inherits from its
// parent, which is never looked up.
const maxKnown = 450_000

// spot is a place whose pack is a number of known.packs.
type spot struct {
	pack   uint32
	length uint32
	offset int64
	at     uint8
}

// record is a spot by its chunk's sum, made small.
type record struct {
	sum    sum
	pack   uint32 // its number + 1; 0 is a free slot
	offset uint32
	length uint32 // and at, in the low byte
}

const pendingPack = 1<<32 - 2 // a chunk on its way to the packer

// pack is a blob that the new map may point at.
type pack struct {
	packRef
	state packState
}

type packState uint8

const (
	unused packState = iota
	used             // seen on disk, and made young, by this write
	gone             // was deleted since its image was read
)

// known finds the chunks that the store has, and those that this write added.
// The table is made from the maps of the parent and of the registered images,
// newest first, for each write: it is never stale, and there is no file of it
// that could be wrong.
type known struct {
	s      *Store
	mu     sync.Mutex
	seed   maphash.Seed
	slots  []record // open addressing; a power of two
	n, max int
	packs  []pack
	number map[artifact.Digest]uint32
}

func newKnown(s *Store, limit int) *known {
	return &known{s: s, seed: maphash.MakeSeed(), slots: make([]record, 1<<10), max: limit, number: map[artifact.Digest]uint32{}}
}

// slot is where sum is, or the free one where it belongs.
func (k *known) slot(s *sum) *record {
	for i := maphash.Bytes(k.seed, s[:]); ; i++ { // seeded: a guest chooses the sums
		r := &k.slots[i&uint64(len(k.slots)-1)]
		if r.pack == 0 || r.sum == *s {
			return r
		}
	}
}

func (k *known) put(s *sum, p spot) {
	r := k.slot(s)
	if r.pack == 0 {
		if k.n >= k.max {
			return
		}
		if k.n++; k.n*8 > len(k.slots)*7 {
			old := k.slots
			k.slots = make([]record, 2*len(old))
			for i := range old {
				if old[i].pack != 0 {
					*k.slot(&old[i].sum) = old[i]
				}
			}
			r = k.slot(s)
		}
	}
	*r = record{*s, p.pack + 1, uint32(p.offset), p.length<<8 | uint32(p.at)}
}

func (r *record) spot() spot {
	return spot{pack: r.pack - 1, length: r.length >> 8, offset: int64(r.offset), at: uint8(r.length)}
}

// load reads the maps of the parent and then of the images, newest first.
func (k *known) load(ctx context.Context, parent *diskMap) error {
	seen := map[artifact.Digest]bool{}
	if parent != nil {
		if err := k.loadMap(ctx, parent, seen); err != nil {
			return fmt.Errorf("read the parent's map: %w", err)
		}
	}
	images, err := k.s.contents()
	if err != nil {
		return err
	}
	for _, content := range images {
		if k.n >= k.max {
			return nil
		}
		m, err := k.s.readMap(content)
		if err == nil {
			err = k.loadMap(ctx, m, seen)
		}
		if err != nil && !errors.Is(err, artifact.ErrCorrupt) { // a damaged image gives nothing to share; `images verify` tells
			return err
		}
	}
	return nil
}

func (k *known) loadMap(ctx context.Context, m *diskMap, seen map[artifact.Digest]bool) error {
	for _, l := range m.Leaves {
		if seen[l.Digest] {
			continue
		}
		seen[l.Digest] = true
		es, err := k.s.entries(m, l)
		if err != nil {
			return err
		}
		for i := range es {
			e := &es[i]
			if e.offset>>32 == 0 && k.slot(&e.sum).pack == 0 {
				k.put(&e.sum, k.spot(e))
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// spot numbers an entry's pack.
func (k *known) spot(e *entry) spot {
	return spot{pack: k.add(e.pack), length: e.length, offset: e.offset, at: e.at}
}

func (k *known) add(d artifact.Digest) uint32 {
	n, ok := k.number[d]
	if !ok {
		n = uint32(len(k.packs))
		k.packs = append(k.packs, pack{packRef: packRef{Digest: d}})
		k.number[d] = n
	}
	return n
}

// claim says of each chunk whether this write must store it. The first to ask
// for a chunk that nobody has is the one who stores it.
func (k *known) claim(ctx context.Context, sums []sum, state []chunkState) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range sums {
		if state[i] == zero {
			continue
		}
		r := k.slot(&sums[i])
		if have := r.pack != 0; have && r.pack-1 != pendingPack {
			if err := k.use(ctx, r.pack-1); err != nil {
				return err
			}
			if k.packs[r.pack-1].state == used {
				continue
			}
		} else if have {
			continue
		}
		state[i] = fresh
		k.put(&sums[i], spot{pack: pendingPack})
	}
	return nil
}

// use makes a pack young again, so that no Prune takes it before Register; the
// lock keeps one that is at work out. A pack may be gone.
func (k *known) use(ctx context.Context, numbers ...uint32) error {
	numbers = slices.DeleteFunc(numbers, func(n uint32) bool { return k.packs[n].state != unused })
	if len(numbers) == 0 {
		return nil
	}
	unlock, err := k.s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	now := time.Now()
	for _, n := range numbers {
		p := &k.packs[n]
		path, err := k.s.blobPath(p.Digest)
		if err != nil {
			return err
		}
		st, err := os.Stat(path)
		if err == nil {
			err = os.Chtimes(path, now, now)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			p.state = gone
		case err != nil:
			return err
		default:
			p.state, p.Size = used, st.Size()
		}
	}
	return nil
}

// useAll does the same for all packs of a parent, none of which may be gone.
func (k *known) useAll(ctx context.Context, m *diskMap) error {
	var numbers []uint32
	for _, p := range m.Packs {
		numbers = append(numbers, k.add(p.Digest))
	}
	if err := k.use(ctx, slices.Clone(numbers)...); err != nil {
		return err
	}
	for _, n := range numbers {
		if k.packs[n].state != used {
			return fmt.Errorf("%w: the parent's pack %s is missing", artifact.ErrCorrupt, k.packs[n].Digest)
		}
	}
	return nil
}

// opened numbers the pack that is being filled.
func (k *known) opened() uint32 {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.packs = append(k.packs, pack{state: used})
	return uint32(len(k.packs) - 1)
}

// closed names it.
func (k *known) closed(n uint32, ref packRef) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.packs[n].packRef = ref
}

// stored notes where a fresh chunk is, for those that ask later.
func (k *known) stored(s *sum, p spot) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if r := k.slot(s); r.pack-1 == pendingPack {
		k.put(s, p)
	}
}

// find is where a chunk is that somebody claimed before.
func (k *known) find(s *sum) spot {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.slot(s).spot()
}

// ref is a pack that is not open any more.
func (k *known) ref(n uint32) packRef {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.packs[n].packRef
}
