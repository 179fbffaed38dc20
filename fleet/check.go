package fleet

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// ErrUnsafe is an action that would break a promise. Next never decides on one
// unless what is there is not what a deployment left there.
var ErrUnsafe = errors.New("refused as unsafe")

// Check holds an action against the invariants, before it is done. It repeats
// on purpose what Next ought to have thought of.
func Check(r Record, o Observation, a Action, now time.Time) error {
	unsafe := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s: %s", ErrUnsafe, a.Op, fmt.Sprintf(format, args...))
	}
	if !o.Router.Up {
		return unsafe("the router is not up, so nobody knows where traffic goes")
	}
	if r.refreshes() {
		return checkRefresh(r, o, a, unsafe)
	}
	fresh, weight := r.New.Group, o.Router.Weights
	base, _ := r.base()
	if err := keepsFloor(r, o, a, unsafe); err != nil {
		return err
	}
	switch a.Op {
	case Launch:
		again := r.rolling() && r.State == Restoring && a.Group == r.Old.Group
		if a.Group != fresh && (a.Group != base || base == GroupID{}) && !again {
			return unsafe("group %s of slot %s is not this deployment's", a.Group.Deployment, a.Group.Slot)
		}

	case Verify, Evidence:
		if a.Group != fresh {
			return unsafe("group %s of slot %s is not this deployment's", a.Group.Deployment, a.Group.Slot)
		}

	case Attach:
		if a.Slot != fresh.Slot && !r.rolling() && !allOf(o, base, memberNames(a.Members)) {
			return unsafe("slot %s is not this deployment's", a.Slot)
		}
		if a.Slot != fresh.Slot {
			return nil // the old image's own: the baseline, or a way back
		}
		if weight[a.Slot] != 0 && r.Turns <= 1 {
			return unsafe("slot %s has %d permille of the traffic before it is ready: somebody gave it", a.Slot, weight[a.Slot])
		}
		for _, m := range o.Router.Members[a.Slot] {
			if !ofGroup(o, fresh, m.ID) {
				return unsafe("slot %s still has %s of another deployment", a.Slot, m.ID)
			}
		}

	case Ready:
		if a.Slot == fresh.Slot && !r.State.Undoable() {
			return unsafe("the new slot is on its way out")
		}
		if a.Slot == fresh.Slot && weight[a.Slot] != 0 && r.Turns <= 1 {
			return unsafe("slot %s has %d permille of the traffic before it is verified: somebody gave it", a.Slot, weight[a.Slot])
		}

	case Weigh:
		return checkWeights(r, o, a, unsafe)

	case Drain, Detach:
		if len(a.Names) == 0 && weight[a.Slot] != 0 {
			return unsafe("slot %s has %d permille of the traffic", a.Slot, weight[a.Slot])
		}
		if len(a.Names) == 0 || !allOf(o, base, a.Names) {
			if err := mayEnd(r, o, a.Slot, unsafe); err != nil {
				return err
			}
		}
		if a.Op == Drain {
			return nil
		}
		for _, m := range o.Router.Members[a.Slot] {
			if len(a.Names) > 0 && !slices.Contains(a.Names, m.ID) {
				continue
			}
			if m.Admin == "ready" {
				return unsafe("%s is not drained", m.ID)
			}
			if m.InFlight > 0 && (!a.Force || now.Before(r.drainUntil())) {
				return unsafe("%s has %d requests in flight and the drain timeout has not passed", m.ID, m.InFlight)
			}
		}

	case End, Retire:
		for _, m := range o.Router.Members[a.Group.Slot] {
			if ofGroup(o, a.Group, m.ID) && (a.Op == Retire || slices.Contains(a.Names, m.ID)) {
				return unsafe("%s is still behind the router", m.ID)
			}
		}
		if a.Op == Retire && a.Group == base && base != (GroupID{}) {
			return nil
		}
		if a.Op == Retire && a.Group != fresh && (r.Old == nil || a.Group != r.Old.Group) && r.State == Planned && a.Group.Slot == fresh.Slot {
			return nil // a leftover in the slot to come, which the router does not know
		}
		if a.Op == Retire && weight[a.Group.Slot] != 0 {
			return unsafe("slot %s has %d permille of the traffic", a.Group.Slot, weight[a.Group.Slot])
		}
		return mayEnd(r, o, a.Group.Slot, unsafe)
	}
	return nil
}

// mayEnd says whether a slot, or a part of it, may go, and that the other one
// serves: never both.
func mayEnd(r Record, o Observation, s Slot, unsafe func(string, ...any) error) error {
	isNew, rolls := s == r.New.Group.Slot, r.rolling()
	switch {
	case isNew && r.State != DrainingNew && r.State != DestroyNew && r.State != Planned && !(rolls && r.State == Restoring):
		return unsafe("the new slot may only go on the way back, not in %q", r.State)
	case !isNew && r.State != Retiring && !(rolls && r.State == Shrinking):
		return unsafe("the old slot is promised until the deployment is committed, and this is %q", r.State)
	case !isNew && !rolls && able(o, s.Other()) == 0:
		return unsafe("no instance of the new slot is healthy: the old one may be needed")
	}
	return nil
}

// keepsFloor holds the promise of min_healthy: an action may not leave fewer
// able to serve than that, unless it takes nothing away.
func keepsFloor(r Record, o Observation, a Action, unsafe func(string, ...any) error) error {
	if r.Old == nil {
		return nil // nothing served before
	}
	after := o
	switch a.Op {
	case Weigh:
		after.Router.Weights = a.Weights
	case Drain, Detach:
		after.Router.Members = maps.Clone(o.Router.Members)
		after.Router.Members[a.Slot] = slices.DeleteFunc(slices.Clone(o.Router.Members[a.Slot]), func(m MemberStatus) bool {
			return len(a.Names) == 0 || slices.Contains(a.Names, m.ID)
		})
	default:
		return nil // those behind the router are refused elsewhere
	}
	have, left, need := serving(o), serving(after), r.Policy.floor(min(r.Old.Spec.Size, r.New.Spec.Size))
	if left < have && left < need {
		return unsafe("that would leave %d instances to serve, and at least %d must (now %d do)", left, need, have)
	}
	return nil
}

// serving counts the members that take traffic, in the slots that get some.
func serving(o Observation) (n int) {
	for s, w := range o.Router.Weights {
		if w > 0 {
			n += able(o, s)
		}
	}
	return n
}

func checkWeights(r Record, o Observation, a Action, unsafe func(string, ...any) error) error {
	fresh, have, want := r.New.Group.Slot, o.Router.Weights, a.Weights
	sum := want[Blue] + want[Green]
	if want[Blue] < 0 || want[Green] < 0 || sum != 1000 && sum != 0 {
		return unsafe("weights blue %d, green %d", want[Blue], want[Green])
	}
	forward := r.State == Shifting || r.State == Shrinking
	if !forward && r.State != Restoring && r.State != Planned {
		return unsafe("traffic does not move in %q", r.State)
	}
	if sum == 0 && (forward || r.Old != nil) {
		return unsafe("that would leave nobody to serve")
	}
	for _, s := range []Slot{Blue, Green} {
		if want[s] > have[s] && able(o, s) == 0 {
			return unsafe("slot %s has no healthy instance to take traffic", s)
		}
	}
	if !same(have, r.Live()) && (r.Pending == nil || !same(have, r.Pending)) {
		return unsafe("the router's weights are blue %d, green %d and this deployment left them at blue %d, green %d: somebody else changed them",
			have[Blue], have[Green], r.Live()[Blue], r.Live()[Green])
	}
	switch {
	case forward && want[fresh] < r.Live()[fresh]:
		return unsafe("the new slot's share goes down from %d to %d permille", r.Live()[fresh], want[fresh])
	case forward && able(o, fresh) < r.target():
		return unsafe("only %d of %d new instances are healthy", able(o, fresh), r.target())
	case !forward && r.rolling() && want[fresh] > have[fresh] && able(o, fresh.Other()) > 0,
		!forward && !r.rolling() && want[fresh] != 0:
		return unsafe("the way back gives the new slot %d permille", want[fresh])
	}
	return nil
}

func memberNames(ms []Member) (names []string) {
	for _, m := range ms {
		names = append(names, m.ID)
	}
	return names
}

// allOf says that every name is an instance of the group.
func allOf(o Observation, id GroupID, names []string) bool {
	for _, n := range names {
		if !ofGroup(o, id, n) {
			return false
		}
	}
	return id != GroupID{}
}

// able counts the members of a slot that take traffic.
func able(o Observation, s Slot) (n int) {
	for _, m := range o.Router.Members[s] {
		if m.Healthy && m.Admin == "ready" {
			n++
		}
	}
	return n
}

func ofGroup(o Observation, id GroupID, member string) bool {
	for _, g := range o.Groups {
		if g.ID == id {
			for _, i := range g.Instances {
				if i.ID == member {
					return true
				}
			}
		}
	}
	return false
}

// drainUntil is when the requests that leave may be cut: the baseline leaves in
// states that are about something else.
func (r Record) drainUntil() time.Time {
	if until := r.Since.Add(r.Policy.Drain); r.State == Baking || r.State == Restoring || r.State == DestroyNew {
		return until
	}
	return r.Deadline
}
