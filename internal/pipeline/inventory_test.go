package pipeline_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/inventory"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/require"
	"github.com/rebake/rebake/test/fake"
)

// holding registers an image that says it holds inv; nil: it says nothing.
func holding(t *testing.T, w *world, version string, inv *inventory.Inventory) artifact.Image {
	t.Helper()
	base := w.images()[0]
	img := artifact.Image{Name: "held", Version: version, Content: base.Content, Created: time.Date(2026, 11, len(w.images()), 0, 0, 0, 0, time.UTC),
		Arch: "amd64", Lineage: artifact.Lineage{Parent: "debian:bookworm"}}
	at := w.env.Store.(artifact.Attacher)
	img, err := at.Describe(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	if inv != nil {
		inv.Format = 1
		b, err := inventory.Encode(inv)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := at.Attach(t.Context(), img.Digest, artifact.Attachment{Kind: inventory.Kind, Media: inventory.Media, Created: img.Created}, b); err != nil {
			t.Fatal(err)
		}
	}
	if img, err = w.env.Store.Register(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	return img
}

func attachedTo(t *testing.T, store artifact.Attacher, img artifact.Image) []artifact.Attachment {
	t.Helper()
	list, err := store.Attached(t.Context(), img.Digest, inventory.Kind)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func debs(versions ...string) *inventory.Inventory {
	inv := &inventory.Inventory{OS: map[string]string{"ID": "debian"}}
	for i := 0; i < len(versions); i += 2 {
		inv.Packages = append(inv.Packages, inventory.Package{Manager: "dpkg", Name: versions[i], Version: versions[i+1], Arch: "amd64"})
	}
	return inv
}

func TestADiffReadsWhatIsAttachedAndNoDisk(t *testing.T) {
	store := new(fake.Store)
	w := newWorld(t, t.TempDir(), store)
	w.one(web("", ""), pipeline.BakeOptions{})
	one := holding(t, w, "1", debs("openssl", "3.0.11-1", "zlib1g", "1.2"))
	two := holding(t, w, "2", debs("openssl", "3.0.15-1", "nginx", "1.22", "zlib1g", "1.2"))
	silent := holding(t, w, "3", nil)

	s, err := pipeline.DiffSummary(t.Context(), w.env, one, two)
	if err != nil || s.String() != "packages: 1 up, 1 added" || len(s.Packages) != 2 || s.Packages[1] != (inventory.Change{Name: "openssl:amd64", What: inventory.Up, From: "3.0.11-1", To: "3.0.15-1"}) {
		t.Errorf("%+v, %v", s, err)
	}
	for _, pair := range [][2]artifact.Image{{one, silent}, {silent, one}} {
		if _, err := pipeline.DiffSummary(t.Context(), w.env, pair[0], pair[1]); !errors.Is(err, pipeline.ErrNoInventory) || !strings.Contains(err.Error(), "held:3: it carries no inventory") {
			t.Error(err)
		}
	}
	hostile := holding(t, w, "4", &inventory.Inventory{Packages: []inventory.Package{{Manager: "x", Name: "a", Version: "1"}}})
	if _, err := pipeline.DiffSummary(t.Context(), w.env, hostile, two); err == nil || !strings.Contains(err.Error(), "held:4: read the inventory") {
		t.Error(err)
	}
	b, err := store.ReadAttachment(t.Context(), attachedTo(t, store, one)[0])
	if err != nil {
		t.Fatal(err)
	}
	store.Tamper(b)
	if _, err := pipeline.DiffSummary(t.Context(), w.env, one, two); !errors.Is(err, artifact.ErrCorrupt) {
		t.Error(err)
	}
}

// A bake lists what the sealed guest holds, and a fleet may ask for that.
func TestABakeListsWhatItHolds(t *testing.T) {
	store := new(fake.Store)
	w := newWorld(t, t.TempDir(), store)
	img := w.one(web("  - file: {content: gone, destination: /var/log/build.log}\n", ""), pipeline.BakeOptions{}).Image
	inv, err := pipeline.Inventory(t.Context(), w.env, img)
	if err != nil {
		t.Fatal(err)
	}
	if img.Lineage.Holds == "" {
		t.Error("the image does not name its inventory")
	}
	// What somebody else attaches, dated earlier than the bake's, is not the image's.
	forged, err := inventory.Encode(&inventory.Inventory{Format: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Attach(t.Context(), img.Digest, artifact.Attachment{Kind: inventory.Kind, Media: inventory.Media, Created: img.Created.Add(-time.Hour)}, forged); err != nil {
		t.Fatal(err)
	}
	if again, err := pipeline.Inventory(t.Context(), w.env, img); err != nil || len(again.Files) != len(inv.Files) {
		t.Errorf("%v, %v: that of somebody else", again, err)
	}
	held := map[string]inventory.File{}
	for _, f := range inv.Files {
		held[f.Path] = f
	}
	sum := sha256.Sum256([]byte("release 1\n"))
	if f := held["/www/index.html"]; f.Digest != "sha256:"+hex.EncodeToString(sum[:]) || f.Mode != 0o644 || f.Size != 10 {
		t.Errorf("%+v", f)
	}
	if f, there := held["/var/log/build.log"]; !there || f.Size != 0 {
		t.Errorf("%+v: it is that of a guest that is not sealed", f)
	}
	if _, there := held["/root/.ssh/authorized_keys"]; there {
		t.Error("the key of the build is listed")
	}
	refused := func(text string) string {
		t.Helper()
		img := w.one(text, pipeline.BakeOptions{}).Image
		found, err := pipeline.VerifyImage(w.record(t.Context()), w.env, img, require.Rules{SBOM: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := require.Refused(img, found); err != nil {
			return err.Error()
		}
		return ""
	}
	if why := refused(web("", "")); why != "" {
		t.Error(why)
	}
	if why := refused("seal: {inventory: packages}\n" + web("", "")); why != "" {
		t.Error(why)
	}
	// An empty bill would pass for a complete one.
	blind := "  - file: {content: '', destination: /var/lib/rpm/rpmdb.sqlite}\n"
	if why := refused(web(blind, "")); !strings.Contains(why, "without SBOM") {
		t.Errorf("%q: nobody knows the packages", why)
	}
	if said := w.said(); !strings.Contains(said, "warning inventory the inventory does not tell packages: the guest has no rpm") {
		t.Error(said)
	}
	if _, err := w.bake("seal: {skip: [log]}\n"+web("", ""), pipeline.BakeOptions{}); err == nil || !strings.Contains(err.Error(), `seal.skip: no item "log"`) {
		t.Error(err)
	}
	if why := refused("seal: {inventory: off}\n" + web("", "")); !strings.Contains(why, "without SBOM") {
		t.Error(why)
	}
	if inv, err := pipeline.Inventory(t.Context(), w.env, w.images()[0]); !errors.Is(err, pipeline.ErrNoInventory) {
		t.Errorf("%v, %v", inv, err)
	}
}
