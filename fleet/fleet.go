// Package fleet is the whole of deployment: the Pool and Router seams, the
// record of a deployment, and Next, the pure function that decides what
// happens. Backends: fleet/qemu (pool), fleet/haproxy (router).
package fleet

import (
	"context"
	"errors"
	"time"

	"github.com/rebake/rebake/artifact"
)

// Slot is blue or green. A fleet has both; at most one image is in each.
type Slot string

// The two slots.
const (
	Blue  Slot = "blue"
	Green Slot = "green"
)

// Other is the slot that is not s.
func (s Slot) Other() Slot {
	if s == Blue {
		return Green
	}
	return Blue
}

// GroupID names a group of instances of one image: fleet, slot and deployment.
// It is chosen before the group exists and is the key of every retry.
type GroupID struct {
	Fleet      string `json:"fleet"`
	Slot       Slot   `json:"slot"`
	Deployment string `json:"deployment"` // ULID
}

// Spec is what Launch brings a group to.
type Spec struct {
	Image    artifact.Image    `json:"image"`
	Size     int               `json:"size"`
	Ports    []int             `json:"ports"`     // guest ports that must be reachable from the host
	UserData string            `json:"user_data"` // cloud-init user data or a script, given to each instance
	Labels   map[string]string `json:"labels"`
}

// Instance is one machine of a group.
type Instance struct {
	ID      string         `json:"id"` // fleet-slot-n with a part of the deployment: stable across retries
	Running bool           `json:"running"`
	Ports   map[int]string `json:"ports"` // guest port → host:port
	Started time.Time      `json:"started"`
	PID     int            `json:"pid,omitempty"`
}

// Group is what the pool has of a group.
type Group struct {
	ID        GroupID         `json:"id"`
	Image     artifact.Digest `json:"image"`
	Instances []Instance      `json:"instances"`
}

// Pool makes and removes instances. All methods are idempotent, safe for
// concurrent use, and work by name after a kill -9.
type Pool interface {
	// Groups lists every group of a fleet, dead instances included.
	Groups(ctx context.Context, fleet string) ([]Group, error)
	// Launch brings the group to exactly spec.Size running instances, adopting
	// those that are there. It returns once they were started, not once healthy.
	Launch(ctx context.Context, id GroupID, spec Spec) error
	// End ends one instance of the group and leaves nothing of it behind; the
	// others are not touched. A later Launch that covers its number makes it anew.
	End(ctx context.Context, id GroupID, instance string) error
	// Retire ends every instance of the group and leaves nothing behind.
	Retire(ctx context.Context, id GroupID) error
}

// Fencer is the optional power of a Pool or a Router to refuse the calls of an
// operator who was replaced. Fence tells it the epoch of the session that is to
// use this value; it keeps the highest that it was ever told, and each later
// change by a value with a lower one is ErrStale.
type Fencer interface {
	Fence(ctx context.Context, epoch int64) error
}

// Member is a server behind the router.
type Member struct {
	ID   string `json:"id"`   // instance id
	Addr string `json:"addr"` // host:port
}

// MemberStatus is what the router sees of a member.
type MemberStatus struct {
	Member
	Admin    string `json:"admin"`     // ready, drain, maint
	Check    string `json:"check"`     // last health check, e.g. L7OK, L4CON, L7STS/500, INI
	Healthy  bool   `json:"healthy"`   // the router's checks passed at L7 and none is in progress of failing
	InFlight int    `json:"in_flight"` // current sessions and queued requests
	Requests int64  `json:"requests"`  // so far; falls to 0 when the router restarts
	Errors5x int64  `json:"errors_5xx"`
	// Latency is the router's own mean over the last requests that it got
	// answers to (HAProxy: 1024 of them), 0 if it knows of none.
	Latency time.Duration `json:"latency,omitempty"`
}

// RouterStatus is the live state of the router, read from it, not remembered.
type RouterStatus struct {
	Up      bool                    `json:"up"`
	Listen  string                  `json:"listen"`
	Weights map[Slot]int            `json:"weights"` // permille; they add up to 1000 or are all 0
	Members map[Slot][]MemberStatus `json:"members"`
}

// HealthCheck is how the router and the deployment judge an instance.
type HealthCheck struct {
	Type     string        `json:"type"` // http or tcp
	Port     int           `json:"port"` // guest port
	Path     string        `json:"path,omitempty"`
	Status   int           `json:"status,omitempty"` // 0: 200
	Interval time.Duration `json:"interval"`
	Timeout  time.Duration `json:"timeout"`
	Rise     int           `json:"rise"`
	Fall     int           `json:"fall"`
}

// Router sends a fleet's traffic. A change of weights is one atomic write.
type Router interface {
	// Ensure starts the router or adopts the running one, and re-applies the
	// given weights and members if it lost them in a restart. Never a reload.
	Ensure(ctx context.Context) error
	Status(ctx context.Context) (RouterStatus, error)
	// Attach adds members to a slot in drain, health checks on: they get nothing yet.
	Attach(ctx context.Context, s Slot, m []Member) error
	// Ready lets members whose checks passed take traffic (weight permitting).
	// ErrNotHealthy names any whose checks have not.
	Ready(ctx context.Context, s Slot) error
	// SetWeights is the one traffic write: permille per slot, sum 1000 (or all 0).
	SetWeights(ctx context.Context, w map[Slot]int) error
	// Drain stops new requests to a slot's members, or to those named alone;
	// requests in flight end. A name that is not there is no error.
	Drain(ctx context.Context, s Slot, members ...string) error
	// Detach removes a slot's members, or those named alone: each must be idle
	// (ErrBusy), or force cuts it and counts the requests cut.
	Detach(ctx context.Context, s Slot, force bool, members ...string) (cut int, err error)
	// Remove stops the router and leaves nothing behind.
	Remove(ctx context.Context) error
}

// Sentinels of the seams.
var (
	ErrNotHealthy = errors.New("member not healthy")
	ErrBusy       = errors.New("requests in flight")
	ErrNoCapacity = errors.New("no capacity")
	ErrLocked     = errors.New("fleet is locked by another operator")
	ErrStale      = errors.New("another operator took the fleet over")
)
