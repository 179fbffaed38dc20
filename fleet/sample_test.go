package fleet

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// counters is a router that counts as HAProxy does.
type counters struct {
	*RouterStatus
	mean map[string]float64 // milliseconds, not rounded
}

func counting(fresh, old int) counters {
	c := counters{&RouterStatus{Up: true, Members: map[Slot][]MemberStatus{}}, map[string]float64{}}
	for slot, n := range map[Slot]int{Green: fresh, Blue: old} {
		for i := range n {
			c.Members[slot] = append(c.Members[slot], MemberStatus{Member: Member{ID: string(slot) + string(rune('1'+i))}})
		}
	}
	return c
}

// answer counts one: the router's mean is of the last 512, told in milliseconds, rounded up.
func (c counters) answer(s Slot, i int, took time.Duration, failed bool) {
	m := &c.Members[s][i]
	m.Requests++
	if failed {
		m.Errors5x++
	}
	ms := float64(took) / 1e6
	c.mean[m.ID] += (ms - c.mean[m.ID]) / float64(min(m.Requests, 512))
	m.Latency = time.Duration(math.Ceil(c.mean[m.ID])) * time.Millisecond
}

func (c counters) of(s Slot) map[string]Instance {
	set := map[string]Instance{}
	for _, m := range c.Members[s] {
		set[m.ID] = Instance{ID: m.ID}
	}
	return set
}

// take takes a sample as a deployment to green does.
func (c counters) take(m Marks, now time.Time) (Marks, *Sample) {
	return take(m, *c.RouterStatus, Green, c.of(Green), c.of(Blue), now)
}

func TestASampleIsWhatHappenedSinceTheLast(t *testing.T) {
	c := counting(2, 2)
	c.answer(Blue, 0, 10*time.Millisecond, true) // before the first look
	m, s := c.take(Marks{}, noon)
	if s != nil {
		t.Fatalf("a sample of what was before: %+v", s)
	}
	for range 30 {
		c.answer(Green, 0, 10*time.Millisecond, false)
		c.answer(Green, 1, 40*time.Millisecond, true)
		c.answer(Green, 1, 40*time.Millisecond, false)
		c.answer(Blue, 1, 20*time.Millisecond, false)
	}
	if same, s := c.take(m, noon.Add(999*time.Millisecond)); s != nil || !reflect.DeepEqual(same, m) {
		t.Fatalf("a sample before a second is over: %+v", s)
	}
	m, s = c.take(m, noon.Add(time.Second))
	want := Sample{At: noon.Add(time.Second), New: Counters{90, 30, 30 * time.Millisecond, 90}, Old: Counters{30, 0, 20 * time.Millisecond, 30}}
	if s == nil || *s != want {
		t.Fatalf("%+v, want %+v", s, want)
	}
	if m, s = c.take(m, noon.Add(2*time.Second)); s == nil || s.New != (Counters{}) || s.Old != (Counters{}) {
		t.Fatalf("nothing happened: %+v", s)
	}

	// Its marks live in the journal.
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var back Marks
	if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back, m) {
		t.Errorf("%s: %+v, %v", b, back, err)
	}
	if len(b) > 4*120+50 {
		t.Errorf("%d bytes of marks: %s", len(b), b)
	}
}

func TestCountersThatFellAreLeftOut(t *testing.T) {
	c := counting(2, 1)
	for range 50 {
		c.answer(Green, 0, time.Millisecond, true)
	}
	m, _ := c.take(Marks{}, noon)
	c.Members[Green][0].Requests, c.Members[Green][0].Errors5x = 3, 3 // the router was started again
	c.answer(Green, 1, time.Millisecond, false)
	c.Members[Blue] = append(c.Members[Blue], MemberStatus{Member: Member{ID: "blue9"}, Requests: 700, Errors5x: 700}) // one that was not there
	m, s := c.take(m, noon.Add(time.Second))
	if s.New.Requests != 1 || s.New.Errors != 0 || s.Old.Requests != 0 || s.Old.Errors != 0 {
		t.Errorf("%+v", s)
	}
	c.answer(Green, 0, time.Millisecond, true)
	c.answer(Blue, 1, time.Millisecond, false)
	if _, s = c.take(m, noon.Add(2*time.Second)); s.New.Requests != 1 || s.New.Errors != 1 || s.Old.Requests != 1 || s.Old.Errors != 0 {
		t.Errorf("after that: %+v", s)
	}
	c.Members[Green][0].Errors5x, c.Members[Green][0].Requests = 1, c.Members[Green][0].Requests+5 // more than before already
	if _, s = c.take(m, noon.Add(2*time.Second)); s.New.Requests != 0 || s.New.Errors != 0 {
		t.Errorf("errors fell: %+v", s)
	}
	stranger := counting(1, 0)
	stranger.answer(Green, 0, time.Millisecond, true)
	if m, s := take(Marks{At: noon}, *stranger.RouterStatus, Green, nil, nil, noon.Add(time.Second)); len(m.Members) != 0 || s.New.Requests != 0 {
		t.Errorf("a member of neither side: %+v, %+v", m, s)
	}
	if m, s = c.take(m, noon.Add(-time.Hour)); s != nil || !m.At.Equal(noon.Add(-time.Hour)) {
		t.Errorf("the clock went back: %+v, %+v", m, s)
	}
}

// An error that is answered long after its request was counted is not lost.
func TestASlowErrorIsToldWithTheNextRequest(t *testing.T) {
	c := counting(1, 1)
	m, _ := c.take(Marks{}, noon)
	c.Members[Green][0].Requests = 1
	m, s := c.take(m, noon.Add(time.Second))
	if s.New != (Counters{Requests: 1}) {
		t.Fatalf("%+v", s)
	}
	c.Members[Green][0].Errors5x = 1
	if m, s = c.take(m, noon.Add(2*time.Second)); s.New != (Counters{}) {
		t.Fatalf("%+v: more errors than requests", s)
	}
	c.Members[Green][0].Requests = 2
	if _, s = c.take(m, noon.Add(3*time.Second)); s.New != (Counters{Requests: 1, Errors: 1}) {
		t.Errorf("%+v", s)
	}
}

// Whatever the router counts: no sample is negative, none has more errors than
// requests, and together they are what was counted, but for errors on their way.
func TestSamplesAddUp(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		c := counting(1+r.IntN(3), 1+r.IntN(3))
		m, _ := c.take(Marks{}, noon)
		var sum Sample
		for i := range 1 + r.IntN(50) {
			for range r.IntN(40) {
				s := Blue
				if r.IntN(2) == 0 {
					s = Green
				}
				c.answer(s, r.IntN(len(c.Members[s])), time.Duration(r.IntN(1e9)), r.IntN(3) == 0)
			}
			next, s := c.take(m, noon.Add(time.Duration(i+1)*time.Second))
			m = next
			for _, k := range []Counters{s.New, s.Old} {
				if k.Requests < 0 || k.Errors < 0 || k.Errors > k.Requests || k.Latency < 0 || k.Timed < 0 {
					t.Fatalf("%+v", s)
				}
			}
			sum.New, sum.Old = sum.New.plus(s.New), sum.Old.plus(s.Old)
		}
		for slot, got := range map[Slot]Counters{Green: sum.New, Blue: sum.Old} {
			var want Counters
			for _, k := range c.Members[slot] {
				want.Requests, want.Errors = want.Requests+k.Requests, want.Errors+k.Errors5x
			}
			if got.Requests != want.Requests || got.Errors != want.Errors {
				t.Fatalf("%s: %+v of %+v", slot, got, want)
			}
		}
	}
}

// The router's mean is of long ago for the most part. The samples' is not: after
// it doubled, the next values are about the double, and they are as good as said.
func TestLatencyIsThatOfTheSample(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	c := counting(3, 1)
	for range 5000 { // an earlier life, also of the members
		c.answer(Green, r.IntN(3), time.Duration(r.ExpFloat64()*50e6), false)
	}
	m, _ := c.take(Marks{}, noon)
	var before, after Counters
	values, worst := 0, 0.0
	for i := range 200 {
		mean := 50e6
		if i >= 100 {
			mean = 100e6
		}
		for range 60 {
			c.answer(Green, r.IntN(3), time.Duration(mean), false)
		}
		next, s := c.take(m, noon.Add(time.Duration(i+1)*time.Second))
		m = next
		if s.New.Timed == 0 {
			continue
		}
		values++
		if i < 100 {
			before = before.plus(s.New)
		} else if i > 105 {
			after = after.plus(s.New)
			worst = max(worst, math.Abs(float64(s.New.Latency)-mean)/1e6)
		}
	}
	if values < 45 || values > 100 {
		t.Errorf("%d values of 200 samples of 60 requests, one of about 192 is a value", values)
	}
	if before.Latency < 49*time.Millisecond || before.Latency > 52*time.Millisecond || after.Latency < 99*time.Millisecond || after.Latency > 101*time.Millisecond {
		t.Errorf("mean of %s, then %s, want 50ms and 100ms", before.Latency, after.Latency)
	}
	if worst > 8 { // rounding to a millisecond, eight times
		t.Errorf("%.1f ms off", worst)
	}
}

func TestSamplesAreBounded(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	var have []Sample
	var sum Sample
	var waited float64
	for i := range 5 * maxSamples {
		s := Sample{At: noon.Add(time.Duration(i) * time.Second), New: Counters{int64(r.IntN(50)), 1, time.Duration(r.IntN(1e8)), int64(r.IntN(50))}, Old: Counters{Requests: 2}}
		before, last := len(have), append([]Sample{}, have...)
		next := keepSamples(have, s)
		if !reflect.DeepEqual(last, append([]Sample{}, have...)) || len(next) > maxSamples || len(next) <= before && before < maxSamples || len(next) < maxSamples/2 && before >= maxSamples {
			t.Fatalf("%d samples after %d", len(next), before)
		}
		if next[len(next)-1] != s {
			t.Fatal("the last one is not as it was")
		}
		have, sum.New, sum.Old = next, sum.New.plus(s.New), sum.Old.plus(s.Old)
		waited += float64(s.New.Latency) * float64(s.New.Timed)
	}
	all := sumOf(have, ofNew)
	if all.Requests != sum.New.Requests || all.Errors != sum.New.Errors || all.Timed != sum.New.Timed || sumOf(have, ofOld) != sum.Old {
		t.Errorf("%+v of %+v", all, sum.New)
	}
	if want := waited / float64(all.Timed); math.Abs(float64(all.Latency)-want) > 1000 {
		t.Errorf("mean %s, want %s", all.Latency, time.Duration(want))
	}
	for i := 1; i < len(have); i++ {
		if !have[i].At.After(have[i-1].At) {
			t.Fatal("not in their order")
		}
	}
	if b, err := json.Marshal(have); err != nil || len(b) > 80<<10 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// What Mean makes of stretches of time, recent takes apart again.
func TestMeanIsReadAsItIsMade(t *testing.T) {
	for _, n := range []int64{30, 200, 700, 5000} {
		mean, had := time.Duration(0), int64(0)
		for i := range 12 {
			of := time.Duration(10+i*7%20) * time.Millisecond
			next := Mean(mean, had, of, n)
			got := recent(mark{Requests: had, Timed: had, Mean: mean}, MemberStatus{Requests: had + n, Latency: next})
			if off := time.Duration(got) - of; off > time.Millisecond || off < -time.Millisecond {
				t.Errorf("%d answers at %s after %d at %s: read as %s", n, of, had, mean, time.Duration(got))
			}
			mean, had = next, had+n
		}
	}
	if Mean(7, 100, 50, 0) != 7 {
		t.Error("no answers moved the mean")
	}
}
