package fleet_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/test/fake"
)

const mib = 1 << 20

func complete(t *testing.T, p fleet.Policy) fleet.Policy {
	t.Helper()
	p, err := p.Complete()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// sketch is a forecast in few characters: state, machines, serving, permille, deadline.
func sketch(f fleet.Forecast) string {
	var b strings.Builder
	for _, p := range f.Phases {
		fmt.Fprintf(&b, "%s %d-%d %d-%d %d %s", p.State, p.Instances.Min, p.Instances.Max, p.Serving.Min, p.Serving.Max, p.Permille, p.Deadline)
		if p.Hold > 0 {
			fmt.Fprintf(&b, " >=%s", p.Hold)
		}
		if p.Note != "" {
			fmt.Fprintf(&b, " (%s)", p.Note)
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "now %d peak %d +%d MiB least %d worst %s back %s", f.MachinesNow, f.MachinesPeak, f.MemoryPeak/mib, f.Least, f.WorstCase, f.WorstBack)
	if f.Unlimited {
		b.WriteString(" unlimited")
	}
	return b.String()
}

func TestForecast(t *testing.T) {
	steps := []fleet.Step{{Permille: 100, Hold: 10 * time.Second, Pause: true, PauseFor: time.Hour}, {Permille: 1000, Hold: 20 * time.Second}}
	gates := []fleet.Gate{
		{ErrorRate: &fleet.ErrorRateGate{Max: 0.01}},
		{Canary: &fleet.CanaryGate{Metric: "errors", Baseline: 2}},
		{Command: &fleet.CommandGate{Args: []string{"smoke"}}},
		{HTTP: &fleet.HTTPGate{}}, {Test: true},
	}
	for name, tt := range map[string]struct {
		p       fleet.Policy
		size    int
		old     bool
		oldSize int // another one
		want    string
	}{
		"the first": {fleet.Policy{Port: 80, Steps: steps, KeepOld: time.Minute}, 2, false, 0, `
planned 0-0 0-0 0 1m0s
provisioning 0-2 0-0 0 2m0s
warming 2-2 0-0 0 5m0s
verifying 2-2 0-0 0 5m0s
shifting 2-2 0-2 1000 1m0s
holding 2-2 2-2 1000 22s >=20s
now 0 peak 2 +512 MiB least 0 worst 14m22s back 4m0s`},
		"steps and a pause": {fleet.Policy{Port: 80, Steps: steps, KeepOld: 10 * time.Minute}, 3, true, 0, `
planned 3-3 3-3 0 1m0s
provisioning 3-6 3-3 0 2m0s
warming 6-6 3-3 0 5m0s
verifying 6-6 3-3 0 5m0s
shifting 6-6 3-6 100 1m0s
holding 6-6 6-6 100 12s >=10s
paused 6-6 6-6 100 1h0m0s (` + "`rebake deploy resume`" + ` goes on; without it, back)
shifting 6-6 3-6 1000 1m0s
holding 6-6 3-3 1000 1m0s >=20s
baking 6-6 3-3 1000 10m0s >=10m0s (` + "`rebake rollback`" + ` is one traffic write; the command returns here without --wait)
retiring 3-6 3-3 1000 1m0s (from here on going back is a new deployment)
now 3 peak 6 +768 MiB least 3 worst 1h16m12s back 4m0s`},
		"gates and a baseline": {fleet.Policy{Port: 80, Steps: []fleet.Step{{Permille: 500, Hold: 10 * time.Second, Pause: true}, {Permille: 1000, Hold: time.Second}}, Gates: gates, OnInconclusive: "pause", Quarantine: time.Hour}, 3, true, 0, `
planned 3-3 3-3 0 1m0s
provisioning 3-8 3-3 0 2m0s (and 2 fresh ones of the old image, to compare with)
warming 8-8 3-5 0 5m0s
verifying 8-8 5-5 0 5m0s (asks command, http, test)
shifting 8-8 5-8 500 1m0s
holding 8-8 8-8 500 2m47s >=10s (judges error_rate, canary; asks command, http; inconclusive ones stop it for a person)
paused 8-8 8-8 500 0s (` + "`rebake deploy resume`" + ` goes on; without it, no end)
shifting 8-8 3-8 1000 1m0s
holding 8-8 3-3 1000 2m7s >=1s (judges error_rate; asks command, http; inconclusive ones stop it for a person)
baking 6-8 3-3 1000 1m0s
retiring 3-6 3-3 1000 1m0s (from here on going back is a new deployment)
now 3 peak 8 +1280 MiB least 3 worst 21m54s back 2m0s unlimited`},
		"grows": {fleet.Policy{Port: 80}, 5, true, 2, `
planned 2-2 2-2 0 1m0s
provisioning 2-7 2-2 0 2m0s
warming 7-7 2-2 0 5m0s
verifying 7-7 2-2 0 5m0s
shifting 7-7 2-5 1000 1m0s
holding 7-7 5-5 1000 1m0s
retiring 5-7 5-5 1000 1m0s (from here on going back is a new deployment)
now 2 peak 7 +1280 MiB least 2 worst 16m0s back 4m0s`},
		"rolling, one more": {fleet.Policy{Port: 80, Strategy: fleet.Rolling, Roll: fleet.Roll{MaxSurge: 1}, Steps: []fleet.Step{{Permille: 1000, Hold: 10 * time.Second, Pause: true, PauseFor: time.Hour}}}, 2, true, 0, `
planned 2-2 2-2 0 1m0s
provisioning 2-3 2-2 0 2m0s
warming 3-3 2-2 0 5m0s
verifying 3-3 2-2 0 5m0s
shifting 3-3 2-3 333 1m0s
holding 3-3 3-3 333 12s >=10s
paused 3-3 3-3 333 1h0m0s (` + "`rebake deploy resume`" + ` goes on; without it, back)
shrinking 2-3 2-3 500 1m0s
provisioning 2-3 2-2 500 2m0s
warming 3-3 2-3 500 5m0s
verifying 3-3 3-3 500 5m0s
shifting 3-3 3-3 666 1m0s
holding 3-3 3-3 666 12s >=10s
shrinking 2-3 2-3 1000 1m0s
now 2 peak 3 +256 MiB least 2 worst 1h29m24s back 18m0s`},
		"rolling, one less": {fleet.Policy{Port: 80, Strategy: fleet.Rolling, Roll: fleet.Roll{MaxUnavailable: 1}}, 2, true, 0, `
planned 2-2 2-2 0 1m0s
shrinking 1-2 1-2 0 1m0s
provisioning 1-2 1-1 0 2m0s
warming 2-2 1-1 0 5m0s
verifying 2-2 1-1 0 5m0s
shifting 2-2 1-2 500 1m0s
holding 2-2 2-2 500 2s
shrinking 1-2 1-2 1000 1m0s
provisioning 1-2 1-1 1000 2m0s
warming 2-2 1-2 1000 5m0s
verifying 2-2 2-2 1000 5m0s
shifting 2-2 2-2 1000 1m0s
holding 2-2 2-2 1000 2s
now 2 peak 2 +0 MiB least 1 worst 29m4s back 18m0s`},
	} {
		t.Run(name, func(t *testing.T) {
			p := complete(t, tt.p)
			f := fleet.ForecastOf(p, tt.size, tt.old, 256*mib)
			if tt.oldSize > 0 {
				f = fleet.ForecastFrom(p, tt.size, tt.oldSize, 256*mib)
			}
			if got := sketch(f); got != strings.TrimSpace(tt.want) {
				t.Errorf("got\n%s", got)
			}
		})
	}
}

// policies are many that Complete accepts.
func policies(t *testing.T, each func(name string, p fleet.Policy, size int)) {
	steps := [][]fleet.Step{nil, {{Permille: 100, Hold: time.Second}, {Permille: 500}}, {{Permille: 1, Hold: time.Minute, Pause: true}}}
	for size := 1; size <= 7; size++ {
		for i, s := range steps {
			for baseline := range 3 {
				p := fleet.Policy{Port: 80, Steps: s, KeepOld: time.Duration(i) * time.Minute}
				if baseline > 0 && len(s) > 0 {
					p.Gates = []fleet.Gate{{Canary: &fleet.CanaryGate{Metric: "errors", Baseline: baseline}}}
				}
				each(fmt.Sprintf("blue-green of %d, steps %d, baseline %d", size, i, baseline), complete(t, p), size)
			}
		}
		for surge := range 4 {
			for out := range 4 {
				for batch := 1; batch <= 3; batch++ {
					if surge+out > 0 && size-out >= (size+1)/2 {
						p := fleet.Policy{Port: 80, Strategy: fleet.Rolling, Roll: fleet.Roll{MaxSurge: surge, MaxUnavailable: out, Batch: batch}}
						each(fmt.Sprintf("rolling of %d, surge %d, out %d, batch %d", size, surge, out, batch), complete(t, p), size)
					}
				}
			}
		}
	}
}

func TestForecastKeepsThePromises(t *testing.T) {
	n, ids := 0, map[string]string{}
	policies(t, func(name string, p fleet.Policy, size int) {
		for oldSize := range size + 3 {
			n++
			f := fleet.ForecastFrom(p, size, oldSize, mib)
			sum, share, most := time.Duration(0), 0, oldSize
			for i, ph := range f.Phases {
				if ph.Permille < share {
					t.Errorf("%s from %d: share %d after %d", name, oldSize, ph.Permille, share)
				}
				if i > 0 && ph.Instances.Min > f.Phases[i-1].Instances.Max {
					t.Errorf("%s from %d: instances out of nothing in %+v", name, oldSize, ph)
				}
				if floor := (min(size, oldSize) + 1) / 2; ph.Serving.Min < floor {
					t.Errorf("%s from %d: %d serve, at least %d must: %+v", name, oldSize, ph.Serving.Min, floor, ph)
				}
				if ph.Serving.Min > ph.Serving.Max || ph.Instances.Min > ph.Instances.Max || ph.Serving.Max > ph.Instances.Max {
					t.Errorf("%s from %d: %+v", name, oldSize, ph)
				}
				share, most, sum = ph.Permille, max(most, ph.Instances.Max), sum+ph.Deadline
			}
			last := f.Phases[len(f.Phases)-1]
			if share != 1000 || last.Instances.Min != size || last.Serving.Min < size && p.Roll.MaxUnavailable == 0 {
				t.Errorf("%s from %d: ends with %+v", name, oldSize, last)
			}
			if p.Strategy == fleet.Rolling && oldSize > 0 && most > max(size+p.Roll.MaxSurge, oldSize) {
				t.Errorf("%s from %d: %d machines", name, oldSize, most)
			}
			if most != f.MachinesPeak || f.MemoryPeak != int64(most-oldSize)*mib || f.WorstCase > sum || f.WorstCase <= 0 || f.WorstBack <= 0 {
				t.Errorf("%s from %d: %+v", name, oldSize, f)
			}
			b, _ := json.Marshal(f)
			if other, ok := ids[f.ID()]; ok && other != string(b) {
				t.Errorf("two forecasts are %s", f.ID())
			}
			ids[f.ID()] = string(b)
		}
	})
	if n < 1000 || len(ids) < 500 {
		t.Errorf("%d forecasts, %d of them different", n, len(ids))
	}
}

func TestForecastID(t *testing.T) {
	p := complete(t, fleet.Policy{Port: 80})
	f := fleet.ForecastOf(p, 2, true, mib)
	id := f.ID("web", "sha256:1", "sha256:2")
	if len(id) != 12 || strings.Trim(id, "0123456789abcdef") != "" || id != fleet.ForecastOf(p, 2, true, mib).ID("web", "sha256:1", "sha256:2") {
		t.Errorf("id %q", id)
	}
	p.Drain++
	for name, other := range map[string]string{
		"a part": f.ID("web", "sha256:1", "sha256:3"), "parts run together": f.ID("web", "sha256:1sha256:2"), "one less": f.ID("web", "sha256:1"),
		"the order": f.ID("web", "sha256:2", "sha256:1"), "an empty part": f.ID("web", "sha256:1", "sha256:2", ""), "cut elsewhere": f.ID("websha256:1", "", "sha256:2"),
		"size": fleet.ForecastOf(p, 3, true, mib).ID("web", "sha256:1", "sha256:2"), "memory": fleet.ForecastOf(p, 2, true, mib+1).ID("web", "sha256:1", "sha256:2"),
		"policy": fleet.ForecastOf(p, 2, true, mib).ID("web", "sha256:1", "sha256:2"), "first": fleet.ForecastOf(p, 2, false, mib).ID("web", "sha256:1", "sha256:2"),
	} {
		if other == id {
			t.Errorf("%s: the id is the same", name)
		}
	}
}

// ends are states of which a forecast tells what takes time alone.
var ends = []fleet.State{fleet.Baking, fleet.Committed, fleet.Retiring, fleet.Done}

// passed are the states that the last deployment went through, in their order.
func (w *world) passed() (states []string) {
	id := w.past.History.Last().ID
	for _, rec := range w.recs {
		var e struct {
			Deployment string         `json:"deployment"`
			Progress   fleet.Progress `json:"progress"`
		}
		if rec.Kind != "transition" || json.Unmarshal(rec.Data, &e) != nil || e.Deployment != id || slices.Contains(ends, e.Progress.State) {
			continue
		}
		s := string(e.Progress.State)
		if e.Progress.State == fleet.Shrinking {
			s = fmt.Sprintf("%s down to %d", s, e.Progress.WantOld)
		}
		states = append(states, s)
	}
	return dedupe(states)
}

func planned(f fleet.Forecast) (states []string) {
	for _, ph := range f.Phases[1:] { // a deployment begins planned
		s := string(ph.State)
		if ph.State == fleet.Shrinking {
			s += ph.Title[strings.LastIndex(ph.Title, " down to"):]
		}
		if !slices.Contains(ends, ph.State) {
			states = append(states, s)
		}
	}
	return states
}

// What a forecast says is what a deployment does: the same states, the same
// shares of traffic, as many machines, never fewer that serve, in less time.
func TestADeploymentIsAsForecast(t *testing.T) {
	policies(t, func(name string, p fleet.Policy, n int) {
		if n != 1 && n != 4 {
			return
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				w.size, w.extra = n, 2                            // baseline
				p.OnInconclusive, p.MaxHold = "pass", time.Second // nobody sends traffic
				for _, version := range []string{"1", "2"} {
					f := fleet.ForecastOf(complete(t, p), n, version == "2", 0)
					req := request(version)
					req.Spec.Size, req.Policy = n, p
					watch, began := w.watched(), time.Now()
					_, err := w.d.Deploy(t.Context(), req)
					for errors.Is(err, fleet.ErrPaused) {
						_, err = w.d.Resume(t.Context(), false)
					}
					if err != nil {
						t.Fatal(err)
					}
					if took := time.Since(began); took > f.WorstCase {
						t.Errorf("took %s, at most %s", took, f.WorstCase)
					}
					if err := w.d.Tend(t.Context(), true); err != nil {
						t.Fatal(err)
					}
					least, most := watch()
					compare(t, w.passed(), planned(f))
					if version == "1" {
						continue
					}
					if least < f.Least || most != f.MachinesPeak {
						t.Errorf("%d served, forecast %d; %d machines, forecast %d", least, f.Least, most, f.MachinesPeak)
					}
					compare(t, w.given(), shares(f))
				}
				w.sound("2")
			})
		})
	})
}

func compare(t *testing.T, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("it was\n%q, forecast\n%q", got, want)
	}
}

// given are the permille that the new slot had, one after the other.
func (w *world) given() (out []string) {
	r := w.past.History.Last()
	for _, c := range r.Weights {
		out = append(out, fmt.Sprint(c.Weights[r.New.Group.Slot]))
	}
	return dedupe(out)
}

func shares(f fleet.Forecast) (out []string) {
	for _, ph := range f.Phases {
		if ph.Permille > 0 {
			out = append(out, fmt.Sprint(ph.Permille))
		}
	}
	return dedupe(out)
}

// A way back takes no longer than the forecast says, wherever it begins.
func TestAWayBackIsAsForecast(t *testing.T) {
	longest := time.Duration(0)
	for name, p := range map[string]fleet.Policy{
		"blue-green":        {Steps: []fleet.Step{{Permille: 500, Hold: 20 * time.Second}, {Permille: 1000, Hold: 20 * time.Second}}},
		"rolling, surge":    {Strategy: fleet.Rolling, Roll: fleet.Roll{MaxSurge: 1}},
		"rolling, out":      {Strategy: fleet.Rolling, Roll: fleet.Roll{MaxUnavailable: 1}},
		"rolling, both two": {Strategy: fleet.Rolling, Roll: fleet.Roll{MaxSurge: 2, MaxUnavailable: 2, Batch: 2}},
	} {
		for after := time.Second; after < 60*time.Second; after += 3 * time.Second {
			t.Run(fmt.Sprintf("%s after %s", name, after), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					const n = 4
					boot := fake.Behaviour{Boot: 2 * time.Second}
					w := newWorld(t, map[artifact.Digest]fake.Behaviour{"sha256:1": boot, "sha256:2": boot})
					w.size = n
					p := p
					p.Port, p.Launch, p.Within, p.Drain, p.Restore = 80, time.Second, 5*time.Second, 2*time.Second, 2*time.Second
					if p.Steps == nil {
						p.Steps = []fleet.Step{{Permille: 1000, Hold: 3 * time.Second}}
					}
					p.KeepOld = time.Minute
					f := fleet.ForecastOf(complete(t, p), n, true, 0)
					req := request("1")
					req.Spec.Size, req.Policy = n, p
					if _, err := w.d.Deploy(t.Context(), req); err != nil {
						t.Fatal(err)
					}
					if err := w.d.Tend(t.Context(), true); err != nil {
						t.Fatal(err)
					}
					req.Spec.Image = image("2")
					ctx, cut := context.WithTimeout(t.Context(), after)
					defer cut()
					if _, err := w.d.Deploy(ctx, req); err == nil {
						return // it was done before
					}
					began := time.Now()
					res, err := w.d.Abort(t.Context(), "to see how long it takes")
					if err != nil || res.State != fleet.RolledBack {
						t.Fatal(res.State, res.Reason, err)
					}
					took := time.Since(began)
					if longest = max(longest, took); took > f.WorstBack {
						t.Errorf("the way back took %s, at most %s", took, f.WorstBack)
					}
					w.sound("1")
				})
			})
		}
	}
	if longest < 5*time.Second {
		t.Errorf("the longest took %s: nothing was tried", longest)
	}
}
