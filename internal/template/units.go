package template

import (
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// Duration is a time.Duration written as 10s, 5m or 1h30m. A plain
// time.Duration field is read the same way.
type Duration time.Duration

// UnmarshalText reads what time.ParseDuration reads; it must not be negative.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := parseDuration(string(b))
	*d = Duration(v)
	return err
}

func (d Duration) String() string { return time.Duration(d).String() }

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration such as 10s, 5m or 1h30m", s)
	}
	return d, nil
}

// Size is a number of bytes written as 512M or 2G: K, M, G and T are powers of 1024.
type Size int64

var sizePattern = regexp.MustCompile(`^([0-9]{1,15})([KMGT])(?:i?B)?$`)

// UnmarshalText reads a number and a unit.
func (z *Size) UnmarshalText(b []byte) error {
	m := sizePattern.FindStringSubmatch(string(b))
	if m == nil {
		return fmt.Errorf("%q is not a size such as 512M or 2G", b)
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return err
	}
	shift := map[string]uint{"K": 10, "M": 20, "G": 30, "T": 40}[m[2]]
	if n > (1<<62)>>shift {
		return fmt.Errorf("size %s is too large", b)
	}
	*z = Size(n << shift)
	return nil
}

// String is the size in the largest unit that divides it.
func (z Size) String() string {
	for _, u := range []struct {
		letter string
		shift  uint
	}{{"T", 40}, {"G", 30}, {"M", 20}, {"K", 10}} {
		if z > 0 && int64(z)%(1<<u.shift) == 0 {
			return strconv.FormatInt(int64(z)>>u.shift, 10) + u.letter
		}
	}
	return strconv.FormatInt(int64(z), 10)
}
