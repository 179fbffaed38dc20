package oci

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
	"golang.org/x/sync/errgroup"
)

// Fetch implements artifact.Store.
func (s *Store) Fetch(ctx context.Context, content artifact.Digest, path string, progress func(done, total int64)) error {
	m, err := s.readMap(content)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".fetch-*")
	if err != nil {
		return err
	}
	err = f.Truncate(m.Size)
	if err == nil {
		err = s.frames(ctx, m, progress, func(chunk int64, raw []byte) error {
			at := chunk * chunkSize
			if rest := m.Size - at; rest < int64(len(raw)) {
				raw = raw[:rest]
			}
			_, err := f.WriteAt(raw, at)
			return err
		})
	}
	return finishFile(f, path, err)
}

// Verify implements artifact.Verifier: every blob and every chunk is hashed again.
func (s *Store) Verify(ctx context.Context, img artifact.Image, progress func(done, total int64)) error {
	m, err := s.readMap(img.Content)
	if err != nil {
		return err
	}
	mani, err := s.manifest(img.Digest)
	if err != nil {
		return err
	}
	for _, l := range mani.Layers {
		if err := s.rehash(ctx, l); err != nil {
			return err
		}
	}
	return s.frames(ctx, m, progress, func(int64, []byte) error { return nil })
}

func (s *Store) rehash(ctx context.Context, l v1.Descriptor) error {
	path, err := s.blobPath(artifact.Digest(l.Digest))
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%w: %w", artifact.ErrCorrupt, err)
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return err
	}
	if n != l.Size || fmt.Sprintf("%x", h.Sum(nil)) != artifact.Digest(l.Digest).Hex() {
		return fmt.Errorf("%w: blob %s", artifact.ErrCorrupt, l.Digest)
	}
	return ctx.Err()
}

// frames decodes each frame that the map needs once, in parallel, checks its
// chunks and hands them to each (from many goroutines).
func (s *Store) frames(ctx context.Context, m rootMap, progress func(done, total int64), each func(chunk int64, raw []byte) error) error {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	var done atomic.Int64
	packs := &packFiles{s: s, open: map[artifact.Digest]*os.File{}}
	defer packs.close()
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan []entry)
	for range max(1, runtime.GOMAXPROCS(0)) {
		g.Go(func() error {
			dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(frameSize), zstd.WithDecoderMaxWindow(8<<20))
			if err != nil {
				return err
			}
			defer dec.Close()
			var packed, raw []byte
			for es := range work {
				if packed, raw, err = packs.frame(dec, es, packed, raw, each); err != nil {
					return err
				}
				n := done.Add(int64(len(es)) * chunkSize)
				progress(min(n, m.Size), m.Size)
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(work)
		for _, l := range m.Leaves {
			es, err := s.entries(m, l)
			if err != nil {
				return err
			}
			slices.SortFunc(es, func(a, b entry) int {
				if c := strings.Compare(string(a.pack), string(b.pack)); c != 0 {
					return c
				}
				return int(a.offset - b.offset)
			})
			for _, e := range es {
				if err := packs.opened(e.pack); err != nil {
					return err
				}
			}
			for len(es) > 0 {
				n := 1
				for n < len(es) && es[n].pack == es[0].pack && es[n].offset == es[0].offset {
					n++
				}
				select {
				case work <- es[:n]:
				case <-ctx.Done():
					return ctx.Err()
				}
				es = es[n:]
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	progress(m.Size, m.Size)
	return nil
}

// packFiles are the packs that a map needs, each opened once. Files are added
// by the one feeder and read by many workers, which see those sent before.
type packFiles struct {
	s    *Store
	open map[artifact.Digest]*os.File
	last artifact.Digest
	mu   sync.Mutex
}

func (p *packFiles) opened(d artifact.Digest) error {
	if d == p.last {
		return nil
	}
	p.last = d
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[d] != nil {
		return nil
	}
	path, err := p.s.blobPath(d)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%w: %w", artifact.ErrCorrupt, err)
	}
	p.open[d] = f
	return nil
}

func (p *packFiles) frame(dec *zstd.Decoder, es []entry, packed, raw []byte, each func(int64, []byte) error) ([]byte, []byte, error) {
	p.mu.Lock()
	f := p.open[es[0].pack]
	p.mu.Unlock()
	packed = slices.Grow(packed[:0], int(es[0].length))[:es[0].length]
	if _, err := f.ReadAt(packed, es[0].offset); err != nil {
		return packed, raw, fmt.Errorf("%w: pack %s: %w", artifact.ErrCorrupt, es[0].pack, err)
	}
	raw, err := dec.DecodeAll(packed, raw[:0])
	if err != nil {
		return packed, raw, fmt.Errorf("%w: pack %s at %d: %w", artifact.ErrCorrupt, es[0].pack, es[0].offset, err)
	}
	for _, e := range es {
		from := int(e.at) * chunkSize
		if from+chunkSize > len(raw) {
			return packed, raw, fmt.Errorf("%w: chunk %d is not in its frame", artifact.ErrCorrupt, e.chunk)
		}
		c := raw[from : from+chunkSize]
		if sha256.Sum256(c) != e.sum {
			return packed, raw, fmt.Errorf("%w: chunk %d", artifact.ErrCorrupt, e.chunk)
		}
		if err := each(e.chunk, c); err != nil {
			return packed, raw, err
		}
	}
	return packed, raw, nil
}

func (p *packFiles) close() {
	for _, f := range p.open {
		f.Close()
	}
}

// Prune implements artifact.Deleter.
func (s *Store) Prune(ctx context.Context, grace time.Duration, keep []artifact.Digest) (freed int64, err error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	needed, err := s.mark(keep)
	if err != nil {
		return 0, fmt.Errorf("nothing was deleted: %w", err)
	}
	dir := filepath.Join(s.dir, "blobs", "sha256")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		st, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return freed, err
		}
		if needed[artifact.Digest("sha256:"+e.Name())] || time.Since(st.ModTime()) < grace || ctx.Err() != nil {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, err
		}
		freed += st.Size()
	}
	return freed, ctx.Err()
}

// mark is every blob that an image or a kept content needs.
func (s *Store) mark(keep []artifact.Digest) (map[artifact.Digest]bool, error) {
	needed := map[artifact.Digest]bool{}
	content := func(d artifact.Digest) error {
		m, err := s.readMap(d)
		if err != nil {
			return err
		}
		needed[d] = true
		for _, l := range m.Leaves {
			needed[l.Digest] = true
		}
		for _, p := range m.Packs {
			needed[p.Digest] = true
		}
		return nil
	}
	idx, err := s.index()
	if err != nil {
		return nil, err
	}
	for _, d := range idx.Manifests {
		m, err := s.manifest(artifact.Digest(d.Digest))
		if err != nil {
			return nil, err
		}
		needed[artifact.Digest(d.Digest)] = true
		needed[artifact.Digest(m.Config.Digest)] = true
		for _, l := range m.Layers {
			needed[artifact.Digest(l.Digest)] = true
		}
	}
	for _, d := range keep {
		if err := content(d); err != nil {
			return nil, err
		}
	}
	return needed, nil
}
