// Package ui tells people and programs what the work does. It holds the readers
// of event.Event: Live redraws a tree of steps on a terminal, Plain writes a line
// per event, JSON an object per event, LogFile a line with the time. Each reads
// from a bounded queue, so that a slow terminal never slows the work: what is
// lost then is output lines, never a start or an end. All text from guests goes
// through clean, because a guest may print what drives a terminal.
package ui

import (
	"io"
	"os"
	"sync"
	"time"

	"github.com/rebake/rebake/internal/event"
	"golang.org/x/term"
)

// UI is a reader of events.
type UI interface {
	// Sink is what the work sends to, from many goroutines. It does not block.
	Sink() event.Sink
	// Close waits until all that was sent is written, writes the closing summary
	// and returns the first error of writing. Events sent after it are dropped;
	// closing twice is the same as once.
	Close() error
}

// Holder is the optional power of a UI to leave the terminal to somebody else
// for a while: a question, a shell.
type Holder interface {
	// Hold takes what is drawn off the screen and draws nothing until release is
	// called. What is sent meanwhile is not lost.
	Hold() (release func())
}

// The modes of New.
const (
	ModeLive  = "live"
	ModePlain = "plain"
	ModeJSON  = "json"
)

// New returns the UI of a mode, ModePlain for one it does not know. debug adds
// times of day and every progress report to plain lines.
func New(mode string, debug bool, w io.Writer) UI {
	switch mode {
	case ModeJSON:
		return JSON(w)
	case ModeLive:
		return Live(w, sizeOf(w))
	}
	return start(&plain{w: w, debug: debug}, maxQueue, 0)
}

// IsTerminal says whether f is a terminal on which lines can be redrawn.
func IsTerminal(f *os.File) bool {
	return os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}

// size80x24 is the size taken where it cannot be asked for.
func size80x24() (width, height int) { return 80, 24 }

func sizeOf(w io.Writer) func() (width, height int) {
	f, ok := w.(*os.File)
	if !ok {
		return size80x24
	}
	return func() (int, int) {
		width, height, err := term.GetSize(int(f.Fd()))
		if err != nil || width < 1 || height < 1 {
			return size80x24()
		}
		return width, height
	}
}

// printer writes events; its methods are called from one goroutine.
type printer interface {
	print(event.Event) error
	tick(now time.Time) error // called between events where start has an interval
	close() error
}

type reader struct {
	q    *queue
	hold chan chan struct{}
	done chan struct{}
	once sync.Once
	err  error
}

// start lets p read from a queue of its own, and redraw at each interval if it is not 0.
func start(p printer, limit int, interval time.Duration) UI {
	r := &reader{q: newQueue(limit), hold: make(chan chan struct{}), done: make(chan struct{})}
	go r.loop(p, interval)
	return r
}

func (r *reader) loop(p printer, interval time.Duration) {
	defer close(r.done)
	var tick <-chan time.Time
	if interval > 0 {
		t := time.NewTicker(interval)
		defer t.Stop()
		tick = t.C
	}
	keep := func(err error) {
		if r.err == nil {
			r.err = err
		}
	}
	for {
		events, closed := r.q.take()
		for _, e := range events {
			keep(p.print(e))
		}
		if closed {
			keep(p.close())
			return
		}
		select {
		case <-r.q.ready:
		case c := <-r.hold:
			if e, ok := p.(interface{ erase() error }); ok {
				keep(e.erase())
			}
			c <- struct{}{} // it has the terminal
			<-c             // and gives it back
		case now := <-tick:
			keep(p.tick(now))
		}
	}
}

func (r *reader) Sink() event.Sink { return r.q.put }

// Hold implements Holder.
func (r *reader) Hold() func() {
	c := make(chan struct{})
	select {
	case r.hold <- c:
		<-c
		return sync.OnceFunc(func() { c <- struct{}{} })
	case <-r.done:
		return func() {}
	}
}

func (r *reader) Close() error {
	r.once.Do(r.q.close)
	<-r.done
	return r.err
}
