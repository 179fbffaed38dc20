package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/ui"
)

func fleetHistory(s *session) error {
	d, err := s.fleetArg()
	if err != nil {
		return err
	}
	limit := s.c.Int("limit")
	if limit < 0 {
		return usagef("0 is all of them", "--limit %d is below zero", limit)
	}
	past, heals, err := d.Timeline(s.ctx)
	if err != nil {
		return err
	}
	slices.Reverse(past)
	slices.Reverse(heals)
	if limit > 0 {
		past = past[:min(limit, len(past))]
	}
	if n := len(past); n > 0 && limit > 0 { // what was healed in that time
		heals = slices.DeleteFunc(heals, func(h fleet.PastHeal) bool { return h.Began.Before(past[n-1].Began) })
	}
	all := struct {
		Deployments []fleet.Past     `json:"deployments"`
		Heals       []fleet.PastHeal `json:"heals"`
	}{append([]fleet.Past{}, past...), append([]fleet.PastHeal{}, heals...)} // empty lists, not null
	if len(past) == 0 {
		return s.result(all, "nothing was deployed to "+d.Config.Name+" yet")
	}
	return s.result(all, describePast(past, heals))
}

// describePast is a line for each deployment and each heal, the newest first.
func describePast(past []fleet.Past, heals []fleet.PastHeal) string {
	rows := [][]string{{"WHEN", "BY", "FROM", "TO", "VERDICT", "PROMOTED", "DONE", "TRAFFIC", "REASON"}}
	when := func(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }
	for _, p := range past {
		for len(heals) > 0 && heals[0].Began.After(p.Began) {
			h := heals[0]
			heals = heals[1:]
			rows = append(rows, []string{when(h.Began), h.By, "-", "-", "healed", "-", took(h.Last.Sub(h.Began).Seconds()), "-", "fresh: " + orDash(strings.Join(h.Instances, ", "))})
		}
		from, verdict := "-", p.Outcome
		if p.Old != nil {
			from = imageName(p.Old.Spec.Image)
		}
		if p.Rollback {
			verdict += ", a rollback"
		}
		rows = append(rows, []string{when(p.Began), p.By, from, imageName(p.New.Spec.Image), verdict, took(p.ToAll), took(p.ToEnd), steps(p.Record), because(p.Record)})
	}
	return ui.Table(rows)
}

// because is why a deployment ended as it did, and what was let pass.
func because(r fleet.Record) string {
	var parts []string
	if r.InFreeze != "" {
		parts = append(parts, "in a freeze: "+r.InFreeze)
	}
	if r.Override != "" {
		parts = append(parts, "policy overridden: "+r.Override)
	}
	if r.Waived != "" {
		parts = append(parts, "waived: "+r.Waived)
	}
	if r.Reason != "" {
		parts = append(parts, r.Reason)
	}
	return strings.Join(parts, "; ")
}

func imageName(i artifact.Image) string { return i.Name + ":" + i.Version }

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// took is a time in words; none at all is one that never came.
func took(seconds float64) string {
	if seconds <= 0 {
		return "-"
	}
	return ui.Duration(time.Duration(seconds * float64(time.Second)))
}

// steps are the new image's shares of the traffic, in percent, in their order.
func steps(r fleet.Record) string {
	var all []string
	for _, c := range r.Weights {
		all = append(all, strings.TrimSuffix(fmt.Sprintf("%.1f", float64(c.Weights[r.New.Group.Slot])/10), ".0"))
	}
	if len(all) == 0 {
		return "-"
	}
	return strings.Join(all, ">") + " %"
}

func fleetWhy(s *session) error {
	name, err := arg(s.c, "an instance's name")
	if err != nil {
		return err
	}
	w, err := pipeline.Explain(s.ctx, s.Env, name)
	if err != nil {
		return err
	}
	return s.result(w, describeWhy(w))
}

// describeWhy is the chain, one link a line or two.
func describeWhy(w pipeline.Why) string {
	var rows [][]string
	line := func(key, format string, a ...any) { rows = append(rows, []string{key, fmt.Sprintf(format, a...)}) }
	state := "runs since " + clock(w.Started)
	switch {
	case w.Gone:
		state = "is gone"
	case !w.Running:
		state = "is dead: `rebake fleet heal " + w.Fleet + "` replaces it"
	}
	line("instance", "%s %s", w.Instance, state)
	line("fleet", "%s, slot %s, template %s", w.Fleet, w.Slot, orDash(w.Template))
	line("deployment", "%s by %s, %s: %s", w.Record.ID, w.Record.By, clock(w.Record.Began), w.Record.Verdict())
	if w.Baseline {
		line("", "as a baseline: the old image, for %s to be compared with", imageName(w.Record.New.Spec.Image))
	}
	if w.Record.Reason != "" {
		line("", "%s", w.Record.Reason)
	}
	line("image", "%s %s%s", imageName(w.Image), w.Image.Digest, map[bool]string{false: " (not in the store any more)"}[w.InStore])
	describeBake(line, w.Image)
	for _, p := range w.Parents {
		if p.Image == nil {
			line("from", "%s %s (a base, or an image that is not in the store)", p.Ref, p.Digest)
			continue
		}
		state := ""
		if !p.Removed.IsZero() {
			state = " (removed on " + clock(p.Removed) + ")"
		}
		line("from", "%s %s%s", imageName(*p.Image), p.Image.Digest, state)
		describeBake(line, *p.Image)
	}
	return ui.Table(rows)
}

func clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// describeBake tells what made an image.
func describeBake(line func(string, string, ...any), img artifact.Image) {
	l := img.Lineage
	line("  baked", "%s, build %s by %s, rebake %s", clock(img.Created), orDash(l.BuildID), orDash(l.Builder), orDash(l.Rebake))
	line("  template", "%s %s", orDash(l.Template), l.TemplateDigest)
	switch {
	case l.GitCommit == "":
		line("  commit", "none: the template was in no git repository")
	case l.GitDirty:
		line("  commit", "%s, dirty: with changes that are in no commit", l.GitCommit)
	default:
		line("  commit", "%s", l.GitCommit)
	}
}

// describeDrift is a line for each instance, and what to do about it.
func describeDrift(name string, f pipeline.FleetDrift) string {
	const few = 3 // changes that are named in a line
	rows := [][]string{{"INSTANCE", "IMAGE", "SINCE BOOT", "WHAT"}}
	for _, i := range f.Instances {
		image, what := "as deployed", i.Why
		switch {
		case i.Want == "":
			image = short(i.Image) + ", of no deployment"
		case !i.Right():
			image = short(i.Image) + ", should be " + short(i.Want)
		}
		state := i.State
		if r := i.Report; r != nil && !r.Clean() {
			state = fmt.Sprintf("%d changes", r.Count())
			if r.Count() == 1 {
				state = "1 change"
			}
			var all []string
			for _, p := range r.Packages {
				all = append(all, p.String())
			}
			for _, c := range r.Changed {
				all = append(all, c.String())
			}
			what = strings.Join(all[:min(few, len(all))], ", ")
			if more := r.Count() - few; more > 0 {
				what += fmt.Sprintf(", and %d more", more)
			}
		}
		rows = append(rows, []string{i.ID, image, state, what})
	}
	text := ui.Table(rows)
	if f.Missing > 0 {
		text += fmt.Sprintf("instances missing: %d\n", f.Missing)
	}
	switch n := len(f.Drifted()); {
	case n > 0:
		text += fmt.Sprintf("next: `rebake fleet heal %s --drifted` replaces %d of them; --output json names every change\n", name, n)
	case f.Missing > 0 || slices.ContainsFunc(f.Instances, func(i pipeline.InstanceDrift) bool { return i.Serves && i.State == pipeline.DriftDead }):
		text += fmt.Sprintf("next: `rebake fleet heal %s` replaces what is dead\n", name)
	}
	return text
}

func driftError(name string, f pipeline.FleetDrift) error {
	n := f.Missing
	for _, i := range f.Instances {
		if !i.Good() {
			n++
		}
	}
	return hinted(fmt.Errorf("%d instances of fleet %s are not as they were deployed, or could not be asked", n, name), "`rebake fleet heal %s --drifted` replaces what is dead or was changed", name)
}

func fleetHeal(s *session) error {
	d, err := s.fleetArg()
	if err != nil {
		return err
	}
	var live []string
	if id := s.c.String("instance"); id != "" {
		if s.c.Bool("drifted") {
			return usagef("`rebake fleet heal "+d.Config.Name+" --drifted` replaces all that were changed", "--drifted and --instance: one of the two")
		}
		live = append(live, id)
	}
	if s.c.Bool("drifted") {
		f, err := pipeline.Drift(s.ctx, d)
		if err != nil {
			return err
		}
		live = f.Drifted()
	}
	if len(live) > 0 && !s.c.Bool("yes") {
		if err := s.confirm(fmt.Sprintf("replace %s, and what is changed in them is lost?", strings.Join(live, ", "))); err != nil {
			return err
		}
	}
	res, err := d.Heal(s.ctx, live...)
	if err != nil && len(res.Replaced) == 0 {
		return err
	}
	text := "every instance of " + d.Config.Name + " is alive: nothing was replaced\n"
	if len(res.Replaced) > 0 {
		text = ""
	}
	for _, r := range res.Replaced {
		text += fmt.Sprintf("replaced %s (%s)\n", r.Instance, r.Why)
	}
	if res.Cut > 0 {
		text += fmt.Sprintf("%d requests were cut\n", res.Cut)
	}
	if st, serr := d.Status(s.ctx); serr == nil {
		text += describeSick(d.Config.Name, st)
	}
	return errors.Join(err, s.result(res, text))
}

// describeSick names instances that run and do not serve: they may only be slow,
// so that a person decides.
func describeSick(name string, st fleet.Status) (text string) {
	if st.Current == nil {
		return ""
	}
	for _, m := range st.Router.Members[st.Current.Group.Slot] {
		if !m.Healthy {
			text += fmt.Sprintf("%s runs and does not serve (%s): `rebake fleet heal %s --instance %s` replaces it\n", m.ID, orDash(m.Check), name, m.ID)
		}
	}
	return text
}
