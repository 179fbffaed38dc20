package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
	"oras.land/oras-go/v2/content"
	ref "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
)

// hostile is an image that no rebake wrote, part by part.
type hostile struct {
	leaf, pack []byte
	root       map[string]any
	config     map[string]any
	manifest   v1.Manifest
	layers     []v1.Descriptor // beside those of the parts
	leaveOut   bool            // the pack is not listed
}

const chunk = 64 << 10

func packed(t *testing.T, raw []byte) []byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	return enc.EncodeAll(raw, nil)
}

// leafOf is the leaf of one chunk, as chunkmap.go describes it.
func leafOf(t *testing.T, sum [32]byte, pack []byte, frame int) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 1)
	b = append(b, digest.FromBytes(pack)...)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint32(b, 0)
	b = append(b, sum[:]...)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, uint32(frame))
	return packed(t, append(b, 0))
}

// push brings it to a registry, as it is.
func (h hostile) push(t *testing.T, addr, tag string) {
	t.Helper()
	r := &remote.Repository{Reference: ref.Reference{Registry: addr, Repository: "x/team/web"}, PlainHTTP: true, MaxMetadataBytes: 16 << 20}
	blob := func(media string, b []byte) v1.Descriptor {
		d := content.NewDescriptorFromBytes(media, b)
		if ok, err := r.Blobs().Exists(t.Context(), d); err != nil {
			t.Fatal(err)
		} else if !ok {
			if err := r.Blobs().Push(t.Context(), d, bytes.NewReader(b)); err != nil {
				t.Fatal(err)
			}
		}
		return d
	}
	asJSON := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	pack, leaf := blob("application/vnd.rebake.disk.pack.v1+zstd", h.pack), blob("application/vnd.rebake.disk.leaf.v1+zstd", h.leaf)
	root := map[string]any{"format": 1, "size": chunk, "chunk": chunk,
		"leaves": []any{map[string]any{"index": 0, "digest": leaf.Digest, "size": leaf.Size}}, "packs": []any{map[string]any{"digest": pack.Digest, "size": pack.Size}}}
	for k, v := range h.root {
		root[k] = v
	}
	m := blob("application/vnd.rebake.disk.map.v1+json", asJSON(root))
	config := map[string]any{"name": "team/web", "version": tag, "content": m.Digest, "disk_size": chunk}
	for k, v := range h.config {
		config[k] = v
	}
	mani := h.manifest
	mani.Versioned, mani.MediaType = specs.Versioned{SchemaVersion: 2}, v1.MediaTypeImageManifest
	if mani.ArtifactType == "" {
		mani.ArtifactType = "application/vnd.rebake.machine.v1+json"
	}
	mani.Config = blob("application/vnd.rebake.machine.config.v1+json", asJSON(config))
	mani.Layers = append([]v1.Descriptor{m, leaf}, h.layers...)
	if !h.leaveOut {
		mani.Layers = append(mani.Layers, pack)
	}
	raw := asJSON(mani)
	d := content.NewDescriptorFromBytes(v1.MediaTypeImageManifest, raw)
	if err := r.Manifests().PushReference(t.Context(), d, bytes.NewReader(raw), tag); err != nil {
		t.Fatal(err)
	}
}

// What anybody may put into a registry is refused by pull and by a store, with
// bounded memory, and nothing of it is seen.
func TestHostileImages(t *testing.T) {
	addr := kinds()["with referrers"](t)
	data := noise(70, chunk)
	good := func() hostile {
		pack := packed(t, data)
		return hostile{pack: pack, leaf: leafOf(t, sha256.Sum256(data), pack, len(pack))}
	}
	with := func(f func(*hostile)) hostile {
		h := good()
		f(&h)
		return h
	}
	framed := func(pack []byte) hostile {
		return hostile{pack: pack, leaf: leafOf(t, sha256.Sum256(data), pack, min(len(pack), 2<<20))}
	}
	bomb := packed(t, make([]byte, 512<<20))
	notes := strings.Repeat("x", 5<<20)
	none := v1.Descriptor{MediaType: "application/vnd.rebake.disk.pack.v1+zstd", Digest: "sha256:../../../../etc/passwd", Size: 9}
	huge := v1.Descriptor{MediaType: "application/vnd.rebake.disk.pack.v1+zstd", Digest: digest.FromString("huge"), Size: 1 << 40}
	long := content.NewDescriptorFromBytes("application/vnd.rebake.disk.pack.v1+zstd", good().pack)
	long.Size--
	cases := map[string]hostile{
		"name-traverses":    with(func(h *hostile) { h.config = map[string]any{"name": "../../team/web"} }),
		"name-of-another":   with(func(h *hostile) { h.config = map[string]any{"name": "db"} }),
		"version-traverses": with(func(h *hostile) { h.config = map[string]any{"version": "../../../x"} }),
		"content-traverses": with(func(h *hostile) { h.config = map[string]any{"content": "sha256:../../index.json"} }),
		"digest-traverses":  with(func(h *hostile) { h.layers = []v1.Descriptor{none} }),
		"leaf-traverses": with(func(h *hostile) {
			h.root = map[string]any{"leaves": []any{map[string]any{"index": 0, "digest": "../../x", "size": 9}}}
		}),
		"layer-of-a-terabyte": with(func(h *hostile) { h.layers = []v1.Descriptor{huge} }),
		"blob-longer-than-it": with(func(h *hostile) { h.layers = []v1.Descriptor{long}; h.leaveOut = true }),
		"pack-not-listed":     with(func(h *hostile) { h.leaveOut = true }),
		"manifest-of-5-MiB":   with(func(h *hostile) { h.manifest.Annotations = map[string]string{"n": notes} }),
		"disk-of-another":     with(func(h *hostile) { h.config = map[string]any{"disk_size": 5} }),
		"disk-of-an-exabyte":  with(func(h *hostile) { h.root = map[string]any{"size": 1 << 60} }),
		"another-type":        with(func(h *hostile) { h.manifest.ArtifactType = "application/vnd.other" }),
		"chunk-that-lies":     with(func(h *hostile) { h.leaf = leafOf(t, sha256.Sum256([]byte("other")), h.pack, len(h.pack)) }),
		"leaf-is-a-bomb":      with(func(h *hostile) { h.leaf = bomb }),
		"frame-is-a-bomb":     framed(bomb),
		"frame-is-noise":      framed(noise(71, 3000)),
	}
	good().push(t, addr, "good")
	for name, h := range cases {
		h.push(t, addr, name)
	}
	o := quick
	o.Retries = 2
	if got, err := Pull(t.Context(), at(t, "oci://"+addr+"/x/team/web:good"), store(t), "", o); err != nil || got.Image.DiskSize != chunk {
		t.Fatalf("the honest one: %v", err)
	}
	for name := range cases {
		t.Run(name, func(t *testing.T) {
			ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
			defer stop()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			to := store(t)
			_, err := Pull(ctx, at(t, "oci://"+addr+"/x/team/web:"+name), to, "", o)
			cut := name == "blob-longer-than-it" // as a transfer that broke off, which may pass
			if !errors.Is(err, artifact.ErrCorrupt) && !(cut && err != nil) {
				t.Errorf("pull: %v; want ErrCorrupt", err)
			}
			nothing(t, to)
			local := store(t)
			s, err := Open(local, at(t, "oci://"+addr+"/x"), o)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "disk")
			img, err := s.Resolve(ctx, artifact.Ref{Name: "team/web", Tag: name})
			if err == nil {
				err = s.Fetch(ctx, img.Content, path, nil)
			}
			if !errors.Is(err, artifact.ErrCorrupt) && !errors.Is(err, artifact.ErrNotFound) && !(cut && err != nil) {
				t.Errorf("store: %v; want ErrCorrupt", err)
			}
			if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
				t.Errorf("fetch left %v, %v", left, err)
			}
			nothing(t, local)
			runtime.ReadMemStats(&after)
			if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 256 {
				t.Errorf("%d MiB allocated", n)
			}
		})
	}
	s, err := Open(store(t), at(t, "oci://"+addr+"/x"), o)
	if err != nil {
		t.Fatal(err)
	}
	all, err := s.List(t.Context(), "team/web")
	if err != nil || !slices.ContainsFunc(all, func(i artifact.Image) bool { return i.Version == "good" }) {
		t.Errorf("a list among them: %v, %v", all, err)
	}
}
