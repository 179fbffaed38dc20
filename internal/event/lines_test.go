package event

import (
	"context"
	"fmt"
	"io"
	"math/rand"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// recorder keeps what it is sent.
type recorder struct {
	mu     sync.Mutex
	events []Event
}

func (r *recorder) sink(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func (r *recorder) texts() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, e := range r.events {
		out = append(out, e.Text)
	}
	return out
}

// written is what a writer makes of pieces.
func written(t testing.TB, red *Redactor, pieces ...string) []string {
	t.Helper()
	var r recorder
	w := Writer(With(context.Background(), r.sink, red))
	for _, p := range pieces {
		if n, err := io.WriteString(w, p); n != len(p) || err != nil {
			t.Fatalf("wrote %d of %d: %v", n, len(p), err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, e := range r.events {
		if e.Kind != Output {
			t.Errorf("a %s event", e.Kind)
		}
	}
	return r.texts()
}

func TestLines(t *testing.T) {
	for name, c := range map[string]struct{ in, want []string }{
		"nothing":                   {nil, nil},
		"a line":                    {[]string{"a\n"}, []string{"a"}},
		"two in one write":          {[]string{"a\nb\n"}, []string{"a", "b"}},
		"one in many writes":        {[]string{"a", "b", "", "c\n"}, []string{"abc"}},
		"an unfinished last one":    {[]string{"a\nb"}, []string{"a", "b"}},
		"empty lines":               {[]string{"\n\na\n"}, []string{"", "", "a"}},
		"CR LF":                     {[]string{"a\r\nb\r\n"}, []string{"a", "b"}},
		"CR LF over writes":         {[]string{"a\r", "\nb\r", "\n"}, []string{"a", "b"}},
		"CR CR LF":                  {[]string{"a\r\r", "\r\nb\n"}, []string{"a", "b"}},
		"an unfinished CR":          {[]string{"a\r"}, []string{"a"}},
		"broken UTF-8":              {[]string{"a\xff\xc3\n", "\xa9\n"}, []string{"a\xff\xc3", "\xa9"}},
		"a rune over writes":        {[]string{"\xc3", "\xa9\n"}, []string{"é"}},
		"escapes go to the reader":  {[]string{"\x1b[1ma\x1b[0m\n"}, []string{"\x1b[1ma\x1b[0m"}},
		"NUL":                       {[]string{"a\x00b\n"}, []string{"a\x00b"}},
		"rewritten, first and last": {[]string{"10%\r", "20%\r30%", "\r99%\r100%\nend\n"}, []string{"10%", "100%", "end"}},
		"led by CR":                 {[]string{"\r\ra\n"}, []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(c.want, written(t, nil, c.in...)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestARewrittenLineIsToldOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		w := Writer(With(t.Context(), r.sink, nil))
		for i := range 100 { // 10 a second
			fmt.Fprintf(w, "%d%%\r", i)
			time.Sleep(100 * time.Millisecond)
		}
		fmt.Fprint(w, "100%\n")
		want := []string{"0%", "10%", "20%", "30%", "40%", "50%", "60%", "70%", "80%", "90%", "100%"}
		if d := cmp.Diff(want, r.texts()); d != "" {
			t.Error(d)
		}
	})
}

func TestALongLineIsSeveralEventsInBoundedMemory(t *testing.T) {
	for name, unit := range map[string]string{"ascii": "x", "runes": "数", "CRs": "\r", "escapes": "\x1b[1m", "broken": "\xb0"} {
		t.Run(name, func(t *testing.T) {
			var got strings.Builder
			longest := 0
			w := Writer(With(t.Context(), func(e Event) {
				longest = max(longest, len(e.Text))
				got.WriteString(e.Text)
				if name == "runes" && !utf8.ValidString(e.Text) {
					t.Error("cut within a character")
				}
			}, redactor("hunter2"))).(*lines)
			in := strings.Repeat(unit, 100<<10)
			for i := 0; i < len(in); i += 1000 {
				fmt.Fprint(w, in[i:min(len(in), i+1000)])
				if cap(w.buf) > 4*maxLine {
					t.Fatalf("%d bytes are kept", cap(w.buf))
				}
			}
			fmt.Fprint(w, in)
			if cap(w.buf) > 4*maxLine {
				t.Fatalf("%d bytes are kept after a large write", cap(w.buf))
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if longest > maxLine+64 {
				t.Errorf("an event of %d bytes", longest)
			}
			if unit != "\r" && got.String() != in+in {
				t.Errorf("%d bytes came of %d", got.Len(), 2*len(in))
			}
		})
	}
}

func TestNoSecretIsCutOpen(t *testing.T) {
	const secret = "correct horse battery staple"
	red := redactor(secret)
	for _, step := range []int{1, 7, 1000, 1 << 20} {
		for shift := range len(secret) + 2 {
			in := strings.Repeat("x", maxLine-len(secret)-1+shift) + secret + strings.Repeat("y", maxLine) + "\n"
			var pieces []string
			for i := 0; i < len(in); i += step {
				pieces = append(pieces, in[i:min(len(in), i+step)])
			}
			if step == 1 { // the interesting bytes one by one
				pieces = append([]string{in[:maxLine-100]}, strings.Split(in[maxLine-100:], "")...)
			}
			all := strings.Join(written(t, red, pieces...), "")
			if want := strings.Replace(in[:len(in)-1], secret, mark, 1); all != want {
				t.Fatalf("writes of %d, shifted by %d: %q", step, shift, strings.Trim(all, "xy"))
			}
		}
	}
}

func TestWritersOfOneTaskMayBeUsedByMany(t *testing.T) {
	var r recorder
	w := Writer(With(t.Context(), r.sink, nil))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				fmt.Fprint(w, "whole line\n")
			}
		})
	}
	wg.Wait()
	for _, s := range r.texts() {
		if s != "whole line" {
			t.Fatalf("%q", s)
		}
	}
	if len(r.events) != 800 {
		t.Error(len(r.events))
	}
}

func FuzzWriterSaysTheSameHoweverItIsFed(f *testing.F) {
	f.Add("a\r\nb\rc\n\n", int64(1))
	f.Add(strings.Repeat("x", maxLine+3)+"hunter2\n", int64(2))
	f.Add("\r\r\r\nhunter2\xff\x1b[0m", int64(3))
	f.Fuzz(func(t *testing.T, in string, seed int64) {
		if len(in) > 1<<17 {
			return
		}
		red := redactor("hunter2")
		whole := written(t, red, in)
		rnd := rand.New(rand.NewSource(seed))
		var pieces []string
		for rest := in; rest != ""; {
			n := 1 + rnd.Intn(len(rest))
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		if d := cmp.Diff(whole, written(t, red, pieces...)); d != "" {
			t.Fatal(d)
		}
		for _, l := range whole {
			if strings.Contains(l, "\n") || strings.Contains(l, "hunter2") {
				t.Fatalf("%q", l)
			}
		}
	})
}
