package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/drift"
	"github.com/rebake/rebake/internal/event"
)

// What a look at an instance came to.
const (
	DriftNone    = "as booted"
	DriftChanged = "changed"
	DriftDead    = "dead"
	DriftUnknown = "unknown" // it could not be asked
)

// InstanceDrift is one instance, as it is against how it was made.
type InstanceDrift struct {
	ID     string          `json:"id"`
	Slot   fleet.Slot      `json:"slot"`
	Serves bool            `json:"serves"`         // it is of the release that serves, healthy or not
	Image  artifact.Digest `json:"image"`          // that it runs, by the pool
	Want   artifact.Digest `json:"want,omitempty"` // that its deployment gave it; "": no deployment knows it
	State  string          `json:"state"`
	Why    string          `json:"why,omitempty"` // it is unknown
	Report *drift.Report   `json:"report,omitempty"`
}

// Right says that it runs the image that it should.
func (i InstanceDrift) Right() bool { return i.Image == i.Want }

// Good says that nothing is to be done about it.
func (i InstanceDrift) Good() bool { return i.Right() && i.State == DriftNone }

// FleetDrift is a fleet, as it is against what was deployed.
type FleetDrift struct {
	Instances []InstanceDrift `json:"instances"`
	Missing   int             `json:"missing"` // instances that the serving slot should have and the pool does not
}

// Good says that nothing is to be done about the fleet.
func (f FleetDrift) Good() bool {
	return f.Missing == 0 && !slices.ContainsFunc(f.Instances, func(i InstanceDrift) bool { return !i.Good() })
}

// How long an instance may take to let us in, and to tell. A guest without an
// accelerator hashes its packages' files slowly.
const (
	driftDial = 30 * time.Second
	driftLook = 3 * time.Minute
)

// driftBoot is how long the end of a boot is waited for.
var driftBoot = 15 * time.Second

// Drift asks all instances of a fleet at once what was changed in them since
// they booted. What cannot be asked is in the result; an error is the pool's.
func Drift(ctx context.Context, d *fleet.Deployer) (FleetDrift, error) {
	f := FleetDrift{Instances: []InstanceDrift{}}
	h, err := d.History(ctx)
	if err != nil {
		return f, err
	}
	groups, err := d.Pool.Groups(ctx, d.Config.Name)
	if err != nil {
		return f, fmt.Errorf("list the instances: %w", err)
	}
	cur, have := h.Current(), 0
	for _, g := range groups {
		serves := cur != nil && g.ID == cur.Group
		for _, i := range g.Instances {
			if serves {
				have++
			}
			one := InstanceDrift{ID: i.ID, Slot: g.ID.Slot, Serves: serves, Image: g.Image, Want: wanted(h, g.ID), State: DriftUnknown}
			if !i.Running {
				one.State = DriftDead
			}
			f.Instances = append(f.Instances, one)
		}
	}
	if cur != nil {
		f.Missing = max(0, cur.Spec.Size-have)
	}
	err = event.Run(ctx, fmt.Sprintf("ask %d instances what was changed", len(f.Instances)), func(ctx context.Context) error {
		var g errgroup.Group
		for i := range f.Instances {
			if one := &f.Instances[i]; one.State != DriftDead {
				g.Go(func() error { one.look(ctx, d.Pool); return nil })
			}
		}
		return errors.Join(g.Wait(), context.Cause(ctx))
	})
	return f, err
}

// wanted is the image that the deployments gave a group.
func wanted(h fleet.History, id fleet.GroupID) (want artifact.Digest) {
	for _, r := range h {
		switch {
		case r.New.Group == id:
			return r.New.Spec.Image.Digest
		case r.Old != nil && (r.Old.Group == id || id.Deployment == r.ID): // or its baseline
			want = r.Old.Spec.Image.Digest
		}
	}
	return want
}

// look asks one instance.
func (i *InstanceDrift) look(ctx context.Context, pool fleet.Pool) {
	c, err := Connect(ctx, pool, i.ID, driftDial)
	if err != nil {
		i.Why = err.Error()
		return
	}
	defer c.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, driftLook, fmt.Errorf("it did not tell within %s", driftLook))
	defer cancel()
	r, err := drift.Look(ctx, c)
	for until := time.Now().Add(driftBoot); errors.Is(err, drift.ErrBooting) && time.Now().Before(until); {
		event.Waiting(ctx, "the end of the boot of %s", i.ID)
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
		r, err = drift.Look(ctx, c)
	}
	switch {
	case err != nil:
		i.Why = err.Error()
	case r.Clean():
		i.State, i.Report = DriftNone, &r
	default:
		i.State, i.Report = DriftChanged, &r
	}
}

// Drifted are the live instances of the release that serves that were changed or
// run another image: those that Heal can replace.
func (f FleetDrift) Drifted() (ids []string) {
	for _, i := range f.Instances {
		if i.Serves && (i.State == DriftChanged || !i.Right() && i.State != DriftDead) {
			ids = append(ids, i.ID)
		}
	}
	return ids
}
