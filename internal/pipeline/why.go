package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
)

// Why is the chain from an instance back to what it was made from.
type Why struct {
	Instance string         `json:"instance"`
	Gone     bool           `json:"gone"` // the pool has it no more
	Running  bool           `json:"running"`
	Started  time.Time      `json:"started,omitzero"`
	Fleet    string         `json:"fleet"`
	Slot     fleet.Slot     `json:"slot"`
	Template string         `json:"template"`   // the fleet's, where it was when it was deployed
	Record   *fleet.Record  `json:"deployment"` // that made it
	Baseline bool           `json:"baseline"`   // it ran the old image, for the new one to be compared with
	Image    artifact.Image `json:"image"`      // with its lineage: the bake, its template and commit
	InStore  bool           `json:"in_store"`   // the store still has it
	Parents  []Parent       `json:"parents"`    // nearest first; the last is no image of the store, or has no parent
}

// Parent is what an image began from.
type Parent struct {
	Ref    string          `json:"ref"` // name:version, or a base's key
	Digest artifact.Digest `json:"digest,omitempty"`
	Image  *artifact.Image `json:"image,omitempty"` // nil: a base, or one that the store knows nothing of

	Removed time.Time `json:"removed,omitzero"` // when its disk was; zero: it is there
}

// Explain finds an instance among all fleets, also one that is gone if a
// journal knows the deployment that its name tells of.
func Explain(ctx context.Context, env Env, instance string) (Why, error) {
	all, err := Fleets(ctx, env)
	if err != nil {
		return Why{}, err
	}
	// The longest name first: web-eu-blue-… is of web-eu, if there is one.
	slices.SortFunc(all, func(a, b Place) int { return cmp.Compare(len(b.Name), len(a.Name)) })
	var errs []error
	for _, p := range all {
		n := p.Name
		var w Why
		var c fleet.Config
		b, err := env.books(ctx, p)
		if err == nil {
			c, err = b.Config(ctx)
		}
		if err == nil {
			w, err = explain(ctx, env, b, c, instance)
		}
		if err == nil {
			if env, err = env.In(c.Store); err != nil {
				return w, err
			}
			return w, w.lineage(ctx, env.Store)
		}
		if !errors.Is(err, errNoInstance) { // it may be another fleet's
			errs = append(errs, fmt.Errorf("fleet %s: %w", n, err))
		}
	}
	switch {
	case len(errs) > 0:
		return Why{}, errors.Join(errs...)
	case len(all) == 0:
		return Why{}, fmt.Errorf("%w %q: there are no fleets yet (`rebake up TEMPLATE` makes one)", errNoInstance, instance)
	}
	return Why{}, fmt.Errorf("%w %q, and no journal tells of a deployment that had it: `rebake fleet status FLEET` lists what there is, of %s", errNoInstance, instance, strings.Join(namesOf(all), ", "))
}

var errNoInstance = errors.New("no fleet has an instance")

func explain(ctx context.Context, env Env, b fleet.Books, c fleet.Config, instance string) (Why, error) {
	rest, ok := strings.CutPrefix(instance, c.Name+"-")
	if !ok {
		return Why{}, errNoInstance
	}
	d, err := deployer(env, b, c)
	if err != nil {
		return Why{}, err
	}
	h, err := d.History(ctx)
	if err != nil {
		return Why{}, err
	}
	groups, err := d.Pool.Groups(ctx, c.Name)
	if err != nil {
		return Why{}, err
	}
	w := Why{Instance: instance, Gone: true, Fleet: c.Name, Template: c.Template, Parents: []Parent{}}
	for _, g := range groups {
		for _, i := range g.Instances {
			if i.ID != instance {
				continue
			}
			w.Gone, w.Running, w.Started, w.Slot = false, i.Running, i.Started, g.ID.Slot
			for _, r := range slices.Backward(h) {
				if r.ID == g.ID.Deployment {
					w.of(r)
					return w, nil
				}
			}
			return w, fmt.Errorf("%s is of no deployment that the journal knows: a temporary instance of `rebake fleet heal`, or a leftover that `rebake gc` ends", instance)
		}
	}
	for _, r := range slices.Backward(h) {
		for _, slot := range []fleet.Slot{fleet.Blue, fleet.Green} {
			tail, ok := strings.CutPrefix(rest, string(slot)+"-")
			// A name has the end of its deployment's id, whatever the pool puts around it.
			if end := strings.ToLower(r.ID[max(0, len(r.ID)-6):]); ok && end != "" && strings.Contains(strings.ToLower(tail), end) {
				w.Slot = slot
				w.of(r)
				return w, nil
			}
		}
	}
	return Why{}, errNoInstance
}

// of fills in what the deployment says of an instance in the slot.
func (w *Why) of(r fleet.Record) {
	w.Record, w.Image = &r, r.New.Spec.Image
	if w.Slot != r.New.Group.Slot && r.Old != nil {
		w.Baseline, w.Image = true, r.Old.Spec.Image
	}
}

// most parents that are followed: a chain that is longer goes in circles.
const mostParents = 64

// lineage follows the image through the store, from what the journal knows of it.
func (w *Why) lineage(ctx context.Context, store artifact.Store) error {
	have, gone, err := inStore(ctx, store, w.Image.Name, w.Image.Digest)
	if err != nil {
		return err
	}
	w.InStore = have != nil && gone == nil
	for l := w.Image.Lineage; l.Parent != "" && len(w.Parents) < mostParents; {
		p := Parent{Ref: l.Parent, Digest: l.ParentDigest}
		if ref, err := artifact.ParseRef(l.Parent); err == nil && l.ParentDigest != "" {
			if p.Image, gone, err = inStore(ctx, store, ref.Name, l.ParentDigest); err != nil {
				return err
			}
			if gone != nil {
				p.Removed = gone.At
			}
		}
		if w.Parents = append(w.Parents, p); p.Image == nil {
			break
		}
		l = p.Image.Lineage
	}
	return nil
}

// inStore is what the store knows of the image of that digest, or nil; gone is not
// nil if its disk was removed.
func inStore(ctx context.Context, store artifact.Store, name string, d artifact.Digest) (img *artifact.Image, gone *artifact.Removed, err error) {
	known, gone, err := artifact.Known(ctx, store, artifact.Ref{Name: name, Digest: d})
	switch {
	case errors.Is(err, artifact.ErrNotFound):
		return nil, nil, nil
	case err != nil:
		return nil, nil, err
	}
	return &known, gone, nil
}
