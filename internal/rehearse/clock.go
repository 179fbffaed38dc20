package rehearse

import (
	"context"
	"slices"
	"time"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/model"
)

// takes is what a modelled request takes.
const takes = 100 * time.Millisecond

// stage is the modelled world: a clock that only moves when somebody sleeps, and
// users that send a request at each of its steps meanwhile.
type stage struct {
	fleet  string
	pool   *model.Pool
	router *model.Router
	now    time.Time
	step   time.Duration

	open   []flight
	steps  int
	counts // since begin
}

// counts is what users saw.
type counts struct {
	sent, failed, least int
}

type flight struct {
	id  string
	due time.Time
	end func()
}

func (s *stage) clock() time.Time { return s.now }

// sleep lets the modelled time pass. It ends early with the context.
func (s *stage) sleep(ctx context.Context, d time.Duration) {
	for until := s.now.Add(d); s.now.Before(until) && ctx.Err() == nil; {
		s.now = s.now.Add(min(s.step, until.Sub(s.now)))
		s.land()
		s.send()
		if s.steps++; s.steps%5 == 0 {
			s.least = min(s.least, s.serving())
		}
	}
}

func (s *stage) send() {
	id, status, end := s.router.Request()
	s.sent++
	if status != 200 {
		s.failed++
	}
	if id != "" {
		s.open = append(s.open, flight{id, s.now.Add(takes), end})
	}
}

// land ends the requests that are due. One whose machine is gone failed.
func (s *stage) land() {
	if len(s.open) == 0 || s.now.Before(s.open[0].due) {
		return
	}
	runs := s.running()
	s.open = slices.DeleteFunc(s.open, func(f flight) bool {
		if s.now.Before(f.due) {
			return false
		}
		if !runs[f.id] {
			s.failed++
		}
		f.end()
		return true
	})
}

func (s *stage) running() map[string]bool {
	runs := map[string]bool{}
	gs, _ := s.pool.Groups(context.Background(), s.fleet) // in memory: it cannot fail
	for _, g := range gs {
		for _, i := range g.Instances {
			runs[i.ID] = i.Running
		}
	}
	return runs
}

// serving is how many instances are let in and well, in a slot with traffic.
func (s *stage) serving() (n int) {
	st, _ := s.router.Status(context.Background())
	for slot, w := range st.Weights {
		for _, m := range st.Members[slot] {
			if w > 0 && m.Admin == "ready" && m.Healthy && s.pool.Check(m.Addr) == "L7OK" {
				n++
			}
		}
	}
	return n
}

// share is the permille of the traffic that a slot has.
func (s *stage) share(slot fleet.Slot) int {
	st, _ := s.router.Status(context.Background())
	return st.Weights[slot]
}
