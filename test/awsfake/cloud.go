package awsfake

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rebake/rebake/test/servers"
)

// Account is whose everything is; Amazon owns what AddImage makes of others.
const (
	Account = "123456789012"
	Amazon  = "137112412989"
)

// Cloud is an AWS of many regions. It serves as an http.Handler. Its fields are
// knobs: set them before the first call, or within Set.
type Cloud struct {
	// Speed divides every duration of AWS: at 1000 a health check interval of 30 s
	// takes 30 ms. Rates of throttling rise with it. Start sets 1000, New 1.
	Speed float64
	// Now is the clock of what is recorded with a time; nil is time.Now.
	Now func() time.Time
	// Delays of what takes its time.
	Delays Delays
	// Lag is for how long after its creation a resource is not found. Its id may be
	// used where it is made; what describes it does not know it.
	Lag time.Duration
	// Backend is asked, in its own goroutine, once an instance runs, for the address
	// host:port (or host, if every port is served there) of what answers its
	// requests. It runs until stop is called. nil, or an empty address: the cloud
	// itself answers 200 with the headers X-Instance-Id and X-Image-Id.
	Backend func(Instance) (addr string, stop func(), err error)
	// Status, when there is no Backend address, is what an instance answers; nil is always 200.
	Status func(Instance, *http.Request) int
	// VolumeContent gives the bytes of a volume when a snapshot of it is made; nil,
	// or a nil reader, is what the image's snapshot held.
	VolumeContent func(volume string, of Instance) (io.ReaderAt, int64)
	// Capacity says, per instance about to be launched, what EC2 lacks; "" is nothing.
	// It is told as InsufficientInstanceCapacity.
	Capacity func(zone, instanceType string) string
	// Deny says which actions, as "ec2:RunInstances", the caller may not do.
	Deny func(action string) bool
	// Throttle are the token buckets by class; nil is no throttling. See Documented.
	Throttle map[string]Bucket

	mu      sync.Mutex
	regions map[string]*region
	due     []func()
	closed  bool
	rand    *rand.Rand
	ids     uint64
	faults  []*Fault
	buckets map[string]*level
	replies map[string]*answer
	journal []Call
	calls   map[string]int
	server  *httptest.Server
}

// Delays of AWS. Each is divided by Speed.
type Delays struct {
	Pending      time.Duration // until an instance runs
	Stopping     time.Duration // until a stopping one has stopped
	ShuttingDown time.Duration // until a terminated one is so
	Terminated   time.Duration // for which a terminated one is still shown
	Snapshot     time.Duration // until a snapshot is completed
	Image        time.Duration // until an image is available, once its snapshots are
	Scale        time.Duration // between looks of Auto Scaling at a group
	Metric       time.Duration // until CloudWatch shows what happened
	Register     time.Duration // until a registered target is looked at
	Cooldown     time.Duration // of deregistration protection
	Routes       time.Duration // until a changed rule is used
	Stall        time.Duration // until a refresh that gets no further fails
}

// Call is one request that the cloud got.
type Call struct {
	N       int
	Time    time.Time
	Region  string
	Action  string // as "ec2:RunInstances"
	In      any    // the SDK's input, as *ec2.RunInstancesInput
	Code    string // what it was refused with, or ""
	Lost    bool   // it was done and the caller was not told
	Elapsed time.Duration
}

// New makes a cloud at its own pace, with nothing in it but a default VPC of
// three zones in every region.
func New() *Cloud {
	return &Cloud{Speed: 1, regions: map[string]*region{}, rand: rand.New(rand.NewPCG(1, 2)),
		buckets: map[string]*level{}, replies: map[string]*answer{}, calls: map[string]int{},
		Delays: Delays{Pending: 20 * time.Second, Stopping: 15 * time.Second, ShuttingDown: 15 * time.Second, Terminated: time.Hour,
			Snapshot: 30 * time.Second, Image: 30 * time.Second, Scale: 5 * time.Second, Metric: time.Minute,
			Register: time.Second, Cooldown: 24 * time.Hour, Stall: time.Hour}}
}

// Start runs a cloud a thousand times as fast as AWS until the test ends, and
// points the SDK of this process at it.
func Start(t testing.TB) *Cloud {
	t.Helper()
	c := New()
	c.Speed = 1000
	for k, v := range c.Env(c.Serve()) {
		t.Setenv(k, v)
	}
	t.Cleanup(c.Close)
	return c
}

// Serve listens on loopback until Close and returns the URL.
func (c *Cloud) Serve() string {
	c.server = httptest.NewServer(c)
	return c.server.URL
}

// URL is where the cloud serves.
func (c *Cloud) URL() string { return c.server.URL }

// Env is what the environment of another process needs to use the cloud.
func (c *Cloud) Env(url string) map[string]string {
	return servers.AWS(url, "test")
}

// Close ends what runs: listeners, backends, timers. Requests in flight are cut.
func (c *Cloud) Close() {
	if c.server != nil {
		c.server.CloseClientConnections()
		c.server.Close()
	}
	c.mu.Lock()
	c.closed = true
	var stop []func()
	for _, r := range c.regions {
		for _, i := range r.instances.all() {
			if i.stop != nil {
				stop = append(stop, i.stop)
			}
		}
		for _, l := range r.listeners.all() {
			stop = append(stop, l.close)
		}
	}
	c.mu.Unlock()
	for _, f := range stop {
		f()
	}
}

// Set runs f while nothing else happens: for knobs that change in mid-flight.
func (c *Cloud) Set(f func()) { c.locked(f) }

// Seed makes what is left to chance repeatable.
func (c *Cloud) Seed(seed uint64) { c.locked(func() { c.rand = rand.New(rand.NewPCG(seed, 2)) }) }

// Calls counts the requests, throttled and refused ones included, by action.
func (c *Cloud) Calls() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.calls)
}

// Journal is every request since the start, in the order of their ends.
func (c *Cloud) Journal() []Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.journal)
}

// ResetCalls forgets journal and counts.
func (c *Cloud) ResetCalls() { c.locked(func() { c.calls, c.journal = map[string]int{}, nil }) }

func (c *Cloud) locked(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	f()
	for len(c.due) > 0 {
		next := c.due[0]
		c.due = c.due[1:]
		next()
	}
}

// after runs f with the lock held when d of AWS has passed. The lock is held.
func (c *Cloud) after(d time.Duration, f func()) {
	if wall := c.wall(d); wall > 0 {
		time.AfterFunc(wall, func() { c.locked(f) })
		return
	}
	c.due = append(c.due, f)
}

// wall is how long d of AWS takes here.
func (c *Cloud) wall(d time.Duration) time.Duration { return time.Duration(float64(d) / c.Speed) }

func (c *Cloud) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

// id is a new one, as "i-0123456789abcdef0".
func (c *Cloud) id(prefix string) string {
	c.ids++
	return fmt.Sprintf("%s-0%016x", prefix, c.ids*0x9e3779b97f4a7c15)
}

func (c *Cloud) region(name string) *region {
	if c.regions[name] == nil {
		c.regions[name] = newRegion(c, name)
	}
	return c.regions[name]
}

// In runs f on a region while nothing else happens.
func (c *Cloud) in(name string, f func(*region)) { c.locked(func() { f(c.region(name)) }) }

// waitFor is done when the context is or the wall time has passed.
func waitFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
