package summary

import (
	"fmt"
	"strings"
	"time"

	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/inventory"
	"github.com/rebake/rebake/internal/ui"
)

// Text is the summary for a terminal or a mail. What guests said drives no terminal.
func Text(s Summary) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s, exit status %d, %s from %s on %s\n", ui.Clean(title(s)), s.Outcome, s.Exit, seconds(s.Seconds),
		s.Began.Format("2006-01-02 15:04:05 MST"), ui.Clean(s.Host))
	for _, l := range lines(s.Error) {
		fmt.Fprintf(&b, "  %s\n", ui.Clean(l))
	}
	if s.Held != "" {
		fmt.Fprintf(&b, "  held back: %s\n", ui.Clean(s.Held))
	}
	for _, build := range s.Builds {
		b.WriteString("\n" + build.text())
	}
	if d := s.Deployment; d != nil {
		b.WriteString("\n" + ui.Table(append([][]string{{"FLEET " + d.Fleet, d.Verdict}}, d.facts()...)))
		if len(d.Gates) > 0 {
			rows := [][]string{{"GATE", "AT", "VERDICT", "DETAIL"}}
			for _, g := range d.Gates {
				rows = append(rows, []string{g.Gate, g.At, g.Verdict, g.Detail})
			}
			b.WriteString(ui.Table(rows))
		}
	}
	if len(s.Healed) > 0 {
		fmt.Fprintf(&b, "\nSTARTED ANEW  %s\n", ui.Clean(strings.Join(s.Healed, ", ")))
	}
	for i, p := range s.Pruned {
		if i == 0 {
			b.WriteString("\nREMOVED IMAGES\n")
		}
		fmt.Fprintf(&b, "%s  %s\n", ui.Clean(p.Image), ui.Clean(p.Why))
	}
	for i, w := range s.Warnings {
		if i == 0 {
			b.WriteString("\nWARNINGS\n")
		}
		fmt.Fprintf(&b, "%s\n", ui.Clean(w))
	}
	return b.String()
}

func (b Build) text() string {
	var out strings.Builder
	out.WriteString(ui.Table(append([][]string{{"IMAGE " + b.name(), b.Outcome}}, b.facts()...)))
	if len(b.Steps) > 0 {
		rows := [][]string{{"STEP", "", "TIME", "WHY"}}
		for _, s := range b.Steps {
			took, why := stepNotes(s)
			rows = append(rows, []string{s.Step, s.Outcome, took, why})
		}
		out.WriteString(ui.Table(rows))
	}
	if len(b.Tests) > 0 {
		passed, failed := b.counts()
		fmt.Fprintf(&out, "TESTS %d passed, %d failed\n", passed, failed)
		for _, t := range b.Tests {
			if !t.Passed {
				fmt.Fprintf(&out, "failed: %s: %s\n", ui.Clean(t.Test), ui.Clean(t.Message))
			}
		}
	}
	if p := b.Packages; p != nil {
		fmt.Fprintf(&out, "CHANGED SINCE %s: %s\n", ui.Clean(b.Before), ui.Clean(p.Text))
		var rows [][]string
		for _, c := range p.Packages {
			rows = append(rows, []string{c.Name, change(c)})
		}
		out.WriteString(ui.Table(rows))
	}
	return out.String()
}

// facts are what there is to say of a build, name and value.
func (b Build) facts() [][]string {
	rows := [][]string{{"build", b.Build.Build}}
	add := func(name, value string) {
		if value != "" {
			rows = append(rows, []string{name, value})
		}
	}
	add("digest", b.Digest)
	from := b.From
	if b.FromDigest != "" {
		from += " " + short(b.FromDigest)
	}
	add("from", from)
	add("took", seconds(b.Seconds))
	if b.Outcome == event.Baked {
		add("new in the store", ui.Size(b.Stored))
	}
	add("tags", strings.Join(b.Tags, " "))
	for _, w := range b.Why {
		add("why", w)
	}
	add("error", firstLine(b.Error))
	add("log", b.Log)
	return rows
}

// facts are what there is to say of a deployment, name and value.
func (d Deployment) facts() [][]string {
	rows := [][]string{{"image", d.Image + " " + short(d.Digest)}}
	add := func(name, value string) {
		if value != "" {
			rows = append(rows, []string{name, value})
		}
	}
	add("before", d.Before)
	add("serves now", d.Serving)
	add("instances", fmt.Sprint(d.Instances))
	add("reason", d.Reason)
	if d.Writes > 0 {
		add("traffic moved in", fmt.Sprintf("%s, %d writes", seconds(d.Moved), d.Writes))
	}
	if d.Idle > 0 {
		add("old slot idle after", seconds(d.Idle))
	}
	if d.Verdict != "unchanged" {
		add("requests cut", fmt.Sprint(d.Cut))
	}
	if a := d.Answers; a != nil {
		add("answers", fmt.Sprintf("%d of %d failed (5xx), from the new instances", a.Failed, a.Requests))
	}
	if d.KeptUntil != nil {
		add("old kept until", d.KeptUntil.Format("2006-01-02 15:04:05 MST"))
	}
	add("overridden", d.Override)
	add("deployment", d.ID)
	return rows
}

func title(s Summary) string {
	return "rebake " + strings.Join(append([]string{s.Command}, s.Templates...), " ")
}

// stepNotes are how long a step took, and why it was run or what became of it.
func stepNotes(s event.Step) (took, why string) {
	if s.Outcome == event.Cached {
		return "", "ran " + s.Ran.Format("2006-01-02 15:04 MST")
	}
	if s.Error != "" {
		return seconds(s.Seconds), firstLine(s.Error)
	}
	return seconds(s.Seconds), s.Why
}

// change is a package's versions.
func change(c inventory.Change) string {
	switch {
	case c.From == "":
		return c.What + " " + c.To
	case c.To == "":
		return c.What + " " + c.From
	}
	return c.From + " → " + c.To
}

func seconds(s float64) string {
	if s <= 0 {
		return ""
	}
	return ui.Duration(time.Duration(s * float64(time.Second)))
}

func short(digest string) string {
	hex := strings.TrimPrefix(digest, "sha256:")
	return hex[:min(12, len(hex))]
}

func lines(s string) []string {
	if s = strings.TrimSpace(s); s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}

func firstLine(s string) string {
	line, rest, _ := strings.Cut(strings.TrimSpace(s), "\n")
	if strings.HasSuffix(line, ":") && rest != "" { // it only says that a list follows
		next, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
		return line + " " + next
	}
	return line
}
