// Package servers is a pool whose instances are HTTP servers of this process: a
// swap behind a real router in milliseconds, without a machine.
package servers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/rebake/rebake/fleet"
)

// Pool implements fleet.Pool. Its instances die as machines do: with whatever is
// in flight.
type Pool struct {
	// Handler is what an instance of an image's version answers with.
	Handler func(version string) http.Handler

	mu     sync.Mutex
	groups []*group
}

type group struct {
	fleet.Group
	run map[string]*http.Server // by instance; nil: it died
}

func (p *Pool) find(id fleet.GroupID) *group {
	for _, g := range p.groups {
		if g.ID == id {
			return g
		}
	}
	return nil
}

// Groups implements fleet.Pool.
func (p *Pool) Groups(_ context.Context, name string) (out []fleet.Group, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.groups {
		if g.ID.Fleet != name {
			continue
		}
		c := g.Group
		c.Instances = slices.Clone(c.Instances)
		for i := range c.Instances {
			c.Instances[i].Running = g.run[c.Instances[i].ID] != nil
		}
		out = append(out, c)
	}
	return out, nil
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
		g = &group{Group: fleet.Group{ID: id, Image: spec.Image.Digest}, run: map[string]*http.Server{}}
		p.groups = append(p.groups, g)
	}
	for n := range spec.Size {
		name := fmt.Sprintf("%s-%s-%d-%.26s", id.Fleet, id.Slot, n+1, id.Deployment)
		if g.run[name] != nil {
			continue
		}
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		s := &http.Server{Handler: p.Handler(spec.Image.Version)}
		go s.Serve(l) //nolint:errcheck // Close ends it
		g.run[name] = s
		i := fleet.Instance{ID: name, Running: true, Started: time.Now(), Ports: map[int]string{80: l.Addr().String()}}
		g.Instances = slices.DeleteFunc(g.Instances, func(i fleet.Instance) bool { return i.ID == name })
		g.Instances = slices.Insert(g.Instances, n, i)
	}
	var err error
	for _, i := range g.Instances[min(spec.Size, len(g.Instances)):] {
		err = errors.Join(err, g.end(i.ID))
	}
	g.Instances = g.Instances[:min(spec.Size, len(g.Instances))]
	return err
}

// end has no grace: what is in flight is lost.
func (g *group) end(instance string) error {
	s := g.run[instance]
	delete(g.run, instance)
	if s == nil {
		return nil
	}
	return s.Close()
}

// End implements fleet.Pool.
func (p *Pool) End(_ context.Context, id fleet.GroupID, instance string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	g := p.find(id)
	if g == nil {
		return nil
	}
	g.Instances = slices.DeleteFunc(g.Instances, func(i fleet.Instance) bool { return i.ID == instance })
	return g.end(instance)
}

// Retire implements fleet.Pool.
func (p *Pool) Retire(_ context.Context, id fleet.GroupID) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.groups = slices.DeleteFunc(p.groups, func(g *group) bool {
		if g.ID != id {
			return false
		}
		for name := range g.run {
			err = errors.Join(err, g.end(name))
		}
		return true
	})
	return err
}

// Kill ends an instance as a crash would; it is listed as one that does not run.
func (p *Pool) Kill(instance string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.groups {
		if g.run[instance] != nil {
			return g.end(instance)
		}
	}
	return fmt.Errorf("no instance %s runs", instance)
}

// Close ends them all.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	for _, g := range p.groups {
		for name := range g.run {
			err = errors.Join(err, g.end(name))
		}
	}
	return err
}

// FreeAddr is an address that nobody listens on.
func FreeAddr() (string, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
