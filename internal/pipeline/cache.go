package pipeline

import (
	"context"
	"errors"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/cache"
	"github.com/rebake/rebake/internal/event"
)

// Cached lists what is kept to save time. It fails rather than call something
// unused that a fleet may need. Of the images that a fleet could go back to only
// the one before is in use here: the disks of others are made again from the store.
func Cached(ctx context.Context, env Env) ([]cache.Entry, error) {
	var keep []artifact.Digest
	err := eachFleet(ctx, env, func(_ fleet.Config, needs []fleet.Need) error {
		for _, n := range needs {
			if n.Back <= 1 {
				keep = append(keep, n.Image.Content)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return env.Backends.Cached(env, keep)
}

// Needed lists the contents that the store must keep besides those of its images:
// what fleets run, are deploying or keep, and what cached bases and builds are on.
// What a fleet could go back to is not among them: it is an image of the store, or
// was removed, and then nothing needs its chunks. Nor is what fleets have from a
// registry, unless it is here: their copies keep what they can.
func Needed(ctx context.Context, env Env) ([]artifact.Digest, error) {
	has := func(artifact.Digest) bool { return false }
	if s, ok := env.Store.(interface{ Has(artifact.Digest) bool }); ok {
		has = s.Has
	}
	var keep []artifact.Digest
	err := eachFleet(ctx, env, func(cfg fleet.Config, needs []fleet.Need) error {
		for _, n := range needs {
			if n.Back == 0 && (cfg.Store == "" || has(n.Image.Content)) {
				keep = append(keep, n.Image.Content)
			}
		}
		return nil
	})
	if err != nil || env.Backends.Contents == nil {
		return keep, err
	}
	cached, err := env.Backends.Contents(env)
	return append(keep, cached...), err
}

// PruneCache removes what was not used for the longest time until the cache
// occupies at most limit bytes.
func PruneCache(ctx context.Context, env Env, limit int64) ([]cache.Entry, error) {
	entries, err := Cached(ctx, env)
	if err != nil {
		return nil, err
	}
	return cache.Prune(ctx, entries, limit)
}

// boundCache keeps the cache in its bounds after a build, which does not fail for it.
func boundCache(ctx context.Context, env Env) {
	if env.MaxCache <= 0 || env.Backends.Cached == nil {
		return
	}
	gone, err := PruneCache(context.WithoutCancel(ctx), env, env.MaxCache)
	for _, e := range gone {
		event.Infof(ctx, "cache over its bound: removed %s %s", e.Kind, e.What)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		event.Warnf(ctx, "the cache was not pruned: %v", err)
	}
}
