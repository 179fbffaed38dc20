package oci

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
)

// A tombstone is what stays of an image that was retired: an entry of the index of
// a kind of its own, whose manifest has the image's config as its config and the
// image's manifest as its only layer. It is whole, so that others can read and copy
// the layout; Prune follows it as any manifest; and the image's attachments stay,
// because the blob that they have as their subject is needed.
const (
	kindRemoved = "removed"

	typeRemoved = "application/vnd.rebake.machine.removed.v1+json"
	typeBuried  = "application/vnd.rebake.machine.manifest.v1+json" // no manifest's type: nobody shall follow it

	annotationRemoved = "dev.rebake.removed"      // of the entry: name:version
	annotationAt      = "dev.rebake.removed.at"   // of the manifest, as are those below
	annotationWhy     = "dev.rebake.removed.why"  //
	annotationTags    = "dev.rebake.removed.tags" // that it had, with commas
)

// Retire implements artifact.Retirer.
func (s *Store) Retire(ctx context.Context, img artifact.Image, why string, at time.Time) error {
	ref := img.Name + ":" + img.Version
	err := s.change(ctx, func(idx *v1.Index) error {
		now, err := s.resolve(*idx, artifact.Ref{Name: img.Name, Digest: img.Digest})
		if err != nil {
			return err
		}
		if want := slices.Sorted(slices.Values(img.Tags)); !slices.Equal(now.Tags, want) {
			return fmt.Errorf("%w: its tags are now %q, and were %q", artifact.ErrInUse, now.Tags, want)
		}
		stone, err := s.bury(now, why, at)
		if err != nil {
			return err
		}
		if err := s.dropLarge(idx, img.Digest); err != nil {
			return err
		}
		idx.Manifests = slices.DeleteFunc(idx.Manifests, func(m v1.Descriptor) bool {
			name, _ := cutRef(named(m))
			return name == img.Name && artifact.Digest(m.Digest) == img.Digest
		})
		idx.Manifests = append(idx.Manifests, stone)
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove %s: %w", ref, err)
	}
	return nil
}

// bury writes the tombstone's manifest and returns its entry.
func (s *Store) bury(img artifact.Image, why string, at time.Time) (v1.Descriptor, error) {
	m, err := s.manifest(img.Digest)
	if err != nil {
		return v1.Descriptor{}, err
	}
	size, err := s.blobSize(img.Digest)
	if err != nil {
		return v1.Descriptor{}, err
	}
	raw, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, ArtifactType: typeRemoved,
		Config: m.Config, Layers: []v1.Descriptor{descriptor(typeBuried, img.Digest, size)},
		Annotations: map[string]string{annotationAt: at.UTC().Format(time.RFC3339), annotationWhy: why, annotationTags: strings.Join(img.Tags, ",")},
	})
	if err != nil {
		return v1.Descriptor{}, err
	}
	desc, _, err := s.putBlob(v1.MediaTypeImageManifest, raw)
	desc.ArtifactType = typeRemoved
	desc.Annotations = map[string]string{annotationKind: kindRemoved, annotationRemoved: img.Name + ":" + img.Version, annotationSubject: string(img.Digest)}
	return desc, err
}

// dropLarge drops those attachments of an image that are too large to outlive it.
func (s *Store) dropLarge(idx *v1.Index, image artifact.Digest) error {
	large := map[artifact.Digest]bool{}
	for _, m := range idx.Manifests {
		if kind(m) != kindAttachment || m.Annotations[annotationSubject] != string(image) {
			continue
		}
		a, _, err := s.attachment(artifact.Digest(m.Digest))
		if err != nil {
			return err
		}
		if a.Size > artifact.MaxKept {
			large[a.Digest] = true
		}
	}
	if len(large) == 0 {
		return nil
	}
	idx.Manifests = slices.DeleteFunc(idx.Manifests, func(m v1.Descriptor) bool {
		return kind(m) == kindAttachment && large[artifact.Digest(m.Digest)]
	})
	s.detach(idx, func(d artifact.Digest) bool { return large[d] }) // what was said of them
	return nil
}

// Removed implements artifact.Retirer.
func (s *Store) Removed(_ context.Context, name string) (out []artifact.Removed, err error) {
	err = s.read(func(idx v1.Index) error {
		out = nil
		for _, m := range idx.Manifests {
			if n, _ := cutRef(m.Annotations[annotationRemoved]); kind(m) != kindRemoved || name != "" && n != name {
				continue
			}
			r, err := s.tombstone(m)
			if err != nil {
				return fmt.Errorf("%s: %w", m.Annotations[annotationRemoved], err)
			}
			out = append(out, r)
		}
		return nil
	})
	slices.SortStableFunc(out, func(a, b artifact.Removed) int {
		return cmp.Or(b.At.Compare(a.At), artifact.NewestFirst(a.Image, b.Image))
	})
	return out, err
}

// tombstone reads what an entry of the kind says.
func (s *Store) tombstone(entry v1.Descriptor) (r artifact.Removed, err error) {
	bad := func(err error) (artifact.Removed, error) {
		return r, fmt.Errorf("%w: tombstone %s: %w", artifact.ErrCorrupt, entry.Digest, err)
	}
	raw, err := s.blob(artifact.Digest(entry.Digest))
	if err != nil {
		return r, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return bad(err)
	}
	cfg, err := s.blob(artifact.Digest(m.Config.Digest))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(cfg, &r.Image); err != nil {
		return bad(err)
	}
	if r.At, err = time.Parse(time.RFC3339, m.Annotations[annotationAt]); err != nil {
		return bad(err)
	}
	r.Digest, r.Tags = artifact.Digest(entry.Annotations[annotationSubject]), nil
	if t := m.Annotations[annotationTags]; t != "" {
		r.Tags = strings.Split(t, ",")
	}
	r.At, r.Why = r.At.UTC(), m.Annotations[annotationWhy]
	return r, nil
}

// gone is the error of a reference that names nothing, or what was removed.
func (s *Store) gone(idx v1.Index, ref artifact.Ref) error {
	for _, m := range idx.Manifests {
		if kind(m) != kindRemoved {
			continue
		}
		name, version := cutRef(m.Annotations[annotationRemoved])
		if name == ref.Name && (ref.Digest == "" && version == ref.Tag ||
			ref.Digest != "" && strings.HasPrefix(m.Annotations[annotationSubject], string(ref.Digest))) {
			r, err := s.tombstone(m)
			if err != nil {
				return err
			}
			return &artifact.RemovedError{Removed: r}
		}
	}
	return fmt.Errorf("%s: %w", ref, artifact.ErrNotFound)
}

// taken says why name:version cannot become that manifest, or nil: it is
// another one's, also that of an image that was removed, or a tag.
func taken(idx *v1.Index, ref string, d artifact.Digest) error {
	for _, have := range idx.Manifests {
		switch {
		case kind(have) == kindRemoved && have.Annotations[annotationRemoved] == ref && have.Annotations[annotationSubject] != string(d):
			return fmt.Errorf("%s was an image that was removed, and its version is not used again: %w", ref, artifact.ErrExists)
		case named(have) == ref && (artifact.Digest(have.Digest) != d || kind(have) != kindVersion):
			return fmt.Errorf("%s: %w", ref, artifact.ErrExists)
		}
	}
	return nil
}
