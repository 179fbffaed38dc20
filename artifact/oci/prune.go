package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
)

// Prune implements artifact.Deleter.
func (s *Store) Prune(ctx context.Context, grace time.Duration, keep []artifact.Digest) (freed int64, err error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	idx, err := s.index()
	if err != nil {
		return 0, fmt.Errorf("nothing was deleted: %w", err)
	}
	needed, err := s.mark(idx, keep)
	if err != nil {
		return 0, fmt.Errorf("nothing was deleted: %w", err)
	}
	left, err := s.markAttachments(idx, needed, grace)
	if err == nil {
		err = s.writeIndex(idx, left) // before their blobs go
	}
	if err != nil {
		return 0, fmt.Errorf("nothing was deleted: %w", err)
	}
	if _, err := s.Clean(ctx); err != nil {
		return 0, err
	}
	entries, err := os.ReadDir(s.blobDir())
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return freed, err
		}
		d := artifact.Digest("sha256:" + e.Name())
		if d.Validate() != nil || needed[d] {
			continue
		}
		n, err := removeOlder(filepath.Join(s.blobDir(), e.Name()), grace)
		if err != nil {
			return freed, err
		}
		freed += n
	}
	return freed, nil
}

// removeOlder looks again, as a writer may have made the file young.
func removeOlder(path string, grace time.Duration) (int64, error) {
	st, err := os.Lstat(path)
	if err == nil && time.Since(st.ModTime()) < grace {
		return 0, nil
	}
	if err == nil {
		err = os.Remove(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// mark is every blob that a kept content or something in the index needs, which
// is no attachment.
func (s *Store) mark(idx v1.Index, keep []artifact.Digest) (map[artifact.Digest]bool, error) {
	needed := map[artifact.Digest]bool{}
	for _, m := range idx.Manifests {
		if kind(m) == kindAttachment {
			continue
		}
		if err := s.markManifest(m, needed, 0); err != nil {
			return nil, err
		}
	}
	for _, d := range keep {
		m, err := s.readMap(d)
		if err != nil {
			return nil, err
		}
		needed[d] = true
		for _, b := range m.blobs() {
			needed[b] = true
		}
	}
	return needed, nil
}

// markManifest follows what any OCI manifest or index points at: others may
// have put theirs into this layout.
func (s *Store) markManifest(desc v1.Descriptor, needed map[artifact.Digest]bool, depth int) error {
	d := artifact.Digest(desc.Digest)
	if err := d.Validate(); err != nil {
		return fmt.Errorf("%w: %w", artifact.ErrCorrupt, err)
	}
	if needed[d] {
		return nil
	}
	needed[d] = true
	raw, err := s.blob(d)
	if err != nil {
		return err
	}
	var m struct {
		Config    v1.Descriptor   `json:"config"`
		Layers    []v1.Descriptor `json:"layers"`
		Blobs     []v1.Descriptor `json:"blobs"`
		Manifests []v1.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("%w: manifest %s: %w", artifact.ErrCorrupt, d, err)
	}
	for _, l := range append(append(m.Layers, m.Blobs...), m.Config) {
		needed[artifact.Digest(l.Digest)] = true
	}
	if len(m.Manifests) > 0 && depth > 8 {
		return fmt.Errorf("%w: manifest %s is nested too deep", artifact.ErrCorrupt, d)
	}
	for _, c := range m.Manifests {
		if err := s.markManifest(c, needed, depth+1); err != nil {
			return err
		}
	}
	return nil
}
