package conformance

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
)

func storeConcurrent(t *testing.T, s artifact.Store) {
	ctx := limit(t)
	shared := noise(100, 20*block)
	digests := make([]artifact.Digest, 16)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			d := flat(slices.Concat(shared, noise(uint64(200+i), block)))
			content, _, err := s.Write(ctx, d, nil)
			if err != nil {
				t.Errorf("write: %v", err)
				return
			}
			img, err := s.Register(ctx, artifact.Image{Name: "web", Version: fmt.Sprint(i), Content: content, DiskSize: d.size})
			if err != nil {
				t.Errorf("register: %v", err)
				return
			}
			digests[i] = img.Digest
			for _, tag := range []string{fmt.Sprintf("tag-%d", i), "contested"} {
				if err := s.Tag(ctx, "web", tag, img.Digest); err != nil {
					t.Errorf("tag: %v", err)
				}
			}
		})
	}
	wg.Wait()
	for i, d := range digests {
		wantRef(t, s, fmt.Sprintf("web:%d", i), d)
		wantRef(t, s, fmt.Sprintf("web:tag-%d", i), d)
		img, err := resolve(t, s, fmt.Sprintf("web:%d", i))
		if err != nil {
			t.Fatal(err)
		}
		fetch(t, s, img.Content, flat(slices.Concat(shared, noise(uint64(200+i), block))))
	}
	if img, err := resolve(t, s, "web:contested"); err != nil || !slices.Contains(digests, img.Digest) {
		t.Errorf("the contested tag is %s, %v", img.Digest, err)
	}
	// One version, many claims with other content: one is the winner, all others are told.
	var mu sync.Mutex
	won := 0
	for i := range 8 {
		wg.Go(func() {
			content, _, err := s.Write(ctx, flat(noise(uint64(300+i), block)), nil)
			if err != nil {
				t.Errorf("write: %v", err)
				return
			}
			_, err = s.Register(ctx, artifact.Image{Name: "race", Version: "1", Content: content, DiskSize: block})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, artifact.ErrExists) {
				t.Errorf("register: %v", err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d of 8 registered race:1", won)
	}
}

func storeList(t *testing.T, s artifact.Store) {
	l := s.(artifact.Lister)
	want := func(name string, refs ...string) {
		t.Helper()
		all, err := l.List(limit(t), name)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range all {
			got = append(got, fmt.Sprint(i.Name, ":", i.Version, i.Tags))
		}
		if !slices.Equal(got, refs) {
			t.Errorf("list of %q is %v, want %v", name, got, refs)
		}
	}
	want("")
	bake(t, s, "web:1", 1002)
	old := bake(t, s, "web:0", 1000)
	bake(t, s, "db:1", 1001)
	bake(t, s, "web/x:1", 1003)
	for _, tag := range []string{"b", "a"} {
		if err := s.Tag(limit(t), "web", tag, old.Digest); err != nil {
			t.Fatal(err)
		}
	}
	want("", "web/x:1[]", "web:1[]", "db:1[]", "web:0[a b]")
	want("web", "web:1[]", "web:0[a b]")
	want("we")
	// Made in the same second: the higher version is the newer one.
	content := write(t, s, flat(noise(1, block)))
	for _, v := range []string{"20261124.9", "20261124.10", "1.10.0", "1.9.0", "2.0.0"} {
		if _, err := s.Register(limit(t), artifact.Image{Name: "n", Version: v, Content: content, DiskSize: block, Created: time.Unix(1, 0)}); err != nil {
			t.Fatal(err)
		}
	}
	want("n", "n:20261124.10[]", "n:20261124.9[]", "n:2.0.0[]", "n:1.10.0[]", "n:1.9.0[]")
}

func storeRemove(t *testing.T, s artifact.Store) {
	del := s.(artifact.Deleter)
	remove := func(ref string, want error) {
		t.Helper()
		r, err := artifact.ParseRef(ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := del.Remove(limit(t), r); !errors.Is(err, want) {
			t.Errorf("remove %s: %v; want %v", ref, err, want)
		}
	}
	one, two, other := bake(t, s, "web:1", 110), bake(t, s, "web:2", 111), bake(t, s, "db:1", 112)
	for tag, d := range map[string]artifact.Digest{"a": one.Digest, "b": one.Digest, "c": two.Digest} {
		if err := s.Tag(limit(t), "web", tag, d); err != nil {
			t.Fatal(err)
		}
	}
	remove("web:none", artifact.ErrNotFound)
	remove("web:a", nil) // the tag alone
	wantRef(t, s, "web:a", "")
	wantRef(t, s, "web:1", one.Digest)
	wantRef(t, s, "web:b", one.Digest)
	remove("web:a", artifact.ErrNotFound)
	remove("web:1", nil) // the image with its tags
	wantRef(t, s, "web:1", "")
	wantRef(t, s, "web:b", "")
	wantRef(t, s, "web@"+string(one.Digest), "")
	remove("web@"+string(two.Digest[:20]), nil)
	wantRef(t, s, "web:2", "")
	wantRef(t, s, "web:c", "")
	wantRef(t, s, "db:1", other.Digest)
	fetch(t, s, other.Content, flat(noise(112, 3*block)))
	bake(t, s, "web:1", 113) // the name is free again
}

func storePrune(t *testing.T, s artifact.Store) {
	del := s.(artifact.Deleter)
	prune := func(keep ...artifact.Digest) int64 {
		t.Helper()
		freed, err := del.Prune(limit(t), 0, keep)
		if err != nil {
			t.Fatal(err)
		}
		return freed
	}
	base := noise(120, 40*block)
	parent := bakeDisk(t, s, "web:1", flat(base))
	kid := flat(slices.Clone(base))
	kid.parent = parent.Content
	copy(kid.parts[0].data, noise(121, block))
	kid.extents = []artifact.Extent{{Length: block}, {Offset: block, Length: 39 * block, Inherited: true}}
	child := bakeDisk(t, s, "web:2", kid)
	alone := bakeDisk(t, s, "db:1", flat(noise(122, 10*block)))
	prune()
	for _, ref := range []string{"web:1", "web:2", "db:1"} {
		if err := s.Tag(limit(t), ref[:len(ref)-2], "t", must(t, s, ref).Digest); err != nil {
			t.Fatal(err)
		}
	}
	for _, ref := range []artifact.Ref{{Name: "web", Tag: "1"}, {Name: "db", Tag: "1"}} {
		if err := del.Remove(limit(t), ref); err != nil {
			t.Fatal(err)
		}
	}
	if freed := prune(); freed < 10*block {
		t.Errorf("%d bytes freed, of an image of %d", freed, 10*block)
	}
	if err := s.Fetch(limit(t), alone.Content, t.TempDir()+"/x", nil); err == nil {
		t.Error("what was pruned can be fetched")
	}
	fetch(t, s, child.Content, kid) // the child needs its parent no more
	if v, ok := s.(artifact.Verifier); ok {
		if err := v.Verify(limit(t), child, nil); err != nil {
			t.Error(err)
		}
	}
	if freed := prune(); freed != 0 {
		t.Errorf("%d bytes freed a second time", freed)
	}
	fetch(t, s, write(t, s, flat(base)), flat(base)) // what went can be written anew
}

func must(t *testing.T, s artifact.Store, ref string) artifact.Image {
	t.Helper()
	img, err := resolve(t, s, ref)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func bakeDisk(t *testing.T, s artifact.Store, ref string, d *memDisk) artifact.Image {
	t.Helper()
	r, err := artifact.ParseRef(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := s.Register(limit(t), artifact.Image{Name: r.Name, Version: r.Tag, Content: write(t, s, d), DiskSize: d.size})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func storeGrace(t *testing.T, s artifact.Store) {
	del := s.(artifact.Deleter)
	young, kept, lost := flat(noise(130, 4*block)), flat(noise(131, 4*block)), flat(noise(132, 4*block))
	y := write(t, s, young)
	if freed, err := del.Prune(limit(t), time.Hour, nil); err != nil || freed != 0 {
		t.Errorf("%d bytes younger than grace freed, %v", freed, err)
	}
	fetch(t, s, y, young)
	k, l := write(t, s, kept), write(t, s, lost)
	if freed, err := del.Prune(limit(t), 0, []artifact.Digest{k}); err != nil || freed < 8*block {
		t.Errorf("%d bytes freed, %v", freed, err)
	}
	fetch(t, s, k, kept)
	for _, c := range []artifact.Digest{y, l} {
		if _, err := s.Register(limit(t), artifact.Image{Name: "web", Version: "1", Content: c, DiskSize: 4 * block}); err == nil {
			t.Error("an image was registered whose chunks are gone")
		}
	}
	wantRef(t, s, "web:1", "")
	// A kept content that cannot be read: nothing is deleted.
	w := write(t, s, young)
	if _, err := del.Prune(limit(t), 0, []artifact.Digest{l}); err == nil {
		t.Error("prune took a keep that it cannot read")
	}
	fetch(t, s, w, young)
}

func storeVerify(t *testing.T, s artifact.Store) {
	v := s.(artifact.Verifier)
	d := sparse(70*block+1, part{block, noise(140, 9*block)})
	img := bakeDisk(t, s, "web:1", d)
	last := int64(0)
	if err := v.Verify(limit(t), img, func(done, _ int64) { last = done }); err != nil || last != d.size {
		t.Errorf("verify: %v at %d", err, last)
	}
	img.Content = artifact.Digest("sha256:" + fmt.Sprintf("%064d", 1))
	if err := v.Verify(limit(t), img, nil); !errors.Is(err, artifact.ErrCorrupt) {
		t.Errorf("verify of a content that is not there: %v", err)
	}
}
