// Package importer reads disks that others made, as a disk for the store: a
// qcow2, a raw disk, or a Vagrant box of the libvirt format. All of them may be
// hostile. No other file than the one that is named is ever opened, whatever it
// says; what it claims is held against its own size, so that memory is bounded
// and a small file cannot come to a large disk.
package importer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/rebake/rebake/artifact"
)

// Builder is what the lineage of an image that was imported says made it.
const Builder = "import"

// Formats are what Open reads.
var Formats = []string{"qcow2", "raw", "box"}

// DefaultLimit is the largest disk that is taken unless Options say otherwise.
const DefaultLimit = 1 << 40

// Options say how a file is read.
type Options struct {
	Format   string                  // one of Formats; "" is what the file looks like
	Limit    int64                   // largest disk, in bytes; 0 is DefaultLimit
	Dir      string                  // directory for a box's disk while it is unpacked
	Progress func(done, total int64) // of unpacking, in bytes of the box; may be nil
}

// Source is a file that was opened.
type Source struct {
	Disk   artifact.Disk // to be closed
	Format string
	Facts  Facts
}

// Facts are what a file tells of the machine that it boots; "" where it does not.
type Facts struct {
	Arch     string // GOARCH spelling
	Firmware string // bios or uefi; always told
	Seed     string // nocloud or credentials
	User     string
}

// tempPrefix is of files that have no name yet; oci.RemoveDead removes those
// that a kill left.
const tempPrefix = ".rebake-tmp-"

// Open opens a regular file and checks all of its tables.
func Open(ctx context.Context, path string, o Options) (*Source, error) {
	if o.Limit == 0 {
		o.Limit = DefaultLimit
	}
	st, err := os.Stat(path) // before Open, which would wait for a pipe's writer
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	s, err := open(ctx, f, o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return s, nil
}

// open takes f over, unless it fails.
func open(ctx context.Context, f *os.File, o Options) (s *Source, err error) {
	s = &Source{Format: o.Format}
	if s.Format == "" {
		if s.Format, err = sniff(f); err != nil {
			return nil, err
		}
	}
	switch s.Format {
	case "box":
		if s.Disk, s.Facts, err = fromBox(ctx, f, o); err != nil {
			return nil, err
		}
	case "qcow2", "raw":
		if s.Disk, err = disk(ctx, f, s.Format, o.Limit); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("format %q is none of %s", s.Format, strings.Join(Formats, ", "))
	}
	if s.Facts.Firmware == "" {
		if s.Facts.Firmware, err = firmware(s.Disk); err != nil {
			return nil, errors.Join(err, s.Disk.Close())
		}
	}
	return s, nil
}

// disk opens a file that is a disk. It takes f over, unless it fails.
func disk(ctx context.Context, f *os.File, format string, limit int64) (d artifact.Disk, err error) {
	if format == "qcow2" {
		d, err = openQcow2(ctx, f, limit)
	} else {
		d, err = artifact.DiskOf(f)
	}
	switch {
	case err != nil:
		return nil, err
	case d.Size() == 0:
		return nil, errors.New("the file is empty")
	case d.Size() > limit:
		return nil, tooLarge(d.Size(), limit)
	case d.Size()%sector != 0:
		return nil, fmt.Errorf("the disk has %d bytes, which are no whole sectors of %d: it was cut off", d.Size(), sector)
	}
	return d, nil
}

// fromBox opens the disk in a box, which is unpacked into a file without a
// name: it goes with this process.
func fromBox(ctx context.Context, f *os.File, o Options) (d artifact.Disk, facts Facts, err error) {
	to, err := os.CreateTemp(o.Dir, tempPrefix+"*")
	if err != nil {
		return nil, facts, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, to.Close())
		}
	}()
	if err := os.Remove(to.Name()); err != nil {
		return nil, facts, err
	}
	meta, err := openBox(ctx, f, to, o.Limit, o.Progress)
	if err != nil {
		return nil, facts, err
	}
	format := "raw"
	if is, err := CheckQcow2(to); err != nil {
		return nil, facts, err
	} else if is {
		format = "qcow2"
	}
	if facts, err = meta.facts(); err != nil {
		return nil, facts, err
	}
	if d, err = disk(ctx, to, format, o.Limit); err != nil {
		return nil, facts, err
	}
	return d, facts, f.Close()
}

// facts are what a box says, as far as it is known.
func (m metadata) facts() (Facts, error) {
	known := map[string]string{"": "", "amd64": "amd64", "x86_64": "amd64", "arm64": "arm64", "aarch64": "arm64"}
	arch, ok := known[m.Architecture]
	f := Facts{Arch: arch, Firmware: m.Rebake.Firmware, Seed: m.Rebake.Seed, User: m.Rebake.User}
	switch {
	case !ok:
		return f, fmt.Errorf("the box is for architecture %.100q; amd64 and arm64 are known", m.Architecture)
	case f.Firmware != "" && f.Firmware != "bios" && f.Firmware != "uefi", f.Seed != "" && f.Seed != "nocloud" && f.Seed != "credentials", len(f.User) > 32:
		return f, fmt.Errorf("the box says it boots by %.50q, is seeded by %.50q and logged in to as %.50q", f.Firmware, f.Seed, f.User)
	}
	return f, nil
}
