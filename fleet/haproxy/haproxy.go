// Package haproxy is the router of a fleet: one HAProxy process of the fleet's
// own, driven through its runtime socket alone.
//
// The configuration is written once: a frontend, a backend for each slot, and
// a map file whose one entry holds the permille of requests that the green slot
// gets. HAProxy draws a number for each request and compares it with that
// entry, so one "set map" moves the traffic of the whole fleet atomically. The
// servers behind the backends are added and removed at run time. HAProxy is
// never reloaded: a reload loses requests, and all run-time state with them.
//
// Three files outlive the process: fleet.map (read by HAProxy itself when it
// starts), members.json (what is behind it), haproxy.pid. Each is written
// before the change it describes, so that Ensure can finish what a kill cut off.
package haproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rebake/rebake/fleet"
)

// Config is the router.haproxy block of a template.
type Config struct {
	Listen     string `yaml:"listen,omitempty" json:"listen,omitempty" jsonschema:"description=address and port that clients use,default=127.0.0.1:8080"`
	Binary     string `yaml:"binary,omitempty" json:"binary,omitempty" jsonschema:"description=the HAProxy program,default=haproxy"`
	Mode       string `yaml:"mode,omitempty" json:"mode,omitempty" jsonschema:"description=what is balanced: HTTP requests or TCP connections,enum=http,enum=tcp,default=http"`
	Idempotent bool   `yaml:"idempotent,omitempty" json:"idempotent,omitempty" jsonschema:"description=requests may be sent twice: one that a dying instance did not answer is given to another"`
}

// Router implements fleet.Router. It is safe for concurrent use, also by
// several processes: changes are made under a lock file.
type Router struct {
	cfg    Config
	dir    string // state: configuration, map, members, pid, log
	runDir string // short path for the socket
	name   string
	hc     fleet.HealthCheck
	mu     sync.Mutex // one change at a time in this process; the lock file does it between processes
	held   *os.File   // the locked lock file, while mu is held
	fence  fleet.Fence
	codes  sync.Map // server → status code of its last check that ended
}

var (
	_ fleet.Router = (*Router)(nil)
	_ fleet.Fencer = (*Router)(nil)
)

var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$`)

// New checks the configuration; it starts nothing. dir is kept between runs,
// runDir holds the socket and must be short.
func New(cfg Config, dir, runDir, name string, hc fleet.HealthCheck) (*Router, error) {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:8080"
	}
	if cfg.Binary == "" {
		cfg.Binary = "haproxy"
	}
	if cfg.Mode == "" {
		cfg.Mode = "http"
	}
	if cfg.Mode != "http" && cfg.Mode != "tcp" {
		return nil, fmt.Errorf("router.haproxy.mode: %q is neither http nor tcp", cfg.Mode)
	}
	if _, err := net.ResolveTCPAddr("tcp", cfg.Listen); err != nil || strings.ContainsAny(cfg.Listen, " \"\\$,@") {
		return nil, fmt.Errorf("router.haproxy.listen: %q is not an address and port, like 127.0.0.1:8080", cfg.Listen)
	}
	if !nameRE.MatchString(name) {
		return nil, fmt.Errorf("fleet name %q: use letters, digits, dot, dash and underscore", name)
	}
	hc, err := withDefaults(hc)
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if runDir, err = filepath.Abs(runDir); err != nil {
		return nil, err
	}
	r := &Router{cfg: cfg, dir: dir, runDir: runDir, name: name, hc: hc}
	if n := len(r.socketPath()); n > 90 { // HAProxy binds a temporary name a little longer than this
		return nil, fmt.Errorf("socket path %s has %d bytes, at most 90 will do: choose a shorter directory", r.socketPath(), n)
	}
	return r, nil
}

func withDefaults(hc fleet.HealthCheck) (fleet.HealthCheck, error) {
	switch hc.Type {
	case "":
		hc.Type = "http"
	case "http", "tcp":
	default:
		return hc, fmt.Errorf("health check %q: the router knows http and tcp", hc.Type)
	}
	if hc.Path == "" {
		hc.Path = "/"
	}
	for _, c := range hc.Path {
		if c <= ' ' || c >= 0x7f {
			return hc, fmt.Errorf("health check path %q: escape spaces and other than ASCII characters as in a URL", hc.Path)
		}
	}
	if hc.Path[0] != '/' {
		return hc, fmt.Errorf("health check path %q does not begin with /", hc.Path)
	}
	if hc.Status == 0 {
		hc.Status = 200
	}
	if hc.Status < 100 || hc.Status > 599 {
		return hc, fmt.Errorf("health check status %d is no HTTP status", hc.Status)
	}
	if hc.Interval <= 0 {
		hc.Interval = time.Second
	}
	if hc.Timeout <= 0 {
		hc.Timeout = 2 * time.Second
	}
	if hc.Rise <= 0 {
		hc.Rise = 2
	}
	if hc.Fall <= 0 {
		hc.Fall = 3
	}
	return hc, nil
}

func (r *Router) backend(s fleet.Slot) string { return r.name + "_" + string(s) }

var slots = []fleet.Slot{fleet.Blue, fleet.Green}

// Ensure implements fleet.Router. Members that were taking traffic before a
// restart take it again once their first check came in, whatever it said: a
// failing one gets nothing until it recovers.
func (r *Router) Ensure(ctx context.Context) error {
	return r.locked(ctx, func() error {
		if err := r.startOrAdopt(ctx); err != nil {
			return err
		}
		if err := r.syncMap(ctx); err != nil {
			return err
		}
		want, err := r.readMembers()
		if err != nil {
			return err
		}
		// a first check takes at most an interval and its timeouts
		patience, cancel := context.WithTimeout(ctx, r.hc.Interval+r.hc.Timeout+3*time.Second)
		defer cancel()
		for {
			waiting, err := r.apply(ctx, want)
			if err != nil || len(waiting) == 0 {
				return err
			}
			if err := pause(patience, 10*time.Millisecond); err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return fmt.Errorf("%w: the router has not checked %s yet", fleet.ErrNotHealthy, strings.Join(waiting, ", "))
			}
		}
	})
}

// Attach implements fleet.Router. A member that is there keeps its state; one
// whose address changed is replaced.
func (r *Router) Attach(ctx context.Context, s fleet.Slot, ms []fleet.Member) error {
	if err := checkSlot(s); err != nil {
		return err
	}
	for _, m := range ms {
		host, port, err := net.SplitHostPort(m.Addr)
		if err != nil || net.ParseIP(host) == nil || port == "" || strings.Trim(port, "0123456789") != "" {
			return fmt.Errorf("member %s: %q is not an IP address and port", m.ID, m.Addr)
		}
		if !nameRE.MatchString(m.ID) {
			return fmt.Errorf("member %q: use letters, digits, dot, dash and underscore", m.ID)
		}
	}
	return r.change(ctx, func(want *members, _ map[fleet.Slot][]fleet.MemberStatus) error {
		for _, m := range ms {
			want.put(s, m)
		}
		return nil
	})
}

// Ready implements fleet.Router: those that are healthy get traffic, the
// others are named in the error.
func (r *Router) Ready(ctx context.Context, s fleet.Slot) error {
	if err := checkSlot(s); err != nil {
		return err
	}
	var sick []string
	err := r.change(ctx, func(want *members, live map[fleet.Slot][]fleet.MemberStatus) error {
		if len(want.of(s)) == 0 {
			return fmt.Errorf("%w: slot %s has no members", fleet.ErrNotHealthy, s)
		}
		for _, m := range want.of(s) {
			st, ok := find(live[s], m.ID)
			switch {
			case !ok:
				sick = append(sick, m.ID+" (unknown to the router)")
			case !st.Healthy:
				check := st.Check
				if check == "" {
					check = "not checked yet"
				}
				sick = append(sick, fmt.Sprintf("%s (%s)", m.ID, check))
			default:
				m.Ready = true
			}
		}
		return nil
	})
	if err == nil && len(sick) > 0 {
		err = fmt.Errorf("%w: %s", fleet.ErrNotHealthy, strings.Join(sick, ", "))
	}
	return err
}

// Drain implements fleet.Router.
func (r *Router) Drain(ctx context.Context, s fleet.Slot, ids ...string) error {
	if err := checkSlot(s); err != nil {
		return err
	}
	return r.change(ctx, func(want *members, _ map[fleet.Slot][]fleet.MemberStatus) error {
		for _, m := range want.of(s) {
			if meant(m.ID, ids) {
				m.Ready = false
			}
		}
		return nil
	})
}

// meant: no names are all.
func meant(id string, names []string) bool { return len(names) == 0 || slices.Contains(names, id) }

// Detach implements fleet.Router. It drains first; with ErrBusy the members
// stay, drained.
func (r *Router) Detach(ctx context.Context, s fleet.Slot, force bool, ids ...string) (cut int, err error) {
	if err := r.Drain(ctx, s, ids...); err != nil {
		return 0, err
	}
	err = r.locked(ctx, func() error {
		live, err := r.live(ctx)
		if err != nil {
			return err
		}
		live[s] = slices.DeleteFunc(live[s], func(m fleet.MemberStatus) bool { return !meant(m.ID, ids) })
		var busy []string
		for _, m := range live[s] {
			if m.InFlight > 0 {
				busy = append(busy, fmt.Sprintf("%s (%d)", m.ID, m.InFlight))
			}
		}
		if len(busy) > 0 && !force {
			return fmt.Errorf("%w: %s", fleet.ErrBusy, strings.Join(busy, ", "))
		}
		want, err := r.readMembers()
		if err != nil {
			return err
		}
		want.clear(s, ids)
		if err := r.writeMembers(want); err != nil {
			return err
		}
		for _, m := range live[s] {
			n, err := r.drop(ctx, s, m, force)
			cut += n
			if err != nil {
				return err
			}
		}
		return nil
	})
	return cut, err
}

// change edits members.json under the lock, then makes HAProxy follow it.
func (r *Router) change(ctx context.Context, edit func(*members, map[fleet.Slot][]fleet.MemberStatus) error) error {
	return r.locked(ctx, func() error {
		live, err := r.live(ctx)
		if err != nil {
			return err
		}
		want, err := r.readMembers()
		if err != nil {
			return err
		}
		if err := edit(&want, live); err != nil {
			return err
		}
		if err := r.writeMembers(want); err != nil {
			return err
		}
		waiting, err := r.apply(ctx, want)
		if err == nil && len(waiting) > 0 {
			// Only after a restart that nobody noticed: Ensure is the cure.
			err = fmt.Errorf("%w: %s not checked since the router restarted", fleet.ErrNotHealthy, strings.Join(waiting, ", "))
		}
		return err
	})
}

// apply makes HAProxy's servers follow want. A server never goes to ready
// before its first check: waiting names those that should and cannot yet.
func (r *Router) apply(ctx context.Context, want members) (waiting []string, err error) {
	live, err := r.live(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range slots {
		for _, st := range live[s] {
			m := want.get(s, st.ID)
			if m != nil && m.Addr == st.Addr {
				continue
			}
			// left by a kill in Detach, or the instance came back elsewhere
			if err := r.command(ctx, "set server "+r.server(s, st.ID)+" state drain"); err != nil {
				return nil, err
			}
			if _, err := r.drop(ctx, s, st, false); err != nil {
				return nil, err
			}
		}
		for _, m := range want.of(s) {
			st, ok := find(live[s], m.ID)
			if ok && st.Addr != m.Addr {
				ok = false
			}
			wait, err := r.applyOne(ctx, s, *m, st, ok)
			if err != nil {
				return nil, err
			}
			if wait {
				waiting = append(waiting, m.ID)
			}
		}
	}
	return waiting, nil
}

func (r *Router) applyOne(ctx context.Context, s fleet.Slot, m member, st fleet.MemberStatus, known bool) (wait bool, err error) {
	server := r.server(s, m.ID)
	var cmds []string
	if !known {
		add := fmt.Sprintf("add server %s %s check %s", server, m.Addr, r.checkArgs())
		if err := r.expect(ctx, add, "New server registered."); err != nil {
			return false, err
		}
		st = fleet.MemberStatus{Admin: "maint"}
	}
	if st.Admin == "maint" || (st.Admin == "ready" && !m.Ready) {
		cmds = append(cmds, "set server "+server+" state drain")
	}
	if st.Check == "" { // a server added at run time is not checked until told to be
		cmds = append(cmds, "enable health "+server)
	}
	if m.Ready && st.Admin != "ready" {
		if st.Check == "" || st.Check == "INI" || st.Admin == "maint" {
			wait = true
		} else {
			cmds = append(cmds, "set server "+server+" state ready")
		}
	}
	for _, c := range cmds {
		if err := r.command(ctx, c); err != nil {
			return wait, err
		}
	}
	return wait, nil
}

// drop removes a drained server. It counts the requests that it cut, if force.
func (r *Router) drop(ctx context.Context, s fleet.Slot, m fleet.MemberStatus, force bool) (cut int, err error) {
	server := r.server(s, m.ID)
	if err := r.command(ctx, "set server "+server+" state maint"); err != nil {
		return 0, err
	}
	if force && m.InFlight > 0 {
		cut = m.InFlight
		if err := r.command(ctx, "shutdown sessions server "+server); err != nil {
			return cut, err
		}
	}
	patience, cancel := context.WithTimeout(ctx, 10*time.Second) // idle connections to it are purged within 5 s
	defer cancel()
	for {
		err := r.expect(ctx, "del server "+server, "Server deleted.")
		var refused *refusedError
		if err == nil || errors.As(err, &refused) && strings.HasPrefix(refused.answer, "No such server") {
			return cut, nil
		}
		if refused == nil || !strings.Contains(refused.answer, "still has") {
			return cut, err
		}
		if pause(patience, 20*time.Millisecond) != nil {
			if ctx.Err() != nil {
				return cut, context.Cause(ctx)
			}
			return cut, fmt.Errorf("%w: %s: %w", fleet.ErrBusy, m.ID, err)
		}
	}
}

func (r *Router) server(s fleet.Slot, id string) string { return r.backend(s) + "/" + id }

func checkSlot(s fleet.Slot) error {
	if s != fleet.Blue && s != fleet.Green {
		return fmt.Errorf("unknown slot %q", s)
	}
	return nil
}

func find(ms []fleet.MemberStatus, id string) (fleet.MemberStatus, bool) {
	for _, m := range ms {
		if m.ID == id {
			return m, true
		}
	}
	return fleet.MemberStatus{}, false
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
