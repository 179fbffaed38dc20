package fleet

import (
	"fmt"
	"time"
)

// Next is the whole of the deployment logic. It is pure: from the record and
// what is there it decides the next state, or the one call to make in this one.
// Who calls it writes the record down, checks the action with Check, does it,
// and asks again. A deployment that was cut off anywhere goes on by asking.
func Next(r Record, o Observation, p Policy, now time.Time) (Record, Action) {
	r = r.rewound(now)
	at, late := look(r, o), !now.Before(r.Deadline)
	if r.Abort != "" && r.State.Undoable() {
		return r.goBack(at, p, now, r.Abort)
	}
	if r.State.Undoable() && r.Failures >= p.Retries {
		return r.fail(at, p, now, "%s", r.LastErr)
	}
	if r.refreshes() {
		return r.refreshed(at, p, now)
	}
	fresh, goal := r.New.Group, r.target()
	switch r.State {
	case Planned:
		if want := at.restored(r); o.Router.Weights[fresh.Slot] != 0 && able(o, fresh.Slot) == 0 {
			return r, Action{Op: Weigh, Weights: want} // somebody gave traffic to a slot where nobody serves
		}
		if act, busy := at.clearSlot(late); busy {
			return r, act
		}
		if r.rolling() {
			r.WantOld = r.Old.Spec.Size
			return r.turn(at, p, now)
		}
		return r.enter(Provisioning, now, p.Launch)

	case Provisioning:
		base, size := r.base()
		switch {
		case r.Turns > 1 && at.dead != "":
			return r.fail(at, p, now, "%s died", at.dead)
		case at.whole(goal) && at.baseRunning == size:
			return r.enter(Warming, now, p.Within)
		case late:
			return r.fail(at, p, now, "only %d of %d instances were running within %s%s", at.running+at.baseRunning, goal+size, p.Launch, because(r.LastErr))
		case at.whole(goal):
			return r, Action{Op: Launch, Group: base, Size: size}
		}
		return r, Action{Op: Launch, Group: fresh, Size: goal}

	case Warming:
		_, size := r.base()
		well := at.healthy >= goal && at.healthy == at.total
		switch {
		case at.dead != "":
			return r.fail(at, p, now, "%s stopped before it was healthy", at.dead)
		case at.running < goal:
			return r.fail(at, p, now, "only %d of %d instances are there", at.running, goal)
		case at.unreachable(p.Port) != "":
			return r.fail(at, p, now, "%s has no address for port %d", at.unreachable(p.Port), p.Port)
		case !at.attached(fresh.Slot, at.newInstances, true):
			return r, Action{Op: Attach, Slot: fresh.Slot, Members: at.members(fresh, p.Port)}
		case size > 0 && !at.attached(fresh.Slot.Other(), at.base, false):
			base, _ := r.base()
			return r, Action{Op: Attach, Slot: base.Slot, Members: at.members(base, p.Port)}
		case well && at.ready == at.healthy && at.baseLet == size:
			return r.enter(Verifying, now, p.Verify)
		case late && well:
			return r.fail(at, p, now, "the baseline instances of the old image did not become healthy within %s", p.Within)
		case late:
			return r.fail(at, p, now, "%s did not become healthy within %s: router sees %s", at.sickName, p.Within, at.sickCheck)
		case well && at.ready < at.healthy:
			return r, Action{Op: Ready, Slot: fresh.Slot}
		case well && at.baseHealthy == size:
			return r, Action{Op: Ready, Slot: fresh.Slot.Other()}
		case at.wrongName == "":
			r.Wrong = time.Time{}
		case r.Wrong.IsZero():
			r.Wrong = now
		case p.Refuse > 0 && now.Sub(r.Wrong) >= p.Refuse:
			return r.fail(at, p, now, "%s has answered wrongly for %s: router sees %s", at.wrongName, now.Sub(r.Wrong).Round(time.Second), at.wrongCheck)
		}
		return r, wait("%d of %d instances to be healthy; %s: %s", goal, goal, at.sickName, at.sickCheck)

	case Verifying:
		if bad := at.trouble(&r, p, now); bad != "" {
			return r.fail(at, p, now, "%s", bad)
		}
		switch verdict, why := r.asked(p, -1); {
		case verdict == Fail:
			return r.fail(at, p, now, "%s", why)
		case r.Verified && verdict == Pass:
			return r.shift(at, 0, now, p)
		case late:
			return r.fail(at, p, now, "the gate did not pass within %s%s", p.Verify, because(orWord(r.LastErr, why)))
		case r.Verified && r.askedLately(p, -1, now):
			return r, wait("gates: %s", why)
		}
		return r, Action{Op: Verify, Group: fresh, Step: -1}

	case Shifting:
		want := r.share(p)
		switch bad := at.trouble(&r, p, now); {
		case same(o.Router.Weights, want) && r.Pending == nil && same(r.Live(), want):
			r.Drained, r.Samples, r.Marks = time.Time{}, nil, Marks{}
			return r.enter(Holding, now, p.Steps[r.Step].Hold)
		case bad != "":
			return r.fail(at, p, now, "%s", bad)
		case late:
			return r.fail(at, p, now, "traffic could not be moved%s", because(r.LastErr))
		case at.healthy < goal:
			return r, wait("%s to be healthy again: %s", at.sickName, at.sickCheck)
		}
		return r, Action{Op: Weigh, Weights: want}

	case Holding:
		return r.hold(at, p, now)

	case Paused: // nobody works on it: what is due is done by the next command
		switch bad := at.trouble(&r, p, now); {
		case bad != "":
			return r.fail(at, p, now, "while paused: %s", bad)
		case p.Steps[r.Step].PauseFor > 0 && late:
			return r.goBack(at, p, now, fmt.Sprintf("nobody resumed the pause at %d%% within %s", p.Steps[r.Step].Permille/10, p.Steps[r.Step].PauseFor))
		}
		return r, wait("`rebake deploy resume %s` or `rebake deploy abort %s`", r.Fleet, r.Fleet)

	case Shrinking:
		if bad := at.trouble(&r, p, now); bad != "" {
			return r.fail(at, p, now, "%s", bad)
		}
		return r.shrink(at, p, now)

	case Baking: // the old slot is warm: going back is one traffic write
		if bad := at.trouble(&r, p, now); bad != "" && r.Old != nil && !r.rolling() {
			return r.fail(at, p, now, "%s", bad)
		}
		if act, busy := at.endBase(!now.Before(r.Since.Add(p.Drain))); busy {
			return r, act
		}
		if late {
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
			return r.orLeave(act, p, now)
		}
		if base, _ := r.base(); at.has(base) {
			return r.orLeave(Action{Op: Retire, Group: base}, p, now)
		}
		return r.enter(Done, now, 0)

	case Restoring: // first able to serve, then traffic, then the new slot drains
		return r.restore(at, p, now)

	case DrainingNew:
		if act, busy := at.unlink(fresh.Slot, late, "the new instances"); busy {
			return r.orBlock(act, p, now)
		}
		r.Drained = now
		if p.Quarantine > 0 && at.exists {
			return r.enter(Quarantined, now, p.Quarantine)
		}
		return r.enter(DestroyNew, now, p.Launch)

	case Quarantined:
		switch {
		case !r.Shown:
			return r, Action{Op: Evidence, Group: fresh}
		case late:
			return r.enter(DestroyNew, now, p.Launch)
		}
		return r, wait("the failed instances to be kept for %s more", r.Deadline.Sub(now).Round(time.Second))

	case DestroyNew:
		if at.exists && !r.Shown {
			return r, Action{Op: Evidence, Group: fresh}
		}
		if act, busy := at.endBase(late); busy {
			return r.orBlock(act, p, now)
		}
		if act, busy := at.end(fresh, late, "the new instances"); busy {
			return r.orBlock(act, p, now)
		}
		return r.enter(RolledBack, now, 0)
	}
	return r, wait("somebody to say `rebake deploy resume` or `rebake deploy abort`") // Blocked, or finished
}

// hold watches the new slot under its share of the traffic: the health checks,
// what the counters say, then the gates that are asked.
func (r Record) hold(at view, p Policy, now time.Time) (Record, Action) {
	r = r.watched(now)
	step, late := p.Steps[r.Step], !now.Before(r.Deadline)
	last := r.Step == len(p.Steps)-1 && !r.rolling()
	if last && r.Drained.IsZero() && at.oldInFlight == 0 {
		r.Drained = now
	}
	if bad := at.trouble(&r, p, now); bad != "" {
		return r.fail(at, p, now, "%s", bad)
	}
	if have := at.o.Router.Weights; !same(have, r.Live()) {
		return r.block(now, "the router's weights are blue %d, green %d and this deployment left them at blue %d, green %d: somebody else changed them",
			have[Blue], have[Green], r.Live()[Blue], r.Live()[Green])
	}
	r.sample(at, now)
	verdict, why := r.counted(p, now)
	switch {
	case verdict == Fail:
		return r.fail(at, p, now, "%s", why)
	case !late:
		return r, wait("the hold at %d%% to end in %s", step.Permille/10, r.Deadline.Sub(now).Round(time.Second))
	case !r.Sick.IsZero():
		return r, wait("%s to be healthy again: %s", at.sickName, at.sickCheck)
	}
	if verdict == Inconclusive && r.Old == nil { // nobody is served yet, and there is nothing to go back to
		r.Waived, verdict = "inconclusive in the fleet's first deployment: "+why, Pass
	}
	if verdict == Pass {
		switch verdict, why = r.asked(p, r.Step); {
		case verdict == Fail:
			return r.fail(at, p, now, "%s", why)
		case verdict != Pass && !r.askedLately(p, r.Step, now):
			return r, Action{Op: Verify, Group: r.New.Group, Step: r.Step}
		}
	}
	if verdict != Pass {
		switch over := !now.Before(r.Since.Add(p.maxHold(step.Hold))); {
		case !over:
			return r, wait("gates: %s", why)
		case p.OnInconclusive == "pass":
			r.Waived = "a gate was inconclusive: " + why
		case p.OnInconclusive == "pause":
			return r.block(now, "inconclusive after %s: %s", p.maxHold(step.Hold), why)
		default:
			return r.fail(at, p, now, "inconclusive after %s: %s", p.maxHold(step.Hold), why)
		}
	}
	if last && r.Drained.IsZero() && now.Before(r.Since.Add(p.Drain)) {
		return r, wait("%d requests to the old instances to end", at.oldInFlight)
	}
	if step.Pause && r.Turns <= 1 {
		return r.enter(Paused, now, step.PauseFor)
	}
	return r.proceed(at, p, now)
}

// proceed goes to what follows a hold.
func (r Record) proceed(at view, p Policy, now time.Time) (Record, Action) {
	switch {
	case r.rolling():
		return r.turn(at, p, now)
	case r.Step < len(p.Steps)-1:
		return r.shift(at, r.Step+1, now, p)
	}
	return r.enter(Baking, now, keep(r, p))
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

// share is the traffic that the step, or the turn of a rolling deployment, gives.
func (r Record) share(p Policy) map[Slot]int {
	if r.rolling() {
		return split(r.New.Group.Slot, permille(r.WantNew, r.WantOld))
	}
	return split(r.New.Group.Slot, p.Steps[r.Step].Permille)
}

// permille is a's part of a and b, never all or nothing while both are there.
func permille(a, b int) int {
	switch {
	case a+b == 0 || a == 0:
		return 0
	case b == 0:
		return 1000
	}
	return min(max(1000*a/(a+b), 1), 999)
}

// fail ends the way forward, for a reason that a human reads.
func (r Record) fail(at view, p Policy, now time.Time, format string, a ...any) (Record, Action) {
	reason := oneLine(fmt.Sprintf(format, a...))
	if p.OnFailure == "pause" {
		r.Checks = at.checks
		return r.block(now, "%s", reason)
	}
	return r.goBack(at, p, now, reason)
}

func (r Record) goBack(at view, p Policy, now time.Time, reason string) (Record, Action) {
	r.Reason, r.Checks, r.Abort, r.Sick = reason, at.checks, "", time.Time{}
	if r.refreshes() {
		return r.enter(Restoring, now, p.turn())
	}
	return r.enter(Restoring, now, p.Restore)
}

func (r Record) block(now time.Time, format string, a ...any) (Record, Action) {
	stopped, failures, last := r.State, r.Failures, r.LastErr
	r, act := r.enter(Blocked, now, 0)
	r.Stopped, r.Reason = stopped, oneLine(fmt.Sprintf(format, a...))
	r.Failures, r.LastErr = failures, last
	return r, act
}

func keep(r Record, p Policy) time.Duration {
	if r.Old == nil {
		return 0
	}
	return p.KeepOld
}

func because(err string) string {
	if err == "" {
		return ""
	}
	return ": " + err
}

func wait(format string, a ...any) Action { return Action{Op: Wait, For: fmt.Sprintf(format, a...)} }
