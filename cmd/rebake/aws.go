package main

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/rebake/rebake/internal/awspolicy"
	"github.com/rebake/rebake/internal/event"
	"github.com/urfave/cli/v2"
)

func featureNames() string {
	var out []string
	for _, f := range awspolicy.Features() {
		out = append(out, string(f))
	}
	return strings.Join(out, ", ")
}

func withFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "with", Usage: "also what this `FEATURE` needs, whatever the template says; may be given several times: " + featureNames()}
}

func awsCommand() *cli.Command {
	return &cli.Command{
		Name: "aws", Usage: "what rebake needs in AWS: policy",
		Subcommands: []*cli.Command{
			{Name: "policy", Usage: "print the least IAM policy that a template needs", ArgsUsage: "[TEMPLATE]",
				Description: help("Prints JSON to attach to the user or role that runs rebake. What is ended or deleted must have rebake's own tag.\nWithout a template, or besides it, --with names features; `rebake ami publish` needs publish, and with its\noptions copy, share, deprecate, protect, kms. AWS is not asked; `rebake doctor --aws` asks it.",
					"rebake aws policy web.yaml > policy.json\nrebake aws policy --with publish --with copy"),
				Flags: append([]cli.Flag{withFlag()}, templateFlags()...), Action: with(awsPolicy)},
		},
	}
}

// awsNeed is what the template on the command line, and --with, need.
func (s *session) awsNeed(path string) (awspolicy.Need, error) {
	var n awspolicy.Need
	if path != "" {
		tpl, err := s.load(path)
		if err != nil {
			return n, err
		}
		if n, err = awspolicy.For(tpl); err != nil {
			return n, err
		}
	}
	n.InBucket(s.c.String("state"))
	for _, f := range s.c.StringSlice("with") {
		if !slices.Contains(awspolicy.Features(), awspolicy.Feature(f)) {
			return n, usagef("one of "+featureNames(), "--with %q is no feature", f)
		}
		n.Add(awspolicy.Feature(f), "--with "+f)
	}
	return n, nil
}

func awsPolicy(s *session) error {
	if s.c.NArg() > 1 {
		return usagef("`rebake aws policy web.yaml`", "aws policy takes at most one template; got %d arguments", s.c.NArg())
	}
	n, err := s.awsNeed(s.c.Args().First())
	if err != nil {
		return err
	}
	if len(n.Features) == 0 {
		if s.c.NArg() == 0 {
			return usagef("`rebake aws policy web.yaml`, or --with one of "+featureNames(), "aws policy needs a template or --with FEATURE")
		}
		return s.result(n.Policy(), s.c.Args().First()+" does nothing in AWS: no build.amazon, no pool.asg, no router.alb, no retention.ami (--with adds features)")
	}
	p := n.Policy()
	text, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	if size := p.Size(); size > awspolicy.MaxManaged {
		event.Warnf(s.ctx, "the policy has %d characters: too many for a managed one (%d), not for one that is a role's own (%d)", size, awspolicy.MaxManaged, awspolicy.MaxInline)
	}
	return s.result(p, string(text))
}
