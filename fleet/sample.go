package fleet

import (
	"slices"
	"time"
)

// sampleEvery is the least time between two samples, maxSamples how many of a
// hold are kept: then each two neighbours become one.
const (
	sampleEvery = time.Second
	maxSamples  = 600
)

// Marks are the counters of the last look that became a sample.
type Marks struct {
	At      time.Time           `json:"at,omitzero"`
	Members map[string]Counters `json:"members,omitempty"` // by instance; Latency is not kept
}

// take reads what the new and the old members did since the marks. A member
// that was not there then, or whose counters fell (the router restarted), has
// done nothing that could be told: it counts from the next look on. The sample
// is nil before its time.
func take(prev Marks, st RouterStatus, fresh Slot, newOnes, oldOnes map[string]Instance, now time.Time) (Marks, *Sample) {
	if !prev.At.IsZero() && now.Sub(prev.At) < sampleEvery {
		return prev, nil
	}
	next := Marks{At: now, Members: map[string]Counters{}}
	s := Sample{At: now}
	add := func(slot Slot, of map[string]Instance, sum *Counters) {
		var waited time.Duration
		for _, m := range st.Members[slot] {
			if _, ok := of[m.ID]; !ok {
				continue
			}
			is := Counters{Requests: m.Requests, Errors: m.Errors5x}
			next.Members[m.ID] = is
			was, ok := prev.Members[m.ID]
			if !ok || is.Requests < was.Requests || is.Errors < was.Errors {
				continue
			}
			n := is.Requests - was.Requests
			sum.Requests += n
			sum.Errors += min(is.Errors-was.Errors, n) // an answer may come after its request was counted
			waited += time.Duration(n) * m.Latency
		}
		if sum.Requests > 0 {
			sum.Latency = waited / time.Duration(sum.Requests)
		}
	}
	add(fresh, newOnes, &s.New)
	add(fresh.Other(), oldOnes, &s.Old)
	if prev.At.IsZero() {
		return next, nil
	}
	return next, &s
}

// keepSamples adds one, within bounds. The slice is made anew: records are values.
func keepSamples(have []Sample, s Sample) []Sample {
	have = append(slices.Clip(have), s)
	if len(have) <= maxSamples {
		return have
	}
	out := make([]Sample, 0, maxSamples)
	for i := 0; i+1 < len(have); i += 2 {
		out = append(out, Sample{At: have[i+1].At, New: have[i].New.plus(have[i+1].New), Old: have[i].Old.plus(have[i+1].Old)})
	}
	return append(out, have[len(have)/2*2:]...)
}

func (c Counters) plus(d Counters) Counters {
	sum := Counters{Requests: c.Requests + d.Requests, Errors: c.Errors + d.Errors}
	if sum.Requests > 0 {
		sum.Latency = (c.Latency*time.Duration(c.Requests) + d.Latency*time.Duration(d.Requests)) / time.Duration(sum.Requests)
	}
	return sum
}
