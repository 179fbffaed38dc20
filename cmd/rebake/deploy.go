package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/internal/ui"
	"github.com/urfave/cli/v2"
)

var deployStatuses = []string{"3 rolled back", "4 blocked or something left behind", "5 locked by another operator", "6 paused: it waits for a person", "7 refused: the image lacks what fleet.require asks for"}

func deployFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "wait", Usage: "wait until the old slot is retired, not only until the traffic moved"},
		&cli.StringFlag{Name: "override-freeze", Usage: "deploy although deploy.freeze says not now; `REASON` is told and kept"},
		overridePolicy(),
	}
}

func overridePolicy() cli.Flag {
	return &cli.StringFlag{Name: "override-policy", Usage: "go on although the image lacks what fleet.require asks for; `REASON` is told and kept"}
}

func upCommand() *cli.Command {
	return &cli.Command{
		Name: "up", Usage: "bake if something changed, then deploy: the line for a nightly job", ArgsUsage: "TEMPLATE",
		Description: help("`rebake build` and `rebake deploy` in one: bakes unless an image of the same inputs younger than\n--max-age is there, then brings the fleet to it. Ends with one line that says what happened.\nFor a job every night: --if-changed (docs/nightly.md).",
			"rebake up web.yaml --var release=2026-11-24\nrebake up web.yaml --if-changed --summary night.md --junit night.xml", deployStatuses...),
		Flags: append(append(append(append(templateFlags(), bakeFlags()...), deployFlags()...), summaryFlags()...),
			&cli.BoolFlag{Name: "if-changed", Usage: "for a job every night: bake nothing if an image of the same inputs is there under any version, deploy nothing if the fleet runs it or a freeze says not now, be the only one, and say in one line what was looked at"},
			&cli.BoolFlag{Name: "prune", Usage: "then remove the images that retention: of the template does not keep"}),
		Action: summarised(func(s *session) error {
			tpl, err := s.loadArg()
			if err != nil {
				return err
			}
			opts, err := s.bakeOptions()
			if err != nil {
				return err
			}
			if tpl.Fleet == nil {
				return usagef("add a fleet: block (`rebake docs fleet`), or use `rebake build`", "%s has no fleet to bring up", tpl.Path)
			}
			if s.c.Bool("prune") && tpl.Retention == nil {
				return noRetention(tpl)
			}
			u, err := pipeline.Up(s.ctx, s.Env, tpl, opts, s.deployOptions())
			s.account.upped(u)
			if err != nil && u.Deployment.ID == "" || err != nil && !decided(err) {
				return err
			}
			text := describeUpped(u, opts.IfChanged)
			if err != nil || !s.c.Bool("prune") || u.Outcome == pipeline.OutcomeFrozen {
				return errors.Join(err, s.result(u, text))
			}
			done, lines, err := s.pruneAfter(tpl)
			return errors.Join(err, s.result(struct {
				pipeline.Upped
				Pruned *pruned `json:"pruned"`
			}{u, done}, text+lines))
		}),
	}
}

func (s *session) loadArg() (*template.Template, error) {
	path, err := arg(s.c, "the template")
	if err != nil {
		return nil, err
	}
	return s.load(path)
}

// deploy brings the fleet to the image and prints what came of it.
func (s *session) deploy(tpl *template.Template, img artifact.Image, baked []pipeline.Baked) error {
	res, err := pipeline.Deploy(s.ctx, s.Env, tpl, img, s.deployOptions())
	s.account.ended(res, err)
	if err != nil && !decided(err) {
		return err
	}
	perr := s.result(map[string]any{"outcome": pipeline.OutcomeOf(res, err), "baked": baked, "deployment": res}, describeBaked(baked)+describeDeployment(res))
	return errors.Join(err, perr)
}

func (s *session) deployOptions() pipeline.DeployOptions {
	return pipeline.DeployOptions{Wait: s.c.Bool("wait"), Force: s.c.Bool("redeploy"),
		Approve: s.c.String("approve"), OverrideFreeze: s.c.String("override-freeze"), OverridePolicy: s.c.String("override-policy")}
}

// decided tells of an error that is a deployment's result.
func decided(err error) bool {
	return errors.Is(err, pipeline.ErrRolledBack) || errors.Is(err, fleet.ErrPaused)
}

// describeUpped is what `rebake up` ends with: one line if there was nothing to do.
func describeUpped(u pipeline.Upped, ifChanged bool) string {
	text := describeBaked(u.Baked)
	if !ifChanged {
		return text + describeDeployment(u.Deployment)
	}
	if d := u.Deployment; u.Outcome == pipeline.OutcomeUnchanged && d.Serving != nil {
		img := d.Serving.Spec.Image
		return fmt.Sprintf("nothing changed: fleet %s runs %s:%s already;%s\n", d.Fleet, img.Name, img.Version, looked(u.Baked[0])[1:])
	}
	text += whyBaked(u.Baked)
	if u.Outcome == pipeline.OutcomeHealed {
		return text + fmt.Sprintf("%d dead instances of fleet %s were started anew, of the same image\n", len(u.Healed), u.Deployment.Fleet)
	}
	if u.Outcome == pipeline.OutcomeFrozen {
		return text + "not deployed: " + u.Held + "\n"
	}
	return text + describeDeployment(u.Deployment)
}

// describeDeployment is the one line of a deployment.
func describeDeployment(r fleet.Result) string {
	img := r.New.Spec.Image
	name := img.Name + ":" + img.Version
	switch {
	case r.ID == "":
		return ""
	case r.Unchanged: // the last deployment may have been one that was rolled back
		return fmt.Sprintf("fleet %s runs %s already\n", r.Fleet, r.Serving.Spec.Image.Name+":"+r.Serving.Spec.Image.Version)
	case r.State == fleet.RolledBack && r.Old == nil && r.Policy.Strategy == fleet.Refresh:
		return fmt.Sprintf("refused %s: %s; the group of fleet %s is back on what it launched before\n", name, r.Reason, r.Fleet)
	case r.State == fleet.RolledBack && r.Old == nil:
		return fmt.Sprintf("refused %s: %s; fleet %s serves nothing, as before\n", name, r.Reason, r.Fleet)
	case r.State == fleet.RolledBack:
		return fmt.Sprintf("refused %s: %s; fleet %s went back\n", name, r.Reason, r.Fleet)
	case r.State == fleet.Quarantined:
		return fmt.Sprintf("refused %s: %s; fleet %s went back; the failed instances stay until %s\n", name, r.Reason, r.Fleet, r.Deadline.Local().Format("15:04:05"))
	case r.State == fleet.Paused:
		return fmt.Sprintf("fleet %s gives %s %.1f %% of the traffic and waits: `rebake deploy resume %s` goes on, `rebake deploy abort %s` goes back\n",
			r.Fleet, name, float64(r.Live()[r.New.Group.Slot])/10, r.Fleet, r.Fleet)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "fleet %s runs %s on %d instances", r.Fleet, name, r.New.Spec.Size)
	if r.Old != nil {
		fmt.Fprintf(&b, ", instead of %s", r.Old.Spec.Image.Version)
	}
	if n := len(r.Weights); n > 0 && r.Policy.Strategy == fleet.Refresh {
		fmt.Fprintf(&b, "; replaced in place in %s", ui.Duration(r.Weights[n-1].Time.Sub(r.Began)))
		if r.State == fleet.Baking {
			fmt.Fprintf(&b, "; the refresh can be turned round until %s", r.Deadline.Local().Format("2006-01-02 15:04"))
		}
		return b.String() + "\n"
	}
	if n := len(r.Weights); n > 0 && r.Old != nil {
		fmt.Fprintf(&b, "; traffic moved in %s in %d steps", ui.Duration(r.Weights[n-1].Time.Sub(r.Weights[0].Time)), n)
		if sec := r.SwapSeconds(); sec > 0 {
			fmt.Fprintf(&b, ", old slot idle after %s", ui.Duration(time.Duration(sec*float64(time.Second))))
		}
	}
	if r.State == fleet.Baking && r.Old != nil {
		fmt.Fprintf(&b, "; %s is kept warm until %s", r.Old.Spec.Image.Version, r.Deadline.Local().Format("15:04:05"))
	}
	if r.Cut > 0 {
		fmt.Fprintf(&b, "; %d requests were cut by the drain timeout", r.Cut)
	}
	return b.String() + "\n"
}

func deployCommand() *cli.Command {
	byName := func(what string, f func(*session, *fleet.Deployer) (fleet.Result, error)) cli.ActionFunc {
		return with(func(s *session) error {
			d, err := s.fleetArg()
			if err != nil {
				return err
			}
			res, err := f(s, d)
			if err != nil && !errors.Is(err, fleet.ErrRolledBack) && !errors.Is(err, fleet.ErrPaused) {
				return err
			}
			if errors.Is(err, fleet.ErrRolledBack) {
				err = errors.Join(pipeline.ErrRolledBack, err)
			}
			return errors.Join(err, s.result(res, describeDeployment(res)))
		})
	}
	return &cli.Command{
		Name: "deploy", Usage: "bring a fleet to an image, blue/green: TEMPLATE, or status, resume, abort FLEET", ArgsUsage: "TEMPLATE",
		Description: help("Starts the new image's instances in the free slot, waits until they are healthy, moves the traffic\nin the template's steps, and keeps the old slot warm for keep_old. Goes back by itself if the new\nimage is not good. Without --image it deploys NAME:latest.",
			"rebake deploy web.yaml --image web:20261124.1\nrebake deploy status web", deployStatuses...),
		Flags: append(append(append(append(templateFlags(), deployFlags()...), rehearseFlags()...), summaryFlags()...),
			&cli.StringFlag{Name: "image", Usage: "the image's `REF`"},
			&cli.BoolFlag{Name: "plan", Usage: "say what would be done, how long it may take and what it needs, and do nothing"},
			&cli.StringFlag{Name: "approve", Usage: "carry out exactly the plan with this `ID`, which --plan printed, or nothing"},
			&cli.BoolFlag{Name: "redeploy", Usage: "replace the instances even if they run this image"}),
		Action: summarised(func(s *session) error {
			tpl, err := s.loadArg()
			if err != nil {
				return err
			}
			if s.c.Bool("rehearse") || s.c.Bool("plan") {
				if err := s.account.close(); err != nil {
					return err
				}
			}
			if s.c.Bool("rehearse") {
				return s.rehearse(tpl)
			}
			ref := s.c.String("image")
			if ref == "" {
				ref = tpl.Name + ":latest"
			}
			_, img, err := s.resolve(ref)
			if err != nil {
				return err
			}
			if s.c.Bool("plan") {
				f, id, err := pipeline.PlanDeploy(s.ctx, s.Env, tpl, img, pipeline.DeployOptions{Force: s.c.Bool("redeploy"), OverridePolicy: s.c.String("override-policy")})
				if err != nil {
					return err
				}
				return s.result(map[string]any{"id": id, "plan": f}, renderForecast(f, id, tpl.Path))
			}
			return s.deploy(tpl, img, nil)
		}),
		Subcommands: []*cli.Command{
			{Name: "status", Usage: "the last deployment of a fleet", ArgsUsage: "FLEET",
				Description: help("Says where the last deployment is, and why.", "rebake deploy status web"),
				Action:      with(deployStatus)},
			{Name: "resume", Usage: "go on with a deployment that was cut off, paused or blocked", ArgsUsage: "FLEET", Flags: deployFlags()[:1],
				Description: help("Goes on where the journal ends: safe after a kill at any point.", "rebake deploy resume web", deployStatuses...),
				Action: byName("resume", func(s *session, d *fleet.Deployer) (fleet.Result, error) {
					return d.Resume(s.ctx, s.c.Bool("wait"))
				})},
			{Name: "abort", Usage: "take an unfinished deployment back", ArgsUsage: "FLEET",
				Description: help("Traffic to the old slot first, then the new one goes.", "rebake deploy abort web", deployStatuses...),
				Action: byName("abort", func(s *session, d *fleet.Deployer) (fleet.Result, error) {
					return d.Abort(s.ctx, "aborted by hand")
				})},
		},
	}
}

func rollbackCommand() *cli.Command {
	return &cli.Command{
		Name: "rollback", Usage: "go back to the image before, or to an earlier one", ArgsUsage: "FLEET [VERSION]",
		Description: help("While the old slot is kept this is one traffic write; afterwards a new deployment of the previous\nproven image, or of the VERSION that the fleet once ran to the end, all at once but with its health gates.", "rebake rollback web\nrebake rollback web 1.4.0", deployStatuses...),
		Flags:       []cli.Flag{overridePolicy()},
		Action: with(func(s *session) error {
			if n := s.c.NArg(); n < 1 || n > 2 {
				return usagef("`rebake fleet ls` lists the fleets, `rebake fleet history FLEET` the versions", "rollback takes a fleet and perhaps a version; got %d arguments", n)
			}
			d, err := pipeline.Fleet(s.ctx, s.Env, s.c.Args().First())
			if err != nil {
				return err
			}
			version := s.c.Args().Get(1)
			if err := s.stillThere(d, version); err != nil {
				return err
			}
			res, err := d.GoBack(s.ctx, fleet.Back{Reason: "rolled back by hand", Override: s.c.String("override-policy"), Version: version})
			if err != nil {
				return err
			}
			text := describeDeployment(res)
			if res.State == fleet.RolledBack && res.Old != nil {
				text = fmt.Sprintf("fleet %s is back on %s:%s\n", res.Fleet, res.Old.Spec.Image.Name, res.Old.Spec.Image.Version)
			}
			return s.result(res, text)
		}),
	}
}

// stillThere looks for the image of a proven version before anything is touched.
func (s *session) stillThere(d *fleet.Deployer, version string) error {
	h, err := d.History(s.ctx)
	if err != nil {
		return err
	}
	p := h.Proven(version)
	if version == "" || p == nil {
		return nil
	}
	img := p.Spec.Image
	env, err := s.Env.In(d.Config.Store)
	if err != nil {
		return err
	}
	if _, err := env.Store.Resolve(s.ctx, artifact.Ref{Name: img.Name, Digest: img.Digest}); err != nil {
		return fmt.Errorf("%s:%s ran in fleet %s, and cannot be had any more: %w", img.Name, img.Version, d.Config.Name, err)
	}
	return nil
}

// fleetArg opens the fleet that the only argument names.
func (s *session) fleetArg() (*fleet.Deployer, error) {
	name, err := arg(s.c, "a fleet's name")
	if err != nil {
		return nil, err
	}
	return pipeline.Fleet(s.ctx, s.Env, name)
}

func deployStatus(s *session) error {
	d, err := s.fleetArg()
	if err != nil {
		return err
	}
	h, err := d.History(s.ctx)
	if err != nil {
		return err
	}
	r := h.Last()
	if r == nil {
		return s.result(nil, "nothing was deployed to "+d.Config.Name+" yet")
	}
	img := r.New.Spec.Image
	var b strings.Builder
	fmt.Fprintf(&b, "deployment  %s by %s, %s\nimage       %s:%s %s\nstate       %s since %s\nverdict     %s\n", r.ID, r.By, r.Began.Local().Format("2006-01-02 15:04:05"),
		img.Name, img.Version, short(img.Digest), r.State, r.Since.Local().Format("15:04:05"), r.Verdict())
	if r.Reason != "" {
		fmt.Fprintf(&b, "reason      %s\n", r.Reason)
	}
	for _, f := range r.Findings {
		at := "before traffic"
		if f.Step >= 0 && f.Step < len(r.Policy.Steps) {
			at = fmt.Sprintf("at %d %%", r.Policy.Steps[f.Step].Permille/10)
		}
		fmt.Fprintf(&b, "gate        %s %s: %s %s\n", f.Gate, at, f.Verdict, f.Detail)
	}
	for _, left := range r.Left {
		fmt.Fprintf(&b, "left        %s (`rebake gc` tries again)\n", left)
	}
	for _, w := range r.Weights {
		fmt.Fprintf(&b, "traffic     %s  blue %.1f %%  green %.1f %%\n", w.Time.Local().Format("15:04:05.000"), float64(w.Weights[fleet.Blue])/10, float64(w.Weights[fleet.Green])/10)
	}
	if h.Unfinished() != nil {
		fmt.Fprintf(&b, "next        `rebake deploy resume %s` goes on, `rebake deploy abort %s` goes back\n", r.Fleet, r.Fleet)
	}
	return s.result(r, b.String())
}
