package model

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rebake/rebake/fleet"
)

// Router is a router in memory. Its checks ask Check; its traffic is what Send
// puts through it. Time is the time package's, so that synctest moves it.
type Router struct {
	// Check says what a health check of an address gives, "L7OK" if all is well.
	Check func(addr string) string
	// Serve says what status a request to an address is answered with; nil: 200.
	Serve func(addr string) int
	// Every is the interval of checks, default 100 ms; Rise how many good ones in
	// a row make a member healthy, Fall how many bad ones unhealthy, default 1.
	Every time.Duration
	Rise  int
	Fall  int
	// Latency is what it says that answers took.
	Latency time.Duration
	// Now is the time; nil: time.Now.
	Now func() time.Time
	// Addr is what Status says it listens on.
	Addr string

	mu      sync.Mutex
	up      bool
	weights map[fleet.Slot]int
	members map[fleet.Slot][]*member
	draw    int
	epoch   int64 // the highest that it was told

	Writes     []map[fleet.Slot]int // every SetWeights
	Violations []string             // requests sent where none should go, and the like
}

type member struct {
	fleet.MemberStatus
	next   time.Time // of the next check
	streak int       // of good checks
	bad    int       // of bad ones
}

var _ fleet.Router = (*Router)(nil)
var _ fleet.Fencer = (*Router)(nil)

// Fence implements fleet.Fencer. In one process there is one value: it only
// refuses to go back.
func (r *Router) Fence(ctx context.Context, epoch int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if epoch < r.epoch {
		return fleet.ErrStale
	}
	r.epoch = epoch
	return ctx.Err()
}

// ErrDown is what a router that is not up says.
var ErrDown = errors.New("router is down")

func (r *Router) every() time.Duration {
	if r.Every > 0 {
		return r.Every
	}
	return 100 * time.Millisecond
}

func (r *Router) now() time.Time {
	if r.Now != nil {
		return r.Now()
	}
	return time.Now()
}

// tick does the checks that are due.
func (r *Router) tick() {
	now := r.now()
	for _, ms := range r.members {
		for _, m := range ms {
			for !m.next.After(now) {
				m.next = m.next.Add(r.every())
				if m.next.Before(now) && m.streak >= 10 { // long idle: nothing new to learn step by step
					m.next = now.Add(r.every())
				}
				m.take(r.Check(m.Addr), max(r.Rise, 1), max(r.Fall, 1))
			}
		}
	}
}

// take takes one result in.
func (m *member) take(result string, rise, fall int) {
	m.Check = result
	if result != "L7OK" {
		m.streak = 0
		if m.bad++; m.bad >= fall {
			m.Healthy = false
		}
		return
	}
	m.bad = 0
	if m.streak++; m.streak >= rise {
		m.Healthy = true
	}
}

// Ensure implements fleet.Router.
func (r *Router) Ensure(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if !r.up {
		r.up = true
		if r.weights == nil {
			r.weights = map[fleet.Slot]int{fleet.Blue: 0, fleet.Green: 0}
			r.members = map[fleet.Slot][]*member{}
		}
		for _, ms := range r.members { // its first check of each comes at once
			for _, m := range ms {
				m.take(r.Check(m.Addr), 1, 1)
				m.next = r.now().Add(r.every())
			}
		}
	}
	return nil
}

// Kill ends the router as a crash would; Ensure starts it again.
func (r *Router) Kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.up = false
	for _, ms := range r.members {
		for _, m := range ms {
			m.InFlight, m.Requests, m.Errors5x, m.streak, m.bad, m.Healthy = 0, 0, 0, 0, 0, false
		}
	}
}

// Status implements fleet.Router.
func (r *Router) Status(ctx context.Context) (fleet.RouterStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := fleet.RouterStatus{Up: r.up, Listen: r.Addr, Weights: map[fleet.Slot]int{fleet.Blue: 0, fleet.Green: 0}, Members: map[fleet.Slot][]fleet.MemberStatus{}}
	if err := ctx.Err(); err != nil || !r.up {
		return st, err
	}
	r.tick()
	st.Weights = maps.Clone(r.weights)
	for s, ms := range r.members {
		for _, m := range ms {
			st.Members[s] = append(st.Members[s], m.MemberStatus)
		}
	}
	return st, nil
}

// with runs f on a router that is up.
func (r *Router) with(ctx context.Context, f func() error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if !r.up {
		return ErrDown
	}
	r.tick()
	return f()
}

// Attach implements fleet.Router.
func (r *Router) Attach(ctx context.Context, s fleet.Slot, ms []fleet.Member) error {
	return r.with(ctx, func() error {
		for _, m := range ms {
			i := slices.IndexFunc(r.members[s], func(have *member) bool { return have.ID == m.ID })
			fresh := &member{MemberStatus: fleet.MemberStatus{Member: m, Admin: "drain", Check: "INI"}, next: r.now().Add(r.every())}
			switch {
			case i < 0:
				r.members[s] = append(r.members[s], fresh)
			case r.members[s][i].Addr != m.Addr:
				r.members[s][i] = fresh
			}
		}
		return nil
	})
}

// Ready implements fleet.Router.
func (r *Router) Ready(ctx context.Context, s fleet.Slot) error {
	return r.with(ctx, func() error {
		var sick []string
		for _, m := range r.members[s] {
			if m.Healthy {
				m.Admin = "ready"
			} else {
				sick = append(sick, m.ID+" ("+m.Check+")")
			}
		}
		if len(sick) > 0 || len(r.members[s]) == 0 {
			return fmt.Errorf("%w: slot %s: %s", fleet.ErrNotHealthy, s, strings.Join(sick, ", "))
		}
		return nil
	})
}

// SetWeights implements fleet.Router.
func (r *Router) SetWeights(ctx context.Context, w map[fleet.Slot]int) error {
	return r.with(ctx, func() error {
		sum := w[fleet.Blue] + w[fleet.Green]
		if w[fleet.Blue] < 0 || w[fleet.Green] < 0 || sum != 0 && sum != 1000 {
			return fmt.Errorf("weights blue %d, green %d: they must add up to 1000", w[fleet.Blue], w[fleet.Green])
		}
		r.weights = map[fleet.Slot]int{fleet.Blue: w[fleet.Blue], fleet.Green: w[fleet.Green]}
		r.Writes = append(r.Writes, maps.Clone(r.weights))
		return nil
	})
}

// Drain implements fleet.Router.
func (r *Router) Drain(ctx context.Context, s fleet.Slot, members ...string) error {
	return r.with(ctx, func() error {
		for _, m := range r.members[s] {
			if meant(m.ID, members) {
				m.Admin = "drain"
			}
		}
		return nil
	})
}

// Detach implements fleet.Router.
func (r *Router) Detach(ctx context.Context, s fleet.Slot, force bool, members ...string) (cut int, err error) {
	err = r.with(ctx, func() error {
		for _, m := range r.members[s] {
			if !meant(m.ID, members) {
				continue
			}
			m.Admin = "drain"
			if m.InFlight > 0 && !force {
				return fmt.Errorf("%w: %s (%d)", fleet.ErrBusy, m.ID, m.InFlight)
			}
			cut += m.InFlight
		}
		r.members[s] = slices.DeleteFunc(r.members[s], func(m *member) bool { return meant(m.ID, members) })
		return nil
	})
	return cut, err
}

// meant: no names are all.
func meant(id string, names []string) bool { return len(names) == 0 || slices.Contains(names, id) }

// Remove implements fleet.Router.
func (r *Router) Remove(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.up, r.weights, r.members = false, nil, nil
	return nil
}

// Send puts a request through: it says who got it, and end ends it. The name is
// "" if nobody could: a failed request.
func (r *Router) Send() (id string, end func()) {
	id, _, end = r.Request()
	return id, end
}

// Request is Send that tells the answer's status too: 503 if nobody took it, 502
// if whoever did does not answer.
func (r *Router) Request() (id string, status int, end func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.up {
		return "", 503, func() {}
	}
	r.tick()
	r.draw = (r.draw + 619) % 1000 // 619 and 1000 have no common divisor: it visits all
	s := fleet.Blue
	if r.draw < r.weights[fleet.Green] {
		s = fleet.Green
	}
	if r.weights[s] == 0 {
		return "", 503, func() {}
	}
	var best *member
	for _, m := range r.members[s] {
		if m.Admin == "ready" && m.Healthy && (best == nil || m.Requests < best.Requests) {
			best = m
		}
	}
	if best == nil {
		return "", 503, func() {}
	}
	status = 200
	if r.Serve != nil {
		if status = r.Serve(best.Addr); status == 0 {
			status = 502
		}
	} else if c := r.Check(best.Addr); c != "L7OK" {
		r.Violations = append(r.Violations, fmt.Sprintf("a request went to %s, whose check says %s", best.ID, c))
	}
	best.Requests++
	best.InFlight++
	best.Latency = r.Latency
	if status >= 500 {
		best.Errors5x++
	}
	return best.ID, status, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		best.InFlight = max(0, best.InFlight-1)
	}
}

// Edit lets a test change the weights as somebody else would.
func (r *Router) Edit(w map[fleet.Slot]int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.weights = maps.Clone(w)
}
