package doctor

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// freeSpace is what an unprivileged user may still write in dir's file system.
func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("ask for free space in %s: %w", dir, err)
	}
	return int64(st.Bavail) * int64(st.Bsize), nil //nolint:unconvert // uint32 on darwin
}
