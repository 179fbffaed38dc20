package fleet

import (
	"context"
	"errors"

	"github.com/rebake/rebake/artifact"
)

// Hold keeps an image from being removed from its store until release is called,
// and fails if it is not there any more. It is asked before the plan of a deployment
// is written down that names the image: from there on Needs names it.
type Hold func(ctx context.Context, img artifact.Image) (release func() error, err error)

// held does f while the image cannot be removed.
func (d *Deployer) held(ctx context.Context, img artifact.Image, f func() error) error {
	if d.Hold == nil {
		return f()
	}
	release, err := d.Hold(ctx, img)
	if err != nil {
		return err
	}
	return errors.Join(f(), release())
}

// Earlier are the newest proven releases of each image but the current one, the
// last proven first, without those that a rollback went away from: what the fleet
// can go back to.
func (h History) Earlier() (all []*Release) {
	cur := h.Current()
	if cur == nil {
		return nil
	}
	out := map[artifact.Digest]bool{cur.Spec.Image.Digest: true}
	for _, r := range h {
		if r.Rollback && r.Old != nil {
			out[r.Old.Spec.Image.Digest] = true
		}
		if d := r.New.Spec.Image.Digest; r.State.Proven() && d != cur.Spec.Image.Digest {
			delete(out, d)
		}
	}
	for i := len(h) - 1; i >= 0; i-- {
		if r := &h[i].New; h[i].State.Proven() && !out[r.Spec.Image.Digest] {
			out[r.Spec.Image.Digest] = true
			all = append(all, r)
		}
	}
	return all
}

// Previous is the first of Earlier, or nil.
func (h History) Previous() *Release {
	if all := h.Earlier(); len(all) > 0 {
		return all[0]
	}
	return nil
}

// Need is an image that a fleet needs.
type Need struct {
	Image artifact.Image
	Why   string // "runs it", "can go back to it", …: what comes after the fleet's name
	Back  int    // only because it is the so-manieth of Earlier, counted from 1; 0: for more than that
}

// Needs lists the images that the fleet needs, each once: those that run or may have
// to (current, kept, unfinished), and then all that it could go back to.
func (h History) Needs() []Need {
	var out []Need
	add := func(r *Release, why string, back int) {
		if r == nil {
			return
		}
		for _, have := range out {
			if have.Image.Digest == r.Spec.Image.Digest {
				return
			}
		}
		out = append(out, Need{r.Spec.Image, why, back})
	}
	add(h.Current(), "runs it", 0)
	if l := h.Last(); l != nil && !l.State.Finished() {
		why, old := "is deploying it", "would go back to it"
		switch l.State {
		case Baking:
			old = "keeps it warm"
		case Quarantined:
			why = "has it in quarantine"
		}
		add(&l.New, why, 0)
		add(l.Old, old, 0)
	}
	for i, r := range h.Earlier() {
		add(r, "can go back to it", i+1)
	}
	return out
}
