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
	"sync"

	"github.com/klauspost/compress/zstd"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
	"golang.org/x/sync/errgroup"
)

// Fetch implements artifact.Store. What a killed Fetch left in the same
// directory is removed.
func (s *Store) Fetch(ctx context.Context, content artifact.Digest, path string, progress func(done, total int64)) error {
	m, err := s.readMap(content)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if _, err := RemoveDead(filepath.Dir(path)); err != nil {
		return err
	}
	f, err := newTemp(filepath.Dir(path))
	if err != nil {
		return err
	}
	if err = f.Truncate(m.Size); err != nil {
		err = fmt.Errorf("make a disk of %d bytes: %w", m.Size, err)
	} else {
		err = s.frames(ctx, m, progress, func(chunk int64, raw []byte) error {
			at := chunk * chunkSize
			_, err := f.WriteAt(raw[:min(chunkSize, m.Size-at)], at)
			return err
		})
	}
	return finishFile(f, path, err)
}

// Verify implements artifact.Verifier: every blob, chunk and attachment is hashed again.
func (s *Store) Verify(ctx context.Context, img artifact.Image, progress func(done, total int64)) error {
	m, err := s.readMap(img.Content)
	if err != nil {
		return err
	}
	mani, err := s.manifest(img.Digest)
	if err != nil {
		return err
	}
	if _, err := s.image(img.Digest); err != nil { // and its config
		return err
	}
	layers := map[artifact.Digest]bool{}
	for _, l := range mani.Layers {
		if err := s.rehash(ctx, l); err != nil {
			return err
		}
		layers[artifact.Digest(l.Digest)] = true
	}
	for _, d := range append(m.blobs(), img.Content) {
		if !layers[d] {
			return fmt.Errorf("%w: the manifest %s does not list blob %s, which the disk needs", artifact.ErrCorrupt, img.Digest, d)
		}
	}
	if err := s.verifyAttached(ctx, img.Digest); err != nil {
		return err
	}
	return s.frames(ctx, m, progress, func(int64, []byte) error { return nil })
}

func (s *Store) rehash(ctx context.Context, l v1.Descriptor) error {
	path, err := s.blobPath(artifact.Digest(l.Digest))
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: blob %s is missing", artifact.ErrCorrupt, l.Digest)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return err
	}
	if n != l.Size || fmt.Sprintf("%x", h.Sum(nil)) != artifact.Digest(l.Digest).Hex() {
		return fmt.Errorf("%w: blob %s, %d bytes", artifact.ErrCorrupt, l.Digest, n)
	}
	return ctx.Err()
}

// meter tells progress, one call at a time.
type meter struct {
	mu          sync.Mutex
	done, total int64
	tell        func(done, total int64)
}

func (p *meter) add(n int64) {
	if p.tell == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = min(p.done+n, p.total)
	p.tell(p.done, p.total)
}

// frames decodes the frames that a map needs, in parallel, checks its chunks
// and hands them to each (from many goroutines). A frame is read once for each
// leaf that needs it.
func (s *Store) frames(ctx context.Context, m *diskMap, progress func(done, total int64), each func(chunk int64, raw []byte) error) error {
	meter := &meter{total: m.Size, tell: progress}
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan []entry)
	for range min(max(1, runtime.GOMAXPROCS(0)), maxWorkers) {
		g.Go(func() error {
			dec, err := newFrameDecoder()
			if err != nil {
				return err
			}
			defer dec.Close()
			var packed, raw []byte
			for es := range work {
				if packed, raw, err = s.frame(dec, es, packed, raw, each); err != nil {
					return err
				}
				meter.add(int64(len(es)) * chunkSize)
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
			slices.SortFunc(es, byFrame)
			for len(es) > 0 {
				n := frameRun(es)
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
	meter.add(m.Size)
	return nil
}

// frame reads one frame, of at most frameSize once decoded, and hands on those
// of its chunks that es names, if they are what es says. The pack is opened
// anew: a disk may have more packs than a process may have files.
func (s *Store) frame(dec *zstd.Decoder, es []entry, packed, raw []byte, each func(int64, []byte) error) ([]byte, []byte, error) {
	bad := func(format string, a ...any) ([]byte, []byte, error) {
		return packed, raw, fmt.Errorf("%w: pack %s at %d: "+format, append([]any{artifact.ErrCorrupt, es[0].pack, es[0].offset}, a...)...)
	}
	path, err := s.blobPath(es[0].pack)
	if err != nil {
		return packed, raw, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return bad("the blob is missing")
	}
	if err != nil {
		return packed, raw, err
	}
	defer f.Close()
	packed = slices.Grow(packed[:0], int(es[0].length))[:es[0].length]
	if _, err := f.ReadAt(packed, es[0].offset); errors.Is(err, io.EOF) {
		return bad("the blob ends before its frame")
	} else if err != nil {
		return packed, raw, err
	}
	if raw, err = dec.DecodeAll(packed, raw[:0]); err != nil {
		return bad("%w", err)
	}
	for _, e := range es {
		from := int(e.at) * chunkSize
		if from+chunkSize > len(raw) {
			return bad("chunk %d is not in its frame", e.chunk)
		}
		c := raw[from : from+chunkSize]
		if sha256.Sum256(c) != e.sum {
			return bad("chunk %d has other bytes", e.chunk)
		}
		if err := each(e.chunk, c); err != nil {
			return packed, raw, err
		}
	}
	return packed, raw, nil
}
