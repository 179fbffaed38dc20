// Package export writes an image as a disk file that boots by itself and needs
// no other file.
package export

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/artifact"
)

// Formats are what Disk writes: raw (sparse), qcow2, vmdk (stream optimized, as
// VMware imports it), vhd (dynamic), containerdisk (an OCI image in a tar, for
// KubeVirt), and vagrant (a box, as Vagrant writes it without options).
var Formats = []string{"qcow2", "raw", "vmdk", "vhd", "containerdisk", "vagrant"}

// convert is how qemu-img is told of each format.
var convert = map[string][]string{
	"qcow2":         {"-O", "qcow2"},
	"containerdisk": {"-O", "qcow2"},
	"vmdk":          {"-O", "vmdk", "-o", "subformat=streamOptimized"},
	"vhd":           {"-O", "vpc", "-o", "subformat=dynamic,force_size=on"}, // else it would grow to whole cylinders
}

// Disk writes the image at path, all or nothing. What was there is replaced. All
// but raw need qemu-img, and for a while room for the raw disk beside path.
func Disk(ctx context.Context, s artifact.Store, img artifact.Image, format, path string, progress func(done, total int64)) error {
	switch format {
	case "raw":
		return s.Fetch(ctx, img.Content, path, progress)
	case "vagrant":
		_, err := Vagrant(ctx, s, img, BoxOptions{}, path, progress)
		return err
	}
	if convert[format] == nil {
		return fmt.Errorf("format %q is none of %s", format, strings.Join(Formats, ", "))
	}
	return converted(ctx, s, img, format, path, progress, func(dir, disk string) (string, error) {
		if format != "containerdisk" {
			return disk, nil
		}
		out := filepath.Join(dir, "image.tar")
		return out, containerDisk(ctx, img, disk, dir, out)
	})
}

// converted has qemu-img write the image's disk in a directory beside path; pack
// makes a file of it there, which becomes path.
func converted(ctx context.Context, s artifact.Store, img artifact.Image, format, path string, progress func(done, total int64), pack func(dir, disk string) (string, error)) (err error) {
	// The work directory has one name for each path and is locked, so that an
	// export to the same path finds what a killed one left.
	dir := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".rebake-export")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	lock := flock.New(filepath.Join(dir, "lock"), flock.SetPermissions(0o600))
	if ok, err := lock.TryLock(); err != nil || !ok {
		return errors.Join(fmt.Errorf("another rebake exports to %s", path), err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir), lock.Close()) }()
	raw, disk := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.out")
	if err := s.Fetch(ctx, img.Content, raw, progress); err != nil {
		return err
	}
	if err := convertDisk(ctx, format, raw, disk); err != nil {
		return err
	}
	if err := os.Remove(raw); err != nil {
		return err
	}
	out, err := pack(dir, disk)
	if err != nil {
		return err
	}
	if err := sync(out); err != nil {
		return err
	}
	if err := os.Rename(out, path); err != nil {
		return err
	}
	return sync(filepath.Dir(path))
}

// convertDisk makes a disk of a raw one.
func convertDisk(ctx context.Context, format, raw, out string) error {
	cmd := exec.CommandContext(ctx, "qemu-img", slices.Concat([]string{"convert", "-q", "-f", "raw"}, convert[format], []string{raw, out})...)
	if msg, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("qemu-img convert: %w: %s", err, strings.TrimSpace(string(msg)))
	}
	return nil
}

// sync makes a file, or the names in a directory, survive a power cut.
func sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
