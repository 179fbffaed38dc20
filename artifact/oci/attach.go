package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
)

// An attachment is an untagged manifest of the index with a subject, so that
// oras and cosign find it as a referrer. Its subject stands in its entry too: to
// list an image's attachments, those of others are not read.
const (
	kindAttachment    = "attachment"
	annotationSubject = "dev.rebake.subject"

	maxManifest = 4 << 20 // bytes of an attachment's manifest, as registries take
)

// encoded is an image as it is stored.
type encoded struct {
	img          artifact.Image // with its Digest
	root         *diskMap
	config, mani []byte
	desc         v1.Descriptor
}

// encode looks for all blobs of an image and makes its manifest.
func (s *Store) encode(img artifact.Image) (encoded, error) {
	e := encoded{img: img}
	if err := artifact.CheckName(img.Name); err != nil {
		return e, err
	}
	if err := artifact.CheckTag(img.Version); err != nil {
		return e, err
	}
	bad := func(err error) (encoded, error) {
		return e, fmt.Errorf("register %s:%s: %w", img.Name, img.Version, err)
	}
	e.img.Digest, e.img.Tags = "", nil
	var err error
	if e.root, err = s.readMap(img.Content); err != nil {
		return bad(err)
	}
	if img.DiskSize == 0 {
		e.img.DiskSize = e.root.Size
	}
	if e.img.DiskSize != e.root.Size {
		return bad(fmt.Errorf("its disk has %d bytes, not %d", e.root.Size, img.DiskSize))
	}
	if e.config, err = json.Marshal(e.img); err != nil {
		return bad(err)
	}
	layers, err := s.layers(img.Content, e.root)
	if err != nil {
		return bad(err)
	}
	e.mani, err = json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		ArtifactType: typeArtifact, Config: describe(typeConfig, e.config), Layers: layers,
	})
	if err != nil {
		return bad(err)
	}
	e.desc = describe(v1.MediaTypeImageManifest, e.mani)
	e.desc.ArtifactType = typeArtifact
	e.img.Digest = artifact.Digest(e.desc.Digest)
	return e, nil
}

// Describe implements artifact.Attacher. The manifest is stored, but not in the
// index: a Prune after its grace takes it, if no Register comes.
func (s *Store) Describe(_ context.Context, img artifact.Image) (artifact.Image, error) {
	e, err := s.encode(img)
	if err != nil {
		return img, err
	}
	return e.img, e.store(s)
}

// store writes the image's config and then its manifest.
func (e encoded) store(s *Store) error {
	if _, _, err := s.putBlob(typeConfig, e.config); err != nil {
		return err
	}
	_, _, err := s.putBlob(e.desc.MediaType, e.mani)
	return err
}

// Attach implements artifact.Attacher.
func (s *Store) Attach(ctx context.Context, to artifact.Digest, a artifact.Attachment, body []byte) (artifact.Attachment, error) {
	bad := func(err error) (artifact.Attachment, error) {
		return a, fmt.Errorf("attach a %s to %s: %w", a.Kind, to, err)
	}
	if err := artifact.CheckAttachment(a, body); err != nil {
		return bad(err)
	}
	// Large ones before the lock; young, so that a Prune leaves them alone.
	if _, _, err := s.putBlob(a.Media, body); err != nil {
		return bad(err)
	}
	err := s.change(ctx, func(idx *v1.Index) error {
		size, err := s.blobSize(to)
		if errors.Is(err, artifact.ErrCorrupt) {
			return artifact.ErrNotFound
		} else if err != nil {
			return err
		}
		layer := describe(a.Media, body)
		m := v1.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, ArtifactType: a.Kind,
			Config: v1.DescriptorEmptyJSON, Layers: []v1.Descriptor{layer}, Annotations: maps.Clone(a.Notes),
		}
		m.Config.Data = nil
		subject := descriptor(v1.MediaTypeImageManifest, to, size)
		m.Subject = &subject
		if m.Annotations == nil {
			m.Annotations = map[string]string{}
		}
		m.Annotations[v1.AnnotationCreated] = a.Created.UTC().Format(time.RFC3339)
		raw, err := json.Marshal(m)
		if err != nil {
			return err
		}
		if len(raw) > maxManifest {
			return fmt.Errorf("its notes make a manifest of %d bytes; a registry takes %d", len(raw), maxManifest)
		}
		if _, err := s.blobSize(artifact.Digest(layer.Digest)); err != nil { // a Prune without grace came between
			if _, _, err := s.putBlob(a.Media, body); err != nil {
				return err
			}
		}
		if _, _, err := s.putBlob(v1.MediaTypeEmptyJSON, v1.DescriptorEmptyJSON.Data); err != nil {
			return err
		}
		desc, _, err := s.putBlob(v1.MediaTypeImageManifest, raw)
		if err != nil {
			return err
		}
		a.Digest, a.Size = artifact.Digest(desc.Digest), int64(len(body))
		desc.ArtifactType = a.Kind
		desc.Annotations = map[string]string{annotationKind: kindAttachment, annotationSubject: string(to)}
		if !slices.ContainsFunc(idx.Manifests, func(m v1.Descriptor) bool { return m.Digest == desc.Digest }) {
			idx.Manifests = append(idx.Manifests, desc)
		}
		return nil
	})
	if err != nil {
		return bad(err)
	}
	a.Created = a.Created.UTC()
	return a, nil
}

// Attached implements artifact.Attacher. What others attached with one layer,
// by oras or cosign, is listed too.
func (s *Store) Attached(_ context.Context, to artifact.Digest, only string) (out []artifact.Attachment, err error) {
	err = s.read(func(idx v1.Index) error {
		out = nil
		for _, m := range idx.Manifests {
			if !mayConcern(m, to) {
				continue
			}
			a, subject, err := s.attachment(artifact.Digest(m.Digest))
			switch {
			case err != nil && kind(m) == kindAttachment:
				return err
			case err == nil && subject == to && (only == "" || a.Kind == only):
				out = append(out, a)
			}
		}
		return nil
	})
	slices.SortStableFunc(out, func(a, b artifact.Attachment) int { return a.Created.Compare(b.Created) })
	return out, err
}

// AttachedAll implements artifact.AttachedLister: the index is read once.
func (s *Store) AttachedAll(_ context.Context, only string) (out map[artifact.Digest][]artifact.Attachment, err error) {
	err = s.read(func(idx v1.Index) error {
		out = map[artifact.Digest][]artifact.Attachment{}
		for _, m := range idx.Manifests {
			ours := kind(m) == kindAttachment
			if ours && m.ArtifactType != "" && m.ArtifactType != only || !ours && !mayConcern(m, "") {
				continue
			}
			a, subject, err := s.attachment(artifact.Digest(m.Digest))
			switch {
			case err != nil && ours:
				return err
			case err == nil && a.Kind == only:
				out[subject] = append(out[subject], a)
			}
		}
		return nil
	})
	for _, list := range out {
		slices.SortStableFunc(list, func(a, b artifact.Attachment) int { return a.Created.Compare(b.Created) })
	}
	return out, err
}

// mayConcern tells whether an entry may be an attachment of an image.
func mayConcern(m v1.Descriptor, to artifact.Digest) bool {
	if kind(m) == kindAttachment {
		return m.Annotations[annotationSubject] == string(to)
	}
	return kind(m) == "" && m.Size <= maxManifest && m.MediaType == v1.MediaTypeImageManifest
}

// attachment reads the manifest of one.
func (s *Store) attachment(d artifact.Digest) (a artifact.Attachment, subject artifact.Digest, err error) {
	m, err := s.attachmentManifest(d)
	if err != nil {
		return a, "", err
	}
	a = artifact.Attachment{Digest: d, Kind: m.ArtifactType, Media: m.Layers[0].MediaType, Size: m.Layers[0].Size}
	if a.Kind == "" {
		a.Kind = m.Config.MediaType
	}
	for k, v := range m.Annotations {
		if k == v1.AnnotationCreated {
			a.Created, _ = time.Parse(time.RFC3339, v) // others may write what they like: it counts as the oldest
			a.Created = a.Created.UTC()
			continue
		}
		if a.Notes == nil {
			a.Notes = map[string]string{}
		}
		a.Notes[k] = v
	}
	return a, artifact.Digest(m.Subject.Digest), nil
}

func (s *Store) attachmentManifest(d artifact.Digest) (m v1.Manifest, err error) {
	raw, err := s.blob(d)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("%w: manifest %s: %w", artifact.ErrCorrupt, d, err)
	}
	if m.Subject == nil || len(m.Layers) != 1 {
		return m, fmt.Errorf("%w: manifest %s is no attachment: it has %d layers", artifact.ErrCorrupt, d, len(m.Layers))
	}
	return m, nil
}

// ReadAttachment implements artifact.Attacher.
func (s *Store) ReadAttachment(_ context.Context, a artifact.Attachment) ([]byte, error) {
	m, err := s.attachmentManifest(a.Digest)
	if err != nil {
		return nil, err
	}
	l := m.Layers[0]
	if l.Size > artifact.MaxAttachment {
		return nil, fmt.Errorf("the attachment %s says it has %d bytes; at most %d are read: %w", a.Digest, l.Size, artifact.MaxAttachment, artifact.ErrCorrupt)
	}
	have, err := s.blobSize(artifact.Digest(l.Digest))
	if err != nil {
		return nil, err
	}
	if have != l.Size {
		return nil, fmt.Errorf("%w: the attachment %s has %d bytes, not %d", artifact.ErrCorrupt, a.Digest, have, l.Size)
	}
	return s.blob(artifact.Digest(l.Digest))
}

// verifyAttached reads all attachments of an image.
func (s *Store) verifyAttached(ctx context.Context, to artifact.Digest) error {
	all, err := s.Attached(ctx, to, "")
	for _, a := range all {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			_, err = s.ReadAttachment(ctx, a)
		}
	}
	return err
}

// detach drops the attachments of what gone tells from the index, and theirs.
func (s *Store) detach(idx *v1.Index, gone func(artifact.Digest) bool) {
	for again := true; again; {
		again = false
		idx.Manifests = slices.DeleteFunc(idx.Manifests, func(m v1.Descriptor) bool {
			subject := artifact.Digest(m.Annotations[annotationSubject])
			if kind(m) != kindAttachment {
				if kind(m) != "" || m.Size > maxManifest || m.Annotations[v1.AnnotationRefName] != "" {
					return false
				}
				raw, err := s.blob(artifact.Digest(m.Digest))
				var foreign struct {
					Subject *v1.Descriptor `json:"subject"`
				}
				if err != nil || json.Unmarshal(raw, &foreign) != nil || foreign.Subject == nil {
					return false
				}
				subject = artifact.Digest(foreign.Subject.Digest)
			}
			if !gone(subject) {
				return false
			}
			before, this := gone, artifact.Digest(m.Digest)
			gone = func(d artifact.Digest) bool { return d == this || before(d) }
			again = true
			return true
		})
	}
}

// inIndex tells whether an image is still there under any name.
func inIndex(idx *v1.Index, d artifact.Digest) bool {
	return slices.ContainsFunc(idx.Manifests, func(m v1.Descriptor) bool { return artifact.Digest(m.Digest) == d })
}

// markAttachments marks those whose subject is needed or that are younger than
// grace, and returns the index without the others.
func (s *Store) markAttachments(idx v1.Index, needed map[artifact.Digest]bool, grace time.Duration) (v1.Index, error) {
	stay := map[string]bool{}
	for again := true; again; {
		again = false
		for _, m := range idx.Manifests {
			subject := artifact.Digest(m.Annotations[annotationSubject])
			if kind(m) != kindAttachment || stay[string(m.Digest)] {
				continue
			}
			if !needed[subject] {
				young, err := s.younger(artifact.Digest(m.Digest), grace)
				if err != nil {
					return idx, err
				}
				if !young {
					continue
				}
			}
			if err := s.markManifest(m, needed, 0); err != nil {
				return idx, err
			}
			needed[subject] = true // its manifest alone: the image may be about to be registered
			stay[string(m.Digest)], again = true, true
		}
	}
	idx.Manifests = slices.DeleteFunc(slices.Clone(idx.Manifests), func(m v1.Descriptor) bool {
		return kind(m) == kindAttachment && !stay[string(m.Digest)]
	})
	return idx, nil
}

func (s *Store) younger(d artifact.Digest, grace time.Duration) (bool, error) {
	path, err := s.blobPath(d)
	if err != nil {
		return false, err
	}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return time.Since(st.ModTime()) < grace, nil
}

// writeIndex writes index.json, if it is another one; the caller has the lock.
func (s *Store) writeIndex(was, is v1.Index) error {
	a, err := json.MarshalIndent(was, "", " ")
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(is, "", " ")
	if err != nil || bytes.Equal(a, b) {
		return err
	}
	return replaceFile(s.indexPath(), append(b, '\n'))
}
