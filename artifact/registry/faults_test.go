package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
)

// The test binary is also the other processes of these tests.
const childEnv = "REBAKE_REGISTRY_TEST_CHILD"

func TestMain(m *testing.M) {
	what := strings.Split(os.Getenv(childEnv), " ")
	run, ok := map[string]func([]string) error{"push": pushChild, "full": fullChild}[what[0]]
	if !ok {
		os.Exit(m.Run())
	}
	if err := run(what[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func child(t *testing.T, what ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join(what, " "))
	return cmd
}

// nothing fails the test unless a store shows no image and no half-written file.
func nothing(t *testing.T, s *oci.Store) {
	t.Helper()
	if all, err := s.List(t.Context(), ""); err != nil || len(all) != 0 {
		t.Errorf("visible: %v, %v", all, err)
	}
	if gone, err := s.Clean(t.Context()); err != nil || len(gone) != 0 {
		t.Errorf("left half-written: %v, %v", gone, err)
	}
}

// pushed is an image in a registry, the way to it, and its disk.
func pushed(t *testing.T, addr string, seed uint64, size int) (artifact.Image, []byte) {
	t.Helper()
	from, data := store(t), noise(seed, size)
	img := bake(t, from, "1", data)
	if _, err := Push(t.Context(), from, img, at(t, "oci://"+addr+"/x"), quick); err != nil {
		t.Fatal(err)
	}
	return img, data
}

func TestRetryAfterIsHonoured(t *testing.T) {
	addr := kinds()["with referrers"](t)
	_, data := pushed(t, addr, 60, 200<<10)
	var once sync.Once
	after := "1"
	via := fault(t, addr, func(w http.ResponseWriter, r *http.Request) (done bool) {
		if isBlob(r) {
			once.Do(func() {
				w.Header().Set("Retry-After", after)
				w.WriteHeader(http.StatusTooManyRequests)
				done = true
			})
		}
		return done
	})
	from, to := at(t, "oci://"+via+"/x/team/web:1"), store(t)
	began := time.Now()
	got, err := Pull(t.Context(), from, to, "", quick) // whose own pauses are a millisecond
	if err != nil || !bytes.Equal(disk(t, to, got.Image), data) {
		t.Fatal(err)
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("asked again after %s, not after the second that the server wished", took)
	}
	once, after = sync.Once{}, time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)
	if _, err := Pull(t.Context(), from, store(t), "", quick); err == nil || !strings.Contains(err.Error(), "asks to wait for") {
		t.Errorf("an hour: %v", err)
	}
}

func TestADownloadGoesOnWhereItBrokeOff(t *testing.T) {
	addr := server(t)
	_, data := pushed(t, addr, 61, 6<<20)
	real, err := url.Parse("http://" + addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 100_000, 3<<20 + 17} {
		var mu sync.Mutex
		var ranges []string
		cuts := 0
		via := fault(t, addr, func(w http.ResponseWriter, r *http.Request) bool {
			if !isBlob(r) {
				return false
			}
			mu.Lock()
			defer mu.Unlock()
			if g := r.Header.Get("Range"); g != "" {
				ranges = append(ranges, g)
				return false
			}
			if cuts > 0 { // small blobs are not cut: the first large one is
				return false
			}
			head, err := http.Head(real.String() + r.URL.Path)
			if err != nil || head.ContentLength < 4<<20 {
				return false
			}
			cuts++
			httputil.NewSingleHostReverseProxy(real).ServeHTTP(&cut{w, n}, r)
			return true
		})
		to := store(t)
		got, err := Pull(t.Context(), at(t, "oci://"+via+"/x/team/web:1"), to, "", quick)
		if err != nil || !bytes.Equal(disk(t, to, got.Image), data) {
			t.Fatalf("cut at %d: %v, or other bytes", n, err)
		}
		if want := fmt.Sprintf("bytes=%d-", n); cuts != 1 || len(ranges) != 1 || !strings.HasPrefix(ranges[0], want) {
			t.Errorf("cut at %d, %d times: then asked for %v, want %s", n, cuts, ranges, want)
		}
	}
}

func TestAServerThatStallsIsAskedAgain(t *testing.T) {
	addr := server(t)
	_, data := pushed(t, addr, 62, 2<<20)
	real, err := url.Parse("http://" + addr)
	if err != nil {
		t.Fatal(err)
	}
	var stalls atomic.Int64
	always := false
	via := fault(t, addr, func(w http.ResponseWriter, r *http.Request) bool {
		if !isBlob(r) || !always && stalls.Load() > 0 {
			return false
		}
		stalls.Add(1)
		httputil.NewSingleHostReverseProxy(real).ServeHTTP(&stall{w, 100, r.Context()}, r)
		return true
	})
	o := quick
	o.Stall, o.Retries = 200*time.Millisecond, 3
	to := store(t)
	got, err := Pull(t.Context(), at(t, "oci://"+via+"/x/team/web:1"), to, "", o)
	if err != nil || !bytes.Equal(disk(t, to, got.Image), data) || stalls.Load() == 0 {
		t.Fatalf("%v, after %d stalls", err, stalls.Load())
	}
	always = true
	to = store(t)
	if _, err := Pull(t.Context(), at(t, "oci://"+via+"/x/team/web:1"), to, "", o); err == nil || !strings.Contains(err.Error(), "no byte for 200ms") {
		t.Errorf("a server that always stalls: %v", err)
	}
	nothing(t, to)
}

// stall lets some bytes pass, and then nothing until the client goes.
type stall struct {
	http.ResponseWriter
	left int
	ctx  context.Context
}

func (s *stall) Write(p []byte) (int, error) {
	n := min(len(p), s.left)
	_, _ = s.ResponseWriter.Write(p[:n])
	s.ResponseWriter.(http.Flusher).Flush()
	if s.left -= n; n < len(p) {
		<-s.ctx.Done()
		return n, s.ctx.Err()
	}
	return n, nil
}

// A registry that lost the end of a blob, and one that holds other bytes.
func TestDamagedInTheRegistry(t *testing.T) {
	for name, damage := range map[string]func(f *os.File, size int64) error{
		"truncated":   func(f *os.File, size int64) error { return f.Truncate(size - 1) },
		"other bytes": func(f *os.File, size int64) error { _, err := f.WriteAt([]byte{1, 2, 3}, size/2); return err },
		"longer":      func(f *os.File, size int64) error { _, err := f.WriteAt([]byte("x"), size); return err },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			addr := serverIn(t, dir)
			pushed(t, addr, 63, 1<<20)
			n := 0
			err := filepath.Walk(dir, func(p string, st os.FileInfo, err error) error {
				if err != nil || st.Name() != "data" || st.Size() < 1<<20 {
					return err
				}
				n++
				f, err := os.OpenFile(p, os.O_RDWR, 0)
				if err != nil {
					return err
				}
				defer f.Close()
				return damage(f, st.Size())
			})
			if err != nil || n != 1 {
				t.Fatalf("%d blobs damaged, %v", n, err)
			}
			to := store(t)
			if _, err := Pull(t.Context(), at(t, "oci://"+addr+"/x/team/web:1"), to, "", quick); err == nil {
				t.Error("it was pulled")
			}
			nothing(t, to)
			s, err := Open(store(t), at(t, "oci://"+addr+"/x"), quick)
			if err != nil {
				t.Fatal(err)
			}
			img, err := s.Resolve(t.Context(), artifact.Ref{Name: "team/web", Tag: "1"})
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "disk")
			if err := s.Fetch(t.Context(), img.Content, path, nil); err == nil {
				t.Error("it was fetched")
			}
			if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
				t.Errorf("fetch left %v, %v", left, err)
			}
		})
	}
}

// Credentials come from docker's config, here from a helper that it names.
func TestCredentialHelper(t *testing.T) {
	addr := kinds()["with referrers"](t)
	pushed(t, addr, 64, 100<<10)
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte("ann:geheim"))
	via := fault(t, addr, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == want {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	dir := t.TempDir()
	helper := func(secret string) {
		script := fmt.Sprintf("#!/bin/sh\nread -r host\n[ \"$1 $host\" = \"get %s\" ] && echo '{\"ServerURL\":\"%s\",\"Username\":\"ann\",\"Secret\":\"%s\"}'\n", via, via, secret)
		if err := os.WriteFile(filepath.Join(dir, "docker-credential-suite"), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"credHelpers": {"`+via+`": "suite"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	helper("geheim")
	if _, err := Pull(t.Context(), at(t, "oci://"+via+"/x/team/web:1"), store(t), "", quick); err != nil {
		t.Errorf("with the helper's password: %v", err)
	}
	s, err := Open(store(t), at(t, "oci://"+via+"/x"), quick)
	if err != nil {
		t.Fatal(err)
	}
	if img, err := s.Resolve(t.Context(), artifact.Ref{Name: "team/web", Tag: "1"}); err != nil || img.Name != "team/web" {
		t.Errorf("the store: %v", err)
	}
	helper("geheim-no-more")
	_, err = Pull(t.Context(), at(t, "oci://"+via+"/x/team/web:1"), store(t), "", quick)
	if err == nil || strings.Contains(err.Error(), "geheim") || !strings.Contains(err.Error(), "401") {
		t.Errorf("with another password: %v", err)
	}
}

// fullChild pulls where no file may have more than 1 MiB.
func fullChild(args []string) error {
	signal.Ignore(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}); err != nil {
		return err
	}
	s, err := oci.Open(args[0])
	if err != nil {
		return err
	}
	a, err := Parse(args[1])
	if err != nil {
		return err
	}
	began := time.Now()
	if _, err := Pull(context.Background(), a, s, "", Options{}); !errors.Is(err, syscall.EFBIG) {
		return fmt.Errorf("pull: %w", err)
	}
	if time.Since(began) > 5*time.Second {
		return fmt.Errorf("a full disk was tried again for %s", time.Since(began))
	}
	return nil
}

func TestAFullDiskLeavesNothing(t *testing.T) {
	addr := kinds()["with referrers"](t)
	_, data := pushed(t, addr, 65, 3<<20)
	dir := t.TempDir()
	from := "oci://" + addr + "/x/team/web:1"
	if out, err := child(t, "full", dir, from).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	to, err := oci.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	nothing(t, to)
	// With room it goes on.
	got, err := Pull(t.Context(), at(t, from), to, "", quick)
	if err != nil || !bytes.Equal(disk(t, to, got.Image), data) {
		t.Fatalf("%v, or other bytes", err)
	}
	text := clean(fmt.Errorf("write x: %w", syscall.ENOSPC)).Error()
	if !strings.Contains(text, "rebake images prune") {
		t.Errorf("a full disk says %q", text)
	}
}

// pushChild pushes an image of its own, under a version, a tag of its own and one
// that all want, and then registers another one in a store.
func pushChild(args []string) error {
	s, err := oci.Open(filepath.Join(args[0], "store"))
	if err != nil {
		return err
	}
	ctx := context.Background()
	image := func(version string, seed uint64) (artifact.Image, error) {
		path := filepath.Join(args[0], "disk"+version)
		if err := os.WriteFile(path, append(noise(66, 1<<20), noise(seed, 64<<10)...), 0o600); err != nil { // most of it all have
			return artifact.Image{}, err
		}
		d, err := artifact.FileDisk(path)
		if err != nil {
			return artifact.Image{}, err
		}
		defer d.Close()
		content, _, err := s.Write(ctx, d, nil)
		return artifact.Image{Name: "team/web", Version: version, Content: content, Arch: "amd64"}, err
	}
	var n uint64
	if _, err := fmt.Sscan(args[2], &n); err != nil {
		return err
	}
	img, err := image("1."+args[2], 100+n)
	if err == nil {
		img, err = s.Register(ctx, img)
	}
	if err == nil {
		_, err = s.Attach(ctx, img.Digest, artifact.Attachment{Kind: noteKind, Media: "text/plain", Created: time.Unix(1, 0)}, []byte("of "+args[2]))
	}
	if err != nil {
		return err
	}
	a, err := Parse(args[1])
	if err != nil {
		return err
	}
	img.Tags = []string{"tag-" + args[2], "contested"}
	if _, err := Push(ctx, s, img, a, Options{}); err != nil {
		return err
	}
	there, err := Open(s, a, Options{})
	if err != nil {
		return err
	}
	next, err := image("2."+args[2], 200+n)
	if err == nil {
		next, err = there.Register(ctx, next)
	}
	if err == nil {
		err = there.Tag(ctx, next.Name, "contested", next.Digest)
	}
	return err
}

func TestSixteenProcessesLoseNothing(t *testing.T) {
	addr := server(t)
	place := "oci://" + addr + "/x"
	var wg sync.WaitGroup
	for i := range 16 {
		dir := t.TempDir()
		wg.Go(func() {
			if out, err := child(t, "push", dir, place, fmt.Sprint(i)).CombinedOutput(); err != nil {
				t.Errorf("%d: %v: %s", i, err, out)
			}
		})
	}
	wg.Wait()
	s, err := Open(store(t), at(t, place), patient)
	if err != nil {
		t.Fatal(err)
	}
	all, err := s.List(t.Context(), "team/web")
	if err != nil || len(all) != 32 {
		t.Errorf("%d of 32 images are there, %v", len(all), err)
	}
	for i := range 16 {
		one, err := s.Resolve(t.Context(), artifact.Ref{Name: "team/web", Tag: fmt.Sprintf("tag-%d", i)})
		if err != nil || one.Version != fmt.Sprintf("1.%d", i) {
			t.Errorf("tag-%d is %s, %v", i, one.Version, err)
			continue
		}
		if got, err := s.Attached(t.Context(), one.Digest, ""); err != nil || len(got) != 1 {
			t.Errorf("attached to %s: %v, %v", one.Version, got, err)
		}
		path := filepath.Join(t.TempDir(), "disk")
		if err := s.Fetch(t.Context(), one.Content, path, nil); err != nil {
			t.Error(err)
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		tail, err := io.ReadAll(io.NewSectionReader(f, 1<<20, 64<<10))
		f.Close()
		if err != nil || !bytes.Equal(tail, noise(uint64(100+i), 64<<10)) {
			t.Errorf("%s has other bytes, %v", one.Version, err)
		}
	}
	if img, err := s.Resolve(t.Context(), artifact.Ref{Name: "team/web", Tag: "contested"}); err != nil || !strings.HasPrefix(img.Version, "2.") {
		t.Errorf("the contested tag is %s, %v", img.Version, err)
	}
}
