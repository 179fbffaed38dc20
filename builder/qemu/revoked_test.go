package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/test/fake"
)

// An image of the store is asked about before it is a base: when the build is
// planned, and again only if the reference names another one by then.
func TestAnImageIsAskedAboutBeforeItIsABase(t *testing.T) {
	s := new(fake.Store)
	register := func(version string) artifact.Image {
		t.Helper()
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, []byte(version), 0o600); err != nil {
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
		img, err := s.Register(t.Context(), artifact.Image{Name: "base", Version: version, Content: content})
		if err == nil {
			err = s.Tag(t.Context(), "base", "stable", img.Digest)
		}
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	register("1.0.0")
	var asked []string
	cfg := Config{}
	cfg.From.Image = "base:stable"
	b, err := New(cfg, Deps{State: state.Dir(t.TempDir()), Store: s, Use: func(_ context.Context, img artifact.Image) error {
		if asked = append(asked, img.Version); img.Version == "2.0.0" {
			return errors.New("is revoked")
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if b.From() != "base:stable" || b.Parent() != "base" {
		t.Errorf("from %q, parent %q", b.From(), b.Parent())
	}
	var in artifact.Inputs
	src := b.src.(*stored)
	if err := src.key(t.Context(), &in); err != nil {
		t.Fatal(err)
	}
	if got, err := src.prepare(t.Context()); err != nil || got.Ref != "base:1.0.0" {
		t.Errorf("%+v, %v", got, err)
	}
	register("2.0.0")
	for range 2 {
		if _, err := src.prepare(t.Context()); err == nil || err.Error() != "from.image: is revoked" {
			t.Errorf("the channel moved to a revoked image meanwhile: %v", err)
		}
	}
	if got := strings.Join(asked, " "); got != "1.0.0 2.0.0 2.0.0" {
		t.Errorf("asked about %s", got)
	}
}
