package fake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
)

// keys are what a machine is logged in to with, and what its host proves itself with.
type keys struct {
	Login, Host []byte
	Memory      bool
}

// saved is a checkpoint's KEY.json: the tree is in KEY.tar, written before.
type saved struct {
	keys
	Taken time.Time
	Note  []byte
	Base  builder.Base
}

var _ builder.Checkpointer = (*Builder)(nil)

// volatile is what a fake guest has in its memory alone: it boots without it.
const volatile = "run"

func (b *Builder) checkpoint(key artifact.Digest) string {
	return filepath.Join(b.Cache, "checkpoints", key.Hex())
}

func (b *Builder) readSaved(key artifact.Digest) (saved, error) {
	var s saved
	raw, err := os.ReadFile(b.checkpoint(key) + ".json")
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("%w: %s", builder.ErrNoCheckpoint, key)
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, fmt.Errorf("%w: %w", builder.ErrNoCheckpoint, err)
	}
	return s, nil
}

// Find implements builder.Checkpointer.
func (b *Builder) Find(_ context.Context, key artifact.Digest) (builder.Checkpoint, bool, error) {
	s, err := b.readSaved(key)
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
	s, err := b.readSaved(c.Key)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(b.checkpoint(c.Key) + ".tar")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", builder.ErrNoCheckpoint, err)
	}
	defer f.Close()
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
	if _, err := b.readSaved(key); err == nil {
		return nil, nil
	}
	base := b.checkpoint(key)
	if err := os.MkdirAll(filepath.Dir(base), 0o700); err != nil {
		return nil, err
	}
	if err := packDir(m.file("root"), base+".tar"); err != nil {
		return nil, err
	}
	s := saved{keys: m.keys, Taken: time.Now(), Note: note,
		Base: builder.Base{Ref: "fake", Digest: b.key().Digest(), Arch: "amd64", Firmware: "bios", Seed: "credentials", User: "root", DiskSize: diskSize}}
	s.Memory = memory
	return func(ctx context.Context) error {
		if err := b.before(ctx, "finish", m.id); err != nil {
			return err
		}
		raw, err := json.Marshal(s)
		if err != nil {
			return err
		}
		if err := os.WriteFile(base+".json.tmp", raw, 0o600); err != nil {
			return err
		}
		return os.Rename(base+".json.tmp", base+".json")
	}, nil
}
