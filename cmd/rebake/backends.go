package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/builder/amazon"
	"github.com/rebake/rebake/builder/qemu"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/alb"
	"github.com/rebake/rebake/fleet/asg"
	"github.com/rebake/rebake/fleet/haproxy"
	poolqemu "github.com/rebake/rebake/fleet/qemu"
	fleets3 "github.com/rebake/rebake/fleet/s3"
	"github.com/rebake/rebake/internal/awscalls"
	"github.com/rebake/rebake/internal/cache"
	"github.com/rebake/rebake/internal/check"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/keyring"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/provisioner"
	"github.com/rebake/rebake/provisioner/breakpoint"
	"github.com/rebake/rebake/provisioner/file"
	"github.com/rebake/rebake/provisioner/shell"
)

// backends lists everything that a template can name. A new backend is a
// folder, and its lines here.
func backends() pipeline.Backends {
	return pipeline.Backends{
		Kinds: template.Kinds{
			Builders:     map[string]func() any{"qemu": func() any { return new(qemu.Config) }, "amazon": func() any { return new(amazon.Config) }},
			Provisioners: map[string]func() any{"shell": func() any { return new(shell.Config) }, "file": func() any { return new(file.Config) }, "breakpoint": func() any { return new(breakpoint.Config) }},
			Checks:       check.Kinds(),
			Pools:        map[string]func() any{"qemu": func() any { return new(poolqemu.Config) }, "asg": func() any { return new(asg.Config) }},
			Routers:      map[string]func() any{"haproxy": func() any { return new(haproxy.Config) }, "alb": func() any { return new(alb.Config) }},
		},
		Builder: newBuilder, Provisioner: newProvisioner, Check: newCheck,
		Home: func(ctx context.Context, address string) (fleet.Home, error) {
			return fleets3.Open(ctx, address, fleets3.Options{Tell: func(ctx context.Context, of string) { event.Waiting(ctx, "%s", of) }})
		},
		Bound: []string{"qemu", "haproxy"},
		Pool:  newPool, Router: newRouter, InPlace: newInPlace, Alarms: alb.Alarms, Destroy: destroyer, Sweep: sweep,
		Contents: func(env pipeline.Env) ([]artifact.Digest, error) { return qemu.Contents(env.State) },
		Cached: func(env pipeline.Env, keep []artifact.Digest) ([]cache.Entry, error) {
			hex := map[string]bool{}
			for _, k := range keep {
				hex[k.Hex()] = true
			}
			return qemu.Cached(env.State, hex)
		},
	}
}

func newBuilder(env pipeline.Env, b template.Build) (made builder.Builder, err error) {
	switch b.Kind {
	case "qemu":
		var cfg qemu.Config
		if err := b.Block.Decode(&cfg); err != nil {
			return nil, err
		}
		made, err = qemu.New(cfg, qemu.Deps{State: env.State, Store: env.Store, Use: env.CheckBase})
	case "amazon":
		cfg := amazon.Config{Keyed: new(amazon.Config)}
		if err := errors.Join(b.Block.Masked().Decode(cfg.Keyed), b.Block.Decode(&cfg)); err != nil {
			return nil, err
		}
		made, err = amazon.New(cfg, amazonDeps(env, b.Block.Dir()))
	default:
		err = fmt.Errorf("unknown builder %q", b.Kind)
	}
	if err != nil {
		return nil, b.Block.Errorf("", "%v", err)
	}
	return made, nil
}

func amazonDeps(env pipeline.Env, dir string) amazon.Deps {
	return amazon.Deps{State: env.State, Dir: dir, Store: env.Store, Address: env.Address, Use: env.CheckBase,
		Open: func(address string) (artifact.Store, error) {
			other, err := env.In(address)
			return other.Store, err
		}}
}

func newProvisioner(s template.Step, env pipeline.StepEnv) (p provisioner.Provisioner, err error) {
	switch s.Kind {
	case "shell":
		var cfg shell.Config
		if err := s.Block.Decode(&cfg); err != nil {
			return nil, err
		}
		cfg.Exports, cfg.Keyed = env.Env, new(shell.Config)
		if err := s.Block.Masked().Decode(cfg.Keyed); err != nil {
			return nil, err
		}
		p, err = shell.New(cfg, env.Dir)
	case "file":
		var cfg file.Config
		if err := s.Block.Decode(&cfg); err != nil {
			return nil, err
		}
		cfg.Keyed = new(file.Config)
		if err := s.Block.Masked().Decode(cfg.Keyed); err != nil {
			return nil, err
		}
		p, err = file.New(cfg, env.Dir)
	case "breakpoint":
		var cfg breakpoint.Config
		if err := s.Block.Decode(&cfg); err != nil {
			return nil, err
		}
		p = breakpoint.New(cfg)
	default:
		err = fmt.Errorf("unknown provisioner %q", s.Kind)
	}
	if err != nil {
		return nil, s.Block.Errorf("", "%v", err)
	}
	return p, nil
}

func newCheck(s template.Step) (check.Check, error) {
	cfg := check.Kinds()[s.Kind]
	if cfg == nil {
		return nil, s.Block.Errorf("", "unknown check %q", s.Kind)
	}
	into := cfg()
	if err := s.Block.Decode(into); err != nil {
		return nil, err
	}
	c, err := check.New(into)
	if err != nil {
		return nil, s.Block.Errorf("", "%v", err)
	}
	return c, nil
}

func newPool(env pipeline.Env, name, kind string, config []byte) (fleet.Pool, error) {
	if kind == "asg" {
		var cfg asg.Config
		if err := decodeJSON(config, &cfg); err != nil {
			return nil, err
		}
		return asg.New(cfg, asgDeps(env, name), name)
	}
	if kind != "qemu" {
		return nil, fmt.Errorf("fleet %s: unknown pool %q", name, kind)
	}
	var cfg poolqemu.Config
	if err := decodeJSON(config, &cfg); err != nil {
		return nil, err
	}
	return poolqemu.New(cfg, poolqemu.Deps{State: env.State, Store: env.Store}, name)
}

func newInPlace(env pipeline.Env, name, kind string, config []byte) (fleet.InPlace, error) {
	if kind != "asg" {
		return nil, fmt.Errorf("fleet %s: strategy: refresh is for a pool asg, and not for %s", name, kind)
	}
	var cfg asg.Config
	if err := decodeJSON(config, &cfg); err != nil {
		return nil, err
	}
	return asg.NewInPlace(cfg, asgDeps(env, name), name)
}

func asgDeps(env pipeline.Env, name string) asg.Deps {
	return asg.Deps{Store: env.Store, Work: env.State.Uploads(), Calls: awscalls.Bounded(env.State.Calls(name))}
}

func newRouter(env pipeline.Env, name, kind string, config []byte, health fleet.HealthCheck) (fleet.Router, error) {
	if kind == "alb" {
		var cfg alb.Config
		if err := decodeJSON(config, &cfg); err != nil {
			return nil, err
		}
		return alb.New(cfg, name, health, alb.Options{Calls: awscalls.Bounded(env.State.Calls(name))})
	}
	if kind != "haproxy" {
		return nil, fmt.Errorf("fleet %s: unknown router %q", name, kind)
	}
	var cfg haproxy.Config
	if err := decodeJSON(config, &cfg); err != nil {
		return nil, err
	}
	dir := env.State.Fleet(name)
	return haproxy.New(cfg, dir, state.RunFor("router", dir), name, health)
}

func decodeJSON(raw []byte, into any) error {
	if len(raw) == 0 {
		return nil
	}
	return json.Unmarshal(raw, into)
}

// sweep removes what killed runs left half-made in the store and the caches.
func sweep(ctx context.Context, env pipeline.Env) (gone []string, err error) {
	if s, ok := env.Store.(interface {
		Clean(context.Context) ([]string, error)
	}); ok {
		gone, err = s.Clean(ctx)
	}
	disks, derr := oci.RemoveDead(env.State.Disks())
	bases, berr := qemu.Sweep(env.State)
	keys, kerr := keyring.Dir(env.State.Keys()).Clean()
	return slices.Concat(gone, disks, bases, keys), errors.Join(err, derr, berr, kerr)
}

func destroyer(env pipeline.Env, kind string) func(id string) error {
	switch kind {
	case "qemu":
		return func(id string) error { return qemu.Destroy(context.Background(), env.State, id) }
	case "amazon":
		return func(id string) error { return amazon.Destroy(context.Background(), amazonDeps(env, ""), id) }
	}
	return nil
}
