// Package qemu is the pool of a fleet on this machine: each instance is a QEMU
// process of its own on an overlay of the materialised image, and outlives the
// command that started it.
//
// Under the fleet's directory there are
//
//	groups/SLOT-DEPLOYMENT.json   what a group is; written before its first instance, removed after its last
//	instances/ID/                 an instance: overlay, seed, host key, console, process
//	ssh.key                       the key that rebake logs in to instances with
//
// The id of an instance follows from its group and number, so that whatever a
// killed run left is found by name. An instance that died is replaced by a
// fresh one, never started again on its old disk.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sync/errgroup"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/qemu"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/internal/template"
)

// Config is the pool.qemu block of a template.
type Config struct {
	Memory template.Size `yaml:"memory,omitempty" json:"memory,omitempty" jsonschema:"description=memory of each instance,default=256M"`
	CPUs   int           `yaml:"cpus,omitempty" json:"cpus,omitempty" jsonschema:"description=processors of each instance; 0 chooses,minimum=0"`

	Shutdown template.Duration `yaml:"shutdown_timeout,omitempty" json:"shutdown_timeout,omitempty" jsonschema:"description=longest clean shutdown of an instance before it is killed; default 30s"`
}

// Deps are what the pool stands on.
type Deps struct {
	State state.Dir
	Store artifact.Store
}

// Pool implements fleet.Pool.
type Pool struct {
	cfg   Config
	deps  Deps
	name  string
	vms   machines
	grace time.Duration // Config.Shutdown
	fence fleet.Fence
}

var (
	_ fleet.Pool   = (*Pool)(nil)
	_ fleet.Fencer = (*Pool)(nil)
)

// parallel bounds how many instances are started or stopped at a time.
const parallel = 4

var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$`)

// New checks the configuration; it starts nothing.
func New(cfg Config, deps Deps, fleetName string) (*Pool, error) {
	if !nameRE.MatchString(fleetName) {
		return nil, fmt.Errorf("fleet name %q: use at most 40 letters, digits, dots, dashes and underscores", fleetName)
	}
	if cfg.Memory == 0 {
		cfg.Memory = 256 << 20
	}
	if cfg.Memory < 32<<20 {
		return nil, fmt.Errorf("pool.qemu.memory: %d bytes cannot boot anything: give at least 32M", int64(cfg.Memory))
	}
	if cfg.CPUs < 0 || cfg.CPUs > 256 {
		return nil, fmt.Errorf("pool.qemu.cpus: %d is out of range", cfg.CPUs)
	}
	if cfg.Shutdown == 0 {
		cfg.Shutdown = template.Duration(30 * time.Second)
	}
	return &Pool{cfg: cfg, deps: deps, name: fleetName, vms: processes{}, grace: time.Duration(cfg.Shutdown)}, nil
}

// InstanceMemory is what an instance takes of this machine's memory, in bytes.
func (p *Pool) InstanceMemory() int64 { return int64(p.cfg.Memory) }

// Groups implements fleet.Pool.
func (p *Pool) Groups(_ context.Context, name string) ([]fleet.Group, error) {
	if !nameRE.MatchString(name) {
		return nil, fmt.Errorf("fleet name %q is not one", name)
	}
	recs, err := readGroups(p.deps.State.Fleet(name))
	if err != nil {
		return nil, err
	}
	var out []fleet.Group
	for _, rec := range recs {
		g := fleet.Group{ID: rec.ID, Image: rec.Spec.Image.Digest}
		ids, err := p.instances(rec.ID)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			in := fleet.Instance{ID: id, Ports: map[int]string{}}
			switch vm, err := p.vms.look(p.dir(name, id)); {
			case errors.Is(err, os.ErrNotExist): // named, not made
			case err != nil:
				return nil, fmt.Errorf("look at instance %s: %w", id, err)
			default:
				in.Running, in.Ports = vm.running, vm.ports
				if vm.running {
					in.PID = vm.pid
				}
				if st, err := os.Stat(filepath.Join(p.dir(name, id), hostKeyName)); err == nil {
					in.Started = st.ModTime() // made anew just before each start
				}
			}
			g.Instances = append(g.Instances, in)
		}
		out = append(out, g)
	}
	return out, nil
}

// Launch implements fleet.Pool.
func (p *Pool) Launch(ctx context.Context, id fleet.GroupID, spec fleet.Spec) error {
	if err := p.check(id); err != nil {
		return err
	}
	if spec.Size < 0 || spec.Size > 1000 {
		return fmt.Errorf("%d instances are out of range", spec.Size)
	}
	return p.locked(ctx, func() error {
		if err := p.record(id, spec); err != nil {
			return err
		}
		have, err := p.instances(id)
		if err != nil {
			return err
		}
		var missing, extra []string
		for n := 1; n <= spec.Size; n++ {
			inst := instanceID(id, n)
			vm, err := p.vms.look(p.dir(id.Fleet, inst))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("look at instance %s: %w", inst, err)
			}
			if err != nil || !vm.running {
				missing = append(missing, inst)
			}
		}
		for _, inst := range have {
			if n := instanceNumber(id, inst); n < 1 || n > spec.Size {
				extra = append(extra, inst)
			}
		}
		if err := p.each(ctx, extra, p.end); err != nil {
			return err
		}
		if len(missing) == 0 {
			return nil
		}
		if err := room(int64(len(missing)) * int64(p.cfg.Memory)); err != nil {
			return err
		}
		disk, err := p.materialise(ctx, spec.Image)
		if err != nil {
			return err
		}
		key, err := p.key()
		if err != nil {
			return err
		}
		return p.each(ctx, missing, func(ctx context.Context, inst string) error {
			if err := p.end(ctx, inst); err != nil { // what is left of one that died
				return err
			}
			return p.begin(ctx, inst, spec, disk, key)
		})
	})
}

// End implements fleet.Pool.
func (p *Pool) End(ctx context.Context, id fleet.GroupID, instance string) error {
	if err := p.check(id); err != nil {
		return err
	}
	if instanceNumber(id, instance) == 0 {
		return fmt.Errorf("instance %q is none of the group's", instance)
	}
	if _, err := os.Stat(p.deps.State.Fleet(id.Fleet)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return p.locked(ctx, func() error { return p.end(ctx, instance) })
}

// Retire implements fleet.Pool.
func (p *Pool) Retire(ctx context.Context, id fleet.GroupID) error {
	if err := p.check(id); err != nil {
		return err
	}
	if _, err := os.Stat(p.deps.State.Fleet(id.Fleet)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return p.locked(ctx, func() error {
		ids, err := p.instances(id)
		if err != nil {
			return err
		}
		if err := p.each(ctx, ids, p.end); err != nil {
			return err
		}
		return p.forget(id)
	})
}

// begin makes and starts one instance.
func (p *Pool) begin(ctx context.Context, inst string, spec fleet.Spec, disk string, key identity) error {
	dir := p.dir(p.name, inst)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	host, err := newIdentity(filepath.Join(dir, hostKeyName))
	if err != nil {
		return err
	}
	overlay := filepath.Join(dir, "overlay.qcow2")
	if err := p.vms.overlay(ctx, overlay, disk, spec.Image.DiskSize); err != nil {
		return err
	}
	return p.vms.start(ctx, qemu.Config{
		Name:       inst,
		Dir:        dir,
		RunDir:     runDir(dir),
		Disk:       overlay,
		DiskFormat: "qcow2",
		Memory:     int64(p.cfg.Memory),
		CPUs:       p.cfg.CPUs,
		Arch:       spec.Image.Arch,
		Firmware:   spec.Image.Firmware,
		Ports:      spec.Ports,
		QuitAfter:  p.grace,
		Seed: qemu.Seed{
			Kind:           spec.Image.Seed,
			InstanceID:     inst,
			Hostname:       hostname(inst),
			User:           spec.Image.User,
			AuthorizedKeys: []string{key.authorized()},
			HostKeyPEM:     host.pem,
			UserData:       spec.UserData,
		},
	})
}

// end stops an instance, if it runs, and removes it.
func (p *Pool) end(ctx context.Context, inst string) error {
	dir := p.dir(p.name, inst)
	if err := p.vms.remove(ctx, dir); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(runDir(dir)), os.RemoveAll(dir)) // also what a kill left before the first start
}

// each runs f for all of the instances, some at a time; it goes on after an error.
func (p *Pool) each(ctx context.Context, ids []string, f func(context.Context, string) error) error {
	errs := make([]error, len(ids))
	var g errgroup.Group
	g.SetLimit(parallel)
	for i, id := range ids {
		g.Go(func() error {
			if err := f(ctx, id); err != nil {
				errs[i] = fmt.Errorf("instance %s: %w", id, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return errors.Join(errs...)
}

// locked runs f while no other process changes this fleet's instances.
func (p *Pool) locked(ctx context.Context, f func() error) error {
	return p.alone(ctx, func() error {
		if err := p.fence.Check(p.epochPath()); err != nil {
			return err
		}
		return f()
	})
}

// alone is locked, whoever holds the fleet.
func (p *Pool) alone(ctx context.Context, f func() error) (err error) {
	dir := p.deps.State.Fleet(p.name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	l := flock.New(filepath.Join(dir, "pool.lock"), flock.SetPermissions(0o600))
	if _, err := l.TryLockContext(ctx, 20*time.Millisecond); err != nil {
		return fmt.Errorf("wait for another rebake that changes the instances of %s: %w", p.name, err)
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	return f()
}

// Fence implements fleet.Fencer.
func (p *Pool) Fence(ctx context.Context, epoch int64) error {
	return p.alone(ctx, func() error { return p.fence.Raise(p.epochPath(), epoch) })
}

func (p *Pool) epochPath() string { return filepath.Join(p.deps.State.Fleet(p.name), "pool.epoch") }

// materialise returns the image's disk as a raw file in the disk cache.
func (p *Pool) materialise(ctx context.Context, img artifact.Image) (path string, err error) {
	hex, ok := strings.CutPrefix(string(img.Content), "sha256:")
	if !ok || len(hex) != 64 || strings.Trim(hex, "0123456789abcdef") != "" {
		return "", fmt.Errorf("image %s:%s has no content digest: %q", img.Name, img.Version, img.Content)
	}
	dir := p.deps.State.Disks()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	path = filepath.Join(dir, hex+".raw")
	l := flock.New(filepath.Join(dir, hex+".lock"), flock.SetPermissions(0o600))
	if _, err := l.TryLockContext(ctx, 50*time.Millisecond); err != nil {
		return "", fmt.Errorf("wait for the image's disk: %w", err)
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	st, err := os.Stat(path)
	if err == nil && (img.DiskSize == 0 || st.Size() == img.DiskSize) {
		return path, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if err := p.deps.Store.Fetch(ctx, img.Content, path, nil); err != nil {
		return "", fmt.Errorf("materialise %s:%s: %w", img.Name, img.Version, err)
	}
	return path, nil
}

// CheckDisk compares the file that instances of the image boot from with the image,
// chunk by chunk. Where there is none yet, Launch makes one, and checks what it
// makes. artifact.ErrCorrupt names the file.
func (p *Pool) CheckDisk(ctx context.Context, img artifact.Image) error {
	c, ok := p.deps.Store.(interface {
		CheckDisk(ctx context.Context, content artifact.Digest, path string) error
	})
	if err := img.Content.Validate(); err != nil || !ok {
		return fmt.Errorf("the disk of %s:%s cannot be compared: %w", img.Name, img.Version, errors.Join(err, errors.ErrUnsupported))
	}
	path := filepath.Join(p.deps.State.Disks(), img.Content.Hex()+".raw")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return c.CheckDisk(ctx, img.Content, path)
}

func (p *Pool) check(id fleet.GroupID) error {
	if id.Fleet != p.name {
		return fmt.Errorf("group of fleet %q in the pool of %q", id.Fleet, p.name)
	}
	if id.Slot != fleet.Blue && id.Slot != fleet.Green {
		return fmt.Errorf("unknown slot %q", id.Slot)
	}
	if !nameRE.MatchString(id.Deployment) {
		return fmt.Errorf("deployment id %q is not one", id.Deployment)
	}
	return nil
}
