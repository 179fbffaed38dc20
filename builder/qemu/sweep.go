package qemu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/internal/state"
)

// Sweep removes the bases and disks that killed runs left half-made, and
// returns their paths. One that is being made has its lock held, and stays.
func Sweep(d state.Dir) (gone []string, err error) {
	locks, err := filepath.Glob(filepath.Join(d.Bases(), "*.raw.lock"))
	if err != nil {
		return nil, err
	}
	for _, lock := range locks { // what was made in /tmp
		dir := sharedDir(strings.TrimSuffix(lock, ".lock"))
		if _, err := os.Lstat(dir); err != nil {
			continue
		}
		removed, err := sweepOne(dir, lock, removeShared)
		if err != nil {
			return gone, err
		}
		if removed {
			gone = append(gone, dir)
		}
	}
	for _, dir := range []string{d.Bases(), d.Disks()} {
		for _, end := range []string{".tmp", ".root"} {
			found, err := filepath.Glob(filepath.Join(dir, "*.raw"+end))
			if err != nil {
				return gone, err
			}
			for _, p := range found {
				removed, err := sweepOne(p, strings.TrimSuffix(p, end)+".lock", removeTree)
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

// sweepOne removes path unless somebody holds the lock.
func sweepOne(path, lock string, remove func(string) error) (removed bool, err error) {
	l := flock.New(lock, flock.SetPermissions(0o600))
	defer func() { err = errors.Join(err, l.Close()) }()
	if ok, err := l.TryLock(); err != nil || !ok {
		return false, err
	}
	return true, remove(path)
}

// removeTree never crosses a mount: a killed bootstrap may have had /proc and /sys below it.
func removeTree(path string) error {
	if out, err := exec.Command("rm", "-rf", "--one-file-system", path).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s (`umount` what is mounted there)", err, strings.TrimSpace(string(out)))
	}
	return nil
}
