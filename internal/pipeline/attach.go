package pipeline

import (
	"context"
	"fmt"

	"github.com/rebake/rebake/artifact"
)

// baking is what is known of an image that is about to be registered.
type baking struct {
	id    string // of the build
	rig   *rig
	got   chunks
	tests []artifact.TestResult
}

// attachers are what a bake says of its image besides its metadata, in order.
func (k *bake) attachers() []func(context.Context, artifact.Attacher, artifact.Image, *baking) error {
	return []func(context.Context, artifact.Attacher, artifact.Image, *baking) error{k.state, k.sign} // sign is the last: it signs what is there
}

// attach adds all that is said of an image before the image is there: whoever
// sees it sees what is attached. What of it is never registered, Prune removes.
func (k *bake) attach(ctx context.Context, img artifact.Image, b *baking) error {
	a, ok := k.env.Store.(artifact.Attacher)
	if !ok || len(k.attachers()) == 0 {
		return nil
	}
	img, err := a.Describe(ctx, img)
	if err != nil {
		return err
	}
	for _, f := range k.attachers() {
		if err := f(ctx, a, img, b); err != nil {
			return fmt.Errorf("attach to %s:%s: %w", img.Name, img.Version, err)
		}
	}
	return nil
}
