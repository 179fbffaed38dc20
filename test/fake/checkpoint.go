package fake

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/atomicfile"
	"github.com/rebake/rebake/internal/cache"
)

// keys are what a machine is logged in to with, and what its host proves itself with.
type keys struct {
	Login, Host []byte
	Memory      bool
}

// saved is a checkpoint's KEY.ID.json: the tree is in KEY.ID.tar, written before.
// KEY.ID.lock is held while the two are made.
type saved struct {
	keys
	Taken time.Time
	Note  []byte
	Base  builder.Base
}

var _ builder.Checkpointer = (*Builder)(nil)

// volatile is what a fake guest has in its memory alone: it boots without it.
const volatile = "run"

func (b *Builder) checkpoints() string { return filepath.Join(b.Cache, "checkpoints") }

// newest finds the last of a key's checkpoints, or the one that was taken then.
func (b *Builder) newest(key artifact.Digest, at time.Time) (path string, s saved, err error) {
	found, err := filepath.Glob(filepath.Join(b.checkpoints(), key.Hex()+".*.json"))
	if err != nil {
		return "", s, err
	}
	for _, p := range found {
		var one saved
		raw, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was evicted
		}
		if err != nil {
			return "", s, err
		}
		if json.Unmarshal(raw, &one) == nil && (at.IsZero() && one.Taken.After(s.Taken) || one.Taken.Equal(at)) {
			path, s = strings.TrimSuffix(p, ".json"), one
		}
	}
	if path == "" {
		return "", s, fmt.Errorf("%w: %s", builder.ErrNoCheckpoint, key)
	}
	return path, s, nil
}

// Find implements builder.Checkpointer.
func (b *Builder) Find(ctx context.Context, key artifact.Digest) (builder.Checkpoint, bool, error) {
	if err := b.before(ctx, "find", ""); err != nil {
		return builder.Checkpoint{}, false, err
	}
	_, s, err := b.newest(key, time.Time{})
	if errors.Is(err, builder.ErrNoCheckpoint) {
		return builder.Checkpoint{}, false, nil
	}
	if err != nil {
		return builder.Checkpoint{}, false, err
	}
	return builder.Checkpoint{Key: key, Memory: s.Memory, Taken: s.Taken, Note: s.Note, Base: s.Base}, true, nil
}

// BootFrom implements builder.Checkpointer.
func (b *Builder) BootFrom(ctx context.Context, id string, c builder.Checkpoint) (builder.Machine, error) {
	if err := b.before(ctx, "bootfrom", id); err != nil {
		return nil, err
	}
	path, s, err := b.newest(c.Key, c.Taken)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path + ".tar")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", builder.ErrNoCheckpoint, err)
	}
	defer f.Close()
	now := time.Now()
	_ = os.Chtimes(path+".json", now, now) // the last use, for eviction
	return b.start(id, f, nil, &s.keys)
}

// Save implements builder.Checkpointer.
func (b *Builder) Save(ctx context.Context, bm builder.Machine, key artifact.Digest, memory bool, note []byte) (func(context.Context) error, error) {
	m, ok := bm.(*machine)
	if !ok {
		return nil, fmt.Errorf("a %T is no machine of this builder", bm)
	}
	if err := b.before(ctx, "save", m.id); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(b.checkpoints(), 0o700); err != nil {
		return nil, err
	}
	s := saved{keys: m.keys, Taken: time.Now(), Note: note,
		Base: builder.Base{Ref: "fake", Digest: b.key().Digest(), Arch: "amd64", Firmware: "bios", Seed: "credentials", User: "root", DiskSize: diskSize}}
	s.Memory = memory
	path := filepath.Join(b.checkpoints(), key.Hex()+"."+rand.Text())
	lock := flock.New(path + ".lock")
	if ok, err := lock.TryLock(); err != nil || !ok {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	undo := func(err error) error {
		return errors.Join(err, remove(path), lock.Close())
	}
	if err := packDir(m.file("root"), path+".tar"); err != nil {
		return nil, undo(err)
	}
	return func(ctx context.Context) error {
		if err := b.before(ctx, "finish", m.id); err != nil {
			return undo(err)
		}
		raw, err := json.Marshal(s)
		if err != nil {
			return undo(err)
		}
		if err := atomicfile.Write(path+".json", raw, 0o600); err != nil {
			return undo(err)
		}
		return errors.Join(os.Remove(path+".lock"), lock.Close())
	}, nil
}

// remove takes away a checkpoint, first what makes it one, the lock last.
func remove(path string) error {
	for _, end := range []string{".json", ".json.tmp", ".tar", ".tar.tmp", ".lock"} {
		if err := os.Remove(path + end); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Sweep removes the checkpoints that a killed process left half-made.
func (b *Builder) Sweep() (gone []string, err error) {
	locks, err := filepath.Glob(filepath.Join(b.checkpoints(), "*.lock"))
	for _, l := range locks {
		lock := flock.New(l)
		if free, err := lock.TryLock(); err != nil || !free {
			if err != nil {
				return gone, err
			}
			continue // it is being made
		}
		path := strings.TrimSuffix(l, ".lock")
		if _, err := os.Stat(path + ".json"); err == nil { // all that was left to do
			err = errors.Join(os.Remove(l), lock.Close())
			if err != nil {
				return gone, err
			}
			continue
		}
		if err := errors.Join(remove(path), lock.Close()); err != nil {
			return gone, err
		}
		gone = append(gone, path)
	}
	return gone, err
}

// Cached lists the checkpoints.
func (b *Builder) Cached() ([]cache.Entry, error) {
	found, err := filepath.Glob(filepath.Join(b.checkpoints(), "*.json"))
	var out []cache.Entry
	for _, p := range found {
		path := strings.TrimSuffix(p, ".json")
		tar, terr := os.Stat(path + ".tar")
		info, jerr := os.Stat(p)
		if err := errors.Join(terr, jerr); err != nil {
			return nil, err
		}
		out = append(out, cache.Entry{ID: path, Kind: "checkpoint", What: filepath.Base(path), Size: tar.Size() + info.Size(), Used: info.ModTime(),
			Remove: func(context.Context) error { return remove(path) }})
	}
	return out, err
}
