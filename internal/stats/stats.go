// Package stats holds the few statistics that a deployment is judged by.
package stats

import (
	"math"
	"slices"
)

// mostExact is the size of a side up to which p is counted out, not approximated.
const mostExact = 20

// Median is the middle of the values, or the mean of the two in the middle;
// NaN of none. The slice is not changed.
func Median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(v))
	mid := len(s) / 2
	if len(s)%2 == 1 {
		return s[mid]
	}
	return s[mid-1] + (s[mid]-s[mid-1])/2
}

// Greater is the one-sided Mann-Whitney U test. u counts the pairs in which
// a's value is above b's, ties as halves; p is the probability of such a u or
// a higher one if both sides come from one distribution: small if a tends to
// be greater. It is exact where no two values are the same and neither side
// has more than 20, else by the normal approximation, corrected for ties and
// for continuity. Of an empty side, or of values that are all the same, p is 1.
func Greater(a, b []float64) (u, p float64) {
	n, m := len(a), len(b)
	if n == 0 || m == 0 {
		return 0, 1
	}
	sum, ties := ranks(a, b) // ties: the sum of t³-t over groups of t equal values
	u = sum - float64(n)*float64(n+1)/2
	if ties == 0 && n <= mostExact && m <= mostExact {
		return u, exact(n, m, int(u))
	}
	pairs, all := float64(n)*float64(m), float64(n+m)
	variance := pairs / 12 * (all + 1 - ties/(all*(all-1)))
	if variance <= 0 {
		return u, 1
	}
	z := (u - pairs/2 - 0.5) / math.Sqrt(variance)
	return u, math.Erfc(z/math.Sqrt2) / 2
}

// ranks is the sum of a's ranks among all values, equal ones sharing theirs.
func ranks(a, b []float64) (sum, ties float64) {
	type value struct {
		v  float64
		as int // 1 if it is of a
	}
	all := make([]value, 0, len(a)+len(b))
	for _, v := range a {
		all = append(all, value{v, 1})
	}
	for _, v := range b {
		all = append(all, value{v, 0})
	}
	slices.SortFunc(all, func(x, y value) int {
		switch {
		case x.v < y.v:
			return -1
		case x.v > y.v:
			return 1
		}
		return 0
	})
	for i := 0; i < len(all); {
		end, as := i, 0
		for ; end < len(all) && all[end].v == all[i].v; end++ {
			as += all[end].as
		}
		t := float64(end - i)
		sum += float64(as) * (float64(i) + (t+1)/2) // ranks i+1 to end
		ties += t*t*t - t
		i = end
	}
	return sum, ties
}

// exact is P(U ≥ u) for n and m values without ties. The number of orders with
// a given U is a coefficient of the Gaussian binomial (n+m over n), built by one
// factor (1-q^(m+i))/(1-q^i) after the other; all are whole numbers below 2^53.
func exact(n, m, u int) float64 {
	ways := make([]float64, n*m+1)
	ways[0] = 1
	for i := 1; i <= n; i++ {
		for k := n * m; k >= m+i; k-- {
			ways[k] -= ways[k-m-i]
		}
		for k := i; k <= n*m; k++ {
			ways[k] += ways[k-i]
		}
	}
	var above, total float64
	for k, w := range ways {
		total += w
		if k >= u {
			above += w
		}
	}
	return above / total
}
