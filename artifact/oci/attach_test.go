package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/test/conformance"
	"oras.land/oras-go/v2/content"
	orasoci "oras.land/oras-go/v2/content/oci"
)

func TestStoreAttach(t *testing.T) {
	conformance.StoreAttach(t, func(t *testing.T) (artifact.Store, func([]byte)) {
		s := openTemp(t)
		return s, func(body []byte) { overwrite(t, s, artifact.Digest(describe("", body).Digest), flip(body)) }
	})
}

func flip(b []byte) []byte {
	b = bytes.Clone(b)
	b[0] ^= 1
	return b
}

// overwrite puts other bytes where a blob is.
func overwrite(t *testing.T, s *Store, d artifact.Digest, b []byte) {
	t.Helper()
	path, err := s.blobPath(d)
	if err == nil {
		err = os.Remove(path)
	}
	if err == nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func said(second int64) artifact.Attachment {
	return artifact.Attachment{Kind: "application/vnd.test.v1+json", Media: "application/json", Created: time.Unix(second, 0).UTC(), Notes: map[string]string{"who": "ann"}}
}

// Others read the layout with oras-go: they find attachments as referrers.
func TestOrasFindsAttachments(t *testing.T) {
	s := openTemp(t)
	img := bake(t, s, "1", diskOf(noise(1, 3*chunkSize)))
	a, err := s.Attach(t.Context(), img.Digest, said(1), []byte(`{"a":1}`))
	if err != nil {
		t.Fatal(err)
	}
	o, err := orasoci.NewFromFS(t.Context(), os.DirFS(s.dir))
	if err != nil {
		t.Fatal(err)
	}
	subject, err := o.Resolve(t.Context(), string(img.Digest))
	if err != nil {
		t.Fatal(err)
	}
	found, err := o.Predecessors(t.Context(), subject)
	if err != nil || len(found) != 1 || artifact.Digest(found[0].Digest) != a.Digest {
		t.Fatalf("referrers: %v, %v; want %s", found, err, a.Digest)
	}
	raw, err := content.FetchAll(t.Context(), o, found[0])
	if err != nil {
		t.Fatal(err)
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	if m.Subject.Digest != subject.Digest || m.Subject.Size != subject.Size || m.ArtifactType != a.Kind || m.Config.MediaType != v1.MediaTypeEmptyJSON || m.Annotations["who"] != "ann" {
		t.Errorf("the manifest is %s", raw)
	}
	if _, err := content.FetchAll(t.Context(), o, m.Config); err != nil {
		t.Errorf("the empty config: %v", err)
	}
}

// What oras or cosign put beside an image with a subject is listed, and goes with it.
func TestForeignAttachments(t *testing.T) {
	s := openTemp(t)
	img := bake(t, s, "1", diskOf(noise(1, 3*chunkSize)))
	o, err := orasoci.New(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	body := []byte("signed")
	layer := content.NewDescriptorFromBytes("text/plain", body)
	if err := o.Push(t.Context(), layer, bytes.NewReader(body)); err != nil {
		t.Fatal(err)
	}
	if err := o.Push(t.Context(), v1.DescriptorEmptyJSON, strings.NewReader("{}")); err != nil {
		t.Fatal(err)
	}
	size, err := s.blobSize(img.Digest)
	if err != nil {
		t.Fatal(err)
	}
	subject := descriptor(v1.MediaTypeImageManifest, img.Digest, size)
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, ArtifactType: "application/x-sig", Config: v1.DescriptorEmptyJSON, Layers: []v1.Descriptor{layer}, Subject: &subject}
	m.SchemaVersion = 2
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Push(t.Context(), content.NewDescriptorFromBytes(v1.MediaTypeImageManifest, raw), bytes.NewReader(raw)); err != nil {
		t.Fatal(err)
	}
	got, err := s.Attached(t.Context(), img.Digest, "")
	if err != nil || len(got) != 1 || got[0].Kind != "application/x-sig" {
		t.Fatalf("attached: %v, %v", got, err)
	}
	if b, err := s.ReadAttachment(t.Context(), got[0]); err != nil || string(b) != "signed" {
		t.Errorf("read %q, %v", b, err)
	}
	if err := s.Remove(t.Context(), artifact.Ref{Name: "web", Tag: "1"}); err != nil {
		t.Fatal(err)
	}
	if idx, err := s.index(); err != nil || len(idx.Manifests) != 0 {
		t.Errorf("left in the index: %v, %v", idx.Manifests, err)
	}
}

// A layer that says it is larger, or has other bytes, is not read into memory.
func TestHostileAttachments(t *testing.T) {
	for name, c := range map[string]struct {
		size int64
		body []byte
	}{
		"says it is huge":          {artifact.MaxAttachment + 1, []byte("small")},
		"is huge":                  {5, bytes.Repeat([]byte("x"), 1<<20)},
		"is smaller than it says":  {10, []byte("small")},
		"has a size below nothing": {-1, []byte("small")},
	} {
		t.Run(name, func(t *testing.T) {
			s := openTemp(t)
			img := bake(t, s, "1", diskOf(noise(1, chunkSize)))
			size, err := s.blobSize(img.Digest)
			if err != nil {
				t.Fatal(err)
			}
			subject := descriptor(v1.MediaTypeImageManifest, img.Digest, size)
			layer, _, err := s.putBlob("text/plain", c.body)
			if err != nil {
				t.Fatal(err)
			}
			layer.Size = c.size
			raw, err := json.Marshal(v1.Manifest{ArtifactType: "application/x", Config: v1.DescriptorEmptyJSON, Layers: []v1.Descriptor{layer}, Subject: &subject})
			if err != nil {
				t.Fatal(err)
			}
			desc, _, err := s.putBlob(v1.MediaTypeImageManifest, raw)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := s.ReadAttachment(t.Context(), artifact.Attachment{Digest: artifact.Digest(desc.Digest), Size: 5}); !errors.Is(err, artifact.ErrCorrupt) {
				t.Errorf("read %d bytes, %v; want ErrCorrupt", len(b), err)
			}
		})
	}
}

func attachChild(args []string) error {
	s, err := Open(args[0])
	if err != nil {
		return err
	}
	for i := range 5 {
		if _, err := s.Attach(context.Background(), artifact.Digest(args[1]), said(1), fmt.Appendf(nil, "%s.%d", args[2], i)); err != nil {
			return err
		}
	}
	return nil
}

func TestSixteenProcessesAttach(t *testing.T) {
	s := openTemp(t)
	img := bake(t, s, "1", diskOf(noise(1, chunkSize)))
	var wg sync.WaitGroup
	for n := range 16 {
		wg.Go(func() {
			if out, err := child(t, "attach", s.dir, string(img.Digest), fmt.Sprint(n)).CombinedOutput(); err != nil {
				t.Errorf("process %d: %v: %s", n, err, out)
			}
		})
	}
	wg.Wait()
	got, err := s.Attached(t.Context(), img.Digest, "")
	if err != nil || len(got) != 16*5 {
		t.Fatalf("%d are attached, %v; want %d", len(got), err, 16*5)
	}
	seen := map[string]bool{}
	for _, a := range got {
		b, err := s.ReadAttachment(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		seen[string(b)] = true
	}
	if len(seen) != 16*5 {
		t.Errorf("%d different ones", len(seen))
	}
	noTemp(t, s)
}
