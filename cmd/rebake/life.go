package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/lifecycle"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/ui"
)

// shownImage is an image as lists tell it.
type shownImage struct {
	artifact.Image
	Channels []string `json:"channels,omitempty"` // those of its tags that it was promoted to
	Revoked  string   `json:"revoked,omitempty"`  // why; or why it cannot be told
}

// life tells of each image which channels hold it and whether it is revoked.
func (s *session) life(images []artifact.Image) ([]shownImage, error) {
	out := []shownImage{}
	st, err := lifecycle.In(s.Store)
	if err != nil { // a store that keeps no records
		for _, img := range images {
			out = append(out, shownImage{Image: img})
		}
		return out, nil
	}
	l := lifecycle.NewLineage(st, time.Now(), images...)
	channels, err := lifecycle.Promoted(s.ctx, st, images)
	if err != nil {
		return nil, err
	}
	for _, img := range images {
		one := shownImage{Image: img, Channels: channels[img.Digest]}
		if one.Revoked, err = l.Revoked(s.ctx, img); err != nil { // one record that is rubbish hides no image
			one.Revoked = "perhaps: " + err.Error()
		}
		out = append(out, one)
	}
	return out, nil
}

// keepRevoked refuses to remove an image whose revocation others inherit.
func (s *session) keepRevoked(ref artifact.Ref, img artifact.Image) error {
	st, err := lifecycle.In(s.Store)
	if err != nil || ref.Digest == "" && ref.Tag != img.Version {
		return nil
	}
	why, err := lifecycle.Needed(s.ctx, st, time.Now(), img)
	if err != nil {
		return err
	}
	if why != "" {
		return hinted(fmt.Errorf("%s:%s: %w: %s", img.Name, img.Version, artifact.ErrInUse, why), "remove what was made from it first")
	}
	return nil
}

func imagesOutdated(s *session) error {
	st, err := lifecycle.In(s.Store)
	if err != nil {
		return err
	}
	used, err := pipeline.Used(s.ctx, s.Env)
	if err != nil {
		return err
	}
	list, err := lifecycle.ListOutdated(s.ctx, st, time.Now(), s.c.Bool("all"), func(d artifact.Digest) bool { return used[d] })
	if err != nil {
		return err
	}
	text := "every image is of the newest base\n"
	if len(list) > 0 {
		rows := [][]string{{"IMAGE", "MADE FROM", "WOULD BE", "THROUGH", "WHY"}}
		for _, o := range list {
			rows = append(rows, []string{o.Image.Name + ":" + o.Image.Version, o.Base, o.Newer, orDash(o.Through), o.Why})
		}
		text = ui.Table(rows)
	}
	err = s.result(list, text)
	if s.c.Bool("fail-on-outdated") && len(list) > 0 {
		err = errors.Join(err, hinted(fmt.Errorf("%d images are outdated", len(list)), "bake them again"))
	}
	return err
}

// patience is how long a store that is out of reach may hold up a fleet's status.
const patience = 5 * time.Second

// runsRevoked is why the image that a fleet runs, or keeps, is revoked, by its
// name and version, and lines that say so. What cannot be told is a line too.
func (s *session) runsRevoked(store string, st fleet.Status) (revoked map[string]string, lines string) {
	env, err := s.In(store)
	if err != nil {
		return nil, fmt.Sprintf("cannot tell what is revoked: %v\n", err)
	}
	ctx, cancel := context.WithTimeoutCause(s.ctx, patience, fmt.Errorf("the store does not answer within %s", patience))
	defer cancel()
	for i, r := range []*fleet.Release{st.Current, st.Kept} {
		if r == nil {
			continue
		}
		img := r.Spec.Image
		name := img.Name + ":" + img.Version
		why, err := env.Revoked(ctx, img)
		if cause := context.Cause(ctx); err != nil && cause != nil {
			err = cause
		}
		switch {
		case err != nil:
			lines += fmt.Sprintf("cannot tell whether %s is revoked: %v\n", name, err)
		case why != "":
			if revoked == nil {
				revoked = map[string]string{}
			}
			revoked[name] = why
			lines += fmt.Sprintf("REVOKED  %s, which %s: %s\n", name, []string{"runs", "is kept for a rollback"}[i], why)
		}
	}
	return revoked, lines
}
