package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rebake/rebake/internal/event"
)

// askEvery is the time between two questions to the same gate.
const askEvery = 2 * time.Second

// isAsked says that a gate is asked by the deployment, and not judged from counters.
func (g Gate) isAsked() bool { return g.Command != nil || g.HTTP != nil || g.Test || g.Alarm != nil }

// asked is what the gates that are asked say at a step: Pass if there are none,
// Inconclusive for one that was not asked yet.
func (r Record) asked(p Policy, step int) (Verdict, string) {
	var at []Finding
	for _, g := range p.Gates {
		if !g.isAsked() || g.Test && step >= 0 {
			continue
		}
		f, ok := r.found(g.Name, step)
		if !ok {
			f = Finding{Gate: g.Name, Verdict: Inconclusive, Detail: "not asked yet"}
		}
		if f.Verdict == Error && f.Errors >= p.Retries {
			f.Verdict, f.Detail = Fail, fmt.Sprintf("it could not be asked %d times: %s", f.Errors, f.Detail)
		}
		at = append(at, f)
	}
	return sum(at)
}

// counted is what the gates that are judged from counters say of this hold.
func (r *Record) counted(p Policy, now time.Time) (Verdict, string) {
	var at []Finding
	for _, g := range p.Gates {
		if g.isAsked() || g.Canary != nil && (r.Old == nil || p.Steps[r.Step].Permille == 1000) { // nothing to compare with
			continue
		}
		f := judge(g, r.Samples, now)
		f.Step = r.Step
		r.find(f)
		at = append(at, f)
	}
	return sum(at)
}

// sum is the worst of the findings, with its words.
func sum(fs []Finding) (Verdict, string) {
	v := worst(fs)
	for _, f := range fs {
		if f.Verdict == v && v != Pass {
			return v, fmt.Sprintf("gate %s: %s", f.Gate, f.Detail)
		}
	}
	return v, ""
}

func (r Record) found(gate string, step int) (Finding, bool) {
	for _, f := range r.Findings {
		if f.Gate == gate && f.Step == step {
			return f, true
		}
	}
	return Finding{}, false
}

// find keeps the last finding of each gate at each step. The slice is made
// anew: records are values.
func (r *Record) find(f Finding) {
	out := make([]Finding, 0, len(r.Findings)+1)
	for _, have := range r.Findings {
		if have.Gate != f.Gate || have.Step != f.Step {
			out = append(out, have)
		}
	}
	r.Findings = append(out, f)
}

// askedLately says that a gate of the step was asked so short a time ago that
// it is not asked again.
func (r Record) askedLately(p Policy, step int, now time.Time) bool {
	return slices.ContainsFunc(p.Gates, func(g Gate) bool {
		f, ok := r.found(g.Name, step)
		return ok && g.isAsked() && f.Verdict != Pass && now.Sub(f.At) < askEvery
	})
}

// sample takes down what happened since the last look.
func (r *Record) sample(at view, now time.Time) {
	fresh, old := r.New.Group.Slot, at.oldInstances
	if len(at.base) > 0 {
		old = at.base
	}
	marks, s := take(r.Marks, at.o.Router, fresh, at.newInstances, old, now)
	r.Marks = marks
	if s != nil {
		r.Samples = keepSamples(r.Samples, *s)
	}
}

// verify asks every gate of the step that has not passed there. Before traffic
// the health commands come first.
func (s *session) verify(ctx context.Context, r *Record, o Observation, step int) error {
	in := look(*r, o).instances()
	if step < 0 && !r.Verified {
		if err := s.admitNew(ctx, r); err != nil { // once more: what boots is there now
			return err
		}
		if s.Gate != nil {
			for _, i := range in {
				event.Waiting(ctx, "the gate in %s", i.ID)
				if err := s.Gate(ctx, i); err != nil {
					return fmt.Errorf("%s did not pass the gate: %w", i.ID, err)
				}
			}
		}
		r.Verified = true
	}
	for _, g := range r.Policy.Gates {
		f, _ := r.found(g.Name, step)
		if !g.isAsked() || g.Test && step >= 0 || f.Verdict == Pass || f.Verdict == Fail {
			continue
		}
		if s.Ask == nil {
			return errors.New("this rebake cannot ask gate " + g.Name)
		}
		event.Waiting(ctx, "gate %s", g.Name)
		v, detail, err := s.Ask(ctx, Question{Gate: g, Plan: r.Plan, Step: step, Instances: in})
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		f = Finding{Gate: g.Name, Verdict: v, Detail: oneLine(detail), At: s.now(), Step: step, Errors: f.Errors}
		if err != nil {
			f.Verdict, f.Detail, f.Errors = Error, oneLine(err.Error()), f.Errors+1
			event.Warnf(ctx, "gate %s could not be asked: %v", g.Name, err)
		} else {
			f.Errors = 0
			event.Infof(ctx, "gate %s: %s %s", g.Name, f.Verdict, f.Detail)
		}
		r.find(f)
	}
	return nil
}
