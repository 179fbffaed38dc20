package fleet

import (
	"slices"
	"time"
)

// State is where a deployment is. See Next for what each one does.
type State string

// The states, in the order of a good deployment, then those of the way back.
const (
	Planned      State = "planned"      // clears the slot of what was left there
	Provisioning State = "provisioning" // starts the new instances
	Warming      State = "warming"      // waits until the router finds them healthy
	Verifying    State = "verifying"    // runs the gate in each
	Shifting     State = "shifting"     // writes the weights of step Step
	Holding      State = "holding"      // watches the new slot for the step's hold, and asks the gates
	Paused       State = "paused"       // a step's hold went well: waits for a person's word
	Shrinking    State = "shrinking"    // rolling: takes old instances out
	Replacing    State = "replacing"    // refresh: the cloud replaces the instances in place
	Baking       State = "baking"       // promoted; the old slot is kept warm until the deadline
	Committed    State = "committed"    // the point of no return: the image is proven
	Retiring     State = "retiring"     // drains, detaches and ends the old slot
	Done         State = "done"

	Restoring   State = "restoring"    // gives the traffic back to the old slot
	DrainingNew State = "draining new" // lets the new slot's requests end
	Quarantined State = "quarantined"  // the new instances stay for a look, without traffic
	DestroyNew  State = "destroy new"  // ends the new instances
	RolledBack  State = "rolled back"

	Blocked State = "blocked" // nothing is touched until a human says resume or abort
)

// Finished says that nothing is left to do: the state is absorbing.
func (s State) Finished() bool { return s == Done || s == RolledBack }

// Undoable says that a failure or an abort leads back to the old slot.
func (s State) Undoable() bool {
	return slices.Contains([]State{Planned, Provisioning, Warming, Verifying, Shifting, Holding, Paused, Shrinking, Replacing, Baking}, s)
}

// Resting says that only time is waited for: the fleet's user need not.
func (s State) Resting() bool { return s == Baking || s == Quarantined }

// Proven says that the new image was committed.
func (s State) Proven() bool { return s == Committed || s == Retiring || s == Done }

// Release is a group that serves, or did, or shall: enough to make it again.
type Release struct {
	Group GroupID `json:"group"`
	Spec  Spec    `json:"spec"`
}

// Plan is what does not change in a deployment: its first journal record.
type Plan struct {
	ID     string       `json:"id"` // ULID
	Fleet  string       `json:"fleet"`
	By     string       `json:"by"` // user@host
	Began  time.Time    `json:"began"`
	New    Release      `json:"new"`
	Old    *Release     `json:"old,omitempty"` // nil: the fleet's first
	Base   map[Slot]int `json:"base"`          // weights that it found
	Policy Policy       `json:"policy"`

	Rollback bool   `json:"rollback,omitempty"`        // away from Old, by a human's word
	InFreeze string `json:"in_freeze,omitempty"`       // why it began in a freeze
	Override string `json:"override_policy,omitempty"` // why what the fleet requires did not count
	Hooks    bool   `json:"hooks,omitempty"`           // hooks were there when it began: they are told of it
}

// Change is one traffic write.
type Change struct {
	Time    time.Time    `json:"time"`
	Weights map[Slot]int `json:"weights"`         // permille
	Found   bool         `json:"found,omitempty"` // somebody else's, taken as right by a person
}

// Progress is what changes: each later record of the journal holds it whole,
// so that the last one tells all.
type Progress struct {
	State    State          `json:"state"`
	Step     int            `json:"step"`
	Since    time.Time      `json:"since"`
	Deadline time.Time      `json:"deadline"`          // of State, absolute
	Verified bool           `json:"verified"`          // the gate passed
	Shown    bool           `json:"shown"`             // evidence of the failure was kept
	Weights  []Change       `json:"weights,omitempty"` // every traffic write that was done
	Pending  map[Slot]int   `json:"pending,omitempty"` // one that may have been done
	Drained  time.Time      `json:"drained"`           // the old slot (or, on the way back, the new) was first seen idle without traffic
	Cut      int            `json:"cut"`               // requests that the drain timeout ended
	Wrong    time.Time      `json:"wrong,omitzero"`    // a new instance that was never healthy answers wrongly since
	Sick     time.Time      `json:"sick"`              // a new instance is unhealthy under traffic since
	Flaps    int            `json:"flaps"`             // times it recovered
	Failures int            `json:"failures"`          // of the current call, in a row
	LastErr  string         `json:"last_error,omitempty"`
	Abort    string         `json:"abort,omitempty"`    // a human's wish to go back
	Reason   string         `json:"reason,omitempty"`   // a sentence: why it failed, was aborted or is blocked
	Checks   []MemberStatus `json:"checks,omitempty"`   // the new slot as it was when it failed
	Stopped  State          `json:"stopped,omitempty"`  // of Blocked: where resume goes on
	Touched  bool           `json:"touched,omitempty"`  // traffic may have been sent to the new slot
	Waived   string         `json:"waived,omitempty"`   // a safety margin that could not be kept, and why
	Evidence string         `json:"evidence,omitempty"` // what the pool knows of the failed group
	KeptNew  bool           `json:"kept_new,omitempty"` // given up while blocked, with the new slot serving

	Findings []Finding `json:"findings,omitempty"` // the last of each gate at each step
	Samples  []Sample  `json:"samples,omitempty"`  // of this hold
	Marks    Marks     `json:"marks,omitzero"`     // where the next sample begins
	WantNew  int       `json:"want_new,omitempty"` // rolling: instances of the new image that this turn is to reach; refresh: that there were when time was given anew
	WantOld  int       `json:"want_old,omitempty"` // and of the old one
	Holes    bool      `json:"holes,omitempty"`    // rolling: an old instance was taken out that was not the last one
	Turns    int       `json:"turns,omitempty"`    // rolling: batches begun
	Left     []string  `json:"left,omitempty"`     // what could not be removed; `rebake gc` tries again
	Told     []string  `json:"told,omitempty"`     // stages that the hooks were told of
}

// Record is a deployment.
type Record struct {
	Plan
	Progress
}

// target is how many new instances there shall be now.
func (r Record) target() int {
	if r.rolling() {
		return r.WantNew
	}
	return r.New.Spec.Size
}

// rolling: the first deployment of a fleet is never.
func (r Record) rolling() bool { return r.Policy.Strategy == Rolling && r.Old != nil }

// base is the group of fresh instances of the old image that the new ones are
// compared with: in the old slot, of this deployment.
func (r Record) base() (id GroupID, size int) {
	if r.Old == nil || r.rolling() {
		return GroupID{}, 0
	}
	return GroupID{Fleet: r.Fleet, Slot: r.Old.Group.Slot, Deployment: r.ID}, r.Policy.baseline()
}

// Live is what the last traffic write left, as far as the record knows.
func (r Record) Live() map[Slot]int {
	if n := len(r.Weights); n > 0 {
		return r.Weights[n-1].Weights
	}
	return r.Base
}

// SwapSeconds is from the first traffic write to the old slot idle; 0 if that never came.
func (r Record) SwapSeconds() float64 {
	if len(r.Weights) == 0 || r.Drained.Before(r.Weights[0].Time) {
		return 0
	}
	return r.Drained.Sub(r.Weights[0].Time).Seconds()
}

// Verdict is the outcome in one word or two.
func (r Record) Verdict() string {
	switch {
	case r.State == RolledBack, r.State == Quarantined:
		return "rolled back"
	case r.State == Paused:
		return "paused"
	case r.State == Blocked:
		return "blocked"
	case r.State == Baking, r.State.Proven():
		return "promoted"
	}
	return "unfinished"
}

// Observation is what the pool and the router say is there, now.
type Observation struct {
	Groups  []Group
	Router  RouterStatus
	Refresh RefreshState // of a pool that is refreshed in place
}

// Op is what an Action does.
type Op string

// The actions. Go is only a change of state; Wait looks again a little later.
const (
	Go       Op = "go"
	Wait     Op = "wait"
	Launch   Op = "launch"
	Attach   Op = "attach"
	Ready    Op = "ready"
	Verify   Op = "verify" // before traffic: the health commands and the gates of Step -1
	Weigh    Op = "weigh"
	Drain    Op = "drain"
	Detach   Op = "detach"
	Evidence Op = "evidence"
	Retire   Op = "retire"
	End      Op = "end"       // one instance
	Replace  Op = "replace"   // refresh: begin it
	TakeBack Op = "take back" // refresh: turn it round
)

// Action is one call, or none. Each may be repeated without harm.
type Action struct {
	Op      Op           `json:"op"`
	Slot    Slot         `json:"slot,omitempty"`
	Group   GroupID      `json:"group,omitzero"`
	Size    int          `json:"size,omitempty"` // of Launch
	Members []Member     `json:"members,omitempty"`
	Names   []string     `json:"names,omitempty"` // of Drain and Detach: these alone; of End: the one
	Step    int          `json:"step,omitempty"`  // of Verify: index of the step, -1 before traffic
	Weights map[Slot]int `json:"weights,omitempty"`
	Force   bool         `json:"force,omitempty"`
	For     string       `json:"for,omitempty"` // of Wait: what for, in words
}
