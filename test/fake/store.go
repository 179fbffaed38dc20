package fake

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rebake/rebake/artifact"
)

// Store keeps images in memory, at most a page's worth for each page that is
// not zero. The zero value is an empty one.
type Store struct {
	mu       sync.Mutex
	contents map[artifact.Digest]*content
	pages    map[artifact.Digest][]byte // by sha256
	images   map[string]artifact.Image  // by name:version
	tags     map[string]artifact.Digest // by name:tag
	attached []attached
	known    map[artifact.Digest]bool // what was described or registered
	removed  []artifact.Removed
}

const page = 64 << 10

type content struct {
	size  int64
	pages map[int64]artifact.Digest
	at    time.Time
}

func sumOf(b []byte) artifact.Digest {
	s := sha256.Sum256(b)
	return artifact.Digest("sha256:" + hex.EncodeToString(s[:]))
}

// Write implements artifact.Store.
func (s *Store) Write(ctx context.Context, d artifact.Disk, progress func(done, total int64)) (artifact.Digest, int64, error) {
	size, end := d.Size(), int64(0)
	extents, err := d.Extents(ctx)
	if err != nil {
		return "", 0, err
	}
	s.mu.Lock()
	parent := s.contents[d.Parent()]
	s.mu.Unlock()
	if parent == nil && d.Parent() != "" {
		return "", 0, fmt.Errorf("parent %s: %w", d.Parent(), artifact.ErrNotFound)
	}
	c := &content{size: size, pages: map[int64]artifact.Digest{}, at: time.Now()}
	pages := map[int64][]byte{}
	for _, e := range extents {
		if e.Offset != end || e.Length <= 0 || e.Inherited && parent == nil {
			return "", 0, errors.New("the extents do not fit the disk")
		}
		end += e.Length
		for at := e.Offset; at < end && !e.Zero; {
			n := min(end, (at/page+1)*page) - at
			if err := ctx.Err(); err != nil {
				return "", 0, err
			}
			if pages[at/page] == nil {
				pages[at/page] = make([]byte, page)
			}
			here := pages[at/page][at%page:][:n]
			if e.Inherited {
				s.mu.Lock()
				copy(here, s.pages[parent.pages[at/page]][min(int64(len(s.pages[parent.pages[at/page]])), at%page):])
				s.mu.Unlock()
			} else if k, err := d.ReadAt(here, at); err != nil && !(errors.Is(err, io.EOF) && k == len(here)) {
				return "", 0, fmt.Errorf("read the disk at %d: %w", at, err)
			}
			at += n
			if progress != nil {
				progress(min(at, size), size)
			}
		}
	}
	if end != size || ctx.Err() != nil {
		return "", 0, cmp.Or(ctx.Err(), errors.New("the extents do not fit the disk"))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.contents == nil {
		s.contents, s.pages = map[artifact.Digest]*content{}, map[artifact.Digest][]byte{}
		s.images, s.tags = map[string]artifact.Image{}, map[string]artifact.Digest{}
	}
	var added int64
	h := sha256.New()
	fmt.Fprintln(h, size)
	for _, i := range slices.Sorted(maps.Keys(pages)) {
		if strings.Trim(string(pages[i]), "\x00") == "" {
			continue
		}
		sum := sumOf(pages[i])
		if s.pages[sum] == nil {
			s.pages[sum] = pages[i]
			added += page
		}
		c.pages[i] = sum
		fmt.Fprintln(h, i, sum)
	}
	if progress != nil {
		progress(size, size)
	}
	id := artifact.Digest("sha256:" + hex.EncodeToString(h.Sum(nil)))
	s.contents[id] = c
	return id, added, nil
}

// Register implements artifact.Store.
func (s *Store) Register(_ context.Context, img artifact.Image) (artifact.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	img, err := s.describe(img)
	if err != nil {
		return img, err
	}
	ref := img.Name + ":" + img.Version
	if have, ok := s.images[ref]; ok && have.Digest != img.Digest || s.tags[ref] != "" || s.taken(img) {
		return img, fmt.Errorf("%s: %w", ref, artifact.ErrExists)
	}
	s.images[ref] = img
	s.removed = slices.DeleteFunc(s.removed, func(r artifact.Removed) bool { return r.Digest == img.Digest })
	return img, nil
}

func (s *Store) describe(img artifact.Image) (artifact.Image, error) {
	if err := cmp.Or(artifact.CheckName(img.Name), artifact.CheckTag(img.Version)); err != nil {
		return img, err
	}
	c := s.contents[img.Content]
	if c == nil {
		return img, fmt.Errorf("content %q: %w", img.Content, artifact.ErrNotFound)
	}
	if img.DiskSize == 0 {
		img.DiskSize = c.size
	}
	if c.size != img.DiskSize {
		return img, fmt.Errorf("the disk has %d bytes, not %d", c.size, img.DiskSize)
	}
	img.Digest, img.Tags = "", nil
	b, err := json.Marshal(img)
	if err != nil {
		return img, err
	}
	img.Digest = sumOf(b)
	if s.known == nil {
		s.known = map[artifact.Digest]bool{}
	}
	s.known[img.Digest] = true
	return img, nil
}

func (s *Store) tagged(img artifact.Image) artifact.Image {
	for ref, d := range s.tags {
		if name, tag, _ := strings.Cut(ref, ":"); name == img.Name && d == img.Digest {
			img.Tags = append(img.Tags, tag)
		}
	}
	slices.Sort(img.Tags)
	return img
}

// Resolve implements artifact.Store.
func (s *Store) Resolve(_ context.Context, ref artifact.Ref) (artifact.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resolve(ref)
}

func (s *Store) resolve(ref artifact.Ref) (artifact.Image, error) {
	want, whole := ref.Digest, false
	if want == "" {
		if img, ok := s.images[ref.String()]; ok {
			return s.tagged(img), nil
		}
		want, whole = s.tags[ref.String()], true
	}
	var found []artifact.Image
	for _, img := range s.images {
		if want != "" && img.Name == ref.Name && strings.HasPrefix(string(img.Digest), string(want)) && (!whole || img.Digest == want) {
			found = append(found, img)
		}
	}
	switch len(found) {
	case 0:
		return artifact.Image{}, s.gone(ref)
	case 1:
		return s.tagged(found[0]), nil
	}
	return artifact.Image{}, fmt.Errorf("%s names %d images: give more digits", ref, len(found))
}

// Tag implements artifact.Store.
func (s *Store) Tag(_ context.Context, name, tag string, d artifact.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := artifact.CheckTag(tag); err != nil {
		return err
	}
	if _, ok := s.images[name+":"+tag]; ok || s.taken(artifact.Image{Name: name, Version: tag}) {
		return fmt.Errorf("%s:%s is a version: %w", name, tag, artifact.ErrExists)
	}
	for _, img := range s.images {
		if img.Name == name && img.Digest == d {
			s.tags[name+":"+tag] = d
			return nil
		}
	}
	return fmt.Errorf("%s@%s: %w", name, d, artifact.ErrNotFound)
}

// Fetch implements artifact.Store.
func (s *Store) Fetch(ctx context.Context, id artifact.Digest, path string, progress func(done, total int64)) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.contents[id]
	if c == nil {
		return fmt.Errorf("content %q: %w", id, artifact.ErrNotFound)
	}
	if err := errors.Join(ctx.Err(), os.MkdirAll(filepath.Dir(path), 0o700)); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".fetch-*")
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err == nil {
			err = os.Rename(f.Name(), path)
		}
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	for _, i := range slices.Sorted(maps.Keys(c.pages)) {
		if _, err := f.WriteAt(s.pages[c.pages[i]], i*page); err != nil {
			return err
		}
		if progress != nil {
			progress(min(c.size, (i+1)*page), c.size)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if progress != nil {
		progress(c.size, c.size)
	}
	return f.Truncate(c.size)
}

// List implements artifact.Lister.
func (s *Store) List(_ context.Context, name string) ([]artifact.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []artifact.Image
	for _, img := range s.images {
		if name == "" || img.Name == name {
			out = append(out, s.tagged(img))
		}
	}
	slices.SortFunc(out, artifact.NewestFirst)
	return out, nil
}

// Remove implements artifact.Deleter.
func (s *Store) Remove(_ context.Context, ref artifact.Ref) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	img, err := s.resolve(ref)
	if err != nil {
		return err
	}
	if ref.Digest == "" && ref.Tag != img.Version {
		delete(s.tags, ref.String())
		return nil
	}
	s.forget(img)
	s.detach(func(a attached) bool { return a.to == img.Digest })
	return nil
}

// Prune implements artifact.Deleter.
func (s *Store) Prune(_ context.Context, grace time.Duration, keep []artifact.Digest) (freed int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	needed := map[artifact.Digest]bool{}
	for _, k := range keep {
		if s.contents[k] == nil {
			return 0, fmt.Errorf("nothing was deleted: content %s: %w", k, artifact.ErrNotFound)
		}
		needed[k] = true
	}
	registered := map[artifact.Digest]bool{}
	for _, img := range s.images {
		needed[img.Content], registered[img.Digest] = true, true
	}
	for _, r := range s.removed {
		registered[r.Digest] = true
	}
	s.detach(func(a attached) bool { return !registered[a.to] && time.Since(a.at) >= grace })
	pages := map[artifact.Digest]bool{}
	for id, c := range s.contents {
		if !needed[id] && time.Since(c.at) >= grace {
			delete(s.contents, id)
			continue
		}
		for _, p := range c.pages {
			pages[p] = true
		}
	}
	for p, b := range s.pages {
		if !pages[p] {
			freed += int64(len(b))
			delete(s.pages, p)
		}
	}
	return freed, nil
}

// Verify implements artifact.Verifier.
func (s *Store) Verify(_ context.Context, img artifact.Image, progress func(done, total int64)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.contents[img.Content]
	if c == nil {
		return fmt.Errorf("content %s: %w", img.Content, artifact.ErrCorrupt)
	}
	for _, p := range c.pages {
		if sumOf(s.pages[p]) != p {
			return fmt.Errorf("page %s: %w", p, artifact.ErrCorrupt)
		}
	}
	for _, a := range s.attached {
		if a.to == img.Digest && sumOf(a.body) != a.sum {
			return fmt.Errorf("attachment %s: %w", a.Digest, artifact.ErrCorrupt)
		}
	}
	if progress != nil {
		progress(c.size, c.size)
	}
	return nil
}
