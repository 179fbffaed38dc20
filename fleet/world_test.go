package fleet_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/fault"
	"github.com/rebake/rebake/internal/journal"
	"github.com/rebake/rebake/test/fake"
)

// world is a fleet on the fakes, with a journal in memory that can crash its
// writer, faults in front of pool and router, and the invariants behind them.
type world struct {
	t      *testing.T
	pool   *fake.Pool
	router *fake.Router
	d      *fleet.Deployer
	recs   []journal.Record
	past   fleet.Player // what they say
	fast   bool         // records have no bytes

	crashAt int // crash once this many records are there; 0: never
	dieIn   int // crash after so many more calls that change something, before their effect is written; 0: never
	rnd     *rand.Rand
	in      *fault.Injector // nil: no call goes wrong
	faults  bool            // calls go wrong now and then
	bad     []string
	killed  map[string]bool // instances that a fault ended

	size    int // of the fleet
	extra   int // instances above twice the size that may run
	visited map[fleet.State]bool
	ops     int // operations of the simulator
}

// crash is what a killed process leaves: nothing after it runs.
type crash struct{}

const size = 2

func newWorld(t *testing.T, behave map[artifact.Digest]fake.Behaviour) *world {
	w := &world{t: t, pool: &fake.Pool{Behave: behave}, killed: map[string]bool{}, visited: map[fleet.State]bool{}, size: size}
	w.router = &fake.Router{Check: w.pool.Check, Rise: 2}
	w.d = &fleet.Deployer{Config: fleet.Config{Name: "web"}, Pool: guardPool{w}, Router: guardRouter{w}}
	w.d.InMemory(func() fleet.Player { return fleet.Player{History: slices.Clone(w.past.History), Epoch: w.past.Epoch} }, w.append)
	return w
}

// append is the journal in memory.
func (w *world) append(kind string, data any) (journal.Record, error) {
	r := journal.Record{Seq: len(w.recs) + 1, Time: time.Now().UTC(), Kind: kind}
	if !w.fast { // the simulator has no need of the bytes
		raw, err := json.Marshal(data)
		if err != nil {
			return r, err
		}
		r.Data = raw
	}
	w.recs = append(w.recs, r)
	before := fleet.Progress{}
	if l := w.past.History.Last(); l != nil {
		before = l.Progress
	}
	if !w.past.Play(r.Time, data) {
		return r, errors.New("a record of no known deployment")
	}
	w.transition(r, before)
	if w.crashAt > 0 && len(w.recs) >= w.crashAt {
		w.crashAt = 0
		panic(crash{})
	}
	return r, nil
}

// run calls f and says whether the process was killed in it.
func (w *world) run(f func() (fleet.Result, error)) (res fleet.Result, err error, killed bool) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(crash); !ok {
				panic(p)
			}
			killed = true
		}
	}()
	res, err = f()
	return res, err, false
}

func (w *world) broken(format string, a ...any) { w.bad = append(w.bad, fmt.Sprintf(format, a...)) }

func (w *world) look() (fleet.RouterStatus, []fleet.Group) {
	st, err := w.router.Status(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	gs, err := w.pool.Groups(context.Background(), "web")
	if err != nil {
		w.t.Fatal(err)
	}
	return st, gs
}

// inject puts faults before pool and router, by a seed. None is slow: what is
// true at a look may not be so when a slow call arrives, and no engine can help that.
func (w *world) inject(seed uint64) {
	w.in = fault.New(fault.Plan{Seed: seed, Fail: 1. / 12, Lose: 1. / 12, Throttle: 1. / 100})
	w.d.Pool, w.d.Router = w.in.Pool(guardPool{w}), w.in.Router(guardRouter{w})
	w.faulty(true)
}

func (w *world) faulty(on bool) {
	w.faults = on
	w.in.Set(on)
}

// change is a call that changes something.
func (w *world) change(f func() error) error {
	err := f()
	if w.dieIn > 0 {
		if w.dieIn--; w.dieIn == 0 {
			panic(crash{})
		}
	}
	return err
}

// guardPool and guardRouter hold each call against the invariants. They do not
// use Check: they judge by what is there alone.
type guardPool struct{ w *world }

func (g guardPool) Groups(ctx context.Context, name string) ([]fleet.Group, error) {
	return g.w.pool.Groups(ctx, name)
}

func (g guardPool) Launch(ctx context.Context, id fleet.GroupID, spec fleet.Spec) error {
	return g.w.change(func() error { return g.w.pool.Launch(ctx, id, spec) })
}

func (g guardPool) Evidence(ctx context.Context, id fleet.GroupID) (string, error) {
	return g.w.pool.Evidence(ctx, id)
}

func (g guardPool) End(ctx context.Context, id fleet.GroupID, instance string) error {
	return g.w.change(func() error { return g.w.pool.End(ctx, id, instance) })
}

func (g guardPool) Retire(ctx context.Context, id fleet.GroupID) error {
	st, gs := g.w.look()
	for _, grp := range gs {
		for _, i := range grp.Instances {
			for _, m := range st.Members[grp.ID.Slot] {
				if m.ID == i.ID && grp.ID == id {
					g.w.broken("retired %s with %s still behind the router (%s, %d in flight)", id.Deployment, m.ID, m.Admin, m.InFlight)
				}
			}
		}
	}
	if !st.Up {
		g.w.broken("retired %s with the router down", id.Deployment)
	}
	return g.w.change(func() error { return g.w.pool.Retire(ctx, id) })
}

// spared: a slot with traffic is never taken out whole, nor below half the fleet.
func (w *world) spared(s fleet.Slot, ids []string) {
	st, gs := w.look()
	runs := map[string]bool{} // the router may not have noticed yet that one died
	for _, g := range gs {
		for _, i := range g.Instances {
			runs[i.ID] = i.Running
		}
	}
	if st.Weights[s] > 0 && len(ids) == 0 {
		w.broken("took slot %s out, which has traffic", s)
	}
	left, took := 0, 0
	for slot, weight := range st.Weights {
		for _, m := range st.Members[slot] {
			switch {
			case weight == 0 || !m.Healthy || m.Admin != "ready" || !runs[m.ID]:
			case slot == s && slices.Contains(ids, m.ID):
				took++
			default:
				left++
			}
		}
	}
	if took > 0 && left < (w.size+1)/2 {
		w.broken("took %v out of slot %s: %d of %d are left to serve", ids, s, left, w.size)
	}
}

type guardRouter struct{ w *world }

func (g guardRouter) Ensure(ctx context.Context) error { return g.w.router.Ensure(ctx) }

func (g guardRouter) Status(ctx context.Context) (fleet.RouterStatus, error) {
	return g.w.router.Status(ctx)
}

func (g guardRouter) Attach(ctx context.Context, s fleet.Slot, m []fleet.Member) error {
	l := g.w.past.History.Last()
	if st, _ := g.w.look(); st.Weights[s] > 0 && len(st.Members[s]) == 0 && l.State == fleet.Warming && l.Policy.Strategy != fleet.Rolling {
		g.w.broken("attached to slot %s, which has traffic and nobody to serve it", s)
	}
	return g.w.change(func() error { return g.w.router.Attach(ctx, s, m) })
}

func (g guardRouter) Ready(ctx context.Context, s fleet.Slot) error {
	return g.w.change(func() error { return g.w.router.Ready(ctx, s) })
}

func able(st fleet.RouterStatus, s fleet.Slot) (n int) {
	for _, m := range st.Members[s] {
		if m.Healthy && m.Admin == "ready" {
			n++
		}
	}
	return n
}

func (g guardRouter) SetWeights(ctx context.Context, want map[fleet.Slot]int) error {
	st, _ := g.w.look()
	for _, s := range []fleet.Slot{fleet.Blue, fleet.Green} {
		if want[s] > st.Weights[s] && able(st, s) == 0 && able(st, s.Other()) > 0 {
			g.w.broken("traffic was moved from a slot that serves to %s, where nobody is healthy", s)
		}
	}
	return g.w.change(func() error { return g.w.router.SetWeights(ctx, want) })
}

func (g guardRouter) Drain(ctx context.Context, s fleet.Slot, ids ...string) error {
	g.w.spared(s, ids)
	return g.w.change(func() error { return g.w.router.Drain(ctx, s, ids...) })
}

func (g guardRouter) Detach(ctx context.Context, s fleet.Slot, force bool, ids ...string) (cut int, err error) {
	st, _ := g.w.look()
	g.w.spared(s, ids)
	for _, m := range st.Members[s] {
		if m.Admin == "ready" && (len(ids) == 0 || slices.Contains(ids, m.ID)) {
			g.w.broken("detached %s, which was not drained", m.ID)
		}
	}
	err = g.w.change(func() (err error) { cut, err = g.w.router.Detach(ctx, s, force, ids...); return err })
	return cut, err
}

func (g guardRouter) Remove(ctx context.Context) error { return g.w.router.Remove(ctx) }

func image(version string) artifact.Image {
	return artifact.Image{Name: "web", Version: version, Digest: artifact.Digest("sha256:" + version)}
}

func request(version string) fleet.Request {
	return fleet.Request{
		Spec: fleet.Spec{Image: image(version), Size: size, Ports: []int{80}},
		Policy: fleet.Policy{Port: 80, Steps: []fleet.Step{{Permille: 100, Hold: time.Second}, {Permille: 500, Hold: time.Second}, {Permille: 1000, Hold: time.Second}},
			KeepOld: time.Minute, Within: 10 * time.Second, Drain: 5 * time.Second, Restore: 10 * time.Second, Launch: 20 * time.Second, Verify: 10 * time.Second},
	}
}

// traffic sends a request each 20 ms, each of 300 ms, until stop is called,
// which says how many were sent and failed. A request fails if nobody takes it
// or if its instance is gone before it ends.
func (w *world) traffic() (stop func() (sent, failed int)) {
	quit, done := make(chan struct{}), make(chan struct{})
	type flight struct {
		id   string
		due  time.Time
		ends func()
	}
	sent, failed := 0, 0
	go func() {
		defer close(done)
		var open []flight
		land := func(all bool) {
			_, gs := w.look()
			there := map[string]bool{}
			for _, g := range gs {
				for _, i := range g.Instances {
					there[i.ID] = i.Running
				}
			}
			open = slices.DeleteFunc(open, func(f flight) bool {
				if !there[f.id] && !w.killed[f.id] {
					failed++
					f.ends()
					return true
				}
				if all || !time.Now().Before(f.due) {
					f.ends()
					return true
				}
				return false
			})
		}
		for {
			select {
			case <-quit:
				land(true)
				return
			case <-time.After(20 * time.Millisecond):
			}
			land(false)
			id, end := w.router.Send()
			sent++
			if id == "" {
				failed++
				continue
			}
			open = append(open, flight{id, time.Now().Add(300 * time.Millisecond), end})
		}
	}()
	return func() (int, int) { close(quit); <-done; return sent, failed }
}

// sound checks what must hold when a fleet is at rest and version serves.
func (w *world) sound(version string) {
	w.t.Helper()
	h := w.past.History
	if !w.fast {
		var err error
		if h, err = fleet.Replay(w.recs); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, b := range w.bad {
		w.t.Errorf("invariant: %s", b)
	}
	for _, v := range w.router.Violations {
		w.t.Errorf("router: %s", v)
	}
	st, gs := w.look()
	cur := h.Current()
	if version == "" {
		if cur != nil || len(gs) != 0 {
			w.t.Errorf("nothing should serve: %+v, groups %+v", cur, gs)
		}
		return
	}
	if cur == nil || cur.Spec.Image.Version != version {
		w.t.Fatalf("current is %+v, want version %s", cur, version)
	}
	want := map[fleet.GroupID]bool{cur.Group: true}
	if k, _ := h.Kept(); k != nil {
		want[k.Group] = true
	}
	for _, g := range gs {
		if !want[g.ID] {
			w.t.Errorf("leaked group %+v", g.ID)
		}
	}
	if len(gs) != len(want) || len(st.Members[cur.Group.Slot]) != w.size || st.Weights[cur.Group.Slot] != 1000 {
		w.t.Errorf("groups %d want %d, members %v, weights %v", len(gs), len(want), st.Members, st.Weights)
	}
	if len(want) == 1 && len(st.Members[cur.Group.Slot.Other()]) > 0 {
		w.t.Errorf("leftover members: %v", st.Members)
	}
	if w.pool.Peak() > 2*w.size+w.extra {
		w.t.Errorf("%d instances ran at once", w.pool.Peak())
	}
}
