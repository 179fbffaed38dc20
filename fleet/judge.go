package fleet

import (
	"fmt"
	"math/rand/v2"
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
	if c.Requests < max(1, int64(g.Requests)) {
		return Inconclusive, fmt.Sprintf("%d requests, at least %d are needed to tell", c.Requests, g.Requests)
	}
	share := c.share()
	say := fmt.Sprintf("%d of %d answers were 5xx (%s), at most %s", c.Errors, c.Requests, percent(share), percent(g.Max))
	if share > g.Max {
		return Fail, say
	}
	return Pass, say
}

func (g LatencyGate) judge(samples []Sample) (Verdict, string) {
	c := sumOf(samples, ofNew)
	if c.Timed < max(1, int64(g.Requests)) {
		return Inconclusive, fmt.Sprintf("%d answers with a known time, at least %d are needed to tell", c.Timed, g.Requests)
	}
	say := fmt.Sprintf("the mean of %d answers took %s, at most %s", c.Timed, short(c.Latency), g.Max)
	if c.Latency > g.Max {
		return Fail, say
	}
	return Pass, say
}

func (g CanaryGate) judge(samples []Sample) (Verdict, string) {
	values := g.latencies
	if g.Metric == "errors" {
		values = g.shares
	}
	fresh, old := values(samples)
	have := min(len(fresh), len(old))
	if have < max(1, g.Samples) {
		return Inconclusive, fmt.Sprintf("%d samples of %s on both sides, %d are needed to tell", have, g.Metric, g.Samples)
	}
	n, level := g.look(have)
	fresh, old = fresh[:n], old[:n]
	var p, is, was, slack float64
	var say string
	if g.Metric == "errors" {
		a, b := sumOf(samples, ofNew), sumOf(samples, ofOld)
		is, was = a.share(), b.share()
		p, slack = stats.Greater(fresh, old), g.Tolerance*was
		say = fmt.Sprintf("errors %s of the new instances against %s of the old ones (%d of %d requests, %d of %d), p = %.2g",
			percent(is), percent(was), a.Errors, a.Requests, b.Errors, b.Requests, p)
	} else {
		is, was = stats.Median(fresh), stats.Median(old)
		slack = max(g.Tolerance*was, resolution.Seconds())
		less := make([]float64, n) // only what is greater after what is tolerated counts
		for i, x := range fresh {
			less[i] = x - slack
		}
		p = stats.Greater(less, old)
		say = fmt.Sprintf("latency %s of the new instances against %s of the old ones (medians of %d spans), p = %.2g", short(seconds(is)), short(seconds(was)), n, p)
	}
	if p < level && is > was+slack {
		return Fail, say + fmt.Sprintf(" (fails below %.2g)", level)
	}
	return Pass, say
}

// look is the last of the planned looks at n samples: how many it sees, and the
// p below which it fails. See CanaryGate.
func (g CanaryGate) look(n int) (see int, level float64) {
	see = max(1, g.Samples)
	nth := 1.0
	for next := see; ; nth++ {
		if next += max(1, next/2); next > n {
			return see, g.Significance / (nth * (nth + 1))
		}
		see = next
	}
}

// shares are the shares of errors on both sides, of each sample in which both
// had requests. The slots get unlike parts of the traffic, and of two equal
// shares of errors the one of more requests is above zero more often. So the
// side with more requests in a sample is cut down, by a draw, to as many as the
// other one has: then no side is above the other but by what it does. The draw
// is the same whenever the same sample is looked at.
func (g CanaryGate) shares(samples []Sample) (fresh, old []float64) {
	for _, s := range samples {
		n := min(s.New.Requests, s.Old.Requests)
		if n == 0 {
			continue
		}
		r := rand.New(rand.NewPCG(uint64(s.At.UnixNano()), uint64(s.New.Requests)))
		fresh = append(fresh, drawn(r, s.New, n)/float64(n))
		old = append(old, drawn(r, s.Old, n)/float64(n))
	}
	return fresh, old
}

// drawn is how many of the errors are among n of the requests. Of many it is
// the mean, which is close enough.
func drawn(r *rand.Rand, c Counters, n int64) (got float64) {
	const many = 200
	if c.Errors > many && n > many || n == c.Requests {
		return float64(c.Errors) * float64(n) / float64(c.Requests)
	}
	picks, of := c.Errors, n // each error is among them, or each of them is an error: the same, the fewer the faster
	if n < c.Errors {
		picks, of = n, c.Errors
	}
	for left := c.Requests; picks > 0; picks, left = picks-1, left-1 {
		if r.Int64N(left) < of {
			got, of = got+1, of-1
		}
	}
	return got
}

// enough answers make a mean that is about as often above as below the true one.
const enough = 30

// resolution of a router's times: less is no difference.
const resolution = time.Millisecond

// latencies are the mean times to answer on both sides, in seconds, over spans
// in which each side has enough.
func (g CanaryGate) latencies(samples []Sample) (fresh, old []float64) {
	var a, b Counters
	for _, s := range samples {
		a, b = a.plus(s.New), b.plus(s.Old)
		if a.Timed >= enough && b.Timed >= enough {
			fresh, old = append(fresh, a.Latency.Seconds()), append(old, b.Latency.Seconds())
			a, b = Counters{}, Counters{}
		}
	}
	return fresh, old
}

func (c Counters) share() float64 { return float64(c.Errors) / float64(max(c.Requests, 1)) }

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func percent(share float64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", share*100), "0"), ".") + " %"
}

func short(d time.Duration) string { return d.Round(100 * time.Microsecond).String() }
