// Package oci keeps images in an OCI image layout on disk, so that oras, skopeo
// and crane can read it. A disk is a map of 64 KiB chunks of its virtual bytes,
// keyed by content; new chunks are zstd frames in packs of about 64 MiB, which
// are the layers of the manifest. Blobs are written first (temp, fsync, rename);
// index.json, rewritten under a file lock, is what makes them visible.
package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
)

// Media types of what the store holds.
const (
	typeArtifact = "application/vnd.rebake.machine.v1+json"
	typeConfig   = "application/vnd.rebake.machine.config.v1+json"
	typePack     = "application/vnd.rebake.disk.pack.v1+zstd"
	typeMap      = "application/vnd.rebake.disk.map.v1+json"
	typeLeaf     = "application/vnd.rebake.disk.leaf.v1+zstd"

	maxJSON = 64 << 20 // bytes of any manifest or map
)

// Store is an OCI layout. It is safe for many goroutines and processes.
type Store struct {
	dir string
}

// Open makes the layout if it is not there.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	s := &Store{dir: dir}
	layout := filepath.Join(dir, v1.ImageLayoutFile)
	if _, err := os.Stat(layout); errors.Is(err, fs.ErrNotExist) {
		b, err := json.Marshal(v1.ImageLayout{Version: v1.ImageLayoutVersion})
		if err != nil {
			return nil, err
		}
		if err := replaceFile(layout, b); err != nil {
			return nil, fmt.Errorf("open the store: %w", err)
		}
	}
	return s, nil
}

func (s *Store) blobPath(d artifact.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("%w: %w", artifact.ErrCorrupt, err)
	}
	return filepath.Join(s.blobDir(), d.Hex()), nil
}

func (s *Store) blobDir() string { return filepath.Join(s.dir, "blobs", "sha256") }

func (s *Store) indexPath() string { return filepath.Join(s.dir, v1.ImageIndexFile) }

// index reads index.json as it is now; none is an empty one.
func (s *Store) index() (v1.Index, error) {
	idx := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{}}
	b, err := os.ReadFile(s.indexPath())
	if errors.Is(err, fs.ErrNotExist) {
		return idx, nil
	}
	if err != nil {
		return idx, err
	}
	if err := json.Unmarshal(b, &idx); err != nil {
		return idx, fmt.Errorf("%w: %s: %w", artifact.ErrCorrupt, s.indexPath(), err)
	}
	return idx, nil
}

// change edits index.json under the lock: read again, edit, write anew, rename.
func (s *Store) change(ctx context.Context, edit func(*v1.Index) error) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	idx, err := s.index()
	if err != nil {
		return err
	}
	if err := edit(&idx); err != nil {
		return err
	}
	b, err := json.MarshalIndent(idx, "", " ")
	if err != nil {
		return err
	}
	return replaceFile(s.indexPath(), append(b, '\n'))
}

func (s *Store) lock(ctx context.Context) (func(), error) {
	l := flock.New(filepath.Join(s.dir, ".lock"), flock.SetPermissions(0o600))
	ok, err := l.TryLockContext(ctx, 5*time.Millisecond)
	if err != nil || !ok {
		return nil, fmt.Errorf("lock the store: %w", errors.Join(err, ctx.Err()))
	}
	return func() { l.Close() }, nil
}

// replaceFile writes path anew, all or nothing, also after a power cut.
func replaceFile(path string, data []byte) error {
	f, err := newTemp(filepath.Dir(path))
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return finishFile(f, path, err)
}

// blobWriter writes a blob whose digest is known at its end.
type blobWriter struct {
	s *Store
	f *os.File
	h hash.Hash
	n int64
}

func (s *Store) newBlob() (*blobWriter, error) {
	f, err := newTemp(s.blobDir())
	if err != nil {
		return nil, err
	}
	return &blobWriter{s: s, f: f, h: sha256.New()}, nil
}

func (w *blobWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	w.h.Write(p[:n])
	w.n += int64(n)
	return n, err
}

func (w *blobWriter) digest() artifact.Digest {
	return artifact.Digest("sha256:" + hex.EncodeToString(w.h.Sum(nil)))
}

// abort forgets the blob; what cannot be removed now, Clean removes later.
func (w *blobWriter) abort() {
	_ = os.Remove(w.f.Name())
	w.f.Close()
}

// commit gives the blob its name. added is false if the store had it.
func (w *blobWriter) commit(mediaType string) (desc v1.Descriptor, added bool, err error) {
	d := w.digest()
	path, err := w.s.blobPath(d)
	if err != nil {
		w.abort()
		return desc, false, err
	}
	desc = descriptor(mediaType, d, w.n)
	if st, err := os.Stat(path); err == nil && st.Size() == w.n {
		now := time.Now() // young again: Prune's grace protects it, or has taken it
		if err := os.Chtimes(path, now, now); !errors.Is(err, fs.ErrNotExist) {
			w.abort()
			return desc, false, err
		}
	}
	return desc, true, finishFile(w.f, path, nil)
}

func (s *Store) putBlob(mediaType string, data []byte) (v1.Descriptor, bool, error) {
	w, err := s.newBlob()
	if err != nil {
		return v1.Descriptor{}, false, err
	}
	if _, err := w.Write(data); err != nil {
		w.abort()
		return v1.Descriptor{}, false, err
	}
	return w.commit(mediaType)
}

// blob reads a small blob whole and checks it.
func (s *Store) blob(d artifact.Digest) ([]byte, error) {
	path, err := s.blobPath(d)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: blob %s is missing", artifact.ErrCorrupt, d)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxJSON+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxJSON {
		return nil, fmt.Errorf("%w: blob %s is larger than %d bytes", artifact.ErrCorrupt, d, maxJSON)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != d.Hex() {
		return nil, fmt.Errorf("%w: blob %s", artifact.ErrCorrupt, d)
	}
	return b, nil
}
