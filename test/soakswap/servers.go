package main

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

// servers is a pool whose instances are HTTP servers of this process. They die
// as a machine does: with whatever is in flight.
type servers struct {
	mu     sync.Mutex
	groups []*group
}

type group struct {
	fleet.Group
	run []*http.Server
}

func (p *servers) find(id fleet.GroupID) *group {
	for _, g := range p.groups {
		if g.ID == id {
			return g
		}
	}
	return nil
}

// Groups implements fleet.Pool.
func (p *servers) Groups(_ context.Context, name string) (out []fleet.Group, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.groups {
		if g.ID.Fleet == name {
			c := g.Group
			c.Instances = slices.Clone(c.Instances)
			out = append(out, c)
		}
	}
	return out, nil
}

// Launch implements fleet.Pool.
func (p *servers) Launch(_ context.Context, id fleet.GroupID, spec fleet.Spec) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	g := p.find(id)
	if g == nil {
		g = &group{Group: fleet.Group{ID: id, Image: spec.Image.Digest}}
		p.groups = append(p.groups, g)
	}
	for n := len(g.Instances); n < spec.Size; n++ {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		s := &http.Server{Handler: handler(spec.Image.Version)}
		go s.Serve(l) //nolint:errcheck // Close ends it
		g.run = append(g.run, s)
		g.Instances = append(g.Instances, fleet.Instance{ID: fmt.Sprintf("soak-%s-%d-%.26s", id.Slot, n+1, id.Deployment), Running: true,
			Started: time.Now(), Ports: map[int]string{80: l.Addr().String()}})
	}
	return nil
}

// End implements fleet.Pool.
func (p *servers) End(context.Context, fleet.GroupID, string) error {
	return errors.New("one instance alone is never ended here")
}

// Retire implements fleet.Pool.
func (p *servers) Retire(_ context.Context, id fleet.GroupID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	p.groups = slices.DeleteFunc(p.groups, func(g *group) bool {
		if g.ID != id {
			return false
		}
		for _, s := range g.run {
			err = errors.Join(err, s.Close()) // no grace: what is in flight is lost
		}
		return true
	})
	return err
}

func (p *servers) close() {
	for _, g := range p.groups {
		for _, s := range g.run {
			s.Close()
		}
	}
}

func handler(version string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Release", version)
		fmt.Fprintln(w, version)
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(slowFor)
		w.Header().Set("X-Release", version)
		fmt.Fprintln(w, version)
	})
	mux.HandleFunc("/stream", func(w http.ResponseWriter, _ *http.Request) {
		for until := time.Now().Add(streamFor); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
			fmt.Fprintln(w, version)
			w.(http.Flusher).Flush()
		}
		fmt.Fprintln(w, "end")
	})
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	return mux
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
