// Package event is the one vocabulary in which the work tells what it does:
// start, output, progress, wait, warning, end, and reports for programs. The sink travels in the context;
// without one, silence. Readers (terminal, plain lines, JSON) live in internal/ui.
// Events are not the journal: losing one loses no state.
package event

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Kind is what an event says.
type Kind string

// The vocabulary.
const (
	Start    Kind = "start"    // a task began
	Output   Kind = "output"   // a line that a guest or a tool printed
	Progress Kind = "progress" // Done of Total bytes
	Wait     Kind = "wait"     // Text names what the task waits for
	Info     Kind = "info"     // something a reader should know
	Warning  Kind = "warning"  // something a reader should act on
	End      Kind = "end"      // a task ended, with Err if it failed
	Reported Kind = "report"   // what programs count on, in fields: Report
)

// Event is one of them. It marshals as one line of --output json.
type Event struct {
	Time    time.Time `json:"time"`
	Kind    Kind      `json:"kind"`
	Task    uint64    `json:"task,omitempty"`   // unique within a run
	Parent  uint64    `json:"parent,omitempty"` // task that holds it
	Name    string    `json:"name,omitempty"`   // task name
	Text    string    `json:"text,omitempty"`
	Done    int64     `json:"done,omitempty"`
	Total   int64     `json:"total,omitempty"`   // 0: unknown
	Seconds float64   `json:"seconds,omitempty"` // of an end
	Err     string    `json:"error,omitempty"`
	Report  *Report   `json:"report,omitempty"`
}

// Sink receives events, from many goroutines, and must not block for long.
type Sink func(Event)

type scope struct {
	sink Sink
	red  *Redactor
	task uint64
	name string
}

type key struct{}

var ids atomic.Uint64

// With returns a context whose events go to sink, redacted by red (may be nil).
func With(ctx context.Context, sink Sink, red *Redactor) context.Context {
	return context.WithValue(ctx, key{}, scope{sink: sink, red: red})
}

// Tee returns a context whose events go to sink too, redacted like the others.
func Tee(ctx context.Context, sink Sink) context.Context {
	s := from(ctx)
	first := s.sink
	s.sink = func(e Event) {
		if first != nil {
			first(e)
		}
		sink(e)
	}
	return context.WithValue(ctx, key{}, s)
}

func from(ctx context.Context) scope {
	s, _ := ctx.Value(key{}).(scope)
	return s
}

func (s scope) send(e Event) {
	if s.sink == nil {
		return
	}
	e.Time = time.Now()
	if e.Task == 0 {
		e.Task, e.Name = s.task, s.name
	}
	e.Name, e.Text, e.Err = s.red.Clean(e.Name), s.red.Clean(e.Text), s.red.Clean(e.Err)
	e.Report = e.Report.clean(s.red)
	s.sink(e)
}

// Do runs f as a named task: a start, whatever f tells, an end with its error.
func Do[T any](ctx context.Context, name string, f func(context.Context) (T, error)) (T, error) {
	s := from(ctx)
	parent := s.task
	s.task, s.name = ids.Add(1), name
	began := time.Now()
	s.send(Event{Kind: Start, Task: s.task, Parent: parent, Name: name})
	v, err := f(context.WithValue(ctx, key{}, s))
	end := Event{Kind: End, Task: s.task, Parent: parent, Name: name, Seconds: time.Since(began).Seconds()}
	if err != nil {
		end.Err = err.Error()
	}
	s.send(end)
	return v, err
}

// Run is Do for work without a result.
func Run(ctx context.Context, name string, f func(context.Context) error) error {
	_, err := Do(ctx, name, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) })
	return err
}

// Waiting names what the current task waits for.
func Waiting(ctx context.Context, format string, a ...any) {
	from(ctx).send(Event{Kind: Wait, Text: fmt.Sprintf(format, a...)})
}

// Infof tells something worth a line.
func Infof(ctx context.Context, format string, a ...any) {
	from(ctx).send(Event{Kind: Info, Text: fmt.Sprintf(format, a...)})
}

// Warnf tells something to act on.
func Warnf(ctx context.Context, format string, a ...any) {
	from(ctx).send(Event{Kind: Warning, Text: fmt.Sprintf(format, a...)})
}

// Progressing returns a function for byte counters; it passes on at most 10 a second
// and always the one that reaches the total.
func Progressing(ctx context.Context) func(done, total int64) {
	var mu sync.Mutex
	var last time.Time
	return func(done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		if done != total && time.Since(last) < 100*time.Millisecond {
			return
		}
		last = time.Now()
		from(ctx).send(Event{Kind: Progress, Done: done, Total: total})
	}
}
