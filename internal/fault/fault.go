// Package fault stands in front of a fleet's pool and router and lets calls go
// wrong as those of real ones do: they fail, or they succeed and say that they
// did not, they are refused for a while, they answer with what was true before,
// they are slow. What goes wrong is decided by a seed, so that a run can be
// played again. The simulator and `rebake deploy --rehearse` use it.
package fault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// The injected errors.
var (
	ErrFailed    = errors.New("injected: it did not work")
	ErrTimeout   = errors.New("injected: no answer in time")
	ErrThrottled = errors.New("injected: too many calls, try again later")
)

// Kind is what goes wrong with a call.
type Kind string

// The kinds. Of Stale only Status and Groups know; a call that only asks is not Lost.
const (
	Failed    Kind = "failed"              // not done, and it says so
	Lost      Kind = "done, but timed out" // done, and it says that nobody answered
	Throttled Kind = "throttled"           // refused, and so are the next ones
	Stale     Kind = "answered with what was before"
	Slow      Kind = "slow" // done, late
)

// Plan is what goes wrong. The zero value is nothing.
type Plan struct {
	Seed uint64
	// How likely each is, of 1, for each call; the first that fits counts.
	Fail, Lose, Throttle, Lie, Slow float64

	At    int           // the so many-th call that changes something fails as AtKind says; 0: none
	As    Kind          // of At: Failed by default, Lost or Throttled
	Burst int           // calls that are refused in a row; default 3
	Delay time.Duration // of a slow call; default 1s
	Only  []string      // the calls that it is about ("launch", "status"); nil: all
}

// Mixed is a plan of a bit of everything that a sound engine gets over.
func Mixed(seed uint64) Plan {
	return Plan{Seed: seed, Fail: 0.04, Lose: 0.04, Throttle: 0.02, Slow: 0.04, Delay: time.Second}
}

// Injected is one thing that went wrong.
type Injected struct {
	Call string `json:"call"` // launch, end, retire, groups, evidence; ensure, status, attach, ready, weigh, drain, detach
	Kind Kind   `json:"kind"`
}

// Injector decides. Its wrappers may be used by many at once; with one seed the
// same calls in the same order go wrong in the same way.
type Injector struct {
	// Told hears of each fault, on the goroutine of the call; nil: nobody does.
	Told func(Injected)
	// Sleep is how a slow call waits; nil: real time.
	Sleep func(context.Context, time.Duration)

	mu      sync.Mutex
	plan    Plan
	rnd     *rand.Rand
	off     bool
	changes int // calls that change something, so far
	refuse  int // calls that are still refused
}

// New makes the injector of a plan.
func New(p Plan) *Injector {
	if p.Burst <= 0 {
		p.Burst = 3
	}
	if p.Delay <= 0 {
		p.Delay = time.Second
	}
	if p.As == "" {
		p.As = Failed
	}
	return &Injector{plan: p, rnd: rand.New(rand.NewPCG(p.Seed, 11))}
}

// Set turns the faults on or off; they are on at first.
func (i *Injector) Set(on bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.off = !on
	i.refuse = 0
}

// Changes is how many calls that change something there were.
func (i *Injector) Changes() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.changes
}

// draw is what goes wrong with a call, "" for nothing.
func (i *Injector) draw(call string, changes bool) Kind {
	i.mu.Lock()
	defer i.mu.Unlock()
	if changes {
		i.changes++
	}
	p := i.plan
	switch {
	case i.off, len(p.Only) > 0 && !slices.Contains(p.Only, call):
		return ""
	case i.refuse > 0:
		i.refuse--
		return Throttled
	case changes && p.At > 0 && i.changes == p.At:
		return i.throttle(p.As)
	}
	x := i.rnd.Float64()
	for _, k := range []struct {
		kind Kind
		of   float64
		fits bool
	}{
		{Failed, p.Fail, true}, {Lost, p.Lose, changes}, {Throttled, p.Throttle, true},
		{Stale, p.Lie, call == "status" || call == "groups"}, {Slow, p.Slow, true},
	} {
		if x < k.of && k.fits {
			return i.throttle(k.kind)
		}
		x -= k.of
	}
	return ""
}

func (i *Injector) throttle(k Kind) Kind {
	if k == Throttled {
		i.refuse = i.plan.Burst - 1
	}
	return k
}

// call makes a call, or does not. changes: it changes something.
func (i *Injector) call(ctx context.Context, name string, changes bool, f func() error) error {
	_, err := i.ask(ctx, name, changes, f)
	return err
}

// ask is call for those that answer: stale says that the last answer is the one to give.
func (i *Injector) ask(ctx context.Context, name string, changes bool, f func() error) (stale bool, err error) {
	kind := i.draw(name, changes)
	if kind != "" && i.Told != nil {
		i.Told(Injected{name, kind})
	}
	switch kind {
	case Failed:
		return false, fmt.Errorf("%s: %w", name, ErrFailed)
	case Throttled:
		return false, fmt.Errorf("%s: %w", name, ErrThrottled)
	case Slow:
		i.wait(ctx)
	}
	if err = f(); kind == Lost && err == nil {
		err = fmt.Errorf("%s: %w", name, ErrTimeout)
	}
	return kind == Stale, err
}

func (i *Injector) wait(ctx context.Context) {
	if i.Sleep != nil {
		i.Sleep(ctx, i.plan.Delay)
		return
	}
	t := time.NewTimer(i.plan.Delay)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
