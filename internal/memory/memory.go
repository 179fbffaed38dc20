// Package memory tells how much of it this computer has free.
package memory

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Free is what programs can have without swapping (MemAvailable), and the free
// swap, in bytes. ok is false where the system does not tell (not Linux).
func Free() (ram, swap int64, ok bool, err error) {
	f, err := os.Open("/proc/meminfo")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, false, nil
	}
	if err != nil {
		return 0, 0, false, err
	}
	defer f.Close()
	into := map[string]*int64{"MemAvailable:": &ram, "SwapFree:": &swap}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		field := strings.Fields(sc.Text())
		if len(field) < 2 || into[field[0]] == nil {
			continue
		}
		n, err := strconv.ParseInt(field[1], 10, 64)
		if err != nil {
			return 0, 0, false, fmt.Errorf("read /proc/meminfo: %w", err)
		}
		*into[field[0]] = n << 10
	}
	return ram, swap, true, nil
}
