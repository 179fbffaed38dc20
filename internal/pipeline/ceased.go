package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/retain"
)

// Ceased is an image that is not kept any more.
type Ceased struct {
	Image  artifact.Image
	At     time.Time // when it was removed
	Ladder *retain.Ladder
}

// CeasedImages are those that were removed, and those that plan would remove now,
// of the names that were asked for, each with how its AMIs go: by the rules of its
// name, which its newest image says, also one that was removed.
func CeasedImages(ctx context.Context, env Env, o Retention, plan Retained) ([]Ceased, error) {
	gone, err := env.removed(ctx, o.Name)
	if err != nil {
		return nil, err
	}
	l, ok := env.Store.(artifact.Lister)
	if !ok {
		return nil, fmt.Errorf("%w, nor list them: %T", ErrCannotRemove, env.Store)
	}
	images, err := l.List(ctx, "")
	if err != nil {
		return nil, err
	}
	rules, err := rulesOfAll(images, o)
	if err != nil {
		return nil, err
	}
	var out []Ceased
	for _, d := range plan.Removals() {
		out = append(out, Ceased{d.Image, env.clock(), rules[d.Image.Name].AMI})
	}
	newest := map[string]artifact.Image{} // of names of which every image was removed
	for _, r := range gone {
		if n, ok := newest[r.Name]; !ok || artifact.NewestFirst(r.Image, n) < 0 {
			newest[r.Name] = r.Image
		}
	}
	for name, img := range newest {
		if _, ok := rules[name]; !ok {
			more, err := rulesOfAll([]artifact.Image{img}, o)
			if err != nil {
				return nil, err
			}
			rules[name] = more[name]
		}
	}
	for _, r := range gone {
		out = append(out, Ceased{r.Image, r.At, rules[r.Name].AMI})
	}
	return out, nil
}

// Unneeded runs f while no deployment can begin, if no fleet needs the image:
// artifact.ErrInUse names the one that does. What f does should take a second.
// ceased: the image must be one that was removed; it may have come back by a pull.
func Unneeded(ctx context.Context, env Env, img artifact.Image, ceased bool, f func() error) (err error) {
	l, err := env.lockImages(ctx, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if ceased {
		_, err := env.Store.Resolve(ctx, artifact.Ref{Name: img.Name, Digest: img.Digest})
		switch {
		case err == nil:
			return fmt.Errorf("%s: %w: it is in the store again", imageName(img), artifact.ErrInUse)
		case !errors.Is(err, artifact.ErrNotFound):
			return err
		}
	}
	who, err := UsedBy(ctx, env, img.Digest)
	if err != nil {
		return fmt.Errorf("cannot tell whether a fleet uses %s, so its AMIs stay: %w", imageName(img), err)
	}
	if who != "" {
		return &UsedError{imageName(img), who}
	}
	return f()
}
