package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/rebake/rebake/artifact"
)

// Held is an image that a channel held.
type Held struct {
	Version string          `json:"version"`
	Digest  artifact.Digest `json:"digest"`
}

// Promotion is one move of a channel, attached to the image that it moved to.
type Promotion struct {
	Said
	Channel string   `json:"channel"`
	To      Held     `json:"to"`
	From    *Held    `json:"from,omitempty"` // what the channel held; nil: nothing
	Changes *Changes `json:"changes,omitempty"`
}

// Changes is what tells the image from the one that the channel held.
type Changes struct {
	Summary string          `json:"summary"`          // one line; of images without an inventory, that
	Detail  json.RawMessage `json:"detail,omitempty"` // the summary of the diff, as rebake diff makes it
}

// Differ says what tells one image from another.
type Differ func(ctx context.Context, from, to artifact.Image) Changes

// Outcome is what a promotion came to.
type Outcome struct {
	Promotion
	Changed bool       `json:"changed"`          // false: the channel held the image already, and nothing was written
	Winner  *Promotion `json:"winner,omitempty"` // somebody's at the same time that came last: the channel holds that one's image
}

// tries bounds how often a promotion looks again whether others were at it.
const tries = 32

// Promote moves a channel of the image's name to the image, and says so on it.
// ErrRevoked for an image that is revoked, artifact.ErrExists if the channel's
// name is a version. Two at once are both written down, and all who took part
// leave the tag at the one that Compare puts last. What was cut off in the middle
// is in the history and did not move the tag: Promote again.
func Promote(ctx context.Context, s Store, who Author, img artifact.Image, channel, reason string, diff Differ) (Outcome, error) {
	if err := checkChannel(ctx, s, img, channel); err != nil {
		return Outcome{}, err
	}
	why, err := Revoked(ctx, s, img, who.Now())
	if err != nil {
		return Outcome{}, fmt.Errorf("ask whether %s was revoked: %w", name(img), err)
	}
	if why != "" {
		return Outcome{}, fmt.Errorf("%s cannot be promoted: it is %w: %s", name(img), ErrRevoked, why)
	}
	past, err := promotions(ctx, s, img.Name, channel)
	if err != nil {
		return Outcome{}, err
	}
	held, err := holds(ctx, s, img.Name, channel)
	if err != nil {
		return Outcome{}, err
	}
	last := past.last()
	if last != nil && held != nil && held.Digest == img.Digest && last.To.Digest == img.Digest {
		return Outcome{Promotion: *last}, nil
	}
	p := Promotion{Said: who.says(reason, 1), Channel: channel, To: Held{img.Version, img.Digest}}
	if last != nil {
		p.Serial = last.Serial + 1
	}
	if held != nil {
		p.From = &Held{held.Version, held.Digest}
		if diff != nil && held.Digest != img.Digest {
			c := diff(ctx, *held, img)
			p.Changes = &c
		}
	}
	out := Outcome{Promotion: p, Changed: true}
	out.Winner, err = settle(ctx, s, img, p)
	return out, err
}

// settle writes a promotion down and brings the tag to the last one of all, until
// nobody came between: whoever writes the tag last has then seen every record, so
// the tag is where the records say. It returns the last one if that is not p.
func settle(ctx context.Context, s Store, img artifact.Image, p Promotion) (winner *Promotion, err error) {
	var tagged artifact.Digest
	for range tries {
		all, err := promotions(ctx, s, img.Name, p.Channel)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(all.list, func(q Promotion) bool { return q.ID == p.ID }) {
			// The first time round; or a registry without referrers lost one of two at once.
			if err := write(ctx, s, img, PromotionKind, PromotionType, p.At, p); err != nil {
				return nil, fmt.Errorf("write down the promotion: %w", err)
			}
			continue
		}
		last := all.there()
		switch {
		case last == nil || all.gone[img.Digest]:
			return nil, fmt.Errorf("%s was removed meanwhile: %w", name(img), artifact.ErrNotFound)
		case last.To.Digest == tagged && last.ID == p.ID:
			return nil, nil
		case last.To.Digest == tagged:
			return last, nil
		}
		err = s.Tag(ctx, img.Name, p.Channel, last.To.Digest)
		if errors.Is(err, artifact.ErrNotFound) {
			continue // its image was removed just now: look again
		}
		if err != nil {
			return nil, fmt.Errorf("move %s:%s: %w", img.Name, p.Channel, err)
		}
		tagged = last.To.Digest
	}
	return nil, fmt.Errorf("%s:%s is promoted by others all the time: look at `rebake channel history %s %s`, and try again", img.Name, p.Channel, img.Name, p.Channel)
}

func checkChannel(ctx context.Context, s Store, img artifact.Image, channel string) error {
	if err := artifact.CheckTag(channel); err != nil {
		return err
	}
	if channel == artifact.Latest {
		return fmt.Errorf("%s cannot be a channel: each bake moves that tag", channel)
	}
	got, _, err := artifact.Known(ctx, s, artifact.Ref{Name: img.Name, Tag: channel})
	switch {
	case errors.Is(err, artifact.ErrNotFound):
		return nil
	case err != nil:
		return err
	case got.Version == channel:
		return fmt.Errorf("%s:%s is a version, which never moves: %w", img.Name, channel, artifact.ErrExists)
	}
	return nil
}

// holds is the image that the channel's tag points at, or nil.
func holds(ctx context.Context, s Store, of, channel string) (*artifact.Image, error) {
	img, err := s.Resolve(ctx, artifact.Ref{Name: of, Tag: channel})
	switch {
	case errors.Is(err, artifact.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return &img, nil
}
