package conformance

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/rebake/rebake/fleet"
)

// InPlaceWorld is a group of four instances that somebody else made, and what the
// suite needs around it.
type InPlaceWorld struct {
	Group fleet.InPlace
	// Spec is of an image, another for each n; those of sick are never healthy.
	Spec func(n int, sick bool) fleet.Spec
	// Cancel ends what goes on in the group, as an operator at a console does.
	Cancel func(t *testing.T)
	// Bake is a bake time that outlasts the suite.
	Bake time.Duration
	// Patience is how long four instances may take to be replaced; default 10 s.
	Patience time.Duration
}

type inPlaceSuite struct {
	InPlaceWorld
	t *testing.T
}

// InPlace is the suite of fleet.InPlace.
func InPlace(t *testing.T, open func(t *testing.T) InPlaceWorld) {
	for name, f := range map[string]func(*inPlaceSuite){
		"all is replaced, and what serves is the new":        (*inPlaceSuite).replaced,
		"a refresh that bakes is turned round":               (*inPlaceSuite).turned,
		"what was cancelled is taken back":                   (*inPlaceSuite).cancelled,
		"what is done is taken back":                         (*inPlaceSuite).undone,
		"it changes by refreshes alone":                      (*inPlaceSuite).alone,
		"an ended context changes nothing, and says its end": (*inPlaceSuite).ended,
	} {
		t.Run(name, func(t *testing.T) {
			s := &inPlaceSuite{open(t), t}
			if s.Patience == 0 {
				s.Patience = 10 * time.Second
			}
			f(s)
		})
	}
}

func (s *inPlaceSuite) id(slot fleet.Slot, deployment string) fleet.GroupID {
	return fleet.GroupID{Fleet: "suite", Slot: slot, Deployment: deployment}
}

var bounds = fleet.Bounds{MinHealthy: 75, MaxHealthy: 125}

func (s *inPlaceSuite) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// until looks until so.
func (s *inPlaceSuite) until(what string, so func(fleet.RefreshState) bool) fleet.RefreshState {
	s.t.Helper()
	for end := time.Now().Add(s.Patience); ; time.Sleep(time.Millisecond) {
		is, err := s.Group.Refreshing(s.t.Context())
		s.ok(err)
		if so(is) {
			return is
		}
		if time.Now().After(end) {
			s.t.Fatalf("%s: not within %s: %+v", what, s.Patience, is)
		}
	}
}

func done(is fleet.RefreshState) bool { return is.Phase == fleet.RefreshDone }
func over(is fleet.RefreshState) bool { return !is.Active() }

// has is how many instances of the group there are, and how many are healthy; -1
// where the pool does not know the group.
func (s *inPlaceSuite) has(id fleet.GroupID) (n, well int) {
	s.t.Helper()
	gs, err := s.Group.Groups(s.t.Context(), "suite")
	s.ok(err)
	st, err := s.Group.Status(s.t.Context())
	s.ok(err)
	n = -1
	in := map[string]bool{}
	for _, g := range gs {
		if g.ID == id {
			n = len(g.Instances)
			for _, i := range g.Instances {
				in[i.ID] = true
			}
		}
	}
	for _, m := range st.Members[id.Slot] {
		if in[m.ID] && m.Healthy {
			well++
		}
	}
	return n, well
}

// whole waits until all four instances are healthy ones of the group.
func (s *inPlaceSuite) whole(id fleet.GroupID) {
	s.t.Helper()
	s.until("all is of "+id.Deployment, func(fleet.RefreshState) bool { n, well := s.has(id); return n == 4 && well == 4 })
}

func (s *inPlaceSuite) replaced() {
	ctx := s.t.Context()
	one, two := s.id(fleet.Blue, "01A"), s.id(fleet.Green, "01B")
	is := s.until("it is seen", func(fleet.RefreshState) bool { return true })
	if is.Phase != "" || is.Serves != (fleet.GroupID{}) || is.Size != 4 || is.Active() {
		s.t.Errorf("before: %+v", is)
	}
	st, err := s.Group.Status(ctx)
	if s.ok(err); !st.Up || len(st.Members[fleet.Blue])+len(st.Members[fleet.Green]) > 0 || st.Weights[fleet.Blue]+st.Weights[fleet.Green] != 0 {
		s.t.Errorf("before: %+v", st)
	}
	s.ok(s.Group.Replace(ctx, one, s.Spec(1, false), bounds))
	began := s.until("it goes on", func(is fleet.RefreshState) bool { return is.To == one })
	s.ok(s.Group.Replace(ctx, one, s.Spec(1, false), bounds))
	is = s.until("it is done", done)
	if is.ID != began.ID || is.To != one || is.Serves != one {
		s.t.Errorf("said twice it is %+v, and was %s", is, began.ID)
	}
	s.whole(one)
	if st, err = s.Group.Status(ctx); err != nil || st.Weights[fleet.Blue] != 1000 {
		s.t.Errorf("%v, %v", st.Weights, err)
	}
	for _, m := range st.Members[fleet.Blue] {
		if m.Addr == "" || m.Admin != "ready" || m.Check != "L7OK" {
			s.t.Errorf("%+v", m)
		}
	}
	s.ok(s.Group.Replace(ctx, one, s.Spec(1, false), bounds)) // also once it is done
	s.ok(s.Group.Replace(ctx, two, s.Spec(2, true), bounds))
	if err := s.Group.Replace(ctx, s.id(fleet.Green, "01C"), s.Spec(3, false), bounds); !errors.Is(err, fleet.ErrRefreshing) {
		s.t.Errorf("another in the middle of one: %v", err)
	}
	if err := s.Group.Retire(ctx, one); err == nil {
		s.t.Error("what the group launches by was removed")
	}
}

func (s *inPlaceSuite) turned() {
	ctx := s.t.Context()
	one, two := s.id(fleet.Blue, "01A"), s.id(fleet.Green, "01B")
	s.ok(s.Group.Replace(ctx, one, s.Spec(1, false), bounds))
	s.until("it is done", done)
	long := bounds
	long.Bake = s.Bake
	s.ok(s.Group.Replace(ctx, two, s.Spec(2, false), long))
	is := s.until("it bakes", func(is fleet.RefreshState) bool { return is.Phase == fleet.RefreshBakes })
	if is.Serves != one || is.To != two {
		s.t.Errorf("while it bakes: %+v", is)
	}
	s.whole(two)
	for range 2 {
		s.ok(s.Group.TakeBack(ctx, two, bounds))
	}
	is = s.until("it went back", over)
	if is.Phase != fleet.RefreshTurned || is.Serves != one {
		s.t.Errorf("%+v", is)
	}
	s.whole(one)
	s.until("the new ones are gone", func(fleet.RefreshState) bool { n, _ := s.has(two); return n == 0 })
	for range 2 {
		s.ok(s.Group.Retire(ctx, two))
	}
	if n, _ := s.has(two); n != -1 {
		s.t.Errorf("retired, it is there with %d instances", n)
	}
}

func (s *inPlaceSuite) cancelled() {
	ctx := s.t.Context()
	one, bad := s.id(fleet.Blue, "01A"), s.id(fleet.Green, "01B")
	s.ok(s.Group.Replace(ctx, one, s.Spec(1, false), bounds))
	s.until("it is done", done)
	s.ok(s.Group.Replace(ctx, bad, s.Spec(2, true), bounds))
	s.until("one is new", func(fleet.RefreshState) bool { n, _ := s.has(bad); return n > 0 })
	if _, well := s.has(bad); well > 0 {
		s.t.Error("what is never healthy is")
	}
	s.Cancel(s.t)
	if is := s.until("it ended", over); is.Phase != fleet.RefreshEnded || is.Why == "" || is.Serves != one {
		s.t.Errorf("%+v", is)
	}
	s.ok(s.Group.TakeBack(ctx, bad, bounds))
	s.until("it is over", over)
	s.whole(one)
	s.ok(s.Group.Retire(ctx, bad))
}

func (s *inPlaceSuite) undone() {
	ctx := s.t.Context()
	one, two := s.id(fleet.Blue, "01A"), s.id(fleet.Green, "01B")
	for _, to := range []struct {
		id fleet.GroupID
		n  int
	}{{one, 1}, {two, 2}} {
		s.ok(s.Group.Replace(ctx, to.id, s.Spec(to.n, false), bounds))
		s.until("it is done", func(is fleet.RefreshState) bool { return done(is) && is.To == to.id })
	}
	s.ok(s.Group.TakeBack(ctx, two, bounds))
	if is := s.until("it is done", over); is.Serves != one {
		s.t.Errorf("%+v", is)
	}
	s.whole(one)
	s.ok(s.Group.Retire(ctx, two))
	s.ok(s.Group.TakeBack(ctx, one, bounds)) // to what was there before all of it
	if is := s.until("it is done", over); is.Serves != (fleet.GroupID{}) || is.Size != 4 {
		s.t.Errorf("%+v", is)
	}
	s.until("none is left", func(fleet.RefreshState) bool { n, _ := s.has(one); return n == 0 })
	s.ok(s.Group.Retire(ctx, one))
}

func (s *inPlaceSuite) alone() {
	ctx, g, one := s.t.Context(), s.Group, s.id(fleet.Blue, "01A")
	s.ok(g.Ensure(ctx))
	for name, f := range map[string]func() error{
		"Launch": func() error { return g.Launch(ctx, one, s.Spec(1, false)) }, "End": func() error { return g.End(ctx, one, "i-1") },
		"Attach": func() error { return g.Attach(ctx, fleet.Blue, nil) }, "Ready": func() error { return g.Ready(ctx, fleet.Blue) },
		"SetWeights": func() error { return g.SetWeights(ctx, map[fleet.Slot]int{fleet.Blue: 1000}) }, "Drain": func() error { return g.Drain(ctx, fleet.Blue) },
		"Detach": func() error { _, err := g.Detach(ctx, fleet.Blue, true); return err },
	} {
		if f() == nil {
			s.t.Errorf("%s: it said that it was done", name)
		}
	}
	s.ok(g.Remove(ctx))
	if is := s.until("it is there", func(fleet.RefreshState) bool { return true }); is.Size != 4 {
		s.t.Errorf("let go, it has %d instances", is.Size)
	}
}

func (s *inPlaceSuite) ended() {
	cause := errors.New("told to stop")
	ctx, cancel := context.WithCancelCause(s.t.Context())
	s.until("it is there", func(fleet.RefreshState) bool { return true })
	cancel(cause)
	one := s.id(fleet.Blue, "01A")
	for name, f := range map[string]func() error{
		"Refreshing": func() error { _, err := s.Group.Refreshing(ctx); return err },
		"Groups":     func() error { _, err := s.Group.Groups(ctx, "suite"); return err },
		"Status":     func() error { _, err := s.Group.Status(ctx); return err },
		"Replace":    func() error { return s.Group.Replace(ctx, one, s.Spec(1, false), bounds) },
		"TakeBack":   func() error { return s.Group.TakeBack(ctx, one, bounds) },
		"Retire":     func() error { return s.Group.Retire(ctx, one) },
	} {
		if err := f(); !errors.Is(err, cause) && !errors.Is(err, context.Canceled) {
			s.t.Errorf("%s: %v", name, err)
		}
	}
	if is := s.until("it is there", func(fleet.RefreshState) bool { return true }); is.Phase != "" || is.Serves != (fleet.GroupID{}) {
		s.t.Errorf("%+v", is)
	}
}
