package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/retain"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/internal/ui"
	"github.com/urfave/cli/v2"
)

func imagesPruneCommand() *cli.Command {
	return &cli.Command{
		Name: "prune", Usage: "remove the images that no rule keeps, and free the space of what no image needs", ArgsUsage: "[NAME]",
		Description: help("Says of each image, or of those of one name, whether it goes or stays, and why; asks; removes; then\ndeletes the chunks that no image needs. The rules are those of retention: in the template that baked\nthe newest image of a name; without any no image goes. What a fleet runs or can go back to, a tag\npoints at, or a build stands on, stays. What is known of a removed image stays too (docs/retention.md).\nAMIs of removed images go by retention: {ami: …}: first AWS is asked who uses them, and if it does not\nanswer nothing is done (docs/aws.md).",
			"rebake images prune --dry-run\nrebake images prune web --keep-last 5 --max-age 30d\nrebake images prune --template web.yaml --yes"),
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would go and why, and do nothing"},
			&cli.BoolFlag{Name: "yes", Usage: "do not ask"},
			&cli.StringFlag{Name: "template", Usage: "take name and rules from this template's `FILE`"},
			&cli.IntFlag{Name: "keep-last", Usage: "the newest `N` stay"},
			&cli.StringFlag{Name: "max-age", Usage: "those younger than this `AGE` stay, such as 30d"},
			&cli.StringFlag{Name: "min-age", Usage: "nothing younger than this `AGE` goes (1d)"},
			&cli.StringSliceFlag{Name: "keep-tag", Usage: "only tags that match this `PATTERN`, and latest, keep their image (repeatable)"},
			&cli.IntFlag{Name: "keep-previous", Usage: "the `N` images before the current one of each fleet stay (1)"},
			&cli.StringFlag{Name: "amis", Usage: "how the AMIs of removed images go, as `deprecate=30d,disable=60d,delete=90d`; none: leave AMIs alone, and do not ask AWS"},
			&cli.DurationFlag{Name: "grace", Usage: "leave chunks alone that are younger than `DURATION`", Value: 24 * time.Hour},
		}, templateFlags()...), Action: with(imagesPrune),
	}
}

// pruned is what a prune came to, for machines.
type pruned struct {
	Plan    []planned          `json:"plan"`
	Removed []artifact.Removed `json:"removed"`
	Freed   int64              `json:"freed"`
	DryRun  bool               `json:"dry_run"`
	AMIs    []plannedAMI       `json:"amis,omitempty"`      // of removed images
	Changed []plannedAMI       `json:"amis_done,omitempty"` // of them, those for which it was done
}

// planned is a line of the plan.
type planned struct {
	Image   string          `json:"image"`
	Digest  artifact.Digest `json:"digest"`
	Created time.Time       `json:"created"`
	Tags    []string        `json:"tags,omitempty"`
	Remove  bool            `json:"remove"`
	Why     string          `json:"why"`
}

func resultOf(r pipeline.Retained) pruned {
	out := pruned{Plan: []planned{}, Removed: []artifact.Removed{}} // empty lists, not null
	for _, d := range r.Plan {
		out.Plan = append(out.Plan, planned{imageName(d.Image), d.Image.Digest, d.Image.Created, d.Image.Tags, d.Remove, d.Why})
	}
	return out
}

func imagesPrune(s *session) error {
	if grace := s.c.Duration("grace"); grace < 0 {
		return usagef("0 deletes what is not needed at once", "--grace %s is below zero", grace)
	}
	o, err := s.retention()
	if err != nil {
		return err
	}
	plan, err := s.planRetention(o)
	if err != nil {
		return err
	}
	amis, err := s.planAMIs(o, plan)
	if err != nil {
		return err
	}
	res, text := resultOf(plan), describeRetained(plan)+amis.describe()
	res.AMIs = amis.lines
	n := len(plan.Removals())
	if s.c.Bool("dry-run") {
		res.DryRun = true
		return s.result(res, text+fmt.Sprintf("%d would go%s; nothing was done (--dry-run)\n", n, amis.would(", and ")))
	}
	if n+len(amis.wishes) > 0 && !s.c.Bool("yes") {
		ask := wouldGo(n) + amis.would(", ")
		if !interactive(s.c.App.Reader) {
			return usagef("--dry-run lists them with their reasons, --yes removes them", "%s, and without a terminal nobody can be asked", ask)
		}
		if _, err := io.WriteString(s.c.App.ErrWriter, text); err != nil {
			return err
		}
		text = ""
		if err := s.confirm(ask + ": do it?"); err != nil {
			return err
		}
	}
	lines, err := s.prune(o, plan, s.c.Duration("grace"), &res, amis)
	return errors.Join(err, s.result(res, text+lines))
}

func wouldGo(n int) string {
	if n == 1 {
		return "1 image would be removed"
	}
	return fmt.Sprintf("%d images would be removed", n)
}

// planRetention makes the plan; whatever it cannot be told from is an error.
func (s *session) planRetention(o pipeline.Retention) (pipeline.Retained, error) {
	plan, err := pipeline.PlanRetention(s.ctx, s.Env, o)
	if err != nil {
		return plan, hinted(fmt.Errorf("cannot tell what is in use, so nothing was removed: %w", err), "mend what cannot be read, or put it back from a copy, then prune again")
	}
	if _, ok := s.Store.(artifact.Retirer); !ok && len(plan.Removals()) > 0 {
		event.Warnf(s.ctx, "this store keeps nothing of what is removed, and may refuse to remove; fleets of other machines are not seen: what they run needs a tag")
	}
	if gone, err := s.wasRemoved(o.Name); err != nil {
		return plan, err
	} else if o.Name != "" && len(plan.Plan) == 0 && !gone {
		return plan, hinted(fmt.Errorf("no image of the name %s: %w", o.Name, artifact.ErrNotFound), "`rebake images ls` lists the names")
	}
	return plan, nil
}

// wasRemoved tells whether images of a name were removed: their AMIs may be there still.
func (s *session) wasRemoved(name string) (bool, error) {
	st, ok := s.Store.(artifact.Retirer)
	if !ok || name == "" {
		return false, nil
	}
	all, err := st.Removed(s.ctx, name)
	return len(all) > 0, err
}

// retention is what the command line asks for.
func (s *session) retention() (o pipeline.Retention, err error) {
	if s.c.NArg() > 1 {
		return o, usagef("`rebake images prune web`", "images prune takes at most one name; got %d", s.c.NArg())
	}
	o.Name = s.c.Args().First()
	if path := s.c.String("template"); path != "" {
		tpl, err := s.load(path)
		switch {
		case err != nil:
			return o, err
		case o.Name != "" && o.Name != tpl.Name:
			return o, usagef("leave the name away", "%s is the template of %s, not of %s", path, tpl.Name, o.Name)
		case tpl.Retention == nil:
			return o, noRetention(tpl)
		}
		o.Name, o.Rules = tpl.Name, tpl.Retention
	}
	o.Held = s.heldByAMIs
	ladder, err := amisFlag(s.c)
	if err != nil {
		return o, err
	}
	ages := map[string]retain.Age{}
	for _, name := range []string{"max-age", "min-age"} {
		var a retain.Age
		if s.c.IsSet(name) {
			if err := a.UnmarshalText([]byte(s.c.String(name))); err != nil {
				return o, usagef("for example 30d or 12h", "--%s: %v", name, err)
			}
			ages[name] = a
		}
	}
	o.Edit = func(r *retain.Rules) {
		if s.c.IsSet("keep-last") {
			r.KeepLast = s.c.Int("keep-last")
		}
		if a, ok := ages["max-age"]; ok {
			r.MaxAge = a
		}
		if a, ok := ages["min-age"]; ok {
			r.MinAge = a
		}
		if s.c.IsSet("keep-tag") {
			r.KeepTags = s.c.StringSlice("keep-tag")
		}
		if s.c.IsSet("keep-previous") {
			r.KeepPrevious = s.c.Int("keep-previous")
		}
		if s.c.IsSet("amis") {
			r.AMI = ladder
		}
	}
	given := retain.Default()
	o.Edit(&given)
	if err := given.Check(); err != nil && o.Rules == nil {
		return o, usagef("`rebake images prune --help` says what each rule is", "%v", err)
	}
	return o, nil
}

func noRetention(tpl *template.Template) error {
	return usagef("for example retention: {keep_last: 7, max_age: 30d} (`rebake docs template`)", "%s has no retention:, so no image would be removed", tpl.Path)
}

// prune removes what the plan lets go and frees the space; lines say what went.
func (s *session) prune(o pipeline.Retention, plan pipeline.Retained, grace time.Duration, res *pruned, amis amiPlan) (lines string, err error) {
	gone, err := pipeline.Retain(s.ctx, s.Env, o, plan)
	var b strings.Builder
	for _, r := range gone {
		res.Removed = append(res.Removed, r)
		fmt.Fprintf(&b, "removed %s: %s\n", imageName(r.Image), strings.TrimPrefix(r.Why, pipeline.ByRetention))
	}
	if s.ctx.Err() != nil {
		return b.String(), err
	}
	freed, ferr := pipeline.Free(s.ctx, s.Env, grace)
	res.Freed = freed
	if ferr == nil {
		fmt.Fprintf(&b, "%s freed\n", ui.Size(freed))
	}
	done, aerr := s.applyAMIs(amis)
	for _, d := range done {
		res.Changed = append(res.Changed, d)
		fmt.Fprintf(&b, "%s %s in %s of %s: %s\n", d.Do, d.AMI, d.Region, d.Image, d.Why)
	}
	return b.String(), errors.Join(err, ferr, aerr)
}

// pruneAfter applies a template's retention once its fleet was replaced.
func (s *session) pruneAfter(tpl *template.Template) (res *pruned, lines string, err error) {
	o := pipeline.Retention{Name: tpl.Name, Rules: tpl.Retention, Held: s.heldByAMIs}
	plan, err := s.planRetention(o)
	var amis amiPlan
	if err == nil {
		amis, err = s.planAMIs(o, plan)
	}
	if err == nil {
		r := resultOf(plan)
		res, r.AMIs = &r, amis.lines
		lines, err = s.prune(o, plan, 24*time.Hour, res, amis)
		s.account.removed(res.Removed)
	}
	if err != nil {
		err = errors.Join(pipeline.ErrLeftovers, err)
	}
	return res, lines, err
}

// describeRetained is a line for each image, with its reason.
func describeRetained(r pipeline.Retained) string {
	var rows [][]string
	bare := map[string]int{}
	for _, n := range r.Bare {
		bare[n] = 0
	}
	for _, d := range r.Plan {
		if _, ok := bare[d.Image.Name]; ok {
			bare[d.Image.Name]++
			continue
		}
		what := "keep"
		if d.Remove {
			what = "remove"
		}
		rows = append(rows, []string{what, imageName(d.Image), d.Why})
	}
	text := ""
	if len(rows) > 0 {
		text = ui.Table(rows)
	}
	for _, n := range r.Bare {
		text += fmt.Sprintf("keep    %d of %s: no rule removes them (retention: in its template, or --keep-last N, --max-age AGE)\n", bare[n], n)
	}
	return text
}

// lsRemoved lists what was removed, the last first.
func lsRemoved(s *session) error {
	st, ok := s.Store.(artifact.Retirer)
	if !ok {
		return fmt.Errorf("the store %T does not remember what was removed", s.Store)
	}
	all, err := st.Removed(s.ctx, s.c.Args().First())
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return s.result([]artifact.Removed{}, "no image was removed")
	}
	rows := [][]string{{"IMAGE", "VERSION", "DIGEST", "CREATED", "REMOVED", "WHY"}}
	for _, r := range all {
		rows = append(rows, []string{r.Name, r.Version, short(r.Digest), minute(r.Created), minute(r.At), r.Why})
	}
	return s.result(all, ui.Table(rows))
}

// shownRemoved is what is shown of an image that was removed.
type shownRemoved struct {
	shownImage
	At  time.Time `json:"removed"`
	Why string    `json:"why"`
}

func minute(t time.Time) string { return t.Local().Format("2006-01-02 15:04") }
