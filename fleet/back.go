package fleet

import (
	"context"
	"fmt"
	"time"
)

// restore gives the traffic back: the old slot is made able to serve first,
// then it gets the traffic, then the new one drains. Where the old one cannot
// serve as well as the new one does, nothing is moved and a person decides.
func (r Record) restore(at view, p Policy, now time.Time) (Record, Action) {
	want, none, late := at.restored(r), r.Old == nil, !now.Before(r.Deadline)
	if r.rolling() {
		if r2, act, busy := r.regrow(at, p, now); busy {
			return r2, act
		}
	}
	switch {
	case same(at.o.Router.Weights, want) && r.Pending == nil,
		!none && !r.Touched && at.o.Router.Weights[r.New.Group.Slot] == 0: // it never had any traffic
		r.Drained = time.Time{}
		return r.enter(DrainingNew, now, p.Drain)
	case none:
		return r, Action{Op: Weigh, Weights: want}
	case at.oldHealthy > at.oldReady:
		return r.orBlock(Action{Op: Ready, Slot: r.Old.Group.Slot}, p, now)
	case at.oldReady >= p.floor(r.Old.Spec.Size) && at.oldReady > 0 || at.oldReady > 0 && at.oldReady >= at.healthy:
		return r.orBlock(Action{Op: Weigh, Weights: want}, p, now)
	case late:
		return r.block(now, "going back is not safe: %d of %d old instances are healthy, and %d of %d new ones; traffic stays where it is. %s",
			at.oldReady, r.Old.Spec.Size, at.healthy, r.target(), r.Reason)
	}
	return r, wait("the old instances to be healthy: %d of %d are", at.oldReady, r.Old.Spec.Size)
}

// orBlock is for states that cannot go back: they try until well after their deadline.
func (r Record) orBlock(act Action, p Policy, now time.Time) (Record, Action) {
	if r.LastErr != "" && r.Failures >= p.Retries && !now.Before(r.Deadline.Add(p.Restore)) {
		return r.block(now, "%s failed: %s", act.Op, r.LastErr)
	}
	return r, act
}

// orLeave is for the last state: what cannot be removed is written down, and
// the deployment is done all the same. A later command removes it.
func (r Record) orLeave(act Action, p Policy, now time.Time) (Record, Action) {
	if r.LastErr != "" && r.Failures >= p.Retries && !now.Before(r.Deadline.Add(p.Restore)) {
		r.Left = append(r.Left, string(act.Op)+" "+string(r.Old.Group.Slot)+": "+r.LastErr)
		return r.enter(Done, now, 0)
	}
	return r, act
}

// Rollback goes back to the image before: with one traffic write while the old
// slot is kept, or by aborting what is unfinished, or by a new deployment of
// the previous proven image, all at once but with its health gates. The image that
// it goes back to must have what the fleet requires (Admit), unless the deployment
// is unfinished: then that image serves still.
func (d *Deployer) Rollback(ctx context.Context, reason string) (Result, error) {
	return d.GoBack(ctx, Back{Reason: reason})
}

// Back is a wish to go back.
type Back struct {
	Reason   string
	Override string // why what the fleet requires does not count, kept in the history; "": it does
	Version  string // of the proven image to go back to; "": the one before
}

// GoBack is Rollback with more to say. To an image that is not the one before
// goes a new deployment; ErrUnfinished if another one has to be ended first.
func (d *Deployer) GoBack(ctx context.Context, b Back) (Result, error) {
	reason, override := b.Reason, b.Override
	if override != "" {
		reason += "; policy overridden: " + override
	}
	is := func(r *Release) bool { return b.Version == "" || r != nil && r.Spec.Image.Version == b.Version }
	return d.session(ctx, func(ctx context.Context, s *session) (Result, error) {
		if r := s.history.Unfinished(); r != nil && !r.State.Proven() {
			if !is(r.Old) {
				return Result{Record: *r}, unfinished(*r)
			}
			return s.back(ctx, *r, reason)
		} else if r != nil {
			if _, err := s.finish(ctx, *r, true); err != nil {
				return Result{Record: *r}, err
			}
		}
		if old, r := s.history.Kept(); r != nil && is(old) {
			if err := d.admit(ctx, old.Spec.Image, override); err != nil {
				return Result{Record: *r}, err
			}
			return s.back(ctx, *r, reason)
		}
		if r := s.history.Last(); r != nil && r.State == Baking && r.Old == nil && r.refreshes() && b.Version == "" {
			return s.back(ctx, *r, reason) // to what the group launched before its first deployment
		}
		if cur := s.history.Current(); cur != nil && b.Version != "" && is(cur) {
			return Result{}, fmt.Errorf("%w: %s serves %s already", ErrNothing, d.Config.Name, name(*cur))
		}
		prev := s.history.Previous()
		if b.Version != "" {
			if prev = s.history.Proven(b.Version); prev == nil {
				return Result{}, fmt.Errorf("%w: %s never ran version %s to the end, so it is not proven; `rebake fleet history %s` lists what it ran; deploy another with `rebake deploy TEMPLATE --image NAME:VERSION`",
					ErrNothing, d.Config.Name, b.Version, d.Config.Name)
			}
		}
		if prev == nil {
			return Result{}, fmt.Errorf("%w: %s has no earlier proven image; deploy one with `rebake deploy TEMPLATE --image NAME:VERSION`", ErrNothing, d.Config.Name)
		}
		if err := d.admit(ctx, prev.Spec.Image, override); err != nil {
			return Result{}, err
		}
		last := s.history.Last().Policy
		last.Steps = []Step{{Permille: 1000}}
		return s.start(ctx, Request{Spec: prev.Spec, Policy: last, Override: override}, true)
	})
}
