package registry

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
)

// Store is an artifact.Store that is a place in a registry. The registry decides
// what exists; the local layout is where disks are written before they are sent,
// where copies of what was used are kept, and whose chunks are not fetched or
// stored again. Each image there is the same, with the same digest, as here.
//
// It is a Lister, Deleter, Attacher and Verifier too, as far as the registry lets
// it. One that cannot be reached is an Unreachable error of whatever needs it.
type Store struct {
	local *oci.Store
	at    Address
	c     *client
	arch  string // whose image of a version is meant
}

// Open makes a store of a place in a registry; it asks nothing of it yet.
func Open(local *oci.Store, at Address, o Options) (*Store, error) {
	if at.Tag != "" || at.Dig != "" {
		return nil, fmt.Errorf("%s is an image, not a place for images", at)
	}
	c, err := newClient(o)
	if err != nil {
		return nil, err
	}
	return &Store{local: local, at: at, c: c, arch: runtime.GOARCH}, nil
}

// Local is the layout below.
func (s *Store) Local() *oci.Store { return s.local }

// String is the store's address.
func (s *Store) String() string { return s.at.String() }

func (s *Store) repo(name string) Address { return s.at.Of(name, "") }

// Write implements artifact.Store. It writes here; Register sends it.
func (s *Store) Write(ctx context.Context, d artifact.Disk, progress func(done, total int64)) (artifact.Digest, int64, error) {
	if p := d.Parent(); p != "" {
		if err := s.bring(ctx, p, false, nil); err != nil {
			return "", 0, fmt.Errorf("the parent: %w", err)
		}
	}
	return s.local.Write(ctx, d, progress)
}

// Register implements artifact.Store: the disk, and what was attached to the
// described image, is sent before the version is there.
func (s *Store) Register(ctx context.Context, img artifact.Image) (artifact.Image, error) {
	if aside(img.Version) {
		return img, fmt.Errorf("register %s:%s: versions of this form are kept for what is attached to images", img.Name, img.Version)
	}
	img, err := s.local.Describe(ctx, img)
	if err != nil {
		return img, err
	}
	raw, m, desc, err := s.local.ReadManifest(img.Digest)
	if err != nil {
		return img, err
	}
	docs, err := s.local.Documents(ctx, img.Digest)
	if err != nil {
		return img, err
	}
	img.Tags = nil
	p := parcel{img, raw, m, desc, docs, opens(s.local), s.at.parent(img)}
	dst := s.at.Of(img.Name, img.Version)
	if _, err := s.c.stage(ctx, p, dst); err != nil {
		return img, s.told(err)
	}
	release, err := s.local.Exclusive(ctx, "publish")
	if err != nil {
		return img, err
	}
	defer release()
	if _, err := s.c.sendVersion(ctx, dst, p); err != nil {
		return img, s.told(err)
	}
	config, err := s.local.ReadConfig(m)
	if err == nil {
		_, err = s.local.Keep(ctx, s.String(), raw, config)
	}
	return img, err
}

// Resolve implements artifact.Store.
func (s *Store) Resolve(ctx context.Context, ref artifact.Ref) (artifact.Image, error) {
	if err := artifact.CheckName(ref.Name); err != nil {
		return artifact.Image{}, err
	}
	img, t, err := s.find(ctx, ref)
	if err != nil {
		return img, s.told(err)
	}
	img.Tags, err = s.tagsOf(ctx, img, t)
	return img, s.told(err)
}

// find reads the image of a reference, and what its version's tag names.
func (s *Store) find(ctx context.Context, ref artifact.Ref) (img artifact.Image, t v1.Descriptor, err error) {
	none := fmt.Errorf("%s: %w", ref, artifact.ErrNotFound)
	r := s.c.repo(s.repo(ref.Name))
	d := ref.Digest
	switch {
	case d == "":
		var found bool
		if t, found, err = s.c.head(ctx, r, remoteTag(ref.Tag)); err != nil || !found || aside(ref.Tag) {
			return img, t, errors.Join(err, only(none, err == nil))
		}
		if img, err = s.imageAt(ctx, ref.Name, t); err != nil {
			return img, t, err
		}
		if img.Version != ref.Tag && (remoteTag(img.Version) == remoteTag(ref.Tag) || strings.Contains(ref.Tag, "+")) {
			return img, t, none // a + in one is not a _ in the other
		}
		if img.Version == ref.Tag {
			return img, t, nil
		}
	case d.Validate() != nil:
		if d, err = s.complete(ctx, ref); err != nil {
			return img, t, err
		}
		fallthrough
	default:
		if img, err = s.image(ctx, ref.Name, d); errors.Is(err, oci.ErrNoImage) || errors.Is(err, errOtherName) {
			err = none
		}
		if err != nil {
			return img, t, err
		}
	}
	// An image is there as long as its version names it.
	t, found, err := s.c.head(ctx, r, remoteTag(img.Version))
	if err != nil {
		return img, t, err
	}
	if found && t.MediaType == v1.MediaTypeImageIndex {
		raw, err := s.c.manifest(ctx, r, t)
		if err != nil {
			return img, t, err
		}
		idx, err := readIndex(raw)
		if err != nil {
			return img, t, err
		}
		found = slices.ContainsFunc(idx.Manifests, func(m v1.Descriptor) bool { return artifact.Digest(m.Digest) == img.Digest })
	} else if artifact.Digest(t.Digest) != img.Digest {
		found = false
	}
	if !found {
		return img, t, none
	}
	return img, t, nil
}

func only(err error, yes bool) error {
	if yes {
		return err
	}
	return nil
}

// imageAt is the image that a tag's manifest or index has for this platform.
func (s *Store) imageAt(ctx context.Context, name string, t v1.Descriptor) (img artifact.Image, err error) {
	d := t
	if t.MediaType == v1.MediaTypeImageIndex {
		raw, err := s.c.manifest(ctx, s.c.repo(s.repo(name)), t)
		if err != nil {
			return img, err
		}
		if d, err = pick(raw, s.arch); err != nil {
			return img, err
		}
	}
	if artifact.Digest(d.Digest).Validate() != nil {
		return img, fmt.Errorf("%w: %s: the digest %.100q", artifact.ErrCorrupt, s.repo(name), d.Digest)
	}
	return s.image(ctx, name, artifact.Digest(d.Digest))
}

// image reads an image of this name, and keeps its metadata here.
func (s *Store) image(ctx context.Context, name string, d artifact.Digest) (artifact.Image, error) {
	img, have, err := s.local.Copy(s.String(), d)
	if err != nil {
		return img, err
	}
	if !have {
		a := s.repo(name)
		raw, config, err := s.c.readImage(ctx, s.c.repo(a), string(d))
		if err != nil {
			return img, fmt.Errorf("%s@%s: %w", name, d, err)
		}
		if img, err = s.local.Keep(ctx, s.String(), raw, config); err != nil {
			return img, err
		}
	}
	if img.Name != name {
		return img, fmt.Errorf("%s: %w: the image there %w: %.150q", s.repo(name), artifact.ErrCorrupt, errOtherName, img.Name)
	}
	return img, nil
}

var errOtherName = errors.New("says that it has another name")

// Tag implements artifact.Store.
func (s *Store) Tag(ctx context.Context, name, tag string, d artifact.Digest) error {
	if err := artifact.CheckTag(tag); err != nil {
		return err
	}
	if strings.Contains(tag, "+") || aside(tag) {
		return fmt.Errorf("%s: a registry holds no tag of this form: use letters, digits and _ . -", tag)
	}
	release, err := s.local.Exclusive(ctx, "publish")
	if err != nil {
		return err
	}
	defer release()
	if err := errors.Join(artifact.CheckName(name), d.Validate()); err != nil {
		return fmt.Errorf("%s@%s: %w: %w", name, d, artifact.ErrNotFound, err)
	}
	img, desc, err := s.find(ctx, artifact.Ref{Name: name, Digest: d})
	if err != nil {
		return s.told(err)
	}
	r := s.c.repo(s.repo(name))
	if remoteTag(img.Version) == tag {
		return fmt.Errorf("%s:%s is a version, which never moves: %w", name, tag, artifact.ErrExists)
	}
	raw, err := s.c.manifest(ctx, r, desc)
	if err != nil {
		return s.told(err)
	}
	return s.told(s.c.sendTag(ctx, r, target{desc, raw}, tag))
}

// Fetch implements artifact.Store: what of the disk is not here is fetched first,
// which is the first 7 of 10 parts of the progress.
func (s *Store) Fetch(ctx context.Context, content artifact.Digest, path string, progress func(done, total int64)) error {
	size, from := int64(0), int64(0)
	var pull func(done, total int64)
	if img, err := s.copyOf(ctx, content); progress != nil && err == nil {
		size = img.DiskSize
		pull = func(done, total int64) {
			from = max(from, int64(0.7*float64(size)*float64(done)/float64(max(total, 1))))
			progress(from, size)
		}
	}
	if err := s.bring(ctx, content, false, pull); err != nil {
		return err
	}
	if progress != nil && from > 0 {
		last := progress
		progress = func(done, total int64) { last(from+int64(float64(total-from)*float64(done)/float64(total)), total) }
	}
	return s.local.Fetch(ctx, content, path, progress)
}

// Has tells whether the store has a content, here or, as far as is known here, there.
func (s *Store) Has(content artifact.Digest) bool {
	if s.local.Has(content) {
		return true
	}
	_, err := s.copyOf(context.Background(), content) // reads a file or two of this machine
	return err == nil
}

// CheckDisk compares a disk that Fetch made with the image, as the local layout does.
func (s *Store) CheckDisk(ctx context.Context, content artifact.Digest, path string) error {
	if err := s.bring(ctx, content, true, nil); err != nil {
		return err
	}
	return s.local.CheckDisk(ctx, content, path)
}

// Verify implements artifact.Verifier. What is not here is fetched.
func (s *Store) Verify(ctx context.Context, img artifact.Image, progress func(done, total int64)) error {
	if err := s.bring(ctx, img.Content, false, nil); err != nil {
		return err
	}
	if _, err := s.Attached(ctx, img.Digest, ""); err != nil {
		return err
	}
	return s.local.Verify(ctx, img, progress)
}

// Clean removes what killed runs left half-written here.
func (s *Store) Clean(ctx context.Context) ([]string, error) { return s.local.Clean(ctx) }

// copyOf is an image of this store with a content that was resolved here.
func (s *Store) copyOf(ctx context.Context, content artifact.Digest) (artifact.Image, error) {
	copies, err := s.local.Copies(ctx, s.String())
	if err != nil {
		return artifact.Image{}, err
	}
	for _, i := range copies {
		if i.Content == content {
			return i, nil
		}
	}
	return artifact.Image{}, fmt.Errorf("%w: the content %s is not here, and of no image of %s that was asked for here", artifact.ErrCorrupt, content, s.at)
}

// bring fetches what of a content is not here: all of it, or its maps alone.
func (s *Store) bring(ctx context.Context, content artifact.Digest, maps bool, progress func(done, total int64)) error {
	if s.local.Has(content) {
		return nil
	}
	img, err := s.copyOf(ctx, content)
	if err != nil {
		return err
	}
	_, m, _, err := s.local.ReadManifest(img.Digest)
	if err != nil {
		return err
	}
	layers := m.Layers
	if maps {
		layers = oci.MapBlobs(m)
	}
	missing, err := s.local.Missing(ctx, layers)
	if err != nil || len(missing) == 0 {
		return err
	}
	if err := s.c.fetchBlobs(ctx, s.repo(img.Name), missing, s.local, progress); err != nil {
		return s.told(fmt.Errorf("fetch %s:%s: %w", img.Name, img.Version, err))
	}
	if maps {
		return nil
	}
	return s.local.CheckCopy(img.Digest)
}

// UnreachableError is of a registry that does not answer.
type UnreachableError struct {
	Store string
	err   error
}

func (e *UnreachableError) Error() string { return e.Store + " cannot be reached: " + e.err.Error() }
func (e *UnreachableError) Unwrap() error { return e.err }

// told makes an error of the network one that says so.
func (s *Store) told(err error) error {
	if err == nil || !unreachable(err) {
		return err
	}
	return &UnreachableError{s.String(), err}
}
