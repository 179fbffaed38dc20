package qemu

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/internal/state"
)

// Sweep removes the bases and disks that killed runs left half-made, and
// returns their paths. One that is being made has its lock held, and stays.
func Sweep(d state.Dir) (gone []string, err error) {
	for _, dir := range []string{d.Bases(), d.Disks()} {
		for _, end := range []string{".tmp", ".root"} {
			found, err := filepath.Glob(filepath.Join(dir, "*.raw"+end))
			if err != nil {
				return gone, err
			}
			for _, p := range found {
				removed, err := sweepOne(p, strings.TrimSuffix(p, end)+".lock")
				if err != nil {
					return gone, fmt.Errorf("remove half-made %s: %w", p, err)
				}
				if removed {
					gone = append(gone, p)
				}
			}
		}
	}
	return gone, nil
}

func sweepOne(path, lock string) (removed bool, err error) {
	l := flock.New(lock, flock.SetPermissions(0o600))
	defer func() { err = errors.Join(err, l.Close()) }()
	if ok, err := l.TryLock(); err != nil || !ok {
		return false, err
	}
	// Never across a mount: a killed bootstrap may have had /proc and /sys below it.
	if out, err := exec.Command("rm", "-rf", "--one-file-system", path).CombinedOutput(); err != nil {
		return false, fmt.Errorf("%w: %s (`umount` what is mounted there)", err, strings.TrimSpace(string(out)))
	}
	return true, nil
}
