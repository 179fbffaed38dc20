package ui

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rebake/rebake/internal/event"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test ./internal/ui -update writes it anew); got:\n%s", path, got)
	}
}

var zero = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// bake is what a build tells, with a hostile guest and a step that fails.
func bake() []event.Event {
	at := func(ms int, e event.Event) event.Event {
		e.Time = zero.Add(time.Duration(ms) * time.Millisecond)
		return e
	}
	return []event.Event{
		at(0, event.Event{Kind: event.Start, Task: 1, Name: "bake web"}),
		at(0, event.Event{Kind: event.Start, Task: 2, Parent: 1, Name: "boot"}),
		at(10, event.Event{Kind: event.Wait, Task: 2, Name: "boot", Text: "SSH on 127.0.0.1:2222"}),
		at(1000, event.Event{Kind: event.Progress, Task: 2, Name: "boot", Done: 0, Total: 64 << 20}),
		at(2000, event.Event{Kind: event.Progress, Task: 2, Name: "boot", Done: 16 << 20, Total: 64 << 20}),
		at(12000, event.Event{Kind: event.Progress, Task: 2, Name: "boot", Done: 48 << 20, Total: 64 << 20}),
		at(13500, event.Event{Kind: event.End, Task: 2, Parent: 1, Name: "boot", Seconds: 13.5}),
		at(13500, event.Event{Kind: event.Start, Task: 3, Parent: 1, Name: "provision 1: shell"}),
		at(13600, event.Event{Kind: event.Output, Task: 3, Name: "provision 1: shell", Text: "\x1b[31mred\x1b[0m \x1b]0;title\x07evil\x1b[2J\x9b"}),
		at(13700, event.Event{Kind: event.Info, Task: 3, Name: "provision 1: shell", Text: "attempt 2"}),
		at(13800, event.Event{Kind: event.Warning, Text: "disk is nearly full"}),
		at(14000, event.Event{Kind: event.End, Task: 3, Parent: 1, Name: "provision 1: shell", Seconds: 0.5, Err: "exit status 3"}),
		at(14100, event.Event{Kind: event.End, Task: 1, Name: "bake web", Seconds: 14.1, Err: "provision 1: shell: exit status 3"}),
	}
}

func run(t *testing.T, u UI, events []event.Event) {
	t.Helper()
	for _, e := range events {
		u.Sink()(e)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestLinesOfTheReadersThatKeepNoScreen(t *testing.T) {
	for name, open := range map[string]func(*bytes.Buffer) UI{
		"plain.txt": func(b *bytes.Buffer) UI { return New(ModePlain, false, b) },
		"debug.txt": func(b *bytes.Buffer) UI { return New(ModePlain, true, b) },
		"json.txt":  func(b *bytes.Buffer) UI { return New(ModeJSON, false, b) },
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			run(t, open(&b), bake())
			golden(t, name, b.String())
			if strings.ContainsAny(b.String(), "\x1b\x07\r") {
				t.Error("a control character got through")
			}
		})
	}
}

func TestJSONIsOneObjectALine(t *testing.T) {
	var b bytes.Buffer
	run(t, JSON(&b), bake())
	dec := json.NewDecoder(&b)
	for i, want := range bake() {
		var got event.Event
		if err := dec.Decode(&got); err != nil {
			t.Fatalf("object %d: %v", i, err)
		}
		if got.Kind != want.Kind || got.Task != want.Task || !got.Time.Equal(want.Time) {
			t.Errorf("object %d is %+v, want %+v", i, got, want)
		}
	}
}

// blocked does not write until it may.
type blocked struct {
	may chan struct{}
	b   bytes.Buffer
}

func (w *blocked) Write(p []byte) (int, error) {
	<-w.may
	return w.b.Write(p)
}

func TestASlowReaderLosesOutputButNoStartOrEnd(t *testing.T) {
	w := &blocked{may: make(chan struct{})}
	u := start(&plain{w: w}, 50, 0)
	const tasks, lines = 40, 100
	var wg sync.WaitGroup
	for i := uint64(1); i <= tasks; i++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			name := fmt.Sprintf("task%d", i)
			u.Sink()(event.Event{Kind: event.Start, Task: i, Name: name})
			for range lines {
				u.Sink()(event.Event{Kind: event.Output, Task: i, Name: name, Text: "noise"})
			}
			u.Sink()(event.Event{Kind: event.Warning, Task: i, Name: name, Text: "careful"})
			u.Sink()(event.Event{Kind: event.End, Task: i, Name: name})
		}()
	}
	wg.Wait() // hangs if a sender is blocked by the reader
	close(w.may)
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	got := w.b.String()
	for _, want := range []string{": started\n", ": done in ", "warning: careful\n"} {
		if n := strings.Count(got, want); n != tasks {
			t.Errorf("%d of %d lines %q", n, tasks, want)
		}
	}
	if n := strings.Count(got, "noise"); n >= tasks*lines {
		t.Errorf("nothing was dropped of %d lines: the queue is not bounded", n)
	}
	if !strings.Contains(got, "output lines are not shown") {
		t.Error("no word of the lost lines")
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("disk is full") }

func TestCloseTellsThatWritingFailedEveryTime(t *testing.T) {
	u := Plain(failing{})
	u.Sink()(event.Event{Kind: event.Start, Task: 1, Name: "x"})
	for range 2 {
		if err := u.Close(); err == nil || err.Error() != "disk is full" {
			t.Errorf("Close: %v", err)
		}
	}
	u.Sink()(event.Event{Kind: event.Start, Task: 2, Name: "late"}) // must not panic
}

func TestTables(t *testing.T) {
	got := Table([][]string{{"IMAGE", "TAGS", "SIZE"}, {"web", "nightly,stable", "12 MiB"}, {"数据", "", "\x1b[2Jx"}})
	want := "IMAGE  TAGS            SIZE\nweb    nightly,stable  12 MiB\n数据                   x\n"
	if got != want {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

func TestSizesAndDurations(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 10200: "10 KiB", 1<<20 - 1: "1.0 MiB", 5 << 30: "5.0 GiB", -2048: "-2.0 KiB", 1<<63 - 1: "8.0 EiB"} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-1: "0s", 12 * time.Millisecond: "12ms", 4200 * time.Millisecond: "4.2s", 59990 * time.Millisecond: "1m00s", 185 * time.Second: "3m05s", 130 * time.Minute: "2h10m"} {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%d) = %q, want %q", d, got, want)
		}
	}
}

func TestErrorsEndWithWhatToDoNext(t *testing.T) {
	var b bytes.Buffer
	Error(&b, errors.New("web.yaml:3:1: unknown key\n\tbiuld:\x1b[2J"), "did you mean build?")
	if want := "error: web.yaml:3:1: unknown key\n    biuld:\n  next: did you mean build?\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestPlainLinesSayWhichOfSeveralTheyAreOf(t *testing.T) {
	var b bytes.Buffer
	u := Plain(&b)
	for _, e := range []event.Event{
		{Kind: event.Start, Task: 1, Name: "bake a"},
		{Kind: event.Start, Task: 2, Parent: 1, Name: "boot"},
		{Kind: event.Start, Task: 3, Name: "bake b"},
		{Kind: event.Start, Task: 4, Parent: 3, Name: "boot"},
		{Kind: event.Start, Task: 5, Parent: 4, Name: "deep"},
		{Kind: event.Start, Task: 6, Name: "alone"},
		{Kind: event.Output, Task: 4, Name: "boot", Text: "hello"},
		{Kind: event.End, Task: 1, Name: "bake a"},
		{Kind: event.End, Task: 4, Parent: 3, Name: "boot"},
	} {
		e.Time = time.Unix(1000, 0)
		u.Sink()(e)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	want := []string{"bake a: started", "boot: started", "bake b: started", "bake b › boot: started", "bake b › deep: started",
		"alone: started", "bake b › boot | hello", "bake a: done in 0ms", "boot: done in 0ms"}
	for i, line := range strings.Split(strings.TrimSpace(b.String()), "\n") {
		if got := strings.TrimSpace(line)[len("0.0s  "):]; i >= len(want) || got != want[i] {
			t.Errorf("line %d is %q", i, got)
		}
	}
}
