package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/gofrs/flock"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
)

// A copy is an image of a registry that is kept here, perhaps without its packs:
// an entry of the index that has no name, so that it is no image of this store.
// It shares chunks with those that are, and Prune spares it.
const (
	kindCopy        = "copy"
	annotationStore = "dev.rebake.store"
)

// Copies are the images of another store, of any if it is "", that are kept here.
func (s *Store) Copies(_ context.Context, store string) (out []artifact.Image, err error) {
	err = s.read(func(idx v1.Index) error {
		out = nil
		for _, m := range idx.Manifests {
			if kind(m) != kindCopy || store != "" && m.Annotations[annotationStore] != store {
				continue
			}
			img, err := s.image(artifact.Digest(m.Digest))
			if err != nil {
				return fmt.Errorf("the copy %s: %w", m.Digest, err)
			}
			out = append(out, img)
		}
		return nil
	})
	return out, err
}

// Copy is the image of another store with this digest; found is false if it is
// not kept here.
func (s *Store) Copy(store string, d artifact.Digest) (img artifact.Image, found bool, err error) {
	err = s.read(func(idx v1.Index) error {
		if found = slices.ContainsFunc(idx.Manifests, isCopy(store, d)); found {
			img, err = s.image(d)
			return err
		}
		return nil
	})
	return img, found, err
}

// Kept is the image with this digest that is kept here for any other store.
func (s *Store) Kept(_ context.Context, d artifact.Digest) (img artifact.Image, found bool, err error) {
	err = s.read(func(idx v1.Index) error {
		if found = slices.ContainsFunc(idx.Manifests, func(m v1.Descriptor) bool { return kind(m) == kindCopy && artifact.Digest(m.Digest) == d }); found {
			img, err = s.image(d)
			return err
		}
		return nil
	})
	return img, found, err
}

func isCopy(store string, d artifact.Digest) func(v1.Descriptor) bool {
	return func(m v1.Descriptor) bool {
		return kind(m) == kindCopy && m.Annotations[annotationStore] == store && artifact.Digest(m.Digest) == d
	}
}

// Keep keeps an image of another store here: its manifest and config, which are
// read and checked, and what of its layers is here or comes.
func (s *Store) Keep(ctx context.Context, store string, raw, config []byte) (artifact.Image, error) {
	m, err := CheckManifest(raw)
	if err != nil {
		return artifact.Image{}, err
	}
	if d := describe(typeConfig, config); d.Digest != m.Config.Digest {
		return artifact.Image{}, fmt.Errorf("%w: the config is %s, not %s", artifact.ErrCorrupt, d.Digest, m.Config.Digest)
	}
	var img artifact.Image
	if err := json.Unmarshal(config, &img); err != nil {
		return img, fmt.Errorf("%w: the image's config: %w", artifact.ErrCorrupt, err)
	}
	if err := errors.Join(artifact.CheckName(img.Name), artifact.CheckTag(img.Version), img.Content.Validate()); err != nil {
		return img, fmt.Errorf("%w: the image's config: %w", artifact.ErrCorrupt, err)
	}
	desc := describe(v1.MediaTypeImageManifest, raw)
	desc.ArtifactType = typeArtifact
	img.Digest, img.Tags = artifact.Digest(desc.Digest), nil
	if _, have, err := s.Copy(store, img.Digest); err == nil && have {
		return img, nil
	}
	return img, s.change(ctx, func(idx *v1.Index) error {
		if _, _, err := s.putBlob(typeConfig, config); err != nil {
			return err
		}
		if _, _, err := s.putBlob(desc.MediaType, raw); err != nil {
			return err
		}
		if !slices.ContainsFunc(idx.Manifests, isCopy(store, img.Digest)) {
			desc.Annotations = map[string]string{annotationKind: kindCopy, annotationStore: store}
			idx.Manifests = append(idx.Manifests, desc)
		}
		return nil
	})
}

// Forget keeps those images of another store, of any if it is "", no longer that
// gone tells of, and what is attached to them. Prune frees their space.
func (s *Store) Forget(ctx context.Context, store string, gone func(artifact.Digest) bool) error {
	return s.change(ctx, func(idx *v1.Index) error {
		lost := map[artifact.Digest]bool{}
		idx.Manifests = slices.DeleteFunc(idx.Manifests, func(m v1.Descriptor) bool {
			d := artifact.Digest(m.Digest)
			if kind(m) != kindCopy || store != "" && m.Annotations[annotationStore] != store || !gone(d) {
				return false
			}
			lost[d] = true
			return true
		})
		s.detach(idx, func(d artifact.Digest) bool { return lost[d] && !inIndex(idx, d) })
		return nil
	})
}

// Manifested is an image whose manifest is here, be it visible or not.
func (s *Store) Manifested(d artifact.Digest) (artifact.Image, error) { return s.image(d) }

// ReadConfig is the config of an image whose manifest that is.
func (s *Store) ReadConfig(m v1.Manifest) ([]byte, error) {
	return s.blob(artifact.Digest(m.Config.Digest))
}

// MapBlobs are those of an image's layers that say where its chunks are: its map
// and its leaves.
func MapBlobs(m v1.Manifest) (out []v1.Descriptor) {
	for _, l := range m.Layers {
		if l.MediaType != typePack {
			out = append(out, l)
		}
	}
	return out
}

// CheckCopy holds an image all of whose layers are here to what Adopt asks of
// one, but for its chunks: Fetch checks those that it uses.
func (s *Store) CheckCopy(d artifact.Digest) error {
	_, _, err := s.checked(d)
	return err
}

// checked reads an image, its manifest and its map, which must agree.
func (s *Store) checked(d artifact.Digest) (artifact.Image, *diskMap, error) {
	img, err := s.image(d)
	if err != nil {
		return img, nil, err
	}
	mani, err := s.manifest(d)
	if err != nil {
		return img, nil, err
	}
	m, err := s.readMap(img.Content)
	if err != nil {
		return img, nil, err
	}
	if img.DiskSize != m.Size {
		return img, nil, fmt.Errorf("%w: the image says its disk has %d bytes, its map %d", artifact.ErrCorrupt, img.DiskSize, m.Size)
	}
	listed := map[artifact.Digest]bool{}
	for _, l := range mani.Layers {
		listed[artifact.Digest(l.Digest)] = true
	}
	for _, b := range append(m.blobs(), img.Content) {
		if !listed[b] {
			return img, nil, fmt.Errorf("%w: the manifest does not list blob %s, which the disk needs", artifact.ErrCorrupt, b)
		}
	}
	return img, m, nil
}

// Exclusive waits until no other process of this store does what the name says.
func (s *Store) Exclusive(ctx context.Context, name string) (release func(), err error) {
	l := flock.New(filepath.Join(s.dir, "."+name+".lock"), flock.SetPermissions(0o600))
	if ok, err := l.TryLockContext(ctx, 5*time.Millisecond); err != nil || !ok {
		return nil, fmt.Errorf("wait for another rebake (%s): %w", name, errors.Join(err, ctx.Err()))
	}
	return func() { l.Close() }, nil
}
