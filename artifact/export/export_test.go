package export_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/export"
	"github.com/rebake/rebake/test/fake"
)

// image is one in a store, with a hole in its disk.
func image(t *testing.T) (artifact.Store, artifact.Image, []byte) {
	data := make([]byte, 5<<20)
	copy(data, bytes.Repeat([]byte("boot"), 1000))
	copy(data[4<<20:], bytes.Repeat([]byte("data"), 1000))
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := artifact.FileDisk(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s := &fake.Store{}
	content, _, err := s.Write(t.Context(), d, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s, artifact.Image{Content: content, DiskSize: d.Size()}, data
}

func TestDisk(t *testing.T) {
	s, img, data := image(t)
	for _, format := range []string{"raw", "qcow2", "vmdk", "vhd"} {
		t.Run(format, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "out")
			// What a killed export left, and a file to be replaced.
			left := filepath.Join(dir, ".out.rebake-export")
			if err := errors.Join(os.Mkdir(left, 0o700), os.WriteFile(left+"/disk.raw", data, 0o600), os.WriteFile(path, []byte("old"), 0o600)); err != nil {
				t.Fatal(err)
			}
			if format == "raw" {
				if err := os.RemoveAll(left); err != nil {
					t.Fatal(err)
				}
			}
			var done int64
			if err := export.Disk(t.Context(), s, img, format, path, func(d, _ int64) { done = d }); err != nil {
				t.Fatal(err)
			}
			only(t, dir, 1)
			var info struct {
				Format  string `json:"format"`
				Size    int64  `json:"virtual-size"`
				Backing string `json:"backing-filename"`
			}
			out, err := exec.Command("qemu-img", "info", "--output=json", path).Output()
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(out, &info); err != nil {
				t.Fatal(err)
			}
			want := map[string]string{"vhd": "vpc"}[format]
			if want == "" {
				want = format
			}
			if info.Format != want || info.Size != img.DiskSize || info.Backing != "" || done != img.DiskSize {
				t.Errorf("%+v, progress ended at %d", info, done)
			}
			raw := filepath.Join(dir, "raw")
			if msg, err := exec.Command("qemu-img", "convert", "-O", "raw", path, raw).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, msg)
			}
			if got, err := os.ReadFile(raw); err != nil || !bytes.Equal(got, data) {
				t.Errorf("the exported disk has other bytes, %v", err)
			}
		})
	}
}

func TestDiskLeavesNothing(t *testing.T) {
	s, img, _ := image(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx    context.Context
		img    artifact.Image
		format string
		path   string
	}{
		"unknown format": {t.Context(), img, "ova", "out"},
		"ended context":  {ended, img, "qcow2", "out"},
		"not stored":     {t.Context(), artifact.Image{Content: "sha256:1"}, "qcow2", "out"},
		"to a directory": {t.Context(), img, "qcow2", "full"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.MkdirAll(filepath.Join(dir, "full", "x"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := export.Disk(c.ctx, s, c.img, c.format, filepath.Join(dir, c.path), nil); err == nil {
				t.Error("it was exported")
			}
			only(t, dir, 1)
		})
	}
}

func only(t *testing.T, dir string, n int) {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil || len(es) != n {
		t.Errorf("%s holds %v, %v", dir, es, err)
	}
}
