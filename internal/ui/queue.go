package ui

import (
	"fmt"
	"sync"
	"time"

	"github.com/rebake/rebake/internal/event"
)

const (
	maxQueue = 4096    // events that wait for a slow reader
	maxText  = 4 << 20 // bytes of text that wait
)

// queue holds what a reader has not yet taken. When it is full, output and
// progress are dropped and counted; everything else is always kept.
type queue struct {
	ready chan struct{} // one token: there is something to take

	mu     sync.Mutex
	events []event.Event
	text   int
	limit  int
	lost   int
	closed bool
}

func newQueue(limit int) *queue {
	return &queue{ready: make(chan struct{}, 1), limit: limit}
}

func (q *queue) put(e event.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	full := len(q.events) >= q.limit || q.text >= maxText
	switch {
	case full && e.Kind == event.Progress: // the next one says more
	case full && e.Kind == event.Output:
		q.lost++
	default:
		q.note()
		q.events = append(q.events, e)
		q.text += len(e.Text) + len(e.Err)
	}
	q.wake()
}

// note queues where output was lost, before what follows it.
func (q *queue) note() {
	if q.lost == 0 {
		return
	}
	q.events = append(q.events, event.Event{Time: lastTime(q.events), Kind: event.Warning, Text: fmt.Sprintf("%d output lines are not shown: they came faster than they could be written", q.lost)})
	q.lost = 0
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake()
}

func (q *queue) wake() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// take returns what is there, and whether nothing will follow.
func (q *queue) take() ([]event.Event, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.note()
	events := q.events
	q.events, q.text = nil, 0
	return events, q.closed
}

func lastTime(events []event.Event) (t time.Time) {
	if n := len(events); n > 0 {
		return events[n-1].Time
	}
	return t
}
