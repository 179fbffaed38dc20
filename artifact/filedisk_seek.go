//go:build linux || darwin

package artifact

import (
	"os"

	"golang.org/x/sys/unix"
)

// dataAt is the first run of data at or after at: all the rest where the file
// system does not tell.
func dataAt(f *os.File, at, size int64) (from, to int64) {
	from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	if err == unix.ENXIO { // no data follows
		return size, size
	}
	if err != nil || from < at {
		return at, size
	}
	to, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
	if err != nil || to <= from {
		return min(from, size), size
	}
	return min(from, size), min(to, size)
}
