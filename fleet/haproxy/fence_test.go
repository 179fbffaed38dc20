package haproxy

import (
	"errors"
	"testing"

	"github.com/rebake/rebake/fleet"
)

// An operator who was replaced while he slept moves no traffic when he wakes up.
func TestAnOperatorWhoWasReplacedIsRefused(t *testing.T) {
	first := newRouter(t, fleet.HealthCheck{})
	ensure(t, first)
	second, err := New(first.cfg, first.dir, first.runDir, first.name, first.hc)
	must(t, err)
	ctx := t.Context()
	must(t, first.Fence(ctx, 1))
	must(t, first.SetWeights(ctx, map[fleet.Slot]int{fleet.Blue: 1000}))
	must(t, second.Fence(ctx, 2))
	must(t, second.SetWeights(ctx, map[fleet.Slot]int{fleet.Green: 1000}))
	for name, f := range map[string]func() error{
		"weights": func() error { return first.SetWeights(ctx, map[fleet.Slot]int{fleet.Blue: 1000}) },
		"attach":  func() error { return first.Attach(ctx, fleet.Blue, []fleet.Member{{ID: "a", Addr: "127.0.0.1:1"}}) },
		"drain":   func() error { return first.Drain(ctx, fleet.Green) },
		"detach":  func() error { _, err := first.Detach(ctx, fleet.Green, true); return err },
	} {
		if err := f(); !errors.Is(err, fleet.ErrStale) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if st := status(t, second); st.Weights[fleet.Green] != 1000 {
		t.Errorf("weights %v", st.Weights)
	}
	must(t, first.Fence(ctx, 3)) // it is his again, who cleans up
}
