package pipeline

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/inventory"
	"github.com/rebake/rebake/provisioner"
)

// ErrNoInventory is of an image that does not say what it holds.
var ErrNoInventory = errors.New("it carries no inventory: it was baked with seal.inventory: off, or by an older rebake")

// inventory looks into the sealed guest. What it cannot tell is warned of and no
// error: a bake of an hour is not lost for it. A guest that is gone is one.
func (k *bake) inventory(ctx context.Context, g provisioner.Guest) (*inventory.Inventory, error) {
	extent, err := inventory.ParseExtent(k.tpl.Seal.Inventory)
	if err != nil || extent == inventory.Off || !k.attaches() {
		return nil, err
	}
	return event.Do(ctx, "inventory", func(ctx context.Context) (*inventory.Inventory, error) {
		inv, err := inventory.Take(ctx, g, extent)
		switch {
		case ctx.Err() != nil || errors.Is(err, provisioner.ErrDisconnected):
			return nil, err
		case err != nil:
			event.Warnf(ctx, "the image will carry no inventory and no SBOM: %v", err)
			return nil, nil
		}
		event.Infof(ctx, "%s", inv)
		for _, part := range slices.Sorted(maps.Keys(inv.Unknown)) {
			if part != "files" || extent == inventory.Files {
				event.Warnf(ctx, "the inventory does not tell %s: %s", part, inv.Unknown[part])
			}
		}
		return inv, nil
	})
}

func (k *bake) attaches() bool {
	_, ok := k.env.Store.(artifact.Attacher)
	return ok
}

// encode makes of what the guest holds the bytes that are attached, and returns
// their digest; "" where nobody looked.
func (b *baking) encode(ctx context.Context) artifact.Digest {
	if b.holds == nil {
		return ""
	}
	var err error
	if b.list, err = inventory.Encode(b.holds); err != nil {
		event.Warnf(ctx, "the image carries no inventory and no SBOM: %v", err)
		b.holds = nil
		return ""
	}
	return digestOf(b.list)
}

func digestOf(b []byte) artifact.Digest {
	return artifact.Digest(fmt.Sprintf("sha256:%x", sha256.Sum256(b)))
}

// list attaches what the image holds, and bills of materials of it: not where its
// packages cannot be told, because an empty bill would pass for a complete one.
func (k *bake) list(ctx context.Context, at artifact.Attacher, img artifact.Image, b *baking) error {
	if b.holds == nil {
		return nil
	}
	if _, err := at.Attach(ctx, img.Digest, artifact.Attachment{Kind: inventory.Kind, Media: inventory.Media, Created: img.Created}, b.list); err != nil {
		return err
	}
	if b.holds.Unknown["packages"] != "" {
		return nil
	}
	for _, kind := range []string{inventory.SPDXKind, inventory.CycloneDXKind} {
		raw, err := bill(kind, b.holds, img, k.env.Version)
		if err != nil {
			return err
		}
		if _, err := at.Attach(ctx, img.Digest, artifact.Attachment{Kind: kind, Media: kind, Created: img.Created}, raw); err != nil {
			return err
		}
	}
	return nil
}

// bill is the bill of materials of an image.
func bill(kind string, inv *inventory.Inventory, img artifact.Image, tool string) ([]byte, error) {
	of := inventory.Subject{Name: img.Name, Version: img.Version, Digest: string(img.Digest), Created: img.Created, Tool: tool}
	if kind == inventory.SPDXKind {
		return inventory.SPDX(inv, of)
	}
	return inventory.CycloneDX(inv, of)
}

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
	raw, err := own(ctx, at, img, list)
	if err != nil {
		return nil, fmt.Errorf("read the inventory of %s: %w", imageName(img), err)
	}
	if raw == nil {
		return nil, fmt.Errorf("%s: %w", imageName(img), ErrNoInventory)
	}
	inv, err := inventory.Decode(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", imageName(img), err)
	}
	return inv, nil
}

// own is the inventory that the image itself names by digest; of an image that
// names none, the oldest, which is that of its bake unless somebody who may write
// to the store says otherwise. nil: there is none.
func own(ctx context.Context, at artifact.Attacher, img artifact.Image, list []artifact.Attachment) ([]byte, error) {
	for _, a := range list {
		raw, err := at.ReadAttachment(ctx, a)
		if err != nil {
			return nil, err
		}
		if want := img.Lineage.Holds; want == "" || want == digestOf(raw) {
			return raw, nil
		}
	}
	return nil, nil
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
