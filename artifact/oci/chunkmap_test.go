package oci

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/rebake/rebake/artifact"
)

func digestN(n int) artifact.Digest { return artifact.Digest(fmt.Sprintf("sha256:%064x", n)) }

func compressed(t testing.TB, b []byte) []byte {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	return enc.EncodeAll(b, nil)
}

func someEntries() []entry {
	return []entry{
		{3*leafChunks + 0, sum{1}, place{digestN(1), 0, 100, 0}},
		{3*leafChunks + 1, sum{2}, place{digestN(1), 0, 100, 15}},
		{3*leafChunks + 9, sum{3}, place{digestN(2), 1 << 30, 2 * frameSize, 3}},
		{3*leafChunks + leafChunks - 1, sum{4}, place{digestN(1), 100, 1, 0}},
	}
}

func TestLeafRoundTrip(t *testing.T) {
	want := someEntries()
	raw, err := encodeLeaf(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeLeaf(raw, 3)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	full := make([]entry, leafChunks)
	for i := range full {
		full[i] = entry{int64(i), sum{byte(i), byte(i >> 8)}, place{digestN(i), int64(i), uint32(i + 1), uint8(i % 16)}}
	}
	if raw, err = encodeLeaf(full); err != nil {
		t.Fatal(err)
	}
	if got, err = decodeLeaf(raw, 0); err != nil || !reflect.DeepEqual(got, full) {
		t.Errorf("a full leaf with a pack for each chunk: %v", err)
	}
}

func TestDecodeLeafRefuses(t *testing.T) {
	raw, err := encodeLeaf(someEntries())
	if err != nil {
		t.Fatal(err)
	}
	plain, err := unpack(raw, maxLeaf)
	if err != nil {
		t.Fatal(err)
	}
	const head = 4 + 2*digestLen + 4 // before the entries
	edit := func(f func(b []byte) []byte) []byte { return compressed(t, f(bytes.Clone(plain))) }
	le := binary.LittleEndian
	for name, raw := range map[string][]byte{
		"no bytes":             nil,
		"no zstd":              []byte("hello"),
		"a bomb":               compressed(t, make([]byte, 256<<20)),
		"two frames of a bomb": bytes.Repeat(compressed(t, make([]byte, maxLeaf-1)), 2),
		"zstd cut off":         raw[:len(raw)-3],
		"empty":                compressed(t, nil),
		"more packs than fit":  edit(func(b []byte) []byte { le.PutUint32(b, 1<<32-1); return b }),
		"one pack too many":    edit(func(b []byte) []byte { le.PutUint32(b, 3); return b }),
		"a pack is no digest":  edit(func(b []byte) []byte { b[4+8] = '/'; return b }),
		"more entries":         edit(func(b []byte) []byte { le.PutUint32(b[head-4:], 1<<31); return b }),
		"fewer entries":        edit(func(b []byte) []byte { le.PutUint32(b[head-4:], 3); return b }),
		"bytes after":          edit(func(b []byte) []byte { return append(b, 0) }),
		"cut off":              edit(func(b []byte) []byte { return b[:len(b)-1] }),
		"the same chunk twice": edit(func(b []byte) []byte { le.PutUint32(b[head+entryBytes:], 0); return b }),
		"chunks out of order":  edit(func(b []byte) []byte { le.PutUint32(b[head:], 5); return b }),
		"chunk of another GiB": edit(func(b []byte) []byte { le.PutUint32(b[head+3*entryBytes:], leafChunks); return b }),
		"pack unknown":         edit(func(b []byte) []byte { le.PutUint16(b[head+36:], 2); return b }),
		"offset negative":      edit(func(b []byte) []byte { le.PutUint64(b[head+38:], 1<<63); return b }),
		"offset overflows":     edit(func(b []byte) []byte { le.PutUint64(b[head+38:], 1<<63-1); return b }),
		"frame of no bytes":    edit(func(b []byte) []byte { le.PutUint32(b[head+46:], 0); return b }),
		"frame too long":       edit(func(b []byte) []byte { le.PutUint32(b[head+46:], 1<<30); return b }),
		"chunk after frame":    edit(func(b []byte) []byte { b[head+50] = 16; return b }),
	} {
		if es, err := decodeLeaf(raw, 3); err == nil {
			t.Errorf("%s: decoded as %d entries", name, len(es))
		}
	}
}

func TestDecodeRootRefuses(t *testing.T) {
	good := func() rootMap {
		return rootMap{Format: 1, Size: 3<<30 + 1, Chunk: chunkSize, Leaves: []leafRef{{0, digestN(1), 9}, {3, digestN(2), 9}}, Packs: []packRef{{digestN(3), 7}}}
	}
	encode := func(f func(*rootMap)) []byte {
		m := good()
		f(&m)
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if _, err := decodeRoot(encode(func(*rootMap) {})); err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{
		"no JSON":              []byte("{"),
		"bytes after":          append(encode(func(*rootMap) {}), "{}"...),
		"another format":       encode(func(m *rootMap) { m.Format = 2 }),
		"another chunk size":   encode(func(m *rootMap) { m.Chunk = 4096 }),
		"negative size":        encode(func(m *rootMap) { m.Size = -1 }),
		"too large":            encode(func(m *rootMap) { m.Size = 1 << 62 }),
		"leaf after the end":   encode(func(m *rootMap) { m.Leaves[1].Index = 4 }),
		"leaf of an empty one": encode(func(m *rootMap) { m.Size, m.Leaves = 0, m.Leaves[:1] }),
		"leaf negative":        encode(func(m *rootMap) { m.Leaves[0].Index = -1 }),
		"leaves out of order":  encode(func(m *rootMap) { m.Leaves[0].Index = 3 }),
		"leaf is a path":       encode(func(m *rootMap) { m.Leaves[0].Digest = "sha256:../../index.json" }),
		"leaf of no bytes":     encode(func(m *rootMap) { m.Leaves[0].Size = 0 }),
		"pack is a path":       encode(func(m *rootMap) { m.Packs[0].Digest = "../x" }),
		"pack of no bytes":     encode(func(m *rootMap) { m.Packs[0].Size = 0 }),
		"pack too large":       encode(func(m *rootMap) { m.Packs[0].Size = 1 << 62 }),
		"pack twice":           encode(func(m *rootMap) { m.Packs = append(m.Packs, m.Packs[0]) }),
		"number too large":     []byte(`{"format":1,"size":1e99,"chunk":65536}`),
	} {
		if _, err := decodeRoot(raw); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
}

func FuzzDecodeLeaf(f *testing.F) {
	raw, err := encodeLeaf(someEntries())
	if err != nil {
		f.Fatal(err)
	}
	plain, err := unpack(raw, maxLeaf)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain, 3, true)
	f.Add(raw, 3, false)
	f.Add([]byte(strings.Repeat("\x00", 8)), 0, true)
	f.Fuzz(func(t *testing.T, b []byte, index int, wrap bool) {
		if wrap { // else the fuzzer finds little but checksums of zstd
			b = compressed(t, b)
		}
		index &= 0xffff
		es, err := decodeLeaf(b, index)
		if err != nil {
			return
		}
		last := int64(index)*leafChunks - 1
		for _, e := range es {
			if e.chunk <= last || e.chunk >= int64(index+1)*leafChunks || e.pack.Validate() != nil || e.offset < 0 || e.offset+int64(e.length) <= e.offset || e.at > 15 {
				t.Fatalf("entry %+v", e)
			}
			last = e.chunk
		}
		again, err := encodeLeaf(es)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := decodeLeaf(again, index); err != nil || len(same) != len(es) || len(es) > 0 && !reflect.DeepEqual(same, es) {
			t.Fatalf("encoded again it is %v, %v", same, err)
		}
	})
}

func FuzzDecodeRoot(f *testing.F) {
	f.Add([]byte(`{"format":1,"size":65536,"chunk":65536,"leaves":[{"index":0,"digest":"` + string(digestN(1)) + `","size":1}],"packs":[{"digest":"` + string(digestN(2)) + `","size":1}]}`))
	f.Add([]byte(`{"format":1,"size":0,"chunk":65536}`))
	f.Add([]byte(`[[[[`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeRoot(b)
		if err != nil {
			return
		}
		for _, d := range m.blobs() {
			if err := d.Validate(); err != nil {
				t.Fatal(err)
			}
		}
		for _, l := range m.Leaves {
			if int64(l.Index)<<30 >= m.Size || l.Index < 0 {
				t.Fatalf("leaf %d of a disk of %d", l.Index, m.Size)
			}
		}
	})
}
