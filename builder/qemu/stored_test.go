package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/test/fake"
)

// watched is a store that is looked at while a disk is fetched from it.
type watched struct {
	*fake.Store
	resolved func() // after each Resolve
	fetching func(artifact.Digest)
}

func (w watched) Resolve(ctx context.Context, ref artifact.Ref) (artifact.Image, error) {
	defer w.resolved()
	return w.Store.Resolve(ctx, ref)
}

func (w watched) Fetch(ctx context.Context, d artifact.Digest, path string, progress func(done, total int64)) error {
	w.fetching(d)
	return w.Store.Fetch(ctx, d, path, progress)
}

// A base is in use from before its disk is fetched, and one that was removed just
// before is none.
func TestABaseIsInUseWhileItIsFetched(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, []byte("a disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := artifact.FileDisk(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	st := new(fake.Store)
	content, _, err := st.Write(t.Context(), d, nil)
	if err != nil {
		t.Fatal(err)
	}
	img, err := st.Register(t.Context(), artifact.Image{Name: "base", Version: "1", Content: content})
	if err != nil {
		t.Fatal(err)
	}
	dir := state.Dir(t.TempDir())
	asked, fetched := 0, 0
	var onFirst func()
	w := watched{st, func() {
		if asked++; asked == 1 && onFirst != nil {
			onFirst()
		}
	}, func(d artifact.Digest) {
		fetched++
		if used, err := Contents(dir); err != nil || !slices.Contains(used, d) {
			t.Errorf("while it is fetched these are in use: %v, %v", used, err)
		}
	}}
	s, err := newStored(Config{From: From{Image: "base:1"}}, Deps{State: dir, Store: w})
	if err != nil {
		t.Fatal(err)
	}
	onFirst = func() {
		if err := st.Retire(t.Context(), img, "old", time.Unix(1, 0)); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.prepare(t.Context()); !errors.Is(err, artifact.ErrNotFound) || fetched > 0 {
		t.Errorf("removed after it was found: %v, fetched %d times", err, fetched)
	}
	if img, err = st.Register(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	if b, err := s.prepare(t.Context()); err != nil || b.Digest != img.Digest || fetched != 1 {
		t.Errorf("%+v, %v, fetched %d times", b, err, fetched)
	}
	if used, err := Contents(dir); err != nil || len(used) != 0 {
		t.Errorf("afterwards in use: %v, %v", used, err)
	}
}
