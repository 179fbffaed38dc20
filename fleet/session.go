package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rebake/rebake/internal/event"
)

// session is one call of the fleet's only writer.
type session struct {
	*Deployer
	desk    Desk
	history History
	epoch   int64 // of this session; 0 until it changes something
	last    int64 // the highest that the journal knows
	news    []*news
}

func (d *Deployer) session(ctx context.Context, f func(context.Context, *session) (Result, error)) (res Result, err error) {
	ctx, desk, leave, err := d.sit(ctx)
	if err != nil {
		return res, err
	}
	defer func() { err = leave(err) }()
	past, err := open(ctx, desk)
	if err != nil {
		return res, err
	}
	s := &session{Deployer: d, desk: desk, history: past.History, last: past.Epoch}
	res, err = f(ctx, s)
	res.Serving = s.history.Current()
	return res, err
}

// open reads the journal at the desk.
func open(ctx context.Context, desk Desk) (past player, err error) {
	recs, err := desk.Open(ctx)
	if err != nil {
		return past, err
	}
	if m, ok := desk.(interface{ recall() player }); ok { // it knows what they say
		return m.recall(), nil
	}
	for _, rec := range recs {
		if err := past.play(rec); err != nil {
			return past, err
		}
	}
	return past, nil
}

// lease is the first record of each session that changes something: who, and
// an epoch that is higher than all before. Pool and router are told it, where
// they can refuse the calls of those with a lower one.
type lease struct {
	Epoch int64 `json:"epoch"`
	Operator
}

func (s *session) lease(ctx context.Context) error {
	if s.epoch != 0 {
		return nil
	}
	l := lease{s.last + 1, Me()}
	if _, err := s.desk.Append(ctx, kindLease, l); err != nil {
		return err
	}
	s.epoch = l.Epoch
	s.recorded(kindLease, "")
	for _, part := range []any{s.Pool, s.Router} {
		if f, ok := part.(Fencer); ok {
			if err := f.Fence(ctx, s.epoch); err != nil {
				return fmt.Errorf("take the fleet over as epoch %d: %w", s.epoch, err)
			}
		}
	}
	return nil
}

// append writes a record, after the session's lease.
func (s *session) append(ctx context.Context, kind string, data any) error {
	if err := s.lease(ctx); err != nil {
		return err
	}
	if _, err := s.desk.Append(ctx, kind, data); err != nil {
		return err
	}
	what := ""
	if e, ok := data.(entry); ok {
		what = string(e.Progress.State)
		if e.Action != nil {
			what += ", " + string(e.Action.Op)
		}
	}
	s.recorded(kind, what)
	return nil
}

func (s *session) recorded(kind, what string) {
	if s.Recorded != nil {
		s.Recorded(kind, what)
	}
}

// write appends the record's progress to the journal and to the history.
func (s *session) write(ctx context.Context, r *Record, kind string, a *Action, failed error) error {
	e := entry{Deployment: r.ID, Action: a, Progress: r.Progress}
	if failed != nil {
		e.Err = failed.Error()
	}
	if err := s.append(ctx, kind, e); err != nil {
		return fmt.Errorf("%w; nothing more is done until `rebake deploy resume %s`", err, r.Fleet)
	}
	*s.history.Last() = *r
	return nil
}

// news is a stage that the hooks are being told of.
type news struct {
	due
	said chan struct{} // closed when they were told
	err  error         // then
}

// tell begins to tell the hooks of the stages that the deployment came to and
// they were not told of: beside the deployment, one after the other, so that a
// hook that hangs delays neither the watch nor the way back. heard takes note.
func (s *session) tell(ctx context.Context, r *Record) {
	if s.Notify == nil || !r.Hooks && len(r.Told) == 0 { // Told: begun by a rebake that did not write Hooks down
		return
	}
	for _, due := range r.stages() {
		asked := slices.ContainsFunc(s.news, func(n *news) bool { return n.key == due.key })
		if asked || slices.Contains(r.Told, due.key) || ctx.Err() != nil {
			continue
		}
		before := make(chan struct{})
		if len(s.news) > 0 {
			before = s.news[len(s.news)-1].said
		} else {
			close(before)
		}
		n, notice := &news{due: due, said: make(chan struct{})}, r.notice(due, s.now())
		s.news = append(s.news, n)
		go func() {
			<-before
			n.err = s.Notify(ctx, notice)
			close(n.said)
		}()
	}
}

// heard writes down of what the hooks were told, after it was: a kill between
// the two tells again. all waits until nobody is being told anything.
func (s *session) heard(ctx context.Context, r *Record, all bool) {
	for len(s.news) > 0 {
		n := s.news[0]
		if !all {
			select {
			case <-n.said:
			default:
				return
			}
		}
		<-n.said
		s.news = s.news[1:]
		if ctx.Err() != nil { // cut off: whoever goes on tells it
			continue
		}
		if n.err != nil {
			event.Warnf(ctx, "hook of %s: %v", n.stage, n.err)
		}
		r.Told = append(slices.Clip(r.Told), n.key)
		if err := s.append(ctx, kindTold, told{r.ID, n.key}); err != nil {
			event.Warnf(ctx, "write down that the hooks were told: %v", err)
		}
		*s.history.Last() = *r
	}
}

// due is a stage that a deployment came to.
type due struct {
	key   string // once for each deployment
	stage Stage
	step  int
}

// stages are all that the deployment came to so far, in their order.
func (r Record) stages() (all []due) {
	add := func(s Stage, key string, step int) { all = append(all, due{key, s, step}) }
	add(StageStart, "start", -1)
	for i, c := range r.Weights {
		if c.Weights[r.New.Group.Slot] > 0 {
			add(StageTraffic, fmt.Sprintf("traffic %d", i), i)
		}
	}
	back := slices.Contains([]State{Restoring, DrainingNew, DestroyNew, Quarantined, RolledBack}, r.State)
	switch {
	case r.State == Paused:
		add(StagePaused, fmt.Sprintf("paused %d", r.Step), r.Step)
	case r.State == Blocked:
		add(StageBlocked, "blocked "+r.Since.UTC().Format(time.RFC3339), r.Step)
	case r.State == Baking || r.State.Proven():
		add(StagePromoted, "promoted", r.Step)
	case back:
		add(StageFailed, "failed", r.Step)
	}
	if r.State == Done {
		add(StageDone, "done", r.Step)
	}
	if r.State == RolledBack || r.State == Quarantined {
		add(StageRolledBack, "rolled back", r.Step)
	}
	return all
}

func (r Record) notice(d due, now time.Time) Notice {
	img := r.New.Spec.Image
	n := Notice{
		Version: 1, Key: strings.ReplaceAll(d.key, " ", "-"), Stage: d.stage, Fleet: r.Fleet, Deployment: r.ID, By: r.By, Time: now.UTC(), Began: r.Began,
		Image: name(r.New), Digest: string(img.Digest), Slot: r.New.Group.Slot, State: r.State, Step: d.step,
		Percent: float64(r.Live()[r.New.Group.Slot]) / 10, Reason: r.Reason, Findings: r.Findings, Rollback: r.Rollback,
	}
	if r.Old != nil {
		n.From, n.FromDigest = name(*r.Old), string(r.Old.Spec.Image.Digest)
	}
	return n
}
