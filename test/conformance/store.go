package conformance

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rebake/rebake/artifact"
)

// Store is the suite of artifact.Store and, for a store that has them, of
// Lister, Deleter, Retirer (and Deleter with it) and Verifier. Each call of open returns an empty store.
func Store(t *testing.T, open func(t *testing.T) artifact.Store) { store(t, open, 12) }

// StoreOver is the same for a store that keeps its disks in one which passes
// Store: with fewer random ones.
func StoreOver(t *testing.T, open func(t *testing.T) artifact.Store) { store(t, open, 2) }

func store(t *testing.T, open func(t *testing.T) artifact.Store, seeds uint64) {
	t.Run("what is fetched is what was written", func(t *testing.T) { storeRoundTrip(t, open(t)) })
	t.Run("random disks with parents", func(t *testing.T) { storeRandom(t, open(t), seeds) })
	t.Run("a disk made smaller, then larger", func(t *testing.T) { storeRegrown(t, open(t)) })
	t.Run("what the store has is not added again", func(t *testing.T) { storeTwins(t, open(t)) })
	t.Run("a disk that lies is refused", func(t *testing.T) { storeBadDisks(t, open(t)) })
	t.Run("an image comes back as it was registered", func(t *testing.T) { storeMetadata(t, open(t)) })
	t.Run("a version never changes", func(t *testing.T) { storeVersions(t, open(t)) })
	t.Run("what cannot be registered is not visible", func(t *testing.T) { storeRefused(t, open(t)) })
	t.Run("references", func(t *testing.T) { storeResolve(t, open(t)) })
	t.Run("tags move", func(t *testing.T) { storeTags(t, open(t)) })
	t.Run("a failed fetch leaves nothing", func(t *testing.T) { storeBadFetch(t, open(t)) })
	t.Run("an ended context ends write and fetch", func(t *testing.T) { storeEnded(t, open(t)) })
	t.Run("progress", func(t *testing.T) { storeProgress(t, open(t)) })
	t.Run("sixteen at once lose nothing", func(t *testing.T) { storeConcurrent(t, open(t)) })
	s := open(t)
	if _, ok := s.(artifact.Lister); ok {
		t.Run("list", func(t *testing.T) { storeList(t, open(t)) })
	}
	if _, ok := s.(artifact.Deleter); ok {
		t.Run("remove", func(t *testing.T) { storeRemove(t, open(t)) })
		t.Run("prune", func(t *testing.T) { storePrune(t, open(t)) })
		t.Run("prune spares the young and the kept", func(t *testing.T) { storeGrace(t, open(t)) })
	}
	if _, ok := s.(artifact.Retirer); ok {
		storeRetiring(t, open)
	}
	if _, ok := s.(artifact.Verifier); ok {
		t.Run("verify", func(t *testing.T) { storeVerify(t, open(t)) })
	}
}

func write(t *testing.T, s artifact.Store, d artifact.Disk) artifact.Digest {
	t.Helper()
	content, _, err := s.Write(limit(t), d, nil)
	if err != nil {
		t.Fatalf("write: %v", err)
	}
	if err := content.Validate(); err != nil {
		t.Fatalf("write: %v", err)
	}
	return content
}

// bake writes and registers a small image.
func bake(t *testing.T, s artifact.Store, ref string, seed uint64) artifact.Image {
	t.Helper()
	name, version, _ := strings.Cut(ref, ":")
	img, err := s.Register(limit(t), artifact.Image{Name: name, Version: version, // DiskSize is filled in
		Content: write(t, s, flat(noise(seed, 3*block))), Created: time.Unix(int64(seed), 0).UTC()})
	if err != nil || img.DiskSize != 3*block {
		t.Fatalf("register: a disk of %d bytes, %v", img.DiskSize, err)
	}
	return img
}

func fetch(t *testing.T, s artifact.Store, content artifact.Digest, want *memDisk) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := s.Fetch(limit(t), content, path, nil); err != nil {
		t.Fatalf("fetch: %v", err)
	}
	same(t, path, want)
}

func resolve(t *testing.T, s artifact.Store, ref string) (artifact.Image, error) {
	t.Helper()
	r, err := artifact.ParseRef(ref)
	if err != nil {
		t.Fatal(err)
	}
	return s.Resolve(limit(t), r)
}

// wantRef fails the test unless ref is that image; "" is none.
func wantRef(t *testing.T, s artifact.Store, ref string, want artifact.Digest) {
	t.Helper()
	img, err := resolve(t, s, ref)
	switch {
	case want == "" && !errors.Is(err, artifact.ErrNotFound):
		t.Errorf("%s is %s, %v; want ErrNotFound", ref, img.Digest, err)
	case want != "" && (err != nil || img.Digest != want):
		t.Errorf("%s is %s, %v; want %s", ref, img.Digest, err, want)
	}
}

func storeRoundTrip(t *testing.T, s artifact.Store) {
	twins := slices.Concat(noise(1, block), noise(1, block), noise(2, block), noise(1, block))
	shifted := slices.Concat(make([]byte, 10), noise(3, 5*block))
	for name, d := range map[string]*memDisk{
		"of no bytes":                  flat(nil),
		"of one byte":                  flat([]byte{7}),
		"of one block":                 flat(noise(4, block)),
		"of a block and a byte":        flat(noise(5, block+1)),
		"of zeros that are not known":  flat(make([]byte, 3*block+9)),
		"of zeros that are":            sparse(3*block + 9),
		"of 5 MiB and a bit":           flat(noise(6, 5<<20+513)),
		"with the same block again":    flat(twins),
		"that ends in zeros":           flat(append(noise(7, 10), make([]byte, 2*block)...)),
		"with holes inside blocks":     sparse(9*block, part{100, noise(8, 50)}, part{3*block - 7, noise(9, 2*block)}, part{8*block + 1, noise(10, 3)}),
		"with bytes at borders of GiB": sparse(3<<30+77, part{1<<30 - 5, noise(11, 10)}, part{2 << 30, noise(12, block)}, part{3 << 30, noise(13, 77)}),
		"shifted":                      flat(shifted),
	} {
		t.Run("a disk "+name, func(t *testing.T) { fetch(t, s, write(t, s, d), d) })
	}
}

func storeRandom(t *testing.T, s artifact.Store, seeds uint64) {
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 42))
		data := noise(seed, 1+r.IntN(40*block))
		d := flat(data)
		content := write(t, s, d)
		var kept []artifact.Digest
		var disks []*memDisk
		for i := range 6 {
			kept, disks = append(kept, content), append(disks, d)
			if r.IntN(2) == 0 { // the parent may be registered or not
				if _, err := s.Register(limit(t), artifact.Image{Name: "r", Version: fmt.Sprintf("%d.%d", seed, i), Content: content, DiskSize: d.size}); err != nil {
					t.Fatal(err)
				}
			}
			d, data = child(r, data, content)
			if len(data) == 0 {
				break
			}
			content = write(t, s, d)
		}
		for i, c := range kept {
			fetch(t, s, c, disks[i])
		}
		if t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
}

// What a parent has after the end of its smaller child does not come back in a
// grandchild that is larger again.
func storeRegrown(t *testing.T, s artifact.Store) {
	data := noise(15, 3*block)
	content := write(t, s, flat(data))
	const end = block + 100
	small := flat(data[:end])
	small.parent, small.extents = content, []artifact.Extent{{Length: end, Inherited: true}}
	c := write(t, s, small)
	fetch(t, s, c, small)
	grown := flat(append(slices.Clone(data[:end]), make([]byte, 3*block-end)...))
	grown.parent, grown.extents = c, []artifact.Extent{{Length: 3 * block, Inherited: true}}
	fetch(t, s, write(t, s, grown), grown)
}

func storeTwins(t *testing.T, s artifact.Store) {
	ctx := limit(t)
	data := noise(20, 30*block)
	content, added, err := s.Write(ctx, flat(data), nil)
	if err != nil || added < 30*block {
		t.Fatalf("first write added %d, %v", added, err)
	}
	first, err := s.Register(ctx, artifact.Image{Name: "a", Version: "1", Content: content, DiskSize: 30 * block})
	if err != nil {
		t.Fatal(err)
	}
	again, added, err := s.Write(ctx, flat(data), nil)
	if err != nil || added != 0 || again != first.Content {
		t.Errorf("the same disk again added %d bytes as %s, %v", added, again, err)
	}
	// Another place, no parent: found by content.
	moved := slices.Concat(noise(21, block), data[10*block:], data[:10*block])
	if _, added, err = s.Write(ctx, flat(moved), nil); err != nil || added > 2*block {
		t.Errorf("the same blocks elsewhere added %d, %v", added, err)
	}
	// Only what is not inherited is read.
	d := flat(slices.Clone(data))
	d.parent = first.Content
	copy(d.parts[0].data[5*block:], noise(22, block))
	d.extents = []artifact.Extent{{Length: 5 * block, Inherited: true}, {Offset: 5 * block, Length: block}, {Offset: 6 * block, Length: 24 * block, Inherited: true}}
	c, added, err := s.Write(ctx, d, nil)
	if err != nil || added > 3*block || d.reads.Load() > block {
		t.Errorf("a child with one changed block added %d after reading %d, %v", added, d.reads.Load(), err)
	}
	fetch(t, s, c, d)
}

func storeBadDisks(t *testing.T, s artifact.Store) {
	boom := errors.New("boom")
	base := write(t, s, flat(noise(30, 2*block)))
	for name, d := range map[string]*memDisk{
		"gap":                      {size: 2 * block, extents: []artifact.Extent{{Length: block}, {Offset: block + 1, Length: block - 1}}},
		"overlap":                  {size: 2 * block, extents: []artifact.Extent{{Length: block}, {Offset: block - 1, Length: block + 1}}},
		"extents end early":        {size: 2 * block, extents: []artifact.Extent{{Length: block}}},
		"extents end late":         {size: block, extents: []artifact.Extent{{Length: 2 * block}}},
		"no extents":               {size: block},
		"empty extent":             {size: block, extents: []artifact.Extent{{}, {Length: block}}},
		"negative size":            {size: -1},
		"inherited of no parent":   {size: block, extents: []artifact.Extent{{Length: block, Inherited: true}}},
		"parent is not stored":     {size: block, extents: []artifact.Extent{{Length: block, Inherited: true}}, parent: artifact.Digest("sha256:" + strings.Repeat("ab", 32))},
		"parent is no digest":      {size: block, extents: []artifact.Extent{{Length: block, Inherited: true}}, parent: "../../etc/passwd"},
		"read error":               {size: 90 * block, extents: []artifact.Extent{{Length: 90 * block}}, fail: boom, failAt: 70 * block},
		"read error with a parent": {size: 90 * block, parent: base, extents: []artifact.Extent{{Length: 2 * block, Inherited: true}, {Offset: 2 * block, Length: 88 * block}}, fail: boom},
	} {
		c, _, err := s.Write(limit(t), d, nil)
		if err == nil {
			t.Errorf("%s: was written as %s", name, c)
		}
		if d.fail != nil && !errors.Is(err, boom) {
			t.Errorf("%s: the cause is lost: %v", name, err)
		}
	}
}

func storeMetadata(t *testing.T, s artifact.Store) {
	img := artifact.Image{Name: "team/web", Version: "1.4.0", Content: write(t, s, flat(noise(40, block))),
		Created: time.Date(2026, 11, 24, 3, 4, 5, 600, time.UTC), Arch: "arm64", Firmware: "uefi", Seed: "credentials", User: "admin",
		DiskSize: block, StoredNew: 123, Labels: map[string]string{"a": "<b>&\u2028"}, Tests: []artifact.TestResult{{Name: "x", Passed: true, Seconds: 1.5, Message: "m"}},
		Lineage: artifact.Lineage{Template: "web", TemplateDigest: "sha256:1", InputsDigest: "sha256:2", Parent: "base:1", ParentDigest: "sha256:3",
			GitCommit: "c", GitDirty: true, BuildID: "b", Builder: "qemu", Rebake: "v1"},
		Tags: []string{"not", "kept"}}
	got, err := s.Register(limit(t), img)
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Digest.Validate(); err != nil {
		t.Fatal(err)
	}
	img.Digest, img.Tags = got.Digest, nil
	if d := cmp.Diff(img, got); d != "" {
		t.Errorf("Register returned (-want +got):\n%s", d)
	}
	if err := s.Tag(limit(t), img.Name, "stable", img.Digest); err != nil {
		t.Fatal(err)
	}
	img.Tags = []string{"stable"}
	if got, err = resolve(t, s, "team/web:1.4.0"); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(img, got); d != "" {
		t.Errorf("Resolve returned (-want +got):\n%s", d)
	}
}

func storeVersions(t *testing.T, s artifact.Store) {
	one := bake(t, s, "web:1", 50)
	if again := bake(t, s, "web:1", 50); again.Digest != one.Digest {
		t.Errorf("registered again it is %s, was %s", again.Digest, one.Digest)
	}
	other := one
	other.Content = write(t, s, flat(noise(51, 3*block)))
	if _, err := s.Register(limit(t), other); !errors.Is(err, artifact.ErrExists) {
		t.Errorf("other content: %v; want ErrExists", err)
	}
	if err := s.Tag(limit(t), "web", "stable", one.Digest); err != nil {
		t.Fatal(err)
	}
	other.Version = "stable"
	if _, err := s.Register(limit(t), other); !errors.Is(err, artifact.ErrExists) {
		t.Errorf("a version with a tag's name: %v; want ErrExists", err)
	}
	wantRef(t, s, "web:1", one.Digest)
	wantRef(t, s, "web:stable", one.Digest)
}

func storeRefused(t *testing.T, s artifact.Store) {
	content := write(t, s, flat(noise(60, block)))
	wantRef(t, s, "web:1", "") // a write alone shows nothing
	for name, img := range map[string]artifact.Image{
		"no name":         {Version: "1", Content: content, DiskSize: block},
		"bad name":        {Name: "Web", Version: "1", Content: content, DiskSize: block},
		"path as name":    {Name: "../web", Version: "1", Content: content, DiskSize: block},
		"no version":      {Name: "web", Content: content, DiskSize: block},
		"bad version":     {Name: "web", Version: "a b", Content: content, DiskSize: block},
		"no content":      {Name: "web", Version: "1", DiskSize: block},
		"content unknown": {Name: "web", Version: "1", Content: artifact.Digest("sha256:" + strings.Repeat("0", 64)), DiskSize: block},
		"content a path":  {Name: "web", Version: "1", Content: "sha256:../../index.json", DiskSize: block},
		"other disk size": {Name: "web", Version: "1", Content: content, DiskSize: block + 1},
	} {
		if got, err := s.Register(limit(t), img); err == nil {
			t.Errorf("%s: registered as %s", name, got.Digest)
		}
	}
	wantRef(t, s, "web:1", "")
	if l, ok := s.(artifact.Lister); ok {
		if all, err := l.List(limit(t), ""); err != nil || len(all) != 0 {
			t.Errorf("the list has %d images, %v", len(all), err)
		}
	}
}

func storeResolve(t *testing.T, s artifact.Store) {
	one, two := bake(t, s, "web:1", 70), bake(t, s, "web:2", 71)
	other := bake(t, s, "web/other:1", 72)
	if one.Digest == two.Digest || one.Digest == other.Digest {
		t.Fatal("two images have one digest")
	}
	wantRef(t, s, "web:1", one.Digest)
	wantRef(t, s, "web:2", two.Digest)
	wantRef(t, s, "web/other:1", other.Digest)
	wantRef(t, s, "web:3", "")
	wantRef(t, s, "we:1", "")
	wantRef(t, s, "web", "") // no tag latest yet
	wantRef(t, s, "web@"+string(one.Digest), one.Digest)
	wantRef(t, s, "web@"+string(one.Digest[:7+12]), one.Digest)
	wantRef(t, s, "web/other@"+string(one.Digest), "") // of another name
	wantRef(t, s, "web@sha256:"+strings.Repeat("0", 12), "")
	if err := s.Tag(limit(t), "web", artifact.Latest, two.Digest); err != nil {
		t.Fatal(err)
	}
	wantRef(t, s, "web", two.Digest)
}

func storeTags(t *testing.T, s artifact.Store) {
	one, two, other := bake(t, s, "web:1", 80), bake(t, s, "web:2", 81), bake(t, s, "db:1", 82)
	tag := func(name, tag string, d artifact.Digest, want error) {
		t.Helper()
		if err := s.Tag(limit(t), name, tag, d); !errors.Is(err, want) {
			t.Errorf("tag %s:%s: %v; want %v", name, tag, err, want)
		}
	}
	tag("web", "stable", one.Digest, nil)
	tag("web", "stable", one.Digest, nil)
	tag("db", "stable", other.Digest, nil)
	wantRef(t, s, "web:stable", one.Digest)
	tag("web", "stable", two.Digest, nil)
	tag("web", "nightly", two.Digest, nil)
	wantRef(t, s, "web:stable", two.Digest)
	wantRef(t, s, "db:stable", other.Digest)
	tag("web", "stable", other.Digest, artifact.ErrNotFound) // of another name
	tag("no", "stable", one.Digest, artifact.ErrNotFound)
	tag("web", "1", two.Digest, artifact.ErrExists) // a version does not move
	for _, bad := range []string{"", "a b", "../x", strings.Repeat("x", 200)} {
		if err := s.Tag(limit(t), "web", bad, one.Digest); err == nil {
			t.Errorf("tag %q was taken", bad)
		}
	}
	img, err := resolve(t, s, "web:2")
	if err != nil || !slices.Equal(img.Tags, []string{"nightly", "stable"}) {
		t.Errorf("tags are %v, %v", img.Tags, err)
	}
	if img, err = resolve(t, s, "web:1"); err != nil || len(img.Tags) != 0 {
		t.Errorf("tags of the image that a tag left are %v, %v", img.Tags, err)
	}
}

func storeBadFetch(t *testing.T, s artifact.Store) {
	dir := t.TempDir()
	unknown := artifact.Digest("sha256:" + strings.Repeat("9", 64))
	for _, c := range []artifact.Digest{unknown, "", "sha256:x", "../../index.json"} {
		if err := s.Fetch(limit(t), c, filepath.Join(dir, "x"), nil); err == nil {
			t.Errorf("fetch of %q succeeded", c)
		}
	}
	d := flat(noise(90, 2*block))
	path := filepath.Join(dir, "deep", "er", "disk") // made; what is there is replaced
	for range 2 {
		if err := s.Fetch(limit(t), write(t, s, d), path, nil); err != nil {
			t.Fatal(err)
		}
		same(t, path, d)
		if err := os.WriteFile(path, noise(91, 9*block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	onlyFiles(t, filepath.Dir(path), "disk")
	onlyFiles(t, dir, "deep")
}

func onlyFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range es {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s holds %v, want %v", dir, got, want)
	}
}

func storeEnded(t *testing.T, s artifact.Store) {
	d := flat(noise(95, 200*block))
	content := write(t, s, d)
	dir := t.TempDir()
	for name, op := range map[string]func(context.Context, func(int64, int64)) error{
		"write": func(ctx context.Context, p func(int64, int64)) error {
			_, _, err := s.Write(ctx, flat(noise(96, 200*block)), p)
			return err
		},
		"fetch": func(ctx context.Context, p func(int64, int64)) error {
			return s.Fetch(ctx, content, filepath.Join(dir, "x"), p)
		},
	} {
		ended, cancel := context.WithCancel(limit(t))
		cancel()
		if err := op(ended, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("%s with an ended context: %v", name, err)
		}
		ctx, cancel := context.WithCancel(limit(t))
		var once sync.Once
		if err := op(ctx, func(done, total int64) { once.Do(cancel) }); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s that is cancelled: %v", name, err)
		}
		cancel()
	}
	es, err := os.ReadDir(dir)
	if err != nil || len(es) > 1 || len(es) == 1 && es[0].Name() != "x" {
		t.Errorf("a cancelled fetch left %v, %v", es, err)
	}
	fetch(t, s, content, d)
}

func storeProgress(t *testing.T, s artifact.Store) {
	d := sparse(300*block+5, part{3, noise(97, 100*block)}, part{299 * block, noise(98, block+5)})
	var mu sync.Mutex
	last, calls := int64(-1), 0
	progress := func(done, total int64) {
		if !mu.TryLock() {
			t.Error("two calls at once")
			return
		}
		defer mu.Unlock()
		if done < last || done > total || total != d.size {
			t.Errorf("%d of %d after %d; the disk has %d", done, total, last, d.size)
		}
		last, calls = done, calls+1
	}
	content, _, err := s.Write(limit(t), d, progress)
	if err != nil || last != d.size || calls == 0 {
		t.Errorf("write: progress ended at %d of %d, %v", last, d.size, err)
	}
	last, calls = -1, 0
	err = s.Fetch(limit(t), content, filepath.Join(t.TempDir(), "x"), progress)
	if err != nil || last != d.size || calls == 0 {
		t.Errorf("fetch: progress ended at %d of %d, %v", last, d.size, err)
	}
}
