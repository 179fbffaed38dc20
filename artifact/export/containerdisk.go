package export

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
)

// kubevirtUser owns the disk in a containerdisk: KubeVirt reads it as this user
// (its user guide, "containerDisk").
const kubevirtUser = 107

// containerDisk packs a qcow2 as KubeVirt takes it: an OCI image, here a layout in
// a tar, whose one layer holds /disk/NAME.qcow2. The same disk and the same image
// give the same bytes. dir is for files on the way.
func containerDisk(ctx context.Context, img artifact.Image, disk, dir, out string) error {
	layerPath := filepath.Join(dir, "layer.tar.gz")
	layer, diffID, err := diskLayer(ctx, img, disk, layerPath)
	if err != nil {
		return err
	}
	created := img.Created.UTC()
	config, err := json.Marshal(v1.Image{Created: &created, Platform: v1.Platform{Architecture: img.Arch, OS: "linux"},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}}})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: descriptor(v1.MediaTypeImageConfig, config), Layers: []v1.Descriptor{layer}})
	if err != nil {
		return err
	}
	named := descriptor(v1.MediaTypeImageManifest, manifest)
	named.Annotations = map[string]string{v1.AnnotationRefName: img.Name + ":" + img.Version}
	index, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{named}})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	blob := func(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }
	for _, e := range []struct {
		name string
		data []byte
	}{
		{v1.ImageLayoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {v1.ImageIndexFile, index},
		{blob(named.Digest), manifest}, {blob(digest.FromBytes(config)), config},
	} {
		if err := w.WriteHeader(&tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.data)), ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
		if _, err := w.Write(e.data); err != nil {
			return err
		}
	}
	if err := addFile(ctx, w, &tar.Header{Name: blob(layer.Digest), Mode: 0o644}, layerPath); err != nil {
		return err
	}
	return errors.Join(w.Close(), f.Close())
}

// diskLayer writes the layer and returns its descriptor and the digest of what it
// holds when decompressed.
func diskLayer(ctx context.Context, img artifact.Image, disk, out string) (v1.Descriptor, digest.Digest, error) {
	f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return v1.Descriptor{}, "", err
	}
	defer f.Close()
	packed, plain := sha256.New(), sha256.New()
	zip := gzip.NewWriter(io.MultiWriter(f, packed))
	w := tar.NewWriter(io.MultiWriter(zip, plain))
	owned := tar.Header{Uid: kubevirtUser, Gid: kubevirtUser, ModTime: time.Unix(0, 0)}
	folder, file := owned, owned
	folder.Name, folder.Typeflag, folder.Mode = "disk/", tar.TypeDir, 0o555
	file.Name, file.Mode = "disk/"+path.Base(img.Name)+".qcow2", 0o440
	if err := w.WriteHeader(&folder); err != nil {
		return v1.Descriptor{}, "", err
	}
	if err := addFile(ctx, w, &file, disk); err != nil {
		return v1.Descriptor{}, "", err
	}
	if err := errors.Join(w.Close(), zip.Close()); err != nil {
		return v1.Descriptor{}, "", err
	}
	st, err := f.Stat()
	if err := errors.Join(err, f.Close()); err != nil {
		return v1.Descriptor{}, "", err
	}
	return v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: digest.NewDigest(digest.SHA256, packed), Size: st.Size()},
		digest.NewDigest(digest.SHA256, plain), nil
}

func descriptor(mediaType string, b []byte) v1.Descriptor {
	return v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// addFile adds a file to a tar.
func addFile(ctx context.Context, w *tar.Writer, h *tar.Header, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	h.Size, h.Typeflag = st.Size(), tar.TypeReg
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.Copy(w, reader{ctx, f}); err != nil {
		return fmt.Errorf("pack %s: %w", h.Name, err)
	}
	return nil
}

// reader ends with its context.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}
