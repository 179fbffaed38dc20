package fleet

import (
	"fmt"
	"time"
)

// refreshed is Next for a group whose instances a cloud replaces by itself: what
// to wait for, and when to turn it round. It begins one refresh and one way back,
// each found again by what it launches; everything else is looking.
func (r Record) refreshed(at view, p Policy, now time.Time) (Record, Action) {
	is, fresh, late := at.o.Refresh, r.New.Group, !now.Before(r.Deadline)
	mine := is.To == fresh
	switch r.State {
	case Planned:
		if is.Active() && !mine {
			return r.block(now, "%v: %s goes on; `rebake deploy resume %s` once it has ended", ErrRefreshing, is.ID, r.Fleet)
		}
		return r.enter(Provisioning, now, p.Launch)

	case Provisioning:
		switch {
		case mine:
			return r.enter(Replacing, now, p.turn())
		case late:
			return r.fail(at, p, now, "the refresh did not begin within %s%s", p.Launch, because(r.LastErr))
		}
		return r, Action{Op: Replace, Group: fresh, Size: r.New.Spec.Size}

	case Replacing:
		return r.replacing(at, p, now)

	case Holding:
		r = r.watched(now)
		r.sample(at, now) // when it was looked at
		return r.holdRefreshed(at, p, now)

	case Baking:
		switch bad := r.unwell(at, p, now); {
		case bad != "":
			return r.fail(at, p, now, "%s", bad)
		case is.Phase == RefreshDone && is.Serves == fresh:
			return r.enter(Committed, now, 0)
		case late:
			return r, wait("the end of the refresh's bake time, which nobody can cut short")
		}
		return r, wait("the refresh's bake time to end in %s", r.Deadline.Sub(now).Round(time.Second))

	case Committed:
		return r.enter(Retiring, now, p.Drain)

	case Retiring:
		if r.Old != nil && is.Serves == r.Old.Group { // an answer that is behind
			return r, wait("the group to launch the new image by itself")
		}
		if r.Old != nil && at.has(r.Old.Group) {
			return r.orLeave(Action{Op: Retire, Group: r.Old.Group}, p, now)
		}
		return r.enter(Done, now, 0)

	case Restoring:
		return r.takingBack(at, p, now)

	case DestroyNew:
		switch {
		case at.total > 0 || is.Serves == fresh || mine && is.Active():
			return r.enter(Restoring, now, p.turn()) // it had begun after all
		case at.exists:
			return r.orBlock(Action{Op: Retire, Group: fresh}, p, now)
		}
		return r.enter(RolledBack, now, 0)
	}
	return r, wait("somebody to say `rebake deploy resume` or `rebake deploy abort`") // Blocked, or finished
}

// replacing watches the group while its instances are replaced. Time is given anew
// with every instance that comes to serve.
func (r Record) replacing(at view, p Policy, now time.Time) (Record, Action) {
	is := at.o.Refresh
	if at.healthy > r.WantNew {
		r.WantNew, r.Deadline, r.Wrong = at.healthy, now.Add(p.turn()), time.Time{}
		r = r.stepped(at, p, now)
	}
	all := is.To == r.New.Group && (is.Phase == RefreshBakes || is.Phase == RefreshDone)
	if all && at.healthy > 0 {
		r.Step, r.Samples, r.Marks = len(p.Steps)-1, nil, Marks{}
		r = r.moved(1000, now)
		return r.enter(Holding, now, p.Steps[r.Step].Hold)
	}
	verdict, why := r.asked(p, r.Step)
	switch bad := r.turnedRound(at); {
	case bad != "":
		return r.fail(at, p, now, "%s", bad)
	case verdict == Fail:
		return r.fail(at, p, now, "%s", why)
	case !now.Before(r.Deadline):
		return r.fail(at, p, now, "%d of %d instances are new, and no other came to serve within %s: the load balancer sees %s", at.healthy, is.Size, p.turn(), orWord(at.sickCheck, "none"))
	case at.wrongName == "": // the group may have ended it for that, and the next is on its way
	case r.Wrong.IsZero():
		r.Wrong = now
	case p.Refuse > 0 && now.Sub(r.Wrong) >= p.Refuse:
		return r.fail(at, p, now, "%s has answered wrongly for %s: the load balancer sees %s", at.wrongName, now.Sub(r.Wrong).Round(time.Second), at.wrongCheck)
	}
	if at.healthy > 0 && verdict != Pass && !r.askedLately(p, r.Step, now) {
		return r, Action{Op: Verify, Group: r.New.Group, Step: r.Step}
	}
	return r, wait("%d of %d instances to be replaced", max(0, is.Size-at.healthy), is.Size)
}

// stepped takes down that the new instances' share came to a step.
func (r Record) stepped(at view, p Policy, now time.Time) Record {
	share := 1000 * at.healthy / max(1, at.o.Refresh.Size)
	if len(r.Weights) == 0 {
		r = r.moved(share, now)
	}
	for r.Step < len(p.Steps)-1 && share >= p.Steps[r.Step].Permille {
		r.Step++
		r = r.moved(share, now)
	}
	return r
}

// moved takes down the new instances' share: traffic goes where instances are.
func (r Record) moved(permille int, now time.Time) Record {
	w := split(r.New.Group.Slot, min(permille, 1000))
	if len(r.Weights) == 0 || !same(r.Live(), w) {
		r.Weights = append(r.Weights[:len(r.Weights):len(r.Weights)], Change{Time: now.UTC(), Weights: w})
	}
	return r
}

// holdRefreshed watches the whole group for the last step's hold, then asks the gates.
func (r Record) holdRefreshed(at view, p Policy, now time.Time) (Record, Action) {
	if bad := r.unwell(at, p, now); bad != "" {
		return r.fail(at, p, now, "%s", bad)
	}
	if now.Before(r.Deadline) {
		return r, wait("the hold at 100%% to end in %s", r.Deadline.Sub(now).Round(time.Second))
	}
	if !r.Sick.IsZero() {
		return r, wait("%s to be healthy again: %s", at.sickName, at.sickCheck)
	}
	verdict, why := r.asked(p, r.Step)
	over := !now.Before(r.Since.Add(p.maxHold(p.Steps[r.Step].Hold)))
	switch {
	case verdict == Fail:
		return r.fail(at, p, now, "%s", why)
	case verdict == Pass:
		return r.enter(Baking, now, p.KeepOld)
	case !r.askedLately(p, r.Step, now):
		return r, Action{Op: Verify, Group: r.New.Group, Step: r.Step}
	case over && p.OnInconclusive == "pass":
		r.Waived = "a gate was inconclusive: " + why
		return r.enter(Baking, now, p.KeepOld)
	case over:
		return r.fail(at, p, now, "inconclusive after %s: %s", p.maxHold(p.Steps[r.Step].Hold), why)
	}
	return r, wait("gates: %s", why)
}

// turnedRound says why a refresh of ours does not go on.
func (r Record) turnedRound(at view) string {
	is := at.o.Refresh
	switch {
	case is.To != r.New.Group:
		return fmt.Sprintf("the refresh was ended, and somebody else began %s", is.ID)
	case is.Phase == RefreshTurning, is.Phase == RefreshTurned, is.Phase == RefreshEnded:
		return "the refresh did not go on: " + orWord(is.Why, "nobody says why")
	}
	return ""
}

// unwell is trouble of a group that was replaced whole: fewer serve than may, for
// longer than the grace. One that dies is replaced by the group itself.
func (r *Record) unwell(at view, p Policy, now time.Time) string {
	if bad := r.turnedRound(at); bad != "" {
		return bad
	}
	if at.total > 0 && at.healthy >= p.floor(at.total) {
		r.Sick = time.Time{}
		return ""
	}
	if r.Sick.IsZero() {
		r.Sick = now
	}
	if now.Sub(r.Sick) < p.Grace {
		return ""
	}
	return fmt.Sprintf("%d of %d instances serve, and have for %s: of %s the load balancer sees %s", at.healthy, at.total, now.Sub(r.Sick).Round(time.Second), orWord(at.sickName, "none"), orWord(at.sickCheck, "nothing"))
}

// takingBack has the group launch again what it did before, and waits until no
// new instance is left.
func (r Record) takingBack(at view, p Policy, now time.Time) (Record, Action) {
	is, fresh := at.o.Refresh, r.New.Group
	if at.total < r.WantNew {
		r.Deadline = now.Add(p.turn())
	}
	r.WantNew = at.total
	late := !now.Before(r.Deadline)
	forward := is.To == fresh && (is.Phase == RefreshRuns || is.Phase == RefreshBakes)
	switch {
	case !forward && !is.Active() && at.total == 0 && is.Serves != fresh:
		if len(r.Weights) > 0 {
			r = r.moved(0, now)
		}
		return r.enter(DestroyNew, now, p.Launch)
	case at.total > 0 && !r.Shown:
		return r, Action{Op: Evidence, Group: fresh}
	case late && r.Failures == 0:
		return r.block(now, "going back does not get on: %d new instances are left (%s). %s", at.total, orWord(is.Why, string(is.Phase)), r.Reason)
	case is.Active() && !forward:
		return r, wait("%d new instances to be replaced by what was there", at.total)
	}
	return r.orBlock(Action{Op: TakeBack, Group: fresh}, p, now)
}
