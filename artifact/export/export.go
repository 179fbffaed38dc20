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
	"strings"

	"github.com/rebake/rebake/artifact"
)

// Disk writes the image at path as raw (sparse) or qcow2, all or nothing.
func Disk(ctx context.Context, s artifact.Store, img artifact.Image, format, path string, progress func(done, total int64)) (err error) {
	if format == "raw" {
		return s.Fetch(ctx, img.Content, path, progress)
	}
	if format != "qcow2" {
		return fmt.Errorf("format %q is not raw or qcow2", format)
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".export-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	raw, out := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.qcow2")
	if err := s.Fetch(ctx, img.Content, raw, progress); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", raw, out)
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("qemu-img convert: %w: %s", err, strings.TrimSpace(string(msg)))
	}
	return os.Rename(out, path)
}
