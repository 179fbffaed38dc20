package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/internal/cache"
)

// Locks say who stands on what: every machine holds the base below its disk
// (BASE.raw.use) and its checkpoints (KEY-FIT-ID.lock) shared, until Destroy or
// the end of its process; who makes or removes one holds it exclusively.
const useEnd = ".use"

// tryLock takes a lock; nil if another has it. A lock's file may be removed by
// who holds it exclusively, so it must be there still.
func tryLock(path string, shared bool) (*flock.Flock, error) {
	for {
		l := flock.New(path, flock.SetPermissions(0o600), flock.SetFlag(os.O_CREATE|os.O_RDWR))
		try := l.TryLock
		if shared {
			try = l.TryRLock
		}
		if ok, err := try(); err != nil || !ok {
			return nil, errors.Join(err, l.Close())
		}
		mine, err := l.Stat()
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		if there, err := os.Stat(path); err == nil && os.SameFile(mine, there) {
			return l, nil
		}
		if err := l.Close(); err != nil {
			return nil, err
		}
	}
}

// waitLock takes a lock once nobody stands in the way.
func waitLock(ctx context.Context, path string, shared bool) (*flock.Flock, error) {
	for {
		l, err := tryLock(path, shared)
		if l != nil || err != nil {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// held says whether a lock is in somebody's hands.
func held(path string) bool {
	if _, err := os.Stat(path); err != nil {
		return false
	}
	l, err := tryLock(path, false)
	if l == nil {
		return err == nil
	}
	_ = l.Close() // nothing was changed under it
	return false
}

// exclusively runs f with the lock, and removes the lock's file; cache.ErrInUse
// if another has it.
func exclusively(path string, f func() error) (err error) {
	l, err := tryLock(path, false)
	if err != nil {
		return err
	}
	if l == nil {
		return cache.ErrInUse
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	return errors.Join(f(), removeAll(path))
}

// hold keeps a lock for machine id.
func (b *Builder) hold(id string, l *flock.Flock) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held == nil {
		b.held = map[string][]*flock.Flock{}
	}
	b.held[id] = append(b.held[id], l)
}

// begin notes a checkpoint that machine id's disk is on and that may never be finished.
func (b *Builder) begin(id, dir string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.begun == nil {
		b.begun = map[string][]string{}
	}
	b.begun[id] = append(b.begun[id], dir)
}

// letGo releases what machine id held, and removes what it saved and did not
// finish. (What a killed process did not finish, Sweep removes.)
func (b *Builder) letGo(id string) error {
	b.mu.Lock()
	locks, begun := b.held[id], b.begun[id]
	delete(b.held, id)
	delete(b.begun, id)
	b.mu.Unlock()
	var errs []error
	for _, l := range locks {
		errs = append(errs, l.Close())
	}
	for _, dir := range begun {
		if _, err := os.Stat(filepath.Join(dir, metaName)); err == nil {
			continue
		}
		err := exclusively(dir+".lock", func() error { return os.RemoveAll(dir) })
		if !errors.Is(err, cache.ErrInUse) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// useBase holds a base for machine id; false if it is being removed.
func (b *Builder) useBase(id, path string) (bool, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return false, err
	}
	l, err := tryLock(path+useEnd, true)
	if l == nil {
		return false, err
	}
	b.hold(id, l)
	now := time.Now()
	_ = os.Chtimes(path+useEnd, now, now) // the last use, for eviction
	_, err = os.Stat(path)
	return err == nil, nil
}
