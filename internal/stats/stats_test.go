package stats

import (
	"math"
	"math/rand/v2"
	"testing"
)

// Every order of n and m different values, counted one by one.
func TestExactIsWhatCountingGives(t *testing.T) {
	for n := 1; n <= 6; n++ {
		for m := 1; m <= 6; m++ {
			count, all := make([]int, n*m+1), 0
			for set := range 1 << (n + m) {
				var a, b []float64
				for i := range n + m {
					if set>>i&1 == 1 {
						a = append(a, float64(i))
					} else {
						b = append(b, float64(i))
					}
				}
				if len(a) != n {
					continue
				}
				u, ties := rank(a, b)
				if ties != 0 {
					t.Fatal("ties")
				}
				count[int(u)]++
				all++
			}
			tail := 0
			for u := n * m; u >= 0; u-- {
				tail += count[u]
				if got, want := exact(n, m, u), float64(tail)/float64(all); math.Abs(got-want) > 1e-12 {
					t.Errorf("n %d m %d U %d: %v, want %v", n, m, u, got, want)
				}
			}
		}
	}
}

func TestTheApproximationAgreesWithTheExactOne(t *testing.T) {
	for _, size := range [][2]int{{20, 20}, {12, 18}} {
		n, m := size[0], size[1]
		for u := 0; u <= n*m; u++ {
			if p, q := exact(n, m, u), normal(n, m, float64(u), 0); math.Abs(p-q) > 0.005 {
				t.Errorf("n %d m %d U %d: exact %v, approximate %v", n, m, u, p, q)
			}
		}
	}
}

func TestUnderTheNullSmallValuesAreAsRareAsTheySay(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, level := range []float64{0.01, 0.05} {
		const runs = 20000
		hits := 0
		for range runs {
			a, b := make([]float64, 10), make([]float64, 14)
			for i := range a {
				a[i] = r.Float64()
			}
			for i := range b {
				b[i] = r.Float64()
			}
			if Greater(a, b) <= level {
				hits++
			}
		}
		if share := float64(hits) / runs; share > level*1.25 || share < level/2 {
			t.Errorf("p <= %v in %.4f of the runs", level, share)
		}
	}
}

func TestSidesAndEdges(t *testing.T) {
	hi, lo := []float64{11, 12, 13, 14, 15}, []float64{1, 2, 3, 4, 5}
	if p := Greater(hi, lo); math.Abs(p-1.0/252) > 1e-12 {
		t.Errorf("all above all: %v, want one of 252 orders", p)
	}
	if p := Greater(lo, hi); p != 1 {
		t.Errorf("all below all: %v", p)
	}
	same := []float64{0, 0, 0, 0}
	if p := Greater(same, same); p != 1 {
		t.Errorf("no difference at all: %v", p)
	}
	if Greater(nil, lo) != 1 || Greater(lo, nil) != 1 {
		t.Error("nothing is no evidence")
	}
	if Median([]float64{3, 1, 2}) != 2 || Median([]float64{4, 1, 2, 3}) != 2.5 || !math.IsNaN(Median(nil)) {
		t.Error("median")
	}
}
