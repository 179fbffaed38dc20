package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/model"
)

// group is a group in memory, with a clock.
type group struct {
	*model.Group
	at time.Time
}

func newGroup(size int) *group {
	return &group{model.NewGroup(size), time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC)}
}

// open is the fleet as a process opens it, by the group's clock.
func (g *group) open(dir string) *fleet.Deployer {
	return &fleet.Deployer{Dir: dir, Config: fleet.Config{Name: "web", Size: 4, Policy: fleet.Policy{Strategy: fleet.Refresh}}, Pool: g, Router: g, Poll: time.Second,
		Now: func() time.Time { return g.at }, Sleep: func(_ context.Context, d time.Duration) { g.at = g.at.Add(d) }}
}

func refreshOf(version string) fleet.Request {
	return fleet.Request{Wait: true, Spec: fleet.Spec{Image: image(version), Size: 4, Ports: []int{80}}, Policy: fleet.Policy{Strategy: fleet.Refresh, Port: 80, MinHealthy: 75, Roll: fleet.Roll{MaxSurge: 25},
		Within: time.Minute, Launch: time.Minute, Refuse: 20 * time.Second, KeepOld: 10 * time.Second, Steps: []fleet.Step{{Permille: 500, Hold: 5 * time.Second}, {Permille: 1000, Hold: 5 * time.Second}}}}
}

// settled checks that what the books say is what the group is.
func (g *group) settled(t *testing.T, d *fleet.Deployer, what string) {
	t.Helper()
	var is fleet.RefreshState
	for range 100 {
		var err error
		if is, err = g.Refreshing(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	h, err := d.History(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want, templates := fleet.GroupID{}, 0
	if cur := h.Current(); cur != nil {
		want, templates = cur.Group, 1
	}
	if last := h.Last(); last == nil || !last.State.Finished() {
		t.Errorf("%s: it is not over: %+v", what, last)
	}
	if is.Serves != want || is.Active() {
		t.Errorf("%s: the group launches by %v (%s), and the books say %v", what, is.Serves, is.Phase, want)
	}
	if n, well := g.Of(want); n != is.Size || well != n {
		t.Errorf("%s: %d of %d instances are of %v, %d are well", what, n, is.Size, want, well)
	}
	gs, err := g.Groups(t.Context(), "web")
	if err != nil || len(gs) != templates {
		t.Errorf("%s: %d launch templates are left, want %d: %v", what, len(gs), templates, err)
	}
}

type killed struct{}

// survive runs f, and says whether the process was killed in it.
func survive(f func() error) (err error, dead bool) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(killed); !ok {
				panic(p)
			}
			dead = true
		}
	}()
	return f(), false
}

// Random worlds: images that are good and bad, kills at any record and any call,
// answers that are lost, calls that fail, people who cancel and alarms that turn a
// refresh round, aborts and rollbacks. Whatever happened, once nothing goes wrong
// any more the group is what the books say, and nothing else of the fleet is left.
func TestRefreshesInRandomWorlds(t *testing.T) {
	for seed := range uint64(max(40, *runsFlag/400)) {
		r := rand.New(rand.NewPCG(seed, 7))
		g, dir := newGroup(4), t.TempDir()
		g.Sick[image("3").Digest] = "L7STS/500"
		busy := true
		odds := func(p float64) bool { return busy && r.Float64() < p }
		g.Before = func(string) error {
			if odds(0.05) {
				panic(killed{})
			}
			if odds(0.05) {
				return errors.New("throttled")
			}
			return nil
		}
		g.After = func(string) error {
			if odds(0.05) {
				panic(killed{})
			}
			if odds(0.05) {
				return errors.New("the answer was lost")
			}
			return nil
		}
		g.Moment = func() {
			if odds(0.003) {
				g.Cancel()
			}
			if odds(0.003) {
				g.Turn("an alarm")
			}
		}
		open := func() *fleet.Deployer {
			d := g.open(dir)
			d.Poll = time.Duration(1+seed%3) * time.Second // the group's bake time is over when it says so, not by our clock
			d.Recorded = func(kind, what string) {
				if kind == "transition" && what == string(fleet.Committed) && g.Phase() != fleet.RefreshDone {
					t.Errorf("seed %d: committed while the refresh %s", seed, g.Phase())
				}
				if odds(0.03) {
					panic(killed{})
				}
			}
			return d
		}
		for op := range 6 {
			var done []string
			busy = true
			_, dead := survive(func() error {
				d := open()
				switch n := r.IntN(10); {
				case n < 7:
					v := fmt.Sprint(1 + r.IntN(3))
					done = append(done, "deploy "+v)
					_, err := d.Deploy(t.Context(), refreshOf(v))
					return err
				case n < 9:
					done = append(done, "rollback")
					_, err := d.Rollback(t.Context(), "by hand")
					return err
				default:
					done = append(done, "tend")
					return d.Tend(t.Context(), true)
				}
			})
			for range 4 { // what a person, or the next job, does then
				if !dead && r.IntN(2) == 0 {
					break
				}
				_, dead = survive(func() error {
					d := open()
					if r.IntN(4) == 0 {
						done = append(done, "abort")
						_, err := d.Abort(t.Context(), "aborted by hand")
						return err
					}
					done = append(done, "resume")
					_, err := d.Resume(t.Context(), true)
					return err
				})
			}
			busy = false
			d := g.open(dir)
			for range 3 {
				if _, err := d.Resume(t.Context(), true); errors.Is(err, fleet.ErrNothing) {
					break
				}
			}
			if err := d.Tend(t.Context(), true); err != nil {
				t.Errorf("seed %d, operation %d: tend: %v", seed, op, err)
			}
			if h, err := d.History(t.Context()); err == nil && len(h) > 0 {
				g.settled(t, d, fmt.Sprintf("seed %d, operation %d, %s", seed, op, strings.Join(done, ", ")))
			}
			if t.Failed() {
				return
			}
		}
	}
}

// Somebody else's refresh is waited for by a person, and nothing is begun over it.
func TestNothingIsBegunOverSomebodyElsesRefresh(t *testing.T) {
	g := newGroup(4)
	d := g.open(t.TempDir())
	g.Begin("x1")
	called := false
	g.Before = func(string) error { called = true; return nil }
	res, err := d.Deploy(t.Context(), refreshOf("1"))
	if !errors.Is(err, fleet.ErrBlocked) || !strings.Contains(res.Reason, "x1") || called {
		t.Fatalf("%s: %v; called: %v", res.State, err, called)
	}
	g.Cancel()
	if res, err = d.Resume(t.Context(), true); err != nil || res.State != fleet.Done {
		t.Fatalf("%s: %v", res.State, err)
	}
	g.settled(t, d, "after the other one")
}

// A gate that fails on the way turns a refresh round at once; one that does not
// know is asked to the end, and then what was said counts.
func TestGatesOfARefresh(t *testing.T) {
	for verdict, want := range map[fleet.Verdict]string{fleet.Fail: "gate smoke: it says so", fleet.Inconclusive: "inconclusive after"} {
		g := newGroup(4)
		d := g.open(t.TempDir())
		old := -1 // instances of it that there were when it went back
		d.Recorded = func(kind, what string) {
			if kind == "transition" && what == string(fleet.Restoring) && old < 0 {
				old, _ = g.Of(fleet.GroupID{})
			}
		}
		d.Ask = func(context.Context, fleet.Question) (fleet.Verdict, string, error) {
			return verdict, "it says so", nil
		}
		req := refreshOf("1")
		req.Policy.Gates = []fleet.Gate{{Name: "smoke", Command: &fleet.CommandGate{Args: []string{"true"}}}}
		res, err := d.Deploy(t.Context(), req)
		if !errors.Is(err, fleet.ErrRolledBack) || !strings.Contains(res.Reason, want) {
			t.Errorf("%s: %s: %v", verdict, res.State, err)
		}
		if early := old >= 2; early != (verdict == fleet.Fail) { // it is known once one of four serves
			t.Errorf("%s: it was stopped with %d old instances left", verdict, old)
		}
		g.settled(t, d, string(verdict))
	}
}

// An image that answers wrongly is refused as soon as the template says; one that
// says nothing at all once no more instance comes to serve in the time for that.
func TestARefreshToWhatNeverServesIsTakenBack(t *testing.T) {
	for says, want := range map[string]struct {
		reason string
		within time.Duration
	}{
		"L7STS/500":            {"has answered wrongly for 2", time.Minute},
		"no answer in time":    {"no other came to serve within 2m5s", 4 * time.Minute},
		"not registered at it": {"no other came to serve within 2m5s", 4 * time.Minute},
	} {
		g := newGroup(4)
		g.Sick[image("1").Digest] = says
		d := g.open(t.TempDir())
		began := g.at
		res, err := d.Deploy(t.Context(), refreshOf("1"))
		if !errors.Is(err, fleet.ErrRolledBack) || !strings.Contains(res.Reason, want.reason) || g.at.Sub(began) > want.within {
			t.Errorf("%s: after %s: %s: %v", says, g.at.Sub(began), res.State, err)
		}
		g.settled(t, d, says)
	}
}

// What a refresh cannot keep is refused, by the key that asks for it.
func TestARefreshRefusesWhatItCannotKeep(t *testing.T) {
	good := refreshOf("1").Policy
	if _, err := good.Complete(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*fleet.Policy){
		"deploy.gates[rate]: in a refresh both": func(p *fleet.Policy) {
			p.Gates = []fleet.Gate{{Name: "rate", ErrorRate: &fleet.ErrorRateGate{Max: 0.1}}}
		},
		"deploy.gates[test]":                   func(p *fleet.Policy) { p.Gates = []fleet.Gate{{Name: "test", Test: true}} },
		"deploy.steps: a refresh goes on":      func(p *fleet.Policy) { p.Steps = []fleet.Step{{Permille: 500, Pause: true}, {Permille: 1000}} },
		"deploy.on_failure":                    func(p *fleet.Policy) { p.OnFailure = "pause" },
		"deploy.on_inconclusive":               func(p *fleet.Policy) { p.OnInconclusive = "pause" },
		"deploy.quarantine":                    func(p *fleet.Policy) { p.Quarantine = time.Hour },
		"deploy.min_healthy: 50 %":             func(p *fleet.Policy) { p.MinHealthy, p.Roll.MaxSurge = 50, 60 },
		"deploy.max_surge: with 0":             func(p *fleet.Policy) { p.MinHealthy, p.Roll.MaxSurge = 100, 0 },
		"deploy.max_surge: a refresh may have": func(p *fleet.Policy) { p.Roll.MaxSurge = 101 },
		"deploy.keep_old":                      func(p *fleet.Policy) { p.KeepOld = 48 * time.Hour },
	} {
		p := good
		p.Steps = append([]fleet.Step(nil), good.Steps...)
		change(&p)
		if _, err := p.Complete(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s…", err, want)
		}
	}
}

// A refreshed fleet has no instances to heal one by one, and its plan says what it costs.
func TestTheForecastOfARefresh(t *testing.T) {
	g := newGroup(4)
	d := g.open(t.TempDir())
	if _, err := d.Heal(t.Context()); err == nil || !strings.Contains(err.Error(), "--redeploy") {
		t.Errorf("heal: %v", err)
	}
	f, id, err := d.Plan(t.Context(), refreshOf("1"), 0)
	if err != nil {
		t.Fatal(err)
	}
	var states []fleet.State
	for _, ph := range f.Phases {
		states = append(states, ph.State)
	}
	if fmt.Sprint(states) != "[provisioning replacing holding baking]" || f.MachinesPeak != 5 || f.Least != 3 || f.MachinesNow != 4 {
		t.Errorf("%v, at most %d, at least %d of %d", states, f.MachinesPeak, f.Least, f.MachinesNow)
	}
	if f.WorstBack < f.Phases[1].Deadline/2 {
		t.Errorf("back in %s, forward in %s: it is the same walk", f.WorstBack, f.Phases[1].Deadline)
	}
	req := refreshOf("1")
	req.Approve = id
	res, err := d.Deploy(t.Context(), req)
	if err != nil || res.State != fleet.Done {
		t.Fatalf("%s: %v", res.State, err)
	}
	var shares []int // of the instances: the first, the step, all
	for _, c := range res.Weights {
		shares = append(shares, c.Weights[res.New.Group.Slot])
	}
	if fmt.Sprint(shares) != "[250 500 1000]" {
		t.Errorf("the shares on the way: %v", shares)
	}
	g.settled(t, d, "the plan that was approved")
	if res, err := d.Deploy(t.Context(), refreshOf("2")); err != nil || res.State != fleet.Done {
		t.Fatalf("%s: %v", res.State, err)
	}
	g.settled(t, d, "the next one") // without anybody who tidies up
	g.Grow(1)
	d.Books, d.Dir = fleet.Local(filepath.Dir(d.Dir)).Books(filepath.Base(d.Dir)), "" // as the pipeline opens it
	for version, want := range map[string]int{"2": 4, "1": 5} {
		req := refreshOf(version)
		if n, err := d.Grown(t.Context(), req.Spec, req.Policy, false); err != nil || n != want {
			t.Errorf("%s in a group that grew to 5: %d, %v, want %d", version, n, err, want)
		}
	}
}
