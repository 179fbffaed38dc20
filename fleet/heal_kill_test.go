package fleet_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/test/fake"
)

func TestHealIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		if _, err := w.d.Heal(t.Context()); !errors.Is(err, fleet.ErrNothing) {
			t.Errorf("nothing was deployed: %v", err)
		}
		if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
			t.Fatal(err)
		}
		if _, err := w.d.Heal(t.Context(), "web-blue-9"); err == nil || !strings.Contains(err.Error(), "web-blue-9 is no instance") {
			t.Errorf("unknown instance: %v", err)
		}
		if _, err := w.d.Deploy(t.Context(), request("2")); err != nil {
			t.Fatal(err)
		}
		st, gs := w.look()
		var serving string
		for _, g := range gs {
			if st.Weights[g.ID.Slot] == 1000 {
				serving = g.Instances[0].ID
			}
		}
		if _, err := w.d.Heal(t.Context(), serving); !errors.Is(err, fleet.ErrUnfinished) || !strings.Contains(err.Error(), "kept warm until") {
			t.Errorf("an old slot is kept: %v", err)
		}
		if w.started(serving); len(w.names()) != 4 {
			t.Errorf("instances are %v", w.names())
		}
		w.kill(serving) // a dead one is another matter
		if h, err := w.d.Heal(t.Context()); err != nil || len(h.Replaced) != 1 {
			t.Errorf("%v %v", h, err)
		}
		w.healed("2")
		if err := w.d.Tend(t.Context(), true); err != nil {
			t.Errorf("the deployment does not go on: %v", err)
		}
		w.healed("2")
		w.crashAt = len(w.recs) + 8
		if _, _, killed := w.run(func() (fleet.Result, error) { return w.d.Deploy(t.Context(), request("3")) }); !killed {
			t.Fatal("not killed")
		}
		if _, err := w.d.Heal(t.Context()); !errors.Is(err, fleet.ErrUnfinished) || !strings.Contains(err.Error(), "rebake deploy resume web") {
			t.Errorf("a deployment is unfinished: %v", err)
		}
	})
}

// Kill the process after every record of a heal; the next heal, or the next
// deployment, brings the fleet right, and nobody is left without service.
func TestHealKilledAfterEveryRecord(t *testing.T) {
	for name, c := range map[string]struct {
		size, percent int
		dead, live    bool
	}{
		"a dead one":     {size: 2, dead: true},
		"a live one":     {size: 2, live: true},
		"a fleet of one": {size: 1, live: true},
		"all must serve": {size: 2, percent: 100, live: true},
		"dead and live":  {size: 3, percent: 60, dead: true, live: true},
	} {
		for _, next := range []string{"heal", "deploy", "rolling"} {
			t.Run(name+", "+next, func(t *testing.T) {
				points := 0
				for more := true; more && !t.Failed(); points++ {
					synctest.Test(t, func(t *testing.T) {
						w, ids := healWorld(t, c.size, minHealthy(c.percent))
						var live []string
						if c.dead {
							w.kill(ids[0])
						}
						if c.live {
							live = ids[c.size-1:]
						}
						w.crashAt = len(w.recs) + points + 1
						stop := w.traffic()
						_, err, killed := w.run(func() (fleet.Result, error) {
							_, err := w.d.Heal(t.Context(), live...)
							return fleet.Result{}, err
						})
						if more = killed; !killed {
							if stop(); err != nil {
								t.Error(err)
							}
							return
						}
						time.Sleep(time.Second)
						want := "1"
						if next == "heal" {
							_, err = w.d.Heal(t.Context())
						} else {
							want = "2"
							w.extra = 1 // the temporary instance goes last
							req := request("2")
							req.Spec.Size, req.Wait = c.size, true
							if next == "rolling" {
								req.Policy.Strategy, req.Policy.Roll = fleet.Rolling, fleet.Roll{MaxSurge: 1}
							}
							_, err = w.d.Deploy(t.Context(), req)
							err = errors.Join(err, w.d.Tend(t.Context(), true)) // what no deployment knows
						}
						sent, failed := stop()
						if err != nil {
							t.Error(err)
						}
						if failed != 0 {
							t.Errorf("%d of %d requests failed", failed, sent)
						}
						w.healed(want)
						if t.Failed() {
							t.Log("killed at record ", points+1, " of the heal")
						}
					})
				}
				if least := 4; points < least {
					t.Errorf("only %d points of a heal were tried", points)
				}
			})
		}
	}
}

// While failed instances are kept for a look, their baseline is the deployment's.
func TestHealLeavesABaselineAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ids := healWorld(t, 2, nil)
		w.pool.Behave["sha256:bad"] = fake.Behaviour{Breaks: 1500 * time.Millisecond}
		req := request("bad")
		req.Policy.Gates = []fleet.Gate{{Canary: &fleet.CanaryGate{Metric: "errors", Baseline: 1}}}
		req.Policy.Quarantine = time.Hour
		if res, err := w.d.Deploy(t.Context(), req); !errors.Is(err, fleet.ErrRolledBack) || res.State != fleet.Quarantined || len(w.names()) != 5 {
			t.Fatal(res.State, err, w.names())
		}
		before := time.Now()
		if h, err := w.d.Heal(t.Context(), ids[1]); err != nil || replaced(h) != "2 live" || len(w.names()) != 5 || !slices.Equal(w.fresh(before), ids[1:]) {
			t.Errorf("%v %v: there are %v", h, err, w.names())
		}
		if err := w.d.Tend(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		w.extra = 1 // the baseline
		w.healed("1")
	})
}

// Calls fail, or are done and say that they failed: whoever tries again brings it
// right, and nobody is left without service meanwhile.
func TestHealWithFaults(t *testing.T) {
	tries := 0
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			n := 1 + int(seed%3)
			w, ids := healWorld(t, n, minHealthy(int(50+50*(seed%2))))
			if n > 1 {
				w.kill(ids[0])
			}
			w.rnd = rand.New(rand.NewPCG(seed, 1))
			w.inject(seed)
			stop := w.traffic()
			var err error
			for range 100 {
				tries++
				if _, err = w.d.Heal(t.Context(), ids[n-1]); err == nil {
					break
				}
			}
			w.faulty(false)
			if err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
			if _, err := w.d.Heal(t.Context()); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
			if sent, failed := stop(); failed != 0 {
				t.Errorf("seed %d: %d of %d requests failed", seed, failed, sent)
			}
			w.extra = 1
			w.healed("1")
		})
	}
	if tries < 70 {
		t.Errorf("only %d tries in 60 worlds: the faults are not hit", tries)
	}
}
