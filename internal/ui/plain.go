package ui

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/rebake/rebake/internal/event"
)

// Plain returns a UI that writes one line per start, end, output, wait, info and
// warning, led by the time since the first event and the task; no escape codes.
func Plain(w io.Writer) UI { return start(&plain{w: w}, maxQueue, 0) }

// LogFile returns a UI like Plain whose lines begin with the time of day in UTC.
func LogFile(w io.Writer) UI { return start(&plain{w: w, debug: true}, maxQueue, 0) }

// progressEvery is how often plain lines tell of progress: enough for a log.
const progressEvery = 10 * time.Second

type plain struct {
	w     io.Writer
	debug bool // time of day, every progress report

	began    time.Time
	progress map[uint64]time.Time // when it was last told
	failed   map[uint64]string    // by parent: the error of a child, already told
	root     map[uint64]string    // name of the outermost step of each that runs
	trees    map[string]bool      // outermost steps that run and have steps in them
}

func (p *plain) print(e event.Event) error {
	if p.began.IsZero() {
		p.began = e.Time
		p.progress, p.failed, p.root = map[uint64]time.Time{}, map[uint64]string{}, map[uint64]string{}
		p.trees = map[string]bool{}
	}
	name := clean(e.Name)
	switch e.Kind {
	case event.Start:
		if p.root[e.Task] = name; p.root[e.Parent] != "" {
			p.root[e.Task] = p.root[e.Parent]
			p.trees[p.root[e.Task]] = true
		}
	case event.End:
		defer delete(p.root, e.Task)
		if p.root[e.Parent] == "" {
			defer delete(p.trees, name)
		}
	}
	if root := p.root[e.Task]; len(p.trees) > 1 && root != "" && root != name {
		name = root + " › " + name // of several that run at once
	}
	switch e.Kind {
	case event.Start:
		return p.line(e, "%s: started", name)
	case event.Output:
		return p.line(e, "%s | %s", name, clean(e.Text))
	case event.Wait:
		return p.line(e, "%s: waiting for %s", name, clean(e.Text))
	case event.Info:
		return p.line(e, "%s", prefixed(name, "", clean(e.Text)))
	case event.Warning:
		return p.line(e, "%s", prefixed(name, "warning: ", clean(e.Text)))
	case event.Progress:
		last, told := p.progress[e.Task]
		if !told { // the first one says nothing yet
			p.progress[e.Task] = e.Time
			if !p.debug {
				return nil
			}
		} else if !p.debug && e.Time.Sub(last) < progressEvery {
			return nil
		}
		p.progress[e.Task] = e.Time
		return p.line(e, "%s: %s", name, amount(e.Done, e.Total))
	case event.End:
		inner := p.failed[e.Task]
		delete(p.progress, e.Task)
		delete(p.failed, e.Task)
		took := Duration(time.Duration(e.Seconds * float64(time.Second)))
		switch {
		case e.Err == "":
			return p.line(e, "%s: done in %s", name, took)
		case e.Parent != 0:
			p.failed[e.Parent] = e.Err
		}
		if inner != "" && strings.Contains(e.Err, inner) { // the step inside it said why
			return p.line(e, "%s: failed after %s", name, took)
		}
		return p.line(e, "%s: failed after %s: %s", name, took, clean(e.Err))
	}
	return nil
}

func prefixed(name, kind, text string) string {
	if name != "" {
		name += ": "
	}
	return name + kind + text
}

func (p *plain) line(e event.Event, format string, a ...any) error {
	lead := fmt.Sprintf("%8.1fs", e.Time.Sub(p.began).Seconds())
	if p.debug {
		lead = e.Time.UTC().Format("2006-01-02T15:04:05.000Z")
	}
	_, err := fmt.Fprintf(p.w, "%s  %s\n", lead, fmt.Sprintf(format, a...))
	return err
}

func (p *plain) tick(time.Time) error { return nil }
func (p *plain) close() error         { return nil }

// amount is "12 MiB of 27 MiB (44%)", or without a total "12 MiB".
func amount(done, total int64) string {
	if total <= 0 {
		return Size(done)
	}
	return fmt.Sprintf("%s of %s (%d%%)", Size(done), Size(total), percent(done, total))
}

func percent(done, total int64) int {
	if total <= 0 || done <= 0 {
		return 0
	}
	return int(100 * min(1, float64(done)/float64(total)))
}

// JSON returns a UI that writes every event as one JSON object per line, as
// docs/events.md describes them.
func JSON(w io.Writer) UI { return start(jsonLines{json.NewEncoder(w)}, maxQueue, 0) }

type jsonLines struct{ enc *json.Encoder }

func (j jsonLines) print(e event.Event) error { return j.enc.Encode(e) }
func (j jsonLines) tick(time.Time) error      { return nil }
func (j jsonLines) close() error              { return nil }
