package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/fault"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/rehearse"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/internal/ui"
	"github.com/urfave/cli/v2"
)

func rehearseFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "rehearse", Usage: "play the deployment on models, with good and bad images, and say what users would see; starts nothing"},
		&cli.StringFlag{Name: "faults", Value: "none", Usage: "with --rehearse: let calls to pool and router go wrong, by a `SEED` (a number), or none"},
	}
}

// rehearse plays the template's deployment of the image; without --image one
// that was never baked will do.
func (s *session) rehearse(tpl *template.Template) error {
	var plan *fault.Plan
	if text := s.c.String("faults"); text != "none" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return usagef("give a number, like 7: the same one plays the same faults; or none", "--faults %q is no seed", text)
		}
		mixed := fault.Mixed(seed)
		plan = &mixed
	}
	ref := s.c.String("image")
	_, img, err := s.resolve(orDefault(ref, tpl.Name+":latest"))
	if errors.Is(err, artifact.ErrNotFound) && ref == "" {
		img, err = artifact.Image{Name: tpl.Name, Version: "(the next image)", Digest: "sha256:new"}, nil
	}
	if err != nil {
		return err
	}
	rep, err := pipeline.Rehearse(s.ctx, s.Env, tpl, img, plan)
	if err != nil {
		return err
	}
	if err := s.result(rep, renderRehearsal(rep)); err != nil {
		return err
	}
	if rep.Cases[0].Verdict != "promoted" && plan == nil {
		return hinted(errors.New(rep.Warning), "look at fleet.deploy: its steps, gates and waits (`rebake docs deploy`)")
	}
	return nil
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func renderRehearsal(rep rehearse.Report) string {
	var b strings.Builder
	fmt.Fprintf(&b, "rehearsal of fleet %s: %s instead of %s, %d instances\n", rep.Fleet, rep.To, rep.From, rep.Size)
	fmt.Fprintf(&b, "the engine is the real one; machines (%s to boot), router and a request each %s are models, and no time is waited for\n", ui.Duration(rep.Boot), ui.Duration(rep.Every))
	if len(rep.Asked) > 0 {
		fmt.Fprintf(&b, "taken as passed, not asked: gate %s\n", strings.Join(rep.Asked, ", "))
	}
	if rep.Seed != nil {
		fmt.Fprintf(&b, "calls to pool and router go wrong by seed %d (--faults %d plays it again)\n", *rep.Seed, *rep.Seed)
	}
	for _, c := range rep.Cases {
		fmt.Fprintf(&b, "\n%s: %s after %s", c.Image, c.Verdict, ui.Duration(time.Duration(c.Seconds*float64(time.Second))))
		if c.Reason != "" {
			fmt.Fprintf(&b, ": %s", c.Reason)
		}
		b.WriteString("\n")
		rows := [][]string{{"AT", "STATE", "NEW IMAGE", "SERVING", "REQUESTS", "FAILED"}}
		for _, r := range c.Rows {
			if r.State == "" {
				rows = append(rows, []string{ui.Duration(r.At), "(" + r.Note + ")", "", "", "", ""})
				continue
			}
			rows = append(rows, []string{ui.Duration(r.At), string(r.State), fmt.Sprintf("%g %%", float64(r.Permille)/10), fmt.Sprint(r.Least), fmt.Sprint(r.Sent), fmt.Sprint(r.Failed)})
		}
		b.WriteString(ui.Table(rows))
		for _, i := range c.Injected {
			fmt.Fprintf(&b, "injected at %s: %s %s\n", ui.Duration(i.At), i.Call, i.Kind)
		}
		fmt.Fprintf(&b, "users: %d of %d requests failed; at least %d of %d instances were able to serve\n", c.Failed, c.Sent, c.Least, rep.Size)
	}
	if rep.Warning != "" {
		fmt.Fprintf(&b, "\nnote: %s\n", rep.Warning)
	}
	return b.String()
}
