package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/test/disks"
	"github.com/rebake/rebake/test/servers"
)

// server starts Debian's docker-registry on a loopback port of its own.
func server(t *testing.T) string { t.Helper(); return serverIn(t, t.TempDir()) }

// serverIn is one whose data is in dir.
func serverIn(t *testing.T, dir string) string {
	t.Helper()
	addr, stop, err := servers.DockerRegistry(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return addr
}

// fault is a proxy in front of a registry; answer may take a request itself.
func fault(t *testing.T, addr string, answer func(w http.ResponseWriter, r *http.Request) bool) string {
	p := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	s := httptestServer(t, func(w http.ResponseWriter, r *http.Request) {
		if !answer(w, r) {
			p.ServeHTTP(w, r) // keeps Host, so that upload locations lead through here
		}
	})
	return s
}

func httptestServer(t *testing.T, h http.HandlerFunc) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

func store(t *testing.T) *oci.Store {
	s, err := oci.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	r.Read(b)
	return b
}

func bake(t *testing.T, s *oci.Store, version string, data []byte) artifact.Image {
	t.Helper()
	return disks.Bake(t, s, artifact.Image{Name: "team/web", Version: version, Arch: "amd64"}, data)
}

func at(t *testing.T, s string) Address {
	t.Helper()
	a, err := Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func disk(t *testing.T, s *oci.Store, img artifact.Image) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := s.Fetch(t.Context(), img.Content, path, nil); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var (
	quick = Options{first: time.Millisecond}
	// patient is for many writers at once: docker-registry answers 500 for a tag
	// that is being written, several times in a row.
	patient = Options{first: 20 * time.Millisecond}
)

func TestRoundTrip(t *testing.T) {
	addr, one, two := server(t), store(t), store(t)
	data := noise(1, 8<<20)
	img := bake(t, one, "1.0+b1", data)
	img.Tags = []string{"stable"}
	to := at(t, "oci://"+addr+"/x")
	res, err := Push(t.Context(), one, img, to, quick)
	if err != nil || res.Moved != res.Blobs || res.Shared != 0 {
		t.Fatalf("push: %+v, %v", res, err)
	}
	if res, err = Push(t.Context(), one, img, to, quick); err != nil || res.Moved != 0 {
		t.Fatalf("pushed again: %+v, %v", res, err)
	}
	var last, total int64
	got, err := Pull(t.Context(), at(t, "oci://"+addr+"/x/team/web:stable"), two, "amd64", Options{Progress: func(d, n int64) { last, total = d, n }})
	if err != nil || got.Image.Digest != img.Digest || last != total || last < 8<<20 {
		t.Fatalf("pull: %+v, %v, progress %d of %d", got, err, last, total)
	}
	if !bytes.Equal(disk(t, two, got.Image), data) {
		t.Fatal("other bytes")
	}
	for _, tag := range []string{"stable", "1.0+b1"} {
		if r, err := two.Resolve(t.Context(), artifact.Ref{Name: "team/web", Tag: tag}); err != nil || r.Digest != img.Digest {
			t.Errorf("%s is %s, %v", tag, r.Digest, err)
		}
	}
	// A child: only what is new moves, both ways.
	copy(data[1<<20:], noise(2, 64<<10))
	child := bake(t, one, "2", data)
	if res, err = Push(t.Context(), one, child, to, quick); err != nil || res.Bytes > 1<<20 || res.Shared < 7<<20 {
		t.Fatalf("push of a child: %+v, %v", res, err)
	}
	if got, err = Pull(t.Context(), at(t, "oci://"+addr+"/x/team/web:2"), two, "amd64", quick); err != nil || got.Bytes > 1<<20 {
		t.Fatalf("pull of a child: %+v, %v", got, err)
	}
	if !bytes.Equal(disk(t, two, got.Image), data) {
		t.Fatal("other bytes in the child")
	}
	if res, err = Copy(t.Context(), at(t, "oci://"+addr+"/x/team/web:2"), at(t, "oci://"+addr+"/prod"), quick); err != nil || res.Image.Digest != child.Digest || res.Moved != 0 || res.Bytes != 0 {
		t.Fatalf("copy: %+v, %v", res, err)
	}
	if _, err = Pull(t.Context(), at(t, "oci://"+addr+"/prod/team/web:2"), store(t), "", quick); err != nil {
		t.Fatalf("pull of the copy: %v", err)
	}
	// A version never changes, here or there.
	three := store(t)
	other := bake(t, three, "2", noise(9, 1<<20))
	if _, err = Push(t.Context(), three, other, to, quick); !errors.Is(err, artifact.ErrExists) {
		t.Errorf("another image under a version: %v", err)
	}
	if _, err = Pull(t.Context(), at(t, "oci://"+addr+"/x/team/web:2"), three, "", quick); !errors.Is(err, artifact.ErrExists) {
		t.Errorf("pull over another image: %v", err)
	}
	if _, err = Pull(t.Context(), at(t, "oci://"+addr+"/x/team/web:none"), three, "", quick); !errors.Is(err, artifact.ErrNotFound) {
		t.Errorf("pull of nothing: %v", err)
	}
}

// cut lets n bytes of an answer pass, then breaks the connection.
type cut struct {
	http.ResponseWriter
	left int
}

func (c *cut) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.ResponseWriter.Write(p[:n])
	if c.left -= n; n < len(p) {
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, nil
}

func isBlob(r *http.Request) bool {
	return r.Method == "GET" && strings.Contains(r.URL.Path, "/blobs/")
}

func TestFaults(t *testing.T) {
	addr, from := server(t), store(t)
	data := noise(3, 6<<20)
	img := bake(t, from, "1", data)
	if _, err := Push(t.Context(), from, img, at(t, "oci://"+addr+"/x"), quick); err != nil {
		t.Fatal(err)
	}
	real, _ := url.Parse("http://" + addr)
	for name, f := range map[string]struct {
		answer func(n int, w http.ResponseWriter, r *http.Request) bool
		want   error // nil: it is pulled all the same
	}{
		"cut again and again": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			if isBlob(r) && n%3 != 0 {
				httputil.NewSingleHostReverseProxy(real).ServeHTTP(&cut{w, 1 << 20}, r)
				return true
			}
			return false
		}, nil},
		"busy": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n%2 == 0 {
				w.WriteHeader([]int{429, 500, 502, 503, 504}[n/2%5])
			}
			return n%2 == 0
		}, nil},
		"other bytes": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			if isBlob(r) && r.URL.Path[len(r.URL.Path)-3:] != "" {
				rec := &flip{ResponseWriter: w}
				httputil.NewSingleHostReverseProxy(real).ServeHTTP(rec, r)
				return true
			}
			return false
		}, artifact.ErrCorrupt},
		"never well": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			if isBlob(r) {
				w.WriteHeader(503)
			}
			return isBlob(r)
		}, errors.New("any")},
		"an endless body": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			for isBlob(r) {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return true
				}
			}
			return false
		}, artifact.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int64
			via := fault(t, addr, func(w http.ResponseWriter, r *http.Request) bool { return f.answer(int(n.Add(1)), w, r) })
			to := store(t)
			o := quick
			o.Retries = 12
			ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
			defer stop()
			got, err := Pull(ctx, at(t, "oci://"+via+"/x/team/web:1"), to, "", o)
			if f.want == nil {
				if err != nil || !bytes.Equal(disk(t, to, got.Image), data) {
					t.Fatalf("%v, or other bytes", err)
				}
				return
			}
			if err == nil || ctx.Err() != nil || errors.Is(f.want, artifact.ErrCorrupt) && !errors.Is(err, artifact.ErrCorrupt) {
				t.Fatalf("%v", err)
			}
			if all, err := to.List(t.Context(), ""); err != nil || len(all) != 0 {
				t.Errorf("visible: %v, %v", all, err)
			}
			if gone, err := to.Clean(t.Context()); err != nil || len(gone) != 0 {
				t.Errorf("left half-written: %v, %v", gone, err)
			}
		})
	}
}

type flip struct{ http.ResponseWriter }

func (f *flip) Write(p []byte) (int, error) {
	q := bytes.Clone(p)
	q[len(q)/2] ^= 1
	return f.ResponseWriter.Write(q)
}

func TestPushThroughFaults(t *testing.T) {
	addr, from := server(t), store(t)
	data := noise(5, 3<<20)
	img := bake(t, from, "1", data)
	var n atomic.Int64
	via := fault(t, addr, func(w http.ResponseWriter, r *http.Request) bool {
		switch k := n.Add(1); {
		case r.Method == "PUT" && k%3 == 0: // in the middle of a body
			io.CopyN(io.Discard, r.Body, 1000)
			panic(http.ErrAbortHandler)
		case k%4 == 0:
			w.WriteHeader(503)
			return true
		}
		return false
	})
	o := quick
	o.Retries = 20
	if _, err := Push(t.Context(), from, img, at(t, "oci://"+via+"/x"), o); err != nil {
		t.Fatal(err)
	}
	to := store(t)
	got, err := Pull(t.Context(), at(t, "oci://"+addr+"/x/team/web:1"), to, "", quick)
	if err != nil || !bytes.Equal(disk(t, to, got.Image), data) {
		t.Fatalf("%v, or other bytes", err)
	}
}

func TestSixteenAtOnce(t *testing.T) {
	addr, from := server(t), store(t)
	var images []artifact.Image
	for i := range 16 {
		images = append(images, bake(t, from, fmt.Sprint(i), append(noise(6, 1<<20), noise(uint64(10+i), 64<<10)...)))
		images[i].Tags = []string{fmt.Sprintf("tag-%d", i), "contested"}
	}
	var wg sync.WaitGroup
	for _, img := range images {
		wg.Go(func() {
			if _, err := Push(t.Context(), from, img, at(t, "oci://"+addr+"/x"), patient); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	to := store(t)
	for i, img := range images {
		got, err := Pull(t.Context(), at(t, fmt.Sprintf("oci://%s/x/team/web:tag-%d", addr, i)), to, "", patient)
		if err != nil || got.Image.Digest != img.Digest {
			t.Errorf("%d: %s, %v", i, got.Image.Digest, err)
		}
	}
}

func TestAddresses(t *testing.T) {
	for _, bad := range []string{"", "registry.example.com/x", "oci://", "oci:///x", "oci://user:geheim@host/x", "oci://host/../etc", "oci://host/X", "oci://host/x:a b", "oci://host/x@sha256:12", "oci://ho st/x"} {
		if a, err := Parse(bad); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%q is %+v, %v", bad, a, err)
		}
	}
	for _, good := range []string{"oci://host", "oci://host:5000/a/b:1.0+x", "oci://host/a@sha256:" + strings.Repeat("a", 64)} {
		if a, err := Parse(good); err != nil || a.String() != good {
			t.Errorf("%q is %q, %v", good, a, err)
		}
	}
	if got := clean(errors.New(`Put "https://u:p@s3/x?X-Amz-Signature=geheim": EOF`)).Error(); strings.Contains(got, "geheim") || strings.Contains(got, "u:p") {
		t.Error(got)
	}
}
