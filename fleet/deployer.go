package fleet

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/rebake/rebake/internal/event"
)

// Sentinels of deployments.
var (
	ErrRolledBack = errors.New("deployment was rolled back")
	ErrBlocked    = errors.New("deployment is blocked")
	ErrUnfinished = errors.New("another deployment is unfinished")
	ErrNothing    = errors.New("nothing to do")
	ErrPaused     = errors.New("deployment is paused")
	ErrFrozen     = errors.New("deployments are frozen")

	ErrNotApproved = errors.New("not the plan that was approved")
)

// Deployer carries deployments of one fleet out. Each method takes the fleet's
// lock (ErrLocked names who has it), so that one operator at a time acts.
type Deployer struct {
	Dir    string // the fleet's: journal.jsonl, fleet.json, lock; not used with Books
	Books  Books  // where its state is; nil: in Dir
	Config Config // saved by Deploy; its Name is the fleet's
	Pool   Pool
	Router Router
	// Gate judges an instance before it gets traffic; nil is no gate. It is
	// called for each instance, one after the other, and may be called again.
	Gate func(context.Context, Instance) error
	// Recorded is told of each journal record once it is on the disk: its kind,
	// and what it says in a word or two. nil: nobody is.
	Recorded func(kind, what string)
	Admit    Admit         // what an image must have; nil: nothing
	Hold     Hold          // keeps the image until the plan names it; nil: nobody removes images
	Ask      Ask           // the gates that are not judged from counters; nil: there are none
	Notify   Notify        // nil: nobody is told
	Poll     time.Duration // between looks; default 50ms
	// Now and Sleep are the time that deployments go by, nil: the time package's.
	// A rehearsal has a clock of its own.
	Now   func() time.Time
	Sleep func(context.Context, time.Duration)
}

// Witness is the optional power of a Pool to say what a group's machines last
// told: the ends of their serial logs.
type Witness interface {
	Evidence(ctx context.Context, id GroupID) (string, error)
}

// Request is a wish for a fleet.
type Request struct {
	Spec   Spec
	Policy Policy
	Force  bool // even if this very image serves already; gives up a blocked deployment
	Wait   bool // until the old slot is gone, not only until traffic moved
	// Approve is the id of the plan that a person saw (Plan): if anything would
	// be done otherwise, ErrNotApproved and nothing is done. "": no approval is asked for.
	Approve string
	// InFreeze says why the deployment may begin in a freeze window of the
	// Config; "": ErrFrozen then. What was begun is finished in one all the same.
	InFreeze string
	// Override says why Admit does not count; "": it does.
	Override string
}

// Result is what came of a call.
type Result struct {
	Record
	Unchanged bool     // the image serves already: nothing was done
	Serving   *Release // what serves after the call; nil if nothing does
}

// Deploy brings the fleet to the request. It returns once all traffic is on
// the new slot and its last hold is over; the old slot stays warm for
// Policy.KeepOld and goes by the next call of Tend, Deploy or Rollback, unless
// Wait. ErrRolledBack and ErrBlocked come with a Result that says why;
// ErrUnfinished names a deployment of something else that was cut off.
// A deployment of the same request that was cut off goes on.
func (d *Deployer) Deploy(ctx context.Context, req Request) (Result, error) {
	p, err := req.Policy.Complete()
	if err != nil {
		return Result{}, err
	}
	req.Policy = p
	if req.Spec.Size < 1 {
		return Result{}, fmt.Errorf("fleet.size: %d instances cannot serve", req.Spec.Size)
	}
	return d.session(ctx, func(ctx context.Context, s *session) (Result, error) {
		if r := s.history.Unfinished(); r != nil && r.State == Blocked && req.Force {
			if err := s.giveUp(ctx, *r); err != nil {
				return Result{Record: *r}, err
			}
		} else if r != nil {
			if r.State == Blocked || r.State == Paused || !reflect.DeepEqual(r.New.Spec, req.Spec) {
				return Result{Record: *r}, unfinished(*r)
			}
			event.Infof(ctx, "going on with deployment %s, which was cut off in state %q", r.ID, r.State)
			return s.finish(ctx, *r, req.Wait)
		}
		if cur := s.history.Current(); cur != nil && !req.Force && reflect.DeepEqual(cur.Spec, req.Spec) {
			if err := s.tend(ctx, req.Wait); err != nil {
				return Result{}, err
			}
			return Result{Record: *s.history.Last(), Unchanged: true}, nil
		}
		if err := d.frozen(ctx, &req); err != nil {
			return Result{}, err
		}
		if err := d.admit(ctx, req.Spec.Image, req.Override); err != nil {
			return Result{}, err
		}
		if err := s.desk.Save(ctx, d.Config); err != nil {
			return Result{}, err
		}
		return s.start(ctx, req, false)
	})
}

// Resume goes on with the deployment that was cut off, paused or blocked.
// ErrNothing if there is none.
func (d *Deployer) Resume(ctx context.Context, wait bool) (Result, error) {
	return d.session(ctx, func(ctx context.Context, s *session) (Result, error) {
		r := s.history.Unfinished()
		if r == nil {
			if last := s.history.Last(); last != nil && last.State.Resting() {
				err := s.tend(ctx, wait)
				return Result{Record: *s.history.Last()}, err
			}
			return Result{}, fmt.Errorf("%w: no deployment of %s is unfinished", ErrNothing, d.Config.Name)
		}
		switch r.State {
		case Blocked:
			if err := s.unblock(ctx, r); err != nil {
				return Result{Record: *r}, err
			}
		case Paused: // a person says that it is good
			o, err := s.observe(ctx)
			if err != nil {
				return Result{Record: *r}, err
			}
			next, _ := r.proceed(look(*r, o), r.Policy, d.now())
			if err := s.write(ctx, &next, kindState, nil, nil); err != nil {
				return Result{Record: *r}, err
			}
		}
		return s.finish(ctx, *s.history.Last(), wait)
	})
}

// Abort takes an unfinished deployment back: traffic to the old slot, then the
// new one goes. The error is nil when that was reached. After the point of no
// return (committed) it refuses: Rollback is the word then.
func (d *Deployer) Abort(ctx context.Context, reason string) (Result, error) {
	return d.session(ctx, func(ctx context.Context, s *session) (Result, error) {
		r := s.history.Unfinished()
		if r == nil {
			return Result{}, fmt.Errorf("%w: no deployment of %s is unfinished; `rebake rollback %s` goes back to the image before", ErrNothing, d.Config.Name, d.Config.Name)
		}
		return s.back(ctx, *r, reason)
	})
}

// Tend does what is due: it finishes what is past the point of no return,
// retires an old slot whose time is over (now: whether or not it is over), and
// ends instances that no deployment knows.
func (d *Deployer) Tend(ctx context.Context, now bool) error {
	_, err := d.session(ctx, func(ctx context.Context, s *session) (Result, error) {
		if r := s.history.Unfinished(); r != nil {
			if r.State.Proven() {
				return s.finish(ctx, *r, true)
			}
			if over := !r.Deadline.Equal(r.Since) && !d.now().Before(r.Deadline); r.State == Paused && over {
				res, err := s.finish(ctx, *r, true)
				if errors.Is(err, ErrRolledBack) {
					event.Warnf(ctx, "fleet %s: %v", r.Fleet, err)
					err = nil
				}
				return res, err
			}
			return Result{Record: *r}, nil // a human's to decide
		}
		if err := s.tend(ctx, now); err != nil {
			return Result{}, err
		}
		return Result{}, s.sweep(ctx)
	})
	return err
}

// Destroy ends the fleet: traffic, router, every instance, and its books.
func (d *Deployer) Destroy(ctx context.Context) error {
	ctx, desk, leave, err := d.sit(ctx)
	if err != nil {
		return err
	}
	err = event.Run(ctx, "destroy fleet "+d.Config.Name, func(ctx context.Context) error {
		if err := d.Router.Remove(ctx); err != nil {
			return fmt.Errorf("remove the router: %w", err)
		}
		groups, err := d.Pool.Groups(ctx, d.Config.Name)
		if err != nil {
			return fmt.Errorf("list the instances: %w", err)
		}
		for _, g := range groups {
			if err := d.Pool.Retire(ctx, g.ID); err != nil {
				return fmt.Errorf("end the %s instances: %w", g.ID.Slot, err)
			}
		}
		return desk.Remove(ctx) // last: until here it can be repeated
	})
	return leave(err)
}

// Status is what a fleet is, without its lock.
type Status struct {
	Current    *Release     `json:"current,omitempty"`
	Kept       *Release     `json:"kept,omitempty"`
	KeptUntil  time.Time    `json:"kept_until,omitzero"`
	Unfinished *Record      `json:"unfinished,omitempty"`
	Last       *Record      `json:"last,omitempty"`
	Groups     []Group      `json:"groups"`
	Router     RouterStatus `json:"router"`
}

// Status reads the journal, the pool and the router; it changes nothing.
func (d *Deployer) Status(ctx context.Context) (Status, error) {
	h, err := d.History(ctx)
	if err != nil {
		return Status{}, err
	}
	s := Status{Current: h.Current(), Unfinished: h.Unfinished(), Last: h.Last()}
	if old, r := h.Kept(); old != nil {
		s.Kept, s.KeptUntil = old, r.Deadline
	}
	if s.Groups, err = d.Pool.Groups(ctx, d.Config.Name); err != nil {
		return s, fmt.Errorf("list the instances: %w", err)
	}
	if s.Router, err = d.Router.Status(ctx); err != nil {
		return s, fmt.Errorf("ask the router: %w", err)
	}
	return s, nil
}

func unfinished(r Record) error {
	if r.State == Paused {
		return fmt.Errorf("%w: %s to %s; `rebake deploy resume %s` goes on, `rebake deploy abort %s` goes back", ErrPaused, r.ID, name(r.New), r.Fleet, r.Fleet)
	}
	if r.State == Blocked {
		return fmt.Errorf("%w: %s; `rebake deploy resume %s` tries again, `rebake deploy abort %s` goes back, `rebake deploy --redeploy` gives it up for another image", ErrBlocked, r.Reason, r.Fleet, r.Fleet)
	}
	return fmt.Errorf("%w: %s to %s is in state %q; `rebake deploy resume %s` goes on, `rebake deploy abort %s` goes back",
		ErrUnfinished, r.ID, name(r.New), r.State, r.Fleet, r.Fleet)
}

func name(r Release) string { return r.Spec.Image.Name + ":" + r.Spec.Image.Version }

// start writes the plan of a new deployment and carries it out.
func (s *session) start(ctx context.Context, req Request, rollback bool) (Result, error) {
	if p, ok := s.Pool.(Preparer); ok {
		if err := p.Prepare(ctx, req.Spec); err != nil {
			return Result{}, err
		}
	}
	// The kept slot is needed. If the current image turns out bad just now, its
	// deployment goes back to the old one, which this one then starts from.
	if err := s.tend(ctx, true); errors.Is(err, ErrRolledBack) {
		event.Warnf(ctx, "the last %v", err)
	} else if err != nil {
		return Result{}, err
	}
	o, err := s.observe(ctx)
	if err != nil {
		return Result{}, err
	}
	who := Me()
	p := Plan{
		ID: ulid.Make().String(), Fleet: s.Config.Name, By: who.User + "@" + who.Host, Began: s.now().UTC(),
		Old: s.history.Current(), Base: o.Router.Weights, Policy: req.Policy, Rollback: rollback, InFreeze: req.InFreeze, Override: req.Override, Hooks: s.Notify != nil,
	}
	p.New = Release{Spec: req.Spec, Group: GroupID{Fleet: p.Fleet, Slot: Blue, Deployment: p.ID}}
	if p.Old != nil {
		p.New.Group.Slot = p.Old.Group.Slot.Other()
	}
	if err := p.Policy.fits(p.New.Spec.Size); err != nil {
		return Result{}, err
	}
	if _, id := forecast(s.Config.Name, p.Old, req, 0); req.Approve != "" && req.Approve != id {
		return Result{}, fmt.Errorf("%w: %s was, and it is %s now; look at it again with `rebake deploy TEMPLATE --plan`", ErrNotApproved, req.Approve, id)
	}
	if err := s.held(ctx, p.New.Spec.Image, func() error { return s.append(ctx, kindPlan, p) }); err != nil {
		return Result{}, err
	}
	r := begin(p, s.now())
	s.history = append(s.history, r)
	return s.finish(ctx, r, req.Wait)
}

// tend ends what only waits for its time (a kept old slot, failed instances in
// quarantine, a pause) if that is over, or the first two anyway.
func (s *session) tend(ctx context.Context, anyway bool) error {
	r := s.history.Last()
	if r == nil {
		return nil
	}
	if r.State.Finished() {
		s.tell(ctx, r) // where a kill came before the hooks were told
		s.heard(ctx, r, true)
		return nil
	}
	if !r.State.Resting() || !anyway && s.now().Before(r.Deadline) {
		return nil
	}
	if anyway {
		r.Deadline = s.now()
	}
	quarantined := r.State == Quarantined
	_, err := s.finish(ctx, *r, true)
	if quarantined && errors.Is(err, ErrRolledBack) {
		return nil // that is what it was
	}
	return err
}

// back aborts r, whatever state it is in, unless it is past its point of no return.
func (s *session) back(ctx context.Context, r Record, reason string) (Result, error) {
	stopped := r.State
	if stopped == Blocked {
		stopped = r.Stopped
	}
	switch {
	case r.State == Blocked: // also from retiring: the human saw what is there
		o, err := s.observe(ctx)
		if err != nil {
			return Result{Record: r}, err
		}
		s.accept(&r, o)
		r, _ = r.goBack(look(r, o), r.Policy, s.now(), orWord(r.Reason, reason))
	case stopped.Proven():
		return Result{Record: r}, fmt.Errorf("%w: the deployment is committed; `rebake deploy resume %s` finishes it, then `rebake rollback %s` goes back", ErrUnfinished, r.Fleet, r.Fleet)
	case stopped.Undoable():
		r.Abort = reason
	}
	if err := s.write(ctx, &r, kindState, nil, nil); err != nil {
		return Result{Record: r}, err
	}
	res, err := s.finish(ctx, r, true)
	if errors.Is(err, ErrRolledBack) {
		err = nil
	}
	return res, err
}

// unblock goes back into the state that was stopped, with a new deadline. What
// the router's weights are now is taken as right: a human looked.
func (s *session) unblock(ctx context.Context, r *Record) error {
	o, err := s.observe(ctx)
	if err != nil {
		return err
	}
	s.accept(r, o)
	p := r.Policy
	next, _ := r.enter(r.Stopped, s.now(), map[State]time.Duration{
		Planned: p.Drain, Provisioning: p.Launch, Warming: p.Within, Verifying: p.Verify, Shifting: p.Restore, Holding: p.Steps[r.Step].Hold,
		Baking: p.KeepOld, Retiring: p.Drain, Restoring: p.Restore, DrainingNew: p.Drain, DestroyNew: p.Launch,
		Shrinking: p.Drain, Replacing: p.turn(), Paused: p.Steps[r.Step].PauseFor,
	}[r.Stopped])
	next.Findings, next.Samples, next.Marks = nil, nil, Marks{} // the gates are asked again
	next.Stopped, next.Wrong, next.Sick, next.Flaps, next.Pending = "", time.Time{}, time.Time{}, 0, nil
	*r = next
	return s.write(ctx, r, kindState, nil, nil)
}

// accept takes the router's weights as right: a human looked.
func (s *session) accept(r *Record, o Observation) {
	if !same(o.Router.Weights, r.Live()) {
		r.Weights = append(r.Weights, Change{Time: s.now().UTC(), Weights: o.Router.Weights, Found: true})
	}
	r.Pending = nil
}

// giveUp ends a blocked deployment where it is, so that a fix can be deployed:
// the slot that serves better keeps serving, the other is cleared by the next plan.
func (s *session) giveUp(ctx context.Context, r Record) error {
	o, err := s.observe(ctx)
	if err != nil {
		return err
	}
	fresh := r.New.Group.Slot
	before, after := able(o, fresh.Other()), able(o, fresh)
	r.KeptNew = after > before || r.Old != nil && after == before && o.Router.Weights[fresh] > 500
	r.Reason = "given up for another deployment: " + r.Reason
	want := map[Slot]int{Blue: 0, Green: 0}
	if r.refreshes() { // the group goes on by itself, and nothing else can be told it before it has ended
		r.KeptNew, want = o.Refresh.Serves == r.New.Group, o.Router.Weights
	} else if r.KeptNew {
		want = split(fresh, 1000)
	} else if r.Old != nil {
		want = split(fresh.Other(), 1000)
	}
	if !same(o.Router.Weights, want) {
		r.Pending = want
		if err := s.write(ctx, &r, kindIntent, &Action{Op: Weigh, Weights: want}, nil); err != nil {
			return err
		}
		if err := s.Router.SetWeights(ctx, want); err != nil {
			return err
		}
		r.Pending, r.Weights = nil, append(r.Weights, Change{Time: s.now().UTC(), Weights: want})
	}
	r, _ = r.enter(RolledBack, s.now(), 0)
	return s.write(ctx, &r, kindState, nil, nil)
}

// sweep ends groups that no deployment knows, of slots that the router has empty.
func (s *session) sweep(ctx context.Context) error {
	o, err := s.observe(ctx)
	if err != nil {
		return err
	}
	if err := s.lease(ctx); err != nil {
		return err
	}
	known := map[GroupID]bool{}
	if c := s.history.Current(); c != nil {
		known[c.Group] = true
	}
	if k, _ := s.history.Kept(); k != nil {
		known[k.Group] = true
	}
	if l := s.history.Last(); l != nil && !l.State.Finished() {
		base, _ := l.base()
		known[l.New.Group], known[base] = true, true
	}
	for _, g := range o.Groups {
		if known[g.ID] || g.ID == o.Refresh.Serves || len(o.Router.Members[g.ID.Slot]) > 0 && !noneOf(o, g) {
			continue
		}
		event.Infof(ctx, "ending %d instances of slot %s that no deployment knows", len(g.Instances), g.ID.Slot)
		if err := s.Pool.Retire(ctx, g.ID); err != nil {
			return fmt.Errorf("end the leftover %s instances: %w", g.ID.Slot, err)
		}
	}
	return nil
}

func noneOf(o Observation, g Group) bool {
	for _, m := range o.Router.Members[g.ID.Slot] {
		if ofGroup(o, g.ID, m.ID) {
			return false
		}
	}
	return true
}
