package ui

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/width"
)

// clean returns one line of text without anything that drives a terminal: escape
// sequences, control characters, bidirectional overrides, invisible characters
// and broken UTF-8. Of a line that a tool rewrote by carriage returns the last
// writing is kept; a tab becomes a space.
func clean(s string) string {
	s = strings.TrimRight(s, "\r\n")
	if plainASCII(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == '\r':
			b.Reset()
		case r == 0x1b:
			n = escape(s[i:])
		case r == 0x9b: // CSI as one character
			n += csi(s[i+n:])
		case r == 0x9d, r == 0x90, r == 0x98, r == 0x9e, r == 0x9f:
			n += untilST(s[i+n:])
		case r == '\t', r == '\n':
			b.WriteByte(' ')
		case r == utf8.RuneError && n == 1:
			b.WriteRune(utf8.RuneError)
		case unicode.IsControl(r), unicode.Is(unicode.Cf, r), r == 0x2028, r == 0x2029:
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

func plainASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// escape is the length of the escape sequence at the start of s.
func escape(s string) int {
	if len(s) < 2 {
		return len(s)
	}
	switch s[1] {
	case '[':
		return 2 + csi(s[2:])
	case ']', 'P', 'X', '^', '_':
		return 2 + untilST(s[2:])
	}
	n := 1
	for n < len(s) && s[n] >= 0x20 && s[n] <= 0x2f {
		n++
	}
	if n < len(s) && s[n] >= 0x30 && s[n] <= 0x7e {
		n++
	}
	return n
}

// csi is the length of parameters and final byte of a control sequence.
func csi(s string) int {
	n := 0
	for n < len(s) && s[n] >= 0x20 && s[n] <= 0x3f {
		n++
	}
	if n < len(s) && s[n] >= 0x40 && s[n] <= 0x7e {
		n++
	}
	return n
}

// untilST is the length up to and with BEL or a string terminator; without one
// nothing is swallowed, so that a guest cannot hide what follows.
func untilST(s string) int {
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == 7:
			return i + 1
		case s[i] == 0x1b && i+1 < len(s) && s[i+1] == '\\':
			return i + 2
		case s[i] == 0xc2 && i+1 < len(s) && s[i+1] == 0x9c:
			return i + 2
		}
	}
	return 0
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
