package artifact

import (
	"cmp"
	"strconv"
	"strings"
	"time"
)

// NextSerial is the date serial after those in existing: 20261124.1, 20261124.2, …
func NextSerial(existing []string, now time.Time) string {
	day := now.UTC().Format("20060102")
	last := 0
	for _, v := range existing {
		d, n, ok := strings.Cut(v, ".")
		if k, err := strconv.Atoi(n); ok && d == day && err == nil && k > last {
			last = k
		}
	}
	return day + "." + strconv.Itoa(last+1)
}

// NewestFirst orders images for a list: by when they were made, then by name
// and the higher version first.
func NewestFirst(a, b Image) int {
	return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.Name, b.Name), CompareVersions(b.Version, a.Version))
}

// CompareVersions orders semantic versions and date serials as people read
// them: numbers by value, 1.0.0-rc1 before 1.0.0, build metadata last of all.
func CompareVersions(a, b string) int {
	a, ma, _ := strings.Cut(a, "+")
	b, mb, _ := strings.Cut(b, "+")
	a, pa, alpha := strings.Cut(a, "-")
	b, pb, beta := strings.Cut(b, "-")
	if c := natural(a, b); c != 0 {
		return c
	}
	if alpha != beta {
		if alpha {
			return -1
		}
		return 1
	}
	return cmp.Or(natural(pa, pb), natural(ma, mb))
}

// natural compares run by run, runs of digits by their value.
func natural(a, b string) int {
	for a != "" && b != "" {
		x, y := run(a), run(b)
		a, b = a[len(x):], b[len(y):]
		if isDigit(x[0]) && isDigit(y[0]) {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if c := cmp.Compare(len(x), len(y)); c != 0 {
				return c
			}
		}
		if c := cmp.Compare(x, y); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(a), len(b))
}

// run is the first run of digits, or of anything else.
func run(s string) string {
	i := 1
	for i < len(s) && isDigit(s[i]) == isDigit(s[0]) {
		i++
	}
	return s[:i]
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
