package ansi

import "testing"

func TestSequence(t *testing.T) {
	for in, want := range map[string]int{
		"":                       0,
		"text":                   0,
		"\x1b":                   1,
		"\x1b[31mx":              5,
		"\x1b[":                  2,
		"\x1b[31":                4,
		"\x1b]0;title\x07x":      10,
		"\x1b]0;title\x1b\\x":    11,
		"\x1b]never ends":        2,
		"\x1bPq#0\x1b\\x":        7,
		"\x1b(Bx":                3,
		"\x1bcx":                 2,
		"\u009b31mx":             5,
		"\u009dtitle\u009cx":     9,
		"\x9b31m":                0, // a broken byte, not a character
		"\x1b[\x1b[31mnested":    2,
		"\u00e9":                 0,
		"\x1b[38;5;208;48;5;16m": 19,
	} {
		if got := Sequence(in); got != want {
			t.Errorf("Sequence(%q) = %d, want %d", in, got, want)
		}
	}
}

func FuzzSequenceStaysWithin(f *testing.F) {
	for _, s := range []string{"", "\x1b[31m", "\x1b]0;t\x07", "\u009b1m", "\x1b", "\xc2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n := Sequence(s); n < 0 || n > len(s) || n == 0 && len(s) > 0 && s[0] == 0x1b {
			t.Fatalf("Sequence(%q) = %d of %d", s, n, len(s))
		}
	})
}
