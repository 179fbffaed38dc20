// Package disks makes images of bytes, for tests of what is done with images.
package disks

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rebake/rebake/artifact"
)

// Bake registers img with a disk of these bytes.
func Bake(t testing.TB, s artifact.Store, img artifact.Image, data []byte) artifact.Image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := artifact.FileDisk(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if img.Content, _, err = s.Write(t.Context(), d, nil); err != nil {
		t.Fatal(err)
	}
	if img, err = s.Register(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	return img
}
