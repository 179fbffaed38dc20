package summary

import (
	"fmt"
	"html"
	"regexp"
	"strings"

	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/ui"
)

// Markdown is the summary in GitHub's Markdown. Text of guests, of templates and
// of git is in it as text: no character of it makes a link, a table, HTML or
// anything else.
func Markdown(s Summary) string {
	var b strings.Builder
	fmt.Fprintf(&b, "## %s: %s\n\n", md(title(s)), md(s.Outcome))
	fmt.Fprintf(&b, "Exit status %d, %s from %s on %s, rebake %s.\n", s.Exit, seconds(s.Seconds), s.Began.Format("2006-01-02 15:04:05 MST"), md(s.Host), md(s.Rebake))
	if s.Error != "" {
		b.WriteString("\n" + pre(s.Error))
	}
	if s.Held != "" {
		fmt.Fprintf(&b, "\n**Held back:** %s\n", md(s.Held))
	}
	for _, build := range s.Builds {
		b.WriteString("\n" + build.markdown())
	}
	if d := s.Deployment; d != nil {
		fmt.Fprintf(&b, "\n### Fleet %s: %s\n\n", md(d.Fleet), md(d.Verdict))
		b.WriteString(table([]string{"", ""}, d.facts()))
		if len(d.Gates) > 0 {
			var rows [][]string
			for _, g := range d.Gates {
				rows = append(rows, []string{g.Gate, g.At, g.Verdict, g.Detail})
			}
			b.WriteString("\n" + table([]string{"Gate", "At", "Verdict", "Detail"}, rows))
		}
	}
	if len(s.Healed) > 0 {
		fmt.Fprintf(&b, "\n**Dead instances, started anew:** %s\n", md(strings.Join(s.Healed, ", ")))
	}
	if len(s.Pruned) > 0 {
		var rows [][]string
		for _, p := range s.Pruned {
			rows = append(rows, []string{p.Image, p.Why})
		}
		b.WriteString("\n### Removed images\n\n" + table([]string{"Image", "Why"}, rows))
	}
	if len(s.Warnings) > 0 {
		b.WriteString("\n### Warnings\n\n")
		for _, w := range s.Warnings {
			fmt.Fprintf(&b, "- %s\n", listed.ReplaceAllString(md(w), `$1\.`))
		}
	}
	return b.String()
}

func (b Build) markdown() string {
	var out strings.Builder
	fmt.Fprintf(&out, "### Image %s: %s\n\n", md(b.name()), md(b.Outcome))
	out.WriteString(table([]string{"", ""}, b.facts()))
	if len(b.Steps) > 0 {
		var rows [][]string
		for _, s := range b.Steps {
			took, why := stepNotes(s)
			rows = append(rows, []string{s.Step, s.Outcome, took, why})
		}
		out.WriteString("\n" + table([]string{"Step", "", "Time", "Why"}, rows))
	}
	out.WriteString(testsMarkdown(b))
	if p := b.Packages; p != nil {
		fmt.Fprintf(&out, "\n**Changed since %s:** %s\n", md(b.Before), md(p.Text))
		var rows [][]string
		for _, c := range p.Packages {
			rows = append(rows, []string{c.Name, change(c)})
		}
		if len(rows) > 0 {
			out.WriteString("\n" + details("Packages", table([]string{"Package", "Version"}, rows)))
		}
	}
	return out.String()
}

func testsMarkdown(b Build) string {
	if len(b.Tests) == 0 {
		return ""
	}
	passed, failed := b.counts()
	row := func(t event.Test) []string { return []string{t.Test, seconds(t.Seconds), t.Message} }
	var good, bad [][]string
	for _, t := range b.Tests {
		if t.Passed {
			good = append(good, row(t))
		} else {
			bad = append(bad, row(t))
		}
	}
	text := fmt.Sprintf("\n**Tests:** %d passed, %d failed\n", passed, failed)
	if len(bad) > 0 {
		text += "\n" + table([]string{"Failed", "Time", "What it found"}, bad)
	}
	if len(good) > 0 {
		text += "\n" + details("Passed", table([]string{"Passed", "Time", ""}, good))
	}
	return text
}

// details folds a part up.
func details(name, text string) string {
	return fmt.Sprintf("<details><summary>%s</summary>\n\n%s\n</details>\n", html.EscapeString(name), text)
}

// table is a table of GitHub's Markdown; every cell is text.
func table(head []string, rows [][]string) string {
	var b strings.Builder
	line := func(cells []string) {
		for i := range head {
			cell := ""
			if i < len(cells) {
				cell = md(cells[i])
			}
			b.WriteString("| " + cell + " ")
		}
		b.WriteString("|\n")
	}
	line(head)
	b.WriteString(strings.Repeat("|---", len(head)) + "|\n")
	for _, r := range rows {
		line(r)
	}
	return b.String()
}

// md is one line of text as text: what Markdown or HTML could take for something
// else is escaped, and nothing else, so that the source can be read too.
func md(s string) string {
	var b strings.Builder
	for _, r := range strings.Join(strings.Fields(ui.Clean(strings.ReplaceAll(s, "\n", " "))), " ") {
		switch r {
		case '<':
			b.WriteString("&lt;")
		case '>':
			b.WriteString("&gt;")
		case '&':
			b.WriteString("&amp;")
		case '@', '$': // a backslash keeps them neither from being an address nor mathematics
			fmt.Fprintf(&b, "&#%d;", r)
		case '\\', '`', '*', '_', '{', '}', '[', ']', '(', ')', '#', '+', '-', '!', '|', '~', '=':
			b.WriteString("\\" + string(r))
		default:
			b.WriteRune(r)
		}
	}
	return unlinked.Replace(b.String())
}

// Addresses of pages become links by themselves, and a number with a dot a list
// where a line may begin.
var (
	unlinked = strings.NewReplacer("://", `\://`, "www.", `www\.`, "WWW.", `WWW\.`)
	listed   = regexp.MustCompile(`^(\d+)\.`)
)

// pre is text on several lines, as it is.
func pre(s string) string {
	var out []string
	for _, l := range lines(s) {
		out = append(out, html.EscapeString(ui.Clean(strings.ReplaceAll(l, "\t", "    "))))
	}
	return "<pre>\n" + strings.Join(out, "\n") + "\n</pre>\n"
}
