package fleet

import "time"

// A rolling deployment replaces a few instances at a time. Each turn either
// adds new ones (and verifies, shifts and holds as a step does) or takes old
// ones out, so that never more than size + max_surge are there, and never fewer
// than size - max_unavailable serve. Slots keep the two images apart: the new
// slot's share of the traffic is its share of the instances.

// turn decides what comes next. It sets the goals and enters the state that
// brings them about.
func (r Record) turn(at view, p Policy, now time.Time) (Record, Action) {
	size := r.New.Spec.Size
	if r.WantNew == size && r.WantOld == 0 {
		return r.enter(Baking, now, 0)
	}
	if n := min(size+p.Roll.MaxSurge-r.WantNew-r.WantOld, size-r.WantNew, p.Roll.Batch); n > 0 {
		r.WantNew, r.Turns, r.Verified, r.Findings = r.WantNew+n, r.Turns+1, false, nil
		return r.enter(Provisioning, now, p.Launch)
	}
	r.WantOld = max(0, r.WantOld-max(1, r.WantNew+r.WantOld-(size-p.Roll.MaxUnavailable)))
	return r.enter(Shrinking, now, p.Drain)
}

// shrink takes out the old instances above the goal: less traffic for their
// slot, then they drain, then they end.
func (r Record) shrink(at view, p Policy, now time.Time) (Record, Action) {
	late := !now.Before(r.Deadline)
	gone := at.above(r.Old.Group, r.WantOld)
	if want := r.share(p); r.WantNew > 0 && (!same(at.o.Router.Weights, want) || r.Pending != nil || !same(r.Live(), want)) {
		return r, Action{Op: Weigh, Weights: want}
	}
	if len(gone) == 0 {
		return r.turn(at, p, now)
	}
	if act, busy := at.unlink(r.Old.Group.Slot, late, "the old instances", gone...); busy {
		return r, act
	}
	if in := at.listed(r.Old.Group); gone[0] != in[len(in)-1] {
		r.Holes = true // numbers are missing before others: a Launch must cover them all
	}
	return r, Action{Op: End, Group: r.Old.Group, Names: gone[:1]}
}

func (v view) listed(id GroupID) (names []string) {
	for _, g := range v.o.Groups {
		if g.ID == id {
			for _, i := range g.Instances {
				names = append(names, i.ID)
			}
		}
	}
	return names
}

// above are as many instances of a group as it has beyond n: first those that do
// not serve, then the last ones.
func (v view) above(id GroupID, n int) (names []string) {
	for _, g := range v.o.Groups {
		if g.ID != id {
			continue
		}
		for _, serves := range []bool{false, true} {
			for i := len(g.Instances) - 1; i >= 0; i-- {
				if (g.Instances[i].Running && v.serves(id.Slot, g.Instances[i].ID)) == serves {
					names = append(names, g.Instances[i].ID)
				}
			}
		}
		names = names[:max(0, len(g.Instances)-n)]
	}
	return names
}

// regrow is the way back of a rolling deployment: new instances that do not
// serve go at once, old ones are started in the room that there is, healthy new
// ones go only as old ones take their place. It is done when all the old ones
// are ready; then restore does the rest.
func (r Record) regrow(at view, p Policy, now time.Time) (Record, Action, bool) {
	old, late := r.Old.Group, !now.Before(r.Deadline)
	size, total := r.Old.Spec.Size, len(at.oldInstances)
	give := func(act Action) (Record, Action, bool) {
		r, act := r.orBlock(act, p, now)
		return r, act, true
	}
	if at.exists && !r.Shown {
		return r, Action{Op: Evidence, Group: r.New.Group}, true
	}
	if want := split(r.New.Group.Slot, permille(at.ready, at.oldReady)); at.ready+at.oldReady > 0 &&
		(at.ready == 0 || at.oldReady == 0) && !same(at.o.Router.Weights, want) { // a slot where nobody serves gets nothing
		return give(Action{Op: Weigh, Weights: want})
	}
	if bad := at.useless(); len(bad) > 0 {
		if act, busy := at.unlink(r.New.Group.Slot, late, "the new instances that do not serve", bad...); busy {
			return give(act)
		}
		return give(Action{Op: End, Group: r.New.Group, Names: bad[:1]})
	}
	dead := total - at.oldRunning()
	if total == size && dead == 0 && at.oldReady == size {
		return r, Action{}, false
	}
	switch room := size + p.Roll.MaxSurge - len(at.newInstances) - total; {
	case dead > 0:
		if r.Holes {
			total = size
		}
		return give(Action{Op: Launch, Group: old, Size: total})
	case !at.attached(old.Slot, at.oldInstances, false):
		return give(Action{Op: Attach, Slot: old.Slot, Members: at.members(old, p.Port)})
	case at.oldHealthy > at.oldReady:
		return give(Action{Op: Ready, Slot: old.Slot})
	case at.oldReady < total && late:
		r, act := r.block(now, "going back is not safe: %d of %d old instances are healthy, and %d new ones; traffic stays where it is. %s", at.oldReady, size, at.healthy, r.Reason)
		return r, act, true
	case at.oldReady < total:
		return r, wait("the old instances to be healthy: %d of %d are", at.oldReady, total), true
	case total < size && room > 0:
		r.Deadline = now.Add(p.Launch + p.Within) // the next old ones begin now
		grown := total + min(room, size-total)
		if r.Holes { // serving goes before max_surge
			grown = size
		}
		return give(Action{Op: Launch, Group: old, Size: grown})
	}
	// No room: a healthy new one makes way, as long as enough serve without it.
	left := len(at.newInstances) - 1
	gone := at.above(r.New.Group, left)
	if len(gone) == 0 {
		return r, Action{}, false
	}
	if want := split(r.New.Group.Slot, permille(left, at.oldReady)); at.oldReady > 0 && !same(at.o.Router.Weights, want) {
		return give(Action{Op: Weigh, Weights: want})
	}
	if act, busy := at.unlink(r.New.Group.Slot, late, "a new instance", gone...); busy {
		return give(act)
	}
	return give(Action{Op: End, Group: r.New.Group, Names: gone[:1]})
}

// useless are the new instances that take no traffic.
func (v view) useless() (names []string) {
	serves := map[string]bool{}
	for _, m := range v.o.Router.Members[v.r.New.Group.Slot] {
		serves[m.ID] = m.Healthy && m.Admin == "ready"
	}
	for _, id := range sortedNames(v.newInstances) {
		if !serves[id] || !v.newInstances[id].Running {
			names = append(names, id)
		}
	}
	return names
}

func (v view) oldRunning() (n int) {
	for _, i := range v.oldInstances {
		if i.Running {
			n++
		}
	}
	return n
}

func (v view) serves(s Slot, id string) bool {
	for _, m := range v.o.Router.Members[s] {
		if m.ID == id {
			return m.Healthy && m.Admin == "ready"
		}
	}
	return false
}
