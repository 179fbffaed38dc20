package lifecycle

import (
	"context"
	"fmt"
	"slices"

	"github.com/rebake/rebake/artifact"
)

// past are promotions of a name, oldest first.
type past struct {
	list []Promotion
	gone map[artifact.Digest]bool // images that were removed, and left what was said of them
	bad  []string                 // what could not be understood: anybody may attach anything
}

func (p past) last() *Promotion {
	if len(p.list) == 0 {
		return nil
	}
	return &p.list[len(p.list)-1]
}

// there is the last one whose image can be held.
func (p past) there() *Promotion {
	for i := range slices.Backward(p.list) {
		if !p.gone[p.list[i].To.Digest] {
			return &p.list[i]
		}
	}
	return nil
}

// promotions reads those of all images of a name; channel "" is all.
func promotions(ctx context.Context, s Store, of, channel string) (past, error) {
	p := past{gone: map[artifact.Digest]bool{}}
	images, err := s.List(ctx, of)
	if err != nil {
		return p, err
	}
	if r, ok := s.(artifact.Retirer); ok {
		removed, err := r.Removed(ctx, of)
		if err != nil {
			return p, err
		}
		for _, one := range removed {
			if !slices.ContainsFunc(images, func(i artifact.Image) bool { return i.Digest == one.Digest }) {
				p.gone[one.Digest], images = true, append(images, one.Image)
			}
		}
	}
	ask := atOnce(s, PromotionKind)
	for _, img := range images {
		got, bad, err := read[Promotion](ctx, s, ask, img, PromotionKind, PromotionType)
		if err != nil {
			return p, err
		}
		for _, b := range bad {
			p.bad = append(p.bad, name(img)+": "+b.Error())
		}
		for _, one := range got {
			switch {
			case one.To.Digest != img.Digest || one.To.Version != img.Version:
				p.bad = append(p.bad, fmt.Sprintf("%s: a promotion of %.100q is attached to it", name(img), one.To.Version))
			case channel == "" || one.Channel == channel:
				p.list = append(p.list, one)
			}
		}
	}
	slices.SortFunc(p.list, func(a, b Promotion) int { return a.Compare(b.Said) })
	// Of one that was attached plain and again, the first counts.
	seen := map[string]bool{}
	p.list = slices.DeleteFunc(p.list, func(q Promotion) bool {
		twice := seen[q.ID]
		seen[q.ID] = true
		return twice
	})
	return p, nil
}

// Entry is a promotion as the history tells it.
type Entry struct {
	Promotion
	Back bool   `json:"back,omitempty"` // the channel held that image before
	Gone bool   `json:"gone,omitempty"` // the image was removed since
	Note string `json:"note,omitempty"` // why From is not what the entry before moved to
}

// Past is a channel's history.
type Past struct {
	Channel string   `json:"channel"`
	Entries []Entry  `json:"entries"`            // newest first
	Holds   *Held    `json:"holds,omitempty"`    // what the tag points at now; nil: nothing
	Moved   string   `json:"moved,omitempty"`    // how Holds is not what the newest entry says
	Broken  []string `json:"unusable,omitempty"` // records that could not be understood
}

// History is what became of a channel, from what is attached to the images of the
// name that the store still has.
func History(ctx context.Context, s Store, of, channel string) (Past, error) {
	all, err := promotions(ctx, s, of, channel)
	if err != nil {
		return Past{}, err
	}
	return history(ctx, s, of, channel, all)
}

func history(ctx context.Context, s Store, of, channel string, all past) (Past, error) {
	out := Past{Channel: channel, Entries: []Entry{}, Broken: all.bad}
	img, err := holds(ctx, s, of, channel)
	if err != nil {
		return out, err
	}
	if img != nil {
		out.Holds = &Held{img.Version, img.Digest}
	}
	seen := map[string]bool{}
	for i, p := range all.list {
		e := Entry{Promotion: p, Back: seen[p.To.Version], Gone: all.gone[p.To.Digest]}
		seen[p.To.Version] = true
		switch {
		case i > 0 && all.list[i-1].Serial == p.Serial:
			e.Note = "at the same time as the one before"
		case i == 0 && p.Serial > 1, i > 0 && p.Serial > all.list[i-1].Serial+1:
			e.Note = "those before went with their images"
		case i == 0 && p.From != nil && p.From.Version != p.To.Version:
			e.Note = "the tag was there before the channel"
		case i > 0 && (p.From == nil || p.From.Version != all.list[i-1].To.Version):
			e.Note = "the tag had been moved by other means, or the promotion before was cut off"
		}
		out.Entries = append(out.Entries, e)
	}
	slices.Reverse(out.Entries)
	switch last := all.last(); {
	case last == nil:
	case out.Holds == nil && all.gone[last.To.Digest]:
		out.Moved = "the tag is gone, with the image that it pointed at"
	case out.Holds == nil:
		out.Moved = "the tag is gone"
	case out.Holds.Version != last.To.Version: // not the digest: each architecture has its own
		out.Moved = fmt.Sprintf("the tag points at %s: it was moved by other means, or the last promotion was cut off", out.Holds.Version)
	}
	return out, nil
}

// Channels are all channels of a name, by name, each with its history.
func Channels(ctx context.Context, s Store, of string) ([]Past, error) {
	all, err := promotions(ctx, s, of, "")
	if err != nil {
		return nil, err
	}
	by := map[string]past{}
	var names []string
	for _, p := range all.list {
		one, ok := by[p.Channel]
		if !ok {
			names, one.gone = append(names, p.Channel), all.gone
		}
		one.list = append(one.list, p)
		by[p.Channel] = one
	}
	slices.Sort(names)
	var out []Past
	for _, n := range names {
		h, err := history(ctx, s, of, n, by[n])
		if err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, nil
}

// Promoted are those tags of each image that it was promoted to, by the image's
// digest: the channels that hold it, unless the tag was moved by other means.
func Promoted(ctx context.Context, s Store, images []artifact.Image) (map[artifact.Digest][]string, error) {
	ask := each(s, PromotionKind)
	if len(images) > 1 {
		ask = atOnce(s, PromotionKind)
	}
	out := map[artifact.Digest][]string{}
	for _, img := range images {
		if len(img.Tags) == 0 {
			continue
		}
		got, _, err := read[Promotion](ctx, s, ask, img, PromotionKind, PromotionType)
		if err != nil {
			return nil, err
		}
		for _, tag := range img.Tags {
			if slices.ContainsFunc(got, func(p Promotion) bool { return p.Channel == tag && p.To.Digest == img.Digest }) {
				out[img.Digest] = append(out[img.Digest], tag)
			}
		}
	}
	return out, nil
}

// IsChannel says whether a tag of a name was ever promoted to: then only Promote moves it.
func IsChannel(ctx context.Context, s Store, of, tag string) (bool, error) {
	all, err := promotions(ctx, s, of, tag)
	return len(all.list) > 0, err
}
