package vagrant

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/export"
	"github.com/rebake/rebake/test/fake"
)

const killDir = "REBAKE_TEST_PUBLISH"

// TestMain is also the process that TestKill kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv(killDir); dir != "" {
		s, images, err := images("web", "1.0.0", "1.1.0", "2.0.0")
		if err == nil {
			_, err = Publish(context.Background(), s, images, dir, Options{})
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// images are versions of a name, each with a disk of its own.
func images(name string, versions ...string) (artifact.Store, []artifact.Image, error) {
	s := &fake.Store{}
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	var out []artifact.Image
	for _, v := range versions {
		path := filepath.Join(dir, v)
		if err := os.WriteFile(path, append(make([]byte, 1<<20-len(v)), v...), 0o600); err != nil {
			return nil, nil, err
		}
		d, err := artifact.FileDisk(path)
		if err != nil {
			return nil, nil, err
		}
		content, _, err := s.Write(context.Background(), d, nil)
		if err := errors.Join(err, d.Close()); err != nil {
			return nil, nil, err
		}
		img, err := s.Register(context.Background(), artifact.Image{Name: name, Version: v, Content: content, DiskSize: 1 << 20, Arch: "amd64", Firmware: "bios",
			Seed: "credentials", User: "root", Created: time.Unix(1, 0).UTC()})
		if err != nil {
			return nil, nil, err
		}
		out = append(out, img)
	}
	return s, out, nil
}

func imagesOf(t *testing.T, name string, versions ...string) (artifact.Store, []artifact.Image) {
	t.Helper()
	s, out, err := images(name, versions...)
	if err != nil {
		t.Fatal(err)
	}
	return s, out
}

// box is what a catalog says of one.
type box struct {
	Name, URL, Architecture, Checksum string
	Default                           bool   `json:"default_architecture"`
	Type                              string `json:"checksum_type"`
}

// listed reads a catalog, and holds each box to its checksum.
func listed(t *testing.T, path string) map[string][]box {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Name     string
		Versions []struct {
			Version   string
			Providers []box
		}
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatalf("%v in\n%s", err, raw)
	}
	out := map[string][]box{}
	for _, v := range c.Versions {
		if out[v.Version] != nil {
			t.Errorf("version %s is there twice", v.Version)
		}
		out[v.Version] = v.Providers
		for _, b := range v.Providers {
			file, ok := strings.CutPrefix(b.URL, "file://")
			if !ok {
				continue
			}
			raw, err := os.ReadFile(file)
			if sum := sha256.Sum256(raw); err != nil || hex.EncodeToString(sum[:]) != b.Checksum || b.Type != "sha256" {
				t.Errorf("%s is not %s %s, %v", file, b.Type, b.Checksum, err)
			}
		}
	}
	return out
}

func names(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			out = append(out, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

func TestPublish(t *testing.T) {
	s, imgs := imagesOf(t, "shop/web", "1.4.0", "v1.5.0-rc.1", "1.5.0+deb12")
	dir := filepath.Join(t.TempDir(), "boxes here")
	got, err := Publish(t.Context(), s, imgs, dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{".rebake-publish.lock", "shop/web.json", "shop/web/1.4.0/web-1.4.0-libvirt-amd64.box",
		"shop/web/1.5.0-rc.1/web-1.5.0-rc.1-libvirt-amd64.box", "shop/web/1.5.0/web-1.5.0-libvirt-amd64.box"}, names(t, dir)); diff != "" {
		t.Error(diff)
	}
	if !strings.HasPrefix(got[0].URL, "file:///") || !strings.HasSuffix(got[0].URL, "/boxes%20here/shop/web/1.4.0/web-1.4.0-libvirt-amd64.box") || got[0].There {
		t.Errorf("%+v", got[0])
	}
	before, err := os.ReadFile(filepath.Join(dir, "shop/web.json"))
	if err != nil {
		t.Fatal(err)
	}
	order := strings.Index(string(before), `"1.5.0-rc.1"`) < strings.Index(string(before), `"1.5.0"`)
	if !order || !strings.Contains(string(before), `"name": "shop/web"`) {
		t.Error(string(before))
	}
	// Again: nothing to do.
	again, err := Publish(t.Context(), s, imgs, dir, Options{})
	if err != nil || !again[0].There || !again[2].There || again[0].Checksum != got[0].Checksum {
		t.Errorf("%+v, %v", again, err)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, "shop/web.json")); !bytes.Equal(before, after) {
		t.Error("the catalog changed")
	}
	// The same boxes at another place; one that is gone comes back as it was.
	if err := os.Remove(got[1].File); err != nil {
		t.Fatal(err)
	}
	if _, err = Publish(t.Context(), s, imgs, dir, Options{URLBase: "https://boxes.example.com/rebake/"}); err != nil {
		t.Fatal(err)
	}
	want := box{Name: "libvirt", URL: "https://boxes.example.com/rebake/shop/web/1.4.0/web-1.4.0-libvirt-amd64.box", Architecture: "amd64", Checksum: got[0].Checksum, Default: true, Type: "sha256"}
	all := listed(t, filepath.Join(dir, "shop/web.json"))
	if diff := cmp.Diff([]box{want}, all["1.4.0"]); diff != "" || all["1.5.0-rc.1"][0].Checksum != got[1].Checksum {
		t.Error(diff, all)
	}
	if _, err := os.Stat(got[1].File); err != nil {
		t.Error(err)
	}
}

// What is in a catalog stays: versions and boxes of others, and what they say
// of them; a version never becomes another.
func TestPublishKeeps(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "web.json")
	old := `{"name": "web", "description": "ours", "versions": [{"version": "0.9", "status": "active", "providers": [{"name": "virtualbox", "url": "http://x/y.box"}]},
		{"version": "1.0.0", "providers": [{"name": "virtualbox", "url": "http://x/1.box"}]}, {"version": "1.2.0", "providers": [{"name": "libvirt", "url": "http://x/2.box"}]}]}`
	if err := os.WriteFile(path, []byte(old), 0o644); err != nil {
		t.Fatal(err)
	}
	s, imgs := imagesOf(t, "web", "1.0.0", "1.1.0", "1.2.0")
	if _, err := Publish(t.Context(), s, imgs[:2], dir, Options{}); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(raw), `"description": "ours"`) || !strings.Contains(string(raw), `"status": "active"`) {
		t.Errorf("%s %v", raw, err)
	}
	all := listed(t, path)
	if len(all) != 4 || len(all["1.0.0"]) != 2 || all["0.9"][0].URL != "http://x/y.box" || all["1.0.0"][0].Name != "virtualbox" {
		t.Errorf("%+v", all)
	}
	// Another architecture of one version; amd64 stays the default, and the last.
	arm := imgs[1]
	arm.Arch, arm.Digest = "arm64", artifact.Digest("sha256:"+strings.Repeat("cd", 32))
	if _, err := Publish(t.Context(), s, []artifact.Image{arm}, dir, Options{}); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, path)["1.1.0"]; len(got) != 2 || got[0].Architecture != "arm64" || got[0].Default || got[1].Architecture != "amd64" || !got[1].Default {
		t.Errorf("%+v", got)
	}
	before, _ := os.ReadFile(path)
	other := imgs[1]
	other.Digest = artifact.Digest("sha256:" + strings.Repeat("ef", 32))
	for name, c := range map[string]struct {
		img  artifact.Image
		o    Options
		want string
	}{
		"another image":        {other, Options{}, "exists already in the catalog with image sha256:"},
		"another account":      {imgs[1], Options{Box: export.BoxOptions{User: "vagrant"}}, "another account or key"},
		"a version of another": {imgs[2], Options{}, "rebake did not put it there"},
	} {
		if _, err := Publish(t.Context(), s, []artifact.Image{c.img}, dir, c.o); !errors.Is(err, artifact.ErrExists) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v does not say %q", name, err, c.want)
		}
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the catalog changed")
	}
	for text, want := range map[string]string{"{": "is no catalog", "null": "is no catalog", `{"name": "db"}`: `catalog of "db"`, `{"name": "web", "versions": 3}`: "is no catalog"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Publish(t.Context(), s, imgs[:1], dir, Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v does not say %q", text, err, want)
		}
		if got, _ := os.ReadFile(path); string(got) != text {
			t.Errorf("%s became %s", text, got)
		}
	}
}

func TestVersion(t *testing.T) {
	for v, want := range map[string]string{
		"1.4.0": "1.4.0", "v1.4.0": "1.4.0", "20261124.1": "20261124.1", "1.4.0-rc.1": "1.4.0-rc.1", "1.4.0-rc1": "1.4.0-rc1", "1.4.0+deb12": "1.4.0", "1.4.0-rc.1+b2": "1.4.0-rc.1",
		"nightly": "", "1.4_0": "", "1..0": "", "": "", "-1": "", "vv1": "", "1.4.0-": "",
	} {
		if got, err := Version(v); got != want || (err == nil) != (want != "") {
			t.Errorf("%s is %q, %v; want %q", v, got, err, want)
		}
	}
}

func TestPublishRefuses(t *testing.T) {
	s, imgs := imagesOf(t, "web", "1.0.0", "nightly")
	for name, c := range map[string]struct {
		imgs []artifact.Image
		o    Options
		want string
	}{
		"a version of words": {imgs, Options{}, `"nightly" is no version to Vagrant`},
		"a base of words":    {imgs[:1], Options{URLBase: "boxes"}, "is no place for boxes"},
		"a base with query":  {imgs[:1], Options{URLBase: "https://x/?a"}, "is no place for boxes"},
		"an account of Ruby": {imgs[:1], Options{Box: export.BoxOptions{User: "`id`"}}, "is no account"},
	} {
		dir := filepath.Join(t.TempDir(), "none")
		if _, err := Publish(t.Context(), s, c.imgs, dir, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v does not say %q", name, err, c.want)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: something was written", name)
		}
	}
}

// Many at once lose nothing, and each waits for its turn until it is told to end.
func TestPublishAtOnce(t *testing.T) {
	dir := t.TempDir()
	var versions []string
	for i := range 8 {
		versions = append(versions, fmt.Sprintf("1.%d.0", i))
	}
	s, imgs := imagesOf(t, "web", versions...)
	var wg sync.WaitGroup
	for i := range imgs {
		wg.Go(func() {
			if _, err := Publish(t.Context(), s, []artifact.Image{imgs[i], imgs[(i+1)%8]}, dir, Options{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := listed(t, filepath.Join(dir, "web.json")); len(got) != 8 || len(names(t, dir)) != 10 {
		t.Errorf("%d versions, %v", len(got), names(t, dir))
	}
	unlock, err := lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Publish(ctx, s, imgs[:1], dir, Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := unlock(); err != nil {
		t.Error(err)
	}
}

// Killed at any time, the catalog is whole and names whole boxes; the next
// publisher finishes, and leaves nothing half-made.
func TestKill(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(after time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		defer cancel()
		cmd := exec.CommandContext(ctx, self) // kills it
		cmd.Env = append(os.Environ(), killDir+"="+dir)
		return cmd.Run()
	}
	killed := 0
	for after := 10 * time.Millisecond; ; after += 30 * time.Millisecond {
		err := run(after)
		if path := filepath.Join(dir, "web.json"); exists(path) {
			listed(t, path)
		}
		if err == nil {
			break
		}
		if killed++; killed > 100 {
			t.Fatal("it never ends", err)
		}
		if killed%4 == 0 { // from the start again
			if err := errors.Join(os.RemoveAll(filepath.Join(dir, "web.json")), os.RemoveAll(filepath.Join(dir, "web"))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := listed(t, filepath.Join(dir, "web.json")); len(got) != 3 || len(names(t, dir)) != 5 || killed == 0 {
		t.Errorf("%d versions, %v, after %d kills", len(got), names(t, dir), killed)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
