// Package ansi recognises what drives a terminal in text that a guest or a tool
// printed: escape sequences, control characters, characters that are not seen.
package ansi

import (
	"unicode"
	"unicode/utf8"
)

// Sequence is the length of the escape sequence at the start of s, 0 if s does
// not start with one. Of a sequence that does not end only the introducer
// counts, so that nothing can hide what follows it.
func Sequence(s string) int {
	r, n := utf8.DecodeRuneInString(s)
	switch r {
	case 0x1b:
		return escape(s)
	case 0x9b: // CSI as one character
		return n + csi(s[n:])
	case 0x9d, 0x90, 0x98, 0x9e, 0x9f: // OSC, DCS, SOS, PM, APC
		return n + untilST(s[n:])
	}
	return 0
}

// Unseen tells of a rune other than tab, line feed and carriage return that a
// terminal does not show: controls, bidirectional overrides, zero widths.
func Unseen(r rune) bool {
	switch r {
	case '\t', '\n', '\r':
		return false
	case 0x2028, 0x2029:
		return true
	}
	return unicode.IsControl(r) || unicode.Is(unicode.Cf, r)
}

// Plain tells that s is printable ASCII alone.
func Plain(s string) bool {
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

// untilST is the length up to and with BEL or a string terminator, 0 without one.
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
