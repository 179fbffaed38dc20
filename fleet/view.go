package fleet

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// view is an observation as a deployment sees it.
type view struct {
	r Record
	o Observation

	exists                     bool // the pool has the new group
	total, running             int  // of the new group
	dead                       string
	healthy, ready             int // members of the new slot that are this group's
	sickName, sickCheck        string
	wrongName, wrongCheck      string // the first member that answers, and not as it should
	checks                     []MemberStatus
	oldHealthy, oldReady       int // ready: healthy and let in
	oldInFlight                int
	newInstances, oldInstances map[string]Instance

	base                              map[string]Instance // the baseline's
	baseRunning, baseHealthy, baseLet int
}

func look(r Record, o Observation) view {
	v := view{r: r, o: o, newInstances: map[string]Instance{}, oldInstances: map[string]Instance{}, base: map[string]Instance{}}
	base, _ := r.base()
	for _, g := range o.Groups {
		switch {
		case g.ID == r.New.Group:
			v.exists = true
			for _, i := range g.Instances {
				v.newInstances[i.ID] = i
				v.total++
				if i.Running {
					v.running++
				} else if v.dead == "" {
					v.dead = i.ID
				}
			}
		case r.Old != nil && g.ID == r.Old.Group:
			for _, i := range g.Instances {
				v.oldInstances[i.ID] = i
			}
		case g.ID == base:
			for _, i := range g.Instances {
				v.base[i.ID] = i
				if i.Running {
					v.baseRunning++
				}
			}
		}
	}
	seen := map[string]bool{}
	for _, m := range o.Router.Members[r.New.Group.Slot] {
		if _, ours := v.newInstances[m.ID]; !ours {
			continue
		}
		seen[m.ID] = true
		v.checks = append(v.checks, m)
		if !m.Healthy {
			v.blame(m.ID, orWord(m.Check, "no check yet"))
			if strings.HasPrefix(m.Check, "L7STS") && (v.wrongName == "" || m.ID < v.wrongName) {
				v.wrongName, v.wrongCheck = m.ID, m.Check
			}
			continue
		}
		v.healthy++
		if m.Admin == "ready" {
			v.ready++
		} else {
			v.blame(m.ID, "healthy, not let in yet")
		}
	}
	for id := range v.newInstances {
		if !seen[id] {
			v.blame(id, "not attached to it")
		}
	}
	if r.Old != nil {
		for _, m := range o.Router.Members[r.Old.Group.Slot] {
			v.oldInFlight += m.InFlight
			if _, ok := v.base[m.ID]; ok && m.Healthy {
				v.baseHealthy++
				if m.Admin == "ready" {
					v.baseLet++
				}
			}
			if i, ok := v.oldInstances[m.ID]; m.Healthy && ok && i.Running {
				v.oldHealthy++
				if m.Admin == "ready" {
					v.oldReady++
				}
			}
		}
	}
	return v
}

// whole: all that is there runs, and it is enough. A group that scales by itself
// may have more.
func (v view) whole(goal int) bool { return v.total >= goal && v.running == v.total }

// blame keeps the first name in order, so that the same trouble has the same words.
func (v *view) blame(id, check string) {
	if v.sickName == "" || id < v.sickName {
		v.sickName, v.sickCheck = id, check
	}
}

// trouble says what is wrong with the new slot once it was let in: a dead
// instance at once, an unhealthy one after the grace, or if it keeps coming back.
func (v view) trouble(r *Record, p Policy, now time.Time) string {
	const flaps = 3
	switch {
	case v.dead != "":
		return v.dead + " died"
	case v.running < r.target():
		return fmt.Sprintf("only %d of %d new instances are there", v.running, r.target())
	case v.ready >= r.target():
		if !r.Sick.IsZero() {
			r.Sick, r.Flaps = time.Time{}, r.Flaps+1
		}
	case r.Sick.IsZero():
		r.Sick = now
	case now.Sub(r.Sick) >= p.Grace:
		return fmt.Sprintf("%s has been unhealthy for %s: router sees %s", v.sickName, now.Sub(r.Sick).Round(time.Millisecond), v.sickCheck)
	}
	if r.Flaps >= flaps {
		return fmt.Sprintf("a new instance became unhealthy and healthy again %d times", r.Flaps)
	}
	return ""
}

func (v view) unreachable(port int) string {
	for _, g := range v.o.Groups {
		for _, i := range g.Instances {
			if g.ID == v.r.New.Group && i.Ports[port] == "" {
				return i.ID
			}
		}
	}
	return ""
}

func (v view) members(id GroupID, port int) (ms []Member) {
	for _, g := range v.o.Groups {
		for _, i := range g.Instances {
			if g.ID == id {
				ms = append(ms, Member{ID: i.ID, Addr: i.Ports[port]})
			}
		}
	}
	return ms
}

// attached: the slot has every one of these instances, at its address, and
// nothing else if alone.
func (v view) attached(slot Slot, want map[string]Instance, alone bool) bool {
	in, n := v.o.Router.Members[slot], 0
	for _, m := range in {
		i, ok := want[m.ID]
		switch {
		case ok && i.Ports[v.r.Policy.Port] == m.Addr:
			n++
		case ok || alone:
			return false
		}
	}
	return n == len(want)
}

// restored is the traffic of a deployment that is undone.
func (v view) restored(r Record) map[Slot]int {
	if r.Old == nil {
		return map[Slot]int{Blue: 0, Green: 0}
	}
	return split(r.Old.Group.Slot, 1000)
}

// clearSlot removes what an earlier deployment left in the slot to come.
func (v view) clearSlot(late bool) (Action, bool) {
	slot := v.r.New.Group.Slot
	for _, m := range v.o.Router.Members[slot] {
		if _, ours := v.newInstances[m.ID]; !ours {
			return v.unlink(slot, late, "what was left in slot "+string(slot))
		}
	}
	for _, g := range v.o.Groups {
		if g.ID.Slot == slot && g.ID != v.r.New.Group {
			return Action{Op: Retire, Group: g.ID}, true
		}
	}
	return Action{}, false
}

// unlink takes a slot without traffic, or the named members of any slot, off
// the router: drain, wait, detach.
func (v view) unlink(slot Slot, late bool, who string, names ...string) (Action, bool) {
	there, inFlight, draining := 0, 0, true
	for _, m := range v.o.Router.Members[slot] {
		if len(names) > 0 && !slices.Contains(names, m.ID) {
			continue
		}
		there++
		inFlight += m.InFlight
		draining = draining && m.Admin != "ready"
	}
	switch {
	case there == 0:
		return Action{}, false
	case !draining:
		return Action{Op: Drain, Slot: slot, Names: names}, true
	case inFlight == 0:
		return Action{Op: Detach, Slot: slot, Names: names}, true
	case late:
		return Action{Op: Detach, Slot: slot, Names: names, Force: true}, true
	}
	return wait("%d requests to %s to end", inFlight, who), true
}

// endBase removes the baseline: its members from the old slot, then it.
func (v view) endBase(late bool) (Action, bool) {
	if len(v.base) > 0 {
		if act, busy := v.unlink(v.r.Old.Group.Slot, late, "the baseline", sortedNames(v.base)...); busy {
			return act, true
		}
	}
	id, size := v.r.base()
	if size > 0 && v.has(id) {
		return Action{Op: Retire, Group: id}, true
	}
	return Action{}, false
}

func (v view) has(id GroupID) bool {
	return slices.ContainsFunc(v.o.Groups, func(g Group) bool { return g.ID == id })
}

func sortedNames(m map[string]Instance) []string { return slices.Sorted(maps.Keys(m)) }

// end takes a group off the router, then ends it.
func (v view) end(g GroupID, late bool, who string) (Action, bool) {
	if act, busy := v.unlink(g.Slot, late, who); busy {
		return act, true
	}
	if v.has(g) {
		return Action{Op: Retire, Group: g}, true
	}
	return Action{}, false
}

func split(to Slot, permille int) map[Slot]int {
	return map[Slot]int{to: permille, to.Other(): 1000 - permille}
}

func same(a, b map[Slot]int) bool { return a[Blue] == b[Blue] && a[Green] == b[Green] }

func orWord(s, word string) string {
	if s == "" {
		return word
	}
	return s
}

func (v view) instances() (out []Instance) {
	for _, g := range v.o.Groups {
		if g.ID == v.r.New.Group {
			out = append(out, g.Instances...)
		}
	}
	return out
}
