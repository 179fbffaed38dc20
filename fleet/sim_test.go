package fleet_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/journal"
	"github.com/rebake/rebake/test/fake"
)

var (
	seedFlag = flag.Uint64("seed", 0, "replay one run of the simulator")
	runsFlag = flag.Int("runs", 25000, "runs of the simulator, each of some four operations under faults")
)

// TestSimulator does random operations under random faults: calls that fail
// before or after they worked, kills of the process at any record, dying
// machines, a router that restarts, images of every kind. After each run the
// faults stop, and a good image must get through to the end.
func TestSimulator(t *testing.T) {
	if *seedFlag != 0 {
		synctest.Test(t, func(t *testing.T) { simulate(t, *seedFlag, true) })
		return
	}
	began, states, ops := time.Now(), map[fleet.State]int{}, 0
	var mu sync.Mutex
	var failed atomic.Bool
	t.Run("seeds", func(t *testing.T) {
		workers := runtime.GOMAXPROCS(0)
		for worker := range workers {
			t.Run(fmt.Sprint(worker), func(t *testing.T) {
				t.Parallel()
				for seed := uint64(worker + 1); seed <= uint64(*runsFlag) && !failed.Load(); seed += uint64(workers) {
					synctest.Test(t, func(t *testing.T) {
						w := simulate(t, seed, false)
						mu.Lock()
						defer mu.Unlock()
						ops += w.ops
						for s := range w.visited {
							states[s]++
						}
					})
					if t.Failed() && !failed.Swap(true) {
						t.Errorf("replay it with: go test ./fleet -run TestSimulator -seed %d -v", seed)
					}
				}
			})
		}
	})
	t.Logf("%d runs of %d operations in %.1fs; runs that came through each state: %v", *runsFlag, ops, time.Since(began).Seconds(), states)
	for _, s := range []fleet.State{fleet.Done, fleet.Baking, fleet.RolledBack, fleet.Blocked, fleet.Paused, fleet.Quarantined, fleet.Shrinking} {
		if states[s] < 5 && *runsFlag >= 3000 {
			t.Errorf("few runs came to %q: the simulator has gone blind", s)
		}
	}
}

func simulate(t *testing.T, seed uint64, loud bool, change ...func(*world)) *world {
	w := newWorld(t, map[artifact.Digest]fake.Behaviour{
		"sha256:slow":   {Boot: 3 * time.Second},
		"sha256:never":  {Never: true},
		"sha256:500":    {Status: 500},
		"sha256:dies":   {Dies: 2 * time.Second},
		"sha256:breaks": {Breaks: 1700 * time.Millisecond},
		"sha256:flaps":  {Flap: 350 * time.Millisecond},
	})
	w.d.Poll, w.fast = 150*time.Millisecond, !loud
	for _, c := range change {
		c(w)
	}
	w.rnd = rand.New(rand.NewPCG(seed, 7))
	w.d.Gate = func(context.Context, fleet.Instance) error {
		if w.faults && w.rnd.IntN(6) == 0 {
			return errors.New("gate: no")
		}
		return nil
	}
	w.d.Ask = func(context.Context, fleet.Question) (fleet.Verdict, string, error) {
		if n := w.rnd.IntN(20); w.faults && n < 4 {
			return []fleet.Verdict{fleet.Fail, fleet.Inconclusive, fleet.Inconclusive, ""}[n], "so it says", map[bool]error{true: errors.New("asked in vain")}[n == 3]
		}
		return fleet.Pass, "", nil
	}
	ctx := t.Context()
	if _, err := w.d.Deploy(ctx, request("good")); err != nil {
		t.Fatal(err)
	}
	images := []string{"good", "better", "slow", "never", "500", "dies", "breaks", "flaps"}
	w.inject(seed)
	for range 2 + w.rnd.IntN(5) {
		if w.rnd.IntN(2) == 0 {
			w.crashAt = len(w.recs) + 1 + w.rnd.IntN(40)
		}
		w.mischief()
		req := request(images[w.rnd.IntN(len(images))])
		req.Policy.KeepOld = time.Duration(w.rnd.IntN(4)) * time.Second
		req.Wait = w.rnd.IntN(3) == 0
		req.Force = w.rnd.IntN(4) == 0
		if w.rnd.IntN(6) == 0 {
			req.Policy.OnFailure = "pause"
		}
		if w.rnd.IntN(4) == 0 {
			req.Policy.Strategy, req.Policy.Roll = fleet.Rolling, rolls[w.rnd.IntN(3)]
			req.Policy.Roll.MaxSurge = max(1, req.Policy.Roll.MaxSurge)
		}
		if w.rnd.IntN(6) == 0 {
			req.Policy.Steps[w.rnd.IntN(3)].Pause = true
			req.Policy.Steps[0].PauseFor = time.Duration(w.rnd.IntN(2)) * 3 * time.Second
		}
		if w.rnd.IntN(4) == 0 {
			req.Policy.Quarantine = time.Duration(w.rnd.IntN(10)) * time.Second
		}
		if w.rnd.IntN(4) == 0 {
			req.Policy.Gates = []fleet.Gate{{Name: "asked", Command: &fleet.CommandGate{Args: []string{"true"}}}}
		}
		ops := []struct {
			name string
			do   func() (fleet.Result, error)
		}{
			{"deploy " + req.Spec.Image.Version, func() (fleet.Result, error) { return w.d.Deploy(ctx, req) }},
			{"deploy " + req.Spec.Image.Version, func() (fleet.Result, error) { return w.d.Deploy(ctx, req) }},
			{"resume", func() (fleet.Result, error) { return w.d.Resume(ctx, req.Wait) }},
			{"abort", func() (fleet.Result, error) { return w.d.Abort(ctx, "sim") }},
			{"rollback", func() (fleet.Result, error) { return w.d.Rollback(ctx, "sim") }},
			{"heal", func() (fleet.Result, error) {
				_, err := w.d.Heal(ctx)
				return fleet.Result{}, err
			}},
			{"tend", func() (fleet.Result, error) { return fleet.Result{}, w.d.Tend(ctx, req.Wait) }},
		}
		op := ops[w.rnd.IntN(len(ops))]
		w.ops++
		res, err, killed := w.run(op.do)
		w.crashAt = 0
		if loud {
			t.Logf("%s: %s killed=%v %v", op.name, res.State, killed, err)
		}
		w.onlyRises()
		for _, b := range w.bad {
			t.Errorf("%s: invariant: %s", op.name, b)
		}
		time.Sleep(time.Duration(w.rnd.IntN(5000)) * time.Millisecond)
	}
	time.Sleep(5 * time.Second) // until the last mischief is over
	w.faulty(false)
	h := w.past.History
	if h.Unfinished() != nil && h.Last().State != fleet.Blocked {
		_, err := w.d.Resume(ctx, true)
		for errors.Is(err, fleet.ErrPaused) {
			_, err = w.d.Resume(ctx, true)
		}
		if err != nil && !errors.Is(err, fleet.ErrRolledBack) && !errors.Is(err, fleet.ErrBlocked) {
			t.Errorf("resume without faults: %v", err)
		}
	}
	req := request("last")
	req.Force, req.Wait, req.Policy.KeepOld = true, true, time.Second
	res, err := w.d.Deploy(ctx, req)
	if errors.Is(err, fleet.ErrBlocked) { // weights that somebody changed: it was told so, and says so again
		res, err = w.d.Deploy(ctx, req)
	}
	if err != nil || res.State != fleet.Done {
		t.Errorf("a good image does not get through: %s: %v", res.State, err)
	}
	if err := w.d.Tend(ctx, true); err != nil {
		t.Error(err)
	}
	w.onlyRises()
	w.sound("last")
	if loud {
		for _, r := range w.recs {
			t.Logf("%d %s %.300s", r.Seq, r.Kind, r.Data)
		}
	}
	return w
}

// mischief is what happens to the machines and the router from outside, at some
// moment of the operation to come.
func (w *world) mischief() {
	after := time.Duration(w.rnd.IntN(4000)) * time.Millisecond
	what, pick := w.rnd.IntN(8), w.rnd.IntN(4)
	if what > 3 {
		return
	}
	go func() {
		time.Sleep(after)
		_, gs := w.look()
		switch {
		case what == 0:
			w.router.Kill()
		case what == 1: // by hand
			w.router.Edit(map[fleet.Slot]int{fleet.Blue: 250 * pick, fleet.Green: 1000 - 250*pick})
		case len(gs) > 0: // one machine, or a whole slot
			g := gs[pick%len(gs)]
			for n, i := range g.Instances {
				if what == 3 || n == pick/2 {
					w.killed[i.ID] = true
					w.pool.Kill(i.ID)
				}
			}
		}
	}()
}

// next is the graph of states. An abort or a failure leads from any undoable
// one to restoring; any may be blocked, and resumed where it was.
var next = map[fleet.State][]fleet.State{
	fleet.Planned: {fleet.Provisioning, fleet.Shrinking}, fleet.Provisioning: {fleet.Warming}, fleet.Warming: {fleet.Verifying},
	fleet.Verifying: {fleet.Shifting}, fleet.Shifting: {fleet.Holding}, fleet.Holding: {fleet.Shifting, fleet.Baking, fleet.Paused, fleet.Provisioning, fleet.Shrinking},
	fleet.Paused: {fleet.Shifting, fleet.Baking, fleet.Provisioning, fleet.Shrinking}, fleet.Shrinking: {fleet.Provisioning, fleet.Shrinking, fleet.Baking},
	fleet.Baking: {fleet.Committed}, fleet.Committed: {fleet.Retiring}, fleet.Retiring: {fleet.Done},
	fleet.Restoring: {fleet.DrainingNew}, fleet.DrainingNew: {fleet.DestroyNew, fleet.Quarantined},
	fleet.Quarantined: {fleet.DestroyNew}, fleet.DestroyNew: {fleet.RolledBack},
}

// transition checks a record as it is written: transitions along the graph,
// terminal states absorbing, one deployment at a time.
func (w *world) transition(rec journal.Record, was fleet.Progress) {
	is := w.past.History.Last()
	switch {
	case is == nil || rec.Kind == "lease" || rec.Kind == "told" || rec.Kind == "heal":
	case rec.Kind == "plan":
		if was.State != "" && !was.State.Finished() {
			w.broken("record %d: a plan while the last deployment is %q", rec.Seq, was.State)
		}
	default:
		if err := step(was, is.Progress); err != nil {
			w.broken("record %d: %v", rec.Seq, err)
		}
	}
	if is != nil {
		w.visited[is.State] = true
	}
}

// onlyRises checks that the new slot's share only rises on the way forward.
func (w *world) onlyRises() {
	for _, r := range w.past.History {
		top := 0
		for _, c := range r.Weights {
			share := c.Weights[r.New.Group.Slot]
			if share < top && share != 0 && !c.Found && r.Policy.Strategy != fleet.Rolling {
				w.broken("%s: the new slot's share went from %d to %d", r.ID, top, share)
			}
			top = share
		}
	}
}

func step(was, is fleet.Progress) error {
	a, b := was.State, is.State
	switch {
	case a == b && !a.Finished(), a != b && !a.Finished() && b == fleet.Blocked:
		return nil
	case a == fleet.Blocked && (b == was.Stopped || b == fleet.Restoring || b == fleet.RolledBack):
		return nil
	case a.Undoable() && b == fleet.Restoring:
		return nil
	}
	for _, ok := range next[a] {
		if b == ok {
			return nil
		}
	}
	return fmt.Errorf("from %q to %q", a, b)
}
