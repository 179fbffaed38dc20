package oci

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/klauspost/compress/zstd"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
)

const (
	chunkSize  = 64 << 10
	leafChunks = (1 << 30) / chunkSize // a leaf maps 1 GiB
	frameSize  = 1 << 20               // of raw bytes in one zstd frame, at most
	packSize   = 64 << 20              // of compressed bytes in one pack, about
	maxDisk    = 64 << 40
	maxBlob    = 1 << 40
)

// rootMap is the JSON blob whose digest names a disk's content. Leaves of
// unchanged GiBs are the same blobs in many maps.
type rootMap struct {
	Format int       `json:"format"` // 1
	Size   int64     `json:"size"`
	Chunk  int       `json:"chunk"`
	Leaves []leafRef `json:"leaves"` // by index, those with a chunk
	Packs  []packRef `json:"packs"`  // of all leaves
}

type leafRef struct {
	Index  int             `json:"index"` // GiB
	Digest artifact.Digest `json:"digest"`
	Size   int64           `json:"size"`
}

type packRef struct {
	Digest artifact.Digest `json:"digest"`
	Size   int64           `json:"size"`
}

type sum [32]byte

// place is where a chunk's bytes are: a frame of a pack, and which of its chunks.
type place struct {
	pack   artifact.Digest
	offset int64  // of the frame
	length uint32 // of the frame, compressed
	at     uint8  // chunk within the frame
}

// entry is one chunk of a disk; holes have none.
type entry struct {
	chunk int64
	sum   sum
	place
}

// A leaf is a zstd frame of: number of packs, their digests; number of
// entries, then each: chunk within the leaf, sum, pack, frame offset, length,
// chunk within the frame. All little endian.
const entryBytes = 4 + 32 + 2 + 8 + 4 + 1

func encodeLeaf(entries []entry) ([]byte, error) {
	var packs []artifact.Digest
	num := map[artifact.Digest]uint16{}
	for _, e := range entries {
		if _, ok := num[e.pack]; !ok {
			if len(packs) == 1<<16-1 {
				return nil, errors.New("a GiB of the disk is spread over too many packs")
			}
			num[e.pack] = uint16(len(packs))
			packs = append(packs, e.pack)
		}
	}
	le := binary.LittleEndian
	b := le.AppendUint32(nil, uint32(len(packs)))
	for _, p := range packs {
		b = append(b, p...)
	}
	b = le.AppendUint32(b, uint32(len(entries)))
	for _, e := range entries {
		b = le.AppendUint32(b, uint32(e.chunk%leafChunks))
		b = append(b, e.sum[:]...)
		b = le.AppendUint16(b, num[e.pack])
		b = le.AppendUint64(b, uint64(e.offset))
		b = le.AppendUint32(b, e.length)
		b = append(b, e.at)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer enc.Close()
	return enc.EncodeAll(b, nil), nil
}

const digestLen = len("sha256:") + 64

// maxLeaf bounds what a hostile leaf may unpack to.
const maxLeaf = 8 + (1<<16)*digestLen + leafChunks*entryBytes

func decodeLeaf(raw []byte, index int) ([]entry, error) {
	b, err := unpack(raw, maxLeaf)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if len(b) < 4 {
		return nil, errors.New("it is cut off")
	}
	n := int(le.Uint32(b))
	b = b[4:]
	if n > 1<<16 || len(b) < n*digestLen+4 {
		return nil, errors.New("its packs are cut off")
	}
	packs := make([]artifact.Digest, n)
	for i := range packs {
		packs[i] = artifact.Digest(b[:digestLen])
		b = b[digestLen:]
		if err := packs[i].Validate(); err != nil {
			return nil, err
		}
	}
	count := int(le.Uint32(b))
	b = b[4:]
	if count > leafChunks || len(b) != count*entryBytes {
		return nil, errors.New("its entries are cut off")
	}
	out := make([]entry, count)
	last := int64(-1)
	for i := range out {
		e := &out[i]
		c, p := int64(le.Uint32(b)), int(le.Uint16(b[36:]))
		copy(e.sum[:], b[4:36])
		e.offset, e.length, e.at = int64(le.Uint64(b[38:])), le.Uint32(b[46:]), b[50]
		b = b[entryBytes:]
		if c <= last || c >= leafChunks || p >= n || e.offset < 0 || e.offset > maxBlob || e.length == 0 || e.length > 2*frameSize || int(e.at) >= frameSize/chunkSize {
			return nil, errors.New("an entry is out of range")
		}
		last = c
		e.chunk, e.pack = c+int64(index)*leafChunks, packs[p]
	}
	return out, nil
}

// unpack decodes one zstd blob to at most limit bytes.
func unpack(raw []byte, limit int) ([]byte, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(uint64(limit)), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	return dec.DecodeAll(raw, nil)
}

// diskMap is a root that was checked.
type diskMap struct {
	rootMap
	sizes map[artifact.Digest]int64 // of packs
}

// readMap reads and checks the root of a chunk map.
func (s *Store) readMap(content artifact.Digest) (*diskMap, error) {
	raw, err := s.blob(content)
	if err != nil {
		return nil, err
	}
	m, err := decodeRoot(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: chunk map %s: %w", artifact.ErrCorrupt, content, err)
	}
	return m, nil
}

func decodeRoot(raw []byte) (*diskMap, error) {
	m := &diskMap{sizes: map[artifact.Digest]int64{}}
	if err := json.Unmarshal(raw, &m.rootMap); err != nil {
		return nil, err
	}
	if m.Format != 1 || m.Chunk != chunkSize {
		return nil, fmt.Errorf("format %d with %d byte chunks is not known to this version of rebake", m.Format, m.Chunk)
	}
	if m.Size < 0 || m.Size > maxDisk {
		return nil, fmt.Errorf("a disk of %d bytes", m.Size)
	}
	last := -1
	for _, l := range m.Leaves {
		if l.Index <= last || int64(l.Index) > (m.Size-1)>>30 || l.Size <= 0 || l.Size > maxJSON {
			return nil, fmt.Errorf("leaf %d is out of range", l.Index)
		}
		if err := l.Digest.Validate(); err != nil {
			return nil, err
		}
		last = l.Index
	}
	for _, p := range m.Packs {
		if err := p.Digest.Validate(); err != nil {
			return nil, err
		}
		if _, twice := m.sizes[p.Digest]; twice || p.Size <= 0 || p.Size > maxBlob {
			return nil, fmt.Errorf("pack %s of %d bytes", p.Digest, p.Size)
		}
		m.sizes[p.Digest] = p.Size
	}
	return m, nil
}

// blobs are the leaves and packs of a map.
func (m *diskMap) blobs() []artifact.Digest {
	var out []artifact.Digest
	for _, l := range m.Leaves {
		out = append(out, l.Digest)
	}
	for _, p := range m.Packs {
		out = append(out, p.Digest)
	}
	return out
}

// entries reads one leaf; each entry is inside the disk and in a pack of the map.
func (s *Store) entries(m *diskMap, l leafRef) ([]entry, error) {
	raw, err := s.blob(l.Digest)
	if err != nil {
		return nil, err
	}
	es, err := decodeLeaf(raw, l.Index)
	if err == nil && int64(len(raw)) != l.Size {
		err = fmt.Errorf("it has %d bytes, not %d", len(raw), l.Size)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: chunk map: leaf %s: %w", artifact.ErrCorrupt, l.Digest, err)
	}
	return es, m.holds(es)
}

// holds checks that entries of a leaf fit the map.
func (m *diskMap) holds(es []entry) error {
	for i := range es {
		e := &es[i]
		if n, ok := m.sizes[e.pack]; !ok || e.offset+int64(e.length) > n || e.chunk*chunkSize >= m.Size {
			return fmt.Errorf("%w: chunk map: chunk %d is outside of its pack or disk", artifact.ErrCorrupt, e.chunk)
		}
	}
	return nil
}

func (s *Store) blobSize(d artifact.Digest) (int64, error) {
	path, err := s.blobPath(d)
	if err != nil {
		return 0, err
	}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("%w: blob %s is missing", artifact.ErrCorrupt, d)
	}
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (s *Store) putRoot(m rootMap) (v1.Descriptor, bool, error) {
	raw, err := json.Marshal(m)
	if err != nil {
		return v1.Descriptor{}, false, err
	}
	return s.putBlob(typeMap, raw)
}

func newBytes(d v1.Descriptor, isNew bool) int64 {
	if isNew {
		return d.Size
	}
	return 0
}
