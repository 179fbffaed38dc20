package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/lifecycle"
	"github.com/rebake/rebake/internal/retain"
)

// rulesLabel is the label of an image that holds the rules of its name, as JSON.
const rulesLabel = "dev.rebake.retention"

// ByRetention begins the reason of each removal by rules.
const ByRetention = "retention: "

// ErrCannotRemove is a store that has no way to remove images.
var ErrCannotRemove = errors.New("the store cannot remove images")

// Retention is a wish to remove what the rules let go.
type Retention struct {
	Name string // of the images; "": all
	// Rules are those of Name, or of all; nil: those that the newest image of each name says.
	Rules *retain.Rules
	Edit  func(*retain.Rules) // is handed the rules of each of these names; nil: nothing to change
	// Held says why an image must stay that else would go, or ""; nil: nothing more.
	Held func(context.Context, artifact.Image) (string, error)
}

// Retained is what a plan of retention says.
type Retained struct {
	Plan []retain.Decision // of the images that were asked for
	Bare []string          // names among them by whose rules nothing goes
}

// Removals are those of the plan.
func (r Retained) Removals() (out []retain.Decision) {
	for _, d := range r.Plan {
		if d.Remove {
			out = append(out, d)
		}
	}
	return out
}

// PlanRetention says which images would go, and why each stays or goes. It changes
// nothing, and fails if anything that it must know cannot be read.
func PlanRetention(ctx context.Context, env Env, o Retention) (Retained, error) {
	l, ok := env.Store.(artifact.Lister)
	if !ok {
		return Retained{}, fmt.Errorf("%w, nor list them: %T", ErrCannotRemove, env.Store)
	}
	images, err := l.List(ctx, "")
	if err != nil {
		return Retained{}, err
	}
	rules, err := rulesOfAll(images, o)
	if err != nil {
		return Retained{}, err
	}
	uses, err := env.uses(ctx, rules)
	if err != nil {
		return Retained{}, err
	}
	now := env.clock()
	plan := retain.Plan(images, rules, uses, now)
	held, err := env.inChannels(ctx, Retained{Plan: plan}.Removals())
	if err != nil {
		return Retained{}, err
	}
	for _, d := range (Retained{Plan: plan}).Removals() {
		if o.Held == nil {
			break
		}
		why, err := o.Held(ctx, d.Image)
		if err != nil {
			return Retained{}, err
		}
		if why != "" {
			held = append(held, retain.Use{Image: d.Image.Digest, Why: why})
		}
	}
	if len(held) > 0 {
		plan = retain.Plan(images, rules, append(uses, held...), now)
	}
	var out Retained
	for _, d := range plan {
		if o.Name == "" || d.Image.Name == o.Name {
			out.Plan = append(out.Plan, d)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(rules)) {
		if rules[name].Empty() && (o.Name == "" || name == o.Name) {
			out.Bare = append(out.Bare, name)
		}
	}
	return out, nil
}

// inChannels are the uses of images that would go by channels: what one holds, and
// what one was last promoted to, where the tag did not follow yet. No rule about
// tags lets those go.
func (e Env) inChannels(ctx context.Context, removals []retain.Decision) (out []retain.Use, err error) {
	st, err := lifecycle.In(e.Store)
	if err != nil {
		return nil, nil // no channels in such a store
	}
	look := func(d artifact.Digest) ([]artifact.Attachment, error) {
		return st.Attached(ctx, d, lifecycle.PromotionKind)
	}
	if l, ok := e.Store.(artifact.AttachedLister); ok && len(removals) > 0 {
		all, err := l.AttachedAll(ctx, lifecycle.PromotionKind)
		if err != nil {
			return nil, err
		}
		look = func(d artifact.Digest) ([]artifact.Attachment, error) { return all[d], nil }
	}
	promoted := map[string]bool{} // names with a promoted image among those that would go
	for _, d := range removals {
		if !promoted[d.Image.Name] {
			list, err := look(d.Image.Digest)
			if err != nil {
				return nil, err
			}
			promoted[d.Image.Name] = len(list) > 0
		}
	}
	for name, is := range promoted {
		if !is {
			continue
		}
		channels, err := lifecycle.Channels(ctx, st, name)
		if err != nil {
			return nil, fmt.Errorf("read the channels of %s: %w", name, err)
		}
		for _, c := range channels {
			if len(c.Entries) > 0 {
				out = append(out, retain.Use{Image: c.Entries[0].To.Digest, Why: "channel " + c.Channel + " was promoted to it"})
			}
			if c.Holds != nil {
				out = append(out, retain.Use{Image: c.Holds.Digest, Why: "channel " + c.Channel + " holds it"})
			}
		}
	}
	return out, nil
}

// rulesOfAll are the rules of every name that there is.
func rulesOfAll(images []artifact.Image, o Retention) (map[string]retain.Rules, error) {
	rules := map[string]retain.Rules{}
	for _, img := range images { // the newest of a name is the first
		if _, seen := rules[img.Name]; seen {
			continue
		}
		asked := o.Name == "" || img.Name == o.Name
		r := retain.Default()
		if asked && o.Rules != nil {
			r = *o.Rules
		} else if text := img.Labels[rulesLabel]; text != "" {
			if err := json.Unmarshal([]byte(text), &r); err != nil {
				return nil, fmt.Errorf("the retention rules of %s, which its newest image %s says, cannot be read: %w", img.Name, img.Version, err)
			}
		}
		if asked && o.Edit != nil {
			o.Edit(&r)
		}
		if err := r.Check(); err != nil {
			return nil, fmt.Errorf("the retention rules of %s: %w", img.Name, err)
		}
		rules[img.Name] = r
	}
	return rules, nil
}

// removed are the images of a name that were, where the store remembers.
func (e Env) removed(ctx context.Context, name string) ([]artifact.Removed, error) {
	if r, ok := e.Store.(artifact.Retirer); ok {
		return r.Removed(ctx, name)
	}
	return nil, nil
}

// labels are an image's: the template's, and the rules of its name.
func (k *bake) labels() map[string]string {
	if k.tpl.Retention == nil {
		return k.tpl.Labels
	}
	out := maps.Clone(k.tpl.Labels)
	if out == nil {
		out = map[string]string{}
	}
	text, err := json.Marshal(k.tpl.Retention)
	if err != nil {
		panic(err) // a plain struct
	}
	out[rulesLabel] = string(text)
	return out
}

// longest is for how long removals keep deployments from beginning.
const longest = time.Second

// Retain removes what the plan lets go, and returns what went. Before each removal
// all is looked at again, under the lock that a deployment begins under: what is in
// use by now, has another tag, or is kept by a rule, stays, and is said. One that
// cannot be removed stops no other. A kill leaves whole images and whole tombstones;
// what the blobs occupied comes back by Prune.
func Retain(ctx context.Context, env Env, o Retention, plan Retained) (gone []artifact.Removed, err error) {
	todo := plan.Removals()
	for len(todo) > 0 && ctx.Err() == nil {
		n, some, rerr := env.removeSome(ctx, o, todo)
		gone, err, todo = append(gone, some...), errors.Join(err, rerr), todo[n:]
		if n == 0 { // nothing can be told any more
			return gone, err
		}
	}
	if ctx.Err() != nil {
		err = errors.Join(err, context.Cause(ctx))
	}
	return gone, err
}

// removeSome removes the first n of todo, as many as are done within a moment.
func (e Env) removeSome(ctx context.Context, o Retention, todo []retain.Decision) (n int, gone []artifact.Removed, err error) {
	l, err := e.lockImages(ctx, false)
	if err != nil {
		return 0, nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	plan, err := PlanRetention(ctx, e, o)
	if err != nil {
		return 0, nil, err
	}
	now := map[artifact.Digest]retain.Decision{}
	for _, d := range plan.Plan {
		now[d.Image.Digest] = d
	}
	_, remembers := e.Store.(artifact.Retirer)
	for began := time.Now(); n < len(todo) && ctx.Err() == nil && (n == 0 || time.Since(began) < longest); n++ {
		d, there := now[todo[n].Image.Digest]
		if !there { // another one removed it
			continue
		}
		if !d.Remove {
			event.Infof(ctx, "%s stays after all: %s", imageName(d.Image), d.Why)
			continue
		}
		r, rerr := e.retire(ctx, d.Image, ByRetention+todo[n].Why)
		switch {
		case errors.Is(rerr, artifact.ErrInUse):
			event.Infof(ctx, "%s stays after all: %v", imageName(d.Image), rerr)
		case errors.Is(rerr, artifact.ErrNotFound):
		case rerr != nil && !remembers: // a registry that refuses one refuses all
			return 0, gone, errors.Join(err, rerr)
		case rerr != nil:
			err = errors.Join(err, rerr)
		default:
			gone = append(gone, r)
		}
	}
	return n, gone, err
}

// Free deletes the blobs that no image, cache or fleet needs and that are older than grace.
func Free(ctx context.Context, env Env, grace time.Duration) (freed int64, err error) {
	d, ok := env.Store.(artifact.Deleter)
	if !ok {
		return 0, fmt.Errorf("%w: %T", ErrCannotRemove, env.Store)
	}
	keep, err := Needed(ctx, env)
	if err != nil {
		return 0, fmt.Errorf("cannot tell what is in use, so nothing was deleted: %w", err)
	}
	return d.Prune(ctx, grace, keep)
}

// retire removes an image, and keeps what is known of it where the store can.
func (e Env) retire(ctx context.Context, img artifact.Image, why string) (artifact.Removed, error) {
	out := artifact.Removed{Image: img, At: e.now(), Why: why}
	if r, ok := e.Store.(artifact.Retirer); ok {
		return out, r.Retire(ctx, img, why, out.At)
	}
	d, ok := e.Store.(artifact.Deleter)
	if !ok {
		return out, fmt.Errorf("%w: %T", ErrCannotRemove, e.Store)
	}
	if st, err := lifecycle.In(e.Store); err == nil { // a revocation would go with it that others inherit
		if why, err := lifecycle.Needed(ctx, st, e.clock(), img); err != nil {
			return out, err
		} else if why != "" {
			return out, fmt.Errorf("%s: %w: %s", imageName(img), artifact.ErrInUse, why)
		}
	}
	return out, d.Remove(ctx, artifact.Ref{Name: img.Name, Digest: img.Digest})
}

// Remove removes one image by a person's word; artifact.ErrInUse names the fleet
// that needs it. forget keeps nothing of it: its version is free again.
func Remove(ctx context.Context, env Env, img artifact.Image, why string, forget bool) (err error) {
	l, err := env.lockImages(ctx, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	who, err := UsedBy(ctx, env, img.Digest)
	if err != nil {
		return fmt.Errorf("cannot tell whether a fleet uses it, so it stays: %w", err)
	}
	if who != "" {
		return &UsedError{imageName(img), who}
	}
	if d, ok := env.Store.(artifact.Deleter); ok && forget {
		return d.Remove(ctx, artifact.Ref{Name: img.Name, Digest: img.Digest})
	}
	_, err = env.retire(ctx, img, why)
	return err
}

// UsedError is an image that a fleet needs.
type UsedError struct{ Image, Fleet string }

func (e *UsedError) Error() string {
	return fmt.Sprintf("%s: %v by fleet %s", e.Image, artifact.ErrInUse, e.Fleet)
}

// Unwrap makes it an artifact.ErrInUse.
func (e *UsedError) Unwrap() error { return artifact.ErrInUse }
