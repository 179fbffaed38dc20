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

// The figures are those of scipy 1.10.1, scipy.stats.mannwhitneyu(a, b,
// alternative="greater"), method "exact" or, where there are ties or a side of
// more than 20, "asymptotic".
func TestTheFiguresOfAnotherProgram(t *testing.T) {
	count := func(from, n int, f func(i int) float64) (v []float64) {
		for i := range n {
			v = append(v, f(from+i))
		}
		return v
	}
	mod := func(by, of int, scale, plus float64) func(int) float64 {
		return func(i int) float64 { return float64(i*by%of)/scale + plus }
	}
	one, other := count(1, 12, mod(37, 101, 7, 0)), count(1, 15, mod(53, 97, 9, 0))
	many, more := count(0, 30, mod(7919, 101, 1, 3.5)), count(0, 25, mod(104729, 97, 1, 0.25))
	for name, c := range map[string]struct {
		a, b []float64
		u, p float64
	}{
		"three of each":       {[]float64{1.1, 2.2, 3.3}, []float64{0.5, 0.7, 4}, 6, 0.35},
		"all above":           {[]float64{10, 11, 12, 13, 14}, []float64{1, 2, 3, 4, 5}, 25, 0.003968253968253968},
		"sides of two sizes":  {[]float64{3.1, 5.2, 8.8, 9.4, 12.5, 1.7}, []float64{2.2, 4.4, 6.6, 0.9, 7.5, 3.3, 10.1, 11.2}, 27, 0.3772893772893773},
		"a dozen":             {one, other, 114, 0.1281229830428915},
		"a dozen, other way":  {other, one, 66, 0.8818734734403061},
		"ties":                {[]float64{0, 0, 0, .1, .2, .2, .3, .5, 0, .1}, []float64{0, 0, 0, 0, .1, 0, .2, 0, 0, 0}, 72, 0.03277612977975538},
		"nothing but ties":    {count(0, 8, func(int) float64 { return 1 }), make([]float64, 8), 64, 6.879302858301443e-05},
		"too many, one way":   {many, more, 416, 0.24680609055142916},
		"too many, other way": {more, many, 334, 0.7584976300673746},
	} {
		t.Run(name, func(t *testing.T) {
			if u, _ := rank(c.a, c.b); u != c.u {
				t.Errorf("U %v, want %v", u, c.u)
			}
			if p := Greater(c.a, c.b); math.Abs(p-c.p) > 1e-12 {
				t.Errorf("p %v, want %v", p, c.p)
			}
		})
	}
}

// The two sides' questions are each other's: what is not above is below or the
// same. And neither the unit nor the order of the values matters.
func TestSymmetry(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 500 {
		a, b := make([]float64, 1+r.IntN(30)), make([]float64, 1+r.IntN(30))
		levels := 3 + r.IntN(1000) // few: with ties
		for _, v := range [][]float64{a, b} {
			for i := range v {
				v[i] = float64(r.IntN(levels))
			}
		}
		u, ties := rank(a, b)
		back, same := rank(b, a)
		if u+back != float64(len(a)*len(b)) || ties != same {
			t.Fatalf("U %v and %v of %d pairs, ties %v and %v", u, back, len(a)*len(b), ties, same)
		}
		p, scaled := Greater(a, b), make([]float64, len(a))
		for i, j := range r.Perm(len(a)) {
			scaled[i] = 7 * a[j]
		}
		for i := range b {
			b[i] *= 7
		}
		if q := Greater(scaled, b); p != q {
			t.Fatalf("p %v, in another unit and order %v", p, q)
		}
		scaled[0]++
		if _, t2 := rank(scaled, b); t2 != ties {
			continue // it was one of several: another variance
		}
		if q := Greater(scaled, b); q > p {
			t.Fatalf("a greater value made it less likely: %v after %v", q, p)
		}
	}
}

// With many values and no difference p is as often in each tenth.
func TestPIsUniformUnderTheNull(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	const runs = 10000
	var in [10]int
	for range runs {
		a, b := make([]float64, 40), make([]float64, 30)
		for _, v := range [][]float64{a, b} {
			for i := range v {
				v[i] = r.ExpFloat64()
			}
		}
		in[min(9, int(10*Greater(a, b)))]++
	}
	chi := 0.0
	for _, n := range in {
		chi += float64(n-runs/10) * float64(n-runs/10) / (runs / 10)
	}
	if chi > 27.9 { // of nine degrees of freedom, one in a thousand
		t.Errorf("%v, chi square %.1f", in, chi)
	}
}

func FuzzGreater(f *testing.F) {
	f.Add([]byte{1, 2, 3}, []byte{4, 5})
	f.Add([]byte{}, []byte{0})
	f.Fuzz(func(t *testing.T, x, y []byte) {
		values := func(bs []byte) (v []float64) {
			for _, b := range bs {
				v = append(v, float64(b))
				if b == 255 {
					v[len(v)-1] = math.NaN()
				}
			}
			return v
		}
		if p := Greater(values(x), values(y)); !(p >= 0 && p <= 1) {
			t.Errorf("p %v", p)
		}
	})
}
