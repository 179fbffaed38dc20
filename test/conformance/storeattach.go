package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rebake/rebake/artifact"
)

const noteKind = "application/vnd.rebake.test.note.v1+json"

// StoreAttach is the suite of artifact.Attacher. Each call of open returns an
// empty store; tamper changes, behind the store's back, the bytes of every
// attachment that has this body, and leaves their number as it is.
func StoreAttach(t *testing.T, open func(t *testing.T) (s artifact.Store, tamper func(body []byte))) {
	run := func(name string, f func(*testing.T, artifact.Store, artifact.Attacher)) {
		t.Run(name, func(t *testing.T) {
			s, _ := open(t)
			f(t, s, s.(artifact.Attacher))
		})
	}
	run("what is read is what was attached", attachRoundTrip)
	run("before the image is registered", attachBefore)
	run("attachments are no images", attachHidden)
	run("what is no attachment is refused", attachRefused)
	run("sixteen at once lose nothing", attachMany)
	s, _ := open(t)
	if _, ok := s.(artifact.AttachedLister); ok {
		run("all at once are those of each", attachAll)
	}
	if _, ok := s.(artifact.Deleter); ok {
		run("they go with their image", attachRemoved)
		run("prune keeps them with their image", attachPruned)
	}
	t.Run("other bytes are found out", func(t *testing.T) {
		s, tamper := open(t)
		attachTampered(t, s, tamper)
	})
}

func note(second int64, notes map[string]string) artifact.Attachment {
	return artifact.Attachment{Kind: noteKind, Media: "application/json", Created: time.Unix(second, 0).UTC(), Notes: notes}
}

func attach(t *testing.T, a artifact.Attacher, to artifact.Digest, n artifact.Attachment, body string) artifact.Attachment {
	t.Helper()
	got, err := a.Attach(limit(t), to, n, []byte(body))
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	want := n
	want.Digest, want.Size = got.Digest, int64(len(body))
	if d := cmp.Diff(want, got); d != "" || got.Digest.Validate() != nil {
		t.Fatalf("attach returned %s", d)
	}
	return got
}

// wantAttached fails the test unless these are listed, in this order, with these bodies.
func wantAttached(t *testing.T, a artifact.Attacher, to artifact.Digest, kind string, want []artifact.Attachment, bodies ...string) {
	t.Helper()
	got, err := a.Attached(limit(t), to, kind)
	if err != nil {
		t.Fatalf("attached: %v", err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("attached (-want +got):\n%s", d)
	}
	for i, b := range bodies {
		if raw, err := a.ReadAttachment(limit(t), got[i]); err != nil || string(raw) != b {
			t.Errorf("attachment %d is %q, %v; want %q", i, raw, err, b)
		}
	}
}

func attachRoundTrip(t *testing.T, s artifact.Store, a artifact.Attacher) {
	img, other := bake(t, s, "web:1", 500), bake(t, s, "web:2", 501)
	wantAttached(t, a, img.Digest, "", nil)
	later := attach(t, a, img.Digest, note(20, map[string]string{"who": "ann", "why": "a \"reason\"\nin two lines"}), "later")
	first := attach(t, a, img.Digest, note(10, nil), "first")
	same := attach(t, a, img.Digest, note(20, nil), "the same second, attached after")
	foreign := note(15, nil)
	foreign.Kind = "application/vnd.other.v1+json"
	foreign = attach(t, a, img.Digest, foreign, "foreign")
	attach(t, a, other.Digest, note(5, nil), "first")
	if again := attach(t, a, img.Digest, note(10, nil), "first"); again.Digest != first.Digest {
		t.Errorf("the same document again is %s, not %s", again.Digest, first.Digest)
	}
	wantAttached(t, a, img.Digest, "", []artifact.Attachment{first, foreign, later, same}, "first", "foreign", "later", "the same second, attached after")
	wantAttached(t, a, img.Digest, noteKind, []artifact.Attachment{first, later, same})
	wantAttached(t, a, img.Digest, "application/vnd.none", nil)
	large := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	attach(t, a, other.Digest, note(6, nil), large)
	got, err := a.Attached(limit(t), other.Digest, "")
	if err != nil || len(got) != 2 {
		t.Fatalf("%d are attached to the other image, %v; want 2", len(got), err)
	}
	if raw, err := a.ReadAttachment(limit(t), got[1]); err != nil || string(raw) != large {
		t.Errorf("a large one comes back with %d bytes, %v", len(raw), err)
	}
	if v, ok := s.(artifact.Verifier); ok {
		if err := v.Verify(limit(t), img, nil); err != nil {
			t.Error(err)
		}
	}
}

func attachBefore(t *testing.T, s artifact.Store, a artifact.Attacher) {
	img := artifact.Image{Name: "web", Version: "1", Content: write(t, s, flat(noise(510, 3*block))), Created: time.Unix(9, 0).UTC()}
	said, err := a.Describe(limit(t), img)
	if err != nil || said.DiskSize != 3*block {
		t.Fatalf("describe: %d bytes, %v", said.DiskSize, err)
	}
	wantRef(t, s, "web:1", "")
	doc := attach(t, a, said.Digest, note(1, nil), "early")
	wantRef(t, s, "web:1", "")
	if del, ok := s.(artifact.Deleter); ok {
		if _, err := del.Prune(limit(t), time.Hour, nil); err != nil {
			t.Fatal(err)
		}
	}
	wantAttached(t, a, said.Digest, "", []artifact.Attachment{doc}, "early")
	done, err := s.Register(limit(t), img)
	if d := cmp.Diff(said, done); err != nil || d != "" {
		t.Fatalf("registered as described: %v %s", err, d)
	}
	wantAttached(t, a, done.Digest, "", []artifact.Attachment{doc}, "early")
	img.Content = artifact.Digest("sha256:" + strings.Repeat("7", 64))
	if _, err := a.Describe(limit(t), img); err == nil {
		t.Error("an image without content was described")
	}
}

func attachHidden(t *testing.T, s artifact.Store, a artifact.Attacher) {
	img := bake(t, s, "web:1", 520)
	doc := attach(t, a, img.Digest, note(1, nil), "x")
	if l, ok := s.(artifact.Lister); ok {
		all, err := l.List(limit(t), "")
		if err != nil || len(all) != 1 || all[0].Digest != img.Digest {
			t.Errorf("the list is %v, %v", all, err)
		}
	}
	wantRef(t, s, "web@"+string(doc.Digest), "")
	if err := s.Tag(limit(t), "web", "t", doc.Digest); !errors.Is(err, artifact.ErrNotFound) {
		t.Errorf("an attachment was tagged: %v", err)
	}
	if err := s.Tag(limit(t), "web", "t", img.Digest); err != nil { // does not disturb them
		t.Fatal(err)
	}
	bake(t, s, "web:2", 521)
	wantAttached(t, a, img.Digest, "", []artifact.Attachment{doc}, "x")
}

func attachRefused(t *testing.T, s artifact.Store, a artifact.Attacher) {
	img := bake(t, s, "web:1", 530)
	with := func(edit func(*artifact.Attachment)) artifact.Attachment {
		n := note(1, nil)
		edit(&n)
		return n
	}
	for name, c := range map[string]struct {
		a    artifact.Attachment
		body []byte
	}{
		"too large":    {note(1, nil), make([]byte, artifact.MaxAttachment+1)},
		"of no bytes":  {note(1, nil), nil},
		"of no kind":   {with(func(a *artifact.Attachment) { a.Kind = "" }), []byte("x")},
		"of no type":   {with(func(a *artifact.Attachment) { a.Media = "json" }), []byte("x")},
		"of no time":   {with(func(a *artifact.Attachment) { a.Created = time.Time{} }), []byte("x")},
		"with a clash": {with(func(a *artifact.Attachment) { a.Notes = map[string]string{"org.opencontainers.image.created": "x"} }), []byte("x")},
	} {
		if _, err := a.Attach(limit(t), img.Digest, c.a, c.body); err == nil {
			t.Errorf("one that is %s was attached", name)
		}
	}
	for _, to := range []artifact.Digest{artifact.Digest("sha256:" + strings.Repeat("8", 64)), "", "sha256:../../x"} {
		if _, err := a.Attach(limit(t), to, note(1, nil), []byte("x")); !errors.Is(err, artifact.ErrNotFound) {
			t.Errorf("attach to %q: %v; want ErrNotFound", to, err)
		}
		if got, err := a.Attached(limit(t), to, ""); err != nil || len(got) > 0 {
			t.Errorf("attached to %q: %v, %v", to, got, err)
		}
	}
	wantAttached(t, a, img.Digest, "", nil)
	if _, err := a.ReadAttachment(limit(t), artifact.Attachment{Digest: artifact.Digest("sha256:" + strings.Repeat("8", 64)), Size: 1}); err == nil {
		t.Error("one that is not there was read")
	}
}

func attachMany(t *testing.T, s artifact.Store, a artifact.Attacher) {
	img := bake(t, s, "web:1", 540)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for _, body := range []string{"the same", fmt.Sprint(i)} {
				if _, err := a.Attach(limit(t), img.Digest, note(1, nil), []byte(body)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, err := a.Attached(limit(t), img.Digest, "")
	if err != nil || len(got) != 17 {
		t.Errorf("%d are attached, %v; want 17", len(got), err)
	}
}

func attachAll(t *testing.T, s artifact.Store, a artifact.Attacher) {
	images := []artifact.Image{bake(t, s, "web:1", 545), bake(t, s, "web:2", 546), bake(t, s, "web:3", 547)}
	for i, img := range images[:2] {
		for _, second := range []int64{3, 1, 2} {
			attach(t, a, img.Digest, note(second, nil), fmt.Sprint(i, second))
		}
		other := note(1, nil)
		other.Kind = "application/vnd.rebake.test.other.v1+json"
		attach(t, a, img.Digest, other, "other")
	}
	all, err := s.(artifact.AttachedLister).AttachedAll(limit(t), noteKind)
	if err != nil || len(all) != 2 {
		t.Errorf("of %d images, %v; want 2", len(all), err)
	}
	for _, img := range images {
		each, err := a.Attached(limit(t), img.Digest, noteKind)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(each, all[img.Digest]); diff != "" {
			t.Errorf("%s: each, and all: %s", img.Version, diff)
		}
	}
}

func attachRemoved(t *testing.T, s artifact.Store, a artifact.Attacher) {
	del := s.(artifact.Deleter)
	one, two := bake(t, s, "web:1", 550), bake(t, s, "web:2", 551)
	attach(t, a, one.Digest, note(1, nil), "one")
	kept := attach(t, a, two.Digest, note(1, nil), "two")
	if err := s.Tag(limit(t), "web", "t", one.Digest); err != nil {
		t.Fatal(err)
	}
	if err := del.Remove(limit(t), artifact.Ref{Name: "web", Tag: "t"}); err != nil {
		t.Fatal(err)
	}
	if got, err := a.Attached(limit(t), one.Digest, ""); err != nil || len(got) != 1 {
		t.Errorf("they went with a tag: %v, %v", got, err)
	}
	if err := del.Remove(limit(t), artifact.Ref{Name: "web", Tag: "1"}); err != nil {
		t.Fatal(err)
	}
	wantAttached(t, a, one.Digest, "", nil)
	wantAttached(t, a, two.Digest, "", []artifact.Attachment{kept}, "two")
}

func attachPruned(t *testing.T, s artifact.Store, a artifact.Attacher) {
	del := s.(artifact.Deleter)
	img := bake(t, s, "web:1", 560)
	kept := attach(t, a, img.Digest, note(1, nil), "kept")
	never, err := a.Describe(limit(t), artifact.Image{Name: "web", Version: "2", Content: img.Content})
	if err != nil {
		t.Fatal(err)
	}
	attach(t, a, never.Digest, note(1, nil), "of an image that never came")
	if _, err := del.Prune(limit(t), 0, nil); err != nil {
		t.Fatal(err)
	}
	wantAttached(t, a, never.Digest, "", nil)
	wantAttached(t, a, img.Digest, "", []artifact.Attachment{kept}, "kept")
	if v, ok := s.(artifact.Verifier); ok {
		if err := v.Verify(limit(t), img, nil); err != nil {
			t.Error(err)
		}
	}
}

func attachTampered(t *testing.T, s artifact.Store, tamper func([]byte)) {
	a := s.(artifact.Attacher)
	img := bake(t, s, "web:1", 570)
	doc, whole := attach(t, a, img.Digest, note(1, nil), "what was said"), attach(t, a, img.Digest, note(2, nil), "something else")
	tamper([]byte("what was said"))
	if raw, err := a.ReadAttachment(limit(t), doc); !errors.Is(err, artifact.ErrCorrupt) {
		t.Errorf("read %q, %v; want ErrCorrupt", raw, err)
	}
	if raw, err := a.ReadAttachment(limit(t), whole); err != nil || !bytes.Equal(raw, []byte("something else")) {
		t.Errorf("the whole one is %q, %v", raw, err)
	}
	got, err := a.Attached(limit(t), img.Digest, "")
	if err != nil || !slices.EqualFunc(got, []artifact.Attachment{doc, whole}, func(a, b artifact.Attachment) bool { return a.Digest == b.Digest }) {
		t.Errorf("attached: %v, %v", got, err)
	}
	if v, ok := s.(artifact.Verifier); ok {
		if err := v.Verify(limit(t), img, nil); !errors.Is(err, artifact.ErrCorrupt) {
			t.Errorf("verify: %v; want ErrCorrupt", err)
		}
	}
}
