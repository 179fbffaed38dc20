package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rebake/rebake/fleet"
)

// RouterWorld is a fresh router, not yet started, and what the suite needs around it.
type RouterWorld struct {
	Router fleet.Router
	// Backend makes a server that answers 200; set changes what it answers.
	Backend func(t *testing.T) (addr string, set func(status int))
	// Send puts a request through and says the address of the backend that got
	// it. With hold it stays in flight until end, which says whether it ended well.
	Send func(hold bool) (addr string, end func() error, err error)
	// Kill ends the router as a crash would; nil: it is no process that could be
	// killed, and Again opens it as another process would.
	Kill  func(t *testing.T)
	Again func(t *testing.T) fleet.Router
	// Direct is a router of a load balancer in a cloud. What such a one cannot do
	// is not asked of it, and what it does instead is: a healthy member takes traffic as
	// soon as its slot has weight, and is ready from the start; nobody knows of
	// requests in flight but that a member drains, which counts as one.
	Direct bool
	// Member is the member of a backend; nil: its name is one that the suite gives.
	Member func(t *testing.T, name, addr string) fleet.Member
	// Patience is how long checks and drains may take; default 10 s.
	Patience time.Duration
}

// Router is the suite of fleet.Router.
func Router(t *testing.T, open func(t *testing.T) RouterWorld) {
	for name, f := range map[string]func(*routerSuite){
		"ensure twice is ensure once":                       (*routerSuite).ensureTwice,
		"attached gets nothing before ready":                (*routerSuite).nothingBeforeReady,
		"ready refuses the unhealthy and lets in the rest":  (*routerSuite).readyRefuses,
		"attach again keeps what is there":                  (*routerSuite).attachAgain,
		"requests are split by weight":                      (*routerSuite).weights,
		"weights that do not add up change nothing":         (*routerSuite).badWeights,
		"drain lets requests in flight end":                 (*routerSuite).drain,
		"detach refuses while busy, force cuts and counts":  (*routerSuite).detach,
		"some of a slot's members are drained and detached": (*routerSuite).some,
		"an epoch does not go back":                         (*routerSuite).fenced,
		"a restarted router comes back as it was":           (*routerSuite).restart,
		"a member that fails its checks is seen, then back": (*routerSuite).sick,
		"an ended context changes nothing":                  (*routerSuite).ended,
		"remove leaves nothing, twice":                      (*routerSuite).remove,
	} {
		t.Run(name, func(t *testing.T) {
			w := open(t)
			if w.Patience == 0 {
				w.Patience = 10 * time.Second
			}
			s := &routerSuite{RouterWorld: w, t: t}
			s.ok(w.Router.Ensure(t.Context()))
			f(s)
		})
	}
}

type routerSuite struct {
	RouterWorld
	t *testing.T
}

func (s *routerSuite) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *routerSuite) status() fleet.RouterStatus {
	s.t.Helper()
	st, err := s.Router.Status(s.t.Context())
	s.ok(err)
	return st
}

// await looks until it is so.
func (s *routerSuite) await(what string, so func(fleet.RouterStatus) bool) {
	s.t.Helper()
	end := time.Now().Add(s.Patience)
	for !so(s.status()) {
		if time.Now().After(end) {
			s.t.Fatalf("not within %s: %s; status %+v", s.Patience, what, s.status())
		}
		<-time.After(5 * time.Millisecond)
	}
}

// attach puts n new backends behind a slot and waits until they are healthy.
func (s *routerSuite) attach(slot fleet.Slot, n int) (addrs map[string]bool, set []func(int)) {
	s.t.Helper()
	addrs = map[string]bool{}
	var ms []fleet.Member
	for i := range n {
		addr, f := s.Backend(s.t)
		addrs[addr], set = true, append(set, f)
		ms = append(ms, s.member(fmt.Sprintf("web-%s-%d", slot, i+1), addr))
	}
	s.ok(s.Router.Attach(s.t.Context(), slot, ms))
	s.await("members healthy", func(st fleet.RouterStatus) bool { return routerHealthy(st, slot) == n })
	return addrs, set
}

func (s *routerSuite) member(name, addr string) fleet.Member {
	s.t.Helper()
	if s.Member != nil {
		return s.Member(s.t, name, addr)
	}
	return fleet.Member{ID: name, Addr: addr}
}

// out is how a member stands that was attached and not let in.
func (s *routerSuite) out() string {
	if s.Direct {
		return "ready"
	}
	return "drain"
}

func (s *routerSuite) serve(slot fleet.Slot, n int) map[string]bool {
	s.t.Helper()
	addrs, _ := s.attach(slot, n)
	s.ok(s.Router.Ready(s.t.Context(), slot))
	s.ok(s.Router.SetWeights(s.t.Context(), map[fleet.Slot]int{slot: 1000, slot.Other(): 0}))
	return addrs
}

func routerHealthy(st fleet.RouterStatus, slot fleet.Slot) (n int) {
	for _, m := range st.Members[slot] {
		if m.Healthy {
			n++
		}
	}
	return n
}

// one sends a request that must get through, and ends it.
func (s *routerSuite) one() string {
	s.t.Helper()
	addr, end, err := s.Send(false)
	s.ok(err)
	s.ok(end())
	return addr
}

func (s *routerSuite) ensureTwice() {
	blue := s.serve(fleet.Blue, 1)
	s.ok(s.Router.Ensure(s.t.Context()))
	st := s.status()
	if !st.Up || st.Weights[fleet.Blue] != 1000 || len(st.Members[fleet.Blue]) != 1 || !blue[s.one()] {
		s.t.Errorf("%+v", st)
	}
}

func (s *routerSuite) nothingBeforeReady() {
	blue := s.serve(fleet.Blue, 1)
	_, _ = s.attach(fleet.Green, 2)
	for _, m := range s.status().Members[fleet.Green] {
		if m.Admin != s.out() {
			s.t.Errorf("%s is %s before ready", m.ID, m.Admin)
		}
	}
	if s.Direct { // without weight it takes nothing
		for range 20 {
			if !blue[s.one()] {
				s.t.Error("a slot without weight got a request")
			}
		}
		return
	}
	// even with weight, those that are not let in take nothing
	s.ok(s.Router.SetWeights(s.t.Context(), map[fleet.Slot]int{fleet.Blue: 500, fleet.Green: 500}))
	for range 20 {
		addr, end, err := s.Send(false)
		if err != nil {
			continue // its slot has nobody who is ready
		}
		if !blue[addr] {
			s.t.Errorf("%s got a request before ready", addr)
		}
		_ = end()
	}
	for _, m := range s.status().Members[fleet.Green] {
		if m.Requests != 0 {
			s.t.Errorf("%s counts %d requests before ready", m.ID, m.Requests)
		}
	}
}

func (s *routerSuite) readyRefuses() {
	ctx := s.t.Context()
	if err := s.Router.Ready(ctx, fleet.Blue); !errors.Is(err, fleet.ErrNotHealthy) {
		s.t.Errorf("ready with no members: %v", err)
	}
	good, _ := s.Backend(s.t)
	bad, set := s.Backend(s.t)
	set(500)
	one, two := s.member("web-blue-1", good), s.member("web-blue-2", bad)
	s.ok(s.Router.Attach(ctx, fleet.Blue, []fleet.Member{one, two}))
	s.await("one healthy, the other failed", func(st fleet.RouterStatus) bool {
		failed := false
		for _, m := range st.Members[fleet.Blue] {
			failed = failed || m.ID == two.ID && m.Check == "L7STS/500"
		}
		return failed && routerHealthy(st, fleet.Blue) == 1
	})
	if err := s.Router.Ready(ctx, fleet.Blue); !errors.Is(err, fleet.ErrNotHealthy) {
		s.t.Errorf("ready with an unhealthy member: %v", err)
	}
	for _, m := range s.status().Members[fleet.Blue] {
		if want := map[string]string{one.ID: "ready", two.ID: s.out()}[m.ID]; m.Admin != want {
			s.t.Errorf("%s is %s, want %s", m.ID, m.Admin, want)
		}
	}
}

func (s *routerSuite) attachAgain() {
	blue := s.serve(fleet.Blue, 2)
	var ms []fleet.Member
	for _, m := range s.status().Members[fleet.Blue] {
		ms = append(ms, m.Member)
	}
	s.ok(s.Router.Attach(s.t.Context(), fleet.Blue, ms))
	st := s.status()
	if len(st.Members[fleet.Blue]) != 2 || routerHealthy(st, fleet.Blue) != 2 {
		s.t.Errorf("%+v", st.Members)
	}
	for _, m := range st.Members[fleet.Blue] {
		if m.Admin != "ready" {
			s.t.Errorf("%s is %s", m.ID, m.Admin)
		}
	}
	if !blue[s.one()] {
		s.t.Error("somebody else answered")
	}
}

func (s *routerSuite) weights() {
	s.serve(fleet.Blue, 2)
	green, _ := s.attach(fleet.Green, 2)
	s.ok(s.Router.Ready(s.t.Context(), fleet.Green))
	for _, permille := range []int{0, 100, 500, 1000} {
		s.ok(s.Router.SetWeights(s.t.Context(), map[fleet.Slot]int{fleet.Blue: 1000 - permille, fleet.Green: permille}))
		if got := s.status().Weights[fleet.Green]; got != permille {
			s.t.Errorf("status says %d, want %d", got, permille)
		}
		const n = 200
		got := 0
		for range n {
			if green[s.one()] {
				got++
			}
		}
		// six standard deviations of a fair draw are 42 of 200; at the ends there is no chance in it
		if off := got - permille*n/1000; (permille == 0 || permille == 1000) && off != 0 || off > 42 || off < -42 {
			s.t.Errorf("green got %d of %d requests at %d permille", got, n, permille)
		}
	}
}

func (s *routerSuite) badWeights() {
	blue := s.serve(fleet.Blue, 1)
	for _, w := range []map[fleet.Slot]int{{fleet.Blue: 500}, {fleet.Blue: 600, fleet.Green: 600}, {fleet.Blue: -1, fleet.Green: 1001}} {
		if err := s.Router.SetWeights(s.t.Context(), w); err == nil {
			s.t.Errorf("%v was taken", w)
		}
	}
	if w := s.status().Weights; w[fleet.Blue] != 1000 || !blue[s.one()] {
		s.t.Errorf("weights are %v", w)
	}
}

func (s *routerSuite) inFlight(slot fleet.Slot) (n int) {
	for _, m := range s.status().Members[slot] {
		n += m.InFlight
	}
	return n
}

func (s *routerSuite) drain() {
	blue := s.serve(fleet.Blue, 1)
	addr, end, err := s.Send(true)
	s.ok(err)
	if n := s.inFlight(fleet.Blue); n != 1 && !s.Direct || !blue[addr] {
		s.t.Errorf("%d in flight at %s", n, addr)
	}
	green, _ := s.attach(fleet.Green, 1)
	s.ok(s.Router.Ready(s.t.Context(), fleet.Green))
	s.ok(s.Router.SetWeights(s.t.Context(), map[fleet.Slot]int{fleet.Green: 1000}))
	s.ok(s.Router.Drain(s.t.Context(), fleet.Blue))
	for range 20 {
		if !green[s.one()] {
			s.t.Error("a drained slot got a request")
		}
	}
	if n := s.inFlight(fleet.Blue); n != 1 {
		s.t.Errorf("%d in flight after the drain", n)
	}
	if err := end(); err != nil {
		s.t.Errorf("the request in flight: %v", err)
	}
	s.await("the drained slot idle", func(fleet.RouterStatus) bool { return s.inFlight(fleet.Blue) == 0 })
	cut, err := s.Router.Detach(s.t.Context(), fleet.Blue, false)
	if err != nil || cut != 0 || len(s.status().Members[fleet.Blue]) != 0 {
		s.t.Errorf("detach: cut %d, %v", cut, err)
	}
	if cut, err := s.Router.Detach(s.t.Context(), fleet.Blue, false); err != nil || cut != 0 {
		s.t.Errorf("detach again: cut %d, %v", cut, err)
	}
}

func (s *routerSuite) detach() {
	s.serve(fleet.Blue, 1)
	_, end, err := s.Send(true)
	s.ok(err)
	s.ok(s.Router.SetWeights(s.t.Context(), map[fleet.Slot]int{}))
	if _, err := s.Router.Detach(s.t.Context(), fleet.Blue, false); !errors.Is(err, fleet.ErrBusy) {
		s.t.Errorf("detach while busy: %v", err)
	}
	if n := s.inFlight(fleet.Blue); n != 1 {
		s.t.Errorf("%d in flight after the refusal", n)
	}
	if cut, err := s.Router.Detach(s.t.Context(), fleet.Blue, true); err != nil || cut != 1 {
		s.t.Errorf("forced: cut %d, %v", cut, err)
	}
	_ = end() // it was cut: what it says is the backend's affair
	if m := s.status().Members[fleet.Blue]; len(m) != 0 {
		s.t.Errorf("left: %v", m)
	}
}

func (s *routerSuite) restart() {
	blue := s.serve(fleet.Blue, 2)
	s.attach(fleet.Green, 1)
	if s.Kill == nil {
		s.Router = s.Again(s.t)
	} else {
		s.Kill(s.t)
		if st, err := s.Router.Status(s.t.Context()); err != nil || st.Up {
			s.t.Errorf("a dead router: up %v, %v", st.Up, err)
		}
	}
	s.ok(s.Router.Ensure(s.t.Context()))
	st := s.status()
	if !st.Up || st.Weights[fleet.Blue] != 1000 || len(st.Members[fleet.Blue]) != 2 || len(st.Members[fleet.Green]) != 1 {
		s.t.Fatalf("%+v", st)
	}
	for _, m := range st.Members[fleet.Green] {
		if m.Admin != s.out() {
			s.t.Errorf("%s came back as %s", m.ID, m.Admin)
		}
	}
	s.await("both healthy again", func(st fleet.RouterStatus) bool { return routerHealthy(st, fleet.Blue) == 2 })
	for range 10 {
		if !blue[s.one()] {
			s.t.Error("somebody else answered")
		}
	}
}

func (s *routerSuite) sick() {
	_, set := s.attach(fleet.Blue, 2)
	s.ok(s.Router.Ready(s.t.Context(), fleet.Blue))
	set[0](503)
	s.await("one unhealthy", func(st fleet.RouterStatus) bool { return routerHealthy(st, fleet.Blue) == 1 })
	set[0](200)
	s.await("both healthy", func(st fleet.RouterStatus) bool { return routerHealthy(st, fleet.Blue) == 2 })
}

func (s *routerSuite) ended() {
	s.serve(fleet.Blue, 1)
	ctx, cancel := context.WithCancel(s.t.Context())
	cancel()
	if err := s.Router.SetWeights(ctx, map[fleet.Slot]int{fleet.Green: 1000}); err == nil {
		s.t.Error("weights were set with an ended context")
	}
	if err := s.Router.Drain(ctx, fleet.Blue); err == nil {
		s.t.Error("drained with an ended context")
	}
	st := s.status()
	if st.Weights[fleet.Blue] != 1000 || st.Members[fleet.Blue][0].Admin != "ready" {
		s.t.Errorf("%+v", st)
	}
}

func (s *routerSuite) remove() {
	s.serve(fleet.Blue, 1)
	for range 2 {
		s.ok(s.Router.Remove(s.t.Context()))
	}
	if st := s.status(); st.Up {
		s.t.Errorf("%+v", st)
	}
	if _, _, err := s.Send(false); err == nil {
		s.t.Error("a removed router takes requests")
	}
}

// HTTPBackend is RouterWorld.Backend for routers of real HTTP. A request with
// the header X-Hold is answered at once and ends when its client says so.
func HTTPBackend(t *testing.T) (addr string, set func(status int)) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stop, set := HTTPServe(l)
	t.Cleanup(stop)
	return l.Addr().String(), set
}

// HTTPServe is HTTPBackend on a listener.
func HTTPServe(l net.Listener) (stop func(), set func(status int)) {
	var status atomic.Int32
	status.Store(200)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		w.Header().Set("X-Backend", host.String())
		w.WriteHeader(int(status.Load()))
		if r.Header.Get("X-Hold") != "" {
			_ = http.NewResponseController(w).EnableFullDuplex()
			_ = http.NewResponseController(w).Flush()
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, "done")
		}
	}))
	_ = srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	return srv.Close, func(s int) { status.Store(int32(s)) }
}

// HTTPSend is RouterWorld.Send for a router that listens on addr: a POST whose
// body ends when end is called, so that nothing may send it again.
func HTTPSend(addr string) func(hold bool) (string, func() error, error) {
	client := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
	return func(hold bool) (string, func() error, error) {
		body, finish := io.Pipe()
		req, err := http.NewRequest(http.MethodPost, "http://"+addr+"/", body)
		if err != nil {
			return "", nil, err
		}
		want := ""
		if hold {
			want = "done"
			req.Header.Set("X-Hold", "1")
		} else {
			_ = finish.Close()
			req.Body, req.ContentLength = http.NoBody, 0
		}
		go func() { _, _ = io.WriteString(finish, "x") }() // the client holds the head back until there is a body
		res, err := client.Do(req)
		if err != nil {
			_ = finish.Close()
			return "", nil, err
		}
		var once sync.Once
		end := func() (err error) {
			once.Do(func() {
				_ = finish.Close()
				var b []byte
				b, err = io.ReadAll(res.Body)
				_ = res.Body.Close()
				if err == nil && string(b) != want {
					err = fmt.Errorf("the answer ends after %q", b)
				}
			})
			return err
		}
		if res.StatusCode != http.StatusOK {
			_ = finish.Close()
			_ = res.Body.Close()
			return "", nil, fmt.Errorf("status %d", res.StatusCode)
		}
		return res.Header.Get("X-Backend"), end, nil
	}
}
