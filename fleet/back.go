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
	return d.RollbackOver(ctx, reason, "")
}

// RollbackOver is Rollback where override, if it is not empty, says why what the
// fleet requires does not count. It is kept in the history.
func (d *Deployer) RollbackOver(ctx context.Context, reason, override string) (Result, error) {
	if override != "" {
		reason += "; policy overridden: " + override
	}
	return d.session(ctx, func(s *session) (Result, error) {
		if r := s.history.Unfinished(); r != nil && !r.State.Proven() {
			return s.back(ctx, *r, reason)
		} else if r != nil {
			if _, err := s.finish(ctx, *r, true); err != nil {
				return Result{Record: *r}, err
			}
		}
		if old, r := s.history.Kept(); r != nil {
			if err := d.admit(ctx, old.Spec.Image, override); err != nil {
				return Result{Record: *r}, err
			}
			return s.back(ctx, *r, reason)
		}
		prev := s.history.Previous()
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
