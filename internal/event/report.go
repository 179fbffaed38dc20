package event

import (
	"context"
	"time"
)

// Report is what an event says in fields, so that nobody need read its words. One
// of its parts is set.
type Report struct {
	Step  *Step  `json:"step,omitempty"`
	Test  *Test  `json:"test,omitempty"`
	Build *Build `json:"build,omitempty"`
}

// What came of a build or a step of it.
const (
	Baked     = "baked"     // a build: there is a new image
	Unchanged = "unchanged" // a build: an image of the same inputs is there
	Failed    = "failed"    // a build or a step
	Skipped   = "skipped"   // a build whose base failed, or that was stopped before it began
	Ran       = "ran"       // a step
	Cached    = "cached"    // a step: its result of an earlier build was gone on from
)

// Build is told once at the end of each build.
type Build struct {
	Image      string   `json:"image"` // name
	Build      string   `json:"build"` // of the template: the builder's name
	Outcome    string   `json:"outcome"`
	Version    string   `json:"version,omitempty"` // of the image that is there now
	Digest     string   `json:"digest,omitempty"`
	From       string   `json:"from,omitempty"` // reference of the base
	FromDigest string   `json:"from_digest,omitempty"`
	Tags       []string `json:"tags,omitempty"`
	Stored     int64    `json:"stored,omitempty"` // compressed bytes that were new in the store
	Seconds    float64  `json:"seconds"`
	Why        []string `json:"why,omitempty"` // why it was baked, or what was looked at to leave it
	Log        string   `json:"log,omitempty"` // file of its events
	Error      string   `json:"error,omitempty"`
}

// Step is told of each step of a build that was run, or gone on after. One that
// is tried again, or found again in a later saved state, is told again: the last
// one holds.
type Step struct {
	Image   string    `json:"image,omitempty"`
	Build   string    `json:"build,omitempty"`
	Step    string    `json:"step"`
	Outcome string    `json:"outcome"`
	Seconds float64   `json:"seconds"`
	Ran     time.Time `json:"ran,omitzero"`  // when a cached one ran
	Why     string    `json:"why,omitempty"` // it was run
	Error   string    `json:"error,omitempty"`
}

// Test is told of each check of a sealed image.
type Test struct {
	Image   string  `json:"image,omitempty"`
	Build   string  `json:"build,omitempty"`
	Test    string  `json:"test"`
	Passed  bool    `json:"passed"`
	Seconds float64 `json:"seconds"`
	Message string  `json:"message,omitempty"`
}

// Tell tells a report.
func Tell(ctx context.Context, r Report) { from(ctx).send(Event{Kind: Reported, Report: &r}) }

// clean is a copy without secrets.
func (r *Report) clean(red *Redactor) *Report {
	if r == nil {
		return nil
	}
	out := *r
	if r.Build != nil {
		b := *r.Build
		for _, s := range []*string{&b.Image, &b.Build, &b.Version, &b.From, &b.Log, &b.Error} {
			*s = red.Clean(*s)
		}
		b.Tags, b.Why = red.all(b.Tags), red.all(b.Why)
		out.Build = &b
	}
	if r.Step != nil {
		s := *r.Step
		s.Image, s.Build, s.Step = red.Clean(s.Image), red.Clean(s.Build), red.Clean(s.Step)
		s.Why, s.Error = red.Clean(s.Why), red.Clean(s.Error)
		out.Step = &s
	}
	if r.Test != nil {
		t := *r.Test
		t.Image, t.Build, t.Test, t.Message = red.Clean(t.Image), red.Clean(t.Build), red.Clean(t.Test), red.Clean(t.Message)
		out.Test = &t
	}
	return &out
}

// all cleans each of a list, into a list of its own.
func (r *Redactor) all(list []string) (out []string) {
	for _, s := range list {
		out = append(out, r.Clean(s))
	}
	return out
}
