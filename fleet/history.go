package fleet

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/journal"
)

// Kinds of journal records. Transitions, intents and effects hold the whole Progress.
const (
	kindPlan   = "plan"
	kindState  = "transition"
	kindIntent = "intent"
	kindEffect = "effect"
	kindLease  = "lease" // who acts from here on, and its epoch
	kindTold   = "told"  // the hooks were told of a stage
)

// entry is the data of a journal record other than a plan.
type entry struct {
	Deployment string   `json:"deployment"`
	Action     *Action  `json:"action,omitempty"`
	Err        string   `json:"error,omitempty"`
	Progress   Progress `json:"progress"`
}

// told says that the hooks heard of a stage.
type told struct {
	Deployment string `json:"deployment"`
	Stage      string `json:"stage"`
}

func begin(p Plan, at time.Time) Record {
	return Record{Plan: p, Progress: Progress{State: Planned, Since: at, Deadline: at.Add(p.Policy.Drain)}}
}

// History is every deployment of a fleet, oldest first.
type History []Record

// ReadHistory reads the journal of the fleet in dir, which may be in use.
func ReadHistory(dir string) (History, error) {
	recs, err := journal.Read(filepath.Join(dir, journalName))
	if err != nil {
		return nil, err
	}
	return replay(recs)
}

func replay(recs []journal.Record) (History, error) {
	var p player
	for _, rec := range recs {
		if err := p.play(rec); err != nil {
			return nil, err
		}
	}
	return p.History, nil
}

// player brings a history up to date, record by record.
type player struct {
	History History
	Epoch   int64 // the highest of the leases
}

func (p *player) play(rec journal.Record) error {
	var data any
	switch rec.Kind {
	case kindPlan:
		data = new(Plan)
	case kindTold:
		data = new(told)
	case kindState, kindIntent, kindEffect:
		data = new(entry)
	case kindLease:
		data = new(lease)
	default:
		return nil // a note
	}
	if err := json.Unmarshal(rec.Data, data); err != nil {
		return fmt.Errorf("%w: record %d: %w", journal.ErrCorrupt, rec.Seq, err)
	}
	if !p.apply(rec.Time, data) {
		return fmt.Errorf("%w: record %d is of no known deployment", journal.ErrCorrupt, rec.Seq)
	}
	return nil
}

// apply takes a decoded record in; false if it is of no known deployment.
func (p *player) apply(at time.Time, data any) bool {
	h := p.History
	mine := func(id string) bool { return len(h) > 0 && h[len(h)-1].ID == id }
	switch d := data.(type) {
	case *Plan:
		p.History = append(h, begin(*d, at))
	case *told:
		if !mine(d.Deployment) {
			return false
		}
		r := &h[len(h)-1]
		r.Told = append(slices.Clip(r.Told), d.Stage)
	case *entry:
		if !mine(d.Deployment) {
			return false
		}
		h[len(h)-1].Progress = d.Progress
	case *lease:
		p.Epoch = max(p.Epoch, d.Epoch)
	}
	return true
}

// Last is the newest deployment, or nil.
func (h History) Last() *Record {
	if len(h) == 0 {
		return nil
	}
	return &h[len(h)-1]
}

// Unfinished is the deployment that `deploy resume` or `abort` would act on, or
// nil. One that only keeps its old slot warm is finished as far as its user cares.
func (h History) Unfinished() *Record {
	if l := h.Last(); l != nil && !l.State.Finished() && !l.State.Resting() {
		return l
	}
	return nil
}

// Current is the release that serves when nothing is unfinished, or nil.
func (h History) Current() *Release {
	for i := len(h) - 1; i >= 0; i-- {
		switch r := h[i]; {
		case r.State == Baking || r.State.Proven() || r.KeptNew:
			return &r.New
		case r.Old != nil:
			return r.Old
		case r.State == RolledBack, r.State == Quarantined:
			return nil // the first of its line: nothing served before it
		}
	}
	return nil
}

// Kept is the old release that is still warm, with the record that keeps it, or nil.
func (h History) Kept() (*Release, *Record) {
	if l := h.Last(); l != nil && l.State == Baking && l.Old != nil {
		return l.Old, l
	}
	return nil, nil
}

// Proven is the newest proven release of an image's version, or nil.
func (h History) Proven(version string) *Release {
	for i := len(h) - 1; i >= 0; i-- {
		if h[i].State.Proven() && h[i].New.Spec.Image.Version == version {
			return &h[i].New
		}
	}
	return nil
}

// Waits is the error of a deployment that a person has to decide about, paused or
// blocked; nil if none has.
func (h History) Waits() error {
	if r := h.Unfinished(); r != nil && (r.State == Paused || r.State == Blocked) {
		return unfinished(*r)
	}
	return nil
}

// TakenBack is the deployment in which the fleet last went away from an image for
// not being good enough, by itself or by a person's word; nil if it runs the
// image, or never did so, or took it again later.
func (h History) TakenBack(d artifact.Digest) *Record {
	if cur := h.Current(); cur != nil && cur.Spec.Image.Digest == d {
		return nil
	}
	for i := len(h) - 1; i >= 0; i-- {
		switch r := &h[i]; {
		case r.New.Spec.Image.Digest == d && (r.State == RolledBack || r.State == Quarantined):
			return r
		case r.Rollback && r.Old != nil && r.Old.Spec.Image.Digest == d && (r.State == Baking || r.State.Proven()):
			return r
		case r.New.Spec.Image.Digest == d:
			return nil
		}
	}
	return nil
}
