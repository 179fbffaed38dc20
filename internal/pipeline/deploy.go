package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/hook"
	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/provisioner"
)

// DeployOptions are the choices of a deployment.
type DeployOptions struct {
	Force          bool   // even if the fleet runs this image
	Wait           bool   // until the old slot is retired
	Approve        string // the id of the plan that a person saw; "": none is asked for
	OverrideFreeze string // why a freeze window does not count; "": it does
	OverridePolicy string // why what the fleet requires does not count; "": it does
}

// Deploy brings the template's fleet to an image: blue/green, by the template's
// steps and gates. ErrRolledBack comes with a Result that says why.
func Deploy(ctx context.Context, env Env, tpl *template.Template, img artifact.Image, o DeployOptions) (fleet.Result, error) {
	d, req, err := fleetFor(ctx, env, tpl, img, o.Force)
	if err != nil {
		return fleet.Result{}, err
	}
	req.Force, req.Wait, req.Approve, req.InFreeze = o.Force, o.Wait, o.Approve, o.OverrideFreeze
	req.Override = o.OverridePolicy
	res, err := d.Deploy(ctx, req)
	return res, outcome(err)
}

// PlanDeploy says what Deploy would do now, and the id to approve it by. It
// changes nothing.
func PlanDeploy(ctx context.Context, env Env, tpl *template.Template, img artifact.Image, o DeployOptions) (fleet.Forecast, string, error) {
	d, req, err := fleetFor(ctx, env, tpl, img, o.Force)
	if err != nil {
		return fleet.Forecast{}, "", err
	}
	req.Force = o.Force
	if o.OverridePolicy == "" {
		if err := checkRequired(ctx, d, req.Spec.Image); err != nil {
			return fleet.Forecast{}, "", err
		}
	}
	var memory int64
	if m, ok := d.Pool.(interface{ InstanceMemory() int64 }); ok {
		memory = m.InstanceMemory()
	}
	f, id, err := d.Plan(ctx, req, memory)
	f.Notes = d.Notes()
	return f, id, err
}

// fleetFor is the template's fleet, and the wish that it runs the image.
func fleetFor(ctx context.Context, env Env, tpl *template.Template, img artifact.Image, force bool) (*fleet.Deployer, fleet.Request, error) {
	if tpl.Fleet == nil {
		return nil, fleet.Request{}, fmt.Errorf("%s has no fleet: block, so there is nothing to deploy to (`rebake docs fleet`)", tpl.Path)
	}
	if err := errors.Join(checkState(env, tpl), env.onlyThere(ctx, env.placeOf(tpl))); err != nil {
		return nil, fleet.Request{}, err
	}
	cfg, err := fleetConfig(tpl)
	if err != nil {
		return nil, fleet.Request{}, err
	}
	if err := checkParts(env, tpl, cfg); err != nil {
		return nil, fleet.Request{}, err
	}
	if cfg.Require, err = rulesOf(env, tpl); err != nil {
		return nil, fleet.Request{}, err
	}
	if r := tpl.Fleet.Require; r == nil || !r.NotRevoked {
		env.warnRevoked(ctx, img)
	}
	books, err := env.books(ctx, env.placeOf(tpl))
	if err != nil {
		return nil, fleet.Request{}, err
	}
	if old, err := books.Config(ctx); err == nil {
		if err := sameAddress(old, cfg); err != nil {
			return nil, fleet.Request{}, err
		}
	} else if !errors.Is(err, fleet.ErrNoFleet) {
		return nil, fleet.Request{}, err
	}
	kept, tests, err := fleetTests(env, tpl, img.Lineage.Builder)
	if err != nil {
		return nil, fleet.Request{}, err
	}
	cfg.Tests, cfg.Store = kept, env.Address
	d, err := deployer(env, books, cfg)
	if err != nil {
		return nil, fleet.Request{}, err
	}
	d.Ask = withAlarms(env, askFor(cfg, d.Pool, func() ([]namedCheck, error) { return tests, nil }))
	if d.Config.Policy, err = d.Fit(ctx, cfg.Policy, cfg.Size); err != nil {
		return nil, fleet.Request{}, fmt.Errorf("%s: fleet: %w", tpl.Path, err)
	}
	cfg = d.Config
	img.Tags = nil // they move: the spec is what does not
	spec := fleet.Spec{Image: img, Size: cfg.Size, Ports: gatePorts(cfg.Policy), UserData: tpl.Fleet.UserData}
	spec.Size, err = d.Grown(ctx, spec, cfg.Policy, force)
	return d, fleet.Request{Spec: spec, Policy: cfg.Policy}, err
}

// outcome makes the fleet's sentinel the pipeline's.
func outcome(err error) error {
	if errors.Is(err, fleet.ErrRolledBack) {
		return fmt.Errorf("%w: %w", ErrRolledBack, trimmed(err))
	}
	return err
}

// trimmed is the reason without the sentinel's own words.
func trimmed(err error) error {
	return errors.New(strings.TrimPrefix(err.Error(), fleet.ErrRolledBack.Error()+": "))
}

// fleetConfig is the template's fleet as later commands will need it.
func fleetConfig(tpl *template.Template) (fleet.Config, error) {
	f := tpl.Fleet
	pool, err := f.Pool.Canonical()
	if err != nil {
		return fleet.Config{}, err
	}
	var router json.RawMessage
	if f.RouterKind != "" { // refresh has none
		if router, err = f.Router.Canonical(); err != nil {
			return fleet.Config{}, err
		}
	}
	h := f.Health
	cfg := fleet.Config{
		Name: f.Name, Template: tpl.Path, Size: f.Size,
		PoolKind: f.PoolKind, Pool: pool, RouterKind: f.RouterKind, Router: router,
		Health: fleet.HealthCheck{Type: h.Type, Port: h.Port, Path: h.Path, Status: h.Status,
			Interval: h.Interval, Timeout: h.Timeout, Rise: h.Rise, Fall: h.Fall},
		Commands: h.Commands,
		Policy: fleet.Policy{Port: h.Port, KeepOld: f.Deploy.KeepOld, Within: h.Within, Refuse: h.Refuse,
			Drain: f.Deploy.Drain, OnFailure: f.Deploy.OnFailure},
	}
	if tpl.Retention != nil {
		cfg.KeepPrevious = tpl.Retention.KeepPrevious
	}
	p := &cfg.Policy
	p.Strategy, p.Roll = f.Deploy.Strategy, fleet.Roll{MaxSurge: f.Deploy.MaxSurge, MaxUnavailable: f.Deploy.MaxUnavailable, Batch: f.Deploy.Batch}
	p.MinHealthy, p.Quarantine, p.MaxHold, p.OnInconclusive = f.Deploy.MinHealthy, f.Deploy.Quarantine, f.Deploy.MaxHold, f.Deploy.OnInconclusive
	for _, s := range f.Deploy.Steps {
		p.Steps = append(p.Steps, fleet.Step{Permille: 10 * s.Percent, Hold: s.Hold, Pause: s.Pause, PauseFor: s.PauseFor})
	}
	for _, g := range f.Deploy.Gates {
		p.Gates = append(p.Gates, gateOf(g))
	}
	for _, h := range f.Deploy.Hooks {
		one := fleet.Hook{Args: h.Command, URL: h.URL, Timeout: h.Timeout}
		for _, on := range h.On {
			one.On = append(one.On, fleet.Stage(on))
		}
		if err := hook.Check(one); err != nil {
			return cfg, fmt.Errorf("%s: fleet.deploy.hooks: %w", tpl.Path, err)
		}
		cfg.Hooks = append(cfg.Hooks, one)
	}
	for _, w := range f.Deploy.Freeze {
		one := fleet.Window(w)
		if err := one.Check(); err != nil {
			return cfg, fmt.Errorf("%s: fleet.deploy.freeze: %w", tpl.Path, err)
		}
		cfg.Freeze = append(cfg.Freeze, one)
	}
	if cfg.Template, err = filepath.Abs(tpl.Path); err != nil { // commands of gates and hooks run in its folder
		return cfg, err
	}
	if *p, err = p.Complete(); err != nil {
		return cfg, fmt.Errorf("%s: fleet.%w", tpl.Path, err)
	}
	return cfg, nil
}

// gateOf is a gate of the template as a deployment knows it.
func gateOf(g template.Gate) fleet.Gate {
	out := fleet.Gate{Name: g.Name, Test: g.Test}
	switch {
	case g.ErrorRate != nil:
		out.ErrorRate = &fleet.ErrorRateGate{Max: g.ErrorRate.Max, Requests: g.ErrorRate.Requests}
	case g.Latency != nil:
		out.Latency = &fleet.LatencyGate{Max: g.Latency.Max, Requests: g.Latency.Requests}
	case g.Canary != nil:
		c := g.Canary
		out.Canary = &fleet.CanaryGate{Metric: c.Metric, Significance: c.Significance, Tolerance: c.Tolerance, Samples: c.Samples, Baseline: c.Baseline}
	case g.Command != nil:
		out.Command = &fleet.CommandGate{Args: g.Command.Run, Timeout: g.Command.Timeout}
	case g.Alarm != nil:
		out.Alarm = &fleet.AlarmGate{Names: g.Alarm.Names, Region: g.Alarm.Region}
	case g.HTTP != nil:
		h := g.HTTP
		out.HTTP = &fleet.HTTPGate{Port: h.Port, Path: h.Path, Status: h.Status, Body: h.Body, Timeout: h.Timeout, Version: h.Version}
	}
	return out
}

// sameAddress refuses a change of the parts that a swap cannot carry over.
func sameAddress(old, cfg fleet.Config) error {
	if cfg.Policy.Strategy == fleet.Refresh && old.Policy.Strategy == fleet.Refresh && adopted(old) != adopted(cfg) {
		return fmt.Errorf("fleet %s refreshes group %s, and the template now says %s: destroy the fleet first, which leaves the group as it is (`rebake fleet destroy %s`), or give the new one another fleet.name",
			cfg.Name, adopted(old), adopted(cfg), cfg.Name)
	}
	if old.RouterKind == cfg.RouterKind && string(compact(old.Router)) == string(compact(cfg.Router)) && old.PoolKind == cfg.PoolKind {
		return nil
	}
	return fmt.Errorf("fleet %s runs with pool %s and router %s %s; the template now says pool %s and router %s %s: "+
		"a swap keeps the address, so destroy the fleet first (`rebake fleet destroy %s`) or give the new one another fleet.name",
		cfg.Name, old.PoolKind, old.RouterKind, compact(old.Router), cfg.PoolKind, cfg.RouterKind, compact(cfg.Router), cfg.Name)
}

// adopted is the group that a fleet is refreshed in, and its region.
func adopted(cfg fleet.Config) string {
	var p struct{ Adopt, Region string }
	if json.Unmarshal(cfg.Pool, &p) != nil {
		return ""
	}
	return strings.TrimSpace(p.Adopt + " " + p.Region)
}

func compact(raw json.RawMessage) []byte {
	var v any
	if json.Unmarshal(raw, &v) != nil {
		return raw
	}
	out, err := json.Marshal(v)
	if err != nil {
		return raw
	}
	return out
}

// parts are the fleet's pool and router.
func parts(env Env, cfg fleet.Config) (fleet.Pool, fleet.Router, error) {
	if cfg.Policy.Strategy == fleet.Refresh {
		if env.Backends.InPlace == nil {
			return nil, nil, fmt.Errorf("fleet %s: nothing here is refreshed in place", cfg.Name)
		}
		both, err := env.Backends.InPlace(env, cfg.Name, cfg.PoolKind, cfg.Pool)
		return both, both, err
	}
	pool, err := env.Backends.Pool(env, cfg.Name, cfg.PoolKind, cfg.Pool)
	if err != nil {
		return nil, nil, err
	}
	router, err := env.Backends.Router(env, cfg.Name, cfg.RouterKind, cfg.Router, cfg.Health)
	return pool, router, err
}

// deployer puts a fleet's parts together, with the store that its images are in.
func deployer(env Env, books fleet.Books, cfg fleet.Config) (*fleet.Deployer, error) {
	env, err := env.In(cfg.Store)
	if err != nil {
		return nil, fmt.Errorf("the store of fleet %s: %w", cfg.Name, err)
	}
	pool, router, err := parts(env, cfg)
	if err != nil {
		return nil, err
	}
	d := &fleet.Deployer{Books: books, Config: cfg, Pool: pool, Router: router}
	d.Join()
	d.Ask = withAlarms(env, askFor(cfg, pool, func() ([]namedCheck, error) { return keptTests(env, cfg.Tests) }))
	d.Hold = env.hold
	if d.Admit, err = admission(env, cfg, pool); err != nil {
		return nil, err
	}
	if len(cfg.Hooks) > 0 {
		d.Notify = hook.Notify(cfg.Hooks, filepath.Dir(cfg.Template))
	}
	if len(cfg.Commands) > 0 {
		d.Gate = func(ctx context.Context, i fleet.Instance) error { return gate(ctx, pool, i.ID, cfg.Commands) }
	}
	return d, nil
}

// Doors is the optional power of a pool to say how an instance is logged in to.
type Doors interface {
	Door(ctx context.Context, instance string) (ssh.Target, error)
}

// Connect dials an instance over SSH, its host key pinned.
func Connect(ctx context.Context, pool fleet.Pool, instance string, timeout time.Duration) (*ssh.Client, error) {
	d, ok := pool.(Doors)
	if !ok {
		return nil, fmt.Errorf("a %T pool has no way to log in", pool)
	}
	t, err := d.Door(ctx, instance)
	if err != nil {
		return nil, err
	}
	event.Waiting(ctx, "SSH on %s as %s, at most %s", t.Addr, t.User, timeout)
	return ssh.Dial(ctx, t, ssh.Options{Timeout: timeout})
}

// gate runs the template's health commands in an instance.
func gate(ctx context.Context, pool fleet.Pool, instance string, commands []string) error {
	c, err := Connect(ctx, pool, instance, 2*time.Minute)
	if err != nil {
		return fmt.Errorf("%s: %w", instance, err)
	}
	defer c.Close()
	for _, line := range commands {
		out := event.Writer(ctx)
		err := c.Run(ctx, provisioner.Cmd{Line: line, Stdout: out, Stderr: out})
		out.Close()
		var exit *provisioner.ExitError
		if errors.As(err, &exit) {
			return fmt.Errorf("%s: %q: %w: %s", instance, line, err, strings.TrimSpace(exit.Output))
		}
		if err != nil {
			return fmt.Errorf("%s: %q: %w", instance, line, err)
		}
	}
	return nil
}

// TendAll does what the fleets have due, and puts away what is here of fleets that
// were destroyed from elsewhere.
func TendAll(ctx context.Context, env Env) ([]Removed, error) {
	all, err := Fleets(ctx, env)
	var gone []Removed
	errs := []error{err}
	if err == nil && env.Shared == "" { // all there are
		gone, err = env.strays(namesOf(all))
		errs = append(errs, err)
	}
	for _, p := range all {
		n := p.Name
		d, err := FleetAt(ctx, env, p)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		before, err := d.History(ctx)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if err := d.Tend(ctx, false); err != nil {
			errs = append(errs, fmt.Errorf("fleet %s: %w", n, err))
			continue
		}
		after, err := d.History(ctx)
		errs = append(errs, err)
		if old, _ := before.Kept(); old != nil {
			if still, _ := after.Kept(); still == nil {
				gone = append(gone, Removed{fmt.Sprintf("slot %s of fleet %s (%s)", old.Group.Slot, n, old.Spec.Image.Version), "keep_old is over"})
			}
		}
	}
	return gone, errors.Join(errs...)
}

// Console is the optional power of a pool to show an instance's serial console.
type Console interface {
	Logs(ctx context.Context, instance string, n int) (string, error)
}

// Copy writes the last n bytes of an instance's console.
func Copy(ctx context.Context, w io.Writer, pool fleet.Pool, instance string, n int) error {
	c, ok := pool.(Console)
	if !ok {
		return fmt.Errorf("a %T pool keeps no console", pool)
	}
	text, err := c.Logs(ctx, instance, n)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("no instance %q", instance)
	}
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, text)
	return err
}
