package pipeline

import (
	"context"
	"fmt"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/template"
)

// Plan is what a bake would do.
type Plan struct {
	Build   string          `json:"build"`
	Image   string          `json:"image"`
	Boot    PlanStep        `json:"boot"` // the machine before the first step
	Steps   []PlanStep      `json:"steps"`
	Tests   []string        `json:"tests"`
	Tags    []string        `json:"tags"`
	Inputs  artifact.Digest `json:"inputs_digest,omitempty"` // "" while a refresh command must be asked, or a step always runs
	Current string          `json:"current,omitempty"`       // the image that makes a bake needless
	Unasked bool            `json:"unasked,omitempty"`       // what is in a cloud was not asked for
}

// PlanStep says whether a step will run, and why.
type PlanStep struct {
	Name   string          `json:"name"`
	Key    artifact.Digest `json:"key,omitempty"`
	Cached bool            `json:"cached"`
	Why    string          `json:"why"`
	// The first input that is another than in the last build of this name.
	Field string `json:"field,omitempty"`
	Was   string `json:"was,omitempty"`
	Is    string `json:"is,omitempty"`
}

// MakePlan checks a template against its backends and tells what a bake would
// do. It boots, downloads and changes nothing.
func MakePlan(ctx context.Context, env Env, tpl *template.Template, opts BakeOptions) ([]Plan, error) {
	bakes, err := bakesOf(ctx, env, tpl, opts)
	if err != nil {
		return nil, err
	}
	var plans []Plan
	for _, k := range bakes {
		p := Plan{Build: k.build.Name, Image: k.tpl.Name + ":" + k.version, Tags: k.tags(), Inputs: k.inputs, Unasked: k.unasked}
		steps, err := k.planSteps(ctx)
		if err != nil {
			return nil, err
		}
		p.Boot, p.Steps = steps[0], steps[1:]
		for _, c := range k.checks {
			p.Tests = append(p.Tests, c.name)
		}
		if k.current != nil {
			p.Current = k.current.Name + ":" + k.current.Version
		}
		plans = append(plans, p)
	}
	return plans, nil
}

// planSteps tells of the boot and of each step.
func (k *bake) planSteps(ctx context.Context) ([]PlanStep, error) {
	if k.unasked {
		out := []PlanStep{{Name: "boot", Why: "its source is not looked for here"}}
		for _, s := range k.steps {
			out = append(out, PlanStep{Name: s.Name, Why: `comes after "boot", of which nothing is known`})
		}
		return out, nil
	}
	links, _ := k.chain()
	from := k.deepest(ctx, links)
	last, changed := k.compare(links)
	var out []PlanStep
	for i := range len(k.steps) + 1 {
		var p PlanStep
		switch {
		case i >= len(links) && k.steps[len(links)-1].Cache.Refresh != "" && i == len(links):
			p = PlanStep{Name: k.steps[i-1].Name, Why: "its refresh command will be asked in the guest"}
		case i >= len(links):
			p = PlanStep{Name: k.steps[i-1].Name, Why: fmt.Sprintf("comes after %q, which the guest is asked about", k.steps[len(links)-1].Name)}
		case from != nil && i <= from.at:
			p = PlanStep{Cached: true, Why: fmt.Sprintf("ran %s ago", k.env.now().Sub(from.trail[i].Ran).Round(time.Second))}
		default:
			p = k.explain(ctx, links, last, changed, i)
		}
		if i < len(links) {
			p.Name, p.Key = links[i].name, links[i].key
		}
		out = append(out, p)
	}
	return out, nil
}

// remember reads what the build before this one passed, while it is there.
func (k *bake) remember() {
	if k.before != nil {
		return
	}
	before, err := k.lastBuild()
	if err != nil {
		before = lastBuild{} // it only explains
	}
	k.before = &before
}

// compare tells what the build before this one passed, and the first link that
// is another than in it; -1 if none is.
func (k *bake) compare(links []link) (last []passed, changed int) {
	k.remember()
	last = k.before.Passed
	for i := 0; i < len(links) && i < len(last); i++ {
		if links[i].key != last[i].Key {
			return last, i
		}
	}
	if len(last) > 0 && len(links) > len(last) {
		return last, len(last)
	}
	return last, -1
}

// explain says why link i is not cached.
func (k *bake) explain(ctx context.Context, links []link, last []passed, changed, i int) (p PlanStep) {
	cp, able := k.checkpoints()
	switch {
	case !able:
		p.Why = "this builder makes no checkpoints"
	case k.opts.NoCache:
		p.Why = "--no-cache"
	case k.opts.NoCacheFrom != "" && i > k.noCacheFrom():
		p.Why = "--no-cache-from " + k.opts.NoCacheFrom
	case i > 0 && k.steps[i-1].Cache.Never:
		p.Why = "cache: false"
	case i > 0 && !k.steps[i-1].keyed:
		p.Why = "what it does cannot be told from its inputs"
	case links[i].never:
		p.Why = "comes after a step that always runs"
	case len(last) == 0:
		p.Why = "no earlier build is known"
	case changed >= 0 && i > changed:
		p.Why = fmt.Sprintf("comes after %q, which changed", links[changed].name)
	case changed == i && i >= len(last):
		p.Why = whyNotRun
	case changed == i && links[i].kind != last[i].Kind:
		p.Why = "it is of another kind"
	case changed == i:
		p.Field, p.Was, p.Is = links[i].inputs.Difference(last[i].Inputs)
		p.Why = "changed: " + p.Field
	default:
		p.Why = whyNotSaved
		if c, ok, err := cp.Find(ctx, links[i].key); err == nil && ok {
			if trail, err := readTrail(c.Note, links[:i+1]); err == nil {
				if old := k.tooOld(links[:i+1], trail); old != "" {
					p.Why = old
				}
			}
		} else if old := k.tooOld(links[:i+1], last); old != "" {
			p.Why = old
		}
	}
	return p
}

// Why a step runs, where no input of it changed.
const (
	whyNotRun   = "it did not run yet"
	whyNotSaved = "its state was not saved, or is gone from the cache"
)
