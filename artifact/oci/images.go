package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
)

// An entry of the index is a version or a tag of ours, an attachment, a tombstone, or, without the
// annotation, something that others put there, which is kept and not shown.
const (
	annotationKind = "dev.rebake.kind"
	kindVersion    = "version"
	kindTag        = "tag"
)

func kind(d v1.Descriptor) string { return d.Annotations[annotationKind] }

// named is the name:version or name:tag of an entry of ours, "" of others.
func named(d v1.Descriptor) string {
	if k := kind(d); k == kindVersion || k == kindTag {
		return d.Annotations[v1.AnnotationRefName]
	}
	return ""
}

// put points ref at the manifest, replacing what it pointed at.
func put(idx *v1.Index, d v1.Descriptor, ref, kind string) {
	d.Annotations = map[string]string{v1.AnnotationRefName: ref, annotationKind: kind}
	idx.Manifests = slices.DeleteFunc(idx.Manifests, func(have v1.Descriptor) bool {
		return named(have) == ref || kind == kindVersion && have.Annotations[annotationRemoved] == ref // it is there again
	})
	idx.Manifests = append(idx.Manifests, d)
}

// Register implements artifact.Store.
func (s *Store) Register(ctx context.Context, img artifact.Image) (artifact.Image, error) {
	// Under the lock, so that no Prune takes a blob between the look and the index.
	err := s.change(ctx, func(idx *v1.Index) error {
		e, err := s.encode(img)
		if err != nil {
			return err
		}
		ref := img.Name + ":" + img.Version
		if err := taken(idx, ref, e.img.Digest); err != nil {
			return err
		}
		if err := e.store(s); err != nil {
			return err
		}
		put(idx, e.desc, ref, kindVersion)
		img = e.img
		return nil
	})
	return img, err
}

func describe(mediaType string, b []byte) v1.Descriptor {
	sum := sha256.Sum256(b)
	return descriptor(mediaType, artifact.Digest("sha256:"+hex.EncodeToString(sum[:])), int64(len(b)))
}

func descriptor(mediaType string, d artifact.Digest, n int64) v1.Descriptor {
	return v1.Descriptor{MediaType: mediaType, Digest: digest.Digest(d), Size: n}
}

// layers are all blobs that an image needs, each of which must be there whole.
func (s *Store) layers(content artifact.Digest, root *diskMap) ([]v1.Descriptor, error) {
	n, err := s.blobSize(content)
	if err != nil {
		return nil, err
	}
	layers := []v1.Descriptor{descriptor(typeMap, content, n)}
	for _, l := range root.Leaves {
		layers = append(layers, descriptor(typeLeaf, l.Digest, l.Size))
	}
	for _, p := range root.Packs {
		layers = append(layers, descriptor(typePack, p.Digest, p.Size))
	}
	for _, l := range layers {
		if n, err := s.blobSize(artifact.Digest(l.Digest)); err != nil {
			return nil, err
		} else if n != l.Size {
			return nil, fmt.Errorf("%w: blob %s has %d bytes, not %d", artifact.ErrCorrupt, l.Digest, n, l.Size)
		}
	}
	return layers, nil
}

// Tag implements artifact.Store.
func (s *Store) Tag(ctx context.Context, name, tag string, d artifact.Digest) error {
	if err := artifact.CheckTag(tag); err != nil {
		return err
	}
	return s.change(ctx, func(idx *v1.Index) error {
		ref := name + ":" + tag
		var to *v1.Descriptor
		for i, m := range idx.Manifests {
			n, _ := cutRef(named(m))
			switch {
			case named(m) == ref && kind(m) == kindVersion, m.Annotations[annotationRemoved] == ref:
				return fmt.Errorf("%s is a version, which never moves: %w", ref, artifact.ErrExists)
			case kind(m) == kindVersion && n == name && artifact.Digest(m.Digest) == d:
				to = &idx.Manifests[i]
			}
		}
		if to == nil {
			return fmt.Errorf("%s@%s: %w", name, d, artifact.ErrNotFound)
		}
		put(idx, *to, ref, kindTag)
		return nil
	})
}

// read hands the index to look. If look finds damage while another process
// changed the index, it looks again: what it missed may have been removed.
func (s *Store) read(look func(v1.Index) error) error {
	for {
		idx, err := s.index()
		if err != nil {
			return err
		}
		if err = look(idx); !errors.Is(err, artifact.ErrCorrupt) {
			return err
		}
		now, ierr := s.index()
		if ierr != nil {
			return ierr
		}
		if slices.EqualFunc(idx.Manifests, now.Manifests, func(a, b v1.Descriptor) bool { return a.Digest == b.Digest && named(a) == named(b) }) {
			return err
		}
	}
}

// Resolve implements artifact.Store.
func (s *Store) Resolve(_ context.Context, ref artifact.Ref) (img artifact.Image, err error) {
	err = s.read(func(idx v1.Index) error {
		img, err = s.resolve(idx, ref)
		return err
	})
	return img, err
}

func (s *Store) resolve(idx v1.Index, ref artifact.Ref) (artifact.Image, error) {
	var found []artifact.Digest
	for _, m := range idx.Manifests {
		name, _ := cutRef(named(m))
		if name != "" && (ref.Digest == "" && named(m) == ref.Name+":"+ref.Tag ||
			ref.Digest != "" && name == ref.Name && strings.HasPrefix(string(m.Digest), string(ref.Digest))) &&
			!slices.Contains(found, artifact.Digest(m.Digest)) {
			found = append(found, artifact.Digest(m.Digest))
		}
	}
	switch {
	case len(found) == 0:
		return artifact.Image{}, s.gone(idx, ref)
	case len(found) > 1:
		return artifact.Image{}, fmt.Errorf("%s names %d images: give more digits", ref, len(found))
	}
	img, err := s.image(found[0])
	if err != nil {
		return artifact.Image{}, err
	}
	img.Tags = tagsOf(idx, img)
	return img, nil
}

func cutRef(r string) (name, tag string) {
	i := strings.LastIndexByte(r, ':')
	if i < 0 {
		return r, ""
	}
	return r[:i], r[i+1:]
}

func tagsOf(idx v1.Index, img artifact.Image) []string {
	var tags []string
	for _, m := range idx.Manifests {
		if name, tag := cutRef(named(m)); kind(m) == kindTag && name == img.Name && artifact.Digest(m.Digest) == img.Digest {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	return tags
}

// image reads a manifest and its config.
func (s *Store) image(d artifact.Digest) (artifact.Image, error) {
	var img artifact.Image
	m, err := s.manifest(d)
	if err != nil {
		return img, err
	}
	cfg, err := s.blob(artifact.Digest(m.Config.Digest))
	if err != nil {
		return img, err
	}
	if err := json.Unmarshal(cfg, &img); err != nil {
		return img, fmt.Errorf("%w: config of %s: %w", artifact.ErrCorrupt, d, err)
	}
	img.Digest, img.Tags = d, nil
	return img, nil
}

func (s *Store) manifest(d artifact.Digest) (v1.Manifest, error) {
	var m v1.Manifest
	raw, err := s.blob(d)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("%w: manifest %s: %w", artifact.ErrCorrupt, d, err)
	}
	if m.ArtifactType != typeArtifact {
		return m, fmt.Errorf("%w: %s is a %q, not a machine image", artifact.ErrCorrupt, d, m.ArtifactType)
	}
	return m, nil
}

// List implements artifact.Lister.
func (s *Store) List(_ context.Context, name string) (out []artifact.Image, err error) {
	err = s.read(func(idx v1.Index) error {
		out = nil
		for _, m := range idx.Manifests {
			if n, _ := cutRef(named(m)); kind(m) != kindVersion || name != "" && n != name {
				continue
			}
			img, err := s.image(artifact.Digest(m.Digest))
			if err != nil {
				return fmt.Errorf("%s: %w", named(m), err)
			}
			img.Tags = tagsOf(idx, img)
			out = append(out, img)
		}
		return nil
	})
	slices.SortStableFunc(out, artifact.NewestFirst)
	return out, err
}

// contents are the contents of all images and copies that can be read, newest first.
func (s *Store) contents() ([]artifact.Digest, error) {
	idx, err := s.index()
	if err != nil {
		return nil, err
	}
	var images []artifact.Image
	for _, m := range idx.Manifests {
		if kind(m) != kindVersion && kind(m) != kindCopy {
			continue
		}
		img, err := s.image(artifact.Digest(m.Digest))
		if errors.Is(err, artifact.ErrCorrupt) {
			continue
		}
		if err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	slices.SortStableFunc(images, artifact.NewestFirst)
	var out []artifact.Digest
	for _, img := range images {
		out = append(out, img.Content)
	}
	return out, nil
}

// Remove implements artifact.Deleter.
func (s *Store) Remove(ctx context.Context, ref artifact.Ref) error {
	return s.change(ctx, func(idx *v1.Index) error {
		img, err := s.resolve(*idx, ref)
		if err != nil {
			return err
		}
		idx.Manifests = slices.DeleteFunc(idx.Manifests, func(m v1.Descriptor) bool {
			if ref.Digest == "" && ref.Tag != img.Version {
				return kind(m) == kindTag && named(m) == ref.String()
			}
			name, _ := cutRef(named(m))
			return name == img.Name && artifact.Digest(m.Digest) == img.Digest
		})
		if !inIndex(idx, img.Digest) {
			s.detach(idx, func(d artifact.Digest) bool { return d == img.Digest })
		}
		return nil
	})
}

// Has tells whether the store holds a content's map and packs.
func (s *Store) Has(content artifact.Digest) bool {
	m, err := s.readMap(content)
	if err != nil {
		return false
	}
	_, err = s.layers(content, m)
	return err == nil
}
