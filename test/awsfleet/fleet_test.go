//go:build e2e

package awsfleet_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/alb"
	"github.com/rebake/rebake/fleet/asg"
	"github.com/rebake/rebake/internal/awscalls"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/test/awsfake"
	"github.com/rebake/rebake/test/awsfleet"
)

const (
	ms        = time.Millisecond
	guestPort = 18081
)

// world is a fleet in a cloud, with clients.
type world struct {
	*awsfleet.World
	t      testing.TB
	cloud  *awsfake.Cloud
	dir    string
	images map[string]artifact.Image
	d      *fleet.Deployer
	checks fleet.HealthCheck

	mu  sync.Mutex
	bad map[string]int // status that the instances of an AMI answer, instead of 200
}

var health = fleet.HealthCheck{Type: "http", Port: guestPort, Path: "/health", Interval: 5 * time.Second, Timeout: 2 * time.Second, Rise: 2, Fall: 2}

// newWorld has images of the versions. Its instances serve real HTTP; with real
// false the cloud answers for them.
func newWorld(t testing.TB, real bool, versions ...string) *world {
	t.Helper()
	cloud := awsfake.Start(t)
	w := &world{World: awsfleet.New(t), t: t, cloud: cloud, dir: t.TempDir(), images: map[string]artifact.Image{}, checks: health, bad: map[string]int{}}
	for _, v := range versions {
		w.images[v] = w.Image(t, v)
	}
	if real {
		cloud.Set(func() { cloud.Backend = w.serve })
	}
	w.d = w.deployer()
	return w
}

// serve is an instance's own server: it tells its AMI, and takes its time.
func (w *world) serve(i awsfake.Instance) (string, func(), error) {
	l, err := net.Listen("tcp", net.JoinHostPort(i.IP, strconv.Itoa(guestPort)))
	if err != nil {
		return "", nil, err
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		w.mu.Lock()
		status := w.bad[i.Image]
		w.mu.Unlock()
		rw.Header().Set("X-Ami", i.Image)
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		if req.URL.Path != "/health" {
			time.Sleep(3 * ms)
		}
		if status != 0 {
			rw.WriteHeader(status)
		}
	})}
	go func() { _ = srv.Serve(l) }()
	return i.IP, func() { _ = srv.Close() }, nil
}

func (w *world) breaks(version string, status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bad[w.AMI(w.t, w.images[version])] = status
}

// deployer is the fleet as a process opens it.
func (w *world) deployer(change ...func(*asg.Config, *alb.Config)) *fleet.Deployer {
	w.t.Helper()
	pc := asg.Config{Subnets: w.Subnets, Instance: asg.Instance{Types: []string{"t3.small"}}, Capacity: asg.Capacity{Max: 1000}}
	rc := alb.Config{Listener: w.Listener, Priority: 10, Delay: template.Duration(30 * time.Second)}
	for _, f := range change {
		f(&pc, &rc)
	}
	calls := awscalls.Bounded(w.calls())
	pool, err := asg.New(pc, asg.Deps{Store: w.Store, Poll: 5 * ms, Calls: calls}, "web")
	w.ok(err)
	router, err := alb.New(rc, "web", w.checks, alb.Options{Poll: 5 * ms, Calls: calls})
	w.ok(err)
	d := &fleet.Deployer{Dir: filepath.Join(w.dir, "web"), Config: fleet.Config{Name: "web", Size: 2, Health: w.checks}, Pool: pool, Router: router, Poll: 5 * ms}
	d.Join()
	return d
}

// calls is where the fleet's calls are written down.
func (w *world) calls() string { return filepath.Join(w.dir, "web", awscalls.Name) }

func (w *world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) request(version string, size int) fleet.Request {
	w.t.Helper()
	p := fleet.Policy{Port: guestPort, Steps: []fleet.Step{{Permille: 100, Hold: 60 * ms}, {Permille: 500, Hold: 60 * ms}, {Permille: 1000, Hold: 60 * ms}}, KeepOld: time.Minute,
		Within: time.Minute, Drain: time.Minute, Launch: time.Minute, Restore: time.Minute, Grace: 5 * time.Second} // a busy machine takes its time
	return fleet.Request{Spec: fleet.Spec{Image: w.images[version], Size: size, Ports: []int{guestPort}}, Policy: p}
}

// clients send POSTs, which nothing may send twice, until stop, and say what the
// answers were. A failure is anything but 200.
func (w *world) clients(n int) (stop func() (sent, failed int64, by map[string]int64)) {
	to := w.cloud.ListenerURL(w.Listener) + "/"
	ctx, cancel := context.WithCancel(context.Background())
	var sent, failed atomic.Int64
	by, first := map[string]int64{}, ""
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{}, Timeout: time.Minute}
			defer client.CloseIdleConnections()
			for ctx.Err() == nil {
				res, err := client.Post(to, "text/plain", strings.NewReader("x"))
				sent.Add(1)
				said, ami := "", ""
				if err != nil {
					said = err.Error()
				} else {
					_, _ = io.Copy(io.Discard, res.Body)
					res.Body.Close()
					if ami = res.Header.Get("X-Ami"); res.StatusCode != 200 {
						said = res.Status + " of " + ami
					}
				}
				mu.Lock()
				by[ami]++
				if said != "" && failed.Add(1) == 1 {
					first = said
				}
				mu.Unlock()
				time.Sleep(2 * ms)
			}
		})
	}
	return func() (int64, int64, map[string]int64) {
		cancel()
		wg.Wait()
		if first != "" {
			w.t.Logf("the first failure: %s", first)
		}
		return sent.Load(), failed.Load(), by
	}
}

// serves checks that the version alone has the traffic, and that of n groups there
// is exactly what has to be.
func (w *world) serves(version string, groups int) {
	w.t.Helper()
	st, err := w.d.Router.Status(w.t.Context())
	w.ok(err)
	gs, err := w.d.Pool.Groups(w.t.Context(), "web")
	w.ok(err)
	if len(gs) != groups {
		w.t.Errorf("there are %d groups, want %d: %s", len(gs), groups, asText(gs))
	}
	for _, g := range gs {
		if st.Weights[g.ID.Slot] == 1000 {
			if g.Image != w.images[version].Digest {
				w.t.Errorf("slot %s serves, and has another image", g.ID.Slot)
			}
			for _, m := range st.Members[g.ID.Slot] {
				if !m.Healthy {
					w.t.Errorf("%s of the serving slot: %s", m.ID, m.Check)
				}
			}
			return
		}
	}
	w.t.Errorf("weights %v: no group serves", st.Weights)
}

func asText(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// leaves nothing: destroyed, there is nothing with the fleet's tag.
func (w *world) destroyed() {
	w.t.Helper()
	w.ok(w.d.Destroy(w.t.Context()))
	if left := w.Left(w.t, "web"); len(left) > 0 {
		w.t.Errorf("left: %q", left)
	}
	if _, err := os.Stat(w.d.Dir); !errors.Is(err, os.ErrNotExist) {
		w.t.Errorf("its directory is there: %v", err)
	}
}
