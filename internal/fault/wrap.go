package fault

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/rebake/rebake/fleet"
)

// Pool puts the faults before a pool. It is a Fencer and a Witness; where the
// pool is none, those calls do nothing.
func (i *Injector) Pool(p fleet.Pool) fleet.Pool { return &pool{in: i, pool: p} }

// Router puts the faults before a router. It is a Fencer; where the router is
// none, that call does nothing.
func (i *Injector) Router(r fleet.Router) fleet.Router { return &router{in: i, router: r} }

type pool struct {
	in   *Injector
	pool fleet.Pool

	mu   sync.Mutex
	last map[string][]fleet.Group // by fleet: the answer before
}

var (
	_ fleet.Fencer  = (*pool)(nil)
	_ fleet.Witness = (*pool)(nil)
	_ fleet.Fencer  = (*router)(nil)
)

// Unwrap is the pool behind the faults, for its other powers.
func (p *pool) Unwrap() fleet.Pool { return p.pool }

func (p *pool) Groups(ctx context.Context, name string) (gs []fleet.Group, err error) {
	stale, err := p.in.ask(ctx, "groups", false, func() (err error) { gs, err = p.pool.Groups(ctx, name); return err })
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if last, ok := p.last[name]; stale && ok {
		return cloneGroups(last), nil
	}
	if p.last == nil {
		p.last = map[string][]fleet.Group{}
	}
	p.last[name] = cloneGroups(gs)
	return gs, nil
}

func cloneGroups(gs []fleet.Group) []fleet.Group {
	out := slices.Clone(gs)
	for i := range out {
		out[i].Instances = slices.Clone(out[i].Instances)
	}
	return out
}

func (p *pool) Launch(ctx context.Context, id fleet.GroupID, spec fleet.Spec) error {
	return p.in.call(ctx, "launch", true, func() error { return p.pool.Launch(ctx, id, spec) })
}

func (p *pool) End(ctx context.Context, id fleet.GroupID, instance string) error {
	return p.in.call(ctx, "end", true, func() error { return p.pool.End(ctx, id, instance) })
}

func (p *pool) Retire(ctx context.Context, id fleet.GroupID) error {
	return p.in.call(ctx, "retire", true, func() error { return p.pool.Retire(ctx, id) })
}

func (p *pool) Evidence(ctx context.Context, id fleet.GroupID) (text string, err error) {
	w, ok := p.pool.(fleet.Witness)
	if !ok {
		return "", nil
	}
	err = p.in.call(ctx, "evidence", false, func() (err error) { text, err = w.Evidence(ctx, id); return err })
	return text, err
}

func (p *pool) Fence(ctx context.Context, epoch int64) error {
	if f, ok := p.pool.(fleet.Fencer); ok {
		return f.Fence(ctx, epoch)
	}
	return nil
}

type router struct {
	in     *Injector
	router fleet.Router

	mu   sync.Mutex
	last *fleet.RouterStatus // the answer before
}

// Unwrap is the router behind the faults.
func (r *router) Unwrap() fleet.Router { return r.router }

func (r *router) Fence(ctx context.Context, epoch int64) error {
	if f, ok := r.router.(fleet.Fencer); ok {
		return f.Fence(ctx, epoch)
	}
	return nil
}

func (r *router) Ensure(ctx context.Context) error {
	return r.in.call(ctx, "ensure", true, func() error { return r.router.Ensure(ctx) })
}

func (r *router) Status(ctx context.Context) (st fleet.RouterStatus, err error) {
	stale, err := r.in.ask(ctx, "status", false, func() (err error) { st, err = r.router.Status(ctx); return err })
	if err != nil {
		return fleet.RouterStatus{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if stale && r.last != nil {
		return cloneStatus(*r.last), nil
	}
	last := cloneStatus(st)
	r.last = &last
	return st, nil
}

func cloneStatus(st fleet.RouterStatus) fleet.RouterStatus {
	st.Weights, st.Members = maps.Clone(st.Weights), maps.Clone(st.Members)
	for s, ms := range st.Members {
		st.Members[s] = slices.Clone(ms)
	}
	return st
}

func (r *router) Attach(ctx context.Context, s fleet.Slot, ms []fleet.Member) error {
	return r.in.call(ctx, "attach", true, func() error { return r.router.Attach(ctx, s, ms) })
}

func (r *router) Ready(ctx context.Context, s fleet.Slot) error {
	return r.in.call(ctx, "ready", true, func() error { return r.router.Ready(ctx, s) })
}

func (r *router) SetWeights(ctx context.Context, w map[fleet.Slot]int) error {
	return r.in.call(ctx, "weigh", true, func() error { return r.router.SetWeights(ctx, w) })
}

func (r *router) Drain(ctx context.Context, s fleet.Slot, ids ...string) error {
	return r.in.call(ctx, "drain", true, func() error { return r.router.Drain(ctx, s, ids...) })
}

func (r *router) Detach(ctx context.Context, s fleet.Slot, force bool, ids ...string) (cut int, err error) {
	err = r.in.call(ctx, "detach", true, func() (err error) { cut, err = r.router.Detach(ctx, s, force, ids...); return err })
	return cut, err
}

// Remove has no faults: it is how whoever made the router ends it.
func (r *router) Remove(ctx context.Context) error { return r.router.Remove(ctx) }
