package main

import (
	"fmt"
	"math"
	"slices"
)

// spread is the middle and the ends of some measurements.
type spread struct {
	N             int
	Med, Min, Max float64
}

func spreadOf(v []float64) spread {
	if len(v) == 0 {
		return spread{Med: math.NaN(), Min: math.NaN(), Max: math.NaN()}
	}
	s := slices.Sorted(slices.Values(v))
	mid := s[len(s)/2]
	if len(s)%2 == 0 {
		mid = (s[len(s)/2-1] + mid) / 2
	}
	return spread{len(s), mid, s[0], s[len(s)-1]}
}

// ratios divides pair by pair; the two were measured in the same round.
func ratios(a, b []float64) []float64 {
	out := make([]float64, 0, len(a))
	for i := range min(len(a), len(b)) {
		if b[i] > 0 {
			out = append(out, a[i]/b[i])
		}
	}
	return out
}

// number shows three significant digits, never an exponent.
func number(v float64) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case v == 0:
		return "0"
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	case math.Abs(v) >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// String is median (min–max), or the one value.
func (s spread) String() string {
	switch s.N {
	case 0:
		return "–"
	case 1:
		return number(s.Med)
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.Med), number(s.Min), number(s.Max))
}
