//go:build e2e

// Package e2e runs the rebake binary as a user would, on real QEMU, HAProxy and
// guests. No test here skips: a missing part fails.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/test/command"
	"github.com/rebake/rebake/test/tinyguest"
)

// guest is the tiny guest's disk, built once for all tests.
var guest struct{ path, sum, bin string }

func TestMain(m *testing.M) {
	if os.Getenv(crashHome) != "" { // the process that crash_test.go kills
		os.Exit(crashChild())
	}
	code, err := prepare(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func prepare(m *testing.M) (int, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return 1, err
	}
	cache := filepath.Join(root, ".cache", "e2e")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return 1, err
	}
	guest.bin = filepath.Join(cache, "rebake")
	build := exec.Command("go", "build", "-o", guest.bin, "./cmd/rebake")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build rebake: %w\n%s", err, out)
	}
	if guest.path, guest.sum, err = tinyguest.Build(context.Background(), filepath.Join(cache, "tinyguest")); err != nil {
		return 1, fmt.Errorf("build the tiny guest: %w", err)
	}
	return m.Run(), nil
}

// world is one state directory and one working directory.
type world struct {
	t         *testing.T
	home, dir string
	before    []string // in the run directory, which all state directories share
	bases     bool     // it makes Debian bases: those of users other than root are made in /tmp
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, home: t.TempDir(), dir: t.TempDir(), before: files(t, state.RunRoot())}
	t.Cleanup(func() {
		w.nothingRuns()
	})
	return w
}

func (w *world) command(args ...string) *exec.Cmd {
	cmd := exec.Command(guest.bin, args...)
	cmd.Dir = w.dir
	cmd.Env = append(os.Environ(), "REBAKE_HOME="+w.home)
	return cmd
}

// rebake runs the binary; its exit status must be want.
func (w *world) rebake(want int, args ...string) (stdout, stderr string) {
	w.t.Helper()
	return command.Run(w.t, want, w.command(args...))
}

func (w *world) write(name, text string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// image asks the binary for an image's metadata.
func (w *world) image(ref string) (img struct {
	Name, Version, Digest, Content string
	Tests                          []struct {
		Name   string
		Passed bool
	}
}) {
	w.t.Helper()
	out, _ := w.rebake(0, "--output", "json", "images", "show", ref)
	for _, line := range strings.Split(out, "\n") {
		var o struct {
			Kind   string
			Result json.RawMessage
		}
		if json.Unmarshal([]byte(line), &o) == nil && o.Kind == "result" {
			if err := json.Unmarshal(o.Result, &img); err != nil {
				w.t.Fatal(err)
			}
			return img
		}
	}
	w.t.Fatalf("no result in %q", out)
	return img
}

// processes are those whose command line names the world's directories.
func (w *world) processes() []string {
	w.t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		w.t.Fatal(err)
	}
	var found []string
	for _, d := range dirs {
		raw, err := os.ReadFile(d)
		if err != nil {
			continue // it ended
		}
		line := string(bytes.ReplaceAll(raw, []byte{0}, []byte(" ")))
		if strings.Contains(line, w.home) || w.bases && strings.Contains(line, fmt.Sprintf("rebake-base-%d-", os.Getuid())) {
			found = append(found, filepath.Base(filepath.Dir(d))+": "+line)
		}
	}
	return found
}

// nothingRuns fails if a process of the world is there, after a moment of grace.
func (w *world) nothingRuns() {
	w.t.Helper()
	var found []string
	for range 100 {
		if found = w.processes(); len(found) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	w.t.Errorf("still running:\n%s", strings.Join(found, "\n"))
}

// sockets are the run directories that came since the world began.
func (w *world) sockets() []string {
	w.t.Helper()
	return slices.DeleteFunc(files(w.t, state.RunRoot()), func(n string) bool { return slices.Contains(w.before, n) })
}

// files lists a directory's entries, none if it is not there.
func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
