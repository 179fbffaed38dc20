package fleet

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// traffic makes samples of a second each.
type traffic struct {
	requests [2]int           // about so many in a second, of the new and of the old
	errors   [2]float64       // share of them
	latency  [2]time.Duration // mean
}

func (tr traffic) sample(r *rand.Rand, i int) Sample {
	s := Sample{At: noon.Add(time.Duration(i) * time.Second)}
	for side, c := range []*Counters{&s.New, &s.Old} {
		n := tr.requests[side]
		if n > 1 {
			n = n/2 + r.IntN(n+1)
		}
		var took float64
		for range n {
			c.Requests++
			if r.Float64() < tr.errors[side] {
				c.Errors++
			}
			took += r.ExpFloat64() * float64(tr.latency[side])
		}
		if c.Timed = c.Requests; n > 0 {
			c.Latency = time.Duration(took / float64(n))
		}
	}
	return s
}

// when is the second in which the gate fails, looked at in every one; 0: never.
func (tr traffic) when(g Gate, r *rand.Rand, seconds int) int {
	var samples []Sample
	for i := range seconds {
		samples = keepSamples(samples, tr.sample(r, i))
		if judge(g, samples, noon).Verdict == Fail {
			return i + 1
		}
	}
	return 0
}

// The promise of significance: of images that are as good as the old one, at
// most that share is refused, though a hold is looked at every second, whatever
// part of the traffic they get. And not next to none, or the gate would be blind.
func TestEqualsAreRefusedAsRarelyAsPromised(t *testing.T) {
	const significance, runs = 0.1, 400
	for name, c := range map[string]struct {
		metric string
		tr     traffic
	}{
		"errors, a tenth of the traffic":   {"errors", traffic{[2]int{5, 45}, [2]float64{.02, .02}, [2]time.Duration{1e6, 1e6}}},
		"errors, most of the traffic":      {"errors", traffic{[2]int{45, 5}, [2]float64{.02, .02}, [2]time.Duration{1e6, 1e6}}},
		"errors, many":                     {"errors", traffic{[2]int{20, 20}, [2]float64{.3, .3}, [2]time.Duration{1e6, 1e6}}},
		"latency, as much":                 {"latency", traffic{[2]int{60, 60}, [2]float64{}, [2]time.Duration{9e8, 9e8}}},
		"latency, a tenth of the traffic":  {"latency", traffic{[2]int{30, 270}, [2]float64{}, [2]time.Duration{9e8, 9e8}}},
		"latency, most of the traffic":     {"latency", traffic{[2]int{270, 30}, [2]float64{}, [2]time.Duration{9e8, 9e8}}},
		"latency, a few requests a second": {"latency", traffic{[2]int{8, 8}, [2]float64{}, [2]time.Duration{9e8, 9e8}}},
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			g := Gate{Canary: &CanaryGate{Metric: c.metric, Significance: significance, Samples: 8}} // nothing is tolerated
			refused := 0
			for range runs {
				if c.tr.when(g, r, 60) > 0 {
					refused++
				}
			}
			t.Logf("%d of %d refused", refused, runs)
			if share := float64(refused) / runs; share > significance || share < significance/20 {
				t.Errorf("%.3f of the runs were refused, want at most %g and not none", share, significance)
			}
		})
	}
}

func TestAClearRegressionIsFoundSoon(t *testing.T) {
	for name, c := range map[string]struct {
		gate   Gate
		tr     traffic
		within int // seconds, in each of the runs
	}{
		"every answer an error": {Gate{Canary: &CanaryGate{Metric: "errors"}}, traffic{[2]int{5, 45}, [2]float64{1, 0}, [2]time.Duration{1e6, 1e6}}, 8},
		"a quarter of them":     {Gate{Canary: &CanaryGate{Metric: "errors"}}, traffic{[2]int{10, 90}, [2]float64{.25, .01}, [2]time.Duration{1e6, 1e6}}, 18},
		"half as slow again":    {Gate{Canary: &CanaryGate{Metric: "latency"}}, traffic{[2]int{100, 100}, [2]float64{}, [2]time.Duration{30e6, 20e6}}, 12},
		"above a limit":         {Gate{ErrorRate: &ErrorRateGate{Max: 0.01}}, traffic{[2]int{10, 0}, [2]float64{.5, 0}, [2]time.Duration{1e6, 1e6}}, 5},
		"slower than a limit":   {Gate{Latency: &LatencyGate{Max: 200 * time.Millisecond}}, traffic{[2]int{10, 0}, [2]float64{}, [2]time.Duration{5e8, 1e6}}, 5},
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(3, 4))
			g, err := c.gate.complete(80)
			if err != nil {
				t.Fatal(err)
			}
			for range 100 {
				if at := c.tr.when(g, r, 60); at == 0 || at > c.within {
					t.Fatalf("found after %d s, want %d", at, c.within)
				}
			}
		})
	}
}

// What a fleet's router tells of a new version that is slower, while most of
// the traffic is still the old one's.
func TestASlowCanaryBehindARouterThatRemembers(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, c := range []struct {
		slower  float64
		refused bool
	}{{1, false}, {1.6, true}} {
		counts := counting(2, 2)
		for range 4000 { // the members of both slots had another life
			counts.answer(Blue, r.IntN(2), time.Duration(r.ExpFloat64()*40e6), false)
			counts.answer(Green, r.IntN(2), time.Duration(r.ExpFloat64()*5e6), false)
		}
		m, _ := counts.take(Marks{}, noon)
		g, err := Gate{Canary: &CanaryGate{Metric: "latency"}}.complete(80)
		if err != nil {
			t.Fatal(err)
		}
		var samples []Sample
		var f Finding
		at := 0
		for ; at < 120 && f.Verdict != Fail; at++ {
			for range 40 {
				counts.answer(Green, r.IntN(2), time.Duration(r.ExpFloat64()*c.slower*40e6), false)
			}
			for range 160 {
				counts.answer(Blue, r.IntN(2), time.Duration(r.ExpFloat64()*40e6), false)
			}
			next, s := counts.take(m, noon.Add(time.Duration(at+1)*time.Second))
			m, samples = next, keepSamples(samples, *s)
			f = judge(g, samples, noon)
		}
		t.Logf("%g times as slow: %s after %d s: %s", c.slower, f.Verdict, at, f.Detail)
		if (f.Verdict == Fail) != c.refused {
			t.Errorf("%g times as slow: %s: %s", c.slower, f.Verdict, f.Detail)
		}
	}
}

func TestTooLittleIsInconclusive(t *testing.T) {
	none := Sample{At: noon}
	newOnly := Sample{At: noon, New: Counters{100, 0, 1e6, 100}}
	unknown := Sample{At: noon, New: Counters{Requests: 100}, Old: Counters{Requests: 100}}
	for name, c := range map[string]struct {
		gate   Gate
		sample Sample
		n      int
		want   string
	}{
		"no samples":             {Gate{ErrorRate: &ErrorRateGate{Max: .5}}, none, 0, "0 requests, at least 20"},
		"no requests":            {Gate{ErrorRate: &ErrorRateGate{Max: .5}}, none, 500, "0 requests"},
		"no latency":             {Gate{Latency: &LatencyGate{Max: time.Hour}}, none, 500, "0 answers"},
		"a router without times": {Gate{Latency: &LatencyGate{Max: time.Hour}}, unknown, 500, "0 answers"},
		"no old ones":            {Gate{Canary: &CanaryGate{Metric: "errors"}}, newOnly, 500, "0 samples of errors on both sides, 8 are needed"},
		"no old latency":         {Gate{Canary: &CanaryGate{Metric: "latency"}}, newOnly, 500, "0 samples of latency"},
		"no times at all":        {Gate{Canary: &CanaryGate{Metric: "latency"}}, unknown, 500, "0 samples of latency"},
		"seven":                  {Gate{Canary: &CanaryGate{Metric: "errors"}}, unknown, 7, "7 samples of errors"},
	} {
		t.Run(name, func(t *testing.T) {
			g, err := c.gate.complete(80)
			if err != nil {
				t.Fatal(err)
			}
			if f := judge(g, slices.Repeat([]Sample{c.sample}, c.n), noon); f.Verdict != Inconclusive || !strings.Contains(f.Detail, c.want) || f.Gate != g.Name || !f.At.Equal(noon) {
				t.Errorf("%+v, want %q", f, c.want)
			}
		})
	}
	// Nor is it by a gate that nobody completed.
	for _, g := range []Gate{{ErrorRate: &ErrorRateGate{}}, {Latency: &LatencyGate{}}, {Canary: &CanaryGate{}}} {
		if f := judge(g, nil, noon); f.Verdict != Inconclusive {
			t.Errorf("%+v", f)
		}
	}
	if f := judge(Gate{Test: true}, nil, noon); f.Verdict != Error {
		t.Errorf("a gate that is asked: %+v", f)
	}
}

func TestFigures(t *testing.T) {
	s := Sample{At: noon, New: Counters{412, 3, 21400 * time.Microsecond, 412}, Old: Counters{Requests: 100, Errors: 0, Latency: 20 * time.Millisecond, Timed: 100}}
	for want, c := range map[string]struct {
		gate Gate
		n    int
		v    Verdict
	}{
		"3 of 412 answers were 5xx (0.73 %), at most 1 %":                                                {Gate{ErrorRate: &ErrorRateGate{Max: .01}}, 1, Pass},
		"3 of 412 answers were 5xx (0.73 %), at most 0.5 %":                                              {Gate{ErrorRate: &ErrorRateGate{Max: .005}}, 1, Fail},
		"the mean of 412 answers took 21.4ms, at most 21ms":                                              {Gate{Latency: &LatencyGate{Max: 21 * time.Millisecond}}, 1, Fail},
		"the mean of 824 answers took 21.4ms, at most 1s":                                                {Gate{Latency: &LatencyGate{Max: time.Second}}, 2, Pass},
		"latency 21.4ms of the new instances against 20ms":                                               {Gate{Canary: &CanaryGate{Metric: "latency"}}, 40, Pass}, // 7 % more, and 10 % is tolerated
		"20ms of the old ones (medians of 8 spans), p = 6.9":                                             {Gate{Canary: &CanaryGate{Metric: "latency", Tolerance: .01}}, 8, Fail},
		"errors 0.73 % of the new instances against 0 % of the old ones (24 of 3296 requests, 0 of 800)": {Gate{Canary: &CanaryGate{Metric: "errors"}}, 8, Pass},
	} {
		g, err := c.gate.complete(80)
		if err != nil {
			t.Fatal(err)
		}
		if f := judge(g, slices.Repeat([]Sample{s}, c.n), noon); f.Verdict != c.v || !strings.Contains(f.Detail, want) {
			t.Errorf("%s %q, want %s %q", f.Verdict, f.Detail, c.v, want)
		}
	}
}

// What is worse beyond doubt, but not by more than is tolerated, is no failure.
func TestTolerance(t *testing.T) {
	for metric, tr := range map[string]traffic{
		"errors":  {[2]int{1000, 1000}, [2]float64{.13, .1}, [2]time.Duration{1e6, 1e6}},
		"latency": {[2]int{1000, 1000}, [2]float64{}, [2]time.Duration{130e6, 100e6}},
	} {
		for tolerance, want := range map[float64]bool{.1: true, .5: false} {
			g := Gate{Canary: &CanaryGate{Metric: metric, Significance: .01, Tolerance: tolerance, Samples: 8}}
			if at := tr.when(g, rand.New(rand.NewPCG(11, 12)), 60); (at > 0) != want {
				t.Errorf("%s 30 %% worse, %g tolerated: fails at %d", metric, tolerance, at)
			}
		}
	}
	// A difference that the router cannot tell is none.
	tr := traffic{[2]int{1000, 1000}, [2]float64{}, [2]time.Duration{19e5, 1e6}}
	if at := tr.when(Gate{Canary: &CanaryGate{Metric: "latency", Significance: .01, Samples: 8}}, rand.New(rand.NewPCG(13, 14)), 60); at > 0 {
		t.Errorf("0.9 ms more fail at %d", at)
	}
}

// A gate that fails does not pass when there are more errors, or it is slower,
// or less is allowed; one that passes does not fail when there is less of it.
func TestMonotone(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 300 {
		tr := traffic{[2]int{1 + r.IntN(30), 1 + r.IntN(30)}, [2]float64{r.Float64() / 3, r.Float64() / 3}, [2]time.Duration{time.Duration(r.IntN(1e8)), time.Duration(r.IntN(1e8))}}
		var samples, worse []Sample
		for i := range 10 + r.IntN(40) {
			s := tr.sample(r, i)
			samples = append(samples, s)
			s.New.Errors += r.Int64N(s.New.Requests - s.New.Errors + 1)
			s.New.Latency += time.Duration(r.IntN(1e8))
			worse = append(worse, s)
		}
		for _, g := range []Gate{
			{ErrorRate: &ErrorRateGate{Max: r.Float64() / 2}}, {Latency: &LatencyGate{Max: time.Duration(1e6 + r.IntN(1e8))}},
			{Canary: &CanaryGate{Metric: "latency", Significance: .4}},
		} {
			g, err := g.complete(80)
			if err != nil {
				t.Fatal(err)
			}
			is, was := judge(g, worse, noon), judge(g, samples, noon)
			if was.Verdict == Fail && is.Verdict != Fail || (was.Verdict == Inconclusive) != (is.Verdict == Inconclusive) {
				t.Fatalf("%+v, with more of it %+v", was, is)
			}
			if was != judge(g, samples, noon) {
				t.Fatal("another answer to the same question")
			}
			if g.Canary == nil {
				continue
			}
			c := *g.Canary
			c.Tolerance *= 3
			if f := judge(Gate{Name: g.Name, Canary: &c}, samples, noon); was.Verdict == Pass && f.Verdict == Fail {
				t.Fatalf("%+v, with more tolerance %+v", was, f)
			}
			c = *g.Canary
			c.Significance /= 10
			if f := judge(Gate{Name: g.Name, Canary: &c}, samples, noon); was.Verdict == Pass && f.Verdict == Fail {
				t.Fatalf("%+v, with more certainty %+v", was, f)
			}
		}
	}
}

func TestLooks(t *testing.T) {
	g := CanaryGate{Significance: 0.01, Samples: 8}
	var at []int
	var spent float64
	for n := 8; n <= maxSamples; n++ {
		see, level := g.look(n)
		if see > n || see < 8 {
			t.Fatalf("%d samples: sees %d", n, see)
		}
		if len(at) == 0 || at[len(at)-1] != see {
			at = append(at, see)
			spent += level
		}
	}
	if fmt.Sprint(at) != "[8 12 18 27 40 60 90 135 202]" || spent > g.Significance || spent < g.Significance*0.85 {
		t.Errorf("looks at %v, which spend %g of %g", at, spent, g.Significance)
	}
}

// A draw has the mean and the bounds that it must have.
func TestDrawn(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for _, c := range []struct{ requests, errors, n int64 }{{50, 5, 10}, {10, 9, 3}, {1000, 900, 100}, {5000, 100, 4000}, {5000, 2500, 1000}, {7, 7, 3}, {7, 0, 3}, {7, 3, 7}} {
		const draws = 4000
		var sum float64
		for range draws {
			got := drawn(r, Counters{Requests: c.requests, Errors: c.errors}, c.n)
			if got < float64(max(0, c.n-(c.requests-c.errors))) || got > float64(min(c.n, c.errors)) {
				t.Fatalf("%+v: %v", c, got)
			}
			sum += got
		}
		if want := float64(c.errors*c.n) / float64(c.requests); sum/draws < want*0.97 || sum/draws > want*1.03 {
			t.Errorf("%+v: %.3f on the mean, want %.3f", c, sum/draws, want)
		}
	}
}

func TestWorst(t *testing.T) {
	of := func(vs ...Verdict) (fs []Finding) {
		for _, v := range vs {
			fs = append(fs, Finding{Verdict: v})
		}
		return fs
	}
	order := []Verdict{Fail, Error, Inconclusive, Pass}
	for i, v := range order {
		for _, less := range order[i:] {
			if worst(of(less, v, less)) != v || worst(of(v, less)) != v {
				t.Errorf("%s with %s", v, less)
			}
		}
	}
	if worst(nil) != Pass {
		t.Error("no gate is no obstacle")
	}
}

func TestGatesAreCompletedOrRefused(t *testing.T) {
	for want, g := range map[string]Gate{
		"deploy.gates[]: give it one of error_rate, latency, canary, command, http, alarm and test; it has none": {},
		"deploy.gates[x]: give it one of": {Name: "x", Test: true, HTTP: &HTTPGate{}},
		"it has http and test":            {Test: true, HTTP: &HTTPGate{}},
		"deploy.gates[error_rate]: max: 1 is no share of errors from 0 to below 1":    {ErrorRate: &ErrorRateGate{Max: 1}},
		"deploy.gates[error_rate]: requests: -1":                                      {ErrorRate: &ErrorRateGate{Requests: -1}},
		"deploy.gates[latency]: max: 0s: give a time":                                 {Latency: &LatencyGate{}},
		"deploy.gates[latency]: requests: -5":                                         {Latency: &LatencyGate{Max: time.Second, Requests: -5}},
		`deploy.gates[canary]: metric: "" is neither errors nor latency`:              {Canary: &CanaryGate{}},
		"significance: 0.5 is not between":                                            {Canary: &CanaryGate{Metric: "errors", Significance: .5}},
		"tolerance: -1 is not between":                                                {Canary: &CanaryGate{Metric: "errors", Tolerance: -1}},
		"samples: 3 is not between 4 and 150":                                         {Canary: &CanaryGate{Metric: "errors", Samples: 3}},
		"baseline: 101":                                                               {Canary: &CanaryGate{Metric: "errors", Baseline: 101}},
		"deploy.gates[command]: command: which program?":                              {Command: &CommandGate{}},
		"deploy.gates[smoke]: timeout: -1s":                                           {Name: "smoke", Command: &CommandGate{Args: []string{"x"}, Timeout: -time.Second}},
		"deploy.gates[http]: port: 70000 is not a port":                               {HTTP: &HTTPGate{Port: 70000}},
		`path: "x" does not start with /`:                                             {HTTP: &HTTPGate{Path: "x"}},
		"status: 99 is no status of HTTP":                                             {HTTP: &HTTPGate{Status: 99}},
		`version: "X-Version: 1" is neither the name of a header nor body`:            {HTTP: &HTTPGate{Version: "X-Version: 1"}},
		"deploy.gates[http]: timeout: -2s is no time to wait for":                     {HTTP: &HTTPGate{Timeout: -2 * time.Second}},
		"deploy.gates[canary]: samples: 151 is not between 4 and 150":                 {Canary: &CanaryGate{Metric: "errors", Samples: 151}},
		"deploy.gates[canary]: significance: -0.1 is not between 0 and 0.5":           {Canary: &CanaryGate{Metric: "errors", Significance: -.1}},
		"deploy.gates[error_rate]: max: -0.1 is no share of errors from 0 to below 1": {ErrorRate: &ErrorRateGate{Max: -.1}},
	} {
		if _, err := g.complete(80); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	given := &CanaryGate{Metric: "errors"}
	g, err := Gate{Canary: given}.complete(80)
	if err != nil || g.Name != "canary" || *g.Canary != (CanaryGate{Metric: "errors", Significance: .01, Tolerance: .1, Samples: 8}) || *given != (CanaryGate{Metric: "errors"}) {
		t.Errorf("%+v, %+v, %v", g, g.Canary, err)
	}
	again, err := g.complete(80)
	if err != nil || *again.Canary != *g.Canary {
		t.Errorf("completed twice: %+v, %v", again.Canary, err)
	}
	h, err := Gate{Name: "page", HTTP: &HTTPGate{}}.complete(8000)
	if err != nil || h.Name != "page" || *h.HTTP != (HTTPGate{Port: 8000, Path: "/", Status: 200, Timeout: 5 * time.Second}) {
		t.Errorf("%+v, %v", h.HTTP, err)
	}
	if c, err := (Gate{Command: &CommandGate{Args: []string{"true"}}}).complete(1); err != nil || c.Command.Timeout != time.Minute {
		t.Errorf("%+v, %v", c.Command, err)
	}
	if e, err := (Gate{ErrorRate: &ErrorRateGate{Max: 0}}).complete(1); err != nil || e.ErrorRate.Requests != 20 {
		t.Errorf("%+v, %v", e.ErrorRate, err)
	}
}
