package importer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// The limits of a box beyond those of its disk.
const (
	maxMembers  = 1000
	maxMetadata = 1 << 20
	boxDisk     = "box.img" // where the first form of a box has its disk
)

// metadata is a box's metadata.json, of either form; what rebake adds to its own
// boxes says how the image is booted.
type metadata struct {
	Provider     string `json:"provider"`
	Format       string `json:"format"`
	Architecture string `json:"architecture"`
	Disks        []struct {
		Path   string `json:"path"`
		Format string `json:"format"`
	} `json:"disks"`
	Rebake struct {
		Firmware string `json:"firmware"`
		Seed     string `json:"seed"`
		User     string `json:"user"`
		SeedDisk string `json:"seed_disk"` // one of the disks, which is no part of the image
	} `json:"rebake"`
}

// disk is which member holds the disk.
func (m metadata) disk() (string, error) {
	if m.Provider != "libvirt" && m.Provider != "qemu" {
		return "", fmt.Errorf("the box is for provider %.100q; those of libvirt and qemu are read", m.Provider)
	}
	format, names := m.Format, []string{boxDisk}
	if len(m.Disks) > 0 {
		names = nil
		for _, d := range m.Disks {
			if m.Rebake.SeedDisk == "" || path.Clean(d.Path) != path.Clean(m.Rebake.SeedDisk) {
				names, format = append(names, d.Path), d.Format
			}
		}
	}
	switch {
	case len(names) != 1:
		return "", fmt.Errorf("the box has %d disks, and an image has one", len(names))
	case format != "" && format != "qcow2" && format != "raw":
		return "", fmt.Errorf("the box's disk has format %.100q; qcow2 and raw are read", format)
	}
	return member(names[0])
}

// member is the clean name of a box's member, which is never outside the box.
func member(name string) (string, error) {
	clean := path.Clean(name)
	if name == "" || path.IsAbs(name) || clean == ".." || strings.HasPrefix(clean, "../") || strings.ContainsAny(name, "\\\x00") {
		return "", fmt.Errorf("the box names a file outside of itself: %.200q", name)
	}
	return clean, nil
}

// openBox unpacks a box's disk into to, which is empty, and returns what its
// metadata says. Nothing in the box is run, and nothing else is written.
func openBox(ctx context.Context, f, to *os.File, limit int64, progress func(done, total int64)) (metadata, error) {
	var meta metadata
	have := false
	err := walk(ctx, f, limit, nil, func(name string, r *ratio, size int64) error {
		if name != "metadata.json" {
			return nil
		}
		if size > maxMetadata {
			return fmt.Errorf("the box's metadata.json has %d bytes", size)
		}
		raw, err := io.ReadAll(r)
		if err == nil {
			err = json.Unmarshal(raw, &meta)
		}
		if err != nil {
			return fmt.Errorf("read the box's metadata.json: %w", err)
		}
		have = true
		return errStop
	})
	if err != nil {
		return meta, err
	}
	if !have {
		return meta, errors.New("it is no box of Vagrant: there is no metadata.json in it")
	}
	disk, err := meta.disk()
	if err != nil {
		return meta, err
	}
	found := false
	err = walk(ctx, f, limit, progress, func(name string, r *ratio, size int64) error {
		if name != disk {
			return nil
		}
		found = true
		return sparse(ctx, to, r, size)
	})
	if err == nil && !found {
		err = fmt.Errorf("the box's metadata names the disk %s, which is not in it", disk)
	}
	return meta, err
}

var errStop = errors.New("seen enough")

// walk hands each file of a box to see, to its end or until errStop. A box with
// a link, a device, a name outside of it, or two files of one name is refused:
// another reader could see something else in it.
func walk(ctx context.Context, f *os.File, limit int64, progress func(done, total int64), see func(name string, r *ratio, size int64) error) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	packed := &counter{ctx: ctx, r: io.NewSectionReader(f, 0, st.Size()), total: st.Size(), progress: progress}
	in := bufio.NewReaderSize(packed, 1<<20)
	var plain io.Reader = in
	if head, _ := in.Peek(2); bytes.Equal(head, []byte{0x1f, 0x8b}) {
		zip, err := gzip.NewReader(in)
		if err != nil {
			return fmt.Errorf("unpack the box: %w", err)
		}
		plain = zip
	}
	names := map[string]bool{}
	for r := tar.NewReader(&bounded{plain, limit + freeBytes}); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpack the box: %w", err)
		}
		name, err := member(h.Name)
		switch {
		case err != nil:
			return err
		case h.Typeflag == tar.TypeDir:
			continue
		case h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeGNUSparse:
			return fmt.Errorf("the box holds %.200q, which is no plain file", h.Name)
		case names[name]:
			return fmt.Errorf("the box holds two files named %.200q", name)
		case len(names) == maxMembers:
			return fmt.Errorf("the box holds more than %d files", maxMembers)
		case h.Size > limit+freeBytes: // a sparse one costs its sender nothing
			return tooLarge(h.Size, limit)
		}
		names[name] = true
		switch err := see(name, &ratio{r: r, packed: packed}, h.Size); {
		case errors.Is(err, errStop):
			return nil
		case err != nil:
			return fmt.Errorf("unpack %s of the box: %w", name, err)
		}
	}
}

// sparse writes size bytes of r to a new file, and holes for its zeros.
func sparse(ctx context.Context, to *os.File, r *ratio, size int64) error {
	if err := to.Truncate(size); err != nil {
		return err
	}
	buf := make([]byte, minPart)
	var zeros [minPart]byte
	for at := int64(0); at < size; {
		n, err := io.ReadFull(r, buf[:min(minPart, size-at)])
		if err != nil {
			return err
		}
		if !bytes.Equal(buf[:n], zeros[:n]) {
			if _, err := to.WriteAt(buf[:n], at); err != nil {
				return err
			}
			if err := r.count(int64(n)); err != nil {
				return err
			}
		}
		if at += int64(n); ctx.Err() != nil { // holes of a sparse member are not read from the box
			return context.Cause(ctx)
		}
	}
	return nil
}

// counter counts what is read of the box itself, and ends with its context.
type counter struct {
	ctx         context.Context
	r           io.Reader
	done, total int64
	progress    func(done, total int64)
}

func (c *counter) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	n, err := c.r.Read(p)
	c.done += int64(n)
	if c.progress != nil && n > 0 {
		c.progress(c.done, c.total)
	}
	return n, err
}

// ratio refuses a file that comes to much more than what was read for it.
type ratio struct {
	r       io.Reader
	packed  *counter
	written int64
}

func (c *ratio) Read(p []byte) (int, error) { return c.r.Read(p) }

func (c *ratio) count(n int64) error {
	if c.written += n; c.written > maxExpand*c.packed.done+freeBytes {
		return fmt.Errorf("it expands more than %d fold", maxExpand)
	}
	return nil
}

// bounded ends a stream that does not end.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("it is larger than any disk that is taken")
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
