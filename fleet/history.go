package fleet

import (
	"encoding/json"
	"fmt"
	"path/filepath"
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

// lastEpoch is the highest epoch that the records know.
func lastEpoch(recs []journal.Record) (n int64) {
	for _, rec := range recs {
		var l lease
		if rec.Kind == kindLease && json.Unmarshal(rec.Data, &l) == nil {
			n = max(n, l.Epoch)
		}
	}
	return n
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
	var h History
	for _, rec := range recs {
		switch rec.Kind {
		case kindPlan:
			var p Plan
			if err := json.Unmarshal(rec.Data, &p); err != nil {
				return nil, fmt.Errorf("%w: record %d: %w", journal.ErrCorrupt, rec.Seq, err)
			}
			h = append(h, begin(p, rec.Time))
		case kindTold:
			var t told
			if err := json.Unmarshal(rec.Data, &t); err != nil {
				return nil, fmt.Errorf("%w: record %d: %w", journal.ErrCorrupt, rec.Seq, err)
			}
			if len(h) == 0 || h[len(h)-1].ID != t.Deployment {
				return nil, fmt.Errorf("%w: record %d is of no known deployment", journal.ErrCorrupt, rec.Seq)
			}
			h[len(h)-1].Told = append(h[len(h)-1].Told, t.Stage)
		case kindState, kindIntent, kindEffect:
			var e entry
			if err := json.Unmarshal(rec.Data, &e); err != nil {
				return nil, fmt.Errorf("%w: record %d: %w", journal.ErrCorrupt, rec.Seq, err)
			}
			if len(h) == 0 || h[len(h)-1].ID != e.Deployment {
				return nil, fmt.Errorf("%w: record %d is of no known deployment", journal.ErrCorrupt, rec.Seq)
			}
			h[len(h)-1].Progress = e.Progress
		}
	}
	return h, nil
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

// Previous is the newest proven release of another image than the current one,
// and none that a rollback went away from; or nil.
func (h History) Previous() *Release {
	cur := h.Current()
	if cur == nil {
		return nil
	}
	bad := map[artifact.Digest]bool{}
	for _, r := range h {
		if r.Rollback && r.Old != nil {
			bad[r.Old.Spec.Image.Digest] = true
		}
		if r.State.Proven() {
			delete(bad, r.New.Spec.Image.Digest)
		}
	}
	for i := len(h) - 1; i >= 0; i-- {
		d := h[i].New.Spec.Image.Digest
		if h[i].State.Proven() && d != cur.Spec.Image.Digest && !bad[d] {
			return &h[i].New
		}
	}
	return nil
}

// Images lists the images that the fleet needs: those that run or may have to
// (current, kept, unfinished) and the one that rollback would go to.
func (h History) Images() []artifact.Image {
	var out []artifact.Image
	add := func(r *Release) {
		if r == nil {
			return
		}
		for _, have := range out {
			if have.Digest == r.Spec.Image.Digest {
				return
			}
		}
		out = append(out, r.Spec.Image)
	}
	add(h.Current())
	if l := h.Last(); l != nil && !l.State.Finished() {
		add(&l.New)
		add(l.Old)
	}
	add(h.Previous())
	return out
}
