// Package summary puts together what one run of rebake did, for those who were not
// there: the morning after, a merge request, a dashboard. Collector reads the
// run's events; Text, Markdown, JSON and JUnit render what it holds, and do
// nothing else.
package summary

import (
	"cmp"
	"encoding/json"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/inventory"
)

// Summary is what a run did. It marshals as docs/nightly.md describes it: fields
// are added to it, never changed or taken away.
type Summary struct {
	Version    int         `json:"version"` // of this form: 1
	Rebake     string      `json:"rebake"`
	Command    string      `json:"command"` // up, build, deploy
	Templates  []string    `json:"templates"`
	Host       string      `json:"host"`
	Began      time.Time   `json:"began"`
	Seconds    float64     `json:"seconds"`
	Outcome    string      `json:"outcome"`
	Changed    bool        `json:"changed"` // an image was baked, or a fleet was touched
	Exit       int         `json:"exit"`
	Error      string      `json:"error,omitempty"`
	Held       string      `json:"held,omitempty"` // why nothing was deployed
	Builds     []Build     `json:"builds"`
	Deployment *Deployment `json:"deployment,omitempty"`
	Healed     []string    `json:"healed,omitempty"` // dead instances that were started anew
	Pruned     []Pruned    `json:"pruned,omitempty"`
	Warnings   []string    `json:"warnings,omitempty"` // the first of them
}

// Form is the Version of a Summary.
const Form = 1

// Outcomes that the pipeline has no word for.
const (
	Baked       = "baked" // without a fleet
	Failed      = "failed"
	Interrupted = "interrupted"
)

// Build is one build with its steps and tests, in their order.
type Build struct {
	event.Build
	Steps []event.Step `json:"steps"`
	Tests []event.Test `json:"tests"`
	// Packages tells the new image from Before, the one that was there; nil: nobody knows.
	Packages *inventory.Summary `json:"packages,omitempty"`
	Before   string             `json:"before,omitempty"`
}

// Deployment is what came of a fleet.
type Deployment struct {
	Fleet     string     `json:"fleet"`
	ID        string     `json:"id,omitempty"`
	Image     string     `json:"image"` // that it was to run
	Digest    string     `json:"digest"`
	Before    string     `json:"before,omitempty"`  // that it ran
	Serving   string     `json:"serving,omitempty"` // that it runs now
	Verdict   string     `json:"verdict"`           // unchanged, promoted, rolled back, paused, blocked, unfinished
	Reason    string     `json:"reason,omitempty"`
	Instances int        `json:"instances"`
	Moved     float64    `json:"moved_seconds,omitempty"` // from the first traffic write to the last
	Writes    int        `json:"traffic_writes,omitempty"`
	Idle      float64    `json:"idle_seconds,omitempty"` // from the first traffic write to the old slot idle
	Cut       int        `json:"cut_requests"`           // by the drain timeout
	Answers   *Answers   `json:"answers,omitempty"`
	KeptUntil *time.Time `json:"kept_until,omitempty"` // the old instances
	Gates     []Gate     `json:"gates,omitempty"`
	Override  string     `json:"override,omitempty"` // why a freeze or what the fleet requires did not count
}

// Answers are what the new instances gave, by the router's counters, when the run ended.
type Answers struct {
	Requests int64 `json:"requests"`
	Failed   int64 `json:"failed"` // 5xx
}

// Gate is what a gate said last at one step.
type Gate struct {
	Gate    string `json:"gate"`
	At      string `json:"at"` // before traffic, or a share of it
	Verdict string `json:"verdict"`
	Detail  string `json:"detail,omitempty"`
}

// Pruned is an image that was removed.
type Pruned struct {
	Image string `json:"image"`
	Why   string `json:"why"`
}

// mostWarnings is how many of them are kept.
const mostWarnings = 50

// Collector makes a Summary of a run's events. It is safe for many goroutines.
type Collector struct {
	mu sync.Mutex
	s  Summary
}

// Sink takes an event in; it is an event.Sink.
func (c *Collector) Sink(e event.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case e.Kind == event.Warning && len(c.s.Warnings) < mostWarnings && !slices.Contains(c.s.Warnings, e.Text):
		c.s.Warnings = append(c.s.Warnings, e.Text)
	case e.Report == nil:
	case e.Report.Step != nil:
		one := *e.Report.Step
		b := c.build(one.Image, one.Build)
		one.Image, one.Build = "", ""
		b.Steps = put(b.Steps, one, func(s event.Step) bool { return s.Step == one.Step })
	case e.Report.Test != nil:
		one := *e.Report.Test
		b := c.build(one.Image, one.Build)
		one.Image, one.Build = "", ""
		b.Tests = put(b.Tests, one, func(t event.Test) bool { return t.Test == one.Test })
	case e.Report.Build != nil:
		c.build(e.Report.Build.Image, e.Report.Build.Build).Build = *e.Report.Build
	}
}

// build is the build of that name, which is made if nothing was told of it yet.
func (c *Collector) build(image, build string) *Build {
	for i := range c.s.Builds {
		if b := &c.s.Builds[i]; b.Image == image && b.Build.Build == build {
			return b
		}
	}
	c.s.Builds = append(c.s.Builds, Build{Build: event.Build{Image: image, Build: build, Outcome: event.Failed},
		Steps: []event.Step{}, Tests: []event.Test{}})
	return &c.s.Builds[len(c.s.Builds)-1]
}

// put replaces what is the same, or appends.
func put[T any](list []T, one T, same func(T) bool) []T {
	if i := slices.IndexFunc(list, same); i >= 0 {
		list[i] = one
		return list
	}
	return append(list, one)
}

// Summary is what was told so far. The rest of its fields are the caller's to fill in.
func (c *Collector) Summary() Summary {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.s
	out.Version, out.Builds, out.Warnings = Form, []Build{}, slices.Clone(c.s.Warnings)
	for _, b := range c.s.Builds {
		b.Steps, b.Tests = slices.Clone(b.Steps), slices.Clone(b.Tests)
		out.Builds = append(out.Builds, b)
	}
	slices.SortStableFunc(out.Builds, func(a, b Build) int {
		return cmp.Or(cmp.Compare(a.Image, b.Image), cmp.Compare(a.Build.Build, b.Build.Build))
	})
	return out
}

// Map replaces every text of a summary by f of it. v is a pointer.
func Map(v *Summary, f func(string) string) { mapText(reflect.ValueOf(v).Elem(), f) }

func mapText(v reflect.Value, f func(string) string) {
	switch v.Kind() {
	case reflect.String:
		if v.CanSet() {
			v.SetString(f(v.String()))
		}
	case reflect.Pointer:
		if !v.IsNil() {
			mapText(v.Elem(), f)
		}
	case reflect.Slice:
		for i := range v.Len() {
			mapText(v.Index(i), f)
		}
	case reflect.Map:
		if v.Type().Key().Kind() != reflect.String { // its keys are kinds of ours, its values numbers
			return
		}
		for _, k := range v.MapKeys() {
			one := reflect.New(v.Type().Elem()).Elem()
			one.Set(v.MapIndex(k))
			mapText(one, f)
			v.SetMapIndex(k, one)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			mapText(v.Field(i), f)
		}
	}
}

// JSON is the summary as one indented object.
func JSON(s Summary) ([]byte, error) {
	out, err := json.MarshalIndent(s, "", "  ")
	return append(out, '\n'), err
}

// counts of a build's tests.
func (b Build) counts() (passed, failed int) {
	for _, t := range b.Tests {
		if t.Passed {
			passed++
		} else {
			failed++
		}
	}
	return passed, failed
}

// name is image:version, or the image alone while it has none.
func (b Build) name() string {
	if b.Version == "" {
		return b.Image
	}
	return b.Image + ":" + b.Version
}
