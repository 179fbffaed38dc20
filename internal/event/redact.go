package event

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/rebake/rebake/internal/ansi"
)

// Redactor replaces secrets in everything that is told. The nil one changes
// nothing, the zero one is ready for use, by many goroutines.
type Redactor struct {
	mu    sync.RWMutex
	forms []form
	known map[string]bool
	max   int // bytes of the longest form
}

// form is one way in which a secret is written.
type form struct {
	text string
	word bool // only where no letter or digit touches it
}

const (
	mark     = "‹redacted›"
	anywhere = 4 // bytes from which a secret is replaced within words too
)

// Add registers secrets, each as it is and as JSON, a shell, an URL and base64
// write it. Each line of 4 bytes and more of a secret is a secret too. A secret
// under 4 bytes is replaced only as a word of its own: everywhere it would blank
// out ordinary text. Space around a secret does not count.
func (r *Redactor) Add(values ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range values {
		v = strings.TrimSpace(v)
		if v == "" {
			continue
		}
		if len(v) < anywhere {
			r.add(form{text: v, word: true})
			continue
		}
		r.written(v)
		for _, f := range base64s(v) {
			r.add(form{text: f})
		}
		for line := range strings.SplitSeq(v, "\n") {
			if line = strings.TrimSpace(line); len(line) >= anywhere && len(line) < len(v) {
				r.written(line)
			}
		}
	}
}

// written adds a secret in the forms in which programs quote it.
func (r *Redactor) written(v string) {
	for _, f := range []string{v, strings.ReplaceAll(v, `'`, `'\''`), url.QueryEscape(v), url.PathEscape(v), quoted(v, true), quoted(v, false)} {
		r.add(form{text: f})
	}
}

func (r *Redactor) add(f form) {
	if r.known[f.text] {
		return
	}
	if r.known == nil {
		r.known = map[string]bool{}
	}
	r.known[f.text] = true
	r.forms = append(r.forms, f)
	r.max = max(r.max, len(f.text))
}

// quoted is v inside a JSON string; %q of Go quotes ordinary text alike.
func quoted(v string, html bool) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(html)
	if err := enc.Encode(v); err != nil {
		return v
	}
	return strings.TrimSuffix(strings.TrimPrefix(strings.TrimRight(b.String(), "\n"), `"`), `"`)
}

// base64s are the characters that stand for v wherever v begins in what was
// encoded ("user:secret"), in both alphabets.
func base64s(v string) []string {
	var out []string
	for before := range 3 {
		raw := append(make([]byte, before, before+len(v)), v...)
		from, to := (8*before+5)/6, 8*len(raw)/6
		if to-from < 8 { // too little to be told from ordinary text
			continue
		}
		out = append(out, base64.RawStdEncoding.EncodeToString(raw)[from:to], base64.RawURLEncoding.EncodeToString(raw)[from:to])
	}
	return out
}

func (r *Redactor) longest() int {
	if r == nil {
		return 0
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.max
}

// Clean returns s with every secret as "‹redacted›", also one that escape
// sequences or invisible characters interrupt.
func (r *Redactor) Clean(s string) string {
	spans := r.spans(s)
	if len(spans) == 0 {
		return s
	}
	var b strings.Builder
	at := 0
	for _, sp := range spans {
		b.WriteString(s[at:sp.start])
		b.WriteString(mark)
		at = sp.end
	}
	b.WriteString(s[at:])
	return b.String()
}

// Error returns err with its secrets replaced in what it says; errors.Is and
// errors.As see through it.
func (r *Redactor) Error(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if clean := r.Clean(text); clean != text {
		return &cleaned{err, clean}
	}
	return err
}

type cleaned struct {
	err  error
	text string
}

func (c *cleaned) Error() string { return c.text }
func (c *cleaned) Unwrap() error { return c.err }

type span struct{ start, end int }

// spans are the places of secrets in s, in order; those that overlap are one.
func (r *Redactor) spans(s string) []span {
	if r == nil || s == "" {
		return nil
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if len(r.forms) == 0 {
		return nil
	}
	found := r.find(s)
	if seen, at := visible(s); at != nil {
		for _, sp := range r.find(seen) {
			found = append(found, span{at[sp.start], at[sp.end-1] + 1})
		}
	}
	slices.SortFunc(found, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	var out []span
	for _, sp := range found {
		if last := len(out) - 1; last >= 0 && sp.start < out[last].end {
			out[last].end = max(out[last].end, sp.end)
		} else {
			out = append(out, sp)
		}
	}
	return out
}

func (r *Redactor) find(s string) []span {
	var out []span
	for _, f := range r.forms {
		for from := 0; from < len(s); {
			i := strings.Index(s[from:], f.text)
			if i < 0 {
				break
			}
			i += from
			end := i + len(f.text)
			from = i + 1 // the next may overlap this one
			if f.word && (wordBefore(s[:i]) || wordAfter(s[end:])) {
				continue
			}
			if last := len(out) - 1; last >= 0 && out[last].start < i && i < out[last].end && end > out[last].end {
				out[last].end = end
			} else {
				out = append(out, span{i, end})
			}
		}
	}
	return out
}

func wordBefore(s string) bool {
	r, n := utf8.DecodeLastRuneInString(s)
	return n > 0 && wordy(r)
}

func wordAfter(s string) bool {
	r, n := utf8.DecodeRuneInString(s)
	return n > 0 && wordy(r)
}

func wordy(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }

// visible is s as a reader sees it, and where each of its bytes is in s; nil if
// all of s is seen.
func visible(s string) (string, []int) {
	if ansi.Plain(s) {
		return s, nil
	}
	var b strings.Builder
	at := make([]int, 0, len(s))
	for i := 0; i < len(s); {
		if n := ansi.Sequence(s[i:]); n > 0 {
			i += n
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if !ansi.Unseen(r) {
			b.WriteString(s[i : i+n])
			for k := range n {
				at = append(at, i+k)
			}
		}
		i += n
	}
	if b.Len() == len(s) {
		return s, nil
	}
	return b.String(), at
}
