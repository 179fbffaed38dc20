package fleet

import (
	"errors"
	"fmt"
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
	fresh, weight := r.New.Group, o.Router.Weights
	switch a.Op {
	case Launch, Verify, Evidence:
		if a.Group != fresh {
			return unsafe("group %s of slot %s is not this deployment's", a.Group.Deployment, a.Group.Slot)
		}

	case Attach:
		if a.Slot != fresh.Slot {
			return unsafe("slot %s is not this deployment's", a.Slot)
		}
		if weight[a.Slot] != 0 {
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
		if a.Slot == fresh.Slot && weight[a.Slot] != 0 {
			return unsafe("slot %s has %d permille of the traffic before it is verified: somebody gave it", a.Slot, weight[a.Slot])
		}

	case Weigh:
		return checkWeights(r, o, a, unsafe)

	case Drain, Detach:
		if weight[a.Slot] != 0 {
			return unsafe("slot %s has %d permille of the traffic", a.Slot, weight[a.Slot])
		}
		if err := mayEnd(r, o, a.Slot, unsafe); err != nil {
			return err
		}
		if a.Op == Drain {
			return nil
		}
		for _, m := range o.Router.Members[a.Slot] {
			if m.Admin == "ready" {
				return unsafe("%s is not drained", m.ID)
			}
			if m.InFlight > 0 && (!a.Force || now.Before(r.Deadline)) {
				return unsafe("%s has %d requests in flight and the drain timeout has not passed", m.ID, m.InFlight)
			}
		}

	case Retire:
		for _, m := range o.Router.Members[a.Group.Slot] {
			if ofGroup(o, a.Group, m.ID) {
				return unsafe("%s is still behind the router", m.ID)
			}
		}
		if a.Group != fresh && (r.Old == nil || a.Group != r.Old.Group) && r.State == Planned && a.Group.Slot == fresh.Slot {
			return nil // a leftover in the slot to come, which the router does not know
		}
		if weight[a.Group.Slot] != 0 {
			return unsafe("slot %s has %d permille of the traffic", a.Group.Slot, weight[a.Group.Slot])
		}
		return mayEnd(r, o, a.Group.Slot, unsafe)
	}
	return nil
}

// mayEnd says whether a slot may go, and that the other one serves: never both.
func mayEnd(r Record, o Observation, s Slot, unsafe func(string, ...any) error) error {
	isNew := s == r.New.Group.Slot
	switch {
	case isNew && r.State != DrainingNew && r.State != DestroyNew && r.State != Planned:
		return unsafe("the new slot may only go on the way back, not in %q", r.State)
	case !isNew && r.State != Retiring:
		return unsafe("the old slot is promised until the deployment is committed, and this is %q", r.State)
	case !isNew && able(o, s.Other()) == 0:
		return unsafe("no instance of the new slot is healthy: the old one may be needed")
	}
	return nil
}

func checkWeights(r Record, o Observation, a Action, unsafe func(string, ...any) error) error {
	fresh, have, want := r.New.Group.Slot, o.Router.Weights, a.Weights
	sum := want[Blue] + want[Green]
	if want[Blue] < 0 || want[Green] < 0 || sum != 1000 && sum != 0 {
		return unsafe("weights blue %d, green %d", want[Blue], want[Green])
	}
	forward := r.State == Shifting
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
	if forward {
		if !same(have, r.Live()) && (r.Pending == nil || !same(have, r.Pending)) {
			return unsafe("the router's weights are blue %d, green %d and this deployment left them at blue %d, green %d: somebody else changed them",
				have[Blue], have[Green], r.Live()[Blue], r.Live()[Green])
		}
		if want[fresh] < r.Live()[fresh] {
			return unsafe("the new slot's share goes down from %d to %d permille", r.Live()[fresh], want[fresh])
		}
		if n := able(o, fresh); n < r.New.Spec.Size {
			return unsafe("only %d of %d new instances are healthy", n, r.New.Spec.Size)
		}
	} else if want[fresh] != 0 {
		return unsafe("the way back gives the new slot %d permille", want[fresh])
	}
	return nil
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
