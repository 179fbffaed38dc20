package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"oras.land/oras-go/v2/content"
	ref "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
)

const noteKind = "application/vnd.example.note.v1+json"

// kinds are the registries that everything is to work with.
func kinds() map[string]func(*testing.T) string {
	inProcess := func(referrers bool) func(t *testing.T) string {
		return func(t *testing.T) string {
			quiet := log.New(io.Discard, "", 0)
			return httptestServer(t, ggcr.New(ggcr.Logger(quiet), ggcr.WithReferrersSupport(referrers)).ServeHTTP)
		}
	}
	return map[string]func(*testing.T) string{"docker-registry": server, "with referrers": inProcess(true), "without referrers": inProcess(false)}
}

func attach(t *testing.T, s *oci.Store, to artifact.Image, second int64, body string) artifact.Attachment {
	t.Helper()
	a, err := s.Attach(t.Context(), to.Digest, artifact.Attachment{Kind: noteKind, Media: "application/json", Created: time.Unix(second, 0), Notes: map[string]string{"n": "x"}}, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// bodies are of all that is attached.
func bodies(t *testing.T, s *oci.Store, to artifact.Digest) []string {
	t.Helper()
	all, err := s.Attached(t.Context(), to, "")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, a := range all {
		b, err := s.ReadAttachment(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(b))
	}
	return out
}

func TestAttachmentsTravel(t *testing.T) {
	for name, start := range kinds() {
		t.Run(name, func(t *testing.T) {
			addr, one, two := start(t), store(t), store(t)
			img := bake(t, one, "1", noise(20, 1<<20))
			attach(t, one, img, 10, `"first"`)
			attach(t, one, img, 20, `"second"`)
			real, err := url.Parse("http://" + addr)
			if err != nil {
				t.Fatal(err)
			}
			c, err := newClient(quick)
			if err != nil {
				t.Fatal(err)
			}
			place := at(t, "oci://"+addr+"/x/team/web")
			seen := -1 // documents that are there when the version is written
			via := fault(t, addr, func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodPut && path.Base(r.URL.Path) == "1" {
					list, _, err := c.referrers(r.Context(), place, img.Digest)
					if err != nil {
						t.Error(err)
					}
					seen = len(list)
				}
				return false
			})
			push := func(attached int) {
				t.Helper()
				res, err := Push(t.Context(), one, img, at(t, "oci://"+via+"/x"), quick)
				if err != nil || res.Attached != attached {
					t.Fatalf("%d were sent, %v; want %d", res.Attached, err, attached)
				}
			}
			pull := func(from string, to *oci.Store, attached int, want ...string) {
				t.Helper()
				res, err := Pull(t.Context(), at(t, "oci://"+from), to, "", quick)
				if err != nil || res.Attached != attached {
					t.Fatalf("%d came, %v; want %d", res.Attached, err, attached)
				}
				if got := bodies(t, to, img.Digest); !slices.Equal(got, want) {
					t.Fatalf("attached are %q, want %q", got, want)
				}
			}
			push(2)
			if seen != 2 {
				t.Errorf("%d of 2 documents were there before the version was", seen)
			}
			pull(addr+"/x/team/web:1", two, 2, `"first"`, `"second"`)
			push(0)
			pull(addr+"/x/team/web:1", two, 0, `"first"`, `"second"`)
			// What is said later goes to an image that is there already, and comes from there.
			attach(t, one, img, 30, `"revoked"`)
			push(1)
			pull(addr+"/x/team/web@"+string(img.Digest), two, 1, `"first"`, `"second"`, `"revoked"`)
			for _, to := range []string{addr + "/prod", kinds()["with referrers"](t) + "/prod", kinds()["without referrers"](t) + "/prod"} {
				if res, err := Copy(t.Context(), at(t, "oci://"+addr+"/x/team/web:1"), at(t, "oci://"+to), quick); err != nil || res.Attached != 3 {
					t.Fatalf("copy: %d, %v", res.Attached, err)
				}
				pull(to+"/team/web:1", store(t), 3, `"first"`, `"second"`, `"revoked"`)
			}
			orasReads(t, real.Host, "x/team/web", img)
		})
	}
}

// orasReads has oras-go find and read what is attached, as oras and cosign do.
func orasReads(t *testing.T, host, repo string, img artifact.Image) {
	t.Helper()
	r := &remote.Repository{Reference: ref.Reference{Registry: host, Repository: repo}, PlainHTTP: true}
	var found []string
	err := r.Referrers(t.Context(), v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.Digest(img.Digest)}, "", func(list []v1.Descriptor) error {
		for _, d := range list {
			raw, err := content.FetchAll(t.Context(), r, d)
			if err != nil {
				return err
			}
			var m v1.Manifest
			if err := json.Unmarshal(raw, &m); err != nil {
				return err
			}
			body, err := content.FetchAll(t.Context(), r, m.Layers[0])
			if err != nil {
				return err
			}
			found = append(found, m.ArtifactType+" "+string(body))
		}
		return nil
	})
	slices.Sort(found)
	if want := []string{noteKind + ` "first"`, noteKind + ` "revoked"`, noteKind + ` "second"`}; err != nil || !slices.Equal(found, want) {
		t.Errorf("oras finds %q, %v; want %q", found, err, want)
	}
}

func TestSixteenAttachAtOnce(t *testing.T) {
	for name, start := range kinds() {
		t.Run(name, func(t *testing.T) {
			addr, first := start(t), store(t)
			img := bake(t, first, "1", noise(21, 100<<10))
			to := at(t, "oci://"+addr+"/x")
			if _, err := Push(t.Context(), first, img, to, patient); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for i := range 16 {
				s := store(t)
				if _, err := Pull(t.Context(), at(t, "oci://"+addr+"/x/team/web:1"), s, "", patient); err != nil {
					t.Fatal(err)
				}
				attach(t, s, img, int64(i+1), fmt.Sprint(i))
				wg.Go(func() {
					if res, err := Push(t.Context(), s, img, to, patient); err != nil || res.Attached != 1 {
						t.Errorf("%d were sent, %v", res.Attached, err)
					}
				})
			}
			wg.Wait()
			if res, err := Pull(t.Context(), at(t, "oci://"+addr+"/x/team/web:1"), first, "", patient); err != nil || res.Attached != 16 {
				t.Errorf("%d of 16 came, %v", res.Attached, err)
			}
		})
	}
}

// rawAttach pushes an attachment that no rebake would, and returns its descriptor.
func rawAttach(t *testing.T, addr string, m v1.Manifest, body []byte) v1.Descriptor {
	t.Helper()
	r := &remote.Repository{Reference: ref.Reference{Registry: addr, Repository: "x/team/web"}, PlainHTTP: true}
	for _, b := range [][]byte{[]byte("{}"), body} {
		if err := r.Blobs().Push(t.Context(), content.NewDescriptorFromBytes("", b), bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	}
	m.Versioned, m.MediaType, m.ArtifactType, m.Config = specs.Versioned{SchemaVersion: 2}, v1.MediaTypeImageManifest, noteKind, v1.DescriptorEmptyJSON
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	d := content.NewDescriptorFromBytes(v1.MediaTypeImageManifest, raw)
	if err := r.Manifests().Push(t.Context(), d, bytes.NewReader(raw)); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestHostileAttachments(t *testing.T) {
	addr, from := kinds()["with referrers"](t), store(t)
	img := bake(t, from, "1", noise(22, 100<<10))
	attach(t, from, img, 1, `"well"`)
	if _, err := Push(t.Context(), from, img, at(t, "oci://"+addr+"/x"), quick); err != nil {
		t.Fatal(err)
	}
	subject := &v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.Digest(img.Digest), Size: 1}
	body := []byte("hostile body")
	layer := content.NewDescriptorFromBytes("application/json", body)
	huge := layer
	huge.Size = artifact.MaxAttachment + 1
	odd := []v1.Descriptor{
		rawAttach(t, addr, v1.Manifest{Subject: subject, Layers: []v1.Descriptor{layer, layer}}, body),
		rawAttach(t, addr, v1.Manifest{Subject: subject, Layers: []v1.Descriptor{huge}}, body),
		rawAttach(t, addr, v1.Manifest{Subject: subject, Layers: []v1.Descriptor{{MediaType: "application/json", Digest: "sha256:../../../x", Size: 1}}}, body),
	}
	t.Run("what is no attachment stays there, with a warning", func(t *testing.T) {
		var warned []string
		o := quick
		o.Warn = func(s string) { warned = append(warned, s) }
		to := store(t)
		res, err := Pull(t.Context(), at(t, "oci://"+addr+"/x/team/web:1"), to, "", o)
		if err != nil || res.Attached != 1 || len(warned) != len(odd) {
			t.Fatalf("%d came, %v, warnings %q", res.Attached, err, warned)
		}
		if got := bodies(t, to, img.Digest); !slices.Equal(got, []string{`"well"`}) {
			t.Errorf("attached are %q", got)
		}
	})
	other := *subject
	other.Digest = digest.FromString("another image")
	stray := rawAttach(t, addr, v1.Manifest{Subject: &other, Layers: []v1.Descriptor{layer}}, body)
	good, err := from.Documents(t.Context(), img.Digest)
	if err != nil {
		t.Fatal(err)
	}
	list := func(d ...v1.Descriptor) []byte {
		raw, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: d})
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	answer := func(raw []byte) func(w http.ResponseWriter, r *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/referrers/") {
				return false
			}
			w.Header().Set("Content-Type", v1.MediaTypeImageIndex)
			_, _ = w.Write(raw)
			return true
		}
	}
	var many []v1.Descriptor
	for i := range maxDocuments + 1 {
		many = append(many, v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString(fmt.Sprint(i)), Size: 9})
	}
	large := good[0].Desc
	large.Size = oci.MaxManifest + 1
	real, err := url.Parse("http://" + addr)
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"too many":             answer(list(many...)),
		"a manifest too large": answer(list(large)),
		"other bytes": func(w http.ResponseWriter, r *http.Request) bool {
			if !isBlob(r) || path.Base(r.URL.Path) != string(good[0].Blobs[1].Digest) {
				return false
			}
			httputil.NewSingleHostReverseProxy(real).ServeHTTP(&flip{w}, r)
			return true
		},
		"an endless list": func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/referrers/") {
				return false
			}
			w.Header().Set("Content-Type", v1.MediaTypeImageIndex)
			_, _ = io.WriteString(w, `{"manifests":[`)
			for {
				if _, err := io.WriteString(w, strings.Repeat(`{"mediaType":"x"},`, 1000)); err != nil {
					return true
				}
			}
		},
	} {
		t.Run(name+" is refused", func(t *testing.T) {
			via, to := fault(t, addr, f), store(t)
			o := quick
			o.Retries = 2
			ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
			defer stop()
			_, err := Pull(ctx, at(t, "oci://"+via+"/x/team/web:1"), to, "", o)
			if err == nil || ctx.Err() != nil || name != "an endless list" && !errors.Is(err, artifact.ErrCorrupt) {
				t.Fatal(err)
			}
			if all, err := to.List(t.Context(), ""); err != nil || len(all) != 0 {
				t.Errorf("visible: %v, %v", all, err)
			}
			var mem runtime.MemStats
			if runtime.ReadMemStats(&mem); mem.Sys > 1<<30 {
				t.Errorf("%d MiB of memory", mem.Sys>>20)
			}
		})
	}
	t.Run("one of another image is not taken", func(t *testing.T) {
		via, to := fault(t, addr, answer(list(stray, good[0].Desc))), store(t)
		if res, err := Pull(t.Context(), at(t, "oci://"+via+"/x/team/web:1"), to, "", quick); err != nil || res.Attached != 1 {
			t.Fatalf("%d came, %v", res.Attached, err)
		}
		if got, err := to.Attached(t.Context(), artifact.Digest(other.Digest), ""); err != nil || len(got) != 0 {
			t.Errorf("attached to another image: %v, %v", got, err)
		}
	})
}
