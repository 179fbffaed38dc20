package fleet

import (
	"context"
	"errors"
	"fmt"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/event"
)

// Admit says why an image may not run in the fleet: nil where it may, an error
// that wraps ErrRefused where it may not. Any other error is that it could not be
// told, which refuses too. It is asked before anything of a new deployment is
// written down, before each launch of the new image, and again before the first
// traffic; never before the way back, nor of an image that serves already.
type Admit func(ctx context.Context, img artifact.Image) error

// ErrRefused is an image that does not have what its fleet requires.
var ErrRefused = errors.New("the image is refused by what its fleet requires")

// admit asks whether an image may run. override is why that does not count.
func (d *Deployer) admit(ctx context.Context, img artifact.Image, override string) error {
	if d.Admit == nil {
		return nil
	}
	err := d.Admit(ctx, img)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if override != "" {
		event.Warnf(ctx, "policy overridden (%s): %v", override, err)
		return nil
	}
	if !errors.Is(err, ErrRefused) {
		return fmt.Errorf("%w: it could not be told whether it has it: %w", ErrRefused, err)
	}
	return err
}

// admitNew asks of the new image in the middle of its deployment. The error is one
// line: it becomes the reason of the way back.
func (d *Deployer) admitNew(ctx context.Context, r *Record) error {
	err := d.admit(ctx, r.New.Spec.Image, r.Override)
	if err != nil {
		err = errors.New(oneLine(err.Error()))
	}
	return err
}
