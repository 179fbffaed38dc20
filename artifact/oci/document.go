package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
)

// Document is an attachment on its way from one store to another: its manifest
// as it is, and the blobs that it needs.
type Document struct {
	Desc  v1.Descriptor // of the manifest, as a list of referrers has it
	Raw   []byte
	Blobs []v1.Descriptor // config and body
}

// CheckDocument decodes an attachment's manifest that came from elsewhere and
// refuses one of another image, and what Attached does not list: other than one
// layer, digests that are none, sizes out of range.
func CheckDocument(raw []byte, to artifact.Digest) (Document, error) {
	bad := func(format string, a ...any) (Document, error) {
		return Document{}, fmt.Errorf("%w: an attachment: "+format, append([]any{artifact.ErrCorrupt}, a...)...)
	}
	if len(raw) > maxManifest {
		return bad("a manifest of %d bytes", len(raw))
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return bad("its manifest: %w", err)
	}
	switch {
	case m.Subject == nil || artifact.Digest(m.Subject.Digest) != to:
		return bad("it is none of %s", to)
	case len(m.Layers) != 1:
		return bad("it has %d layers, not one", len(m.Layers))
	case m.Config.Size > maxManifest:
		return bad("a config of %d bytes", m.Config.Size)
	}
	d := Document{Desc: describe(v1.MediaTypeImageManifest, raw), Raw: raw, Blobs: []v1.Descriptor{m.Config, m.Layers[0]}}
	for _, b := range d.Blobs {
		if err := artifact.Digest(b.Digest).Validate(); err != nil {
			return bad("%w", err)
		}
		if b.Size <= 0 || b.Size > artifact.MaxAttachment {
			return bad("blob %s of %d bytes", b.Digest, b.Size)
		}
	}
	if d.Desc.ArtifactType = m.ArtifactType; m.ArtifactType == "" {
		d.Desc.ArtifactType = m.Config.MediaType
	}
	d.Desc.Annotations = m.Annotations
	return d, nil
}

// Documents are the attachments of an image, in the order of Attached.
func (s *Store) Documents(ctx context.Context, to artifact.Digest) ([]Document, error) {
	all, err := s.Attached(ctx, to, "")
	if err != nil {
		return nil, err
	}
	var out []Document
	for _, a := range all {
		raw, err := s.blob(a.Digest)
		if err != nil {
			return nil, err
		}
		d, err := CheckDocument(raw, to)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// AdoptDocuments attaches documents to an image whose manifest is here, and
// whose blobs were put here, and returns how many of them are new.
func (s *Store) AdoptDocuments(ctx context.Context, to artifact.Digest, docs []Document) (added int, err error) {
	idx, err := s.index()
	if err != nil {
		return 0, err
	}
	if docs = slices.DeleteFunc(slices.Clone(docs), func(d Document) bool { return hasDocument(&idx, d) }); len(docs) == 0 {
		return 0, nil
	}
	err = s.change(ctx, func(idx *v1.Index) error {
		added, err = s.addDocuments(idx, to, docs)
		return err
	})
	return added, err
}

func hasDocument(idx *v1.Index, d Document) bool {
	return slices.ContainsFunc(idx.Manifests, func(m v1.Descriptor) bool { return m.Digest == d.Desc.Digest })
}

// addDocuments puts documents into an index; the caller has the lock.
func (s *Store) addDocuments(idx *v1.Index, to artifact.Digest, docs []Document) (added int, err error) {
	for _, d := range docs {
		if hasDocument(idx, d) {
			continue
		}
		for _, b := range d.Blobs {
			if n, err := s.blobSize(artifact.Digest(b.Digest)); err != nil {
				return added, err
			} else if n != b.Size {
				return added, fmt.Errorf("%w: blob %s has %d bytes, not %d", artifact.ErrCorrupt, b.Digest, n, b.Size)
			}
		}
		desc, _, err := s.putBlob(v1.MediaTypeImageManifest, d.Raw)
		if err != nil {
			return added, err
		}
		desc.ArtifactType = d.Desc.ArtifactType
		desc.Annotations = map[string]string{annotationKind: kindAttachment, annotationSubject: string(to)}
		idx.Manifests = append(idx.Manifests, desc)
		added++
	}
	return added, nil
}
