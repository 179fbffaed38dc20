package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/internal/ui"
	"github.com/urfave/cli/v2"
)

func templateFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "var", Usage: "set a variable: `NAME=VALUE` (repeatable)"},
		&cli.StringSliceFlag{Name: "var-file", Usage: "read variables from a YAML or JSON `FILE` (repeatable)"},
	}
}

func bakeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "only", Usage: "bake only the `BUILD` of this name (repeatable)"},
		&cli.StringFlag{Name: "version", Usage: "the image's `VERSION`, or an expression such as '${{ git.tag }}'; a date serial where neither this nor the template gives one"},
		&cli.StringSliceFlag{Name: "tag", Usage: "point this moving `TAG` at the image too (repeatable)"},
		&cli.BoolFlag{Name: "force", Usage: "bake even if nothing changed"},
		&cli.DurationFlag{Name: "max-age", Value: pipeline.DefaultMaxAge, Usage: "bake an unchanged template again once its image is older than this `DURATION`, because packages move on; 0 never"},
		&cli.BoolFlag{Name: "no-cache", Usage: "run every step, and boot: go on from no checkpoint"},
		&cli.StringFlag{Name: "no-cache-from", Usage: "run this `STEP` and all after it"},
		&cli.StringFlag{Name: "cache-max-size", Value: "20G", EnvVars: []string{"REBAKE_CACHE_MAX_SIZE"}, Usage: "after the build, remove what was not used for the longest time until the cache is no larger than this `SIZE`; 0: no limit"},
		signKeyFlag(),
		&cli.BoolFlag{Name: "allow-revoked", Usage: "build from a base that is revoked too: what is made of it is revoked with it"},
		&cli.BoolFlag{Name: "allow-dirty", Usage: "make a release (a version that came from git.tag) from a tree with changes that are in no commit"},
		&cli.BoolFlag{Name: "skip-test", Usage: "store the image without booting it for its tests"},
		&cli.StringFlag{Name: "on-failure", Value: "destroy", Usage: "`destroy` the machine of a failed build, keep it up until interrupted, or ask: enter it, retry the step, skip it, give up"},
	}
}

// load reads the template and tells the redactor its secrets.
func (s *session) load(path string) (*template.Template, error) {
	t, err := template.Load(path, template.Options{
		Vars: s.c.StringSlice("var"), VarFiles: s.c.StringSlice("var-file"),
		Environ: os.Environ(), Kinds: s.Backends.Kinds, Now: time.Now(), Version: expression(s.c.String("version")),
	})
	if err != nil {
		return nil, err
	}
	s.red.Add(t.Secrets...)
	if err := s.storeOf(t); err != nil {
		return nil, err
	}
	return t, s.checkNames(t)
}

// expression is a version that must be evaluated, or "".
func expression(version string) string {
	if strings.Contains(version, "${{") {
		return version
	}
	return ""
}

// checkNames refuses now what a bake would end with.
func (s *session) checkNames(tpl *template.Template) error {
	names := s.c.StringSlice("tag")
	if v := s.c.String("version"); s.c.IsSet("version") && expression(v) == "" {
		names = append(names, v)
	}
	for _, n := range names {
		if err := artifact.CheckTag(n); err != nil {
			return usagef("for example 1.4.0, 20261124.1 or stable", "%v", err)
		}
	}
	var builds []string
	for _, b := range tpl.Builds {
		builds = append(builds, b.Name)
	}
	for _, o := range s.c.StringSlice("only") {
		if !slices.Contains(builds, o) {
			return usagef("builds: "+strings.Join(builds, ", "), "%s has no build %q", tpl.Path, o)
		}
	}
	return nil
}

func (s *session) bakeOptions() (pipeline.BakeOptions, error) {
	o := pipeline.BakeOptions{
		Only: s.c.StringSlice("only"), Version: s.c.String("version"), Tags: s.c.StringSlice("tag"),
		Force: s.c.Bool("force"), IfChanged: s.c.Bool("if-changed"), MaxAge: s.c.Duration("max-age"), SkipTest: s.c.Bool("skip-test"),
		NoCache: s.c.Bool("no-cache"), NoCacheFrom: s.c.String("no-cache-from"),
	}
	o.AllowDirty, s.Env.AllowRevoked = s.c.Bool("allow-dirty"), s.c.Bool("allow-revoked")
	if expression(o.Version) != "" {
		o.Version = "" // the template has it, evaluated
	}
	var err error
	if s.Env.MaxCache, err = sizeFlag(s.c, "cache-max-size"); err != nil {
		return o, err
	}
	if o.SignKey, err = s.signKey(s.c.String("sign-key")); err != nil {
		return o, err
	}
	if o.MaxAge < 0 {
		return o, usagef("0 never bakes again what did not change", "--max-age %s is below zero", o.MaxAge)
	}
	if o.IfChanged && (o.Force || o.NoCache || o.NoCacheFrom != "") {
		return o, usagef("leave one of them out", "--if-changed bakes only what changed; --force, --no-cache and --no-cache-from bake all the same")
	}
	switch v := s.c.String("on-failure"); v {
	case "destroy":
	case "keep":
		o.KeepFails = true
	case "ask":
		o.AskFails = true
		if s.Env.Ask == nil {
			return o, usagef("destroy or keep", "--on-failure ask needs a terminal to ask at")
		}
	default:
		return o, usagef("destroy, keep or ask", "unknown --on-failure %q", v)
	}
	return o, nil
}

func buildCommand() *cli.Command {
	return &cli.Command{
		Name: "build", Usage: "bake images from templates", ArgsUsage: "TEMPLATE…",
		Description: help("Boots a temporary machine, provisions it over SSH, seals it, tests the sealed image in\ntwo fresh boots, and stores it under a version. If nothing changed since an image younger\nthan --max-age was baked, that image is the result. Several builds run side by side; one whose\nbase is another's image waits for it.",
			"rebake build web.yaml --var release=2026-11-24 --tag nightly", "4 something was left behind (rebake gc)"),
		Flags: append(append(append(templateFlags(), bakeFlags()...), summaryFlags()...),
			ifChangedFlag(),
			&cli.IntFlag{Name: "parallel", Usage: "run at most `N` builds at once; 0: one for each processor, as far as memory allows"},
			&cli.BoolFlag{Name: "fail-fast", Usage: "stop all builds when one fails"}),
		Action: summarised(func(s *session) error {
			if s.c.NArg() < 1 {
				_, err := arg(s.c, "the template")
				return err
			}
			var tpls []*template.Template
			for _, path := range s.c.Args().Slice() {
				tpl, err := s.load(path)
				if err != nil {
					return err
				}
				tpls = append(tpls, tpl)
			}
			opts, err := s.bakeOptions()
			if err != nil {
				return err
			}
			opts.Parallel, opts.FailFast = s.c.Int("parallel"), s.c.Bool("fail-fast")
			if opts.AskFails && (len(tpls) > 1 || len(tpls[0].Builds) > 1 && len(opts.Only) != 1) {
				return usagef("--only BUILD, one template", "--on-failure ask is for one build at a time")
			}
			baked, err := pipeline.BakeAll(s.ctx, s.Env, tpls, opts)
			if err != nil {
				if len(baked) > 0 {
					err = errors.Join(err, s.result(baked, describeBaked(baked)))
				}
				return err
			}
			text := describeBaked(baked)
			if opts.IfChanged {
				text += whyBaked(baked)
			}
			return s.result(baked, text)
		}),
	}
}

func describeBaked(baked []pipeline.Baked) string {
	var b strings.Builder
	for _, k := range baked {
		img := k.Image
		if !k.Changed {
			fmt.Fprintf(&b, "%s:%s is up to date  %s%s\n", img.Name, img.Version, short(img.Digest), looked(k))
			continue
		}
		passed := 0
		for _, t := range img.Tests {
			if t.Passed {
				passed++
			}
		}
		fmt.Fprintf(&b, "baked %s:%s in %s  %s  %s new in the store, %d checks passed, tags %s\n", img.Name, img.Version,
			ui.Duration(time.Duration(k.Seconds*float64(time.Second))), short(img.Digest), ui.Size(img.StoredNew), passed, strings.Join(img.Tags, " "))
	}
	return b.String()
}

func ifChangedFlag() cli.Flag {
	return &cli.BoolFlag{Name: "if-changed", Usage: "an image of the same inputs is the result, whatever version was asked for; says what was looked at, or what changed"}
}

// whyBaked says why images were baked.
func whyBaked(baked []pipeline.Baked) (text string) {
	for _, k := range baked {
		if k.Changed && len(k.Why) > 0 {
			text += "because " + strings.Join(k.Why, "; ") + "\n"
		}
	}
	return text
}

// looked says by what an image was found to be up to date.
func looked(k pipeline.Baked) string {
	if k.Looked == nil {
		return ""
	}
	return "  " + k.Looked.String()
}

func validateCommand() *cli.Command {
	return &cli.Command{
		Name: "validate", Usage: "check a template and say what a build of it would do", ArgsUsage: "TEMPLATE",
		Description: help("Reads the template with its variables, checks every block against its backend and every local\nfile it names, and prints the plan. Nothing is booted, downloaded or changed, and no cloud is asked: it needs no credentials.",
			"rebake validate web.yaml --var release=1.2.0"),
		Flags: append(templateFlags(), bakeFlags()[:2]...),
		Action: with(func(s *session) error {
			path, err := arg(s.c, "the template")
			if err != nil {
				return err
			}
			tpl, err := s.load(path)
			if err != nil {
				return err
			}
			if err := pipeline.CheckFleet(s.Env, tpl); err != nil {
				return err
			}
			version := s.c.String("version")
			if expression(version) != "" {
				version = ""
			}
			plans, err := pipeline.MakePlan(s.ctx, s.Env, tpl, pipeline.BakeOptions{Only: s.c.StringSlice("only"), Version: version, MaxAge: pipeline.DefaultMaxAge, AllowDirty: true, Unasked: true})
			if err != nil {
				return err
			}
			var b strings.Builder
			for _, p := range plans {
				var steps []string
				for _, st := range p.Steps {
					steps = append(steps, st.Name)
				}
				fmt.Fprintf(&b, "%s: valid\n  %s with %s\n  provision: %s\n  test: %s\n  tags: %s\n", path, p.Image, p.Build,
					strings.Join(steps, ", "), strings.Join(p.Tests, ", "), strings.Join(p.Tags, ", "))
				if p.Current != "" {
					fmt.Fprintf(&b, "  nothing to bake: %s is of the same inputs\n", p.Current)
				}
				if p.Unasked {
					fmt.Fprintf(&b, "  no cloud was asked: `rebake plan %s` looks for what the machine starts from\n", path)
				}
			}
			return s.result(plans, b.String())
		}),
	}
}

func writeJSON(w io.Writer, v any) error {
	return json.NewEncoder(w).Encode(v)
}
