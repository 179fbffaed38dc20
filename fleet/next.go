package fleet

import (
	"fmt"
	"strings"
	"time"
)

// Next is the whole of the deployment logic. It is pure: from the record and
// what is there it decides the next state, or the one call to make in this one.
// Who calls it writes the record down, checks the action with Check, does it,
// and asks again. A deployment that was cut off anywhere goes on by asking.
func Next(r Record, o Observation, p Policy, now time.Time) (Record, Action) {
	at, late := look(r, o), !now.Before(r.Deadline)
	if r.Abort != "" && r.State.Undoable() {
		return r.goBack(at, p, now, r.Abort)
	}
	if r.State.Undoable() && r.Failures >= p.Retries {
		return r.fail(at, p, now, "%s", r.LastErr)
	}
	switch r.State {
	case Planned:
		if want := at.restored(r); o.Router.Weights[r.New.Group.Slot] != 0 && able(o, r.New.Group.Slot) == 0 {
			return r, Action{Op: Weigh, Weights: want} // somebody gave traffic to a slot where nobody serves
		}
		if act, busy := at.clearSlot(late); busy {
			return r, act
		}
		return r.enter(Provisioning, now, p.Launch)

	case Provisioning:
		if at.running == r.New.Spec.Size && at.total == r.New.Spec.Size {
			return r.enter(Warming, now, p.Within)
		}
		if late {
			return r.fail(at, p, now, "only %d of %d instances were running within %s%s", at.running, r.New.Spec.Size, p.Launch, because(r.LastErr))
		}
		return r, Action{Op: Launch, Group: r.New.Group}

	case Warming:
		switch {
		case at.dead != "":
			return r.fail(at, p, now, "%s stopped before it was healthy", at.dead)
		case at.running < r.New.Spec.Size:
			return r.fail(at, p, now, "only %d of %d instances are there", at.running, r.New.Spec.Size)
		case at.unreachable(p.Port) != "":
			return r.fail(at, p, now, "%s has no address for port %d", at.unreachable(p.Port), p.Port)
		case !at.attached():
			return r, Action{Op: Attach, Slot: r.New.Group.Slot, Members: at.members(p.Port)}
		case at.healthy == r.New.Spec.Size && at.ready == at.healthy:
			return r.enter(Verifying, now, p.Verify)
		case late:
			return r.fail(at, p, now, "%s did not become healthy within %s: router sees %s", at.sickName, p.Within, at.sickCheck)
		case at.healthy == r.New.Spec.Size:
			return r, Action{Op: Ready, Slot: r.New.Group.Slot}
		case at.wrongName == "":
			r.Wrong = time.Time{}
		case r.Wrong.IsZero():
			r.Wrong = now
		case p.Refuse > 0 && now.Sub(r.Wrong) >= p.Refuse:
			return r.fail(at, p, now, "%s has answered wrongly for %s: router sees %s", at.wrongName, now.Sub(r.Wrong).Round(time.Second), at.wrongCheck)
		}
		return r, wait("%d of %d instances to be healthy; %s: %s", r.New.Spec.Size, r.New.Spec.Size, at.sickName, at.sickCheck)

	case Verifying:
		if bad := at.trouble(&r, p, now); bad != "" {
			return r.fail(at, p, now, "%s", bad)
		}
		if r.Verified {
			return r.shift(at, 0, now, p)
		}
		if late {
			return r.fail(at, p, now, "the gate did not pass within %s%s", p.Verify, because(r.LastErr))
		}
		return r, Action{Op: Verify, Group: r.New.Group}

	case Shifting:
		want := split(r.New.Group.Slot, p.Steps[r.Step].Permille)
		switch bad := at.trouble(&r, p, now); {
		case same(o.Router.Weights, want) && r.Pending == nil && same(r.Live(), want):
			r.Drained = time.Time{}
			return r.enter(Holding, now, p.Steps[r.Step].Hold)
		case bad != "":
			return r.fail(at, p, now, "%s", bad)
		case late:
			return r.fail(at, p, now, "traffic could not be moved%s", because(r.LastErr))
		case at.healthy < r.New.Spec.Size:
			return r, wait("%s to be healthy again: %s", at.sickName, at.sickCheck)
		}
		return r, Action{Op: Weigh, Weights: want}

	case Holding:
		last := r.Step == len(p.Steps)-1
		if last && r.Drained.IsZero() && at.oldInFlight == 0 {
			r.Drained = now
		}
		switch bad := at.trouble(&r, p, now); {
		case bad != "":
			return r.fail(at, p, now, "%s", bad)
		case !late:
			return r, wait("the hold at %d%% to end in %s", p.Steps[r.Step].Permille/10, r.Deadline.Sub(now).Round(time.Second))
		case !r.Sick.IsZero():
			return r, wait("%s to be healthy again: %s", at.sickName, at.sickCheck)
		case !last:
			return r.shift(at, r.Step+1, now, p)
		case r.Drained.IsZero() && now.Before(r.Since.Add(p.Drain)):
			return r, wait("%d requests to the old instances to end", at.oldInFlight)
		}
		return r.enter(Baking, now, keep(r, p))

	case Baking: // the old slot is warm: going back is one traffic write
		switch bad := at.trouble(&r, p, now); {
		case bad != "" && r.Old != nil:
			return r.fail(at, p, now, "%s", bad)
		case late:
			return r.enter(Committed, now, 0)
		}
		return r, wait("the old instances to be kept for %s more", r.Deadline.Sub(now).Round(time.Second))

	case Committed: // nothing is promised to the old slot any more
		return r.enter(Retiring, now, p.Drain)

	case Retiring:
		if r.Old == nil {
			return r.enter(Done, now, 0)
		}
		if act, busy := at.end(r.Old.Group, late, "the old instances"); busy {
			return r.orBlock(act, p, now)
		}
		return r.enter(Done, now, 0)

	case Restoring: // first able to serve, then traffic, then the new slot drains
		want, none := at.restored(r), r.Old == nil
		switch {
		case same(o.Router.Weights, want) && r.Pending == nil,
			!none && !r.Touched && o.Router.Weights[r.New.Group.Slot] == 0: // it never had any traffic
			r.Drained = time.Time{}
			return r.enter(DrainingNew, now, p.Drain)
		case none:
			return r, Action{Op: Weigh, Weights: want}
		case at.oldHealthy > at.oldReady:
			return r.orBlock(Action{Op: Ready, Slot: r.Old.Group.Slot}, p, now)
		case at.oldReady >= floor(r.Old.Spec.Size) || at.oldReady > 0 && at.oldReady >= at.healthy:
			return r.orBlock(Action{Op: Weigh, Weights: want}, p, now)
		case late:
			return r.block(now, "going back is not safe: %d of %d old instances are healthy, and %d of %d new ones; traffic stays where it is. %s",
				at.oldReady, r.Old.Spec.Size, at.healthy, r.New.Spec.Size, r.Reason)
		}
		return r, wait("the old instances to be healthy: %d of %d are", at.oldReady, r.Old.Spec.Size)

	case DrainingNew:
		if act, busy := at.unlink(r.New.Group.Slot, late, "the new instances"); busy {
			return r.orBlock(act, p, now)
		}
		r.Drained = now
		return r.enter(DestroyNew, now, p.Launch)

	case DestroyNew:
		if at.exists && !r.Shown {
			return r, Action{Op: Evidence, Group: r.New.Group}
		}
		if act, busy := at.end(r.New.Group, late, "the new instances"); busy {
			return r.orBlock(act, p, now)
		}
		return r.enter(RolledBack, now, 0)
	}
	return r, wait("somebody to say `rebake deploy resume` or `rebake deploy abort`") // Blocked, or finished
}

// enter goes to a state that may take d.
func (r Record) enter(s State, now time.Time, d time.Duration) (Record, Action) {
	r.State, r.Since, r.Deadline = s, now, now.Add(d)
	r.Failures, r.LastErr = 0, ""
	return r, Action{Op: Go}
}

// shift goes to a traffic step: the last one at once if there is nothing to share with.
func (r Record) shift(at view, step int, now time.Time, p Policy) (Record, Action) {
	if last := len(p.Steps) - 1; step < last && at.oldReady == 0 {
		if r.Old != nil {
			r.Waived = "no old instance was healthy: all traffic went to the new ones in one step"
		}
		step = last
	}
	r.Step = step
	return r.enter(Shifting, now, p.Restore)
}

// fail ends the way forward, for a reason that a human reads.
func (r Record) fail(at view, p Policy, now time.Time, format string, a ...any) (Record, Action) {
	reason := fmt.Sprintf(format, a...)
	if p.OnFailure == "pause" {
		r.Checks = at.checks
		return r.block(now, "%s", reason)
	}
	return r.goBack(at, p, now, reason)
}

func (r Record) goBack(at view, p Policy, now time.Time, reason string) (Record, Action) {
	r.Reason, r.Checks, r.Abort, r.Sick = reason, at.checks, "", time.Time{}
	return r.enter(Restoring, now, p.Restore)
}

func (r Record) block(now time.Time, format string, a ...any) (Record, Action) {
	stopped, failures, last := r.State, r.Failures, r.LastErr
	r, act := r.enter(Blocked, now, 0)
	r.Stopped, r.Reason = stopped, strings.TrimSpace(fmt.Sprintf(format, a...))
	r.Failures, r.LastErr = failures, last
	return r, act
}

// orBlock is for states that cannot go back: they try until well after their deadline.
func (r Record) orBlock(act Action, p Policy, now time.Time) (Record, Action) {
	if r.LastErr != "" && r.Failures >= p.Retries && !now.Before(r.Deadline.Add(p.Restore)) {
		return r.block(now, "%s failed: %s", act.Op, r.LastErr)
	}
	return r, act
}

func keep(r Record, p Policy) time.Duration {
	if r.Old == nil {
		return 0
	}
	return p.KeepOld
}

func floor(size int) int { return (size + 1) / 2 }

func because(err string) string {
	if err == "" {
		return ""
	}
	return ": " + err
}

func wait(format string, a ...any) Action { return Action{Op: Wait, For: fmt.Sprintf(format, a...)} }
