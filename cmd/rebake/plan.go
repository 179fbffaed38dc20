package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/ui"
	"github.com/urfave/cli/v2"
)

func planCommand() *cli.Command {
	return &cli.Command{
		Name: "plan", Usage: "say which steps of a build are cached, which will run, and why", ArgsUsage: "TEMPLATE",
		Description: help("Boots and changes nothing. With --explain it shows for each changed step the first value that is\nanother than in the last build; a sensitive one by its name.",
			"rebake plan web.yaml --explain"),
		Flags: append(append(templateFlags(), bakeFlags()...), &cli.BoolFlag{Name: "explain", Usage: "show what changed, old and new"}),
		Action: with(func(s *session) error {
			tpl, err := s.loadArg()
			if err != nil {
				return err
			}
			opts, err := s.bakeOptions()
			if err != nil {
				return err
			}
			plans, err := pipeline.MakePlan(s.ctx, s.Env, tpl, opts)
			if err != nil {
				return err
			}
			var b strings.Builder
			for _, p := range plans {
				if p.Current != "" {
					fmt.Fprintf(&b, "%s with %s: nothing to bake, %s is of the same inputs\n", tpl.Name, p.Build, p.Current)
				} else {
					fmt.Fprintf(&b, "%s with %s\n", p.Image, p.Build)
				}
				rows := [][]string{{"STEP", "", "WHY"}}
				for _, st := range append([]pipeline.PlanStep{p.Boot}, p.Steps...) {
					word := "runs"
					if st.Cached {
						word = "cached"
					}
					rows = append(rows, []string{st.Name, word, st.Why})
					if s.c.Bool("explain") && st.Field != "" {
						was, is := around(st.Was, st.Is)
						rows = append(rows, []string{"", "", "  was " + was}, []string{"", "", "  is  " + is})
					}
				}
				b.WriteString(ui.Table(rows))
			}
			return s.result(plans, b.String())
		}),
	}
}

// around quotes two texts where they begin to differ.
func around(a, b string) (string, string) {
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	i = max(strings.LastIndexByte(a[:i], '\n')+1, i-20)
	cut := func(s string) string {
		switch {
		case s == "":
			return "nothing"
		case i >= len(s):
			return strconv.Quote("…" + s[max(0, len(s)-20):])
		}
		start, s := "", s[i:]
		if i > 0 {
			start = "…"
		}
		if len(s) > 80 {
			s = s[:80] + "…"
		}
		return strconv.Quote(start + s)
	}
	return cut(a), cut(b)
}
