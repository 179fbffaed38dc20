package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/lifecycle"
)

// Revoked is why an image, or one that it was made from, is revoked now; "": it is
// not. A store that keeps no attachments cannot tell: an error.
func (e Env) Revoked(ctx context.Context, img artifact.Image) (string, error) {
	return lifecycle.Revoked(ctx, e.Store, img, e.clock())
}

// CheckBase refuses a base that is revoked, or says so where that was asked for. In
// a store that keeps no attachments nothing is revoked.
func (e Env) CheckBase(ctx context.Context, img artifact.Image) error {
	if _, err := lifecycle.In(e.Store); err != nil {
		return nil
	}
	why, err := e.Revoked(ctx, img)
	switch {
	case err != nil:
		return fmt.Errorf("ask whether %s was revoked: %w", imageName(img), err)
	case why == "":
		return nil
	case e.AllowRevoked:
		event.Warnf(ctx, "the base %s is revoked, and so is what is made from it: %s", imageName(img), why)
		return nil
	}
	return fmt.Errorf("the base %s is %w: %s", imageName(img), lifecycle.ErrRevoked, why)
}

// withdrawn says of an image that is revoked, or of which nobody can tell, why it is
// the result of no build; "" if it may be.
func (e Env) withdrawn(ctx context.Context, img artifact.Image) string {
	if _, err := lifecycle.In(e.Store); err != nil || e.AllowRevoked {
		return ""
	}
	switch why, err := e.Revoked(ctx, img); {
	case err != nil:
		return fmt.Sprintf("cannot tell whether %s of the same inputs is revoked: %v", imageName(img), err)
	case why != "":
		return fmt.Sprintf("%s of the same inputs is revoked: %s", imageName(img), why)
	}
	return ""
}

// warnRevoked says that an image which is about to run is revoked, where no rule
// refuses it. That it cannot be told is said too, and stops nothing.
func (e Env) warnRevoked(ctx context.Context, img artifact.Image) {
	if _, err := lifecycle.In(e.Store); err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second) // a warning is no reason to wait for a store out of reach
	defer cancel()
	if why, err := e.Revoked(ctx, img); err != nil {
		event.Warnf(ctx, "cannot tell whether %s is revoked: %v", imageName(img), err)
	} else if why != "" {
		event.Warnf(ctx, "%s is revoked: %s; require: {not_revoked: true} of the fleet would refuse it", imageName(img), why)
	}
}

// descend fills in what an image was made from, beyond its parent: a parent that is
// gone later does not hide those above it.
func (k *bake) descend(ctx context.Context, l *artifact.Lineage) error {
	b, ok := k.builder.(interface{ From() string })
	if !ok || b.From() == "" {
		return nil
	}
	l.From = b.From()
	ref, err := artifact.ParseRef(l.Parent)
	if err != nil {
		return fmt.Errorf("the base of %s: %w", k.tpl.Name, err)
	}
	base, _, err := artifact.Known(ctx, k.env.Store, artifact.Ref{Name: ref.Name, Digest: l.ParentDigest})
	if errors.Is(err, artifact.ErrNotFound) {
		return nil // removed while it was baked from
	}
	if err != nil {
		return fmt.Errorf("read the base of %s: %w", k.tpl.Name, err)
	}
	if base.Lineage.Parent != "" {
		l.Ancestors = append([]artifact.Ancestor{{Ref: base.Lineage.Parent, Digest: base.Lineage.ParentDigest}}, base.Lineage.Ancestors...)
	}
	return nil
}

// release is a version that a git tag is made for.
var release = regexp.MustCompile(`^v?[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.+-]+)?$`)

// checkClean refuses to make a release of what is in no commit.
func (k *bake) checkClean(ctx context.Context) error {
	if k.current != nil || k.opts.AllowDirty || !k.tpl.Tagged || k.opts.Version != "" || !release.MatchString(k.version) {
		return nil
	}
	_, changed := gitState(ctx, k.tpl.Dir)
	if len(changed) == 0 {
		return nil
	}
	return fmt.Errorf("%s:%s is a release of a git tag, and %d files below %s are not as in that commit (%s): commit and tag them, or build with --allow-dirty",
		k.tpl.Name, k.version, len(changed), k.tpl.Dir, strings.TrimSpace(changed[0]))
}

// checkTags refuses to move a channel without a word.
func (k *bake) checkTags(ctx context.Context) error {
	st, err := lifecycle.In(k.env.Store)
	if err != nil {
		return nil
	}
	for _, t := range append(slices.Clone(k.tpl.Tags), k.opts.Tags...) {
		is, err := lifecycle.IsChannel(ctx, st, k.tpl.Name, t)
		if err != nil {
			return err
		}
		if is {
			return fmt.Errorf("%s:%s is a channel: no build moves it, `rebake promote %s:%s %s --reason TEXT` does", k.tpl.Name, t, k.tpl.Name, k.version, t)
		}
	}
	return nil
}

// Changes says for a promotion what tells one image from another, or why that is
// not known: it stops no promotion.
func (e Env) Changes(ctx context.Context, from, to artifact.Image) lifecycle.Changes {
	sum, err := DiffSummary(ctx, e, from, to)
	if err != nil {
		return lifecycle.Changes{Summary: "unknown: " + err.Error()}
	}
	raw, err := json.Marshal(sum)
	if err != nil {
		return lifecycle.Changes{Summary: sum.Text}
	}
	return lifecycle.Changes{Summary: sum.Text, Detail: raw}
}

// Used are the images, by digest, that fleets run, keep or could go back to.
func Used(ctx context.Context, env Env) (map[artifact.Digest]bool, error) {
	used := map[artifact.Digest]bool{}
	return used, eachFleet(ctx, env, func(cfg fleet.Config, needs []fleet.Need) error {
		for _, n := range needs {
			if n.Back <= cfg.Previous() {
				used[n.Image.Digest] = true
			}
		}
		return nil
	})
}
