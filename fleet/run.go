package fleet

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rebake/rebake/internal/event"
)

// blind is how long the pool or the router may be out of reach before a
// deployment stops where it is.
const blind = 30 * time.Second

const maxEvidence = 64 << 10

// longestPause is how long is waited before something is tried again.
const longestPause = 5 * time.Second

// finish runs the loop until the deployment needs nothing more: it is done,
// rolled back, blocked, or only keeps its old slot (unless wait).
func (s *session) finish(ctx context.Context, r Record, wait bool) (Result, error) {
	s.tell(ctx, &r)
	err := s.loop(ctx, &r, wait)
	s.heard(ctx, &r, true)
	return Result{Record: r}, err
}

func (s *session) loop(ctx context.Context, r *Record, wait bool) (err error) {
	for !r.State.Finished() && r.State != Blocked {
		if r.State.Resting() && !wait && r.Abort == "" && s.now().Before(r.Deadline) && s.settled(ctx, *r) {
			what := "the old instances stay warm until %s: `rebake rollback %s` goes back at once"
			if r.refreshes() {
				what = "the refresh can be turned round until %s: `rebake rollback %s` replaces every instance again"
			}
			if r.State == Quarantined {
				what = "the failed instances stay for a look, without traffic, until %s (`rebake fleet logs %s`)"
			}
			event.Infof(ctx, what, clockFace(r.Deadline, s.now()), r.Fleet)
			break
		}
		if r.State == Paused && r.Abort == "" && (r.Deadline.Equal(r.Since) || s.now().Before(r.Deadline)) {
			return fmt.Errorf("%w at %d%%: `rebake deploy resume %s` goes on, `rebake deploy abort %s` goes back", ErrPaused, r.Policy.Steps[r.Step].Permille/10, r.Fleet, r.Fleet)
		}
		*r, err = event.Do(ctx, r.title(), func(ctx context.Context) (Record, error) { return s.stay(ctx, *r, wait) })
		*s.history.Last() = *r
		if err != nil {
			return err
		}
		s.tell(ctx, r)
	}
	switch r.State {
	case RolledBack, Quarantined:
		return fmt.Errorf("%w: %s", ErrRolledBack, r.Reason)
	case Blocked:
		return unfinished(*r)
	}
	return nil
}

// clockFace is a time as one reads it: with its date where it is not of today.
func clockFace(t, now time.Time) string {
	if t.Sub(now) > 12*time.Hour {
		return t.Local().Format("2006-01-02 15:04")
	}
	return t.Local().Format("15:04:05")
}

// title names a state for a reader.
func (r Record) title() string {
	slot := r.New.Group.Slot
	if t, ok := inPlaceTitles[r.State]; ok && r.refreshes() {
		return t
	}
	switch r.State {
	case Planned:
		return fmt.Sprintf("deploy %s to slot %s", name(r.New), slot)
	case Provisioning:
		return fmt.Sprintf("start %s instances (%d)", slot, r.target())
	case Warming:
		return fmt.Sprintf("warm up slot %s", slot)
	case Verifying:
		return fmt.Sprintf("verify slot %s", slot)
	case Shifting:
		return fmt.Sprintf("shift %d%% of traffic to slot %s", r.share(r.Policy)[slot]/10, slot)
	case Holding:
		return fmt.Sprintf("hold at %d%%", r.share(r.Policy)[slot]/10)
	case Shrinking:
		return fmt.Sprintf("take old instances out, down to %d", r.WantOld)
	case Quarantined:
		return "keep the failed instances"
	case Baking:
		return "keep the old instances"
	case Committed:
		return "commit " + name(r.New)
	case Retiring:
		return "retire the old instances"
	case Restoring:
		return "give traffic back"
	case DrainingNew:
		return "drain the new instances"
	case DestroyNew:
		return "end the new instances"
	}
	return string(r.State)
}

// stay runs Next until the state changes, or only time is waited for and the
// caller does not want to.
func (s *session) stay(ctx context.Context, r Record, wait bool) (Record, error) {
	var lost time.Time
	told := ""
	for state := r.State; r.State == state; {
		if ctx.Err() != nil {
			return r, context.Cause(ctx)
		}
		s.heard(ctx, &r, false)
		o, err := s.observe(ctx)
		if err != nil { // nobody knows what is there: nothing is touched
			if ctx.Err() != nil {
				return r, context.Cause(ctx)
			}
			if lost.IsZero() {
				lost = s.now()
				event.Warnf(ctx, "%v; trying again for %s", err, blind)
			}
			if s.now().Sub(lost) >= blind {
				r, _ = r.block(s.now(), "%v for %s", err, blind)
				return r, s.write(ctx, &r, kindState, nil, nil)
			}
			s.pause(ctx, 10)
			continue
		}
		lost = time.Time{}
		next, act := Next(r, o, r.Policy, s.now())
		changed := next.State != r.State || next.Drained != r.Drained || next.Sick != r.Sick || next.WantOld != r.WantOld || next.WantNew != r.WantNew
		if next.Waived != r.Waived {
			event.Warnf(ctx, "%s", next.Waived)
		}
		r = next
		if changed {
			if err := s.write(ctx, &r, kindState, nil, nil); err != nil {
				return r, err
			}
		}
		switch act.Op {
		case Go:
			if r.State == Restoring || r.State == Blocked {
				event.Warnf(ctx, "%s", r.Reason)
			}
		case Wait:
			if r.State == Paused || r.State.Resting() && !wait {
				return r, nil
			}
			if act.For != told {
				told = act.For
				event.Waiting(ctx, "%s", act.For)
			}
			s.pause(ctx, 1)
		default:
			if r, err = s.act(ctx, r, o, act); err != nil {
				return r, err
			}
		}
	}
	return r, nil
}

// act does one action: checked, its intent written before it, its effect after.
// What the pool or the router refuses is kept in the record for Next to judge.
func (s *session) act(ctx context.Context, r Record, o Observation, a Action) (Record, error) {
	if err := Check(r, o, a, s.now()); err != nil {
		r, _ = r.block(s.now(), "%v", err)
		return r, s.write(ctx, &r, kindState, nil, nil)
	}
	if a.Op == Weigh {
		r.Pending = a.Weights
		r.Touched = r.Touched || a.Weights[r.New.Group.Slot] > 0
	}
	if err := s.write(ctx, &r, kindIntent, &a, nil); err != nil {
		return r, err
	}
	err := s.do(ctx, &r, o, a)
	if ctx.Err() != nil && err != nil { // cut off, not failed
		return r, context.Cause(ctx)
	}
	if err != nil {
		r.Failures, r.LastErr = r.Failures+1, err.Error()
		event.Warnf(ctx, "%s: %v", a.Op, err)
	} else {
		r.Failures, r.LastErr = 0, ""
	}
	if err := s.write(ctx, &r, kindEffect, &a, err); err != nil {
		return r, err
	}
	if r.Failures > 0 {
		s.pause(ctx, 1<<min(r.Failures, 5))
	}
	return r, nil
}

func (s *session) do(ctx context.Context, r *Record, o Observation, a Action) error {
	left := r.Deadline.Sub(s.now())
	if a.Op == Retire || a.Op == End { // a cloud's machines take their time to end
		left = max(left, r.Policy.Launch)
	}
	if left > 0 { // a call may not outlast its state by much
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, left+5*time.Second)
		defer cancel()
	}
	switch a.Op {
	case Launch:
		spec := r.New.Spec
		if a.Group != r.New.Group { // the baseline, or the old ones of a rolling deployment again
			spec = r.Old.Spec
		} else if err := s.admitNew(ctx, r); err != nil {
			return err
		}
		spec.Size = a.Size
		return s.Pool.Launch(ctx, a.Group, spec)
	case End:
		return s.Pool.End(ctx, a.Group, a.Names[0])
	case Attach:
		return s.Router.Attach(ctx, a.Slot, a.Members)
	case Ready:
		err := s.Router.Ready(ctx, a.Slot)
		if errors.Is(err, ErrNotHealthy) { // those that are got in; the next look tells
			return nil
		}
		return err
	case Verify:
		return s.verify(ctx, r, o, a.Step)
	case Weigh:
		if err := s.Router.SetWeights(ctx, a.Weights); err != nil {
			return err
		}
		r.Pending, r.Weights = nil, append(r.Weights, Change{Time: s.now().UTC(), Weights: a.Weights})
	case Drain:
		return s.Router.Drain(ctx, a.Slot, a.Names...)
	case Detach:
		cut, err := s.Router.Detach(ctx, a.Slot, a.Force, a.Names...)
		r.Cut += cut
		if cut > 0 {
			event.Warnf(ctx, "%d requests in flight were cut after %s", cut, r.Policy.Drain)
		}
		if errors.Is(err, ErrBusy) { // a request slipped in between: it is waited for
			return nil
		}
		return err
	case Evidence:
		r.Shown = true // whatever it says, it is asked for once
		if w, ok := s.Pool.(Witness); ok {
			text, err := w.Evidence(ctx, a.Group)
			if err != nil {
				event.Warnf(ctx, "no evidence of the failed instances: %v", err)
			}
			r.Evidence = text[max(0, len(text)-maxEvidence):]
		}
	case Retire:
		return s.Pool.Retire(ctx, a.Group)
	case Replace, TakeBack:
		return s.refresh(ctx, r, a)
	default:
		return fmt.Errorf("unknown action %q", a.Op)
	}
	return nil
}

// observe looks at pool and router, which is started if it is not up.
func (s *session) observe(ctx context.Context) (o Observation, err error) {
	if o.Router, err = s.Router.Status(ctx); err != nil {
		return o, fmt.Errorf("the router does not answer: %w", err)
	}
	if !o.Router.Up {
		if err := s.Router.Ensure(ctx); err != nil && !errors.Is(err, ErrNotHealthy) {
			return o, fmt.Errorf("the router does not start: %w", err)
		}
		if o.Router, err = s.Router.Status(ctx); err != nil {
			return o, fmt.Errorf("the router does not answer: %w", err)
		}
		if !o.Router.Up {
			return o, errors.New("the router does not stay up")
		}
	}
	if o.Groups, err = s.Pool.Groups(ctx, s.Config.Name); err != nil {
		return o, fmt.Errorf("the pool does not answer: %w", err)
	}
	if p, ok := s.Pool.(InPlace); ok {
		if o.Refresh, err = p.Refreshing(ctx); err != nil {
			return o, fmt.Errorf("the pool does not answer: %w", err)
		}
	}
	return o, nil
}

// refresh begins a refresh, or its way back.
func (s *session) refresh(ctx context.Context, r *Record, a Action) error {
	p, ok := s.Pool.(InPlace)
	if !ok {
		return fmt.Errorf("a %T pool is not refreshed in place", s.Pool)
	}
	if a.Op == TakeBack {
		return p.TakeBack(ctx, a.Group, r.Policy.bounds().back())
	}
	if err := s.admitNew(ctx, r); err != nil {
		return err
	}
	return p.Replace(ctx, a.Group, r.New.Spec, r.Policy.bounds())
}

func (s *session) pause(ctx context.Context, times int) {
	poll := s.Poll
	if poll <= 0 {
		poll = 50 * time.Millisecond
	}
	d := max(poll, min(time.Duration(times)*poll, longestPause)) // where each look is seconds after the last, ten of them are not waited for
	if s.Sleep != nil {
		s.Sleep(ctx, d)
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// settled says that a resting state has nothing left to do but wait.
func (s *session) settled(ctx context.Context, r Record) bool {
	o, err := s.observe(ctx)
	if err != nil {
		return true // whoever comes next looks again
	}
	_, act := Next(r, o, r.Policy, s.now())
	return act.Op == Wait
}

// oneLine folds what others say into one line of at most 500 bytes.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 500 {
		s = s[:497] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}
