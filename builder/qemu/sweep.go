package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/cache"
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
	half, err := sweepCheckpoints(d)
	return append(gone, half...), err
}

// sweepCheckpoints removes those that were never finished, or that lost what
// they stand on.
func sweepCheckpoints(d state.Dir) (gone []string, err error) {
	entries, err := os.ReadDir(d.Checkpoints())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	b := &Builder{deps: Deps{State: d}}
	for again := true; again; { // one that goes may take those on it along
		again = false
		for _, e := range entries {
			dir := filepath.Join(d.Checkpoints(), e.Name())
			if !e.IsDir() {
				continue
			}
			if _, err := b.readMeta(dir); !errors.Is(err, builder.ErrNoCheckpoint) {
				continue
			}
			if _, err := os.Stat(dir); err != nil {
				continue
			}
			err := exclusively(dir+".lock", func() error { return os.RemoveAll(dir) })
			if errors.Is(err, cache.ErrInUse) {
				continue
			}
			if err != nil {
				return gone, fmt.Errorf("remove half-made %s: %w", dir, err)
			}
			gone, again = append(gone, dir), true
		}
	}
	return gone, sweepLocks(d, entries)
}

// sweepLocks removes locks of checkpoints that are not there: a kill comes also
// between the two.
func sweepLocks(d state.Dir, entries []fs.DirEntry) error {
	for _, e := range entries {
		lock := filepath.Join(d.Checkpoints(), e.Name())
		dir, isLock := strings.CutSuffix(lock, ".lock")
		if _, err := os.Stat(dir); !isLock || !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := exclusively(lock, func() error { return nil }); err != nil && !errors.Is(err, cache.ErrInUse) {
			return err
		}
	}
	return nil
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
