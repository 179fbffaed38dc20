package template

import (
	"fmt"
	"sort"
	"strings"
	"unicode"

	"github.com/rebake/rebake/internal/spell"
)

// Error is anything wrong with a template or a variable. Error() is several
// lines: where and what, the offending line with a caret, and what to do.
type Error struct {
	File   string // as given on the command line
	Line   int    // 1-based; 0: the file as a whole
	Column int    // 1-based, in characters
	Source string // the offending line, "" where it may not be shown
	Msg    string
	Hint   string
	err    error
}

// Unwrap gives the cause, if there is one.
func (e *Error) Unwrap() error { return e.err }

func (e *Error) Error() string {
	var b strings.Builder
	switch {
	case e.Line > 0:
		fmt.Fprintf(&b, "%s:%d:%d: %s", e.File, e.Line, e.Column, e.Msg)
	case e.File != "":
		fmt.Fprintf(&b, "%s: %s", e.File, e.Msg)
	default:
		b.WriteString(e.Msg)
	}
	if e.Source != "" {
		text, column := window(e.Source, e.Column)
		gutter := fmt.Sprintf("%5d | ", e.Line)
		fmt.Fprintf(&b, "\n%s%s\n%s| %s^", gutter, text, strings.Repeat(" ", len(gutter)-2), strings.Repeat(" ", column))
	}
	if e.Hint != "" {
		b.WriteString("\n  hint: " + e.Hint)
	}
	return b.String()
}

// window cuts a long line around a 1-based column, makes it safe for a
// terminal, and returns how many cells are before the column.
func window(line string, column int) (string, int) {
	const before, width = 60, 110
	runes := []rune(line)
	at := min(max(column-1, 0), len(runes))
	start := max(at-before, 0)
	if len(runes) <= width {
		start = 0
	}
	end := min(start+width, len(runes))
	out := make([]rune, 0, end-start)
	for _, r := range runes[start:end] {
		if r == '\t' || !unicode.IsPrint(r) {
			r = ' '
		}
		out = append(out, r)
	}
	text, pad := string(out), at-start
	if start > 0 {
		text, pad = "…"+text, pad+1
	}
	if end < len(runes) {
		text += "…"
	}
	return text, pad
}

// choices is the hint for a wrong word: the nearest valid one, or all of them.
func choices(what, word string, valid []string) string {
	if len(valid) == 0 {
		return ""
	}
	if n := spell.Nearest(word, valid); n != "" {
		return fmt.Sprintf("did you mean %q?", n)
	}
	valid = append([]string(nil), valid...)
	sort.Strings(valid)
	return "valid " + what + ": " + strings.Join(valid, ", ")
}
