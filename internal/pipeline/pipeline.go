// Package pipeline is the whole of rebake's work, put together from the seams:
// Bake reads top to bottom as a bake, Deploy hands an image to a fleet, GC
// removes what a killed run left. It is the only package that knows all seams.
package pipeline

import (
	"context"
	"errors"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/cache"
	"github.com/rebake/rebake/internal/check"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/provisioner"
)

// Sentinels that decide an exit status.
var (
	ErrRolledBack = errors.New("deployment was rolled back")
	ErrLeftovers  = errors.New("something was left behind")
	ErrTestFailed = errors.New("the sealed image failed its tests")
)

// Env is what a run stands on.
type Env struct {
	State    state.Dir
	Store    artifact.Store
	Address  string // of the store, as --store has it; "": the local one
	Shared   string // address of the fleets' state, as --state has it; "": nobody said
	Backends Backends
	Version  string // of rebake
	// Ask puts a question to a person and returns one of the choices; nil: nobody is there.
	Ask      func(ctx context.Context, question string, choices []string) (string, error)
	MaxCache int64 // bytes that the cache may occupy after a build; 0: no limit
	// AllowRevoked lets builds begin from a base that is revoked: what they make is too.
	AllowRevoked bool
	// Now is the clock by which things age and take long; nil: this computer's.
	Now func() time.Time
}

// In is the environment with the store of an address.
func (e Env) In(address string) (Env, error) {
	if address == e.Address {
		return e, nil
	}
	store, err := e.Backends.Store(e, address)
	if err != nil {
		return e, err
	}
	e.Store, e.Address = store, address
	return e, nil
}

func (e Env) clock() time.Time {
	if e.Now != nil {
		return e.Now()
	}
	return time.Now()
}

// now is a date serial's clock and an image's creation time.
func (e Env) now() time.Time { return e.clock().UTC().Truncate(time.Second) }

// Backends makes the parts that a template names.
type Backends struct {
	Kinds       template.Kinds
	Builder     func(Env, template.Build) (builder.Builder, error)
	Provisioner func(template.Step, StepEnv) (provisioner.Provisioner, error)
	Check       func(template.Step) (check.Check, error)
	Pool        func(env Env, fleetName, kind string, config []byte) (fleet.Pool, error)
	Router      func(env Env, fleetName, kind string, config []byte, health fleet.HealthCheck) (fleet.Router, error)
	// InPlace is pool and router of a fleet with strategy: refresh.
	InPlace func(env Env, fleetName, kind string, config []byte) (fleet.InPlace, error)
	// Alarms asks a cloud for the state of its alarms, for the gate alarm; nil: there is none.
	Alarms func(ctx context.Context, region string, names []string) (fleet.Verdict, string, error)
	// Home opens the shared state of an address.
	Home func(ctx context.Context, address string) (fleet.Home, error)
	// Bound are the kinds of pools and routers that are of one machine.
	Bound []string
	// Store opens the store of an address; "" is the local one.
	Store func(env Env, address string) (artifact.Store, error)
	// Destroy removes a machine by the kind of its builder and its id.
	Destroy func(env Env, kind string) func(id string) error
	// Sweep removes half-made files of killed runs and returns their paths.
	Sweep func(ctx context.Context, env Env) ([]string, error)
	// Cached lists what is kept to save time; a disk of the contents in keep is in use.
	Cached func(env Env, keep []artifact.Digest) ([]cache.Entry, error)
	// Contents lists what the store must keep for what is cached.
	Contents func(env Env) ([]artifact.Digest, error)
}

// StepEnv is what every script of a build may know.
type StepEnv struct {
	Dir     string // of the template
	Env     map[string]string
	Secrets []string
}
