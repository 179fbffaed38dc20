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
)

// group is an Auto Scaling group as a refresh needs it, in memory: each look is a
// moment in which at most one instance is replaced. It is pool and router.
type group struct {
	at        time.Time
	templates map[fleet.GroupID]fleet.GroupID // and what was launched before it
	own       fleet.GroupID
	in        []inst
	is        fleet.RefreshState
	bake      int
	sick      map[string]bool // versions
	version   map[fleet.GroupID]string
	n         int

	before, after func(call string) error // of each call that changes something
	disturb       func()
}

type inst struct {
	id   string
	of   fleet.GroupID
	well bool
}

var errUnasked = errors.New("a refresh does not do this")

func newGroup(size int) *group {
	g := &group{at: time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC), templates: map[fleet.GroupID]fleet.GroupID{}, sick: map[string]bool{}, version: map[fleet.GroupID]string{},
		before: func(string) error { return nil }, after: func(string) error { return nil }, disturb: func() {}}
	for range size {
		g.in = append(g.in, inst{id: g.id(), well: true})
	}
	return g
}

func (g *group) id() string { g.n++; return fmt.Sprintf("i-%04d", g.n) }

// step is what Auto Scaling does in a moment.
func (g *group) step() {
	g.disturb()
	for i, one := range g.in {
		if !one.well && !g.sick[g.version[one.of]] {
			g.in[i].well = true
			return
		}
	}
	to := g.is.To
	switch g.is.Phase {
	case fleet.RefreshTurning:
		to = g.own
	case fleet.RefreshBakes:
		if g.bake--; g.bake <= 0 {
			g.is.Phase, g.own = fleet.RefreshDone, g.is.To
		}
		return
	case fleet.RefreshRuns:
		if g.is.ID[0] == 'b' { // one to what was there before
			to = g.templates[fleet.GroupID{Deployment: g.is.ID}]
		}
	default:
		return
	}
	for i, one := range g.in {
		switch {
		case one.of != to:
			g.in[i] = inst{id: g.id(), of: to}
			return
		case !one.well:
			return // it waits for it
		}
	}
	switch {
	case g.is.Phase == fleet.RefreshTurning:
		g.is.Phase = fleet.RefreshTurned
	case g.bake > 0:
		g.is.Phase = fleet.RefreshBakes
	default:
		g.is.Phase, g.own = fleet.RefreshDone, to
	}
}

func (g *group) change(call string, f func() error) error {
	if err := g.before(call); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	return g.after(call)
}

func (g *group) Refreshing(context.Context) (fleet.RefreshState, error) {
	g.step()
	is := g.is
	is.Serves, is.Size = g.own, len(g.in)
	return is, nil
}

func (g *group) Replace(_ context.Context, id fleet.GroupID, spec fleet.Spec, b fleet.Bounds) error {
	return g.change("replace", func() error {
		if g.is.Active() && g.is.To != id {
			return fleet.ErrRefreshing
		}
		if g.is.To == id {
			return nil
		}
		if _, ok := g.templates[id]; !ok {
			g.templates[id], g.version[id] = g.own, spec.Image.Version
		}
		g.is, g.bake = fleet.RefreshState{ID: "f" + id.Deployment, To: id, Phase: fleet.RefreshRuns}, int(b.Bake/time.Second)
		return nil
	})
}

func (g *group) TakeBack(_ context.Context, id fleet.GroupID, _ fleet.Bounds) error {
	return g.change("take back", func() error {
		switch {
		case g.is.To == id && (g.is.Phase == fleet.RefreshRuns || g.is.Phase == fleet.RefreshBakes):
			g.is.Phase, g.is.Why = fleet.RefreshTurning, "somebody said so"
		case !g.is.Active():
			to := g.own
			if to == id {
				to = g.templates[id]
			}
			g.is, g.bake = fleet.RefreshState{ID: "b" + id.Deployment, Phase: fleet.RefreshRuns}, 0
			g.templates[fleet.GroupID{Deployment: g.is.ID}] = to // where to, by the refresh
		}
		return nil
	})
}

func (g *group) Retire(_ context.Context, id fleet.GroupID) error {
	return g.change("retire", func() error {
		for _, i := range g.in {
			if i.of == id || g.own == id {
				return errors.New("it is needed")
			}
		}
		delete(g.templates, id)
		return nil
	})
}

func (g *group) Groups(context.Context, string) (out []fleet.Group, err error) {
	for id := range g.templates {
		if id.Fleet == "" {
			continue
		}
		one := fleet.Group{ID: id, Image: image(g.version[id]).Digest}
		for _, i := range g.in {
			if i.of == id {
				one.Instances = append(one.Instances, fleet.Instance{ID: i.id, Running: true, Ports: map[int]string{80: i.id + ":80"}})
			}
		}
		out = append(out, one)
	}
	return out, nil
}

func (g *group) Status(context.Context) (fleet.RouterStatus, error) {
	st := fleet.RouterStatus{Up: true, Weights: map[fleet.Slot]int{}, Members: map[fleet.Slot][]fleet.MemberStatus{}}
	for _, i := range g.in {
		if i.of.Fleet == "" {
			continue
		}
		m := fleet.MemberStatus{Member: fleet.Member{ID: i.id, Addr: i.id + ":80"}, Admin: "ready", Check: "L7OK", Healthy: i.well}
		if !i.well && g.sick[g.version[i.of]] {
			m.Check = "L7STS/500"
		} else if !i.well {
			m.Check = "not checked often enough yet"
		}
		st.Members[i.of.Slot] = append(st.Members[i.of.Slot], m)
		st.Weights[i.of.Slot] += 1000 / len(g.in)
	}
	return st, nil
}

func (g *group) Size(context.Context, fleet.GroupID) (int, error)         { return len(g.in), nil }
func (g *group) Ensure(context.Context) error                             { return nil }
func (g *group) Remove(context.Context) error                             { return nil }
func (g *group) Launch(context.Context, fleet.GroupID, fleet.Spec) error  { return errUnasked }
func (g *group) End(context.Context, fleet.GroupID, string) error         { return errUnasked }
func (g *group) Attach(context.Context, fleet.Slot, []fleet.Member) error { return errUnasked }
func (g *group) Ready(context.Context, fleet.Slot) error                  { return errUnasked }
func (g *group) SetWeights(context.Context, map[fleet.Slot]int) error     { return errUnasked }
func (g *group) Drain(context.Context, fleet.Slot, ...string) error       { return errUnasked }
func (g *group) Detach(context.Context, fleet.Slot, bool, ...string) (int, error) {
	return 0, errUnasked
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
	for range 100 {
		g.step()
	}
	h, err := d.History(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := fleet.GroupID{}
	if cur := h.Current(); cur != nil {
		want = cur.Group
	}
	if last := h.Last(); last == nil || !last.State.Finished() {
		t.Errorf("%s: it is not over: %+v", what, last)
	}
	if g.own != want {
		t.Errorf("%s: the group launches by %v, and the books say %v", what, g.own, want)
	}
	for _, i := range g.in {
		if i.of != want || !i.well {
			t.Errorf("%s: %s is of %v and well: %v, want %v", what, i.id, i.of, i.well, want)
		}
	}
	n := 0
	for id := range g.templates {
		if id.Fleet != "" {
			n++
		}
	}
	if most := map[bool]int{true: 0, false: 1}[want == fleet.GroupID{}]; n != most {
		t.Errorf("%s: %d launch templates are left, want %d", what, n, most)
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
		g.sick["3"] = true
		busy := true
		odds := func(p float64) bool { return busy && r.Float64() < p }
		g.before = func(string) error {
			if odds(0.05) {
				panic(killed{})
			}
			if odds(0.05) {
				return errors.New("throttled")
			}
			return nil
		}
		g.after = func(string) error {
			if odds(0.05) {
				panic(killed{})
			}
			if odds(0.05) {
				return errors.New("the answer was lost")
			}
			return nil
		}
		g.disturb = func() {
			switch {
			case odds(0.003) && g.is.Active():
				g.is.Phase, g.is.Why = fleet.RefreshEnded, "somebody cancelled it"
			case odds(0.003) && g.is.Phase == fleet.RefreshRuns && g.is.ID[0] == 'f':
				g.is.Phase, g.is.Why = fleet.RefreshTurning, "an alarm"
			}
		}
		open := func() *fleet.Deployer {
			d := g.open(dir)
			d.Recorded = func(string, string) {
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
	g.is = fleet.RefreshState{ID: "x1", Phase: fleet.RefreshBakes}
	g.bake = 1 << 30
	called := false
	g.before = func(string) error { called = true; return nil }
	res, err := d.Deploy(t.Context(), refreshOf("1"))
	if !errors.Is(err, fleet.ErrBlocked) || !strings.Contains(res.Reason, "x1") || called {
		t.Fatalf("%s: %v; called: %v", res.State, err, called)
	}
	g.is.Phase = fleet.RefreshEnded
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
		least := 4 // of the old image
		d.Ask = func(context.Context, fleet.Question) (fleet.Verdict, string, error) {
			old := 0
			for _, i := range g.in {
				if i.of.Fleet == "" {
					old++
				}
			}
			least = min(least, old)
			return verdict, "it says so", nil
		}
		req := refreshOf("1")
		req.Policy.Gates = []fleet.Gate{{Name: "smoke", Command: &fleet.CommandGate{Args: []string{"true"}}}}
		res, err := d.Deploy(t.Context(), req)
		if !errors.Is(err, fleet.ErrRolledBack) || !strings.Contains(res.Reason, want) {
			t.Errorf("%s: %s: %v", verdict, res.State, err)
		}
		if early := least > 0; early != (verdict == fleet.Fail) {
			t.Errorf("%s: it was stopped with %d old instances left", verdict, least)
		}
		g.settled(t, d, string(verdict))
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
	if res, err := d.Deploy(t.Context(), req); err != nil || res.State != fleet.Done {
		t.Fatalf("%s: %v", res.State, err)
	}
	g.settled(t, d, "the plan that was approved")
	g.in = append(g.in, inst{id: g.id(), of: g.own, well: true})
	d.Books, d.Dir = fleet.Local(filepath.Dir(d.Dir)).Books(filepath.Base(d.Dir)), "" // as the pipeline opens it
	for version, want := range map[string]int{"1": 4, "2": 5} {
		req := refreshOf(version)
		if n, err := d.Grown(t.Context(), req.Spec, req.Policy, false); err != nil || n != want {
			t.Errorf("%s in a group that grew to 5: %d, %v, want %d", version, n, err, want)
		}
	}
}
