// Package stats holds the few statistics that a deployment is judged by.
package stats

import (
	"cmp"
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

// Greater is the one-sided Mann-Whitney U test: the probability that a's values
// are so much greater than b's, or more, if both come from one distribution. It
// is exact where no two values are the same and neither side has more than 20,
// else by the normal approximation, corrected for ties and for continuity. Of
// an empty side, or of values that are all the same, it is 1.
func Greater(a, b []float64) float64 {
	n, m := len(a), len(b)
	if n == 0 || m == 0 {
		return 1
	}
	u, ties := rank(a, b)
	if ties == 0 && n <= mostExact && m <= mostExact {
		return exact(n, m, int(u))
	}
	return normal(n, m, u, ties)
}

// rank is U, the pairs in which a's value is above b's, ties as halves, and the
// sum of t³-t over the groups of t equal values.
func rank(a, b []float64) (u, ties float64) {
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
	slices.SortFunc(all, func(x, y value) int { return cmp.Compare(x.v, y.v) })
	for i := 0; i < len(all); {
		end, as := i, 0
		for ; end < len(all) && cmp.Compare(all[end].v, all[i].v) == 0; end++ {
			as += all[end].as
		}
		t := float64(end - i)
		u += float64(as) * (float64(i) + (t+1)/2) // they share the ranks i+1 to end
		ties += t*t*t - t
		i = end
	}
	n := float64(len(a))
	return u - n*(n+1)/2, ties
}

// normal is P(U ≥ u) by the normal distribution of the same mean and variance.
func normal(n, m int, u, ties float64) float64 {
	pairs, all := float64(n)*float64(m), float64(n+m)
	variance := pairs / 12 * (all + 1 - ties/(all*(all-1)))
	if variance <= 0 {
		return 1
	}
	return math.Erfc((u-pairs/2-0.5)/math.Sqrt(2*variance)) / 2
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
