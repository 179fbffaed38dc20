package pipeline

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/inventory"
	"github.com/rebake/rebake/internal/lifecycle"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/test/fake"
)

// from is a builder whose base is an image of the store.
type from struct {
	builder.Builder
	ref string
}

func (f from) From() string { return f.ref }

// image registers name:version with that lineage.
func image(t *testing.T, s *fake.Store, name, version string, l artifact.Lineage) artifact.Image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := artifact.FileDisk(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	content, _, err := s.Write(t.Context(), d, nil)
	if err != nil {
		t.Fatal(err)
	}
	img, err := s.Register(t.Context(), artifact.Image{Name: name, Version: version, Content: content, Lineage: l})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestAnImageKnowsAllThatItWasMadeFrom(t *testing.T) {
	s := new(fake.Store)
	debian := artifact.Digest("sha256:" + strings.Repeat("d", 64))
	lineage := artifact.Lineage{Parent: "debian:bookworm", ParentDigest: debian}
	for _, name := range []string{"base", "app", "web"} {
		img := image(t, s, name, "1", lineage)
		lineage = artifact.Lineage{Parent: name + ":1", ParentDigest: img.Digest}
		k := &bake{env: Env{Store: s}, tpl: &template.Template{Name: "next"}, builder: from{ref: name + ":stable"}}
		if err := k.descend(t.Context(), &lineage); err != nil {
			t.Fatal(err)
		}
		if lineage.From != name+":stable" {
			t.Errorf("from %q", lineage.From)
		}
	}
	var refs []string
	for _, a := range lineage.Ancestors {
		refs = append(refs, a.Ref)
	}
	if want := []string{"app:1", "base:1", "debian:bookworm"}; !slices.Equal(refs, want) || lineage.Ancestors[2].Digest != debian {
		t.Errorf("%v, want %v", lineage.Ancestors, want)
	}
}

func TestAPromotionKeepsWhatChanged(t *testing.T) {
	s := new(fake.Store)
	env := Env{Store: s}
	one, two, mute := image(t, s, "web", "1", artifact.Lineage{}), image(t, s, "web", "2", artifact.Lineage{}), image(t, s, "web", "3", artifact.Lineage{})
	for img, openssl := range map[*artifact.Image]string{&one: "3.0.15-1", &two: "3.0.16-1"} {
		b, err := inventory.Encode(&inventory.Inventory{Format: 1, OS: map[string]string{"ID": "debian"}, Packages: []inventory.Package{
			{Manager: "dpkg", Name: "openssl", Version: openssl, Arch: "amd64"}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Attach(t.Context(), img.Digest, artifact.Attachment{Kind: inventory.Kind, Media: inventory.Media, Created: time.Unix(1, 0)}, b); err != nil {
			t.Fatal(err)
		}
	}
	for _, img := range []artifact.Image{one, two, mute} {
		if _, err := lifecycle.Promote(t.Context(), s, lifecycle.Me(), img, "stable", "x", env.Changes); err != nil {
			t.Fatal(err)
		}
	}
	h, err := lifecycle.History(t.Context(), s, "web", "stable")
	if err != nil || len(h.Entries) != 3 || h.Entries[2].Changes != nil {
		t.Fatalf("%+v, %v", h, err)
	}
	if c := h.Entries[1].Changes; !strings.Contains(c.Summary, "packages: 1 up") || !strings.Contains(string(c.Detail), "3.0.16-1") {
		t.Errorf("%s %s", c.Summary, c.Detail)
	}
	if c := h.Entries[0].Changes; !strings.Contains(c.Summary, "unknown: web:3: it carries no inventory") || c.Detail != nil {
		t.Errorf("%s %s", c.Summary, c.Detail)
	}
}

func TestARevokedBaseIsRefused(t *testing.T) {
	s := new(fake.Store)
	base := image(t, s, "base", "1", artifact.Lineage{})
	env := Env{Store: s}
	if err := env.CheckBase(t.Context(), base); err != nil {
		t.Error(err)
	}
	if _, err := lifecycle.Revoke(t.Context(), s, lifecycle.Me(), base, time.Time{}, "leaks"); err != nil {
		t.Fatal(err)
	}
	if err := env.CheckBase(t.Context(), base); !errors.Is(err, lifecycle.ErrRevoked) || !strings.Contains(err.Error(), "base:1 is revoked: leaks") {
		t.Error(err)
	}
	env.AllowRevoked = true
	var warned []string
	ctx := event.With(t.Context(), func(e event.Event) { warned = append(warned, e.Text) }, &event.Redactor{})
	if err := env.CheckBase(ctx, base); err != nil || len(warned) != 1 || !strings.Contains(warned[0], "so is what is made from it: leaks") {
		t.Errorf("%v, %q", err, warned)
	}
	// A store that keeps no attachments has nothing revoked in it.
	if err := (Env{Store: struct{ artifact.Store }{s}}).CheckBase(t.Context(), base); err != nil {
		t.Error(err)
	}
}

func TestAReleaseIsOfWhatIsCommitted(t *testing.T) {
	dir := t.TempDir()
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@b"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	write := func(path, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o700), os.WriteFile(filepath.Join(dir, path), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	git("init", "-q")
	write("web/web.yaml", "one")
	git("add", ".")
	git("commit", "-qm", "one")
	ask := func(change func(k *bake)) error {
		k := &bake{tpl: &template.Template{Name: "web", Dir: filepath.Join(dir, "web"), Tagged: true}, version: "v1.4.0"}
		if change != nil {
			change(k)
		}
		return k.checkClean(t.Context())
	}
	write("elsewhere", "is not asked about")
	if err := ask(nil); err != nil {
		t.Errorf("clean: %v", err)
	}
	write("web/page.html", "in no commit")
	if err := ask(nil); err == nil || !strings.Contains(err.Error(), "1 files below") || !strings.Contains(err.Error(), "web/page.html") {
		t.Errorf("dirty: %v", err)
	}
	for name, change := range map[string]func(k *bake){
		"not from a tag":        func(k *bake) { k.tpl.Tagged = false },
		"a version by hand":     func(k *bake) { k.opts.Version = "v1.4.0" },
		"no release":            func(k *bake) { k.version = "nightly-7" },
		"allowed":               func(k *bake) { k.opts.AllowDirty = true },
		"nothing to bake":       func(k *bake) { k.current = &artifact.Image{} },
		"outside of repository": func(k *bake) { k.tpl.Dir = os.TempDir() },
	} {
		if err := ask(change); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if commit, changed := gitState(context.Background(), filepath.Join(dir, "web")); len(commit) != 40 || len(changed) != 1 {
		t.Errorf("%s, %q", commit, changed)
	}
}
