package oci

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
)

// The test binary is also the other processes of these tests.
const childEnv = "REBAKE_OCI_TEST_CHILD"

func TestMain(m *testing.M) {
	what := strings.Split(os.Getenv(childEnv), " ")
	run, ok := map[string]func([]string) error{"push": pushChild, "loop": loopChild, "full": fullChild, "large": largeChild, "attach": attachChild}[what[0]]
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

// push writes, registers and tags one image.
func push(s *Store, version string, data []byte) error {
	ctx := context.Background()
	content, _, err := s.Write(ctx, diskOf(data), nil)
	if err != nil {
		return fmt.Errorf("write: %w", err)
	}
	img, err := s.Register(ctx, artifact.Image{Name: "web", Version: version, Content: content})
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	for _, tag := range []string{"tag-" + version, artifact.Latest} {
		if err := s.Tag(ctx, "web", tag, img.Digest); err != nil {
			return fmt.Errorf("tag: %w", err)
		}
	}
	return nil
}

func pushChild(args []string) error {
	s, err := Open(args[0])
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	for i := range 5 {
		if err := push(s, fmt.Sprintf("%d.%d", n, i), noise(byte(n*5+i), 2*chunkSize)); err != nil {
			return err
		}
	}
	return nil
}

func TestSixteenProcessesLoseNothing(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for n := range 16 {
		wg.Go(func() {
			if out, err := child(t, "push", dir, fmt.Sprint(n)).CombinedOutput(); err != nil {
				t.Errorf("process %d: %v: %s", n, err, out)
			}
		})
	}
	wg.Wait()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	all, err := s.List(t.Context(), "web")
	if err != nil || len(all) != 16*5 {
		t.Fatalf("%d images, %v; want %d", len(all), err, 16*5)
	}
	latest := 0
	for _, img := range all {
		tags := strings.Join(img.Tags, ",")
		latest += strings.Count(tags, artifact.Latest)
		if strings.TrimPrefix(tags, "latest,") != "tag-"+img.Version {
			t.Errorf("%s has tags %s", img.Version, tags)
		}
		if err := s.Verify(t.Context(), img, nil); err != nil {
			t.Errorf("%s: %v", img.Version, err)
		}
	}
	if latest != 1 {
		t.Errorf("%d images are latest", latest)
	}
	noTemp(t, s)
}

func noTemp(t *testing.T, s *Store) {
	t.Helper()
	for _, dir := range []string{s.dir, s.blobDir()} {
		if left, err := filepath.Glob(filepath.Join(dir, tempPrefix+"*")); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
}

// loopChild pushes until it is killed, and says what is done.
func loopChild(args []string) error {
	s, err := Open(args[0])
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		version := fmt.Sprintf("%d.%d", n, i)
		if err := push(s, version, noise(byte(n*16+i), 40*chunkSize)); err != nil {
			return err
		}
		fmt.Println(version)
	}
}

func TestKilledWritersLeaveAWholeStore(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	done := map[string]bool{}
	for n := range 12 {
		cmd := child(t, "loop", dir, fmt.Sprint(n))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Kill it in another part of its second image each time.
		lines := bufio.NewScanner(out)
		if !lines.Scan() {
			t.Fatal("the child did nothing")
		}
		done[lines.Text()] = true
		timer := time.AfterFunc(time.Duration(n)*3*time.Millisecond, func() { cmd.Process.Kill() })
		for lines.Scan() {
			done[lines.Text()] = true
		}
		if err := cmd.Wait(); err == nil || !timer.Stop() && !strings.Contains(err.Error(), "killed") {
			t.Fatalf("the child ended by itself: %v", err)
		}
	}
	all, err := s.List(t.Context(), "")
	if err != nil || len(all) < len(done) {
		t.Fatalf("%d images are listed, %v; %d were done", len(all), err, len(done))
	}
	if _, err := s.Prune(t.Context(), 0, nil); err != nil {
		t.Fatal(err)
	}
	noTemp(t, s)
	needed := map[artifact.Digest]bool{}
	for _, img := range all {
		delete(done, img.Version)
		if err := s.Verify(t.Context(), img, nil); err != nil {
			t.Errorf("%s: %v", img.Version, err)
		}
		m, err := s.manifest(img.Digest)
		if err != nil {
			t.Fatal(err)
		}
		needed[img.Digest], needed[artifact.Digest(m.Config.Digest)] = true, true
		for _, l := range m.Layers {
			needed[artifact.Digest(l.Digest)] = true
		}
	}
	if len(done) > 0 {
		t.Errorf("lost: %v", done)
	}
	if blobs, err := os.ReadDir(s.blobDir()); err != nil || len(blobs) != len(needed) {
		t.Errorf("prune left %d blobs, %v; %d are needed", len(blobs), err, len(needed))
	}
}

// fullChild writes where no file may have more than 1 MiB.
func fullChild(args []string) error {
	signal.Ignore(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}); err != nil {
		return err
	}
	s, err := Open(args[0])
	if err != nil {
		return err
	}
	if _, _, err := s.Write(context.Background(), diskOf(noise(7, 100*chunkSize)), nil); !errors.Is(err, syscall.EFBIG) {
		return fmt.Errorf("write: %w", err)
	}
	if err := s.Fetch(context.Background(), artifact.Digest(args[1]), args[2], nil); !errors.Is(err, syscall.EFBIG) {
		return fmt.Errorf("fetch: %w", err)
	}
	return nil
}

func TestAFullDiskLeavesNothing(t *testing.T) {
	s := openTemp(t)
	img := bake(t, s, "1", diskOf(noise(8, 40*chunkSize)))
	before, err := os.ReadDir(s.blobDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if out, err := child(t, "full", s.dir, string(img.Content), filepath.Join(dir, "disk")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if after, err := os.ReadDir(s.blobDir()); err != nil || len(after) != len(before) {
		t.Errorf("%d blobs, there were %d, %v", len(after), len(before), err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("fetch left %v, %v", left, err)
	}
	if err := s.Verify(t.Context(), img, nil); err != nil {
		t.Error(err)
	}
}

// countDisk has a distinct block at each offset, which costs no memory.
type countDisk struct{ size int64 }

func (d countDisk) Size() int64             { return d.size }
func (d countDisk) Parent() artifact.Digest { return "" }
func (d countDisk) Close() error            { return nil }
func (d countDisk) Extents(context.Context) ([]artifact.Extent, error) {
	return []artifact.Extent{{Length: d.size}}, nil
}

func (d countDisk) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for at := int64(0); at < int64(len(p)); at += chunkSize {
		copy(p[at:], fmt.Sprintf("%020d", off+at+1))
	}
	return len(p), nil
}

// largeChild writes and fetches a disk of so many GiB and prints the memory it
// took, at its height, in KiB.
func largeChild(args []string) error {
	s, err := Open(args[0])
	if err != nil {
		return err
	}
	gib, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	content, _, err := s.Write(context.Background(), countDisk{gib << 30}, nil)
	if err != nil {
		return err
	}
	out := filepath.Join(args[0], "disk")
	if err := s.Fetch(context.Background(), content, out, nil); err != nil {
		return err
	}
	if err := os.Remove(out); err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/self/status") // rusage counts what was before exec too
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	_, err = fmt.Print(strings.Fields(rest)[0])
	return err
}

func TestMemoryDoesNotGrowWithTheDisk(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	peak := func(gib string) int {
		out, err := child(t, "large", t.TempDir(), gib).Output()
		if err != nil {
			t.Fatal(err)
		}
		kib, err := strconv.Atoi(string(out))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s GiB: %d MiB", gib, kib>>10)
		return kib >> 10
	}
	if mib := peak("1"); mib > 150 {
		t.Errorf("%d MiB for a disk of 1 GiB", mib)
	}
}
