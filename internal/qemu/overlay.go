package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// CreateOverlay makes a qcow2 at path whose unwritten parts are backing's.
// size 0 is the backing's own. An overlay that is there is replaced.
func CreateOverlay(ctx context.Context, path, backing, backingFormat string, size int64) error {
	backing, err := filepath.Abs(backing)
	if err != nil {
		return err
	}
	if _, err := os.Stat(backing); err != nil {
		return fmt.Errorf("disk below the overlay: %w", err)
	}
	if backingFormat != "raw" && backingFormat != "qcow2" {
		return fmt.Errorf("disk format %q is not raw or qcow2", backingFormat)
	}
	tmp := path + ".tmp"
	args := []string{"create", "-q", "-f", "qcow2", "-F", backingFormat, "-b", backing, tmp}
	if size > 0 {
		args = append(args, strconv.FormatInt(size, 10))
	}
	if err := Img(ctx, args...); err != nil {
		return errors.Join(err, removeIfThere(tmp))
	}
	if err := os.Chmod(tmp, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// Img runs qemu-img; its error carries what the tool said. A cancelled context kills it.
func Img(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w (run `rebake doctor`)", err)
	}
	if err != nil {
		return fmt.Errorf("qemu-img %s: %w: %s", args[0], err, strings.TrimSpace(string(tail(out, 1000))))
	}
	return nil
}

var versionRE = regexp.MustCompile(`version (\d+\.\d+(\.\d+)?\S*)`)

// Version is QEMU's version for the host's architecture.
func Version(ctx context.Context) (string, error) {
	bin := Binary(hostArch(""))
	out, err := exec.CommandContext(ctx, bin, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", bin, err)
	}
	m := versionRE.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%s tells no version", bin)
	}
	return string(m[1]), nil
}

func removeIfThere(path string) error {
	err := os.Remove(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
