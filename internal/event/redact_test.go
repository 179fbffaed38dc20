package event

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"sync"
	"testing"
)

func redactor(secrets ...string) *Redactor {
	r := &Redactor{}
	r.Add(secrets...)
	return r
}

func TestSecretsAreReplaced(t *testing.T) {
	for name, c := range map[string]struct {
		secrets  []string
		in, want string
	}{
		"none":                        {nil, "text", "text"},
		"empty ones":                  {[]string{"", " ", "\n"}, "a b", "a b"},
		"one":                         {[]string{"hunter2"}, "pw=hunter2.", "pw=‹redacted›."},
		"within a word":               {[]string{"hunter2"}, "xhunter2x", "x‹redacted›x"},
		"twice":                       {[]string{"hunter2"}, "hunter2 hunter2", "‹redacted› ‹redacted›"},
		"added twice":                 {[]string{"hunter2", "hunter2"}, "hunter2", "‹redacted›"},
		"the longer of two":           {[]string{"token", "token-of-the-day"}, "token-of-the-day", "‹redacted›"},
		"the longer of two, reversed": {[]string{"token-of-the-day", "token"}, "token-of-the-day", "‹redacted›"},
		"overlapping":                 {[]string{"abcdef", "efghij"}, "<abcdefghij>", "<‹redacted›>"},
		"overlapping itself":          {[]string{"abab"}, "<ababab>", "<‹redacted›>"},
		"side by side":                {[]string{"abcd"}, "abcdabcd", "‹redacted›‹redacted›"},
		"the mark's own word":         {[]string{"hunter2", "redacted"}, "hunter2 redacted", "‹redacted› ‹redacted›"},
		"space around it":             {[]string{"  hunter2\n"}, "hunter2", "‹redacted›"},
		"not another case":            {[]string{"hunter2"}, "Hunter2", "Hunter2"},
		"lines":                       {[]string{"first line\r\nsecond line\r\n"}, "second line, first line", "‹redacted›, ‹redacted›"},
		"lines as a whole":            {[]string{"first line\nsecond line"}, "«first line\nsecond line»", "«‹redacted›»"},
		"not a brace of lines":        {[]string{"{\n\"key\": 1\n}"}, "{ \"key\": 1 }", "{ ‹redacted› }"},
		"two bytes, a word":           {[]string{"42"}, "pin=42, 42.", "pin=‹redacted›, ‹redacted›."},
		"two bytes, within words":     {[]string{"42"}, "142 421 x42 42x 4 2", "142 421 x42 42x 4 2"},
		"one letter":                  {[]string{"é"}, "é été é", "‹redacted› été ‹redacted›"},
		"two bytes, coloured":         {[]string{"42"}, "\x1b[32m42\x1b[0m", "\x1b[32m‹redacted›\x1b[0m"},
		"coloured in the middle":      {[]string{"hunter2"}, "a hun\x1b[1;31mter\x1b[0m2 b", "a ‹redacted› b"},
		"broken by zero widths":       {[]string{"hunter2"}, "hun\u200bter\x002", "‹redacted›"},
		"with an escape of its own":   {[]string{"a\x1b[1mb and more"}, "is a\x1b[1mb and more.", "is ‹redacted›."},
		"broken UTF-8 around":         {[]string{"hunter2"}, "\xffhunter2\xfe", "\xff‹redacted›\xfe"},
		"broken UTF-8 within":         {[]string{"hun\xffter2"}, "hun\xffter2", "‹redacted›"},
		"next to another alphabet":    {[]string{"пароль"}, "mойпароль数", "mой‹redacted›数"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := redactor(c.secrets...).Clean(c.in); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestTheNilRedactorChangesNothing(t *testing.T) {
	var r *Redactor
	if got := r.Clean("hunter2"); got != "hunter2" || r.longest() != 0 {
		t.Error(got)
	}
}

func TestAnErrorTellsNoSecretAndStaysWhatItIs(t *testing.T) {
	r := redactor("hunter2")
	if r.Error(nil) != nil {
		t.Error("an error out of nothing")
	}
	plain := errors.New("no secret")
	if got := r.Error(plain); got != plain {
		t.Errorf("%#v", got)
	}
	inner := &fs.PathError{Op: "open", Path: "/a/hunter2", Err: fs.ErrNotExist}
	got := r.Error(fmt.Errorf("step: %w", inner))
	var path *fs.PathError
	if !errors.Is(got, fs.ErrNotExist) || !errors.As(got, &path) || got.Error() != "step: open /a/‹redacted›: file does not exist" {
		t.Error(got)
	}
	var none *Redactor
	if none.Error(plain) != plain {
		t.Error("the nil redactor changes an error")
	}
}

func TestQuotedSecretsAreReplaced(t *testing.T) {
	const secret = `it's "5 < 6" & a\b/c?`
	quoted, err := json.Marshal(secret)
	if err != nil {
		t.Fatal(err)
	}
	r := redactor(secret)
	for form, text := range map[string]string{
		"as it is":         secret,
		"JSON":             string(quoted),
		"JSON, plain":      strings.NewReplacer(`\u003c`, "<", `\u0026`, "&").Replace(string(quoted)),
		"%q":               fmt.Sprintf("%q", secret),
		"sh -x":            `'` + strings.ReplaceAll(secret, `'`, `'\''`) + `'`,
		"query":            "https://h/?t=" + url.QueryEscape(secret) + "&x=1",
		"path":             "https://h/" + url.PathEscape(secret) + "/x",
		"base64":           base64.StdEncoding.EncodeToString([]byte(secret)),
		"basic auth":       base64.StdEncoding.EncodeToString([]byte("joe:" + secret)),
		"basic auth, root": base64.StdEncoding.EncodeToString([]byte("root:" + secret + "\n")),
		"base64 in an URL": base64.RawURLEncoding.EncodeToString([]byte("ab" + secret)),
	} {
		got := r.Clean("before " + text + " after")
		if !strings.Contains(got, mark) || !strings.HasPrefix(got, "before ") || !strings.HasSuffix(got, " after") {
			t.Errorf("%s: %q became %q", form, text, got)
		}
		for _, part := range []string{"it's", "a\\b/c", "5 < 6", "5+%3C+6"} {
			if strings.Contains(got, part) {
				t.Errorf("%s: %q is left in %q", form, part, got)
			}
		}
	}
}

func TestBase64OfAShortSecretTouchesNoText(t *testing.T) {
	if got := redactor("abcd").Clean("YWJj"); got != "YWJj" { // what "abcd" begins with in base64
		t.Error(got)
	}
}

func TestRedactorIsUsedByManyAtOnce(t *testing.T) {
	r := redactor("hunter2")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for k := range 100 {
				r.Add(fmt.Sprintf("secret-%d-%d", i, k))
				if got := r.Clean(fmt.Sprintf("hunter2 secret-%d-%d", i, k)); got != "‹redacted› ‹redacted›" {
					t.Error(got)
				}
			}
		})
	}
	wg.Wait()
}

func FuzzCleanLeavesNoSecret(f *testing.F) {
	f.Add("hunter2", "swordfish", "hunter2 and sword\x1b[0mfish", 3)
	f.Add("abab", "babc", "ababababc", 1)
	f.Add("42", "é", "42 é\x1b[3m42", 2)
	f.Add("a\nlong line\n", "\xff\xfe\xfd\xfc", "long line \xff\xfe\xfd\xfc", 5)
	f.Fuzz(func(t *testing.T, one, two, in string, _ int) {
		got := redactor(one, two).Clean(in)
		// What stands between the marks was there before, and holds no secret.
		for _, rest := range strings.Split(got, mark) {
			if !strings.Contains(in, rest) {
				t.Fatalf("%q became %q", in, got)
			}
			seen, _ := visible(rest)
			for _, s := range []string{one, two} {
				if s = strings.TrimSpace(s); len(s) >= anywhere && (strings.Contains(rest, s) || strings.Contains(seen, s)) {
					t.Fatalf("%q is left in %q", s, got)
				}
			}
		}
	})
}

func BenchmarkCleanOfALine(b *testing.B) {
	r := redactor("hunter2-hunter2", "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
	line := strings.Repeat("Unpacking libssl3:amd64 (3.0.11-1~deb12u2) ... ", 3)
	for b.Loop() {
		r.Clean(line)
	}
}
