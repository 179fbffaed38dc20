package pipeline

import (
	"bufio"
	"math"
	"os"
	"strconv"
	"strings"
)

// freeMemory is what programs can have without swapping, in bytes; a very large
// number where the system does not tell.
func freeMemory() int64 {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return math.MaxInt64
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if field := strings.Fields(sc.Text()); len(field) > 1 && field[0] == "MemAvailable:" {
			if n, err := strconv.ParseInt(field[1], 10, 64); err == nil {
				return n << 10
			}
		}
	}
	return math.MaxInt64
}
