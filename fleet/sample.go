package fleet

import (
	"math"
	"time"
)

// sampleEvery is the least time between two samples, maxSamples how many of a
// hold are kept: then each two neighbours become one. A record of the journal
// holds them all, which is about 50 KB at most.
const (
	sampleEvery = time.Second
	maxSamples  = 300
)

// A router's mean of the time to answer looks back: each answer moves it by
// 1/lookback (HAProxy: 512), or by its own share while there were fewer. The
// mean of the answers since an earlier look is worked out from the two means,
// which multiplies their rounding (HAProxy: to a millisecond) by up to
// lookback/answers. So it is done once an eighth of what the mean looks back on
// is new: then a value is good to about 3 ms, and the next is independent of it.
const (
	lookback = 512
	renewed  = 8
)

// Marks are the counters of the last look that became a sample.
type Marks struct {
	At      time.Time       `json:"at,omitzero"`
	Members map[string]mark `json:"members,omitempty"` // by instance
}

// mark is what was read off a member's counters so far.
type mark struct {
	Requests int64         `json:"requests"`
	Errors   int64         `json:"errors,omitempty"`
	Timed    int64         `json:"timed,omitempty"` // requests when Mean was read
	Mean     time.Duration `json:"mean,omitempty"`
}

// take reads what the new and the old members did since the marks. A member
// that was not there then, or whose counters fell (the router restarted), has
// done nothing that could be told: it counts from this look on. The sample is
// nil before its time.
func take(prev Marks, st RouterStatus, fresh Slot, newOnes, oldOnes map[string]Instance, now time.Time) (Marks, *Sample) {
	gap := now.Sub(prev.At)
	if !prev.At.IsZero() && gap >= 0 && gap < sampleEvery {
		return prev, nil
	}
	next := Marks{At: now, Members: map[string]mark{}}
	s := &Sample{At: now,
		New: next.read(prev, st.Members[fresh], newOnes),
		Old: next.read(prev, st.Members[fresh.Other()], oldOnes),
	}
	if prev.At.IsZero() || gap < 0 { // the clock went back
		return next, nil
	}
	return next, s
}

// read sums up what the members that are in of did since prev, and marks them.
func (m Marks) read(prev Marks, members []MemberStatus, of map[string]Instance) (sum Counters) {
	var timed []MemberStatus
	var looksBack int64
	for _, is := range members {
		if _, ours := of[is.ID]; !ours {
			continue
		}
		was, ok := prev.Members[is.ID]
		if !ok || is.Requests < was.Requests || is.Errors5x < was.Errors {
			m.Members[is.ID] = mark{is.Requests, is.Errors5x, is.Requests, is.Latency}
			continue
		}
		requests := is.Requests - was.Requests
		// An answer may come long after its request was counted: then it is told
		// with a later request, so that no share is above 1.
		errors := min(is.Errors5x-was.Errors, requests)
		sum.Requests += requests
		sum.Errors += errors
		m.Members[is.ID] = mark{is.Requests, was.Errors + errors, was.Timed, was.Mean}
		if is.Requests > was.Timed && is.Latency > 0 {
			timed = append(timed, is)
			sum.Timed += is.Requests - was.Timed
			looksBack += min(is.Requests, lookback)
		}
	}
	if renewed*sum.Timed < looksBack {
		sum.Timed = 0
		return sum
	}
	var waited float64
	for _, is := range timed {
		k := m.Members[is.ID]
		waited += float64(is.Requests-k.Timed) * recent(k, is)
		k.Timed, k.Mean = is.Requests, is.Latency
		m.Members[is.ID] = k
	}
	if sum.Timed > 0 {
		sum.Latency = time.Duration(max(0, waited/float64(sum.Timed)))
	}
	return sum
}

// recent is the mean time of the answers since was, in nanoseconds; rounding
// may make it negative.
func recent(was mark, is MemberStatus) float64 {
	keep := 1.0 // how much of the old mean is in the new one
	if was.Mean == 0 {
		keep = 0
	}
	if was.Timed < lookback {
		keep *= float64(was.Timed) / float64(min(is.Requests, lookback))
	}
	keep *= math.Pow(1-1.0/lookback, float64(max(0, is.Requests-max(was.Timed, lookback))))
	return (float64(is.Latency) - keep*float64(was.Mean)) / (1 - keep)
}

// Mean is the mean time to answer as a router tells it: over the last lookback
// answers, moved by n more of a mean of their own. had is how many answers were
// before. It is for routers that know sums and means of stretches of time alone;
// what they tell by it is read as HAProxy's is.
func Mean(mean time.Duration, had int64, of time.Duration, n int64) time.Duration {
	if n <= 0 {
		return mean
	}
	all := had + n
	keep := 0.0
	if had > 0 {
		keep = math.Pow(1-1.0/lookback, float64(max(0, all-max(had, lookback))))
		if had < lookback {
			keep *= float64(had) / float64(min(all, lookback))
		}
	}
	return time.Duration(keep*float64(mean) + (1-keep)*float64(of))
}

// keepSamples adds one, within bounds. The slice is made anew: records are values.
func keepSamples(have []Sample, s Sample) []Sample {
	out := make([]Sample, 0, len(have)+1)
	if len(have) < maxSamples {
		return append(append(out, have...), s)
	}
	for ; len(have) > 1; have = have[2:] {
		out = append(out, Sample{At: have[1].At, New: have[0].New.plus(have[1].New), Old: have[0].Old.plus(have[1].Old)})
	}
	return append(append(out, have...), s)
}

func (c Counters) plus(d Counters) Counters {
	sum := Counters{Requests: c.Requests + d.Requests, Errors: c.Errors + d.Errors, Timed: c.Timed + d.Timed}
	if sum.Timed > 0 {
		share := float64(c.Timed) / float64(sum.Timed)
		sum.Latency = time.Duration(share*float64(c.Latency) + (1-share)*float64(d.Latency))
	}
	return sum
}
