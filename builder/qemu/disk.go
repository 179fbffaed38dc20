package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/lima-vm/go-qcow2reader/image"
	"github.com/lima-vm/go-qcow2reader/image/qcow2"
	"github.com/rebake/rebake/artifact"
)

// captured is the disk of a build's machine after its shutdown: the overlay it
// wrote, over its base.
type captured struct {
	path    string
	base    base
	content artifact.Digest
	whole   *qcow2.Qcow2 // reads through to the base
	own     *qcow2.Qcow2 // knows the overlay alone
}

// captured opens the machine's disk: its overlay, the checkpoints below it, the base.
func (m *machine) captured(content artifact.Digest) (*captured, error) {
	chain := map[string]bool{}
	for _, l := range m.layers {
		chain[filepath.Join(m.b.deps.State.Checkpoints(), l, layerName)] = true
	}
	whole, err := openOverlay(m.overlay, m.base.path, chain, func(r io.ReaderAt, size int64) image.Image { return &below{r: r, size: size, allocated: true} })
	if err != nil {
		return nil, err
	}
	own, err := openOverlay(m.overlay, m.base.path, chain, func(r io.ReaderAt, size int64) image.Image { return &below{r: r, size: size} })
	if err != nil {
		return nil, errors.Join(err, whole.Close())
	}
	return &captured{path: m.overlay, base: m.base, content: content, whole: whole, own: own}, nil
}

// openOverlay opens a qcow2 that this process had QEMU write, over layers that
// QEMU wrote before and the raw base, and over no other file.
func openOverlay(path, backing string, layers map[string]bool, wrap func(io.ReaderAt, int64) image.Image) (*qcow2.Qcow2, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var open func(r io.ReaderAt, _ image.Type) (image.Image, error)
	open = func(r io.ReaderAt, _ image.Type) (image.Image, error) {
		b, ok := r.(*os.File)
		switch {
		case ok && b.Name() == backing:
			st, err := b.Stat()
			if err != nil {
				return &below{}, err
			}
			return wrap(r, st.Size()), nil
		case ok && layers[b.Name()]:
			return qcow2.Open(b, open)
		}
		return &below{}, fmt.Errorf("the overlay is not on its base")
	}
	img, err := qcow2.Open(f, open)
	if err == nil {
		err = img.Readable()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read the machine's disk: %w", err), f.Close())
	}
	return img, nil
}

func (c *captured) ReadAt(p []byte, off int64) (int, error) { return c.whole.ReadAt(p, off) }
func (c *captured) Size() int64                             { return c.whole.Size() }
func (c *captured) Parent() artifact.Digest                 { return c.content }
func (c *captured) Close() error                            { return errors.Join(c.whole.Close(), c.own.Close()) }

// Extents implements artifact.Disk: what the overlay does not hold is the base's.
func (c *captured) Extents(ctx context.Context) ([]artifact.Extent, error) {
	var out []artifact.Extent
	for at := int64(0); at < c.Size(); {
		e, err := c.own.Extent(at, c.Size()-at)
		if err != nil {
			return nil, fmt.Errorf("read the machine's disk: %w", err)
		}
		if e.Length <= 0 {
			return nil, fmt.Errorf("read the machine's disk: no extent at %d", at)
		}
		out = append(out, artifact.Extent{Offset: at, Length: e.Length, Zero: e.Zero, Inherited: !e.Allocated && !e.Zero})
		at += e.Length
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// below is the base under an overlay: zeros after its end, as QEMU has it.
type below struct {
	r         io.ReaderAt
	size      int64
	allocated bool
}

func (b *below) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	if off < b.size {
		var err error
		n, err = b.r.ReadAt(p[:min(int64(len(p)), b.size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return n, err
		}
	}
	clear(p[n:])
	return len(p), nil
}

func (b *below) Extent(start, length int64) (image.Extent, error) {
	return image.Extent{Start: start, Length: length, Allocated: b.allocated}, nil
}

func (b *below) Close() error {
	if c, ok := b.r.(io.Closer); ok {
		return c.Close()
	}
	return nil
}
func (b *below) Type() image.Type { return "raw" }
func (b *below) Size() int64      { return 1 << 62 }
func (b *below) Readable() error  { return nil }
