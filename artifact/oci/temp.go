package oci

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// tempPrefix is of files that have no name yet. Each is locked while its
// process lives, so that anybody can tell which are dead.
const tempPrefix = ".rebake-tmp-"

// newTemp makes a locked file that finishFile names or removes.
func newTemp(dir string) (*os.File, error) {
	for {
		f, err := os.CreateTemp(dir, tempPrefix+"*")
		if err != nil {
			return nil, err
		}
		if tryLock(f) {
			st, err := f.Stat()
			if err != nil {
				return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
			}
			if sys, ok := st.Sys().(*syscall.Stat_t); !ok || sys.Nlink > 0 {
				return f, nil
			}
		}
		f.Close() // RemoveDead came between the two
	}
}

func tryLock(f *os.File) bool {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}

// finishFile closes a temporary file and gives it its name, or removes it.
func finishFile(f *os.File, path string, err error) error {
	if err == nil {
		err = f.Sync()
	}
	if err == nil { // before the lock goes with Close
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return errors.Join(f.Close(), syncDir(filepath.Dir(path)))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// RemoveDead removes the temporary files in dir whose process was killed, and
// returns their paths. Files of live processes stay.
func RemoveDead(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var gone []string
	var errs []error
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) || !e.Type().IsRegular() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		f, err := os.Open(path)
		if err == nil {
			if tryLock(f) {
				if err = os.Remove(path); err == nil {
					gone = append(gone, path)
				}
			}
			f.Close()
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return gone, errors.Join(errs...)
}

// Clean removes what killed writers left half-written in the store. Blobs that
// are whole and needed by nothing are Prune's.
func (s *Store) Clean(ctx context.Context) (gone []string, err error) {
	for _, dir := range []string{s.dir, s.blobDir()} {
		g, err := RemoveDead(dir)
		gone = append(gone, g...)
		if err := errors.Join(err, ctx.Err()); err != nil {
			return gone, err
		}
	}
	return gone, nil
}
