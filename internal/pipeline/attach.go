package pipeline

import (
	"context"
	"fmt"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/inventory"
)

// baking is what is known of an image that is about to be registered.
type baking struct {
	id    string // of the build
	rig   *rig
	got   chunks
	tests []artifact.TestResult
	holds *inventory.Inventory // nil: nobody looked
	list  []byte               // holds, as it is attached
}

// attach adds all that is said of an image before the image is there: whoever
// sees it sees what is attached. What of it is never registered, Prune removes.
func (k *bake) attach(ctx context.Context, img artifact.Image, b *baking) error {
	a, ok := k.env.Store.(artifact.Attacher)
	if !ok {
		return nil
	}
	img, err := a.Describe(ctx, img)
	if err != nil {
		return err
	}
	for _, f := range []func(context.Context, artifact.Attacher, artifact.Image, *baking) error{
		k.state, k.list,
		k.sign, // the last: it signs what is there
	} {
		if err := f(ctx, a, img, b); err != nil {
			return fmt.Errorf("attach to %s:%s: %w", img.Name, img.Version, err)
		}
	}
	return nil
}
