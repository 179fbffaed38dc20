package fault

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/haproxy"
	"github.com/rebake/rebake/internal/load"
	"github.com/rebake/rebake/test/servers"
)

// rig is a fleet of two HTTP servers behind a real HAProxy, version 1 serving.
type rig struct {
	t    *testing.T
	d    *fleet.Deployer
	pool *servers.Pool
	addr string
	sock string

	mu    sync.Mutex
	seen  map[string]int // requests by the id that their client gave them
	grace time.Duration
	tired int // after so many requests an instance of version "tired" answers 500
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if _, err := exec.LookPath("haproxy"); err != nil {
		t.Fatal("this test needs the real HAProxy: apt-get install haproxy")
	}
	r := &rig{t: t, seen: map[string]int{}, tired: 20, grace: 300 * time.Millisecond}
	r.pool = &servers.Pool{Handler: r.handler}
	run, err := os.MkdirTemp("/tmp", "rebake-test-")
	must(t, err)
	r.addr, err = servers.FreeAddr()
	must(t, err)
	dir := filepath.Join(t.TempDir(), "web")
	health := fleet.HealthCheck{Type: "http", Port: 80, Path: "/health", Interval: 100 * time.Millisecond, Timeout: time.Second, Rise: 2, Fall: 2}
	r.sock = filepath.Join(run, "r", "haproxy.sock")
	router, err := haproxy.New(haproxy.Config{Listen: r.addr}, dir, filepath.Join(run, "r"), "web", health)
	must(t, err)
	r.d = &fleet.Deployer{Dir: dir, Pool: r.pool, Router: router, Poll: 10 * time.Millisecond,
		Config: fleet.Config{Name: "web", Size: 2, PoolKind: "servers", RouterKind: "haproxy", Health: health}}
	t.Cleanup(func() {
		must(t, r.d.Destroy(context.WithoutCancel(t.Context())))
		must(t, r.pool.Close())
		must(t, os.RemoveAll(run))
	})
	if _, err := r.deploy("1", time.Millisecond); err != nil {
		t.Fatal(err)
	}
	return r
}

// handler tells the version; /slow takes 300 ms.
func (r *rig) handler(version string) http.Handler {
	served := 0
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		if id := req.Header.Get("X-Id"); id != "" {
			r.seen[id]++
		}
		if req.URL.Path != "/health" {
			served++
		}
		bad := version == "tired" && served >= r.tired || version == "500"
		r.mu.Unlock()
		_, _ = io.Copy(io.Discard, req.Body)
		if req.URL.Path == "/slow" {
			time.Sleep(300 * time.Millisecond)
		}
		w.Header().Set("X-Release", version)
		if bad {
			w.WriteHeader(http.StatusInternalServerError)
		}
		fmt.Fprintln(w, version)
	}
	mux.HandleFunc("/", answer)
	return mux
}

// deploy brings the fleet to a version, with one step of 50 % of that hold before all of it.
func (r *rig) deploy(version string, hold time.Duration) (fleet.Result, error) {
	policy, err := fleet.Policy{Port: 80, Within: 5 * time.Second, Refuse: time.Second, KeepOld: time.Hour, Drain: 5 * time.Second, Grace: r.grace,
		Steps: []fleet.Step{{Permille: 500, Hold: hold}, {Permille: 1000, Hold: 200 * time.Millisecond}}}.Complete()
	must(r.t, err)
	img := artifact.Image{Name: "web", Version: version, Digest: artifact.Digest("sha256:" + version)}
	return r.d.Deploy(r.t.Context(), fleet.Request{Spec: fleet.Spec{Image: img, Size: 2, Ports: []int{80}}, Policy: policy})
}

// when does f once, beside the deployment, as soon as it holds at 50 %.
func (r *rig) when(f func()) (done chan struct{}) {
	done = make(chan struct{})
	began := false
	r.d.Recorded = func(kind, what string) {
		if kind == "transition" && what == string(fleet.Holding) && !began {
			began = true
			go func() {
				defer close(done)
				time.Sleep(100 * time.Millisecond)
				f()
			}()
		}
	}
	return done
}

// under sends requests while f runs and a little longer.
func (r *rig) under(f func()) load.Result {
	ctx, stop := context.WithCancel(r.t.Context())
	res := make(chan load.Result, 1)
	go func() {
		res <- load.Run(ctx, load.Options{URL: "http://" + r.addr + "/", Concurrency: 4, Pause: 5 * time.Millisecond, Timeout: 5 * time.Second})
	}()
	f()
	time.Sleep(200 * time.Millisecond)
	stop()
	return <-res
}

func (r *rig) status() fleet.RouterStatus {
	r.t.Helper()
	st, err := r.d.Router.Status(r.t.Context())
	must(r.t, err)
	return st
}

// serves holds that the version alone answers, and that nothing fails any more.
func (r *rig) serves(version string) {
	r.t.Helper()
	res := r.under(func() { time.Sleep(100 * time.Millisecond) })
	if res.Failed > 0 || res.ByVersion[version] != res.Sent || res.Sent == 0 {
		r.t.Errorf("want %s alone to serve: %d of %d requests failed, answers %v", version, res.Failed, res.Sent, res.ByVersion)
	}
}

func (r *rig) routerPID() int {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.d.Dir, "haproxy.pid"))
	must(r.t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	must(r.t, err)
	return pid
}

// by says something to HAProxy as a person with its socket would.
func (r *rig) by(hand string) {
	conn, err := net.Dial("unix", r.sock)
	if err != nil {
		r.t.Error(err)
		return
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, hand+"\n"); err != nil {
		r.t.Error(err)
	}
	_, _ = io.ReadAll(conn)
}

// instances of the slot that is not blue's first, by the deployment that goes on.
func (r *rig) instances(slot fleet.Slot) (ids []string) {
	gs, err := r.pool.Groups(r.t.Context(), "web")
	must(r.t, err)
	for _, g := range gs {
		for _, i := range g.Instances {
			if g.ID.Slot == slot {
				ids = append(ids, i.ID)
			}
		}
	}
	return ids
}
