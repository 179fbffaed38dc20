package lifecycle_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/internal/lifecycle"
	"github.com/rebake/rebake/test/fake"
)

var began = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// each runs a test on the store in memory and on the layout on disk.
func each(t *testing.T, f func(t *testing.T, s lifecycle.Store)) {
	t.Run("fake", func(t *testing.T) { f(t, new(fake.Store)) })
	t.Run("oci", func(t *testing.T) {
		s, err := oci.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		f(t, s)
	})
}

// bake registers name:version, made from base if there is one.
func bake(t *testing.T, s artifact.Store, name, version string, base *artifact.Image, from string) artifact.Image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, []byte(name+version), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := artifact.FileDisk(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	content, _, err := s.Write(t.Context(), d, nil)
	if err != nil {
		t.Fatal(err)
	}
	img := artifact.Image{Name: name, Version: version, Content: content, Created: began}
	if base != nil {
		img.Lineage = artifact.Lineage{Parent: base.Name + ":" + base.Version, ParentDigest: base.Digest, From: from,
			Ancestors: append([]artifact.Ancestor{{Ref: base.Lineage.Parent, Digest: base.Lineage.ParentDigest}}, base.Lineage.Ancestors...)}
	}
	if img, err = s.Register(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	return img
}

// at is an author whose clock stands.
func at(by string, after time.Duration) lifecycle.Author {
	return lifecycle.Author{By: by, Now: func() time.Time { return began.Add(after) }}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
