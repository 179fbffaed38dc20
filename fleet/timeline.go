package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/rebake/rebake/internal/journal"
)

// Past is a deployment with the times of its turning points.
type Past struct {
	Record
	Outcome  string    `json:"verdict"`
	Promoted time.Time `json:"promoted,omitzero"`          // all traffic was on the new slot, and its last hold over
	Ended    time.Time `json:"ended,omitzero"`             // nothing was left to do
	ToAll    float64   `json:"promoted_seconds,omitempty"` // from its begin
	ToEnd    float64   `json:"seconds,omitempty"`          // from its begin
}

// PastHeal is a `fleet heal` that changed something.
type PastHeal struct {
	ID        string    `json:"id"`
	By        string    `json:"by"`
	Began     time.Time `json:"began"`
	Last      time.Time `json:"last"`      // its last record
	Instances []string  `json:"instances"` // that were started anew and attached
}

// Timeline reads what happened to the fleet, which may be in use: oldest first.
func (d *Deployer) Timeline(ctx context.Context) ([]Past, []PastHeal, error) {
	recs, err := d.books().Records(ctx)
	if err != nil {
		return nil, nil, err
	}
	return timeline(recs)
}

func timeline(recs []journal.Record) (past []Past, heals []PastHeal, err error) {
	var p player
	for _, rec := range recs {
		if rec.Kind == kindHeal {
			if heals, err = addHeal(heals, rec, p.History); err != nil {
				return nil, nil, err
			}
			continue
		}
		if err := p.play(rec); err != nil {
			return nil, nil, err
		}
		if len(p.History) > len(past) {
			past = append(past, Past{})
		}
		if len(past) == 0 {
			continue
		}
		is := &past[len(past)-1]
		is.Record = *p.History.Last()
		if is.State == Baking && is.Promoted.IsZero() {
			is.Promoted = rec.Time
		}
		if is.State.Finished() && is.Ended.IsZero() {
			is.Ended = rec.Time
		}
	}
	for i := range past {
		is := &past[i]
		is.Outcome = is.Verdict()
		if !is.Promoted.IsZero() {
			is.ToAll = is.Promoted.Sub(is.Began).Seconds()
		}
		if !is.Ended.IsZero() {
			is.ToEnd = is.Ended.Sub(is.Began).Seconds()
		}
	}
	return past, heals, nil
}

func addHeal(heals []PastHeal, rec journal.Record, h History) ([]PastHeal, error) {
	var n healNote
	if err := json.Unmarshal(rec.Data, &n); err != nil {
		return nil, fmt.Errorf("%w: record %d: %w", journal.ErrCorrupt, rec.Seq, err)
	}
	if len(heals) == 0 || heals[len(heals)-1].ID != n.Heal {
		heals = append(heals, PastHeal{ID: n.Heal, By: n.By, Began: rec.Time, Instances: []string{}})
	}
	is := &heals[len(heals)-1]
	is.Last = rec.Time
	temporary := !slices.ContainsFunc(h, func(r Record) bool { return r.ID == n.Group.Deployment })
	for _, id := range n.Instances {
		if n.Step == "attach" && !temporary && !slices.Contains(is.Instances, id) {
			is.Instances = append(is.Instances, id)
		}
	}
	return heals, nil
}

// healNote is a journal record of kind "heal". It decides nothing: what is there
// tells all that has to be done. It says who did what, and when.
type healNote struct {
	Heal      string   `json:"heal"` // ULID
	By        string   `json:"by"`
	Step      string   `json:"step"` // launch, attach, ready, drain, detach, end, retire
	Group     GroupID  `json:"group"`
	Instances []string `json:"instances,omitempty"`
}

const kindHeal = "heal"
