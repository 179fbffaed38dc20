package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/inventory"
)

// Brought is a version in which a thing became another.
type Brought struct {
	Version string          `json:"version"`
	Digest  artifact.Digest `json:"digest"`
	Created time.Time       `json:"created"`
	What    string          `json:"what"` // added, removed, up, down, changed; there: in the first version that tells
	From    string          `json:"from,omitempty"`
	To      string          `json:"to,omitempty"`
	Base    string          `json:"base,omitempty"` // the image that it was made from, where that has the same of it
}

// Blamed is the history of a thing in the images of a name.
type Blamed struct {
	Name    string    `json:"name"`
	Kind    string    `json:"kind"`
	Thing   string    `json:"thing"`
	There   bool      `json:"there"`   // it is in the newest version that tells
	History []Brought `json:"history"` // oldest first
	Looked  int       `json:"looked"`  // versions that tell
	Untold  []string  `json:"untold"`  // versions that do not: without an inventory, or one that does not list it
}

// Blame says which versions of an image brought, changed and removed a thing. The
// versions are walked in the order in which they were made.
func Blame(ctx context.Context, env Env, name string, t inventory.Thing) (Blamed, error) {
	b := Blamed{Name: name, Kind: t.Kind, Thing: t.Name, History: []Brought{}, Untold: []string{}}
	images, err := versions(ctx, env, name)
	if err != nil {
		return b, err
	}
	var was string
	for _, img := range images {
		is, there, err := stateOf(ctx, env, img, t)
		if errors.Is(err, errUntold) {
			b.Untold = append(b.Untold, img.Version)
			continue
		}
		if err != nil {
			return b, err
		}
		what := t.Became(was, b.There, is, there)
		if b.Looked == 0 && there {
			what = "there"
		}
		if b.Looked++; what != "" {
			one := Brought{Version: img.Version, Digest: img.Digest, Created: img.Created, What: what, From: was, To: is}
			if one.Base, err = baseWith(ctx, env, img, t, is, there); err != nil {
				return b, err
			}
			b.History = append(b.History, one)
		}
		was, b.There = is, there
	}
	return b, nil
}

// versions are the images of a name, oldest first, those too that were removed and
// of which the store keeps what was said.
func versions(ctx context.Context, env Env, name string) ([]artifact.Image, error) {
	l, ok := env.Store.(artifact.Lister)
	if !ok {
		return nil, fmt.Errorf("the store %T cannot list its images", env.Store)
	}
	images, err := l.List(ctx, name)
	if err != nil {
		return nil, err
	}
	if r, ok := env.Store.(artifact.Retirer); ok {
		gone, err := r.Removed(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, g := range gone {
			images = append(images, g.Image)
		}
	}
	if len(images) == 0 {
		return nil, fmt.Errorf("%s: %w", name, artifact.ErrNotFound)
	}
	slices.SortFunc(images, artifact.NewestFirst)
	slices.Reverse(images)
	return images, nil
}

var errUntold = errors.New("it does not tell")

func stateOf(ctx context.Context, env Env, img artifact.Image, t inventory.Thing) (string, bool, error) {
	inv, err := Inventory(ctx, env, img)
	if errors.Is(err, ErrNoInventory) {
		return "", false, errUntold
	}
	if err != nil {
		return "", false, err
	}
	is, there, err := inv.State(t)
	if err != nil {
		return "", false, fmt.Errorf("%s: %w: %w", imageName(img), errUntold, err)
	}
	return is, there, nil
}

// baseWith is the image that img was made from, if it is of a store and has the
// same of a thing: then it came with that.
func baseWith(ctx context.Context, env Env, img artifact.Image, t inventory.Thing, is string, there bool) (string, error) {
	ref, err := artifact.ParseRef(img.Lineage.Parent)
	if err != nil || img.Lineage.ParentDigest == "" || !there {
		return "", nil
	}
	base, _, err := artifact.Known(ctx, env.Store, artifact.Ref{Name: ref.Name, Digest: img.Lineage.ParentDigest})
	if errors.Is(err, artifact.ErrNotFound) {
		return "", nil // no image of this store: a base from packages, or another store's
	}
	if err != nil {
		return "", err
	}
	had, was, err := stateOf(ctx, env, base, t)
	switch {
	case errors.Is(err, errUntold):
		return "", nil
	case err != nil:
		return "", err
	case was && had == is:
		return imageName(base), nil
	}
	return "", nil
}

// Bill is a bill of materials of an image: what is attached, else one that is made
// of its inventory. kind is inventory.SPDXKind or CycloneDXKind.
func Bill(ctx context.Context, env Env, img artifact.Image, kind string) ([]byte, error) {
	if at, ok := env.Store.(artifact.Attacher); ok {
		list, err := at.Attached(ctx, img.Digest, kind)
		if err != nil {
			return nil, fmt.Errorf("read what is attached to %s: %w", imageName(img), err)
		}
		if len(list) > 0 {
			return at.ReadAttachment(ctx, list[0])
		}
	}
	inv, err := Inventory(ctx, env, img)
	if err != nil {
		return nil, err
	}
	if why := inv.Unknown["packages"]; why != "" {
		return nil, fmt.Errorf("%s: its packages are not known: %s", imageName(img), why)
	}
	return bill(kind, inv, img, env.Version)
}
