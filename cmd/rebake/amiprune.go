package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/retain"
	"github.com/rebake/rebake/internal/ui"
	"github.com/urfave/cli/v2"
)

// rungSteps are what artifact/ami calls the rungs of a ladder.
var rungSteps = map[retain.Rung]ami.Step{retain.Deprecate: ami.Deprecated, retain.Disable: ami.Disabled, retain.Delete: ami.Removed}

// plannedAMI is a line of the plan.
type plannedAMI struct {
	Image  string   `json:"image"`
	Region string   `json:"region"`
	AMI    string   `json:"ami"`
	Do     ami.Step `json:"do,omitempty"` // "": it stays as it is
	Why    string   `json:"why"`
}

// amiPlan is what becomes of the AMIs of removed images.
type amiPlan struct {
	lines  []plannedAMI
	wishes []ami.Wish     // those that AWS lets be done
	bare   map[string]int // AMIs that no ladder touches, by the image's name
}

func (p amiPlan) changes() (n int) {
	for _, l := range p.lines {
		if l.Do != "" {
			n++
		}
	}
	return n
}

// would is how many AMIs would change, behind sep, or "".
func (p amiPlan) would(sep string) string {
	switch n := p.changes(); n {
	case 0:
		return ""
	case 1:
		return sep + "1 AMI would be changed"
	default:
		return fmt.Sprintf("%s%d AMIs would be changed", sep, n)
	}
}

// verbs are how a plan says what is done.
var verbs = map[ami.Step]string{ami.Deprecated: "deprecate", ami.Disabled: "disable", ami.Removed: "remove", "": "keep"}

func (p amiPlan) describe() string {
	var rows [][]string
	for _, l := range p.lines {
		rows = append(rows, []string{verbs[l.Do], l.AMI, l.Region, l.Image, l.Why})
	}
	text := ""
	if len(rows) > 0 {
		text = ui.Table(rows)
	}
	for _, n := range slices.Sorted(maps.Keys(p.bare)) {
		text += fmt.Sprintf("keep    %d AMIs of removed images of %s: no rule says how they go (retention: {ami: …} in its template, or --amis)\n", p.bare[n], n)
	}
	return text
}

// amisFlag reads --amis; nil for none.
func amisFlag(c *cli.Context) (*retain.Ladder, error) {
	text := c.String("amis")
	if text == "" || text == "none" {
		return nil, nil
	}
	l := &retain.Ladder{MinAge: retain.DefaultMinAge}
	for _, part := range strings.Split(text, ",") {
		var age retain.Age
		key, value, _ := strings.Cut(part, "=")
		if key == "shared" && value == "" {
			l.Shared = true
			continue
		}
		into := map[string]**retain.Age{"deprecate": &l.Deprecate, "disable": &l.Disable, "delete": &l.Delete}[key]
		err := age.UnmarshalText([]byte(value))
		switch {
		case err != nil:
			return nil, usagef("for example deprecate=30d,disable=60d,delete=90d", "--amis: %s: %v", key, err)
		case key == "min_age":
			l.MinAge = age
		case into == nil:
			return nil, usagef("deprecate, disable, delete, min_age, shared", "--amis: %q is none of the keys", key)
		default:
			*into = &age
		}
	}
	if err := l.Check(); err != nil {
		return nil, usagef("for example deprecate=30d,disable=60d,delete=90d", "--amis: %v", err)
	}
	return l, nil
}

// heldByAMIs keeps an image in a store that forgets what is removed while it has
// AMIs: their records would go with it.
func (s *session) heldByAMIs(ctx context.Context, img artifact.Image) (string, error) {
	a, ok := s.Store.(artifact.Attacher)
	if _, remembers := s.Store.(artifact.Retirer); !ok || remembers {
		return "", nil
	}
	records, err := ami.Records(ctx, a, img)
	if err != nil || len(records) == 0 {
		return "", err
	}
	return fmt.Sprintf("it has AMIs (%s in %s), and this store would forget them: `rebake ami rm` first", records[0].AMI, records[0].Region), nil
}

// ladder is how AMIs go here. ceased: only those of images that are removed.
func (s *session) ladder(ceased bool) (ami.Ladder, error) {
	a, err := can[artifact.Attacher](s)
	return ami.Ladder{Keep: a, Info: func(text string) { event.Infof(s.ctx, "%s", text) },
		Hold: func(ctx context.Context, img artifact.Image, f func() error) error {
			return pipeline.Unneeded(ctx, s.Env, img, ceased, f)
		}}, err
}

// planAMIs says what becomes of the AMIs of images that are removed, or would be by
// plan. AWS is asked only if something is due; what it does not answer is an error.
func (s *session) planAMIs(o pipeline.Retention, plan pipeline.Retained) (amiPlan, error) {
	p := amiPlan{bare: map[string]int{}}
	a, ok := s.Store.(artifact.Attacher)
	if !ok || s.c.String("amis") == "none" {
		return p, nil
	}
	ceased, err := pipeline.CeasedImages(s.ctx, s.Env, o, plan)
	if err != nil {
		return p, fmt.Errorf("cannot tell which AMIs are to go, so nothing was removed: %w", err)
	}
	var wishes []ami.Wish
	for _, c := range ceased {
		w, why, err := s.wish(a, c)
		if err != nil {
			return p, fmt.Errorf("cannot tell which AMIs are to go, so nothing was removed: %s: %w", imageName(c.Image), err)
		}
		switch {
		case len(w.AMIs) == 0:
		case w.Step != "":
			wishes = append(wishes, w)
		case c.Ladder == nil:
			p.bare[c.Image.Name] += len(w.AMIs)
		default:
			for _, m := range w.AMIs {
				p.lines = append(p.lines, plannedAMI{imageName(c.Image), m.Region, m.AMI, "", why})
			}
		}
	}
	if len(wishes) == 0 {
		return p, nil
	}
	l, err := s.ladder(true)
	if err != nil {
		return p, err
	}
	verdicts, err := event.Do(s.ctx, "ask AWS who uses the AMIs of removed images", func(ctx context.Context) ([]ami.Verdict, error) {
		return l.Plan(ctx, wishes)
	})
	if err != nil {
		return p, unanswered(err, "; `--amis none` leaves AMIs alone")
	}
	goes := map[artifact.Digest]bool{}
	for _, v := range verdicts {
		p.lines = append(p.lines, plannedAMI{imageName(v.Image), v.Region, v.AMI, v.Do, v.Why})
		goes[v.Image.Digest] = goes[v.Image.Digest] || v.Do != ""
	}
	for _, w := range wishes {
		if goes[w.Image.Digest] {
			p.wishes = append(p.wishes, w)
		}
	}
	return p, nil
}

// unanswered says that AWS did not say who uses AMIs.
func unanswered(err error, or string) error {
	err = fmt.Errorf("cannot tell who uses the AMIs, so nothing was removed: %w", err)
	if errors.As(err, new(*ami.DeniedError)) {
		return hinted(err, "`rebake aws policy --with retention` prints what to grant%s", or)
	}
	return hinted(err, "run it again when AWS answers%s", or)
}

// wish is what is due for the AMIs of an image that is removed; without a step, why
// they stay as they are.
func (s *session) wish(a artifact.Attacher, c pipeline.Ceased) (w ami.Wish, why string, err error) {
	all, err := ami.All(s.ctx, a, c.Image)
	if err != nil || len(all) == 0 {
		return w, "", err
	}
	left, taken, byHand := ami.Taken(all)
	w = ami.Wish{Image: c.Image, AMIs: left, Shared: c.Ladder != nil && c.Ladder.Shared}
	if len(left) == 0 {
		return w, "", nil
	}
	for _, m := range left {
		if last := m.Last(); last.Step == ami.Removing { // a removal that was cut off goes on, whatever the rules say now
			w.Step, w.Why, w.Shared = ami.Removed, last.Why, true
			return w, "", nil
		}
	}
	if !byHand.IsZero() {
		return w, "restored by hand on " + minute(byHand) + "; `rebake ami rm` removes it", nil
	}
	if c.Ladder == nil {
		return w, "", nil
	}
	rungs := map[retain.Rung]time.Time{}
	for rung, step := range rungSteps {
		if t, ok := taken[step]; ok {
			rungs[rung] = t
		}
	}
	rung, why := c.Ladder.Next(c.At, ami.Youngest(left), rungs, time.Now())
	if rung == "" {
		return w, why, nil
	}
	who, err := pipeline.UsedBy(s.ctx, s.Env, c.Image.Digest)
	if err != nil || who != "" {
		return w, "fleet " + who + " needs it", err
	}
	w.Step, w.Why = rungSteps[rung], why
	return w, "", nil
}

// applyAMIs does what was planned, as far as it is still due and AWS still says so.
func (s *session) applyAMIs(plan amiPlan) (done []plannedAMI, err error) {
	if len(plan.wishes) == 0 {
		return nil, nil
	}
	l, err := s.ladder(true)
	if err != nil {
		return nil, err
	}
	now, err := event.Do(s.ctx, "AMIs of removed images", func(ctx context.Context) ([]ami.Verdict, error) { return l.Apply(ctx, plan.wishes) })
	for _, v := range now {
		done = append(done, plannedAMI{imageName(v.Image), v.Region, v.AMI, v.Do, v.Why})
	}
	return done, err
}
