package ui

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestCleanLeavesNothingThatDrivesATerminal(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                "plain",
		"a\tb":                 "a b",
		"10%\r20%\r30%":        "30%",
		"line\r\n":             "line",
		"\x1b[1;31mred\x1b[0m": "red",
		"\x1b]0;title\x07x":    "x",
		"\x1b]0;title\x1b\\x":  "x",
		"\x1b]unterminated":    "unterminated",
		"\x1bPq#0\x1b\\x":      "x",
		"\x1b(Bx\x1b":          "x",
		"\u009b31mred":         "red",
		"\x9b31m":              "\ufffd31m",
		"bell\x07\x00\x7f":     "bell",
		"user\u202egnp.exe":    "usergnp.exe",
		"zero\u200bwidth":      "zerowidth",
		"größer 数据":            "größer 数据",
		"\x1b[\x1b[31mnested":  "nested",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestCutKeepsToTheColumns(t *testing.T) {
	for _, c := range []struct {
		in   string
		max  int
		want string
	}{
		{"abc", 3, "abc"}, {"abcd", 3, "ab…"}, {"数据库", 6, "数据库"}, {"数据库", 5, "数据…"},
		{"数据库", 4, "数…"}, {"e\u0301e\u0301", 2, "e\u0301e\u0301"}, {"abc", 0, ""}, {"abc", 1, "…"},
	} {
		if got := cut(c.in, c.max); got != c.want {
			t.Errorf("cut(%q, %d) = %q, want %q", c.in, c.max, got, c.want)
		}
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"", "\x1b[31mx\x1b[0m", "\x1b]8;;http://x\x07", "\xc2\x9b1m", "\xff\xfe", "a\rb\tc", "\u202e数"} {
		f.Add(s, 10)
	}
	f.Fuzz(func(t *testing.T, s string, n int) {
		got := clean(s)
		if !utf8.ValidString(got) {
			t.Errorf("clean(%q) = %q: not UTF-8", s, got)
		}
		if i := strings.IndexFunc(got, func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }); i >= 0 {
			t.Errorf("clean(%q) = %q: a control character at %d", s, got, i)
		}
		if n %= 200; n > 0 {
			if c := columns(cut(got, n)); c > n {
				t.Errorf("cut(%q, %d) takes %d columns", got, n, c)
			}
		}
	})
}
