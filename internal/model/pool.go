// Package model is a fleet's parts in memory: a pool and a router that pass the
// suites of test/conformance and make nothing. The tests of deployments run on
// them (as test/fake), and `rebake deploy --rehearse`.
package model

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
)

// Behaviour is how instances of an image behave.
type Behaviour struct {
	Boot   time.Duration // until the service answers; default at once
	Never  bool          // it never does
	Status int           // what it answers then; 0: 200
	Dies   time.Duration // after its start the machine ends; 0: never
	Breaks time.Duration // after its start it answers 500; 0: never
	Flap   time.Duration // it is well and ill in turn, each for so long
	Tires  int           // after so many requests it answers 500, to checks too; 0: never
	Errors int           // each so many-th request is answered with 500, checks are not; 0: none
}

// Pool is a pool in memory. Time is the time package's.
type Pool struct {
	// Behave says how an image's instances behave; nil, or what it lacks: well.
	Behave map[artifact.Digest]Behaviour
	// Max is how many instances it has room for; 0: no limit.
	Max int
	// Now is the time; nil: time.Now.
	Now func() time.Time

	mu     sync.Mutex
	groups []*group
	ports  int
	peak   int
}

type group struct {
	fleet.Group
	killed map[string]bool
	served map[string]int // requests, by instance
}

var _ fleet.Pool = (*Pool)(nil)
var _ fleet.Witness = (*Pool)(nil)

func (p *Pool) now() time.Time {
	if p.Now != nil {
		return p.Now()
	}
	return time.Now()
}

func (p *Pool) find(id fleet.GroupID) *group {
	for _, g := range p.groups {
		if g.ID == id {
			return g
		}
	}
	return nil
}

func (p *Pool) running(g *group, i fleet.Instance) bool {
	dies := p.Behave[g.Image].Dies
	return !g.killed[i.ID] && (dies == 0 || p.now().Sub(i.Started) < dies)
}

// Groups implements fleet.Pool.
func (p *Pool) Groups(ctx context.Context, name string) ([]fleet.Group, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []fleet.Group
	for _, g := range p.groups {
		if g.ID.Fleet != name {
			continue
		}
		c := g.Group
		c.Instances = slices.Clone(c.Instances)
		for i := range c.Instances {
			c.Instances[i].Running = p.running(g, c.Instances[i])
		}
		out = append(out, c)
	}
	return out, ctx.Err()
}

// Launch implements fleet.Pool.
func (p *Pool) Launch(ctx context.Context, id fleet.GroupID, spec fleet.Spec) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	g := p.find(id)
	if g == nil {
		g = &group{Group: fleet.Group{ID: id, Image: spec.Image.Digest}, killed: map[string]bool{}, served: map[string]int{}}
		p.groups = append(p.groups, g)
	}
	if g.Image != spec.Image.Digest {
		return fmt.Errorf("group %s runs another image", id.Deployment)
	}
	names := make([]string, spec.Size)
	for n := range names {
		names[n] = fmt.Sprintf("%s-%s-%d-%.26s", id.Fleet, id.Slot, n+1, id.Deployment)
	}
	g.Instances = slices.DeleteFunc(g.Instances, func(i fleet.Instance) bool {
		return !slices.Contains(names, i.ID) || !p.running(g, i) // one that died is made anew
	})
	for n, name := range names {
		if n < len(g.Instances) && g.Instances[n].ID == name {
			continue
		}
		if p.Max > 0 && p.count() >= p.Max {
			return fmt.Errorf("%w: room for %d instances", fleet.ErrNoCapacity, p.Max)
		}
		inst := fleet.Instance{ID: name, Running: true, Started: p.now(), Ports: map[int]string{}, PID: 1}
		for _, port := range spec.Ports {
			p.ports++
			inst.Ports[port] = fmt.Sprintf("127.0.%d.%d:%d", p.ports/250, p.ports%250+1, 10000+p.ports)
		}
		delete(g.killed, name)
		delete(g.served, name)
		g.Instances = slices.Insert(g.Instances, n, inst)
		p.peak = max(p.peak, p.count())
	}
	return nil
}

func (p *Pool) count() (n int) {
	for _, g := range p.groups {
		for _, i := range g.Instances {
			if p.running(g, i) {
				n++
			}
		}
	}
	return n
}

// End implements fleet.Pool.
func (p *Pool) End(ctx context.Context, id fleet.GroupID, instance string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if g := p.find(id); g != nil {
		g.Instances = slices.DeleteFunc(g.Instances, func(i fleet.Instance) bool { return i.ID == instance })
		delete(g.killed, instance)
		delete(g.served, instance)
	}
	return nil
}

// Retire implements fleet.Pool.
func (p *Pool) Retire(ctx context.Context, id fleet.GroupID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	p.groups = slices.DeleteFunc(p.groups, func(g *group) bool { return g.ID == id })
	return nil
}

// Evidence implements fleet.Witness.
func (p *Pool) Evidence(ctx context.Context, id fleet.GroupID) (string, error) {
	return "the last words of " + id.Deployment, ctx.Err()
}

// Check is the health check of an instance's address, for Router.Check.
func (p *Pool) Check(addr string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	g, i := p.at(addr)
	if g == nil {
		return "L4CON"
	}
	return p.check(g, i)
}

// Serve is what the instance at an address answers a request with, for
// Router.Serve: an HTTP status, 0 if nobody answers.
func (p *Pool) Serve(addr string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	g, i := p.at(addr)
	if g == nil || !p.running(g, i) {
		return 0
	}
	g.served[i.ID]++
	b, n := p.Behave[g.Image], g.served[i.ID]
	code, wrong := strings.CutPrefix(p.check(g, i), "L7STS/")
	switch {
	case wrong:
		status, _ := strconv.Atoi(code)
		return status
	case b.Errors > 0 && n%b.Errors == 0:
		return 500
	case p.check(g, i) != "L7OK":
		return 0
	}
	return 200
}

func (p *Pool) at(addr string) (*group, fleet.Instance) {
	for _, g := range p.groups {
		for _, i := range g.Instances {
			for _, a := range i.Ports {
				if a == addr {
					return g, i
				}
			}
		}
	}
	return nil, fleet.Instance{}
}

func (p *Pool) check(g *group, i fleet.Instance) string {
	b, up := p.Behave[g.Image], p.now().Sub(i.Started)
	switch {
	case !p.running(g, i):
		return "L4CON"
	case b.Never || up < b.Boot:
		return "L7TOUT"
	case b.Breaks > 0 && up >= b.Breaks, b.Tires > 0 && g.served[i.ID] >= b.Tires, b.Flap > 0 && int(up/b.Flap)%2 == 1:
		return "L7STS/500"
	case b.Status != 0 && b.Status != 200:
		return fmt.Sprintf("L7STS/%d", b.Status)
	}
	return "L7OK"
}

// Kill ends an instance as a crash would. It says whether there was one.
func (p *Pool) Kill(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.groups {
		for _, i := range g.Instances {
			if i.ID == id {
				g.killed[id] = true
				return true
			}
		}
	}
	return false
}

// Peak is the most instances that ran at once.
func (p *Pool) Peak() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.peak
}
