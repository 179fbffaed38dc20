package haproxy

import (
	"context"
	"errors"
	"fmt"
	"github.com/rebake/rebake/internal/atomicfile"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/load"
)

// fast is a health check for backends on loopback.
var fast = fleet.HealthCheck{Type: "http", Path: "/health", Interval: 100 * time.Millisecond, Timeout: time.Second, Rise: 2, Fall: 2}

// backend is an instance as the router sees one.
type backend struct {
	*httptest.Server
	sick    atomic.Bool // its health check answers 500
	slow    atomic.Bool // its health checks wait for hold, each told to checked
	checked chan struct{}
	early   atomic.Int64  // requests before it had passed a health check
	seen    atomic.Int64  // health checks
	hold    chan struct{} // requests to /hold wait for it
	held    chan struct{} // one for each that waits
}

func newBackend(t *testing.T, version string) *backend {
	t.Helper()
	b := &backend{hold: make(chan struct{}), checked: make(chan struct{}, 1), held: make(chan struct{}, 100)}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/health":
			if b.slow.Load() {
				select {
				case b.checked <- struct{}{}:
				default:
				}
				select {
				case <-b.hold:
				case <-r.Context().Done():
				}
			}
			b.seen.Add(1)
			if b.sick.Load() {
				w.WriteHeader(http.StatusInternalServerError)
			}
			return
		case b.seen.Load() == 0:
			b.early.Add(1)
		}
		if r.URL.Path == "/hold" {
			b.held <- struct{}{}
			select {
			case <-b.hold:
			case <-r.Context().Done():
			}
		}
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, version+"\n")
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *backend) member(id string) fleet.Member {
	return fleet.Member{ID: id, Addr: b.Listener.Addr().String()}
}

// freePort asks the kernel for a port nobody has.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func newRouter(t *testing.T, hc fleet.HealthCheck) *Router {
	t.Helper()
	if _, err := exec.LookPath("haproxy"); err != nil {
		t.Fatal("this test needs the real HAProxy: apt-get install haproxy")
	}
	run, err := os.MkdirTemp("/tmp", "rebake-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	// a directory with what trips up careless quoting
	r, err := New(Config{Listen: freePort(t)}, filepath.Join(t.TempDir(), `a "dir" $HOME`), filepath.Join(run, "r"), "web", hc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return r
}

func ensure(t *testing.T, r *Router) {
	t.Helper()
	if err := r.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func status(t *testing.T, r *Router) fleet.RouterStatus {
	t.Helper()
	st, err := r.Status(context.Background())
	must(t, err)
	return st
}

// await polls for a state of the router.
func await(t *testing.T, r *Router, what string, ok func(fleet.RouterStatus) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		st := status(t, r)
		if ok(st) {
			return
		}
		if pause(ctx, 5*time.Millisecond) != nil {
			t.Fatalf("waited in vain for %s: %+v", what, st)
		}
	}
}

func healthy(s fleet.Slot, n int) func(fleet.RouterStatus) bool {
	return func(st fleet.RouterStatus) bool {
		ok := 0
		for _, m := range st.Members[s] {
			if m.Healthy {
				ok++
			}
		}
		return ok == n && len(st.Members[s]) == n
	}
}

func idle(s fleet.Slot) func(fleet.RouterStatus) bool {
	return func(st fleet.RouterStatus) bool {
		for _, m := range st.Members[s] {
			if m.InFlight > 0 {
				return false
			}
		}
		return true
	}
}

// serve attaches a backend and gives it all traffic.
func serve(t *testing.T, r *Router, s fleet.Slot, ms ...fleet.Member) {
	t.Helper()
	ctx := context.Background()
	must(t, r.Attach(ctx, s, ms))
	await(t, r, "health", healthy(s, len(ms)))
	must(t, r.Ready(ctx, s))
	must(t, r.SetWeights(ctx, map[fleet.Slot]int{s: 1000}))
}

func get(t *testing.T, r *Router) (int, string) {
	t.Helper()
	res, err := http.Get("http://" + r.cfg.Listen + "/")
	must(t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	must(t, err)
	return res.StatusCode, strings.TrimSpace(string(body))
}

func TestTwentySwapsUnderLoadLoseNoRequest(t *testing.T) {
	r := newRouter(t, fast)
	ensure(t, r)
	ctx := context.Background()
	old := []*backend{newBackend(t, "v0"), newBackend(t, "v0")}
	slot := fleet.Blue
	serve(t, r, slot, old[0].member("v0-1"), old[1].member("v0-2"))

	lctx, stop := context.WithCancel(ctx)
	defer stop()
	live := new(load.Counter)
	result := make(chan load.Result, 1)
	go func() {
		result <- load.Run(lctx, load.Options{URL: "http://" + r.cfg.Listen, Concurrency: 8, Live: live})
	}()
	began := time.Now()
	for i := 1; i <= 20; i++ {
		v := fmt.Sprintf("v%d", i)
		next := []*backend{newBackend(t, v), newBackend(t, v)}
		to := slot.Other()
		must(t, r.Attach(ctx, to, []fleet.Member{next[0].member(v + "-1"), next[1].member(v + "-2")}))
		await(t, r, "health", healthy(to, 2))
		must(t, r.Ready(ctx, to))
		for _, w := range []int{100, 500, 1000} {
			must(t, r.SetWeights(ctx, map[fleet.Slot]int{to: w, slot: 1000 - w}))
			sent := live.Sent.Load()
			await(t, r, "requests", func(fleet.RouterStatus) bool { return live.Sent.Load() > sent+50 })
		}
		must(t, r.Drain(ctx, slot))
		await(t, r, "idle", idle(slot))
		if cut, err := r.Detach(ctx, slot, false); err != nil || cut != 0 {
			t.Fatalf("detach: cut %d, %v", cut, err)
		}
		for _, b := range old {
			b.CloseClientConnections()
			b.Close()
		}
		for _, b := range next {
			if n := b.early.Load(); n > 0 {
				t.Errorf("%s had %d requests before its first health check", v, n)
			}
		}
		old, slot = next, to
	}
	stop()
	res := <-result
	t.Logf("20 swaps in %s, %d requests, p50 %s, p99 %s", time.Since(began).Round(time.Millisecond), res.Sent, res.P50, res.P99)
	if res.Failed != 0 {
		t.Errorf("%d of %d requests failed: %v", res.Failed, res.Sent, res.FirstErrors)
	}
	if len(res.ByVersion) != 21 {
		t.Errorf("versions that answered: %v", res.ByVersion)
	}
}

func TestTheSplitIsWhatTheMapSays(t *testing.T) {
	r := newRouter(t, fast)
	ensure(t, r)
	ctx := context.Background()
	if code, _ := get(t, r); code != http.StatusServiceUnavailable {
		t.Errorf("status %d before anything is in service", code)
	}
	blue, green := newBackend(t, "blue"), newBackend(t, "green")
	serve(t, r, fleet.Blue, blue.member("b"))
	must(t, r.Attach(ctx, fleet.Green, []fleet.Member{green.member("g")}))
	await(t, r, "health", healthy(fleet.Green, 1))
	must(t, r.Ready(ctx, fleet.Green))
	for _, permille := range []int{0, 250, 1000} {
		must(t, r.SetWeights(ctx, map[fleet.Slot]int{fleet.Blue: 1000 - permille, fleet.Green: permille}))
		if w := status(t, r).Weights; w[fleet.Green] != permille || w[fleet.Blue] != 1000-permille {
			t.Errorf("weights %v, want green %d", w, permille)
		}
		n := 0
		for range 1000 {
			if _, who := get(t, r); who == "green" {
				n++
			}
		}
		// at 250 of 1000 the standard deviation is 14: five of them
		if low, high := permille-70, permille+70; n < low || n > high || (permille == 0 && n != 0) || (permille == 1000 && n != 1000) {
			t.Errorf("green %d permille: got %d of 1000", permille, n)
		}
	}
	must(t, r.SetWeights(ctx, nil))
	if code, _ := get(t, r); code != http.StatusServiceUnavailable {
		t.Errorf("status %d with all weights 0", code)
	}
	for _, w := range []map[fleet.Slot]int{{fleet.Blue: 999}, {fleet.Blue: -1, fleet.Green: 1001}, {fleet.Blue: 1000, "red": 0}} {
		if err := r.SetWeights(ctx, w); err == nil {
			t.Errorf("weights %v were taken", w)
		}
	}
}

func TestOnlyTheHealthyBecomeReady(t *testing.T) {
	r := newRouter(t, fast)
	ensure(t, r)
	ctx := context.Background()
	good, bad := newBackend(t, "good"), newBackend(t, "bad")
	bad.sick.Store(true)
	must(t, r.Attach(ctx, fleet.Blue, []fleet.Member{good.member("good"), bad.member("bad")}))
	must(t, r.SetWeights(ctx, map[fleet.Slot]int{fleet.Blue: 1000}))
	await(t, r, "both verdicts", func(st fleet.RouterStatus) bool {
		g, _ := find(st.Members[fleet.Blue], "good")
		b, _ := find(st.Members[fleet.Blue], "bad")
		return g.Healthy && b.Check == "L7STS/500" && !b.Healthy && b.Admin == "drain" && g.Admin == "drain"
	})
	if code, who := get(t, r); code != http.StatusServiceUnavailable {
		t.Errorf("a drained slot answered %d %s", code, who)
	}
	err := r.Ready(ctx, fleet.Blue)
	if !errors.Is(err, fleet.ErrNotHealthy) || !strings.Contains(err.Error(), "bad (L7STS/500)") || strings.Contains(err.Error(), "good") {
		t.Errorf("ready: %v", err)
	}
	for range 50 {
		if code, who := get(t, r); code != 200 || who != "good" {
			t.Fatalf("answered %d %s", code, who)
		}
	}
	bad.sick.Store(false)
	await(t, r, "recovery", healthy(fleet.Blue, 2))
	must(t, r.Ready(ctx, fleet.Blue))
	if err := r.Ready(ctx, fleet.Green); !errors.Is(err, fleet.ErrNotHealthy) {
		t.Errorf("ready of an empty slot: %v", err)
	}
}

// QEMU accepts connections for a guest that does not listen: only an answer counts.
func TestAcceptedConnectionWithoutAnswerIsNotHealthy(t *testing.T) {
	hc := fast
	hc.Timeout = 100 * time.Millisecond
	r := newRouter(t, hc)
	ensure(t, r)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close() // the kernel accepts, nobody answers
	must(t, r.Attach(context.Background(), fleet.Blue, []fleet.Member{{ID: "mute", Addr: l.Addr().String()}}))
	await(t, r, "a timeout", func(st fleet.RouterStatus) bool {
		m, ok := find(st.Members[fleet.Blue], "mute")
		return ok && m.Check == "L7TOUT" && !m.Healthy
	})
}

func TestTCPCheckAndMode(t *testing.T) {
	hc := fast
	hc.Type = "tcp"
	r := newRouter(t, hc)
	r.cfg.Mode = "tcp"
	ensure(t, r)
	b := newBackend(t, "tcp")
	serve(t, r, fleet.Green, b.member("g"))
	if code, who := get(t, r); code != 200 || who != "tcp" {
		t.Errorf("answered %d %s", code, who)
	}
	if m := status(t, r).Members[fleet.Green][0]; m.Check != "L4OK" {
		t.Errorf("check %s", m.Check)
	}
	must(t, r.SetWeights(context.Background(), nil))
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if res, err := c.Get("http://" + r.cfg.Listen + "/"); err == nil {
		res.Body.Close()
		t.Errorf("connection got %s with all weights 0", res.Status)
	}
}

func TestDetachWaitsForRequestsInFlight(t *testing.T) {
	r := newRouter(t, fast)
	ensure(t, r)
	ctx := context.Background()
	for _, force := range []bool{false, true} {
		b := newBackend(t, "v")
		serve(t, r, fleet.Blue, b.member("b"))
		answer := make(chan int, 1)
		go func() {
			res, err := http.Post("http://"+r.cfg.Listen+"/hold", "text/plain", nil)
			if err != nil {
				answer <- 0
				return
			}
			res.Body.Close()
			answer <- res.StatusCode
		}()
		<-b.held
		if cut, err := r.Detach(ctx, fleet.Blue, false); !errors.Is(err, fleet.ErrBusy) || cut != 0 {
			t.Errorf("detach with a request in flight: cut %d, %v", cut, err)
		}
		if m := status(t, r).Members[fleet.Blue]; len(m) != 1 || m[0].InFlight != 1 || m[0].Admin != "drain" {
			t.Errorf("after a refused detach: %+v", m)
		}
		if force {
			if cut, err := r.Detach(ctx, fleet.Blue, true); err != nil || cut != 1 {
				t.Errorf("forced detach: cut %d, %v", cut, err)
			}
			if code := <-answer; code == 200 {
				t.Error("the request that was cut got its answer")
			}
			close(b.hold)
		} else {
			close(b.hold)
			if code := <-answer; code != 200 {
				t.Errorf("the request in flight got %d", code)
			}
			await(t, r, "idle", idle(fleet.Blue))
			if cut, err := r.Detach(ctx, fleet.Blue, false); err != nil || cut != 0 {
				t.Errorf("detach: cut %d, %v", cut, err)
			}
		}
		if m := status(t, r).Members[fleet.Blue]; len(m) != 0 {
			t.Errorf("left: %+v", m)
		}
		if cut, err := r.Detach(ctx, fleet.Blue, force); err != nil || cut != 0 {
			t.Errorf("detach of an empty slot: cut %d, %v", cut, err)
		}
	}
}

func TestKilledRouterComesBackAsItWas(t *testing.T) {
	r := newRouter(t, fast)
	ensure(t, r)
	ctx := context.Background()
	blue, green, sick := newBackend(t, "blue"), newBackend(t, "green"), newBackend(t, "sick")
	serve(t, r, fleet.Blue, blue.member("b"), sick.member("sick"))
	must(t, r.Attach(ctx, fleet.Green, []fleet.Member{green.member("g")}))
	must(t, r.SetWeights(ctx, map[fleet.Slot]int{fleet.Blue: 900, fleet.Green: 100}))
	before := r.pid()
	must(t, syscall.Kill(before, syscall.SIGKILL))
	await(t, r, "its end", func(st fleet.RouterStatus) bool { return !st.Up && r.pid() == 0 })
	if err := r.Drain(ctx, fleet.Blue); err == nil {
		t.Error("a change was taken while no router runs")
	}
	blue.seen.Store(0)
	blue.slow.Store(true) // its first check takes long: what goes to ready too soon is seen
	sick.sick.Store(true) // an instance that died with it must not stop the rest

	other, err := New(r.cfg, r.dir, r.runDir, r.name, r.hc) // as the next process
	must(t, err)
	ended := make(chan error, 1)
	go func() { ended <- other.Ensure(ctx) }()
	<-blue.checked
	if st := status(t, other); !st.Up || st.Members[fleet.Blue][0].Admin != "drain" {
		t.Errorf("before its first check is answered: %+v", st)
	}
	close(blue.hold)
	must(t, <-ended)
	st := status(t, other)
	b, _ := find(st.Members[fleet.Blue], "b")
	g, _ := find(st.Members[fleet.Green], "g")
	if st.Weights[fleet.Green] != 100 || b.Admin != "ready" || g.Admin != "drain" || other.pid() == before {
		t.Errorf("after a restart: %+v", st)
	}
	if blue.early.Load() != 0 {
		t.Error("traffic before the first health check")
	}
	must(t, other.SetWeights(ctx, map[fleet.Slot]int{fleet.Blue: 1000}))
	if code, who := get(t, other); code != 200 || who != "blue" {
		t.Errorf("answered %d %s", code, who)
	}
	again := other.pid()
	ensure(t, other)
	if other.pid() != again {
		t.Error("Ensure replaced a running router")
	}
}

// What a kill -9 between two steps leaves, Ensure finishes.
func TestEnsureFinishesWhatAKillCutOff(t *testing.T) {
	ctx := context.Background()
	cases := map[string]struct {
		interrupt func(*testing.T, *Router, *backend)
		want      func(fleet.RouterStatus) bool
	}{
		"member written, not added": {
			func(t *testing.T, r *Router, b *backend) {
				m, err := r.readMembers()
				must(t, err)
				m.put(fleet.Green, b.member("g"))
				must(t, r.writeMembers(m))
			},
			func(st fleet.RouterStatus) bool {
				g := st.Members[fleet.Green]
				return len(g) == 1 && g[0].Admin == "drain"
			},
		},
		"member added, not drained, not checked": {
			func(t *testing.T, r *Router, b *backend) {
				m, err := r.readMembers()
				must(t, err)
				m.put(fleet.Green, b.member("g"))
				must(t, r.writeMembers(m))
				must(t, r.expect(ctx, "add server web_green/g "+b.member("g").Addr+" check inter 100", "New server registered."))
			},
			func(st fleet.RouterStatus) bool {
				g := st.Members[fleet.Green]
				return len(g) == 1 && g[0].Admin == "drain" && g[0].Check != ""
			},
		},
		"member forgotten, not deleted": {
			func(t *testing.T, r *Router, _ *backend) {
				must(t, r.expect(ctx, "add server web_green/g 127.0.0.1:1 check", "New server registered."))
			},
			func(st fleet.RouterStatus) bool { return len(st.Members[fleet.Green]) == 0 },
		},
		"drain written, not done": {
			func(t *testing.T, r *Router, _ *backend) {
				m, err := r.readMembers()
				must(t, err)
				m.get(fleet.Blue, "b").Ready = false
				must(t, r.writeMembers(m))
			},
			func(st fleet.RouterStatus) bool { return st.Members[fleet.Blue][0].Admin == "drain" },
		},
		"weights written, not set": {
			func(t *testing.T, r *Router, _ *backend) {
				must(t, atomicfile.Write(r.file(mapName), mapText(300), 0o600))
			},
			func(st fleet.RouterStatus) bool {
				return st.Weights[fleet.Green] == 300 && st.Weights[fleet.Blue] == 700
			},
		},
		"process id lost": {
			func(t *testing.T, r *Router, _ *backend) { must(t, os.Remove(r.file(pidName))) },
			func(st fleet.RouterStatus) bool { return st.Up },
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := newRouter(t, fast)
			ensure(t, r)
			serve(t, r, fleet.Blue, newBackend(t, "blue").member("b"))
			c.interrupt(t, r, newBackend(t, "green"))
			ensure(t, r)
			if st := status(t, r); !c.want(st) || r.pid() == 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

func TestInstanceThatCameBackElsewhereIsReplaced(t *testing.T) {
	r := newRouter(t, fast)
	ensure(t, r)
	ctx := context.Background()
	a, b := newBackend(t, "first"), newBackend(t, "second")
	serve(t, r, fleet.Blue, a.member("x"))
	must(t, r.Attach(ctx, fleet.Blue, []fleet.Member{a.member("x")}))
	if m := status(t, r).Members[fleet.Blue]; len(m) != 1 || m[0].Admin != "ready" {
		t.Errorf("attached twice: %+v", m)
	}
	serve(t, r, fleet.Blue, b.member("x"))
	if code, who := get(t, r); code != 200 || who != "second" {
		t.Errorf("answered %d %s", code, who)
	}
}

func TestPortInUseIsSaid(t *testing.T) {
	r := newRouter(t, fast)
	l, err := net.Listen("tcp", r.cfg.Listen)
	must(t, err)
	defer l.Close()
	err = r.Ensure(context.Background())
	if err == nil || !strings.Contains(err.Error(), r.cfg.Listen+" is in use") || !strings.Contains(err.Error(), "router.haproxy.listen") {
		t.Errorf("ensure on a port in use: %v", err)
	}
}

func TestTwoRoutersDoNotShareAPort(t *testing.T) {
	first, second := newRouter(t, fast), newRouter(t, fast)
	second.cfg.Listen = first.cfg.Listen
	ensure(t, first)
	if err := second.Ensure(context.Background()); err == nil || !strings.Contains(err.Error(), "is in use") {
		t.Errorf("the second router on one address: %v", err)
	}
}

func TestOtherSettingsAreRefusedWhileItRuns(t *testing.T) {
	r := newRouter(t, fast)
	ensure(t, r)
	hc := fast
	hc.Path = "/other"
	other, err := New(r.cfg, r.dir, r.runDir, r.name, hc)
	must(t, err)
	if err := other.Ensure(context.Background()); err == nil || !strings.Contains(err.Error(), "/other") {
		t.Errorf("ensure with another health check: %v", err)
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	r := newRouter(t, fast)
	ensure(t, r)
	pid := r.pid()
	if fi, err := os.Stat(r.socketPath()); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v %v", fi, err)
	}
	must(t, r.Remove(context.Background()))
	for _, p := range []string{r.dir, r.runDir} {
		if _, err := os.Stat(p); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left (%v)", p, err)
		}
	}
	if c := commandLine(pid); c != "" {
		t.Errorf("process %d is left: %s", pid, c)
	}
	must(t, r.Remove(context.Background()))
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	ok := Config{}
	for name, c := range map[string]struct {
		cfg  Config
		name string
		hc   fleet.HealthCheck
	}{
		"listen without port":       {Config{Listen: "127.0.0.1"}, "web", fast},
		"listen with more words":    {Config{Listen: "127.0.0.1:80 user root"}, "web", fast},
		"unknown mode":              {Config{Mode: "udp"}, "web", fast},
		"name that is two words":    {ok, "web site", fast},
		"unknown check":             {ok, "web", fleet.HealthCheck{Type: "ping"}},
		"path with a line break":    {ok, "web", fleet.HealthCheck{Path: "/\nbind :1"}},
		"path that is not absolute": {ok, "web", fleet.HealthCheck{Path: "x"}},
		"status 99":                 {ok, "web", fleet.HealthCheck{Status: 99}},
	} {
		if _, err := New(c.cfg, "/nowhere", "/tmp/x", c.name, c.hc); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if _, err := New(ok, "/nowhere", "/tmp/"+strings.Repeat("x", 100), "web", fast); err == nil {
		t.Error("a socket path that is too long was taken")
	}
	r := newRouter(t, fast)
	ensure(t, r)
	for _, m := range []fleet.Member{{ID: "a b", Addr: "127.0.0.1:1"}, {ID: "a", Addr: "127.0.0.1:1; del server"}, {ID: "a", Addr: "localhost"}, {ID: "a", Addr: "h:1"}} {
		if err := r.Attach(context.Background(), fleet.Blue, []fleet.Member{m}); err == nil {
			t.Errorf("member %+v was taken", m)
		}
	}
}
