package fleet

import (
	"context"
	"fmt"
	"time"
)

// Preparer is the optional power of a Pool to make ready what an image needs
// before it can be launched, or to say that it cannot be. It is asked before
// anything of a deployment is written down, and changes nothing that serves.
type Preparer interface {
	Prepare(ctx context.Context, spec Spec) error
}

// Fitter is the optional power of a Pool or a Router to complete a policy by what
// it knows of itself, and to refuse one that it could not keep. It is asked before
// anything is begun, and says which setting has to change.
type Fitter interface {
	Fit(ctx context.Context, p Policy, size int) (Policy, error)
}

// Grower is the optional power of a Pool whose groups change their size by
// themselves: the size that a group has now, 0 if there is none. A deployment
// brings up no less than the old slot has.
type Grower interface {
	Size(ctx context.Context, id GroupID) (int, error)
}

// Targets is the optional power of a Router to name, for each slot, the place where
// a pool registers instances by itself as they come and go.
type Targets interface {
	Target(ctx context.Context, s Slot) (string, error)
}

// Behind is the optional power of a Pool to do so.
type Behind interface {
	SetTargets(t Targets)
}

// Paced is the optional power of a Pool or a Router to say how often it wants to
// be looked at.
type Paced interface {
	PollEvery() time.Duration
}

// Noter is the optional power of a Pool or a Router to tell a person what else
// there is to know before a deployment, each in one line.
type Noter interface {
	Notes() []string
}

// Join lets a deployer's pool and router know of each other, and sets its pace.
func (d *Deployer) Join() {
	if b, ok := d.Pool.(Behind); ok {
		if t, ok := d.Router.(Targets); ok {
			b.SetTargets(t)
		}
	}
	for _, part := range []any{d.Pool, d.Router} {
		if p, ok := part.(Paced); ok {
			d.Poll = max(d.Poll, p.PollEvery())
		}
	}
}

// Fit is the policy as pool and router complete it.
func (d *Deployer) Fit(ctx context.Context, p Policy, size int) (Policy, error) {
	for _, part := range []any{d.Pool, d.Router} {
		if f, ok := part.(Fitter); ok {
			var err error
			if p, err = f.Fit(ctx, p, size); err != nil {
				return p, err
			}
		}
	}
	return p, nil
}

// Grown is the size that a deployment of the image has to bring up: that of the
// spec, or more, where the group that serves has grown by itself since. For the
// image that serves already, or is being deployed, it is what was asked for then,
// unless force says that all of it is made anew.
func (d *Deployer) Grown(ctx context.Context, spec Spec, p Policy, force bool) (int, error) {
	g, ok := d.Pool.(Grower)
	if !ok || p.Strategy == Rolling {
		return spec.Size, nil
	}
	h, err := d.History(ctx)
	if err != nil {
		return 0, err
	}
	least := spec.Size
	if p.Strategy == Refresh { // the group's own size is all that counts
		least = 0
	}
	if r := h.Unfinished(); r != nil && r.New.Spec.Image.Digest == spec.Image.Digest {
		return max(least, r.New.Spec.Size), nil
	}
	cur := h.Current()
	if cur != nil && cur.Spec.Image.Digest == spec.Image.Digest && !force {
		return max(least, cur.Spec.Size), nil
	}
	if p.Strategy == Refresh {
		return g.Size(ctx, GroupID{Fleet: d.Config.Name})
	}
	if cur == nil {
		return spec.Size, nil
	}
	n, err := g.Size(ctx, cur.Group)
	if err != nil {
		return 0, fmt.Errorf("how large the fleet is now: %w", err)
	}
	return max(spec.Size, n), nil
}

// Notes are what pool and router tell of themselves.
func (d *Deployer) Notes() (all []string) {
	parts := []any{d.Pool, d.Router}
	if d.Router == any(d.Pool) { // in place
		parts = parts[:1]
	}
	for _, part := range parts {
		if n, ok := part.(Noter); ok {
			all = append(all, n.Notes()...)
		}
	}
	return all
}
