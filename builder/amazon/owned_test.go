package amazon

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/test/fake"
)

// Whose an AMI is the store says that the build was for. Where it cannot be asked
// nothing is removed.
func TestNothingIsRemovedThatMayBeAnImages(t *testing.T) {
	w := newWorld(t)
	w.deps.Address = "registry.example.org/team"
	b := w.builder()
	d := w.baked(b, "01a")
	defer d.Close()
	img := w.described(d, "1.0.0")
	docs, err := b.Publish(t.Context(), "01a", d, img)
	w.ok(err)
	w.register(img, docs)
	before := w.tagged("01a")

	// gc of somebody whose store is another.
	other, err := oci.Open(t.TempDir())
	w.ok(err)
	gc := w.deps
	gc.Address, gc.Store = "", other
	gc.Open = func(address string) (artifact.Store, error) {
		return nil, errors.New(address + " does not answer")
	}
	if err := Destroy(t.Context(), gc, "01a"); err == nil || !strings.Contains(err.Error(), "registry.example.org/team") {
		t.Errorf("with a store that cannot be asked: %v", err)
	}
	if now := w.tagged("01a"); !slices.Equal(now, before) {
		t.Errorf("there is %q, was %q", now, before)
	}
	gc.Open = func(address string) (artifact.Store, error) {
		if address != w.deps.Address {
			t.Errorf("%q was opened", address)
		}
		return w.store, nil
	}
	w.ok(Destroy(t.Context(), gc, "01a"))
	records, err := ami.Records(t.Context(), w.store, img)
	w.ok(err)
	if now := strings.Join(w.all(), "\n"); len(w.tagged("")) > 0 || !strings.Contains(now, records[0].AMI) || !strings.Contains(now, records[0].Snapshot) {
		t.Errorf("after the store was asked there is %s", now)
	}
}

// Another bake took the version meanwhile: the AMI of the one that never was goes.
func TestTheAMIOfAVersionThatNeverWasGoes(t *testing.T) {
	w := newWorld(t)
	b := w.builder(func(c *Config) { c.AMI.CopyTo = []Copy{{Region: there}} })
	d := w.baked(b, "01a")
	defer d.Close()
	first := w.described(d, "20261129.1")
	docs, err := b.Publish(t.Context(), "01a", d, first)
	w.ok(err)
	old := strings.Join([]string{string(docs[0].Body), string(docs[1].Body)}, " ")
	img := w.described(d, "20261129.2")
	docs, err = b.Publish(t.Context(), "01a", d, img)
	w.ok(err)
	w.register(img, docs)
	w.ok(b.Destroy(t.Context(), "01a"))
	var amis int
	for _, s := range w.all() {
		if id := strings.Fields(s)[1]; strings.HasPrefix(id, "ami-") && id != w.base {
			amis++
			if strings.Contains(old, id) || !strings.Contains(s, "20261129.2") {
				t.Errorf("left: %s", s)
			}
		}
	}
	if amis != 2 || len(w.tagged("")) > 0 {
		t.Errorf("%d AMIs, want 2; with the build's tag: %q", amis, w.tagged(""))
	}
}

// A disk is read many blocks at once, for a block takes its time; of the next one
// only what differs is.
func TestBlocksAreReadBeforeTheyAreNeededAndOnlyWhatChanged(t *testing.T) {
	w := newWorld(t)
	motd := strings.Repeat("0123456789abcdef", 12<<16) // 12 MiB
	big := w.image("big", &fake.Builder{Base: map[string]string{"etc/motd": motd}})
	b := w.builder(func(c *Config) { c.Source.AMI = big })
	var mu sync.Mutex
	var now, asked int
	met := false
	const want = 8
	many := make(chan struct{}) // closed once so many are asked for at once
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if regexp.MustCompile(`/blocks/\d+$`).MatchString(r.URL.Path) {
			mu.Lock()
			asked++
			if now++; now == want && !met {
				close(many)
				met = true
			}
			mu.Unlock()
			select {
			case <-many:
			case <-time.After(time.Second): // who asks for one alone meets nobody
			}
			mu.Lock()
			now--
			mu.Unlock()
		}
		w.cloud.ServeHTTP(rw, r)
	}))
	defer srv.Close()
	b.deps.Config = w.config(srv.URL)
	d := w.baked(b, "01a")
	defer d.Close()
	img := w.described(d, "1.0.0")
	if !met {
		t.Errorf("never were %d blocks asked for at once", want)
	}
	if asked < 24 || asked > 34 {
		t.Errorf("%d blocks were asked for", asked)
	}
	docs, err := b.Publish(t.Context(), "01a", d, img)
	w.ok(err)
	w.register(img, docs)
	w.ok(b.Destroy(t.Context(), "01a"))
	next := w.builder(func(c *Config) { c.Source = Source{Image: "web:1.0.0"} })
	d2 := w.baked(next, "01b")
	defer d2.Close()
	w.cloud.ResetCalls()
	child := w.described(d2, "1.0.1")
	if n := w.cloud.Calls()["ebs:GetSnapshotBlock"]; n < 1 || n > 5 {
		t.Errorf("%d blocks of the next disk were read", n)
	}
	child, err = w.store.Register(t.Context(), child)
	w.ok(err)
	w.ok(w.store.Verify(t.Context(), child, nil))
	whole, err := w.store.OpenDisk(t.Context(), child.Content, "")
	w.ok(err)
	defer whole.Close()
	a, c := make([]byte, 14<<20), make([]byte, 14<<20)
	_, err = whole.ReadAt(a, 0)
	w.ok(err)
	_, err = d2.ReadAt(c, 0)
	w.ok(err)
	if !bytes.Equal(a, c) {
		t.Error("what the store has is not the snapshot")
	}
	w.ok(next.Destroy(t.Context(), "01b"))
}
