package ui

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rebake/rebake/internal/event"
)

// screen is a terminal as far as live drives it: it fails on any other sequence.
type screen struct {
	t      *testing.T
	width  int
	rows   [][]rune
	y, x   int
	writes int
}

func (s *screen) Write(p []byte) (int, error) {
	s.writes++
	text := []rune(string(p))
	for i := 0; i < len(text); i++ {
		switch r := text[i]; r {
		case '\r':
			s.x = 0
		case '\n':
			s.y++
		case 0x1b:
			j := i + 2
			for text[j] < '@' || text[j] > '~' {
				j++
			}
			s.control(string(text[i+2:j]), text[j])
			i = j
		default:
			if s.x+runeColumns(r) > s.width {
				s.x = 0
				s.y++
			}
			for len(s.rows) <= s.y {
				s.rows = append(s.rows, nil)
			}
			row := s.rows[s.y]
			for len(row) <= s.x {
				row = append(row, ' ')
			}
			row[s.x] = r
			s.rows[s.y] = row
			s.x++
		}
	}
	return len(p), nil
}

func (s *screen) control(args string, final rune) {
	switch {
	case final == 'A':
		n, err := strconv.Atoi(args)
		if err != nil || s.y-n < 0 {
			s.t.Errorf("cursor up %q from row %d", args, s.y)
			return
		}
		s.y -= n
	case final == 'K':
		if s.y < len(s.rows) {
			s.rows[s.y] = s.rows[s.y][:min(s.x, len(s.rows[s.y]))]
		}
	case final == 'J':
		if s.y < len(s.rows) {
			s.rows = s.rows[:s.y]
		}
	case final == 'm', args == "?2026":
	default:
		s.t.Errorf("unexpected sequence %q%c", args, final)
	}
}

func (s *screen) String() string {
	var b strings.Builder
	for _, r := range s.rows {
		b.WriteString(strings.TrimRight(string(r), " ") + "\n")
	}
	return b.String()
}

func testLive(t *testing.T, width, height int) (*live, *screen) {
	s := &screen{t: t, width: width}
	return newLive(s, func() (int, int) { return s.width, height }, false), s
}

func TestLiveShowsRunningStepsAndEndsWithASummary(t *testing.T) {
	l, s := testLive(t, 80, 24)
	var frames bytes.Buffer
	for i, e := range bake() {
		if err := l.print(e); err != nil {
			t.Fatal(err)
		}
		if err := l.tick(e.Time.Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&frames, "--- %d: %s\n%s", i, e.Kind, s)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&frames, "--- closed\n%s", s)
	golden(t, "live.txt", frames.String())
}

func TestLiveFitsTheScreen(t *testing.T) {
	l, s := testLive(t, 40, 10)
	send := func(e event.Event) { e.Time = zero; _ = l.print(e) }
	send(event.Event{Kind: event.Start, Task: 1, Name: strings.Repeat("数据", 40)})
	for i := uint64(2); i < 60; i++ {
		send(event.Event{Kind: event.Start, Task: i, Parent: 1, Name: fmt.Sprintf("step %d %s", i, strings.Repeat("long ", 20))})
		send(event.Event{Kind: event.Output, Task: i, Text: strings.Repeat("output ", 50)})
		if i%2 == 0 {
			send(event.Event{Kind: event.End, Task: i, Parent: 1})
		}
		if err := l.draw(zero.Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if n := len(s.rows); n > 9 {
			t.Fatalf("%d rows on a screen of 10:\n%s", n, s)
		}
	}
}

func TestLiveFollowsAResize(t *testing.T) {
	l, s := testLive(t, 80, 24)
	for _, e := range []event.Event{
		{Kind: event.Start, Task: 1, Name: "bake", Time: zero},
		{Kind: event.Output, Task: 1, Text: strings.Repeat("x", 200), Time: zero},
	} {
		_ = l.print(e)
	}
	_ = l.draw(zero)
	// The terminal wraps what was written when it becomes narrower.
	whole := string(s.rows[0])
	s.rows, s.width, s.x = nil, 30, 0
	s.y = 0
	fmt.Fprintf(s, "%s\r\n", whole)
	if len(s.rows) != 3 {
		t.Fatalf("the test's screen wrapped to %d rows", len(s.rows))
	}
	_ = l.draw(zero.Add(time.Second))
	if got := s.String(); strings.Count(got, "bake") != 1 || len(s.rows) != 1 {
		t.Errorf("after the resize:\n%s", got)
	}
}

func TestLiveShowsTheLastLinesOfAFailedStepOnly(t *testing.T) {
	l, s := testLive(t, 80, 24)
	_ = l.print(event.Event{Kind: event.Start, Task: 1, Name: "step", Time: zero})
	for i := range 100 {
		_ = l.print(event.Event{Kind: event.Output, Task: 1, Text: fmt.Sprintf("line %d", i), Time: zero})
	}
	_ = l.print(event.Event{Kind: event.End, Task: 1, Name: "step", Err: "first\nsecond", Time: zero})
	_ = l.close()
	got := s.String()
	if strings.Contains(got, "line 69\n") || !strings.Contains(got, "line 70\n") || !strings.Contains(got, "line 99\n  first\n  second\n") {
		t.Errorf("got:\n%s", got)
	}
}

func TestRedrawsAreBounded(t *testing.T) {
	l, s := testLive(t, 80, 24)
	u := start(l, maxQueue, redrawEvery)
	began := time.Now()
	u.Sink()(event.Event{Kind: event.Start, Task: 1, Name: "step", Time: began})
	for range 20000 {
		u.Sink()(event.Event{Kind: event.Output, Task: 1, Text: "noise", Time: began})
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	if most := int(time.Since(began)/redrawEvery) + 2; s.writes > most {
		t.Errorf("%d writes, at most %d allowed", s.writes, most)
	}
}

func TestHoldLeavesTheTerminalToSomebodyElse(t *testing.T) {
	var screen syncBuffer
	u := Live(&screen, size80x24)
	u.Sink()(event.Event{Kind: event.Start, Task: 1, Name: "provision", Time: time.Now()})
	for !strings.Contains(screen.String(), "provision") {
		time.Sleep(time.Millisecond)
	}
	release := u.(Holder).Hold()
	held := screen.String()
	if !strings.HasSuffix(held, "\x1b[1A\x1b[J") {
		t.Errorf("the frame is still there: %q", held)
	}
	u.Sink()(event.Event{Kind: event.Info, Text: "said meanwhile", Time: time.Now()})
	time.Sleep(3 * redrawEvery)
	if got := screen.String(); got != held {
		t.Errorf("drawn while held: %q", got[len(held):])
	}
	release()
	release()
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(screen.String(), "said meanwhile") {
		t.Error("what was sent meanwhile is lost")
	}
	u.(Holder).Hold()() // after the end it is nobody's
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
