//go:build vagrant

package vagrant

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var bin string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "rebake-vagrant-")
	if err != nil {
		panic(err)
	}
	bin = filepath.Join(dir, "rebake")
	build := exec.Command("go", "build", "-o", bin, "./cmd/rebake")
	build.Dir = "../.."
	code := 1
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build rebake: %v\n%s", err, out)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// world is a directory with homes of rebake's and Vagrant's own.
type world struct {
	t   *testing.T
	dir string
}

func newWorld(t *testing.T) *world {
	return &world{t, t.TempDir()}
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = w.dir
	cmd.Env = append(os.Environ(), "REBAKE_HOME="+w.path("home"), "VAGRANT_HOME="+w.path("vagrant"), "VAGRANT_CHECKPOINT_DISABLE=1", "VAGRANT_NO_COLOR=1", "NO_PROXY=127.0.0.1", "LC_ALL=C.UTF-8")
	return cmd
}

// run runs a program that must end well, or must not.
func (w *world) run(well bool, name string, args ...string) string {
	w.t.Helper()
	began := time.Now()
	out, err := w.command(name, args...).CombinedOutput()
	w.t.Logf("%s %s: %v after %.1fs", filepath.Base(name), strings.Join(args, " "), err, time.Since(began).Seconds())
	exit := (*exec.ExitError)(nil)
	if (err == nil) != well || err != nil && !errors.As(err, &exit) {
		w.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(w.path(name), []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// Vagrant adds boxes from a catalog, over HTTP and from a folder, by version
// constraint; what does not have the catalog's checksum it refuses.
func TestBoxAdd(t *testing.T) {
	w := newWorld(t)
	for i, v := range []string{"1.0.0", "1.1.0", "2.0.0-rc.1"} {
		disk := make([]byte, 4<<20)
		r := rand.New(rand.NewPCG(1, uint64(i)))
		for i := range disk[:1<<20] {
			disk[i] = byte(r.Uint32())
		}
		w.write(v+".raw", string(disk))
		w.run(true, bin, "import", v+".raw", "web:"+v, "--format", "raw")
	}
	srv := httptest.NewServer(http.FileServer(http.Dir(w.path("boxes"))))
	defer srv.Close()
	w.run(true, bin, "vagrant", "publish", "web:1.0.0", "web:1.1.0", "web:2.0.0-rc.1", "boxes", "--url-base", srv.URL)
	added := func(version string) string {
		return filepath.Join(w.path("vagrant"), "boxes", "web", version, "libvirt")
	}
	has := func(version string) {
		t.Helper()
		w.run(true, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", filepath.Join(added(version), "box.img"), version+".raw")
	}
	out := w.run(true, "vagrant", "box", "add", srv.URL+"/web.json", "--provider", "libvirt", "--box-version", "~> 1.0")
	if !strings.Contains(out, "comparing box checksum") {
		t.Errorf("no checksum was looked at:\n%s", out)
	}
	has("1.1.0")
	if out := w.run(true, "vagrant", "box", "list"); strings.TrimSpace(out) != "web (libvirt, 1.1.0)" {
		t.Errorf("added %s", out)
	}
	w.run(true, "vagrant", "box", "add", srv.URL+"/web.json", "--provider", "libvirt", "--box-version", "1.0.0")
	has("1.0.0")
	// A pre-release is the newest to Vagrant, as docs/vagrant.md says.
	w.run(true, bin, "vagrant", "publish", "web:2.0.0-rc.1", "local")
	w.run(true, "vagrant", "box", "add", "local/web.json", "--provider", "libvirt")
	has("2.0.0-rc.1")
	if out := w.run(false, "vagrant", "box", "add", srv.URL+"/web.json", "--provider", "libvirt", "--box-version", ">= 3"); !strings.Contains(out, "could not find") && !strings.Contains(out, "1.1.0") {
		t.Errorf("%s", out)
	}

	refused := func(what, catalog string) {
		t.Helper()
		w.run(true, "vagrant", "box", "remove", "web", "--provider", "libvirt", "--box-version", "1.0.0", "--force")
		out := w.run(false, "vagrant", "box", "add", catalog, "--provider", "libvirt", "--box-version", "1.0.0")
		if !strings.Contains(out, "checksum of the downloaded box did not match") {
			t.Errorf("%s: %s", what, out)
		}
		if _, err := os.Stat(added("1.0.0")); err == nil {
			t.Errorf("%s: it was added", what)
		}
	}
	raw, err := os.ReadFile(w.path("boxes/web.json"))
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Versions []struct{ Providers []struct{ Checksum string } }
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	good := c.Versions[0].Providers[0].Checksum
	w.write("boxes/wrong.json", strings.ReplaceAll(string(raw), good, strings.Repeat("0", 64)))
	refused("another checksum", srv.URL+"/wrong.json")
	w.run(true, "vagrant", "box", "add", srv.URL+"/web.json", "--provider", "libvirt", "--box-version", "1.0.0")
	box := w.path("boxes/web/1.0.0/web-1.0.0-libvirt-amd64.box")
	bytes1, err := os.ReadFile(box)
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(bytes1)
	damaged[len(damaged)/2] ^= 1
	if err := os.WriteFile(box, damaged, 0o644); err != nil {
		t.Fatal(err)
	}
	refused("a damaged box", srv.URL+"/web.json")
}
