package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/oklog/ulid/v2"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/atomicfile"
	"github.com/rebake/rebake/internal/qemu"
	"github.com/rebake/rebake/internal/ssh"
)

// A checkpoint is a directory cache/checkpoints/KEY-FIT-ID, where FIT is what
// machine its memory goes on in:
//
//	disk.qcow2       what the guest wrote since the checkpoint before (or the base)
//	memory, devices  as qemu.VM.Save wrote them; none: the disk boots
//	efivars.fd       of a UEFI machine
//	checkpoint.json  written last: without it there is no checkpoint
//
// KEY-FIT-ID.lock beside it is held shared by every build whose disk is on it, and
// exclusively while it is made or evicted. The guest's memory may hold what the
// steps before were given, so all of it is for its owner's eyes alone.
const (
	layerName = "disk.qcow2"
	metaName  = "checkpoint.json"
	buildMAC  = "52:54:00:72:62:6b" // of every build machine: each is alone on its network
)

// meta is checkpoint.json.
type meta struct {
	Key      artifact.Digest `json:"key"`
	Fit      string          `json:"fit"`
	Memory   bool            `json:"memory"`
	Taken    time.Time       `json:"taken"`
	Base     builder.Base    `json:"base"`
	BasePath string          `json:"base_path"`
	Content  artifact.Digest `json:"base_content"`
	Layers   []string        `json:"layers"` // of the checkpoints below, undermost first
	DiskSize int64           `json:"disk_size"`
	Seed     qemu.Seed       `json:"seed"`
	Login    []byte          `json:"login"` // private key
	Note     []byte          `json:"note"`
}

func (b *Builder) checkpoint(key artifact.Digest, fit string) string {
	return fmt.Sprintf("%.32s-%s", key.Hex(), fit)
}

// Find implements builder.Checkpointer.
func (b *Builder) Find(ctx context.Context, key artifact.Digest) (builder.Checkpoint, bool, error) {
	found, err := filepath.Glob(filepath.Join(b.deps.State.Checkpoints(), b.checkpoint(key, "*"), metaName))
	if err != nil {
		return builder.Checkpoint{}, false, err
	}
	var best builder.Checkpoint
	ok := false
	for _, path := range found {
		m, err := b.readMeta(filepath.Dir(path))
		if errors.Is(err, builder.ErrNoCheckpoint) {
			continue
		}
		if err != nil {
			return best, false, err
		}
		if m.Key != key {
			continue
		}
		c := builder.Checkpoint{Key: key, Taken: m.Taken, Note: m.Note, Base: m.Base, Size: sizeOf(filepath.Dir(path))}
		if m.Memory {
			fit, err := b.config("", "", m.Base, m.Seed).Fit(ctx)
			if err != nil {
				return best, false, err
			}
			c.Memory = fit == m.Fit
		}
		if !ok || c.Memory && !best.Memory || c.Memory == best.Memory && c.Taken.After(best.Taken) {
			best, ok = c, true
		}
	}
	return best, ok, nil
}

// readMeta reads a checkpoint and sees that all it stands on is there.
func (b *Builder) readMeta(dir string) (meta, error) {
	var m meta
	raw, err := os.ReadFile(filepath.Join(dir, metaName))
	if errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("%w: %s", builder.ErrNoCheckpoint, filepath.Base(dir))
	}
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("%w: %s: %w", builder.ErrNoCheckpoint, filepath.Base(dir), err)
	}
	need := []string{m.BasePath, filepath.Join(dir, layerName)}
	for _, l := range m.Layers {
		need = append(need, filepath.Join(b.deps.State.Checkpoints(), l, layerName))
	}
	for _, p := range need {
		if _, err := os.Stat(p); err != nil {
			return m, fmt.Errorf("%w: %s: %w", builder.ErrNoCheckpoint, filepath.Base(dir), err)
		}
	}
	return m, nil
}

// BootFrom implements builder.Checkpointer.
func (b *Builder) BootFrom(ctx context.Context, id string, c builder.Checkpoint) (builder.Machine, error) {
	found, err := filepath.Glob(filepath.Join(b.deps.State.Checkpoints(), b.checkpoint(c.Key, "*"), metaName))
	if err != nil {
		return nil, err
	}
	for _, path := range found {
		dir := filepath.Dir(path)
		m, err := b.readMeta(dir)
		if err != nil {
			if errors.Is(err, builder.ErrNoCheckpoint) {
				continue
			}
			return nil, err
		}
		if m.Key != c.Key || !m.Taken.Equal(c.Taken) {
			continue
		}
		return b.bootFrom(ctx, id, filepath.Base(dir), m, c.Memory)
	}
	return nil, fmt.Errorf("%w: %s", builder.ErrNoCheckpoint, c.Key)
}

func (b *Builder) bootFrom(ctx context.Context, id, name string, m meta, memory bool) (_ builder.Machine, err error) {
	layers := append(slices.Clone(m.Layers), name)
	if err := b.use(id, m.BasePath, layers); err != nil {
		return nil, err
	}
	dir, from := b.deps.State.Build(id), filepath.Join(b.deps.State.Checkpoints(), name)
	if _, err := b.readMeta(from); err != nil { // it went between the look and the lock
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	login, err := ssh.ParseKey(m.Login)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", builder.ErrNoCheckpoint, err)
	}
	host, err := ssh.ParseKey(m.Seed.HostKeyPEM)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", builder.ErrNoCheckpoint, err)
	}
	overlay := filepath.Join(dir, layerName)
	if err := qemu.CreateOverlay(ctx, overlay, filepath.Join(from, layerName), "qcow2", m.DiskSize); err != nil {
		return nil, err
	}
	if err := qemu.RestoreVars(from, dir); err != nil {
		return nil, err
	}
	cfg := b.config(dir, overlay, m.Base, m.Seed)
	if memory {
		cfg.Resume = from
	}
	vm, err := qemu.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	for _, l := range layers { // the last use, for eviction; a failure costs nothing else
		_ = os.Chtimes(filepath.Join(b.deps.State.Checkpoints(), l, metaName), now, now)
	}
	return &machine{b: b, id: id, vm: vm, base: base{Base: m.Base, path: m.BasePath, content: m.Content}, overlay: overlay,
		layers: layers, size: m.DiskSize, seed: m.Seed, loginPEM: m.Login, login: login.Signer, host: host.Signer.PublicKey()}, nil
}

// Save implements builder.Checkpointer.
func (b *Builder) Save(ctx context.Context, bm builder.Machine, key artifact.Digest, memory bool, note []byte) (func(context.Context) error, error) {
	m, ok := bm.(*machine)
	if !ok {
		return nil, fmt.Errorf("a %T is no machine of this builder", bm)
	}
	memory = memory && qemu.CanSave
	fit, err := b.config("", "", m.base.Base, m.seed).Fit(ctx)
	if err != nil {
		return nil, err
	}
	// A name of its own: others may stand on an older one of the key.
	name := b.checkpoint(key, fit) + "-" + strings.ToLower(ulid.Make().String())
	dir := filepath.Join(b.deps.State.Checkpoints(), name)
	if err := os.MkdirAll(b.deps.State.Checkpoints(), 0o700); err != nil {
		return nil, err
	}
	lock, err := tryLock(dir+".lock", false)
	if lock == nil {
		return nil, errors.Join(fmt.Errorf("%s.lock is held by somebody else", dir), err)
	}
	next := filepath.Join(b.deps.State.Build(m.id), fmt.Sprintf("disk-%d.qcow2", len(m.layers)+1))
	undo := func(err error) error {
		return errors.Join(err, os.RemoveAll(dir), os.RemoveAll(next), removeAll(dir+".lock"), lock.Close())
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, undo(err)
	}
	if err := os.Link(m.overlay, filepath.Join(dir, layerName)); err != nil {
		return nil, undo(err)
	}
	if err := qemu.CreateLayer(ctx, next, filepath.Join(dir, layerName), m.size); err != nil {
		return nil, undo(err)
	}
	frozen, err := m.vm.Save(ctx, dir, next, memory)
	if !frozen {
		return nil, undo(err)
	}
	below := slices.Clone(m.layers)
	m.overlay, m.layers = next, append(m.layers, name)
	b.hold(m.id, lock) // the machine's disk is on it now, whatever comes
	b.begin(m.id, dir)
	if err != nil {
		return nil, err
	}
	rec := meta{Key: key, Fit: fit, Memory: memory, Taken: time.Now().UTC(), Base: m.base.Base, BasePath: m.base.path, Content: m.base.content,
		Layers: below, DiskSize: m.size, Seed: m.seed, Login: m.loginPEM, Note: note}
	return func(ctx context.Context) error {
		files, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, f := range files {
			if err := atomicfile.Sync(filepath.Join(dir, f.Name())); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		raw, err := json.Marshal(rec)
		if err != nil {
			return err
		}
		if err := atomicfile.Write(filepath.Join(dir, metaName), append(raw, '\n'), 0o600); err != nil {
			return err
		}
		return lock.RLock() // others may use it
	}, nil
}

// use holds the base and the checkpoints that machine id's disk will be on.
func (b *Builder) use(id, base string, layers []string) error {
	if ok, err := b.useBase(id, base); err != nil || !ok {
		return errors.Join(fmt.Errorf("%w: its base is being removed", builder.ErrNoCheckpoint), err)
	}
	for _, l := range layers {
		var lock *flock.Flock
		var err error
		for try := 0; lock == nil && err == nil && try < 20; try++ { // somebody may just look who has it
			if try > 0 {
				time.Sleep(20 * time.Millisecond)
			}
			lock, err = tryLock(filepath.Join(b.deps.State.Checkpoints(), l+".lock"), true)
		}
		if lock == nil {
			return errors.Join(fmt.Errorf("%w: %s is in the hands of another rebake", builder.ErrNoCheckpoint, l), err)
		}
		b.hold(id, lock)
	}
	return nil
}

// sizeOf is what a directory occupies.
func sizeOf(dir string) (n int64) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			n += occupied(info)
		}
	}
	return n
}
