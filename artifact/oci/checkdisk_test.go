package oci_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
)

// A fetched disk is what its map says, until any byte of it changes: of a chunk,
// of a hole, or of its size.
func TestCheckDisk(t *testing.T) {
	dir := t.TempDir()
	s, err := oci.Open(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	const size = 1<<20 + 1000 // the last chunk is not whole
	raw := make([]byte, size)
	copy(raw, bytes.Repeat([]byte("rebake "), 20000)) // then a hole
	copy(raw[size-500:], bytes.Repeat([]byte{7}, 500))
	from, path := filepath.Join(dir, "from"), filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(from, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := artifact.FileDisk(from)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx := context.Background()
	content, _, err := s.Write(ctx, d, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Fetch(ctx, content, path, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.CheckDisk(ctx, content, path); err != nil {
		t.Fatal("as it was fetched:", err)
	}
	for _, at := range []int64{0, 70000, 139999, 500000, size - 2000, size - 1} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{raw[at] ^ 1}, at); err != nil {
			t.Fatal(err)
		}
		if err := s.CheckDisk(ctx, content, path); !errors.Is(err, artifact.ErrCorrupt) {
			t.Errorf("byte %d changed: %v", at, err)
		}
		if _, err := f.WriteAt(raw[at:at+1], at); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if err := s.CheckDisk(ctx, content, path); err != nil {
			t.Fatalf("byte %d changed back: %v", at, err)
		}
	}
	for _, n := range []int64{size - 1, size + 1} {
		if err := os.Truncate(path, n); err != nil {
			t.Fatal(err)
		}
		if err := s.CheckDisk(ctx, content, path); !errors.Is(err, artifact.ErrCorrupt) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if err := s.CheckDisk(ctx, "sha256:"+artifact.Digest(bytes.Repeat([]byte("0"), 64)), path); err == nil {
		t.Error("another content")
	}
}
