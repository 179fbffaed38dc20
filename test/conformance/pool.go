package conformance

import (
	"context"
	"maps"
	"testing"
	"time"

	"github.com/rebake/rebake/fleet"
)

// PoolWorld is a fresh pool and what the suite needs around it.
type PoolWorld struct {
	Pool fleet.Pool
	// Spec is a spec of two instances with at least one port that launches here.
	Spec fleet.Spec
	// Kill ends an instance's machine as a crash would.
	Kill func(t *testing.T, i fleet.Instance)
	// Again opens the pool once more, as another process would; nil: it cannot be.
	Again func(t *testing.T) fleet.Pool
	// Leftovers lists what is there that belongs to groups (files, processes), in words.
	Leftovers func(t *testing.T) []string
	// Replaces says that whoever keeps the groups starts another instance in the
	// place of a dead one, and that a fresh one has an id of its own: a dead one is
	// not listed for long, and no launch is needed for the next.
	Replaces bool
	// Patience is how long a machine may take to end; default 10 s.
	Patience time.Duration
}

// Pool is the suite of fleet.Pool. Every group it launches is of fleet "suite".
func Pool(t *testing.T, open func(t *testing.T) PoolWorld) {
	for name, f := range map[string]func(*poolSuite){
		"launch twice is launch once":                 (*poolSuite).twice,
		"another process adopts what runs":            (*poolSuite).adopts,
		"a dead instance is seen, launch replaces it": (*poolSuite).dead,
		"one instance is ended, the others stay":      (*poolSuite).end,
		"launch brings to the size, up and down":      (*poolSuite).size,
		"retire ends one group and leaves nothing":    (*poolSuite).retire,
		"groups are listed by fleet":                  (*poolSuite).byFleet,
		"an ended context starts nothing":             (*poolSuite).ended,
	} {
		t.Run(name, func(t *testing.T) {
			w := open(t)
			if w.Patience == 0 {
				w.Patience = 10 * time.Second
			}
			s := &poolSuite{PoolWorld: w, t: t}
			t.Cleanup(func() { // also after a failure: no machine stays
				for _, slot := range []fleet.Slot{fleet.Blue, fleet.Green} {
					if err := w.Pool.Retire(context.WithoutCancel(t.Context()), id(slot)); err != nil {
						t.Error(err)
					}
				}
			})
			f(s)
		})
	}
}

type poolSuite struct {
	PoolWorld
	t *testing.T
}

func id(slot fleet.Slot) fleet.GroupID {
	return fleet.GroupID{Fleet: "suite", Slot: slot, Deployment: "01J000000000000000000000" + map[fleet.Slot]string{fleet.Blue: "BB", fleet.Green: "GG"}[slot]}
}

func (s *poolSuite) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *poolSuite) launch(slot fleet.Slot, size int) map[string]fleet.Instance {
	s.t.Helper()
	spec := s.Spec
	spec.Size = size
	s.ok(s.Pool.Launch(s.t.Context(), id(slot), spec))
	return s.running(slot)
}

func (s *poolSuite) group(slot fleet.Slot) *fleet.Group {
	s.t.Helper()
	gs, err := s.Pool.Groups(s.t.Context(), "suite")
	s.ok(err)
	for i := range gs {
		if gs[i].ID == id(slot) {
			return &gs[i]
		}
	}
	return nil
}

func (s *poolSuite) running(slot fleet.Slot) map[string]fleet.Instance {
	s.t.Helper()
	out := map[string]fleet.Instance{}
	if g := s.group(slot); g != nil {
		for _, i := range g.Instances {
			if i.Running {
				out[i.ID] = i
			}
		}
	}
	return out
}

// unchanged: the very same machines, not others of the same name.
func (s *poolSuite) unchanged(was, is map[string]fleet.Instance) {
	s.t.Helper()
	if len(was) != len(is) {
		s.t.Fatalf("%d instances were %d", len(is), len(was))
	}
	for name, a := range was {
		if b, ok := is[name]; !ok || a.PID != b.PID || !a.Started.Equal(b.Started) {
			s.t.Errorf("%s is not the machine it was: %+v, %+v", name, a, b)
		}
	}
}

func (s *poolSuite) twice() {
	first := s.launch(fleet.Blue, s.Spec.Size)
	if len(first) != s.Spec.Size {
		s.t.Fatalf("%d of %d run", len(first), s.Spec.Size)
	}
	seen := map[string]bool{}
	for name, i := range first {
		for _, p := range s.Spec.Ports {
			if i.Ports[p] == "" || seen[i.Ports[p]] {
				s.t.Errorf("%s: port %d is at %q", name, p, i.Ports[p])
			}
			seen[i.Ports[p]] = true
		}
	}
	if g := s.group(fleet.Blue); g.Image != s.Spec.Image.Digest {
		s.t.Errorf("its image is %q, want %q", g.Image, s.Spec.Image.Digest)
	}
	s.unchanged(first, s.launch(fleet.Blue, s.Spec.Size))
}

func (s *poolSuite) adopts() {
	if s.Again == nil {
		s.t.Log("this pool lives in one process: the same pool stands for the other one")
		s.Again = func(*testing.T) fleet.Pool { return s.Pool }
	}
	first := s.launch(fleet.Blue, s.Spec.Size)
	s.Pool = s.Again(s.t)
	s.unchanged(first, s.running(fleet.Blue))
	s.unchanged(first, s.launch(fleet.Blue, s.Spec.Size))
}

func (s *poolSuite) dead() {
	first := s.launch(fleet.Blue, s.Spec.Size)
	var victim fleet.Instance
	for _, victim = range first {
		break
	}
	s.Kill(s.t, victim)
	if s.Replaces {
		s.replaced(first, victim)
		return
	}
	end := time.Now().Add(s.Patience)
	for len(s.running(fleet.Blue)) != s.Spec.Size-1 {
		if time.Now().After(end) {
			s.t.Fatal("the dead instance is not seen")
		}
		<-time.After(5 * time.Millisecond)
	}
	if g := s.group(fleet.Blue); len(g.Instances) != s.Spec.Size {
		s.t.Errorf("the dead one is not listed: %+v", g.Instances)
	}
	again := s.launch(fleet.Blue, s.Spec.Size)
	if len(again) != s.Spec.Size || again[victim.ID].Started.Before(victim.Started) {
		s.t.Errorf("after launch: %+v", again)
	}
	delete(first, victim.ID)
	delete(again, victim.ID)
	s.unchanged(first, again)
}

// replaced waits for another instance beside the ones that stay, which a launch
// leaves as it is.
func (s *poolSuite) replaced(first map[string]fleet.Instance, victim fleet.Instance) {
	end := time.Now().Add(s.Patience)
	for now := s.running(fleet.Blue); now[victim.ID].Running || len(now) != s.Spec.Size; now = s.running(fleet.Blue) {
		if time.Now().After(end) {
			s.t.Fatalf("the dead instance is not replaced: %+v", now)
		}
		<-time.After(5 * time.Millisecond)
	}
	again := s.launch(fleet.Blue, s.Spec.Size)
	delete(first, victim.ID)
	for name := range again {
		if _, old := first[name]; !old && len(again) > len(first) {
			delete(again, name)
		}
	}
	s.unchanged(first, again)
}

func (s *poolSuite) size() {
	one := s.launch(fleet.Blue, 1)
	two := s.launch(fleet.Blue, 2)
	if len(one) != 1 || len(two) != 2 {
		s.t.Fatalf("%d, then %d", len(one), len(two))
	}
	s.unchanged(one, s.launch(fleet.Blue, 1))
	if g := s.group(fleet.Blue); len(g.Instances) != 1 {
		s.t.Errorf("%d are listed", len(g.Instances))
	}
}

func (s *poolSuite) end() {
	ctx := s.t.Context()
	first := s.launch(fleet.Blue, s.Spec.Size)
	var victim fleet.Instance
	for _, victim = range first {
		break
	}
	for range 2 {
		s.ok(s.Pool.End(ctx, id(fleet.Blue), victim.ID))
	}
	left := s.running(fleet.Blue)
	if g := s.group(fleet.Blue); len(g.Instances) != s.Spec.Size-1 {
		s.t.Errorf("it is still listed: %+v", g.Instances)
	}
	delete(first, victim.ID)
	s.unchanged(first, left)
	again := s.launch(fleet.Blue, s.Spec.Size)
	if s.Replaces { // under another name
		for name, i := range maps.Clone(again) {
			if _, old := first[name]; !old {
				delete(again, name)
				again[victim.ID] = i
			}
		}
	}
	if _, ok := again[victim.ID]; !ok || len(again) != s.Spec.Size || again[victim.ID].Started.Before(victim.Started) {
		s.t.Errorf("after launch: %+v", again)
	}
	delete(again, victim.ID)
	s.unchanged(first, again)
}

func (s *poolSuite) retire() {
	s.launch(fleet.Blue, 1)
	green := s.launch(fleet.Green, 1)
	for range 2 {
		s.ok(s.Pool.Retire(s.t.Context(), id(fleet.Blue)))
	}
	if g := s.group(fleet.Blue); g != nil {
		s.t.Errorf("it is still listed: %+v", g)
	}
	s.unchanged(green, s.running(fleet.Green))
	s.ok(s.Pool.Retire(s.t.Context(), id(fleet.Green)))
	if left := s.Leftovers(s.t); len(left) > 0 {
		s.t.Errorf("left: %q", left)
	}
}

func (s *poolSuite) byFleet() {
	s.launch(fleet.Blue, 1)
	gs, err := s.Pool.Groups(s.t.Context(), "suit")
	s.ok(err)
	if len(gs) != 0 {
		s.t.Errorf("another fleet has %+v", gs)
	}
}

func (s *poolSuite) ended() {
	ctx, cancel := context.WithCancel(s.t.Context())
	cancel()
	if err := s.Pool.Launch(ctx, id(fleet.Blue), s.Spec); err == nil {
		s.t.Error("launched with an ended context")
	}
	if n := len(s.running(fleet.Blue)); n != 0 {
		s.t.Errorf("%d run", n)
	}
}
