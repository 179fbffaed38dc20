package pipeline

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/event"
)

// Looked is what was compared with an image that is there, so that none was baked.
type Looked struct {
	Base   string    `json:"base"`
	Steps  int       `json:"steps"`
	Files  int       `json:"files"`           // local ones that steps read
	Asked  []string  `json:"asked,omitempty"` // steps whose refresh command was run in the guest
	Tests  int       `json:"tests"`
	Oldest time.Time `json:"oldest,omitzero"` // when the oldest result of a step was made
}

// String is a line for a person.
func (l Looked) String() string {
	parts := []string{"the base " + l.Base, plural(l.Steps, "step") + " with " + plural(l.Files, "local file")}
	if len(l.Asked) > 0 {
		parts = append(parts, "the refresh command of "+strings.Join(l.Asked, ", "))
	}
	parts = append(parts, "the seal and "+plural(l.Tests, "test"))
	text := "looked at " + strings.Join(parts, ", ")
	if !l.Oldest.IsZero() {
		text += "; no step ran before " + l.Oldest.Local().Format("2006-01-02 15:04")
	}
	return text
}

func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// looked is what was compared with the image that k.current is.
func (k *bake) looked() *Looked {
	l := &Looked{Base: k.current.Lineage.Parent, Steps: len(k.steps), Tests: len(k.tests)}
	for i, s := range k.steps {
		if _, asked := k.probes[i]; asked {
			l.Asked = append(l.Asked, fmt.Sprintf("%q", s.Name))
		}
		for _, v := range s.inputs.All() {
			if ofSum.MatchString(v[1]) {
				l.Files++
			}
		}
	}
	for _, ran := range k.current.Lineage.Ran {
		if l.Oldest.IsZero() || ran.Before(l.Oldest) {
			l.Oldest = ran
		}
	}
	return l
}

// most reasons, and lines of a refresh command, that are told.
const mostReasons = 5

// needed says why there was something to bake.
func (k *bake) needed() []string {
	switch {
	case k.opts.Force:
		return []string{"--force"}
	case k.opts.NoCache:
		return []string{"--no-cache"}
	case len(k.reasons) > mostReasons:
		return append(slices.Clone(k.reasons[:mostReasons]), fmt.Sprintf("and %d steps more", len(k.reasons)-mostReasons))
	case len(k.reasons) > 0:
		return k.reasons
	case k.unfit != "":
		return []string{k.unfit}
	case k.stale != nil:
		return []string{fmt.Sprintf("%s of the same inputs is from %s, which is too old", imageName(*k.stale), k.stale.Created.Local().Format("2006-01-02 15:04"))}
	}
	return []string{"no image of these inputs is there: another version was asked for, or the seal or the tests are others, or it was removed"}
}

// why says why link i is not gone on from, and keeps it as a reason of the build
// unless it only follows from an earlier one.
func (k *bake) why(ctx context.Context, i int) string {
	links, _ := k.chain()
	if i >= len(links) {
		return ""
	}
	last, changed := k.compare(links)
	p := k.explain(ctx, links, last, changed, i)
	if p.Field == "refresh" {
		p.Why = "its refresh command prints something else"
		if now := k.news(i - 1); now != "" {
			p.Why += ": " + now
		}
	}
	name := fmt.Sprintf("%q", links[i].name)
	reason := name + ": " + p.Why
	follows := strings.HasPrefix(p.Why, "comes after") || p.Why == whyNotSaved || len(k.reasons) > 0 && (len(last) == 0 || p.Why == whyNotRun)
	switch {
	case strings.HasPrefix(p.Why, name): // it is too old
		reason = p.Why
	case strings.HasPrefix(p.Why, `"`): // another one is
		follows = true
	case i == 0:
		reason = "the base: " + p.Why
	}
	if !follows && !slices.Contains(k.reasons, reason) {
		k.reasons = append(k.reasons, reason)
	}
	return p.Why
}

// news are the lines of a step's refresh command that it did not print in the
// last build, the first of them.
func (k *bake) news(step int) string {
	was := strings.Split(k.before.Probes[k.steps[step].Name], "\n")
	var lines []string
	for _, l := range strings.Split(k.probes[step], "\n") {
		if l = strings.TrimSpace(l); l != "" && !slices.Contains(was, l) {
			lines = append(lines, l)
		}
	}
	if more := len(lines) - mostReasons; more > 0 {
		lines = append(lines[:mostReasons], fmt.Sprintf("and %d lines more", more))
	}
	return strings.Join(lines, "; ")
}

// mostPrinted is how much of a refresh command's output is kept to tell what is new.
const mostPrinted = 64 << 10

// printed is what the refresh commands said, by step.
func (k *bake) printed() map[string]string {
	out := map[string]string{}
	for i, text := range k.probes {
		var lines []string
		for _, l := range strings.Split(text[:min(len(text), mostPrinted)], "\n") {
			lines = append(lines, strings.TrimSpace(l))
		}
		out[k.steps[i].Name] = strings.Join(lines, "\n")
	}
	return out
}

func (k *bake) tellCached(ctx context.Context, r *rig) {
	for i, p := range r.trail[1:] {
		event.Tell(ctx, event.Report{Step: &event.Step{Image: k.tpl.Name, Build: k.build.Name, Step: k.steps[i].Name, Outcome: event.Cached, Ran: p.Ran}})
	}
}

func (k *bake) tellStep(ctx context.Context, s step, began time.Time, why string, err error) {
	told := event.Step{Image: k.tpl.Name, Build: k.build.Name, Step: s.Name, Outcome: event.Ran, Seconds: k.env.clock().Sub(began).Seconds(), Why: why}
	if err != nil {
		told.Outcome, told.Error = event.Failed, err.Error()
	}
	event.Tell(ctx, event.Report{Step: &told})
}

func (k *bake) tellTest(ctx context.Context, one artifact.TestResult) {
	event.Tell(ctx, event.Report{Test: &event.Test{Image: k.tpl.Name, Build: k.build.Name, Test: one.Name,
		Passed: one.Passed, Seconds: one.Seconds, Message: one.Message}})
}

// tellBuild tells how the build ended; outcome "" is told by the rest.
func (k *bake) tellBuild(ctx context.Context, b Baked, outcome string, err error) {
	img := b.Image
	told := event.Build{Image: k.tpl.Name, Build: k.build.Name, Outcome: outcome, Seconds: b.Seconds, Log: b.Log, Why: b.Why}
	if img.Digest != "" {
		told.Version, told.Digest, told.Tags, told.Stored = img.Version, string(img.Digest), img.Tags, img.StoredNew
		told.From, told.FromDigest = img.Lineage.Parent, string(img.Lineage.ParentDigest)
	}
	switch {
	case err != nil:
		told.Error = err.Error()
		if outcome == "" {
			told.Outcome, told.Seconds = event.Failed, k.sinceBegan()
		}
	case b.Changed:
		told.Outcome = event.Baked
	default:
		told.Outcome, told.Stored = event.Unchanged, 0
		if b.Looked != nil {
			told.Why = []string{b.Looked.String()}
		}
	}
	event.Tell(ctx, event.Report{Build: &told})
}

func (k *bake) sinceBegan() float64 {
	if k.began.IsZero() {
		return 0
	}
	return k.env.clock().Sub(k.began).Seconds()
}

// skipped tells of each build of a template that none of them was begun.
func (j *job) skipped(ctx context.Context, opts BakeOptions, why string) {
	for _, b := range j.tpl.Builds {
		if len(opts.Only) > 0 && !contains(opts.Only, b.Name) {
			continue
		}
		event.Tell(ctx, event.Report{Build: &event.Build{Image: j.tpl.Name, Build: b.Name, Outcome: event.Skipped, Error: why}})
	}
}
