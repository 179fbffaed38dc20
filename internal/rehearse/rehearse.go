// Package rehearse plays a deployment without a machine: the real engine, with a
// journal in memory, on the parts of internal/model, under modelled requests, by a clock that
// does not wait. It says what users would have seen.
package rehearse

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/fault"
	"github.com/rebake/rebake/internal/model"
)

// Report is what came of a rehearsal.
type Report struct {
	Fleet   string        `json:"fleet"`
	From    string        `json:"from"`
	To      string        `json:"to"`
	Size    int           `json:"size"`
	Seed    *uint64       `json:"seed,omitempty"` // of the faults; none: no call went wrong
	Every   time.Duration `json:"every"`          // between two modelled requests, nanoseconds
	Boot    time.Duration `json:"boot"`           // that a modelled machine takes, nanoseconds
	Asked   []string      `json:"asked"`          // gates that were not asked but taken as passed
	Cases   []Played      `json:"cases"`
	Warning string        `json:"warning,omitempty"`
}

// Played is one image's deployment.
type Played struct {
	Image    string     `json:"image"`   // how it behaves
	Verdict  string     `json:"verdict"` // promoted, rolled back, blocked
	Reason   string     `json:"reason,omitempty"`
	Seconds  float64    `json:"seconds"` // modelled
	Rows     []Row      `json:"rows"`
	Sent     int        `json:"requests"`
	Failed   int        `json:"failed"`
	Least    int        `json:"least_serving"` // fewest instances that were able to serve
	Injected []Injected `json:"injected,omitempty"`
}

// Row is a state that the deployment was in, or what a person did (Note alone).
type Row struct {
	At       time.Duration `json:"at"` // since its begin, nanoseconds
	State    fleet.State   `json:"state,omitempty"`
	Permille int           `json:"permille"` // of the traffic, to the new image at the end of it
	Least    int           `json:"least_serving"`
	Sent     int           `json:"requests"`
	Failed   int           `json:"failed"`
	Note     string        `json:"note,omitempty"`
}

// Injected is a call that went wrong.
type Injected struct {
	At time.Duration `json:"at"` // nanoseconds
	fault.Injected
}

// Options say what is rehearsed.
type Options struct {
	Config  fleet.Config // Name, Size, Health
	Request fleet.Request
	From    string      // the image that serves, NAME:VERSION
	Faults  *fault.Plan // nil: none
}

// cases are the images, the good one first.
var cases = []struct {
	image string
	model.Behaviour
}{
	{"a good image", model.Behaviour{}},
	{"an image that never becomes healthy", model.Behaviour{Never: true}},
	{"an image that breaks under traffic: 500 after 100 requests each, to health checks too", model.Behaviour{Tires: 100}},
	{"an image that answers each 20th request with 500, its health checks are well", model.Behaviour{Errors: 20}},
}

// Run plays each case. The error is rebake's own trouble: a bad outcome is in
// the report.
func Run(ctx context.Context, o Options) (Report, error) {
	var err error
	if o.Request.Policy, err = o.Request.Policy.Complete(); err != nil {
		return Report{}, err
	}
	p := o.Request.Policy
	longest := p.Within
	for _, s := range p.Steps {
		longest = max(longest, s.Hold)
	}
	poll := max(50*time.Millisecond, longest/4000)
	img := o.Request.Spec.Image
	rep := Report{Fleet: o.Config.Name, From: o.From, To: img.Name + ":" + img.Version, Size: o.Request.Spec.Size,
		Every: poll / 10, Boot: min(5*time.Second, p.Within/4), Asked: []string{}}
	if o.Faults != nil {
		rep.Seed = &o.Faults.Seed
	}
	for _, g := range p.Gates {
		if g.Command != nil || g.HTTP != nil || g.Test {
			rep.Asked = append(rep.Asked, g.Name)
		}
	}
	for _, c := range cases {
		b := c.Behaviour
		b.Boot = rep.Boot
		played, err := o.play(ctx, b, rep, poll)
		if err != nil {
			return rep, fmt.Errorf("rehearse %s: %w", c.image, err)
		}
		played.Image = c.image
		rep.Cases = append(rep.Cases, played)
	}
	switch good, breaks, sly := rep.Cases[0], rep.Cases[2], rep.Cases[3]; {
	case good.Verdict != "promoted" && o.Faults == nil:
		rep.Warning = "a good image is not promoted: " + good.Reason
	case breaks.Verdict == "promoted":
		rep.Warning = "an image that breaks under traffic is promoted before anybody sees it: let fleet.deploy.steps hold longer"
	case sly.Verdict == "promoted":
		rep.Warning = "nothing refuses an image that answers each 20th request with 500: add a gate like {error_rate: {max: 1%}}, and steps that hold long enough for it"
	}
	return rep, nil
}

// play deploys an image of this behaviour over a good one.
func (o Options) play(ctx context.Context, b model.Behaviour, rep Report, poll time.Duration) (out Played, err error) {
	old, fresh := artifact.Digest("sha256:old"), o.Request.Spec.Image.Digest
	s := &stage{fleet: o.Config.Name, now: time.Now().UTC().Round(0), step: rep.Every}
	s.pool = &model.Pool{Now: s.clock, Behave: map[artifact.Digest]model.Behaviour{old: {Boot: rep.Boot}, fresh: b}}
	h := o.Config.Health
	s.router = &model.Router{Check: s.pool.Check, Serve: s.pool.Serve, Every: max(h.Interval, 10*time.Millisecond), Rise: h.Rise, Fall: h.Fall,
		Latency: time.Millisecond, Now: s.clock}
	d := &fleet.Deployer{
		Config: fleet.Config{Name: o.Config.Name, Size: o.Config.Size, Health: h}, Pool: s.pool, Router: s.router, Poll: poll, Now: s.clock, Sleep: s.sleep,
		Ask: func(context.Context, fleet.Question) (fleet.Verdict, string, error) {
			return fleet.Pass, "taken as passed", nil
		},
	}
	d.Forget()
	quiet := event.With(ctx, func(event.Event) {}, nil) // the time line tells it all
	before := fleet.Request{Spec: o.Request.Spec, Wait: true, Policy: fleet.Policy{Port: o.Request.Policy.Port, Within: o.Request.Policy.Within}}
	before.Spec.Image.Digest, before.Spec.Image.Version = old, "old"
	if _, err := d.Deploy(quiet, before); err != nil {
		return out, err
	}
	s.counts = counts{least: s.serving()}
	t := &tape{stage: s, began: s.now}
	if o.Faults != nil {
		in := fault.New(*o.Faults)
		in.Sleep = s.sleep
		in.Told = func(i fault.Injected) { out.Injected = append(out.Injected, Injected{s.now.Sub(t.began), i}) }
		d.Pool, d.Router = in.Pool(s.pool), in.Router(s.router)
	}
	d.Recorded = t.recorded
	req := o.Request
	req.Force, req.Wait, req.InFreeze = true, false, "a rehearsal"
	again := func(f func() (fleet.Result, error)) (res fleet.Result, err error) {
		for range 20 {
			if res, err = f(); !injected(err) {
				break
			}
			t.note("it ends with an error, and a person runs it again")
			s.sleep(ctx, 5*time.Second)
		}
		return res, err
	}
	res, err := again(func() (fleet.Result, error) { return d.Deploy(quiet, req) })
	for range len(req.Policy.Steps) { // whom it waits for is there
		if !errors.Is(err, fleet.ErrPaused) {
			break
		}
		t.note("a person says `rebake deploy resume`")
		res, err = again(func() (fleet.Result, error) { return d.Resume(quiet, false) })
	}
	out.Verdict, out.Reason = res.Verdict(), res.Reason
	if errors.Is(err, fleet.ErrBlocked) {
		t.note("it waits for a person, who says `rebake deploy abort`")
		res, err = again(func() (fleet.Result, error) { return d.Abort(quiet, "a rehearsal") })
		if err == nil {
			out.Verdict = "blocked, then rolled back by hand"
		} else if errors.Is(err, fleet.ErrBlocked) {
			err = nil
		}
	}
	if err != nil && !errors.Is(err, fleet.ErrRolledBack) {
		return out, err
	}
	if ctx.Err() != nil {
		return out, context.Cause(ctx)
	}
	out.Seconds = s.now.Sub(t.began).Seconds()
	if res.State.Resting() {
		t.note("what is kept for a while goes now")
		if _, err := again(func() (fleet.Result, error) { return fleet.Result{}, d.Tend(quiet, true) }); err != nil && !errors.Is(err, fleet.ErrRolledBack) {
			return out, err
		}
	}
	t.close()
	out.Rows, out.Sent, out.Failed, out.Least = t.rows, t.sent, t.failed, t.least
	return out, nil
}

func injected(err error) bool {
	return errors.Is(err, fault.ErrFailed) || errors.Is(err, fault.ErrTimeout) || errors.Is(err, fault.ErrThrottled)
}

// tape takes the states down as they are written to the journal.
type tape struct {
	stage *stage
	began time.Time
	rows  []Row

	sent, failed, least int
}

func (t *tape) recorded(kind, what string) {
	if kind != "transition" && kind != "plan" {
		return
	}
	state := fleet.State(what)
	if kind == "plan" {
		state, t.least = fleet.Planned, t.stage.least
	}
	if n := len(t.rows); n > 0 && t.rows[n-1].State == state {
		return
	}
	t.close()
	t.rows = append(t.rows, Row{At: t.stage.now.Sub(t.began), State: state})
}

// close fills in what the last row saw.
func (t *tape) close() {
	s := t.stage
	c := s.counts
	s.counts = counts{least: s.serving()}
	if len(t.rows) == 0 {
		return
	}
	r := &t.rows[len(t.rows)-1]
	r.Permille = s.share(fleet.Green) // the old image is the fleet's first: it is in blue
	r.Sent, r.Failed, r.Least = r.Sent+c.sent, r.Failed+c.failed, min(c.least, s.least)
	t.sent, t.failed, t.least = t.sent+c.sent, t.failed+c.failed, min(t.least, r.Least)
}

func (t *tape) note(text string) {
	t.close()
	t.rows = append(t.rows, Row{At: t.stage.now.Sub(t.began), Note: text})
}
