package fleet_test

import (
	"context"
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

// cases of images that are not good: what the verdict must say.
var failures = map[string]struct {
	b      fake.Behaviour
	reason string
}{
	"never boots":             {fake.Behaviour{Never: true}, "did not become healthy within 10s: router sees L7TOUT"},
	"answers 500":             {fake.Behaviour{Status: 500}, "did not become healthy within 10s: router sees L7STS/500"},
	"dies while warming":      {fake.Behaviour{Boot: 5 * time.Second, Dies: time.Second}, "stopped before it was healthy"},
	"dies under traffic":      {fake.Behaviour{Dies: 1500 * time.Millisecond}, "died"},
	"breaks under traffic":    {fake.Behaviour{Breaks: 1500 * time.Millisecond}, "router sees L7STS/500"},
	"flaps once in a while":   {fake.Behaviour{Flap: 450 * time.Millisecond}, "became unhealthy and healthy again 3 times"},
	"breaks at the last step": {fake.Behaviour{Breaks: 2700 * time.Millisecond}, "router sees L7STS/500"},
}

func TestAGoodImageReplacesTheOldOneUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
			t.Fatal(err)
		}
		w.sound("1")
		stop := w.traffic()
		res, err := w.d.Deploy(t.Context(), request("2"))
		if err != nil || res.State != fleet.Baking || res.Verdict() != "promoted" {
			t.Fatal(res.State, err)
		}
		w.sound("2") // the old slot is kept
		var shares []int
		for _, c := range res.Weights {
			shares = append(shares, c.Weights[res.New.Group.Slot])
		}
		if !slices.Equal(shares, []int{100, 500, 1000}) {
			t.Errorf("weights went %v", shares)
		}
		if s := res.SwapSeconds(); s < 2 || s > 2.6 {
			t.Errorf("the swap took %.2fs: two holds of 1s and requests of 0.3s", s)
		}
		if err := w.d.Tend(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if _, gs := w.look(); len(gs) != 2 {
			t.Errorf("the old slot went before its time")
		}
		time.Sleep(time.Minute)
		if err := w.d.Tend(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		sent, failed := stop()
		if failed != 0 || sent < 1000 {
			t.Errorf("%d of %d requests failed", failed, sent)
		}
		if _, gs := w.look(); len(gs) != 1 {
			t.Errorf("the old slot is still there")
		}
		w.sound("2")
	})
}

func TestABadImageIsRefusedAndTheOldOneServes(t *testing.T) {
	for name, c := range failures {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, map[artifact.Digest]fake.Behaviour{"sha256:bad": c.b})
				if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
					t.Fatal(err)
				}
				res, err := w.d.Deploy(t.Context(), request("bad"))
				if !errors.Is(err, fleet.ErrRolledBack) || !strings.Contains(err.Error(), c.reason) {
					t.Fatalf("%v, want %q", err, c.reason)
				}
				if res.State != fleet.RolledBack || res.Evidence == "" {
					t.Errorf("%s, evidence %q", res.State, res.Evidence)
				}
				w.sound("1")
			})
		})
	}
}

// With refuse_after an image that answers 500 does not take all of within; one
// that is only slow, or wrong for a while, does.
func TestAWrongAnswerIsRefusedAfterItsTime(t *testing.T) {
	for name, c := range map[string]struct {
		b      fake.Behaviour
		reason string // "" is deployed
		within time.Duration
	}{
		"500 from the start": {fake.Behaviour{Status: 500}, "has answered wrongly for 3s: router sees L7STS/500", 4 * time.Second},
		"never boots":        {fake.Behaviour{Never: true}, "did not become healthy within 10s", 11 * time.Second},
		"slow":               {fake.Behaviour{Boot: 8 * time.Second}, "", time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, map[artifact.Digest]fake.Behaviour{"sha256:bad": c.b})
				if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
					t.Fatal(err)
				}
				req, began := request("bad"), time.Now()
				req.Policy.Refuse = 3 * time.Second
				_, err := w.d.Deploy(t.Context(), req)
				if c.reason == "" {
					if err != nil {
						t.Error(err)
					}
					return
				}
				if !errors.Is(err, fleet.ErrRolledBack) || !strings.Contains(err.Error(), c.reason) {
					t.Errorf("%v, want %q", err, c.reason)
				}
				if took := time.Since(began); took > c.within {
					t.Errorf("refused after %s", took)
				}
				w.sound("1")
			})
		})
	}
}

func TestAFirstImageThatIsBadLeavesNothing(t *testing.T) {
	for name, c := range failures {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, map[artifact.Digest]fake.Behaviour{"sha256:bad": c.b})
				req := request("bad")
				req.Policy.Steps[2].Hold = 5 * time.Second // the first goes there at once
				if _, err := w.d.Deploy(t.Context(), req); !errors.Is(err, fleet.ErrRolledBack) {
					t.Fatal(err)
				}
				w.sound("")
			})
		})
	}
}

func TestRollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		for _, v := range []string{"1", "2"} {
			if _, err := w.d.Deploy(t.Context(), request(v)); err != nil {
				t.Fatal(err)
			}
		}
		stop := w.traffic()
		began := time.Now()
		res, err := w.d.Rollback(t.Context(), "rolled back by hand")
		if err != nil || res.State != fleet.RolledBack {
			t.Fatal(res.State, err)
		}
		if d := res.Weights[len(res.Weights)-1].Time.Sub(began); d > 100*time.Millisecond {
			t.Errorf("traffic was back after %s", d)
		}
		w.sound("1")
		// the old slot is gone: a new deployment of what was proven
		for _, v := range []string{"2", "3"} {
			if _, err := w.d.Deploy(t.Context(), request(v)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.d.Tend(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if res, err := w.d.Rollback(t.Context(), "by hand"); err != nil || res.New.Spec.Image.Version != "2" {
			t.Fatal(res.New, err)
		}
		w.sound("2")
		if err := w.d.Tend(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if res, err := w.d.Rollback(t.Context(), "by hand"); err != nil || res.New.Spec.Image.Version != "1" {
			t.Fatalf("a second rollback went to %v, %v: not back to the one that was left", res.New.Spec.Image.Version, err)
		}
		if sent, failed := stop(); failed != 0 {
			t.Errorf("%d of %d requests failed", failed, sent)
		}
	})
}

func TestTheSameRequestAgainDoesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		for i := range 2 {
			res, err := w.d.Deploy(t.Context(), request("1"))
			if err != nil || res.Unchanged != (i == 1) {
				t.Fatal(i, res.Unchanged, err)
			}
		}
		if len(w.router.Writes) != 1 {
			t.Errorf("%d traffic writes", len(w.router.Writes))
		}
	})
}

func TestSomebodyElsesWeightsFreezeTheDeployment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(time.Second)
			w.router.Edit(map[fleet.Slot]int{fleet.Blue: 300, fleet.Green: 700})
		}()
		res, err := w.d.Deploy(t.Context(), request("2"))
		if !errors.Is(err, fleet.ErrBlocked) || !strings.Contains(err.Error(), "somebody else changed them") {
			t.Fatal(err)
		}
		if st, _ := w.look(); st.Weights[fleet.Green] != 700 {
			t.Errorf("the weights were touched: %v", st.Weights)
		}
		if _, err := w.d.Deploy(t.Context(), request("3")); !errors.Is(err, fleet.ErrBlocked) {
			t.Errorf("another deployment of a blocked fleet: %v", err)
		}
		if res, err = w.d.Abort(t.Context(), "by hand"); err != nil || res.State != fleet.RolledBack {
			t.Fatal(res.State, err)
		}
		w.sound("1")
	})
}

// Whenever it happens: before the first write, and in the last hold, after which
// nothing is written any more.
func TestSomebodyElsesWeightsAreSeenAtAnyTime(t *testing.T) {
	for name, at := range map[string]time.Duration{"while it warms up": 3 * time.Second, "while it is verified": 6500 * time.Millisecond, "in the last hold": 9500 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, map[artifact.Digest]fake.Behaviour{"sha256:2": {Boot: 5 * time.Second}})
				if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
					t.Fatal(err)
				}
				w.d.Gate = func(context.Context, fleet.Instance) error { time.Sleep(time.Second); return nil }
				go func() {
					time.Sleep(at)
					w.router.Edit(map[fleet.Slot]int{fleet.Blue: 999, fleet.Green: 1})
				}()
				res, err := w.d.Deploy(t.Context(), request("2"))
				if !errors.Is(err, fleet.ErrBlocked) {
					t.Fatal(res.State, err)
				}
				if st, _ := w.look(); st.Weights[fleet.Green] != 1 {
					t.Errorf("the weights were touched: %v", st.Weights)
				}
			})
		})
	}
}

func TestAFixCanBeDeployedWhereGoingBackIsNotSafe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
			t.Fatal(err)
		}
		res, err := w.d.Deploy(t.Context(), request("2"))
		if err != nil {
			t.Fatal(err)
		}
		_, gs := w.look()
		for _, g := range gs {
			if g.ID == res.Old.Group {
				for _, i := range g.Instances {
					w.pool.Kill(i.ID)
				}
			}
		}
		_, err = w.d.Rollback(t.Context(), "by hand")
		if !errors.Is(err, fleet.ErrBlocked) || !strings.Contains(err.Error(), "going back is not safe: 0 of 2 old instances are healthy, and 2 of 2 new ones") {
			t.Fatal(err)
		}
		if st, _ := w.look(); st.Weights[res.New.Group.Slot] != 1000 {
			t.Errorf("traffic left the instances that serve: %v", st.Weights)
		}
		req := request("3")
		req.Force, req.Wait = true, true
		if res, err := w.d.Deploy(t.Context(), req); err != nil || res.State != fleet.Done {
			t.Fatal(res.State, err)
		}
		w.sound("3")
	})
}

// Kill the process after every record of a deployment, good and bad, and of a
// rollback; whoever comes next brings it to an end, and nobody is left without service.
func TestKilledAfterEveryRecordAndResumed(t *testing.T) {
	for name, b := range map[string]fake.Behaviour{"good": {}, "500": {Status: 500}, "breaks under traffic": {Breaks: 2500 * time.Millisecond}} {
		for _, next := range []string{"resume", "abort", "same deploy"} {
			for _, kind := range []string{"record", "call"} { // after the record; after the call, before its effect is written
				t.Run(name+", "+kind+", "+next, func(t *testing.T) {
					points := 0
					for n := 1; ; n++ {
						more := false
						synctest.Test(t, func(t *testing.T) { more = killedAt(t, b, kind, n, next) })
						if !more {
							break
						}
						points++
					}
					if want := map[string]int{"record": 15, "call": 4}[kind]; points < want { // a 500 never gets to traffic
						t.Errorf("only %d points of a deployment were tried, want %d", points, want)
					}
				})
			}
		}
	}
}

func killedAt(t *testing.T, b fake.Behaviour, kind string, n int, next string) bool {
	w := newWorld(t, map[artifact.Digest]fake.Behaviour{"sha256:2": b})
	if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
		t.Fatal(err)
	}
	if kind == "call" {
		w.dieIn = n
	} else {
		w.crashAt = len(w.recs) + n
	}
	stop := w.traffic()
	req := request("2")
	req.Wait = true
	_, _, killed := w.run(func() (fleet.Result, error) { return w.d.Deploy(t.Context(), req) })
	if !killed {
		stop()
		return false
	}
	time.Sleep(300 * time.Millisecond)
	var res fleet.Result
	var err error
	switch next {
	case "resume":
		res, err = w.d.Resume(t.Context(), true)
	case "same deploy":
		res, err = w.d.Deploy(t.Context(), req)
	case "abort":
		res, err = w.d.Abort(t.Context(), "by hand")
		if errors.Is(err, fleet.ErrUnfinished) || errors.Is(err, fleet.ErrNothing) { // past the point of no return, or only kept
			res, err = w.d.Resume(t.Context(), true)
			if errors.Is(err, fleet.ErrNothing) {
				err = nil
			}
		}
	}
	sent, failed := stop()
	at := fmt.Sprintf("killed at %s %d", kind, n)
	if err != nil && !errors.Is(err, fleet.ErrRolledBack) && !errors.Is(err, fleet.ErrNothing) {
		t.Fatalf("%s: %v", at, err)
	}
	h, rerr := fleet.Replay(w.recs)
	if rerr != nil {
		t.Fatal(rerr)
	}
	if !h.Last().State.Finished() {
		t.Fatalf("%s: it rests in %q (%v %v)", at, h.Last().State, res.State, err)
	}
	want := "1"
	if h.Last().State == fleet.Done {
		want = h.Last().New.Spec.Image.Version
	}
	if len(h) == 1 { // killed with nothing written but who it was
		w.sound("1")
		return true
	}
	if b == (fake.Behaviour{}) && next != "abort" && want != "2" {
		t.Fatalf("%s: a good image was not deployed: %s", at, h.Last().Reason)
	}
	if b.Status != 0 && want != "1" {
		t.Fatalf("%s: a broken image was deployed", at)
	}
	w.sound(want)
	if b.Breaks == 0 && failed != 0 {
		t.Errorf("%s: %d of %d requests failed", at, failed, sent)
	}
	if t.Failed() {
		t.Fatal(at)
	}
	return true
}

// Any image that the fleet ran to the end can be gone back to by its version.
func TestRollbackToAVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, map[artifact.Digest]fake.Behaviour{"sha256:bad": {Never: true}})
		for _, v := range []string{"1", "2", "3"} {
			if _, err := w.d.Deploy(t.Context(), request(v)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := w.d.Deploy(t.Context(), request("bad")); !errors.Is(err, fleet.ErrRolledBack) {
			t.Fatal(err)
		}
		to := func(version string) (fleet.Result, error) {
			return w.d.GoBack(t.Context(), fleet.Back{Reason: "by hand", Version: version})
		}
		for _, v := range []string{"bad", "4", "3"} { // never proven, never there, serves
			if _, err := to(v); !errors.Is(err, fleet.ErrNothing) {
				t.Errorf("to %s: %v", v, err)
			}
			w.sound("3")
		}
		if res, err := to("1"); err != nil || res.New.Spec.Image.Version != "1" || len(res.Policy.Steps) != 1 {
			t.Fatal(res.State, err)
		}
		w.sound("1")
		began := len(w.recs)
		if res, err := to("3"); err != nil || res.State != fleet.RolledBack { // it is warm: one write
			t.Fatal(res.State, err)
		}
		w.sound("3")
		if n := len(w.recs) - began; n > 20 {
			t.Errorf("%d records for one write", n)
		}
		w.crashAt = len(w.recs) + 8
		if _, _, killed := w.run(func() (fleet.Result, error) { return w.d.Deploy(t.Context(), request("2")) }); !killed {
			t.Fatal("it was not killed")
		}
		if _, err := to("1"); !errors.Is(err, fleet.ErrUnfinished) {
			t.Errorf("to 1 from an unfinished one: %v", err)
		}
		if _, err := to("3"); err != nil {
			t.Error(err)
		}
		w.sound("3")
	})
}
