package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
)

func ociDigest(d artifact.Digest) digest.Digest { return digest.Digest(d) }

// Register implements artifact.Store.
func (s *Store) Register(ctx context.Context, img artifact.Image) (artifact.Image, error) {
	if err := artifact.CheckName(img.Name); err != nil {
		return img, err
	}
	if err := artifact.CheckTag(img.Version); err != nil {
		return img, err
	}
	img.Digest, img.Tags = "", nil
	root, err := s.readMap(img.Content)
	if err != nil {
		return img, fmt.Errorf("register %s:%s: %w", img.Name, img.Version, err)
	}
	if img.DiskSize == 0 {
		img.DiskSize = root.Size
	}
	if img.DiskSize != root.Size {
		return img, fmt.Errorf("register %s:%s: its disk has %d bytes, not %d", img.Name, img.Version, root.Size, img.DiskSize)
	}
	var mani v1.Descriptor
	// Under the lock, so that no Prune takes a blob between the look and the index.
	err = s.change(ctx, func(idx *v1.Index) error {
		layers, err := s.layers(img.Content, root)
		if err != nil {
			return err
		}
		cfg, err := json.Marshal(img)
		if err != nil {
			return err
		}
		cdesc, _, err := s.putBlob(typeConfig, cfg)
		if err != nil {
			return err
		}
		m, err := json.Marshal(v1.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
			ArtifactType: typeArtifact, Config: cdesc, Layers: layers,
		})
		if err != nil {
			return err
		}
		if mani, _, err = s.putBlob(v1.MediaTypeImageManifest, m); err != nil {
			return err
		}
		mani.ArtifactType = typeArtifact
		ref := img.Name + ":" + img.Version
		for _, have := range idx.Manifests {
			if have.Annotations[v1.AnnotationRefName] == ref && (have.Digest != mani.Digest || isTag(have)) {
				return fmt.Errorf("%s: %w", ref, artifact.ErrExists)
			}
		}
		put(idx, mani, ref, "version")
		return nil
	})
	img.Digest = artifact.Digest(mani.Digest)
	return img, err
}

// layers are all blobs that an image needs, each of which must be there.
func (s *Store) layers(content artifact.Digest, root rootMap) ([]v1.Descriptor, error) {
	n, err := s.blobSize(content)
	if err != nil {
		return nil, err
	}
	layers := []v1.Descriptor{descriptor(typeMap, content, n)}
	for _, l := range root.Leaves {
		if _, err := s.blobSize(l.Digest); err != nil {
			return nil, err
		}
		layers = append(layers, descriptor(typeLeaf, l.Digest, l.Size))
	}
	for _, p := range root.Packs {
		if _, err := s.blobSize(p.Digest); err != nil {
			return nil, err
		}
		layers = append(layers, descriptor(typePack, p.Digest, p.Size))
	}
	return layers, nil
}

func isTag(d v1.Descriptor) bool { return d.Annotations[annotationKind] == "tag" }

// put points ref at the manifest, replacing what it pointed at.
func put(idx *v1.Index, d v1.Descriptor, ref, kind string) {
	d.Annotations = map[string]string{v1.AnnotationRefName: ref, annotationKind: kind}
	idx.Manifests = slices.DeleteFunc(idx.Manifests, func(have v1.Descriptor) bool {
		return have.Annotations[v1.AnnotationRefName] == ref
	})
	idx.Manifests = append(idx.Manifests, d)
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
			switch r := m.Annotations[v1.AnnotationRefName]; {
			case r == ref && !isTag(m):
				return fmt.Errorf("%s is a version, which never moves: %w", ref, artifact.ErrExists)
			case !isTag(m) && strings.HasPrefix(r, name+":") && artifact.Digest(m.Digest) == d:
				to = &idx.Manifests[i]
			}
		}
		if to == nil {
			return fmt.Errorf("%s@%s: %w", name, d, artifact.ErrNotFound)
		}
		put(idx, *to, ref, "tag")
		return nil
	})
}

// Resolve implements artifact.Store.
func (s *Store) Resolve(_ context.Context, ref artifact.Ref) (artifact.Image, error) {
	idx, err := s.index()
	if err != nil {
		return artifact.Image{}, err
	}
	var found []v1.Descriptor
	for _, m := range idx.Manifests {
		r := m.Annotations[v1.AnnotationRefName]
		name, _ := cutRef(r)
		if ref.Digest == "" && r == ref.Name+":"+ref.Tag ||
			ref.Digest != "" && name == ref.Name && strings.HasPrefix(string(m.Digest), string(ref.Digest)) {
			if !slices.ContainsFunc(found, func(f v1.Descriptor) bool { return f.Digest == m.Digest }) {
				found = append(found, m)
			}
		}
	}
	switch {
	case len(found) == 0:
		return artifact.Image{}, fmt.Errorf("%s: %w", ref, artifact.ErrNotFound)
	case len(found) > 1:
		return artifact.Image{}, fmt.Errorf("%s names %d images: give more digits", ref, len(found))
	}
	img, err := s.image(artifact.Digest(found[0].Digest))
	if err != nil {
		return img, err
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
		if name, tag := cutRef(m.Annotations[v1.AnnotationRefName]); isTag(m) && name == img.Name && artifact.Digest(m.Digest) == img.Digest {
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
	img.Digest = d
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
func (s *Store) List(_ context.Context, name string) ([]artifact.Image, error) {
	idx, err := s.index()
	if err != nil {
		return nil, err
	}
	var out []artifact.Image
	for _, m := range idx.Manifests {
		n, _ := cutRef(m.Annotations[v1.AnnotationRefName])
		if isTag(m) || name != "" && n != name {
			continue
		}
		img, err := s.image(artifact.Digest(m.Digest))
		if err != nil {
			return nil, err
		}
		img.Tags = tagsOf(idx, img)
		out = append(out, img)
	}
	slices.SortStableFunc(out, artifact.NewestFirst)
	return out, nil
}

// Remove implements artifact.Deleter.
func (s *Store) Remove(ctx context.Context, ref artifact.Ref) error {
	img, err := s.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	return s.change(ctx, func(idx *v1.Index) error {
		n := len(idx.Manifests)
		idx.Manifests = slices.DeleteFunc(idx.Manifests, func(m v1.Descriptor) bool {
			r := m.Annotations[v1.AnnotationRefName]
			if ref.Digest == "" && ref.Tag != img.Version {
				return isTag(m) && r == ref.String()
			}
			name, _ := cutRef(r)
			return name == img.Name && artifact.Digest(m.Digest) == img.Digest
		})
		if len(idx.Manifests) == n {
			return fmt.Errorf("%s: %w", ref, artifact.ErrNotFound)
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
