package pipeline

import (
	"context"
	"errors"
	"fmt"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/inventory"
)

// ErrNoInventory is of an image that does not say what it holds.
var ErrNoInventory = errors.New("it carries no inventory: it was baked with seal.inventory: off, or by an older rebake")

// Inventory reads what is attached to an image about what it holds. No disk is read.
func Inventory(ctx context.Context, env Env, img artifact.Image) (*inventory.Inventory, error) {
	at, ok := env.Store.(artifact.Attacher)
	if !ok {
		return nil, fmt.Errorf("%s: the store %T keeps no attachments: %w", imageName(img), env.Store, ErrNoInventory)
	}
	list, err := at.Attached(ctx, img.Digest, inventory.Kind)
	if err != nil {
		return nil, fmt.Errorf("read what is attached to %s: %w", imageName(img), err)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s: %w", imageName(img), ErrNoInventory)
	}
	raw, err := at.ReadAttachment(ctx, list[0]) // that of the bake: the oldest
	if err != nil {
		return nil, fmt.Errorf("read the inventory of %s: %w", imageName(img), err)
	}
	inv, err := inventory.Decode(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", imageName(img), err)
	}
	return inv, nil
}

// Diff is what tells image b from a, out of their inventories. ErrNoInventory if
// one has none.
func Diff(ctx context.Context, env Env, a, b artifact.Image) (inventory.Diff, error) {
	var inv [2]*inventory.Inventory
	for i, img := range []artifact.Image{a, b} {
		var err error
		if inv[i], err = Inventory(ctx, env, img); err != nil {
			return inventory.Diff{}, err
		}
	}
	return inventory.Compare(inv[0], inv[1]), nil
}

// DiffSummary is Diff in short, to be shown and to be kept with a promotion.
func DiffSummary(ctx context.Context, env Env, a, b artifact.Image) (inventory.Summary, error) {
	d, err := Diff(ctx, env, a, b)
	if err != nil {
		return inventory.Summary{}, err
	}
	return d.Summary(), nil
}
