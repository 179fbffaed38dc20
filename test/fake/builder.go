package fake

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
)

// Builder is a builder whose machines are directories: an SSH server in this
// process with a shell of this computer, the guest's own files (/etc, /root,
// /run, /srv, /var, /www) under the machine's directory. A machine dies with
// its process; its directory, and the commands that it ran, stay until Destroy.
//
// The shell moves absolute paths of a command line there, not those in a script
// or in a variable: a test's script says "$HOME", or is relative to it.
type Builder struct {
	Dir   string            // one directory per machine
	Cache string            // holds prepared bases
	Base  map[string]string // files that the base has besides a few of its own, by path without /
	// Before is asked at the start of each method (key, prepare, boot, boottest,
	// endpoint, capture, destroy, find, bootfrom, save, finish): it may fail it, or hold it up. id is "" for key, prepare and find.
	Before func(ctx context.Context, op, id string) error
	// Stubborn guests do not obey the power button; others miss it until they have
	// run a command: they still boot.
	Stubborn bool

	fetched atomic.Int32
	mu      sync.Mutex
	live    map[string]*machine
}

var _ builder.Builder = (*Builder)(nil)

// Fetched counts how often the base was read from where it comes from.
func (b *Builder) Fetched() int { return int(b.fetched.Load()) }

func (b *Builder) before(ctx context.Context, op, id string) error {
	if b.Before != nil {
		if err := b.Before(ctx, op, id); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// files are all of the base's.
func (b *Builder) files() map[string]string {
	all := map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\n", "etc/machine-id": "", "etc/hostname": "localhost\n",
		"etc/ssh/sshd_config": "", "sbin/init": "#!/bin/sh\nssh-keygen -A\n",
		"var/tmp/.keep": "", "var/log/boot.log": "", "run/.keep": "", "root/.profile": "", "www/index.html": "it works\n",
	}
	maps.Copy(all, b.Base)
	return all
}

func (b *Builder) key() (in artifact.Inputs) {
	files := b.files()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		in.Add("file "+name, files[name])
	}
	return in
}

// Key implements builder.Builder.
func (b *Builder) Key(ctx context.Context) (artifact.Inputs, error) {
	return b.key(), b.before(ctx, "key", "")
}

func (b *Builder) basePath() string { return filepath.Join(b.Cache, b.key().Digest().Hex()+".tar") }

// Prepare implements builder.Builder.
func (b *Builder) Prepare(ctx context.Context) (builder.Base, error) {
	base := builder.Base{Ref: "fake", Digest: b.key().Digest(), Arch: "amd64", Firmware: "bios", Seed: "credentials", User: "root", DiskSize: diskSize}
	if err := b.before(ctx, "prepare", ""); err != nil {
		return base, err
	}
	if err := os.MkdirAll(b.Cache, 0o700); err != nil {
		return base, err
	}
	lock := flock.New(b.basePath() + ".lock")
	defer lock.Close()
	if _, err := lock.TryLockContext(ctx, time.Millisecond); err != nil {
		return base, err
	}
	if _, err := os.Stat(b.basePath()); !errors.Is(err, fs.ErrNotExist) {
		return base, err
	}
	b.fetched.Add(1)
	tmp, err := os.MkdirTemp(b.Cache, "base")
	if err != nil {
		return base, err
	}
	defer func() { _ = os.RemoveAll(tmp) }() // the test's own directory goes anyway
	if err := b.plantBase(tmp); err != nil {
		return base, err
	}
	return base, packDir(tmp, b.basePath())
}

func (b *Builder) plantBase(dir string) error {
	for name, data := range b.files() {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// packDir writes dir as the tar to, all or nothing.
func packDir(dir, to string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := os.Create(to + ".tmp")
	if err != nil {
		return err
	}
	if err := errors.Join(tree{root}.pack(f), f.Close()); err != nil {
		return err
	}
	return os.Rename(to+".tmp", to)
}

// Boot implements builder.Builder.
func (b *Builder) Boot(ctx context.Context, id string) (builder.Machine, error) {
	if _, err := b.Prepare(ctx); err != nil {
		return nil, err
	}
	if err := b.before(ctx, "boot", id); err != nil {
		return nil, err
	}
	f, err := os.Open(b.basePath())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return b.start(id, f, nil, nil)
}

// BootTest implements builder.Builder.
func (b *Builder) BootTest(ctx context.Context, id string, d artifact.Disk, ports []int) (builder.Machine, error) {
	if err := b.before(ctx, "boottest", id); err != nil {
		return nil, err
	}
	return b.start(id, &offset{d: d}, ports, nil)
}

// Crash ends a machine of this Builder as a failing computer would. It says
// whether there was one.
func (b *Builder) Crash(id string) bool {
	b.mu.Lock()
	m := b.live[id]
	b.mu.Unlock()
	if m == nil {
		return false
	}
	m.end(false)
	return true
}

// Destroy implements builder.Builder.
func (b *Builder) Destroy(ctx context.Context, id string) error {
	if err := b.before(ctx, "destroy", id); err != nil {
		return err
	}
	dir := filepath.Join(b.Dir, id)
	if _, err := os.Stat(dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	lock := flock.New(filepath.Join(dir, "lock"))
	defer lock.Close()
	for {
		free, err := lock.TryLock()
		if err != nil {
			return err
		}
		if free {
			break
		}
		if err := order(dir, "kill"); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for machine %s to end: %w", id, context.Cause(ctx))
		case <-time.After(2 * time.Millisecond):
		}
	}
	if err := killAll(dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// Commands lists the processes that machine id ran and that still run.
func (b *Builder) Commands(id string) ([]int, error) { return commands(filepath.Join(b.Dir, id)) }

// Machines lists the directories of machines.
func (b *Builder) Machines() ([]string, error) {
	entries, err := os.ReadDir(b.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() {
			ids = append(ids, e.Name())
		}
	}
	return ids, err
}

// offset reads a disk from its start.
type offset struct {
	d   artifact.Disk
	off int64
}

func (o *offset) Read(p []byte) (int, error) {
	n, err := o.d.ReadAt(p, o.off)
	o.off += int64(n)
	return n, err
}

const diskSize = 1 << 20

// disk is a machine's tree in the first bytes of a disk that is a little larger.
type disk struct {
	*os.File
	used, size int64
}

func (d *disk) Size() int64             { return d.size }
func (d *disk) Parent() artifact.Digest { return "" }

// Extents implements artifact.Disk.
func (d *disk) Extents(ctx context.Context) ([]artifact.Extent, error) {
	return []artifact.Extent{{Length: d.used}, {Offset: d.used, Length: d.size - d.used, Zero: true}},
		cmp.Or(ctx.Err(), nil)
}
