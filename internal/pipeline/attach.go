package pipeline

import (
	"context"
	"fmt"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/inventory"
)

// baking is what is known of an image that is about to be registered.
type baking struct {
	id    string // of the build
	rig   *rig
	disk  artifact.Disk
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
		if _, publishes := k.builder.(builder.Publisher); publishes {
			return fmt.Errorf("the store %T cannot record what is published of an image", k.env.Store)
		}
		return nil
	}
	img, err := a.Describe(ctx, img)
	if err != nil {
		return err
	}
	for _, f := range []func(context.Context, artifact.Attacher, artifact.Image, *baking) error{
		k.state, k.list, k.publish,
		k.sign, // the last: it signs what is there
	} {
		if err := f(ctx, a, img, b); err != nil {
			return fmt.Errorf("attach to %s:%s: %w", img.Name, img.Version, err)
		}
	}
	return nil
}

// publish has the builder make what its cloud boots, and attaches what records it.
// It is the image's once the image is registered; Destroy removes it if that fails.
func (k *bake) publish(ctx context.Context, a artifact.Attacher, img artifact.Image, b *baking) error {
	p, ok := k.builder.(builder.Publisher)
	if !ok {
		return nil
	}
	docs, err := event.Do(ctx, "publish", func(ctx context.Context) ([]builder.Document, error) {
		return p.Publish(ctx, b.id, b.disk, img)
	})
	if err != nil {
		return err
	}
	for _, d := range docs {
		if _, err := a.Attach(ctx, img.Digest, d.Attachment, d.Body); err != nil {
			return err
		}
	}
	return nil
}
