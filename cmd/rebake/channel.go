package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/lifecycle"
	"github.com/rebake/rebake/internal/ui"
	"github.com/urfave/cli/v2"
)

func reasonFlag() cli.Flag {
	return &cli.StringFlag{Name: "reason", Usage: "`TEXT` that says why, for those who come after"}
}

const refused = "7 refused: the image is revoked"

func tagCommand() *cli.Command {
	return &cli.Command{
		Name: "tag", Usage: "point a moving tag at an image", ArgsUsage: "REF TAG",
		Description: help("Tags move and keep no history; versions never move. A tag that was promoted to is a channel, which only\n`rebake promote` moves.", "rebake tag web:1.4.0 nightly"),
		Action:      with(imagesTag),
	}
}

func promoteCommand() *cli.Command {
	return &cli.Command{
		Name: "promote", Usage: "move a channel to an image, and write down why", ArgsUsage: "REF CHANNEL",
		Flags: []cli.Flag{reasonFlag()},
		Description: help("A channel is a tag with a history: who moved it, when, from which image, why, and what changed between the\ntwo. A revoked image is refused. Promote an older image to go back. Of two promotions at once both are\nwritten down, and the channel holds the last of them.",
			"rebake promote web:1.4.0 stable --reason \"passed the soak\"\nrebake channel history web stable", refused),
		Action: with(promote),
	}
}

func channelCommand() *cli.Command {
	return &cli.Command{
		Name: "channel", Usage: "what channels hold, and held: ls, history",
		Subcommands: []*cli.Command{
			{Name: "ls", Usage: "list the channels of an image name", ArgsUsage: "NAME",
				Description: help("One line for each channel: what it holds, since when, by whom and why.", "rebake channel ls web"), Action: with(channelLs)},
			{Name: "history", Usage: "every move of a channel, newest first", ArgsUsage: "NAME CHANNEL",
				Description: help("Reads it from what is attached to the images of the name that the store has, or has removed.", "rebake channel history web stable"), Action: with(channelHistory)},
		},
	}
}

func revokeCommand() *cli.Command {
	return &cli.Command{
		Name: "revoke", Usage: "say that an image must not be used any more", ArgsUsage: "REF",
		Flags: []cli.Flag{reasonFlag(), &cli.StringFlag{Name: "at", Usage: "`TIME` from which it holds: 2026-12-24, 2026-12-24T18:00:00Z or +72h; now where it is not given"}},
		Description: help("All that was made from the image is revoked with it. It is not promoted, no build begins from it, and fleets\nwith `require: {not_revoked: true}` refuse it; what runs goes on, and `rebake fleet status` says so.",
			"rebake revoke base:20261101.1 --reason CVE-2026-1234"),
		Action: with(revoke),
	}
}

func restoreCommand() *cli.Command {
	return &cli.Command{
		Name: "restore", Usage: "take a revocation back", ArgsUsage: "REF",
		Flags:       []cli.Flag{reasonFlag()},
		Description: help("Of the image that was revoked, and with it of all that was made from that. Both stay on record.", "rebake restore base:20261101.1 --reason \"not affected after all\""),
		Action:      with(restore),
	}
}

// maxReason bounds a reason, in bytes.
const maxReason = 4096

func (s *session) reason() (string, error) {
	why := strings.TrimSpace(s.c.String("reason"))
	switch {
	case why == "":
		return "", usagef("--reason TEXT, for those who come after", "%s needs a reason", s.c.Command.HelpName)
	case len(why) > maxReason:
		return "", usagef("give a link to the rest", "the reason has %d bytes; at most %d are kept", len(why), maxReason)
	}
	return why, nil
}

// evenRemoved finds an image, also one that was removed and left what is known of it.
func (s *session) evenRemoved(text string) (artifact.Image, error) {
	ref, err := artifact.ParseRef(text)
	if err != nil {
		return artifact.Image{}, usagef("for example web:1.4.0, web:stable or web@sha256:…", "%v", err)
	}
	img, _, err := artifact.Known(s.ctx, s.Store, ref)
	return img, err
}

func promote(s *session) error {
	if s.c.NArg() != 2 {
		return usagef("`rebake promote web:1.4.0 stable --reason \"passed the soak\"`", "promote takes a reference and a channel; got %d arguments", s.c.NArg())
	}
	channel := s.c.Args().Get(1)
	if err := artifact.CheckTag(channel); err != nil {
		return usagef("`rebake promote web:1.4.0 stable --reason \"passed the soak\"`", "%v", err)
	}
	why, err := s.reason()
	if err != nil {
		return err
	}
	st, err := lifecycle.In(s.Store)
	if err != nil {
		return err
	}
	_, img, err := s.resolve(s.c.Args().First())
	if err != nil {
		return err
	}
	out, err := lifecycle.Promote(s.ctx, st, lifecycle.Me(), img, channel, why, s.Changes)
	if errors.Is(err, lifecycle.ErrRevoked) {
		return hinted(err, "promote another version; `rebake restore` takes a revocation back")
	}
	if err != nil {
		return err
	}
	name := img.Name + ":" + channel
	if !out.Changed {
		return s.result(out, fmt.Sprintf("%s is %s already, since %s\n", name, img.Version, clock(out.At)))
	}
	from := "nothing"
	if out.From != nil {
		from = out.From.Version
	}
	text := fmt.Sprintf("%s is now %s (%s), was %s\n", name, img.Version, short(img.Digest), from)
	if out.Changes != nil {
		text += "changes  " + out.Changes.Summary + "\n"
	}
	if w := out.Winner; w != nil {
		event.Warnf(s.ctx, "%s promoted %s to %s at the same time, and was the last: the channel holds that", w.By, w.To.Version, name)
	}
	return s.result(out, text)
}

func channelLs(s *session) error {
	of, err := arg(s.c, "the name of images")
	if err != nil {
		return err
	}
	st, err := lifecycle.In(s.Store)
	if err != nil {
		return err
	}
	all, err := lifecycle.Channels(s.ctx, st, of)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return s.result([]lifecycle.Past{}, fmt.Sprintf("%s has no channels yet: `rebake promote %s:VERSION stable --reason TEXT` makes one", of, of))
	}
	l := lifecycle.NewLineage(st, time.Now())
	rows := [][]string{{"CHANNEL", "HOLDS", "SINCE", "BY", "WHY", ""}}
	for _, p := range all {
		holds, state := "nothing", p.Moved
		if p.Holds != nil {
			holds = p.Holds.Version
			img, err := st.Resolve(s.ctx, artifact.Ref{Name: of, Digest: p.Holds.Digest})
			if err != nil {
				return err
			}
			why, err := l.Revoked(s.ctx, img)
			if err != nil {
				why = "perhaps: " + err.Error()
			}
			if why != "" {
				state = strings.TrimPrefix(state+"; revoked: "+why, "; ")
			}
		}
		e := p.Entries[0]
		rows = append(rows, []string{p.Channel, holds, clock(e.At), e.By, lifecycle.OneLine(e.Reason), state})
	}
	return s.result(all, ui.Table(rows))
}

func channelHistory(s *session) error {
	if s.c.NArg() != 2 {
		return usagef("`rebake channel history web stable`", "channel history takes a name and a channel; got %d arguments", s.c.NArg())
	}
	of, channel := s.c.Args().Get(0), s.c.Args().Get(1)
	st, err := lifecycle.In(s.Store)
	if err != nil {
		return err
	}
	p, err := lifecycle.History(s.ctx, st, of, channel)
	if err != nil {
		return err
	}
	for _, b := range p.Broken {
		event.Warnf(s.ctx, "a record that cannot be understood does not count: %s", b)
	}
	if len(p.Entries) == 0 {
		return s.result(p, fmt.Sprintf("%s:%s was never promoted to: `rebake channel ls %s` lists the channels", of, channel, of))
	}
	rows := [][]string{{"#", "WHEN", "TO", "FROM", "BY", "WHY", "CHANGES", ""}}
	for _, e := range p.Entries {
		from, changes := "-", "-"
		if e.From != nil {
			from = e.From.Version
		}
		if e.Changes != nil {
			changes = lifecycle.OneLine(e.Changes.Summary)
		}
		var notes []string
		if e.Back {
			notes = append(notes, "back")
		}
		if e.Gone {
			notes = append(notes, "removed since")
		}
		if e.Note != "" {
			notes = append(notes, e.Note)
		}
		rows = append(rows, []string{fmt.Sprint(e.Serial), clock(e.At), e.To.Version, from, e.By, lifecycle.OneLine(e.Reason), changes, strings.Join(notes, "; ")})
	}
	text := ui.Table(rows)
	if p.Moved != "" {
		text += p.Moved + "\n"
	}
	return s.result(p, text)
}

// when reads --at: a date (midnight, UTC), a time, or so long from now.
func when(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if after, ok := strings.CutPrefix(text, "+"); ok {
		if d, err := time.ParseDuration(after); err == nil {
			return now.Add(d), nil
		}
	}
	for _, form := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(form, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usagef("for example 2026-12-24, 2026-12-24T18:00:00Z or +72h", "--at %q is no time", text)
}

func revoke(s *session) error {
	ref, err := arg(s.c, "an image reference")
	if err != nil {
		return err
	}
	why, err := s.reason()
	if err != nil {
		return err
	}
	from, err := when(s.c.String("at"), time.Now())
	if err != nil {
		return err
	}
	st, err := lifecycle.In(s.Store)
	if err != nil {
		return err
	}
	img, err := s.evenRemoved(ref)
	if err != nil {
		return err
	}
	r, err := lifecycle.Revoke(s.ctx, st, lifecycle.Me(), img, from, why)
	if err != nil {
		return err
	}
	below, err := lifecycle.Descendants(s.ctx, st, img)
	if err != nil {
		return err
	}
	state := "is revoked"
	if from.After(time.Now()) {
		state = "will be revoked from " + clock(from) + " on"
	}
	text := fmt.Sprintf("%s:%s (%s) %s\n", img.Name, img.Version, short(img.Digest), state)
	made := []string{}
	for _, b := range below {
		made = append(made, b.Name+":"+b.Version)
	}
	if len(made) > 0 {
		text += fmt.Sprintf("and with it %d that were made from it: %s\n", len(made), strings.Join(made[:min(10, len(made))], ", "))
	}
	return s.result(map[string]any{"image": img.Name + ":" + img.Version, "digest": img.Digest, "revocation": r, "descendants": made}, text)
}

func restore(s *session) error {
	ref, err := arg(s.c, "an image reference")
	if err != nil {
		return err
	}
	why, err := s.reason()
	if err != nil {
		return err
	}
	st, err := lifecycle.In(s.Store)
	if err != nil {
		return err
	}
	img, err := s.evenRemoved(ref)
	if err != nil {
		return err
	}
	r, err := lifecycle.Restore(s.ctx, st, lifecycle.Me(), img, why)
	if err != nil {
		return err
	}
	return s.result(map[string]any{"image": img.Name + ":" + img.Version, "digest": img.Digest, "revocation": r},
		fmt.Sprintf("%s:%s (%s) is restored\n", img.Name, img.Version, short(img.Digest)))
}
