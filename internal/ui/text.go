package ui

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rebake/rebake/internal/ansi"
	"golang.org/x/text/width"
)

// Clean returns one line of text without anything that drives a terminal.
func Clean(s string) string { return clean(s) }

// clean returns one line of text without anything that drives a terminal: escape
// sequences, control characters, bidirectional overrides, invisible characters
// and broken UTF-8. Of a line that a tool rewrote by carriage returns the last
// writing is kept; a tab becomes a space.
func clean(s string) string {
	s = strings.TrimRight(s, "\r\n")
	if ansi.Plain(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); {
		if n := ansi.Sequence(s[i:]); n > 0 {
			i += n
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == '\r':
			b.Reset()
		case r == '\t', r == '\n':
			b.WriteByte(' ')
		case r == utf8.RuneError && n == 1:
			b.WriteRune(utf8.RuneError)
		case ansi.Unseen(r):
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

// columns is the number of terminal columns that s takes.
func columns(s string) int {
	n := 0
	for _, r := range s {
		n += runeColumns(r)
	}
	return n
}

func runeColumns(r rune) int {
	if r < 0x7f {
		return 1
	}
	if unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf) {
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// cut shortens s to at most max columns, ending in "…" if something is missing.
func cut(s string, max int) string {
	if max <= 0 {
		return ""
	}
	if len(s) <= max || columns(s) <= max {
		return s
	}
	n := 0
	for i, r := range s {
		if n += runeColumns(r); n > max-1 {
			return s[:i] + "…"
		}
	}
	return s
}

// pad fills s up with spaces to n columns.
func pad(s string, n int) string {
	if c := columns(s); c < n {
		return s + strings.Repeat(" ", n-c)
	}
	return s
}
