package conformance

import (
	"errors"

	"github.com/rebake/rebake/fleet"
)

// A slot that has the traffic loses one member: the others never notice, and
// what is in flight there ends.
func (s *routerSuite) some() {
	ctx := s.t.Context()
	blue := s.serve(fleet.Blue, 3)
	addr, end, err := s.Send(true)
	s.ok(err)
	gone := ""
	for _, m := range s.status().Members[fleet.Blue] {
		if m.Addr == addr {
			gone = m.ID
		}
	}
	s.ok(s.Router.Drain(ctx, fleet.Blue, gone, "nobody"))
	for range 30 {
		if got := s.one(); got == addr || !blue[got] {
			s.t.Errorf("%s got a request after %s was drained", got, gone)
		}
	}
	if _, err := s.Router.Detach(ctx, fleet.Blue, false, gone); !errors.Is(err, fleet.ErrBusy) {
		s.t.Errorf("detach while busy: %v", err)
	}
	if err := end(); err != nil {
		s.t.Errorf("the request in flight: %v", err)
	}
	s.await("the drained member idle", func(fleet.RouterStatus) bool { return s.inFlight(fleet.Blue) == 0 })
	if cut, err := s.Router.Detach(ctx, fleet.Blue, false, gone); err != nil || cut != 0 {
		s.t.Errorf("detach: cut %d, %v", cut, err)
	}
	left := s.status().Members[fleet.Blue]
	if len(left) != 2 {
		s.t.Fatalf("%d members are left", len(left))
	}
	for _, m := range left {
		if m.ID == gone || m.Admin != "ready" || !m.Healthy {
			s.t.Errorf("left: %+v", m)
		}
	}
	if cut, err := s.Router.Detach(ctx, fleet.Blue, true, "nobody"); err != nil || cut != 0 || len(s.status().Members[fleet.Blue]) != 2 {
		s.t.Errorf("detach of nobody: cut %d, %v", cut, err)
	}
	for range 10 {
		if got := s.one(); got == addr || !blue[got] {
			s.t.Errorf("%s answered", got)
		}
	}
}

func (s *routerSuite) fenced() {
	f, ok := s.Router.(fleet.Fencer)
	if !ok {
		s.t.Fatal("it cannot be fenced")
	}
	ctx := s.t.Context()
	s.ok(f.Fence(ctx, 7))
	s.ok(f.Fence(ctx, 7))
	s.ok(s.Router.SetWeights(ctx, map[fleet.Slot]int{}))
	if err := f.Fence(ctx, 6); !errors.Is(err, fleet.ErrStale) {
		s.t.Errorf("epoch 6 after 7: %v", err)
	}
	s.ok(f.Fence(ctx, 8))
}
