package ami

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/rebake/rebake/artifact"
)

// StateKind is the attachment that says what became of an AMI after its record.
const StateKind = "application/vnd.rebake.ami.state.v1+json"

// Step is what was done with an AMI. The zero Step is nothing.
type Step string

// The steps. Of those that were taken the last counts.
const (
	Deprecated Step = "deprecated"
	Disabled   Step = "disabled"
	Removing   Step = "removing" // said before the first call that removes it: what goes is named
	Removed    Step = "removed"
	Restored   Step = "restored" // by hand: the ladder leaves it alone from then on
)

// State is what became of a recorded AMI. Each is one more attachment of the
// image, which outlives the image's disk.
type State struct {
	Region    string    `json:"region"`
	AMI       string    `json:"ami"`
	Step      Step      `json:"step"`
	Snapshots []string  `json:"snapshots,omitempty"` // of Removing: those that go with it; of Removed: those that did not
	Why       string    `json:"why,omitempty"`
	Time      time.Time `json:"time"`
	Serial    int       `json:"serial"` // one more than that of the state before
}

// Made is an AMI that was made, and what became of it, oldest first.
type Made struct {
	Record
	States []State `json:"states,omitempty"`
}

// Last is the step that counts.
func (m Made) Last() State {
	if len(m.States) == 0 {
		return State{}
	}
	return m.States[len(m.States)-1]
}

// Gone tells whether it was removed.
func (m Made) Gone() bool { return m.Last().Step == Removed }

// All are the AMIs that were ever made of an image, also those that were removed,
// oldest first. AWS is not asked. What cannot be understood is an error.
func All(ctx context.Context, a artifact.Attacher, img artifact.Image) ([]Made, error) {
	records, err := attached[Record](ctx, a, img, Kind)
	if err != nil {
		return nil, err
	}
	states, err := attached[State](ctx, a, img, StateKind)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(states, func(a, b State) int { return cmp.Compare(a.Serial, b.Serial) })
	var out []Made
	for _, r := range records {
		m := Made{Record: r}
		for _, s := range states {
			if s.Region == r.Region && s.AMI == r.AMI {
				m.States = append(m.States, s)
			}
		}
		out = append(out, m)
	}
	return out, nil
}

// Say attaches what became of an AMI and returns m with it.
func (m Made) Say(ctx context.Context, a artifact.Attacher, img artifact.Image, s State) (Made, error) {
	s.Region, s.AMI, s.Serial = m.Region, m.AMI, m.Last().Serial+1
	if s.Time.IsZero() {
		s.Time = time.Now().UTC().Truncate(time.Second)
	}
	body, err := json.Marshal(s)
	if err != nil {
		return m, err
	}
	if _, err := a.Attach(ctx, img.Digest, artifact.Attachment{Kind: StateKind, Media: "application/json", Created: s.Time,
		Notes: map[string]string{"dev.rebake.region": s.Region, "dev.rebake.ami": s.AMI}}, body); err != nil {
		return m, fmt.Errorf("record that %s in %s is %s: %w", m.AMI, m.Region, s.Step, err)
	}
	m.States = append(slices.Clip(m.States), s)
	return m, nil
}

// attached reads the documents of a kind.
func attached[T any](ctx context.Context, a artifact.Attacher, img artifact.Image, kind string) ([]T, error) {
	docs, err := a.Attached(ctx, img.Digest, kind)
	if err != nil {
		return nil, err
	}
	var out []T
	for _, d := range docs {
		body, err := a.ReadAttachment(ctx, d)
		if err != nil {
			return nil, err
		}
		var v T
		if err := json.Unmarshal(body, &v); err != nil {
			return nil, fmt.Errorf("%w: record %s of an AMI: %w", artifact.ErrCorrupt, d.Digest, err)
		}
		out = append(out, v)
	}
	return out, nil
}
