package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/retain"
)

// UsedBy names a fleet that needs the image, or "".
func UsedBy(ctx context.Context, env Env, d artifact.Digest) (string, error) {
	var user string
	err := eachFleet(ctx, env, func(cfg fleet.Config, needs []fleet.Need) error {
		for _, n := range needs {
			if n.Image.Digest == d && n.Back <= cfg.Previous() {
				user = cfg.Name
			}
		}
		return nil
	})
	return user, err
}

// eachFleet tells of every fleet which images it needs or once ran to the end. It
// fails if a fleet's record or journal cannot be read, also of one that lost its
// record, and if a place cannot be asked where fleets are.
func eachFleet(ctx context.Context, env Env, f func(fleet.Config, []fleet.Need) error) error {
	states, err := env.everywhere()
	if err != nil {
		return err
	}
	for _, s := range states {
		h, err := env.home(ctx, s)
		if err == nil {
			err = fleetsOf(ctx, h, f)
		}
		if err != nil && s != "" {
			err = fmt.Errorf("what fleets in %s need cannot be told: %w (if there are none any more, remove its line from %s)", s, err, env.State.SharedList())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func fleetsOf(ctx context.Context, h fleet.Home, f func(fleet.Config, []fleet.Need) error) error {
	lost, err := h.Orphans(ctx)
	if err != nil {
		return err
	}
	if len(lost) > 0 {
		return fmt.Errorf("%s has a journal and no fleet.json: what that fleet runs cannot be told (if it is gone, remove the directory)", lost[0])
	}
	names, err := h.Names(ctx)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		b := h.Books(n)
		cfg, err := b.Config(ctx)
		if errors.Is(err, fleet.ErrNoFleet) { // destroyed this moment
			continue
		}
		var past fleet.History
		if err == nil {
			past, err = fleet.HistoryOf(ctx, b)
		}
		if err == nil {
			err = f(cfg, past.Needs())
		}
		if err != nil {
			return fmt.Errorf("fleet %s: %w", n, err)
		}
	}
	return nil
}

// uses are all reasons for which images must stay: what fleets say of themselves,
// what their pools have, what builds stand on. rules may let fleets go back further
// than their records say.
func (e Env) uses(ctx context.Context, rules map[string]retain.Rules) ([]retain.Use, error) {
	var out []retain.Use
	err := eachFleet(ctx, e, func(cfg fleet.Config, needs []fleet.Need) error {
		for _, n := range needs {
			if n.Back <= max(cfg.Previous(), rules[n.Image.Name].KeepPrevious) {
				out = append(out, retain.Use{Image: n.Image.Digest, Why: "fleet " + cfg.Name + " " + n.Why})
			}
		}
		if e.Backends.Pool == nil {
			return nil
		}
		pool, err := e.Backends.Pool(e, cfg.Name, cfg.PoolKind, cfg.Pool)
		if err != nil {
			return err
		}
		groups, err := pool.Groups(ctx, cfg.Name)
		if err != nil {
			return fmt.Errorf("list its instances: %w", err)
		}
		for _, g := range groups {
			out = append(out, retain.Use{Image: g.Image, Why: "fleet " + cfg.Name + " has instances of it"})
		}
		return nil
	})
	if err != nil || e.Backends.Contents == nil {
		return out, err
	}
	contents, err := e.Backends.Contents(e)
	for _, c := range contents {
		out = append(out, retain.Use{Content: c, Why: "a build stands on its disk, or will"})
	}
	return out, err
}

// hold is fleet.Hold: no image is removed between the look whether this one is
// there and the journal's plan that names it.
func (e Env) hold(ctx context.Context, img artifact.Image) (func() error, error) {
	l, err := e.lockImages(ctx, true)
	if err != nil {
		return nil, err
	}
	_, err = e.Store.Resolve(ctx, artifact.Ref{Name: img.Name, Digest: img.Digest})
	if errors.Is(err, artifact.ErrNotFound) || ctx.Err() != nil {
		return nil, errors.Join(fmt.Errorf("%s cannot be deployed: %w", imageName(img), err), l.Close())
	}
	if err != nil { // a way back must not wait for a registry: its disk may be here
		event.Warnf(ctx, "cannot tell whether %s is in the store still: %v", imageName(img), err)
	}
	return l.Close, nil
}

// lockImages takes the lock that stands between those who begin to use images
// (shared) and those who remove them.
func (e Env) lockImages(ctx context.Context, shared bool) (*flock.Flock, error) {
	path := e.State.ImagesLock()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	l := flock.New(path, flock.SetPermissions(0o600), flock.SetFlag(os.O_CREATE|os.O_RDWR))
	try, wait := l.TryLock, l.TryLockContext
	if shared {
		try, wait = l.TryRLock, l.TryRLockContext
	}
	ok, err := try()
	if err == nil && !ok {
		event.Waiting(ctx, "another rebake that %s", map[bool]string{true: "removes images", false: "begins a deployment or removes images"}[shared])
		_, err = wait(ctx, 10*time.Millisecond)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the images: %w", err), l.Close())
	}
	return l, nil
}
