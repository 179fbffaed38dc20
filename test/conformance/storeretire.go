package conformance

import (
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

// storeRetiring is the suite of artifact.Retirer.
func storeRetiring(t *testing.T, open func(t *testing.T) artifact.Store) {
	t.Run("what is known of a retired image stays", func(t *testing.T) { retireKeeps(t, open(t)) })
	t.Run("a retired version stays taken", func(t *testing.T) { retireTakes(t, open(t)) })
	t.Run("a retired image comes back as the same one", func(t *testing.T) { retireBack(t, open(t)) })
	t.Run("a child is whole without its retired parent", func(t *testing.T) { retireParent(t, open(t)) })
	t.Run("an image whose tags moved is not retired", func(t *testing.T) { retireMoved(t, open(t)) })
	t.Run("sixteen retire at once", func(t *testing.T) { retireMany(t, open(t)) })
}

var retiredAt = time.Date(2026, 11, 28, 12, 0, 1, 5, time.FixedZone("", 3600))

func retire(t *testing.T, s artifact.Store, img artifact.Image, why string, at time.Time) artifact.Removed {
	t.Helper()
	if err := s.(artifact.Retirer).Retire(limit(t), img, why, at); err != nil {
		t.Fatalf("retire %s:%s: %v", img.Name, img.Version, err)
	}
	return artifact.Removed{Image: img, Why: why, At: at.UTC().Truncate(time.Second)}
}

func wantRemoved(t *testing.T, s artifact.Store, name string, want ...artifact.Removed) {
	t.Helper()
	got, err := s.(artifact.Retirer).Removed(limit(t), name)
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("removed of %q: %v (-want +got)\n%s", name, err, d)
	}
}

func retireKeeps(t *testing.T, s artifact.Store) {
	old, kept, other := bake(t, s, "web:1", 600), bake(t, s, "web:2", 601), bake(t, s, "db:1", 602)
	for tag, d := range map[string]artifact.Digest{"b": old.Digest, "a": old.Digest, "c": kept.Digest} {
		if err := s.Tag(limit(t), "web", tag, d); err != nil {
			t.Fatal(err)
		}
	}
	var small []artifact.Attachment
	a, attaches := s.(artifact.Attacher)
	if attaches {
		small = append(small, attach(t, a, old.Digest, note(1, map[string]string{"by": "ann"}), "small"))
		attach(t, a, old.Digest, note(2, nil), strings.Repeat("large", artifact.MaxKept/5+1))
	}
	old = must(t, s, "web:1")
	one := retire(t, s, old, "beyond keep_last 1\nand \"more\"", retiredAt)
	two := retire(t, s, other, "by hand", retiredAt.Add(time.Hour))
	wantRemoved(t, s, "", two, one)
	wantRemoved(t, s, "web", one)
	wantRemoved(t, s, "we")
	for _, ref := range []string{"web:1", "web:a", "web:b", "web@" + string(old.Digest), "web@" + string(old.Digest[:20]), "db:1"} {
		wantRef(t, s, ref, "")
	}
	for ref, want := range map[string]artifact.Removed{"web:1": one, "web@" + string(old.Digest[:20]): one, "db:1": two} {
		_, err := resolve(t, s, ref)
		if gone := (*artifact.RemovedError)(nil); !errors.As(err, &gone) || cmp.Diff(want, gone.Removed) != "" {
			t.Errorf("%s: %v; want a RemovedError that tells all", ref, err)
		}
	}
	wantRef(t, s, "web:c", kept.Digest)
	if l, ok := s.(artifact.Lister); ok {
		if all, err := l.List(limit(t), ""); err != nil || len(all) != 1 || all[0].Digest != kept.Digest {
			t.Errorf("the list is %v, %v", all, err)
		}
	}
	if freed, err := s.(artifact.Deleter).Prune(limit(t), 0, nil); err != nil || freed < 6*block {
		t.Errorf("%d bytes freed of two disks of %d, %v", freed, 3*block, err)
	}
	if err := s.Fetch(limit(t), old.Content, t.TempDir()+"/x", nil); err == nil {
		t.Error("the disk of a retired image can be fetched after a prune")
	}
	fetch(t, s, kept.Content, flat(noise(601, 3*block)))
	if freed, err := s.(artifact.Deleter).Prune(limit(t), 0, nil); err != nil || freed != 0 {
		t.Errorf("%d bytes freed a second time, %v", freed, err)
	}
	wantRemoved(t, s, "", two, one)
	if attaches {
		wantAttached(t, a, old.Digest, "", small, "small")
		small = append(small, attach(t, a, old.Digest, note(3, nil), "said later"))
		wantAttached(t, a, old.Digest, "", small, "small", "said later")
	}
	if err := s.(artifact.Retirer).Retire(limit(t), old, "again", retiredAt); !errors.Is(err, artifact.ErrNotFound) {
		t.Errorf("retired twice: %v; want ErrNotFound", err)
	}
}

func retireTakes(t *testing.T, s artifact.Store) {
	retire(t, s, bake(t, s, "web:1", 610), "x", retiredAt)
	two := bake(t, s, "web:2", 611)
	if _, err := s.Register(limit(t), artifact.Image{Name: "web", Version: "1", Content: two.Content}); !errors.Is(err, artifact.ErrExists) {
		t.Errorf("another image of the version: %v; want ErrExists", err)
	}
	if err := s.Tag(limit(t), "web", "1", two.Digest); !errors.Is(err, artifact.ErrExists) {
		t.Errorf("a tag of the version's name: %v; want ErrExists", err)
	}
	bake(t, s, "db:1", 612) // another name's
}

func retireBack(t *testing.T, s artifact.Store) {
	img := bake(t, s, "web:1", 620)
	a, attaches := s.(artifact.Attacher)
	var doc artifact.Attachment
	if attaches {
		doc = attach(t, a, img.Digest, note(1, nil), "x")
	}
	retire(t, s, img, "x", retiredAt)
	if _, err := s.(artifact.Deleter).Prune(limit(t), 0, nil); err != nil {
		t.Fatal(err)
	}
	if again := bake(t, s, "web:1", 620); again.Digest != img.Digest {
		t.Fatalf("it came back as %s, not %s", again.Digest, img.Digest)
	}
	wantRef(t, s, "web:1", img.Digest)
	wantRemoved(t, s, "")
	if attaches {
		wantAttached(t, a, img.Digest, "", []artifact.Attachment{doc}, "x")
	}
	if v, ok := s.(artifact.Verifier); ok {
		if err := v.Verify(limit(t), img, nil); err != nil {
			t.Error(err)
		}
	}
	retire(t, s, img, "once more", retiredAt) // and goes again
	wantRef(t, s, "web:1", "")
}

func retireParent(t *testing.T, s artifact.Store) {
	base := noise(660, 40*block)
	parent := bakeDisk(t, s, "web:1", flat(base))
	kid := flat(slices.Clone(base))
	kid.parent = parent.Content
	copy(kid.parts[0].data, noise(661, block))
	kid.extents = []artifact.Extent{{Length: block}, {Offset: block, Length: 39 * block, Inherited: true}}
	child := bakeDisk(t, s, "web:2", kid)
	retire(t, s, parent, "x", retiredAt)
	if _, err := s.(artifact.Deleter).Prune(limit(t), 0, nil); err != nil {
		t.Fatal(err)
	}
	fetch(t, s, child.Content, kid)
	if v, ok := s.(artifact.Verifier); ok {
		if err := v.Verify(limit(t), child, nil); err != nil {
			t.Error(err)
		}
	}
	// A grandchild is made of the child, as if the parent had never been.
	grand := flat(slices.Clone(kid.parts[0].data))
	grand.parent = child.Content
	copy(grand.parts[0].data[block:], noise(662, block))
	grand.extents = []artifact.Extent{{Length: block, Inherited: true}, {Offset: block, Length: block}, {Offset: 2 * block, Length: 38 * block, Inherited: true}}
	fetch(t, s, bakeDisk(t, s, "web:3", grand).Content, grand)
}

func retireMoved(t *testing.T, s artifact.Store) {
	img, other := bake(t, s, "web:1", 630), bake(t, s, "web:2", 631)
	if err := s.Tag(limit(t), "web", "stable", img.Digest); err != nil {
		t.Fatal(err)
	}
	r := s.(artifact.Retirer)
	if err := r.Retire(limit(t), img, "x", retiredAt); !errors.Is(err, artifact.ErrInUse) { // as it was before the tag
		t.Errorf("a tag that came meanwhile: %v; want ErrInUse", err)
	}
	wantRef(t, s, "web:1", img.Digest)
	wantRef(t, s, "web:stable", img.Digest)
	tagged := must(t, s, "web:1")
	if err := s.Tag(limit(t), "web", "stable", other.Digest); err != nil {
		t.Fatal(err)
	}
	if err := r.Retire(limit(t), tagged, "x", retiredAt); !errors.Is(err, artifact.ErrInUse) {
		t.Errorf("a tag that went meanwhile: %v; want ErrInUse", err)
	}
	wantRemoved(t, s, "")
	retire(t, s, must(t, s, "web:1"), "x", retiredAt)
	wantRef(t, s, "web:stable", other.Digest)
}

func retireMany(t *testing.T, s artifact.Store) {
	var images []artifact.Image
	for i := range 16 {
		images = append(images, bake(t, s, fmt.Sprintf("web:%d", i), uint64(640+i)))
	}
	var wg sync.WaitGroup
	won := make([]int, 8)
	for i, img := range images {
		wg.Go(func() {
			if i >= 8 { // stays, under a tag of its own
				if err := s.Tag(limit(t), "web", fmt.Sprintf("tag-%d", i), img.Digest); err != nil {
					t.Error(err)
				}
				return
			}
			var both sync.WaitGroup
			var mu sync.Mutex
			for range 2 { // of two one is the winner
				both.Go(func() {
					err := s.(artifact.Retirer).Retire(limit(t), img, "x", retiredAt)
					if err != nil && !errors.Is(err, artifact.ErrNotFound) {
						t.Error(err)
					}
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						won[i]++
					}
				})
			}
			both.Wait()
		})
	}
	wg.Wait()
	for i, img := range images {
		if i >= 8 {
			wantRef(t, s, fmt.Sprintf("web:tag-%d", i), img.Digest)
			continue
		}
		wantRef(t, s, fmt.Sprintf("web:%d", i), "")
		if won[i] != 1 {
			t.Errorf("web:%d was retired %d times", i, won[i])
		}
	}
	if all, err := s.(artifact.Retirer).Removed(limit(t), "web"); err != nil || len(all) != 8 {
		t.Errorf("%d were retired, %v; want 8", len(all), err)
	}
}
