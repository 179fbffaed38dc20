package ui

import (
	"bytes"
	"io"
	"os"
	"strings"
	"time"

	"github.com/rebake/rebake/internal/event"
)

const (
	redrawEvery = 100 * time.Millisecond
	keptLines   = 30 // of output, shown when a task fails
	indent      = 2
)

// Live returns a UI that redraws the running steps on a terminal, ten times a
// second at most, and leaves a static summary of each finished tree of steps
// above them. size is asked at each redraw, so that a resized terminal is
// followed. Colours are left out where NO_COLOR is set.
func Live(w io.Writer, size func() (width, height int)) UI {
	return start(newLive(w, size, os.Getenv("NO_COLOR") == ""), maxQueue, redrawEvery)
}

func newLive(w io.Writer, size func() (int, int), colour bool) *live {
	return &live{w: w, size: size, paint: paint(colour), tasks: map[uint64]*task{}}
}

// task is one step and what is known of it.
type task struct {
	id       uint64
	name     string
	parent   *task
	children []*task

	began   time.Time
	seconds float64
	ended   bool
	err     string

	wait string   // what it waits for
	last string   // its last line of output
	tail []string // its last lines of output
	bar  meter
}

// live holds the trees that still run, and what the last frame put on the screen.
type live struct {
	w     io.Writer
	size  func() (int, int)
	paint paint

	tasks  map[uint64]*task
	roots  []*task
	above  []string // lines to leave above the next frame
	frame  []string // lines on the screen, as they were written
	spin   int
	closed bool
}

func (l *live) print(e event.Event) error {
	if e.Kind == event.Reported { // for programs
		return nil
	}
	t := l.tasks[e.Task]
	if t == nil && e.Task != 0 && e.Kind != event.Info && e.Kind != event.Warning {
		if e.Kind == event.End {
			return nil
		}
		t = l.add(e)
	}
	switch e.Kind {
	case event.Output:
		switch text := clean(e.Text); {
		case text == "":
		case t == nil:
			l.above = append(l.above, text)
		default:
			t.output(text)
		}
	case event.Wait:
		if t != nil {
			t.wait, t.last = clean(e.Text), ""
		}
	case event.Progress:
		if t != nil {
			t.bar.add(e.Time, e.Done, e.Total)
		}
	case event.Info:
		l.above = append(l.above, l.paint.dim("  "+prefixed(clean(e.Name), "", clean(e.Text))))
	case event.Warning:
		l.above = append(l.above, l.paint.yellow("! "+prefixed(clean(e.Name), "", clean(e.Text))))
	case event.End:
		t.ended, t.seconds, t.err = true, e.Seconds, e.Err
		t.wait, t.last = "", ""
		if t.err == "" {
			t.tail = nil
		}
		if t.parent == nil {
			l.finish(t)
		}
	}
	return nil
}

func (l *live) add(e event.Event) *task {
	t := &task{id: e.Task, name: clean(e.Name), began: e.Time, parent: l.tasks[e.Parent]}
	l.tasks[t.id] = t
	if t.parent == nil {
		l.roots = append(l.roots, t)
	} else {
		t.parent.children = append(t.parent.children, t)
	}
	return t
}

func (t *task) output(text string) {
	t.wait, t.last = "", text
	if len(t.tail) == keptLines {
		t.tail = append(t.tail[:0], t.tail[1:]...)
	}
	t.tail = append(t.tail, text)
}

// finish moves a whole tree above the frame and forgets it.
func (l *live) finish(root *task) {
	l.above = append(l.above, l.summary(root, 0)...)
	for i, r := range l.roots {
		if r == root {
			l.roots = append(l.roots[:i], l.roots[i+1:]...)
			break
		}
	}
	l.forget(root)
}

func (l *live) forget(t *task) {
	delete(l.tasks, t.id)
	for _, c := range t.children {
		l.forget(c)
	}
}

func (l *live) tick(now time.Time) error {
	l.spin++
	return l.draw(now)
}

// close ends with the trees that never ended, as they stand.
func (l *live) close() error {
	for _, r := range append([]*task{}, l.roots...) {
		l.finish(r)
	}
	l.closed = true
	return l.draw(time.Now())
}

// draw writes what goes above and the next frame in one write: the cursor goes
// up to where the last frame began and each line is overwritten, so that nothing
// blinks. The cursor is never hidden: a killed process leaves a usable terminal.
func (l *live) draw(now time.Time) error {
	width, height := l.size()
	var frame []string
	if !l.closed {
		frame = l.running(now, width, height)
	}
	if len(l.above) == 0 && len(frame) == 0 && len(l.frame) == 0 {
		return nil
	}
	var b bytes.Buffer
	b.WriteString("\x1b[?2026h\r") // shown as one change, where the terminal can
	if up := rows(l.frame, width); up > 0 {
		b.WriteString("\x1b[" + itoa(up) + "A")
	}
	if len(l.above) > 0 {
		b.WriteString("\x1b[J") // they may wrap, over more rows than are cleared singly
	}
	for _, s := range l.above {
		b.WriteString(s + "\r\n")
	}
	for _, s := range frame {
		b.WriteString("\x1b[K" + s + "\r\n")
	}
	b.WriteString("\x1b[J\x1b[?2026l")
	l.above, l.frame = nil, frame
	_, err := l.w.Write(b.Bytes())
	return err
}

// erase leaves nothing of a frame on the screen.
func (l *live) erase() error {
	if err := l.draw(time.Now()); err != nil { // what goes above it
		return err
	}
	up := rows(l.frame, max(1, first(l.size())))
	l.frame = nil
	if up == 0 {
		return nil
	}
	_, err := l.w.Write([]byte("\r\x1b[" + itoa(up) + "A\x1b[J"))
	return err
}

func first(width, _ int) int { return width }

// rows is how many rows lines take on a screen that may since be narrower.
func rows(lines []string, width int) int {
	n := 0
	for _, line := range lines {
		n += max(1, (columns(clean(line))+width-1)/width)
	}
	return n
}

// running is the frame: the trees that run, cut to the screen. Where they do not
// fit, steps that are done go first, then the deepest.
func (l *live) running(now time.Time, width, height int) []string {
	var all []line
	for _, r := range l.roots {
		all = l.rowsOf(all, r, 0, now, width-1)
	}
	room := max(1, height-1)
	hidden := 0
	for i := 0; i < len(all) && len(all) > room-1; {
		if !all[i].done {
			i++
			continue
		}
		all = append(all[:i], all[i+1:]...)
		hidden++
	}
	if hidden > 0 {
		all = append([]line{{text: l.paint.dim(cut(itoa(hidden)+" steps done", width-1))}}, all...)
	}
	if len(all) > room {
		all = all[:room]
	}
	frame := make([]string, len(all))
	for i, r := range all {
		frame[i] = r.text
	}
	return frame
}

type line struct {
	text string
	done bool
}

func (l *live) rowsOf(to []line, t *task, depth int, now time.Time, width int) []line {
	lead := strings.Repeat(" ", depth*indent)
	if t.ended {
		to = append(to, line{text: l.ended(t, depth, width), done: true})
	} else {
		took := Duration(now.Sub(t.began).Round(100 * time.Millisecond))
		head := cut(t.name, max(8, width-len(lead)-len(took)-4))
		room := width - len(lead) - 2 - columns(head) - 1 - len(took)
		note := ""
		if room > 6 {
			note = "  " + cut(t.note(now), room-2)
		}
		to = append(to, line{text: lead + l.paint.cyan(spinner(l.spin)) + " " + head + " " + l.paint.dim(took+note)})
	}
	for _, c := range t.children {
		to = l.rowsOf(to, c, depth+1, now, width)
	}
	return to
}

func spinner(n int) string {
	return string([]rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")[n%10])
}

// note says in a few words what a running task is at.
func (t *task) note(now time.Time) string {
	switch {
	case t.bar.fresh(now):
		return t.bar.String()
	case t.wait != "":
		return "waiting for " + t.wait
	}
	return t.last
}

func (l *live) ended(t *task, depth, width int) string {
	lead := strings.Repeat(" ", depth*indent)
	took := Duration(time.Duration(t.seconds * float64(time.Second)))
	mark, word := l.paint.green("✓"), ""
	switch {
	case !t.ended:
		mark, word, took = l.paint.yellow("-"), " (not finished)", ""
	case t.err != "":
		mark = l.paint.red("✗")
	}
	return lead + mark + " " + cut(t.name, max(8, width-len(lead)-len(took)-4)) + l.paint.dim(strings.TrimRight(" "+took, " ")+word)
}

// summary is a tree as it stays on the screen; the innermost failed step with
// its reason and its last lines of output.
func (l *live) summary(t *task, depth int) []string {
	width, _ := l.size()
	out := []string{l.ended(t, depth, width-1)}
	told := false
	for _, c := range t.children {
		out = append(out, l.summary(c, depth+1)...)
		told = told || (c.err != "" && strings.Contains(t.err, c.err))
	}
	if t.err == "" || told {
		return out
	}
	lead := strings.Repeat(" ", depth*indent+2)
	for _, s := range t.tail {
		out = append(out, lead+l.paint.dim("│ ")+s)
	}
	for _, s := range strings.Split(strings.TrimSpace(t.err), "\n") {
		out = append(out, lead+l.paint.red(clean(s)))
	}
	return out
}
