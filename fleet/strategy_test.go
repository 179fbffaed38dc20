package fleet_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/test/fake"
)

// rolling is a request to replace n instances a few at a time.
func rolling(version string, n int, roll fleet.Roll) fleet.Request {
	req := request(version)
	req.Spec.Size = n
	req.Policy.Strategy, req.Policy.Roll = fleet.Rolling, roll
	req.Policy.Steps = []fleet.Step{{Permille: 1000, Hold: time.Second}}
	return req
}

var rolls = []fleet.Roll{{MaxSurge: 1}, {MaxUnavailable: 1}, {MaxSurge: 1, MaxUnavailable: 1}, {MaxSurge: 2, Batch: 2}, {MaxUnavailable: 2, Batch: 3}, {MaxSurge: 4, Batch: 4}}

// watched reads the capacity of the fleet every few milliseconds.
func (w *world) watched() (stop func() (least, most int)) {
	quit, done := make(chan struct{}), make(chan struct{})
	least, most := 1<<30, 0
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			case <-time.After(10 * time.Millisecond):
			}
			st, gs := w.look()
			n := 0
			for s, weight := range st.Weights {
				if weight > 0 {
					n += able(st, s)
				}
			}
			all := 0
			for _, g := range gs {
				all += len(g.Instances)
			}
			least, most = min(least, n), max(most, all)
		}
	}()
	return func() (int, int) { close(quit); <-done; return least, most }
}

func TestARollingDeploymentKeepsItsBounds(t *testing.T) {
	for _, roll := range rolls {
		for _, n := range []int{1, 3, 4} {
			t.Run(fmt.Sprintf("%+v of %d", roll, n), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, nil)
					w.size = n
					_, err := w.d.Deploy(t.Context(), rolling("1", n, roll))
					if n-roll.MaxUnavailable < (n+1)/2 {
						if err == nil || !strings.Contains(err.Error(), "max_unavailable") {
							t.Fatalf("%d of %d may be out: %v", roll.MaxUnavailable, n, err)
						}
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					w.sound("1")
					stop, watch := w.traffic(), w.watched()
					res, err := w.d.Deploy(t.Context(), rolling("2", n, roll))
					if err != nil || res.Verdict() != "promoted" {
						t.Fatal(res.State, err)
					}
					if err := w.d.Tend(t.Context(), true); err != nil {
						t.Fatal(err)
					}
					least, most := watch()
					sent, failed := stop()
					if failed != 0 || sent < 50 {
						t.Errorf("%d of %d requests failed", failed, sent)
					}
					if least < n-roll.MaxUnavailable || most > n+roll.MaxSurge {
						t.Errorf("between %d and %d instances, want %d to %d", least, most, n-roll.MaxUnavailable, n+roll.MaxSurge)
					}
					w.sound("2")
				})
			})
		}
	}
}

func TestARollingDeploymentOfABadImageGoesBackWithinItsBounds(t *testing.T) {
	for name, c := range failures {
		for _, roll := range rolls {
			t.Run(fmt.Sprintf("%s %+v", name, roll), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					const n = 4
					w := newWorld(t, map[artifact.Digest]fake.Behaviour{"sha256:bad": c.b})
					w.size = n
					if _, err := w.d.Deploy(t.Context(), rolling("1", n, roll)); err != nil {
						t.Fatal(err)
					}
					watch := w.watched()
					req := rolling("bad", n, roll)
					req.Policy.Steps[0].Hold = 3 * time.Second
					res, err := w.d.Deploy(t.Context(), req)
					least, most := watch()
					if !errors.Is(err, fleet.ErrRolledBack) || res.State != fleet.RolledBack {
						t.Fatalf("%s %v", res.State, err)
					}
					if most > n+roll.MaxSurge {
						t.Errorf("%d instances at once, at most %d", most, n+roll.MaxSurge)
					}
					if least < n-roll.MaxUnavailable-max(roll.Batch, 1) { // the bad ones do not count
						t.Errorf("only %d served", least)
					}
					w.sound("1")
				})
			})
		}
	}
}

func TestARollingDeploymentKilledAtEachRecordGoesOn(t *testing.T) {
	for _, b := range []fake.Behaviour{{}, {Breaks: 2500 * time.Millisecond}} {
		for _, roll := range rolls[:3] {
			t.Run(fmt.Sprintf("%+v %+v", b, roll), func(t *testing.T) {
				points := 0
				for more := true; more; points++ {
					synctest.Test(t, func(t *testing.T) {
						w := newWorld(t, map[artifact.Digest]fake.Behaviour{"sha256:2": b})
						w.size = 3
						if _, err := w.d.Deploy(t.Context(), rolling("1", 3, roll)); err != nil {
							t.Fatal(err)
						}
						w.crashAt = len(w.recs) + 1 + points
						stop := w.traffic()
						req := rolling("2", 3, roll)
						req.Wait = true
						_, _, more = w.run(func() (fleet.Result, error) { return w.d.Deploy(t.Context(), req) })
						time.Sleep(300 * time.Millisecond)
						res, err := w.d.Resume(t.Context(), true)
						if err != nil && !errors.Is(err, fleet.ErrRolledBack) && !errors.Is(err, fleet.ErrNothing) {
							t.Fatalf("record %d: %s %v", points, res.State, err)
						}
						sent, failed := stop()
						if failed != 0 && b.Breaks == 0 {
							t.Errorf("record %d: %d of %d failed", points, failed, sent)
						}
						h, _ := fleet.Replay(w.recs)
						if !h.Last().State.Finished() {
							t.Fatalf("record %d: rests in %q", points, h.Last().State)
						}
						w.sound(h.Current().Spec.Image.Version)
					})
					if t.Failed() {
						return
					}
				}
				if points < 20 {
					t.Errorf("%d points", points)
				}
			})
		}
	}
}

func TestAPauseWaitsForAPerson(t *testing.T) {
	req := request("2")
	req.Policy.Steps = []fleet.Step{{Permille: 100, Hold: time.Second, Pause: true, PauseFor: time.Hour}, {Permille: 1000, Hold: time.Second, Pause: true}}
	for name, act := range map[string]func(*testing.T, *world) string{
		"resumed": func(t *testing.T, w *world) string {
			if _, err := w.d.Resume(t.Context(), false); !errors.Is(err, fleet.ErrPaused) { // the second pause
				t.Fatal(err)
			}
			if st, _ := w.look(); st.Weights[fleet.Green] != 1000 {
				t.Errorf("weights %v", st.Weights)
			}
			if res, err := w.d.Resume(t.Context(), false); err != nil || res.State != fleet.Baking {
				t.Fatal(res.State, err)
			}
			return "2"
		},
		"aborted": func(t *testing.T, w *world) string {
			if res, err := w.d.Abort(t.Context(), "no"); err != nil || res.State != fleet.RolledBack {
				t.Fatal(res.State, err)
			}
			return "1"
		},
		"deployed again": func(t *testing.T, w *world) string {
			if _, err := w.d.Deploy(t.Context(), req); !errors.Is(err, fleet.ErrPaused) {
				t.Fatal(err)
			}
			if _, err := w.d.Deploy(t.Context(), request("3")); !errors.Is(err, fleet.ErrPaused) {
				t.Fatal(err)
			}
			if _, err := w.d.Abort(t.Context(), "no"); err != nil {
				t.Fatal(err)
			}
			return "1"
		},
		"forgotten": func(t *testing.T, w *world) string {
			time.Sleep(61 * time.Minute)
			if err := w.d.Tend(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			h, _ := fleet.Replay(w.recs)
			if l := h.Last(); l.State != fleet.RolledBack || !strings.Contains(l.Reason, "nobody resumed the pause at 10% within 1h0m0s") {
				t.Errorf("%s %s", l.State, l.Reason)
			}
			return "1"
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
					t.Fatal(err)
				}
				res, err := w.d.Deploy(t.Context(), req)
				if !errors.Is(err, fleet.ErrPaused) || res.State != fleet.Paused {
					t.Fatal(res.State, err)
				}
				if st, _ := w.look(); st.Weights[fleet.Green] != 100 {
					t.Errorf("weights %v", st.Weights)
				}
				time.Sleep(10 * time.Minute)
				w.sound(act(t, w))
			})
		})
	}
}

func TestAFailedSlotStaysInQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, map[artifact.Digest]fake.Behaviour{"sha256:bad": {Breaks: 1500 * time.Millisecond}})
		if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
			t.Fatal(err)
		}
		req := request("bad")
		req.Policy.Quarantine = 10 * time.Minute
		res, err := w.d.Deploy(t.Context(), req)
		if !errors.Is(err, fleet.ErrRolledBack) || res.State != fleet.Quarantined || res.Evidence == "" {
			t.Fatal(res.State, res.Evidence, err)
		}
		st, gs := w.look()
		if len(gs) != 2 || len(st.Members[fleet.Green]) != 0 || st.Weights[fleet.Blue] != 1000 {
			t.Errorf("%d groups, %v", len(gs), st)
		}
		if err := w.d.Tend(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if _, gs := w.look(); len(gs) != 2 {
			t.Error("they went before their time")
		}
		time.Sleep(11 * time.Minute)
		if err := w.d.Tend(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		w.sound("1")
		// a fix does not wait for it
		if _, err := w.d.Deploy(t.Context(), req); !errors.Is(err, fleet.ErrRolledBack) {
			t.Fatal(err)
		}
		if _, err := w.d.Deploy(t.Context(), request("2")); err != nil {
			t.Fatal(err)
		}
		w.sound("2")
	})
}

func TestOnlyTheApprovedPlanIsCarriedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		first := request("1")
		_, id, err := w.d.Plan(t.Context(), first, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		first.Approve = "000000000000"
		if _, err := w.d.Deploy(t.Context(), first); !errors.Is(err, fleet.ErrNotApproved) || !strings.Contains(err.Error(), id) {
			t.Fatal(err)
		}
		w.sound("")
		first.Approve = id
		if _, err := w.d.Deploy(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		w.sound("1")
		next := request("2")
		next.Approve = id // of another image, on another state
		if _, err := w.d.Deploy(t.Context(), next); !errors.Is(err, fleet.ErrNotApproved) {
			t.Fatal(err)
		}
		w.sound("1")
	})
}

func TestAnotherImageWaitsForAnUnfinishedDeployment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
			t.Fatal(err)
		}
		w.crashAt = len(w.recs) + 8
		if _, _, killed := w.run(func() (fleet.Result, error) { return w.d.Deploy(t.Context(), request("2")) }); !killed {
			t.Fatal("it was not killed")
		}
		if _, err := w.d.Deploy(t.Context(), request("3")); !errors.Is(err, fleet.ErrUnfinished) || !strings.Contains(err.Error(), "web:2 is in state") {
			t.Fatal(err)
		}
		if _, err := w.d.Deploy(t.Context(), request("2")); err != nil { // the same goes on
			t.Fatal(err)
		}
		w.sound("2")
	})
}

// Each session that changes something has an epoch of its own, higher than all
// before, written before anything else.
func TestEachSessionHasAnEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		for _, v := range []string{"1", "2", "2", "3"} { // the same again changes nothing
			if _, err := w.d.Deploy(t.Context(), request(v)); err != nil {
				t.Fatal(err)
			}
		}
		last, n := int64(0), 0
		for i, rec := range w.recs {
			var l struct{ Epoch int64 }
			switch {
			case rec.Kind != "lease" && i == 0:
				t.Error("the first record is no lease")
			case rec.Kind != "lease":
				continue
			}
			if err := json.Unmarshal(rec.Data, &l); err != nil || l.Epoch <= last {
				t.Errorf("record %d: epoch %d after %d, %v", rec.Seq, l.Epoch, last, err)
			}
			last, n = l.Epoch, n+1
		}
		if n != 3 {
			t.Errorf("%d leases for three deployments", n)
		}
	})
}
