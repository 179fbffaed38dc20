package model

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
)

// Group is a group in memory that is refreshed in place. Each Refreshing is a moment,
// in which one instance is replaced, or becomes well, or a refresh comes to its next
// phase; nothing else moves it. It is for one goroutine.
type Group struct {
	fleet.Standing

	Sick map[artifact.Digest]string // what the checks of an image's instances say for ever, such as L7STS/500

	// Before and After are called around each call that changes something, with its
	// name; an error of Before is given instead of the call, one of After instead of
	// its answer. nil: nothing is.
	Before, After func(call string) error
	// Moment is called before each; nil: nothing is.
	Moment func()

	is        fleet.RefreshState
	to        fleet.GroupID // what the refresh makes
	bake      int           // moments
	own       fleet.GroupID // what the group launches by itself
	templates map[fleet.GroupID]template
	in        []replaceable
	ids, runs int
}

type template struct {
	image  artifact.Digest
	ports  []int
	before fleet.GroupID
}

type replaceable struct {
	id   string
	of   fleet.GroupID
	well bool
}

var _ fleet.InPlace = (*Group)(nil)

// NewGroup is a group of so many instances of somebody else's image.
func NewGroup(size int) *Group {
	g := &Group{Sick: map[artifact.Digest]string{}, templates: map[fleet.GroupID]template{}}
	g.Grow(size)
	for i := range g.in {
		g.in[i].well = true
	}
	return g
}

// Grow adds instances by what the group launches now.
func (g *Group) Grow(n int) {
	for range n {
		g.in = append(g.in, g.launch(g.own))
	}
}

func (g *Group) launch(of fleet.GroupID) replaceable {
	g.ids++
	return replaceable{id: fmt.Sprintf("i-%04d", g.ids), of: of}
}

// Of counts the instances of a group, the zero one being somebody else's, and those
// of them that are well.
func (g *Group) Of(id fleet.GroupID) (n, well int) {
	for _, m := range g.in {
		if m.of == id {
			n++
			if m.well {
				well++
			}
		}
	}
	return n, well
}

// Cancel ends what goes on, as if somebody cancelled it.
func (g *Group) Cancel() {
	if g.is.Active() {
		g.is.Phase, g.is.Why = fleet.RefreshEnded, "somebody cancelled it"
	}
}

// Turn turns a refresh of the fleet round, as an alarm does.
func (g *Group) Turn(why string) {
	if g.is.Phase == fleet.RefreshRuns && g.is.To != (fleet.GroupID{}) {
		g.is.Phase, g.is.Why, g.to = fleet.RefreshTurning, why, g.own
	}
}

// Begin begins one of somebody else's, which lasts.
func (g *Group) Begin(id string) {
	g.is, g.bake = fleet.RefreshState{ID: id, Phase: fleet.RefreshBakes}, 1<<30
}

// Phase is that of the newest refresh; no time passes.
func (g *Group) Phase() fleet.RefreshPhase { return g.is.Phase }

// moment is what Auto Scaling does between two looks.
func (g *Group) moment() {
	if g.Moment != nil {
		g.Moment()
	}
	for i, m := range g.in {
		if !m.well && g.Sick[g.templates[m.of].image] == "" {
			g.in[i].well = true
			return
		}
	}
	if !g.is.Active() {
		return
	}
	if g.is.Phase == fleet.RefreshBakes {
		if g.bake--; g.bake <= 0 {
			g.is.Phase, g.own = fleet.RefreshDone, g.to
		}
		return
	}
	for i, m := range g.in {
		if m.of != g.to {
			g.in[i] = g.launch(g.to)
			return
		}
		if !m.well {
			return // the next one is replaced once this one serves
		}
	}
	switch {
	case g.is.Phase == fleet.RefreshTurning:
		g.is.Phase = fleet.RefreshTurned
	case g.bake > 0:
		g.is.Phase = fleet.RefreshBakes
	default:
		g.is.Phase, g.own = fleet.RefreshDone, g.to
	}
}

func (g *Group) change(ctx context.Context, call string, f func() error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, step := range []func() error{func() error { return told(g.Before, call) }, f, func() error { return told(g.After, call) }} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func told(f func(string) error, call string) error {
	if f == nil {
		return nil
	}
	return f(call)
}

// Refreshing implements fleet.InPlace.
func (g *Group) Refreshing(ctx context.Context) (fleet.RefreshState, error) {
	if ctx.Err() != nil {
		return fleet.RefreshState{}, context.Cause(ctx)
	}
	g.moment()
	is := g.is
	is.Serves, is.Size = g.own, len(g.in)
	return is, nil
}

// Replace implements fleet.InPlace. Its bake time is a moment for each second.
func (g *Group) Replace(ctx context.Context, id fleet.GroupID, spec fleet.Spec, b fleet.Bounds) error {
	return g.change(ctx, "replace", func() error {
		switch {
		case g.is.To == id:
			return nil
		case g.is.Active():
			return fmt.Errorf("%w: %s", fleet.ErrRefreshing, g.is.ID)
		}
		if _, ok := g.templates[id]; !ok {
			g.templates[id] = template{spec.Image.Digest, spec.Ports, g.own}
		}
		g.begin(id, int(b.Bake/time.Second))
		g.is.To = id
		return nil
	})
}

func (g *Group) begin(to fleet.GroupID, bake int) {
	g.runs++
	g.is, g.to, g.bake = fleet.RefreshState{ID: fmt.Sprintf("r-%d", g.runs), Phase: fleet.RefreshRuns}, to, bake
}

// TakeBack implements fleet.InPlace.
func (g *Group) TakeBack(ctx context.Context, id fleet.GroupID, _ fleet.Bounds) error {
	return g.change(ctx, "take back", func() error {
		switch {
		case g.is.To == id && (g.is.Phase == fleet.RefreshRuns || g.is.Phase == fleet.RefreshBakes):
			g.is.Phase, g.is.Why, g.to = fleet.RefreshTurning, "somebody said so", g.own
		case !g.is.Active() && g.own == id:
			g.begin(g.templates[id].before, 0)
		case !g.is.Active():
			g.begin(g.own, 0)
		}
		return nil
	})
}

// Retire implements fleet.Pool.
func (g *Group) Retire(ctx context.Context, id fleet.GroupID) error {
	return g.change(ctx, "retire", func() error {
		if n, _ := g.Of(id); n > 0 || g.own == id || g.is.Active() && g.is.To == id {
			return errors.New("the group launches by it")
		}
		delete(g.templates, id)
		return nil
	})
}

// Groups implements fleet.Pool.
func (g *Group) Groups(ctx context.Context, _ string) (out []fleet.Group, err error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	for id, t := range g.templates {
		one := fleet.Group{ID: id, Image: t.image}
		for _, m := range g.in {
			if m.of == id {
				in := fleet.Instance{ID: m.id, Running: true, Ports: map[int]string{}}
				for _, p := range t.ports {
					in.Ports[p] = fmt.Sprintf("%s:%d", m.id, p)
				}
				one.Instances = append(one.Instances, in)
			}
		}
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b fleet.Group) int { return len(a.ID.Deployment) - len(b.ID.Deployment) })
	return out, nil
}

// Status implements fleet.Router.
func (g *Group) Status(ctx context.Context) (fleet.RouterStatus, error) {
	st := fleet.RouterStatus{Up: true, Listen: "group", Weights: map[fleet.Slot]int{fleet.Blue: 0, fleet.Green: 0}, Members: map[fleet.Slot][]fleet.MemberStatus{}}
	if ctx.Err() != nil {
		return st, context.Cause(ctx)
	}
	n := map[fleet.Slot]int{}
	for _, m := range g.in {
		if n[m.of.Slot]++; m.of == (fleet.GroupID{}) {
			continue
		}
		s := fleet.MemberStatus{Member: fleet.Member{ID: m.id}, Admin: "ready", Check: "L7OK", Healthy: m.well}
		if !m.well {
			s.Check = cmp.Or(g.Sick[g.templates[m.of].image], "not checked often enough yet")
		}
		for _, p := range g.templates[m.of].ports {
			s.Addr = fmt.Sprintf("%s:%d", m.id, p)
		}
		st.Members[m.of.Slot] = append(st.Members[m.of.Slot], s)
	}
	if n[fleet.Blue]+n[fleet.Green] > 0 {
		if n[fleet.Green] == 0 {
			n[fleet.Green] = n[""]
		} else if n[fleet.Blue] == 0 {
			n[fleet.Blue] = n[""]
		}
		st.Weights[fleet.Blue] = 1000 * n[fleet.Blue] / (n[fleet.Blue] + n[fleet.Green])
		st.Weights[fleet.Green] = 1000 - st.Weights[fleet.Blue]
	}
	return st, nil
}

// Size implements fleet.Grower.
func (g *Group) Size(context.Context, fleet.GroupID) (int, error) { return len(g.in), nil }

// Ensure implements fleet.Router.
func (g *Group) Ensure(context.Context) error { return nil }

// Remove implements fleet.Router: the group goes on as it is.
func (g *Group) Remove(context.Context) error { return nil }
