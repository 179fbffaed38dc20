package fleet_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/fault"
	"github.com/rebake/rebake/test/fake"
)

// behind puts the plan's faults before pool and router, once 1 serves, and
// deploys 2 under traffic.
func behind(t *testing.T, plan fault.Plan, req fleet.Request) (w *world, in *fault.Injector, res fleet.Result, sent, failed int, err error) {
	t.Helper()
	w = newWorld(t, map[artifact.Digest]fake.Behaviour{"sha256:2": {Boot: time.Second}})
	if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
		t.Fatal(err)
	}
	in = fault.New(plan)
	w.d.Pool, w.d.Router = in.Pool(guardPool{w}), in.Router(guardRouter{w})
	stop := w.traffic()
	res, err = w.d.Deploy(t.Context(), req)
	sent, failed = stop()
	return w, in, res, sent, failed, err
}

// Each call of a deployment goes wrong once: it fails, or it is done and says
// that it was not, or it is refused twice. The deployment gets through and no
// request notices.
func TestEachCallMayGoWrongOnce(t *testing.T) {
	req := request("2")
	req.Wait, req.Policy.KeepOld = true, time.Second
	for _, as := range []fault.Kind{fault.Failed, fault.Lost, fault.Throttled} {
		calls := 1
		for k := 1; k <= calls; k++ {
			synctest.Test(t, func(t *testing.T) {
				w, in, res, sent, failed, err := behind(t, fault.Plan{At: k, As: as, Burst: 2}, req)
				if err != nil || res.State != fleet.Done || failed > 0 || sent == 0 {
					t.Errorf("call %d %s: %s, %v; %d of %d requests failed", k, as, res.State, err, failed, sent)
				}
				w.sound("2")
				calls = in.Changes()
			})
		}
		if calls < 8 {
			t.Errorf("a deployment makes only %d calls", calls)
		}
		t.Logf("%s: %d calls, each once", as, calls)
	}
}

// A call that goes wrong each time is a failed deployment: the old image serves.
// Of a traffic write nobody knows whether it will still be done, so that nothing is
// removed until one works again.
func TestACallThatNeverWorks(t *testing.T) {
	for _, call := range []string{"launch", "attach", "ready", "weigh"} {
		for name, c := range map[string]struct {
			plan fault.Plan
			says string
		}{
			"fails":     {fault.Plan{Fail: 1}, "injected: it did not work"},
			"throttled": {fault.Plan{Throttle: 1}, "injected: too many calls"},
		} {
			t.Run(call+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c.plan.Only = []string{call}
					w, in, res, _, failed, err := behind(t, c.plan, request("2"))
					want := map[bool]error{true: fleet.ErrBlocked, false: fleet.ErrRolledBack}[call == "weigh"]
					if !errors.Is(err, want) || !strings.Contains(res.Reason, c.says) || failed > 0 {
						t.Errorf("%s: %v; %d requests failed", res.State, err, failed)
					}
					if st, gs := w.look(); st.Weights[fleet.Blue] != 1000 || call == "weigh" && len(gs) != 2 {
						t.Errorf("weights %v, %d groups", st.Weights, len(gs))
					}
					in.Set(false)
					if call == "weigh" {
						if res, err = w.d.Abort(t.Context(), "by hand"); err != nil || res.State != fleet.RolledBack {
							t.Errorf("abort, once calls work: %s, %v", res.State, err)
						}
					}
					w.sound("1")
				})
			})
		}
	}
}

// Each answer comes a second late: it takes longer, and that is all.
func TestSlowCallsOnlyTakeTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		req := request("2")
		req.Policy.Launch, req.Policy.Within, req.Policy.Verify, req.Policy.Restore = time.Minute, time.Minute, time.Minute, time.Minute
		began := time.Now()
		w, _, res, _, failed, err := behind(t, fault.Plan{Slow: 1, Delay: time.Second}, req)
		if err != nil || res.State != fleet.Baking || failed > 0 || time.Since(began) < 15*time.Second {
			t.Errorf("%s after %s: %v; %d requests failed", res.State, time.Since(began), err, failed)
		}
		w.sound("2")
	})
}

// Pool and router sometimes answer with what was true before. The deployment
// gets through, or goes back, or freezes as it does when somebody else changes the
// weights; no request fails, and without the lies it gets through.
func TestALieMayFreezeADeploymentAndHarmsNobody(t *testing.T) {
	came := map[fleet.State]int{}
	for seed := range uint64(200) {
		synctest.Test(t, func(t *testing.T) {
			w, in, res, sent, failed, err := behind(t, fault.Plan{Seed: seed, Lie: 0.02 * float64(seed%5+1)}, request("2"))
			came[res.State]++
			if failed > 0 {
				t.Errorf("seed %d: %d of %d requests failed on the way to %s: %v", seed, failed, sent, res.State, err)
			}
			in.Set(false)
			if res.State == fleet.Blocked {
				if res, err = w.d.Resume(t.Context(), false); err != nil {
					t.Errorf("seed %d: resume: %s, %v", seed, res.State, err)
				}
			}
			if err := w.d.Tend(t.Context(), true); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
			w.sound(map[bool]string{true: "2", false: "1"}[res.State != fleet.RolledBack])
		})
	}
	t.Logf("came to %v", came)
	if came[fleet.Baking] < 20 || came[fleet.Blocked] < 5 {
		t.Errorf("the lies are not told, or always: %v", came)
	}
}

// The clock is set forward or back under a deployment, at any moment, by an
// hour. A good image gets through or is refused, a bad one is refused, in its
// time and no later; a hold that was not watched is held.
func TestTheClockJumps(t *testing.T) {
	for _, jump := range []time.Duration{time.Hour, -time.Hour} {
		for _, version := range []string{"2", "never", "breaks"} {
			for at := 100 * time.Millisecond; at < 8*time.Second; at += 700 * time.Millisecond {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, map[artifact.Digest]fake.Behaviour{
						"sha256:2": {Boot: 2 * time.Second}, "sha256:never": {Never: true}, "sha256:breaks": {Breaks: 3 * time.Second},
					})
					if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
						t.Fatal(err)
					}
					began := time.Now()
					w.d.Now = func() time.Time { // a wall clock: without what only one process knows
						now := time.Now().Round(0)
						if time.Since(began) >= at {
							now = now.Add(jump)
						}
						return now
					}
					req := request(version)
					req.Policy.Steps = []fleet.Step{{Permille: 500, Hold: 5 * time.Second}}
					stop := w.traffic()
					res, err := w.d.Deploy(t.Context(), req)
					sent, failed := stop()
					took := time.Since(began)
					what := fmt.Sprintf("%s, by %s after %s: %s in %s: %v", version, jump, at, res.State, took, err)
					switch {
					case version == "2" && err == nil && res.State == fleet.Baking, errors.Is(err, fleet.ErrRolledBack):
					default:
						t.Error(what)
					}
					// Of a breaking image some requests fail: those between its first wrong answer and the next check.
					if failed > 0 && version != "breaks" || sent == 0 {
						t.Errorf("%s: %d of %d requests failed", what, failed, sent)
					}
					if took > 40*time.Second {
						t.Errorf("%s: it waited for the clock", what)
					}
					w.sound(map[bool]string{true: "2", false: "1"}[err == nil])
				})
			}
		}
	}
}

// A deployment was killed at the begin of its first hold. Whoever goes on has a
// clock that was set back, or comes an hour later: three holds of three seconds are
// held all the same, and not for longer.
func TestAHoldIsHeldWhateverTheClockSays(t *testing.T) {
	for _, jump := range []time.Duration{0, -time.Hour, time.Hour} {
		t.Run(jump.String(), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { heldAfter(t, jump) }) })
	}
}

func heldAfter(t *testing.T, jump time.Duration) {
	w := newWorld(t, nil)
	if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
		t.Fatal(err)
	}
	holding := 0
	w.d.Recorded = func(kind, what string) {
		if kind == "transition" && what == string(fleet.Holding) {
			if holding++; holding == 1 {
				panic(crash{})
			}
		}
	}
	req := request("2")
	for i := range req.Policy.Steps {
		req.Policy.Steps[i].Hold = 3 * time.Second
	}
	if _, _, killed := w.run(func() (fleet.Result, error) { return w.d.Deploy(t.Context(), req) }); !killed {
		t.Fatal("it did not come to a hold")
	}
	w.d.Recorded = nil
	w.d.Now = func() time.Time { return time.Now().Add(jump) }
	began := time.Now()
	res, err := w.d.Resume(t.Context(), false)
	if took := time.Since(began); err != nil || res.State != fleet.Baking || took < 7*time.Second || took > 12*time.Second {
		t.Errorf("%s after %s: %v", res.State, took, err)
	}
}
