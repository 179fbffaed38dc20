package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rebake/rebake/artifact"
)

// Outdated is an image that was made from an older base than it would be today.
type Outdated struct {
	Image   artifact.Image `json:"image"`
	Base    string         `json:"base"`              // that it was made from
	Newer   string         `json:"newer"`             // that it would be made from
	Why     string         `json:"why"`               // a clause
	Through string         `json:"through,omitempty"` // its own base is the newest, and this ancestor is outdated
}

// ListOutdated looks at each image of every name that is the newest of its name,
// or has a tag, or that used tells of; of every image if all is set. What was made from
// a tag is outdated once the tag points elsewhere; from a version, once there is a
// higher one that is not revoked. Bases that are no images of the store, such as
// debian:bookworm, never are.
func ListOutdated(ctx context.Context, s Store, now time.Time, all bool, used func(artifact.Digest) bool) ([]Outdated, error) {
	images, err := s.List(ctx, "")
	if err != nil {
		return nil, err
	}
	o := outdater{store: s, lineage: NewLineage(s, now, images...), by: map[string][]artifact.Image{}}
	for _, img := range images {
		o.by[img.Name] = append(o.by[img.Name], img)
	}
	out := []Outdated{}
	for _, img := range images {
		newest := o.by[img.Name][0].Digest == img.Digest
		if !all && !newest && len(img.Tags) == 0 && !used(img.Digest) {
			continue
		}
		one, err := o.look(ctx, img)
		if err != nil {
			return nil, err
		}
		if one != nil {
			out = append(out, *one)
		}
	}
	return out, nil
}

type outdater struct {
	store   Store
	lineage *Lineage
	by      map[string][]artifact.Image // by name, newest first
}

// look is how an image, or the nearest of its ancestors, is outdated; nil: it is not.
func (o outdater) look(ctx context.Context, img artifact.Image) (*Outdated, error) {
	above, err := o.lineage.Ancestors(ctx, img)
	if err != nil {
		return nil, err
	}
	for _, a := range append([]artifact.Image{img}, above...) {
		newer, why, err := o.base(ctx, a)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name(a), err)
		}
		if newer == "" {
			continue
		}
		out := &Outdated{Image: img, Base: a.Lineage.Parent, Newer: newer, Why: why}
		if a.Digest != img.Digest {
			out.Through = name(a)
		}
		return out, nil
	}
	return nil, nil
}

// base is the base that an image would be made from today, and why that is another.
func (o outdater) base(ctx context.Context, img artifact.Image) (newer, why string, err error) {
	l := img.Lineage
	ref, err := artifact.ParseRef(l.Parent)
	if err != nil || len(o.by[ref.Name]) == 0 {
		return "", "", nil
	}
	if from, err := artifact.ParseRef(l.From); err == nil && from.Digest == "" && from.Tag != ref.Tag {
		now, err := o.store.Resolve(ctx, from)
		switch {
		case errors.Is(err, artifact.ErrNotFound): // the tag is gone: versions tell
		case err != nil:
			return "", "", err
		case now.Digest == l.ParentDigest:
			return "", "", nil
		default:
			return name(now), fmt.Sprintf("%s was %s and is %s now", from, ref.Tag, now.Version), nil
		}
	}
	var best *artifact.Image
	for i, b := range o.by[ref.Name] {
		if artifact.CompareVersions(b.Version, ref.Tag) <= 0 || best != nil && artifact.CompareVersions(b.Version, best.Version) <= 0 {
			continue
		}
		if why, err := o.lineage.Revoked(ctx, b); err != nil {
			return "", "", err
		} else if why == "" {
			best = &o.by[ref.Name][i]
		}
	}
	if best == nil {
		return "", "", nil
	}
	return name(*best), fmt.Sprintf("%s is there since %s", name(*best), best.Created.UTC().Format("2006-01-02")), nil
}
