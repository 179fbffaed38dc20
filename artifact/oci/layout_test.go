package oci

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"
	orasoci "oras.land/oras-go/v2/content/oci"
)

// The layout is one that another program reads, and can copy whole.
func TestOrasReadsTheLayout(t *testing.T) {
	s := openTemp(t)
	img := bake(t, s, "1.0", diskOf(noise(1, 20*chunkSize)))
	if err := s.Tag(t.Context(), "web", "stable", img.Digest); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	theirs, err := orasoci.NewFromFS(ctx, os.DirFS(s.dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"web:1.0", "web:stable"} {
		desc, err := theirs.Resolve(ctx, ref)
		if err != nil {
			t.Fatal(err)
		}
		if artifact.Digest(desc.Digest) != img.Digest || desc.ArtifactType != typeArtifact {
			t.Errorf("%s is %+v", ref, desc)
		}
	}
	to := memory.New()
	desc, err := oras.Copy(ctx, theirs, "web:stable", to, "x", oras.DefaultCopyOptions)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := content.FetchAll(ctx, to, desc)
	if err != nil {
		t.Fatal(err)
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	types := map[string]int{}
	for _, l := range m.Layers {
		types[l.MediaType]++
		r, err := to.Fetch(ctx, l)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, r)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err != nil || n != l.Size {
			t.Errorf("layer %s has %d bytes, %v", l.Digest, n, err)
		}
	}
	if types[typeMap] != 1 || types[typeLeaf] != 1 || types[typePack] != 1 || m.Config.MediaType != typeConfig || m.ArtifactType != typeArtifact {
		t.Errorf("layers %v, config %s", types, m.Config.MediaType)
	}
}

// Nothing of a store can be read by other users.
func TestModes(t *testing.T) {
	s := openTemp(t)
	bake(t, s, "1.0", diskOf(noise(1, chunkSize)))
	if err := walk(s.dir, func(path string, mode os.FileMode) {
		if mode.Perm()&0o077 != 0 && path != s.dir { // the directory itself is the test's
			t.Errorf("%s has mode %s", path, mode)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func walk(dir string, f func(string, os.FileMode)) error {
	es, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range es {
		st, err := e.Info()
		if err != nil {
			return err
		}
		path := strings.Join([]string{dir, e.Name()}, "/")
		f(path, st.Mode())
		if e.IsDir() {
			if err := walk(path, f); err != nil {
				return err
			}
		}
	}
	return nil
}
