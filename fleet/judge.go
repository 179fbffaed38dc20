package fleet

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/rebake/rebake/internal/stats"
)

// judge says what a gate makes of the samples of a hold. It is pure. Too little
// traffic is Inconclusive: silence is no success.
func judge(g Gate, samples []Sample, now time.Time) Finding {
	f := Finding{Gate: g.Name, At: now}
	switch {
	case g.ErrorRate != nil:
		f.Verdict, f.Detail = g.ErrorRate.judge(samples)
	case g.Latency != nil:
		f.Verdict, f.Detail = g.Latency.judge(samples)
	case g.Canary != nil:
		f.Verdict, f.Detail = g.Canary.judge(samples)
	default:
		f.Verdict, f.Detail = Error, "it is not judged from counters"
	}
	return f
}

// worst is the verdict of all together: fail, error, inconclusive, pass.
func worst(fs []Finding) Verdict {
	order := []Verdict{Fail, Error, Inconclusive}
	for _, v := range order {
		for _, f := range fs {
			if f.Verdict == v {
				return v
			}
		}
	}
	return Pass
}

func sumOf(samples []Sample, of func(Sample) Counters) (c Counters) {
	for _, s := range samples {
		c = c.plus(of(s))
	}
	return c
}

func ofNew(s Sample) Counters { return s.New }
func ofOld(s Sample) Counters { return s.Old }

func (g ErrorRateGate) judge(samples []Sample) (Verdict, string) {
	c := sumOf(samples, ofNew)
	if c.Requests < int64(g.Requests) {
		return Inconclusive, fmt.Sprintf("%d requests, at least %d are needed to tell", c.Requests, g.Requests)
	}
	share := float64(c.Errors) / float64(c.Requests)
	say := fmt.Sprintf("%d of %d answers were 5xx (%s), at most %s", c.Errors, c.Requests, percent(share), percent(g.Max))
	if share > g.Max {
		return Fail, say
	}
	return Pass, say
}

func (g LatencyGate) judge(samples []Sample) (Verdict, string) {
	c := sumOf(samples, ofNew)
	if c.Requests < int64(g.Requests) {
		return Inconclusive, fmt.Sprintf("%d requests, at least %d are needed to tell", c.Requests, g.Requests)
	}
	say := fmt.Sprintf("the mean answer took %s, at most %s", short(c.Latency), g.Max)
	if c.Latency > g.Max {
		return Fail, say
	}
	return Pass, say
}

func (g CanaryGate) judge(samples []Sample) (Verdict, string) {
	fresh, old := g.values(samples, ofNew), g.values(samples, ofOld)
	if len(fresh) < g.Samples || len(old) < g.Samples {
		return Inconclusive, fmt.Sprintf("%d seconds with requests to the new instances and %d to the old ones, %d of each are needed to tell", len(fresh), len(old), g.Samples)
	}
	// The new values less what is tolerated: only what is still greater counts.
	slack := g.Tolerance * stats.Median(old)
	if g.Metric == "errors" {
		all := sumOf(samples, ofOld)
		slack = g.Tolerance * float64(all.Errors) / float64(all.Requests)
	}
	less := make([]float64, len(fresh))
	for i, x := range fresh {
		less[i] = x - slack
	}
	p := stats.Greater(less, old)
	say := fmt.Sprintf("%s %s of the new instances against %s of the old ones, p = %.3f", g.Metric, g.word(samples, ofNew), g.word(samples, ofOld), p)
	if p < g.Significance {
		return Fail, say + fmt.Sprintf(", worse (below %g)", g.Significance)
	}
	return Pass, say
}

// values are one per sample in which there was a request.
func (g CanaryGate) values(samples []Sample, of func(Sample) Counters) (xs []float64) {
	for _, s := range samples {
		c := of(s)
		switch {
		case c.Requests == 0:
		case g.Metric == "errors":
			xs = append(xs, float64(c.Errors)/float64(c.Requests))
		case c.Latency > 0:
			xs = append(xs, c.Latency.Seconds())
		}
	}
	return xs
}

func (g CanaryGate) word(samples []Sample, of func(Sample) Counters) string {
	if c := sumOf(samples, of); g.Metric == "errors" {
		return percent(float64(c.Errors) / float64(max(c.Requests, 1)))
	}
	return short(time.Duration(stats.Median(g.values(samples, of)) * float64(time.Second)))
}

func percent(share float64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", share*100), "0"), ".") + " %"
}

func short(d time.Duration) string { return d.Round(100 * time.Microsecond).String() }

// complete fills in a gate's defaults and refuses what makes no sense. port is
// the one that traffic goes to.
func (g Gate) complete(port int) (Gate, error) {
	var kinds []string
	for _, k := range []struct {
		name string
		set  bool
	}{{"error_rate", g.ErrorRate != nil}, {"latency", g.Latency != nil}, {"canary", g.Canary != nil}, {"command", g.Command != nil}, {"http", g.HTTP != nil}, {"test", g.Test}} {
		if k.set {
			kinds = append(kinds, k.name)
		}
	}
	if len(kinds) != 1 {
		return g, fmt.Errorf("deploy.gates: a gate is one of error_rate, latency, canary, command, http and test; this one (%s) has %d", orWord(g.Name, "no name"), len(kinds))
	}
	if g.Name == "" {
		g.Name = kinds[0]
	}
	bad := func(format string, a ...any) (Gate, error) {
		return g, fmt.Errorf("deploy.gates[%s]: %s", g.Name, fmt.Sprintf(format, a...))
	}
	few := func(n *int) bool {
		if *n == 0 {
			*n = 20
		}
		return *n > 0
	}
	switch {
	case g.ErrorRate != nil:
		e := *g.ErrorRate
		if !few(&e.Requests) || math.IsNaN(e.Max) || e.Max < 0 || e.Max >= 1 {
			return bad("max must be a share from 0 to below 100 %%, and requests above 0")
		}
		g.ErrorRate = &e
	case g.Latency != nil:
		l := *g.Latency
		if !few(&l.Requests) || l.Max <= 0 {
			return bad("max and requests must be above 0")
		}
		g.Latency = &l
	case g.Canary != nil:
		c := *g.Canary
		if c.Significance == 0 {
			c.Significance = 0.01
		}
		if c.Tolerance == 0 {
			c.Tolerance = 0.1
		}
		if c.Samples == 0 {
			c.Samples = 8
		}
		switch {
		case c.Metric != "errors" && c.Metric != "latency":
			return bad("metric %q is neither errors nor latency", c.Metric)
		case !(c.Significance > 0 && c.Significance < 0.5), !(c.Tolerance >= 0 && c.Tolerance <= 10):
			return bad("significance must be between 0 and 0.5, tolerance between 0 and 1000 %%")
		case c.Samples < 4 || c.Samples > maxSamples/2:
			return bad("samples must be between 4 and %d", maxSamples/2)
		case c.Baseline < 0 || c.Baseline > 100:
			return bad("baseline must be between 0 and 100 instances")
		}
		g.Canary = &c
	case g.Command != nil:
		c := *g.Command
		if c.Timeout == 0 {
			c.Timeout = time.Minute
		}
		if len(c.Args) == 0 || c.Args[0] == "" || c.Timeout < 0 {
			return bad("run must name a program")
		}
		g.Command = &c
	case g.HTTP != nil:
		h := *g.HTTP
		if h.Port == 0 {
			h.Port = port
		}
		if h.Path == "" {
			h.Path = "/"
		}
		if h.Status == 0 {
			h.Status = 200
		}
		if h.Timeout == 0 {
			h.Timeout = 5 * time.Second
		}
		if h.Port < 1 || h.Port > 65535 || h.Path[0] != '/' || h.Status < 100 || h.Status > 599 || h.Timeout < 0 {
			return bad("it needs a port, a path that begins with /, and an HTTP status")
		}
		g.HTTP = &h
	}
	return g, nil
}
