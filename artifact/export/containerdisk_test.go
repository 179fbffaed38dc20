package export_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact/export"
)

// TestContainerDisk reads the image as a registry client does: each blob by its digest.
func TestContainerDisk(t *testing.T) {
	s, img, data := image(t)
	img.Name, img.Version, img.Arch = "shop/web", "1.0.0", "amd64"
	dir := t.TempDir()
	var outs [][]byte
	for _, name := range []string{"a.tar", "b.tar"} {
		path := filepath.Join(dir, name)
		if err := export.Disk(t.Context(), s, img, "containerdisk", path, nil); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		outs = append(outs, raw)
	}
	only(t, dir, 2)
	if !bytes.Equal(outs[0], outs[1]) {
		t.Error("the same image gave two different files")
	}
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(outs[0])); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(d v1.Descriptor) []byte {
		b := files["blobs/sha256/"+d.Digest.Encoded()]
		if digest.FromBytes(b) != d.Digest || int64(len(b)) != d.Size {
			t.Fatalf("blob %s is not what its descriptor says", d.Digest)
		}
		return b
	}
	var index v1.Index
	var manifest v1.Manifest
	var config v1.Image
	if err := json.Unmarshal(files["index.json"], &index); err != nil || len(index.Manifests) != 1 {
		t.Fatalf("%v %s", err, files["index.json"])
	}
	if err := json.Unmarshal(blob(index.Manifests[0]), &manifest); err != nil || len(manifest.Layers) != 1 {
		t.Fatal(err, manifest)
	}
	if err := json.Unmarshal(blob(manifest.Config), &config); err != nil || config.Architecture != "amd64" {
		t.Fatal(err, config)
	}
	zip, err := gzip.NewReader(bytes.NewReader(blob(manifest.Layers[0])))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(zip)
	if err != nil || len(config.RootFS.DiffIDs) != 1 || digest.FromBytes(plain) != config.RootFS.DiffIDs[0] {
		t.Fatalf("the layer is not its diff id: %v", err)
	}
	r := tar.NewReader(bytes.NewReader(plain))
	if h, err := r.Next(); err != nil || h.Name != "disk/" {
		t.Fatalf("%v %v", h, err)
	}
	h, err := r.Next()
	if err != nil || h.Name != "disk/web.qcow2" || h.Uid != 107 || h.Gid != 107 || h.Mode != 0o440 {
		t.Fatalf("%+v %v", h, err)
	}
	qcow2, raw := filepath.Join(dir, "web.qcow2"), filepath.Join(dir, "web.raw")
	disk, err := io.ReadAll(r)
	if err := errors.Join(err, os.WriteFile(qcow2, disk, 0o600)); err != nil {
		t.Fatal(err)
	}
	if msg, err := exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", qcow2, raw).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, msg)
	}
	if got, err := os.ReadFile(raw); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the disk in the image has other bytes, %v", err)
	}
}
