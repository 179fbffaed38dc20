package artifact

import (
	"context"
	"fmt"
	"os"
)

// FileDisk is a raw disk file as a Disk without a parent; holes of a sparse
// file are known as zeros without reading them, where the system tells.
func FileDisk(path string) (Disk, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	d, err := DiskOf(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return d, nil
}

// DiskOf is FileDisk of an open file, which closes with the disk.
func DiskOf(f *os.File) (Disk, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", f.Name())
	}
	return &fileDisk{f: f, size: st.Size()}, nil
}

type fileDisk struct {
	f    *os.File
	size int64
}

func (d *fileDisk) ReadAt(p []byte, off int64) (int, error) { return d.f.ReadAt(p, off) }
func (d *fileDisk) Size() int64                             { return d.size }
func (d *fileDisk) Parent() Digest                          { return "" }
func (d *fileDisk) Close() error                            { return d.f.Close() }

func (d *fileDisk) Extents(ctx context.Context) ([]Extent, error) {
	var out []Extent
	add := func(from, to int64, zero bool) {
		if to > from {
			out = append(out, Extent{Offset: from, Length: to - from, Zero: zero})
		}
	}
	for at := int64(0); at < d.size; {
		data, hole := dataAt(d.f, at, d.size)
		add(at, data, true)
		add(data, hole, false)
		at = hole
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return out, nil
}
