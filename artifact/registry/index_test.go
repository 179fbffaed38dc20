package registry

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"oras.land/oras-go/v2/content"
	ref "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
)

// bakeFor registers an image of one platform.
func bakeFor(t *testing.T, s *oci.Store, arch, builder string, seed uint64) artifact.Image {
	t.Helper()
	img := bake(t, s, "base", noise(seed, 200<<10)) // its disk
	img, err := s.Register(t.Context(), artifact.Image{Name: "team/web", Version: "1.4.0", Content: img.Content, Arch: arch, Lineage: artifact.Lineage{Builder: builder}})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestPlatforms(t *testing.T) {
	for name, start := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := start(t)
			place, version := at(t, "oci://"+addr+"/x"), at(t, "oci://"+addr+"/x/team/web:1.4.0")
			stores := map[string]*oci.Store{}
			images := map[string]artifact.Image{}
			for i, p := range []string{"amd64 qemu", "arm64 qemu", "riscv64 qemu"} {
				arch, builder, _ := strings.Cut(p, " ")
				stores[arch] = store(t)
				images[arch] = bakeFor(t, stores[arch], arch, builder, uint64(40+i))
				attach(t, stores[arch], images[arch], 5, `"of `+arch+`"`)
			}
			push := func(arch string) error {
				img := images[arch]
				img.Tags = []string{"stable"}
				_, err := Push(t.Context(), stores[arch], img, place, patient)
				return err
			}
			if err := push("amd64"); err != nil {
				t.Fatal(err)
			}
			c, err := newClient(patient)
			if err != nil {
				t.Fatal(err)
			}
			if d, _, err := c.head(t.Context(), c.repo(version), "1.4.0"); err != nil || artifact.Digest(d.Digest) != images["amd64"].Digest {
				t.Errorf("one image alone: the tag is %s, %v; want the image's own digest", d.Digest, err)
			}
			var wg sync.WaitGroup
			for _, arch := range []string{"arm64", "riscv64"} {
				wg.Go(func() {
					if err := push(arch); err != nil {
						t.Errorf("%s: %v", arch, err)
					}
				})
			}
			wg.Wait()
			pulls := func(from Address) {
				t.Helper()
				for arch, img := range images {
					to := store(t)
					got, err := Pull(t.Context(), from, to, arch, patient)
					if err != nil || got.Image.Digest != img.Digest {
						t.Errorf("%s: %s, %v; want %s", arch, got.Image.Digest, err, img.Digest)
						continue
					}
					if b := bodies(t, to, img.Digest); !slices.Equal(b, []string{`"of ` + arch + `"`}) {
						t.Errorf("%s: attached %q", arch, b)
					}
				}
			}
			pulls(version)
			pulls(at(t, "oci://"+addr+"/x/team/web:stable"))
			if _, err := Pull(t.Context(), version, store(t), "s390x", patient); err == nil || !strings.Contains(err.Error(), "arm64/qemu @"+string(images["arm64"].Digest)) {
				t.Errorf("an architecture that is not there: %v", err)
			}
			// Again changes nothing; another image of a platform is refused.
			tag := func() string {
				d, _, err := c.head(t.Context(), c.repo(version), "1.4.0")
				if err != nil {
					t.Fatal(err)
				}
				return string(d.Digest)
			}
			was := tag()
			if err := push("arm64"); err != nil || tag() != was {
				t.Errorf("pushed again: %v, the index changed: %t", err, tag() != was)
			}
			other := store(t)
			img := bakeFor(t, other, "arm64", "qemu", 49)
			if _, err := Push(t.Context(), other, img, place, patient); !errors.Is(err, artifact.ErrExists) || tag() != was {
				t.Errorf("another image of a platform: %v", err)
			}
			asOthersRead(t, addr, images)
			res, err := Copy(t.Context(), version, at(t, "oci://"+addr+"/prod"), patient)
			if err != nil || res.Attached != 3 {
				t.Fatalf("copy: %+v, %v", res, err)
			}
			pulls(at(t, "oci://"+addr+"/prod/team/web:1.4.0"))
			storeOfPlatforms(t, addr, images)
		})
	}
}

// asOthersRead holds the index to what podman and oras look for.
func asOthersRead(t *testing.T, addr string, images map[string]artifact.Image) {
	t.Helper()
	r := &remote.Repository{Reference: ref.Reference{Registry: addr, Repository: "x/team/web"}, PlainHTTP: true}
	d, err := r.Resolve(t.Context(), "1.4.0")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := content.FetchAll(t.Context(), r, d)
	if err != nil {
		t.Fatal(err)
	}
	var idx v1.Index
	if err := json.Unmarshal(raw, &idx); err != nil || len(idx.Manifests) != 3 {
		t.Fatalf("%s, %v", raw, err)
	}
	for _, m := range idx.Manifests {
		if m.Platform == nil || m.Platform.OS != "linux" || m.Annotations["disktype"] != "qemu" || artifact.Digest(m.Digest) != images[m.Platform.Architecture].Digest {
			t.Errorf("entry %+v", m)
		}
	}
}

func storeOfPlatforms(t *testing.T, addr string, images map[string]artifact.Image) {
	t.Helper()
	for _, arch := range []string{"arm64", "amd64"} {
		s, err := Open(store(t), at(t, "oci://"+addr+"/x"), patient)
		if err != nil {
			t.Fatal(err)
		}
		s.arch = arch
		for _, tag := range []string{"1.4.0", "stable"} {
			img, err := s.Resolve(t.Context(), artifact.Ref{Name: "team/web", Tag: tag})
			if err != nil || img.Digest != images[arch].Digest || !slices.Equal(img.Tags, []string{"stable"}) {
				t.Errorf("%s on %s is %s with tags %v, %v", tag, arch, img.Digest, img.Tags, err)
			}
		}
		if img, err := s.Resolve(t.Context(), artifact.Ref{Name: "team/web", Digest: images["riscv64"].Digest}); err != nil || img.Arch != "riscv64" {
			t.Errorf("by digest: %s, %v", img.Arch, err)
		}
		if all, err := s.List(t.Context(), ""); err != nil || len(all) != 1 || all[0].Digest != images[arch].Digest {
			t.Errorf("list on %s: %v, %v", arch, all, err)
		}
	}
	// Removing one leaves the others, with the tags that they share.
	local := store(t)
	s, err := Open(local, at(t, "oci://"+addr+"/x"), patient)
	if err != nil {
		t.Fatal(err)
	}
	for i, arch := range []string{"riscv64", "amd64", "arm64"} {
		if err := s.Remove(t.Context(), artifact.Ref{Name: "team/web", Digest: images[arch].Digest}); err != nil {
			t.Fatal(err)
		}
		_, err := s.Resolve(t.Context(), artifact.Ref{Name: "team/web", Digest: images[arch].Digest})
		if !errors.Is(err, artifact.ErrNotFound) {
			t.Errorf("%s was removed: %v", arch, err)
		}
		s.arch = "arm64"
		if img, err := s.Resolve(t.Context(), artifact.Ref{Name: "team/web", Tag: "stable"}); i < 2 && (err != nil || img.Digest != images["arm64"].Digest) || i == 2 && !errors.Is(err, artifact.ErrNotFound) {
			t.Errorf("after %d were removed stable is %s, %v", i+1, img.Digest, err)
		}
	}
	if tags, err := s.c.tags(t.Context(), s.repo("team/web")); err != nil || len(tags) != 0 {
		t.Errorf("left in the registry: %v, %v", tags, err)
	}
}
