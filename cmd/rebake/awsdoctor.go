package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact/ami/access"
	"github.com/rebake/rebake/internal/awspolicy"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/ui"
)

// awsFound is what is known of AWS.
type awsFound struct {
	Who         access.Who        `json:"who"`
	Permissions []permission      `json:"permissions"`
	Missing     *awspolicy.Policy `json:"missing,omitempty"` // to attach
}

type permission struct {
	access.Answer
	For []awspolicy.Feature `json:"for"`
}

func doctorAWS(s *session) error {
	if s.c.NArg() > 1 {
		return usagef("`rebake doctor --aws web.yaml`", "doctor takes at most one template; got %d arguments", s.c.NArg())
	}
	n, err := s.awsNeed(s.c.Args().First())
	if err != nil {
		return err
	}
	at, err := access.Open(s.ctx, cmp.Or(s.c.String("region"), n.Region))
	if err != nil {
		return err
	}
	if n.Bucket != "" {
		at.In(n.Bucket, n.Below())
	}
	who, err := at.Who(s.ctx)
	if err != nil {
		return hinted(err, "`aws configure`, `aws sso login`, or AWS_PROFILE; a clock that is off by %s is refused too", access.MaxSkew)
	}
	n.Partition = awspolicy.PartitionOf(at.Region())
	answers, err := event.Do(s.ctx, "ask AWS for permissions", func(ctx context.Context) ([]access.Answer, error) { return at.Ask(ctx, n.Actions()) })
	if err != nil {
		return err
	}
	found := awsFound{Who: who, Permissions: []permission{}}
	missing := map[string]bool{}
	untold := 0
	rows := [][]string{{"PERMISSION", "STATE", "NEEDED FOR", "NOTE"}}
	for _, a := range answers {
		p := permission{a, n.Who(a.Action)}
		found.Permissions = append(found.Permissions, p)
		missing[a.Action] = a.State == access.Missing
		if a.State == access.Untold {
			untold++
		}
		rows = append(rows, []string{a.Action, string(a.State), features(p.For), firstLine(a.Note)})
	}
	text := describeWho(who)
	if len(answers) > 0 {
		text += ui.Table(rows)
	} else {
		text += "no permission was asked for: give a template, or --with FEATURE\n"
	}
	if untold > 0 {
		text += fmt.Sprintf("%d permissions could not be asked for without using them\n", untold)
	}
	p := n.Policy().Only(func(action string) bool { return missing[action] })
	if len(p.Statement) > 0 {
		found.Missing = &p
		raw, err := json.MarshalIndent(p, "", "  ")
		if err != nil {
			return err
		}
		text += "attach this to " + who.ARN + ":\n" + string(raw) + "\n"
	}
	if err := s.result(found, text); err != nil {
		return err
	}
	bad := len(slices.DeleteFunc(slices.Clone(answers), func(a access.Answer) bool { return a.State != access.Missing }))
	switch {
	case bad > 0:
		return hinted(fmt.Errorf("%d permissions are missing", bad), "attach the policy above, then `rebake doctor --aws` again")
	case who.Skew.Abs() > access.MaxSkew:
		return hinted(fmt.Errorf("the clock is off by %s", who.Skew), "set it, or turn NTP on")
	}
	return nil
}

func describeWho(w access.Who) string {
	clock := "right"
	if w.Skew.Abs() >= 2*time.Second {
		clock = fmt.Sprintf("behind by %s", w.Skew)
		if w.Skew < 0 {
			clock = fmt.Sprintf("ahead by %s", -w.Skew)
		}
	}
	endpoint := ""
	if w.Endpoint != "" {
		endpoint = ", endpoint " + w.Endpoint
	}
	return fmt.Sprintf("you are %s (account %s; credentials of %s)\nregion %s%s; this clock is %s\n", w.ARN, w.Account, w.Source, w.Region, endpoint, clock)
}

func features(all []awspolicy.Feature) string {
	var out []string
	for _, f := range all {
		out = append(out, string(f))
	}
	return strings.Join(out, ", ")
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	const most = 100
	if r := []rune(line); len(r) > most {
		return string(r[:most]) + "…"
	}
	return line
}
