package qemu

import (
	"errors"
	"maps"
	"testing"

	"github.com/rebake/rebake/fleet"
)

// An operator who was replaced while he slept starts and ends nothing when he wakes up.
func TestAnOperatorWhoWasReplacedIsRefused(t *testing.T) {
	first, machines, store := newPool(t)
	second, err := New(Config{}, Deps{State: first.deps.State, Store: store}, "web")
	must(t, err)
	second.vms = machines
	ctx := t.Context()
	two, three := fleet.Spec{Image: image(1), Size: 2, Ports: []int{80}}, fleet.Spec{Image: image(1), Size: 3, Ports: []int{80}}
	must(t, first.Fence(ctx, 1))
	must(t, first.Launch(ctx, blue, two))
	before := pids(t, first)
	must(t, second.Fence(ctx, 2))
	for name, f := range map[string]func() error{
		"launch": func() error { return first.Launch(ctx, blue, three) },
		"end":    func() error { return first.End(ctx, blue, instanceID(blue, 1)) },
		"retire": func() error { return first.Retire(ctx, blue) },
		"fence":  func() error { return first.Fence(ctx, 1) },
	} {
		if err := f(); !errors.Is(err, fleet.ErrStale) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if after := pids(t, second); !maps.Equal(before, after) {
		t.Errorf("%v, and %v before", after, before)
	}
	must(t, second.Launch(ctx, blue, three))
	must(t, first.Fence(ctx, 3)) // it is his again, who cleans up
	must(t, first.Retire(ctx, blue))
}
