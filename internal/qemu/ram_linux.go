package qemu

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// CanSave tells whether a machine's memory can be saved here.
const CanSave = true

// newRAM makes a guest's memory as a file without a name: it goes with the last
// process that has it open, and its size is bounded by memory alone.
func newRAM(size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("rebake-guest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the guest's memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "rebake-guest")
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// dataRanges calls f for each part of the file that was ever written.
func dataRanges(file *os.File, size int64, f func(off, n int64) error) error {
	fd := int(file.Fd())
	for at := int64(0); at < size; {
		from, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		to, err := unix.Seek(fd, from, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		to = min(to, size)
		if err := f(from, to-from); err != nil {
			return err
		}
		at = to
	}
	return nil
}
