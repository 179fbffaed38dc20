package importer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/rebake/rebake/artifact"
)

const (
	// Bits of a table's entry: where it points, whether that is compressed, and
	// (from version 3) that it reads as zeros.
	offsetMask = 0x00fffffffffffe00
	compressed = 1 << 62
	readsZero  = 1

	maxTables = 16 << 20 // bytes of second tables in memory
	maxParts  = 1 << 19  // parts that a disk is divided into, to say which are zero
	minPart   = 64 << 10

	// What compressed clusters may come to, as a multiple of the file: real disks
	// come to less than 50.
	maxExpand = 200
	freeBytes = 16 << 20
)

// qcow2 reads a qcow2 that stands alone. Unlike qemu-img it opens no other file
// and holds everything that the file claims against the file's own size.
type qcow2 struct {
	f       *os.File
	h       header
	cluster int64
	file    int64 // bytes of f
	l1      []uint64
	extents []artifact.Extent
	zip     inflater

	mu     sync.Mutex
	tables map[int64][]uint64
	recent [4]unpacked // clusters larger than what is read at once
	next   int
}

// unpacked is a cluster that was compressed.
type unpacked struct {
	at    uint64 // its entry; 0 is none
	bytes []byte
}

// openQcow2 reads and checks every table of f; limit is the largest disk, in bytes.
func openQcow2(ctx context.Context, f *os.File, limit int64) (*qcow2, error) {
	h, is, err := readHeader(f)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	q := &qcow2{f: f, h: h, file: st.Size(), tables: map[int64][]uint64{}}
	switch {
	case !is:
		return nil, errors.New("it is no qcow2")
	case h.clusterBits < 9 || h.clusterBits > 21:
		return nil, fmt.Errorf("the qcow2 claims clusters of 2^%d bytes; 2^9 to 2^21 are known", h.clusterBits)
	case h.incompatible&featureCorrupt != 0:
		return nil, errors.New("the qcow2 is marked as corrupt: look at it with qemu-img check")
	case h.incompatible&featureExtendedL2 != 0:
		return nil, errors.New("the qcow2 has subclusters (extended_l2), which are not read: convert it first (qemu-img convert -O qcow2)")
	case h.incompatible&^(featureDirty|featureCompression) != 0:
		return nil, fmt.Errorf("the qcow2 needs features that are not known: %#x", h.incompatible)
	case h.compression > 1:
		return nil, fmt.Errorf("the qcow2 is compressed in an unknown way: %d", h.compression)
	case h.size == 0:
		return nil, errors.New("the qcow2 is a disk of 0 bytes")
	case h.size > limit:
		return nil, tooLarge(h.size, limit)
	}
	q.cluster = 1 << h.clusterBits
	q.zip.zstd = h.compression == 1
	if err := q.readL1(); err != nil {
		return nil, err
	}
	return q, q.walk(ctx)
}

func tooLarge(size, limit int64) error {
	return fmt.Errorf("the disk claims %d bytes; at most %d are taken", size, limit)
}

// spans is how many bytes of the disk one second table maps.
func (q *qcow2) spans() int64 { return q.cluster * q.cluster / 8 }

func (q *qcow2) readL1() error {
	n := (q.h.size + q.spans() - 1) / q.spans()
	switch {
	case int64(q.h.l1Size) < n:
		return fmt.Errorf("the qcow2's first table has %d entries; its disk needs %d", q.h.l1Size, n)
	case q.h.l1Offset < q.cluster || q.h.l1Offset%q.cluster != 0 || q.h.l1Offset > q.file-n*8:
		return fmt.Errorf("the qcow2's first table is said to be at %d, %d bytes, of a file of %d", q.h.l1Offset, n*8, q.file)
	}
	var err error
	q.l1, err = q.entries(q.h.l1Offset, n)
	return err
}

func (q *qcow2) entries(at, n int64) ([]uint64, error) {
	b := make([]byte, n*8)
	if _, err := q.f.ReadAt(b, at); err != nil {
		return nil, fmt.Errorf("read the qcow2's tables: %w", err)
	}
	out := make([]uint64, n)
	for i := range out {
		out[i] = binary.BigEndian.Uint64(b[i*8:])
	}
	return out, nil
}

// walk looks at every entry once: each must point into the file, and all
// together must not come to more than the file can hold. It notes which parts of
// the disk hold anything.
func (q *qcow2) walk(ctx context.Context) error {
	part := int64(minPart)
	for q.h.size/part > maxParts {
		part *= 2
	}
	var plain, packed int64 // bytes in clusters as they are, and in compressed ones once unpacked
	data := func(from, to int64) {
		from, to = from/part*part, min((to+part-1)/part*part, q.h.size)
		if n := len(q.extents); n > 0 && q.extents[n-1].Offset+q.extents[n-1].Length >= from {
			last := &q.extents[n-1]
			last.Length = max(last.Length, to-last.Offset)
			return
		}
		q.extents = append(q.extents, artifact.Extent{Offset: from, Length: to - from})
	}
	for i, e := range q.l1 {
		at := int64(e & offsetMask)
		if at == 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if at < q.cluster || at%q.cluster != 0 || at > q.file-q.cluster {
			return fmt.Errorf("a table of the qcow2 is said to be at %d of a file of %d bytes", at, q.file)
		}
		table, err := q.entries(at, q.cluster/8)
		if err != nil {
			return err
		}
		plain += q.cluster
		for j, e := range table {
			from := int64(i)*q.spans() + int64(j)*q.cluster
			if from >= q.h.size {
				break
			}
			at, n := q.place(e)
			switch {
			case n == 0:
				continue
			case at < q.cluster || at >= q.file || e&compressed == 0 && at%q.cluster != 0:
				return fmt.Errorf("a cluster of the qcow2 is said to be at %d of a file of %d bytes", at, q.file)
			case e&compressed != 0:
				packed += q.cluster
			default:
				plain += q.cluster
			}
			data(from, min(from+q.cluster, q.h.size))
		}
		if plain > q.file+q.cluster {
			return errors.New("the qcow2's tables point at more data than the file has: the same data is named several times")
		}
		if packed > maxExpand*q.file+freeBytes {
			return fmt.Errorf("the qcow2's compressed data expands more than %d fold", maxExpand)
		}
	}
	q.extents = withHoles(q.extents, q.h.size)
	return nil
}

// withHoles adds what lies between runs of data.
func withHoles(data []artifact.Extent, size int64) []artifact.Extent {
	var out []artifact.Extent
	end := int64(0)
	for _, e := range append(data, artifact.Extent{Offset: size}) {
		if e.Offset > end {
			out = append(out, artifact.Extent{Offset: end, Length: e.Offset - end, Zero: true})
		}
		if e.Length > 0 {
			out = append(out, e)
		}
		end = e.Offset + e.Length
	}
	return out
}

// place is where a cluster's bytes are in the file, and at most how many; 0 of
// one that reads as zeros.
func (q *qcow2) place(e uint64) (at, n int64) {
	if e&compressed == 0 {
		if at = int64(e & offsetMask); at == 0 || q.h.version > 2 && e&readsZero != 0 {
			return 0, 0
		}
		return at, q.cluster
	}
	shift := 62 - (q.h.clusterBits - 8)
	at = int64(e & (1<<shift - 1))
	sectors := int64(e >> shift & (1<<(q.h.clusterBits-8) - 1))
	return at, (sectors+1)*512 - at%512
}

func (q *qcow2) entry(off int64) (uint64, error) {
	at := int64(q.l1[off/q.spans()] & offsetMask)
	if at == 0 {
		return 0, nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	t := q.tables[at]
	if t == nil {
		var err error
		if t, err = q.entries(at, q.cluster/8); err != nil {
			return 0, err
		}
		if int64(len(q.tables))*q.cluster >= maxTables {
			clear(q.tables) // a disk is read from its start to its end
		}
		q.tables[at] = t
	}
	return t[off%q.spans()/q.cluster], nil
}

// ReadAt implements artifact.Disk.
func (q *qcow2) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && off < q.h.size {
		in := off % q.cluster
		k := int(min(int64(len(p)-n), q.cluster-in, q.h.size-off))
		e, err := q.entry(off)
		if err == nil {
			err = q.readCluster(p[n:n+k], e, in)
		}
		if err != nil {
			return n, fmt.Errorf("read the qcow2 at %d of its disk: %w", off, err)
		}
		n, off = n+k, off+int64(k)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (q *qcow2) readCluster(p []byte, e uint64, in int64) error {
	at, n := q.place(e)
	switch {
	case n == 0:
		clear(p)
		return nil
	case e&compressed == 0:
		k, err := q.f.ReadAt(p, at+in)
		if errors.Is(err, io.EOF) { // the file may end within its last cluster
			clear(p[k:])
			err = nil
		}
		return err
	}
	whole, err := q.unpack(e, at, min(n, q.file-at))
	if err == nil {
		copy(p, whole[in:])
	}
	return err
}

// unpack returns a compressed cluster, which nobody changes.
func (q *qcow2) unpack(e uint64, at, n int64) ([]byte, error) {
	q.mu.Lock()
	for _, c := range q.recent {
		if c.at == e {
			q.mu.Unlock()
			return c.bytes, nil
		}
	}
	q.mu.Unlock()
	out := make([]byte, q.cluster)
	if err := q.zip.inflate(out, io.NewSectionReader(q.f, at, n)); err != nil {
		return nil, fmt.Errorf("unpack a compressed cluster: %w", err)
	}
	if q.cluster > minPart {
		q.mu.Lock()
		q.recent[q.next] = unpacked{e, out}
		q.next = (q.next + 1) % len(q.recent)
		q.mu.Unlock()
	}
	return out, nil
}

func (q *qcow2) Size() int64                                        { return q.h.size }
func (q *qcow2) Parent() artifact.Digest                            { return "" }
func (q *qcow2) Close() error                                       { return q.f.Close() }
func (q *qcow2) Extents(context.Context) ([]artifact.Extent, error) { return q.extents, nil }
