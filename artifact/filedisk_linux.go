package artifact

import "os"

// dataAt is the first run of data at or after at: all the rest where the file
// system does not tell.
func dataAt(f *os.File, at, size int64) (from, to int64) {
	const seekData, seekHole = 3, 4 // lseek(2)
	from, err := f.Seek(at, seekData)
	if err != nil {
		if _, err := f.Seek(at, seekHole); err == nil { // ENXIO: no data follows
			return size, size
		}
		return at, size
	}
	if to, err = f.Seek(from, seekHole); err != nil || to <= from {
		return from, size
	}
	return min(from, size), min(to, size)
}
