package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
)

// MaxManifest bounds a manifest that comes from elsewhere. The distribution
// spec asks registries to take 4 MiB; a disk of 6 TB of data fits.
const MaxManifest = 4 << 20

// ErrNoImage is of a manifest that is something else.
var ErrNoImage = errors.New("machine image of rebake")

// ReadManifest returns an image's manifest as it is stored, with its descriptor.
func (s *Store) ReadManifest(d artifact.Digest) ([]byte, v1.Manifest, v1.Descriptor, error) {
	m, err := s.manifest(d)
	if err != nil {
		return nil, m, v1.Descriptor{}, err
	}
	raw, err := s.blob(d)
	if err != nil {
		return nil, m, v1.Descriptor{}, err
	}
	desc := descriptor(v1.MediaTypeImageManifest, d, int64(len(raw)))
	desc.ArtifactType = typeArtifact
	return raw, m, desc, nil
}

// OpenBlob opens a blob of the size that the descriptor says, not checked further.
func (s *Store) OpenBlob(desc v1.Descriptor) (*os.File, error) {
	n, err := s.blobSize(artifact.Digest(desc.Digest))
	if err != nil {
		return nil, err
	}
	if n != desc.Size {
		return nil, fmt.Errorf("%w: blob %s has %d bytes, not %d", artifact.ErrCorrupt, desc.Digest, n, desc.Size)
	}
	path, err := s.blobPath(artifact.Digest(desc.Digest))
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}

// CheckManifest decodes a manifest that came from elsewhere and refuses what no
// image of rebake has: another type, digests that are none, sizes out of range.
func CheckManifest(raw []byte) (v1.Manifest, error) {
	var m v1.Manifest
	if len(raw) > MaxManifest {
		return m, fmt.Errorf("%w: a manifest of more than %d bytes", artifact.ErrCorrupt, MaxManifest)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("%w: the manifest: %w", artifact.ErrCorrupt, err)
	}
	if m.ArtifactType != typeArtifact || m.Config.MediaType != typeConfig {
		return m, fmt.Errorf("%w: it is a %.100q, not a %w", artifact.ErrCorrupt, m.ArtifactType, ErrNoImage)
	}
	for i, l := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		most := int64(maxJSON)
		switch {
		case i == 0:
		case l.MediaType == typePack:
			most = 2 * packSize
		case l.MediaType != typeMap && l.MediaType != typeLeaf:
			return m, fmt.Errorf("%w: a layer of type %.100q", artifact.ErrCorrupt, l.MediaType)
		}
		if err := artifact.Digest(l.Digest).Validate(); err != nil {
			return m, fmt.Errorf("%w: %w", artifact.ErrCorrupt, err)
		}
		if l.Size <= 0 || l.Size > most {
			return m, fmt.Errorf("%w: blob %s of %d bytes", artifact.ErrCorrupt, l.Digest, l.Size)
		}
	}
	return m, nil
}

// Missing returns those of the blobs that are not here. The others are made
// young, so that no Prune takes them before the image is adopted.
func (s *Store) Missing(ctx context.Context, blobs []v1.Descriptor) ([]v1.Descriptor, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var out []v1.Descriptor
	seen := map[string]bool{}
	now := time.Now()
	for _, b := range blobs {
		if seen[string(b.Digest)] {
			continue
		}
		seen[string(b.Digest)] = true
		path, err := s.blobPath(artifact.Digest(b.Digest))
		if err != nil {
			return nil, err
		}
		st, err := os.Stat(path)
		if err == nil && st.Size() == b.Size {
			err = os.Chtimes(path, now, now)
			if err == nil {
				continue
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// PutBlob stores what fill writes, if it is the blob that desc names: never
// more bytes than that are written, and nothing is visible before all are checked.
func (s *Store) PutBlob(desc v1.Descriptor, fill func(io.Writer) error) error {
	w, err := s.newBlob()
	if err != nil {
		return err
	}
	if err := fill(&bounded{w, desc.Size}); err != nil {
		w.abort()
		return err
	}
	if w.n != desc.Size || w.digest() != artifact.Digest(desc.Digest) {
		w.abort()
		return fmt.Errorf("%w: blob %s came as %d bytes with digest %s", artifact.ErrCorrupt, desc.Digest, w.n, w.digest())
	}
	_, _, err = w.commit(desc.MediaType)
	return err
}

type bounded struct {
	w    io.Writer
	left int64
}

func (b *bounded) Write(p []byte) (int, error) {
	if int64(len(p)) > b.left {
		return 0, fmt.Errorf("%w: more bytes than the manifest says", artifact.ErrCorrupt)
	}
	n, err := b.w.Write(p)
	b.left -= int64(n)
	return n, err
}

// Adopt makes an image visible whose manifest and blobs were put here, together
// with its documents. Every chunk of the disk is decoded and hashed first, unless
// this very image is visible already. ErrExists as Register.
func (s *Store) Adopt(ctx context.Context, raw []byte, want artifact.Ref, docs ...Document) (artifact.Image, error) {
	if _, err := CheckManifest(raw); err != nil {
		return artifact.Image{}, err
	}
	desc := describe(v1.MediaTypeImageManifest, raw)
	desc.ArtifactType = typeArtifact
	if _, _, err := s.putBlob(desc.MediaType, raw); err != nil {
		return artifact.Image{}, err
	}
	img, m, err := s.checked(artifact.Digest(desc.Digest))
	if err != nil {
		return img, err
	}
	if err := errors.Join(artifact.CheckName(img.Name), artifact.CheckTag(img.Version)); err != nil {
		return img, fmt.Errorf("%w: the image's config: %w", artifact.ErrCorrupt, err)
	}
	if img.Name != want.Name {
		return img, fmt.Errorf("%w: the image says that its name is %s, not %s", artifact.ErrCorrupt, img.Name, want.Name)
	}
	ref := img.Name + ":" + img.Version
	if idx, err := s.index(); err != nil {
		return img, err
	} else if !slices.ContainsFunc(idx.Manifests, func(m v1.Descriptor) bool {
		return named(m) == ref && m.Digest == desc.Digest && kind(m) == kindVersion
	}) {
		if err := s.frames(ctx, m, nil, func(int64, []byte) error { return nil }); err != nil {
			return img, err
		}
	}
	return img, s.change(ctx, func(idx *v1.Index) error {
		if _, err := s.layers(img.Content, m); err != nil {
			return err
		}
		if err := taken(idx, ref, artifact.Digest(desc.Digest)); err != nil {
			return fmt.Errorf("in the store here, as another image: %w", err)
		}
		if _, err := s.addDocuments(idx, img.Digest, docs); err != nil {
			return err
		}
		put(idx, desc, ref, kindVersion)
		return nil
	})
}
