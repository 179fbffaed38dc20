package ami

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/artifact"
)

// Wish is what shall become of the AMIs of an image. They go together: if one of
// them must stay as it is, all do.
type Wish struct {
	Image  artifact.Image
	AMIs   []Made // those that are not gone
	Step   Step   // Deprecated, Disabled or Removed
	Why    string
	Shared bool // disable and remove also what other accounts may launch
	Gone   bool // take what is not seen for gone, whosever it was
}

// Verdict is what becomes of an AMI, and why.
type Verdict struct {
	Image artifact.Image
	Made
	Found
	Do  Step   // Step of its wish; "": it stays as it is
	Why string // one line
}

// Ladder moves AMIs through the steps by which they go.
type Ladder struct {
	Connect func(ctx context.Context, region string) (*Cloud, error) // nil: Connect
	Keep    artifact.Attacher                                        // where the steps are recorded
	// Hold runs f while nobody begins to use the image; artifact.ErrInUse says that somebody does.
	Hold func(ctx context.Context, img artifact.Image, f func() error) error
	Info func(text string)
}

func (l Ladder) clouds() *clouds {
	k := &clouds{connect: l.Connect, open: map[string]*Cloud{}}
	if k.connect == nil {
		k.connect = Connect
	}
	return k
}

// Plan asks AWS and says what becomes of each AMI, in the order of the wishes. It
// changes nothing. If one question is not answered, in whatever region, there is no
// plan: the error names all that were not.
func (l Ladder) Plan(ctx context.Context, wishes []Wish) ([]Verdict, error) {
	return plan(ctx, l.clouds(), wishes)
}

func plan(ctx context.Context, k *clouds, wishes []Wish) ([]Verdict, error) {
	byRegion := map[string][]Of{}
	for _, w := range wishes {
		for _, m := range w.AMIs {
			byRegion[m.Region] = append(byRegion[m.Region], Of{w.Image, m})
		}
	}
	found := map[string]Found{} // by region and id
	var errs []error
	for _, region := range slices.Sorted(maps.Keys(byRegion)) {
		c, err := k.in(ctx, region)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		got, err := c.Ask(ctx, byRegion[region])
		errs = append(errs, err)
		for id, f := range got {
			found[region+"/"+id] = f
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	var out []Verdict
	for _, w := range wishes {
		out = append(out, w.judge(found)...)
	}
	return out, nil
}

// judge decides about the AMIs of an image.
func (w Wish) judge(found map[string]Found) []Verdict {
	var out []Verdict
	stays := ""
	for _, m := range w.AMIs {
		f := found[m.Region+"/"+m.AMI]
		v := Verdict{Image: w.Image, Made: m, Found: f, Do: w.Step, Why: w.Why}
		if why := w.holds(f); why != "" && stays == "" {
			stays = fmt.Sprintf("%s in %s: %s", m.AMI, m.Region, why)
		}
		out = append(out, v)
	}
	if stays != "" {
		for i := range out {
			out[i].Do, out[i].Why = "", stays
		}
	}
	return out
}

// holds says why an AMI must stay as it is, or "".
func (w Wish) holds(f Found) string {
	switch {
	case !f.There() && w.Gone:
		return ""
	case f.Foreign != "":
		return f.Foreign
	case !f.There():
		return ""
	case len(f.Uses) == 1:
		return f.Uses[0]
	case len(f.Uses) > 1:
		return fmt.Sprintf("%s, and %d more", f.Uses[0], len(f.Uses)-1)
	case f.State == string(types.ImageStatePending) || f.State == string(types.ImageStateTransient):
		return "it is " + f.State
	case w.Step == Deprecated:
		return ""
	case len(f.Shared) > 0 && !w.Shared:
		return f.Sharers() + " may launch it"
	case w.Step == Removed && f.Protected != "":
		return fmt.Sprintf("it is protected against deregistration (%s)", f.Protected)
	}
	return ""
}

// lasts is for how long what AWS said about uses is believed.
const lasts = time.Minute

// Apply takes the steps, and returns what was done. AWS is asked again right before,
// and what began to be used stays. The copies of an AMI go before it, and each step
// is recorded: a kill leaves what the next run goes on with. One image whose AMIs
// cannot be removed stops no other; a question that is not answered stops all.
func (l Ladder) Apply(ctx context.Context, wishes []Wish) (done []Verdict, err error) {
	k := l.clouds()
	var verdicts []Verdict
	for began := (time.Time{}); len(wishes) > 0 && ctx.Err() == nil; wishes = wishes[1:] {
		if time.Since(began) > lasts {
			now, perr := plan(ctx, k, wishes)
			if perr != nil {
				return done, errors.Join(err, perr)
			}
			began, verdicts = time.Now(), now
		}
		n := len(wishes[0].AMIs)
		some, serr := l.image(ctx, k, verdicts[:n])
		done, err, verdicts = append(done, some...), errors.Join(err, serr), verdicts[n:]
	}
	if ctx.Err() != nil {
		err = errors.Join(err, context.Cause(ctx))
	}
	return done, err
}

// image takes the steps of one image's AMIs, the last first.
func (l Ladder) image(ctx context.Context, k *clouds, verdicts []Verdict) (done []Verdict, err error) {
	for _, v := range slices.Backward(verdicts) {
		if v.Do == "" {
			l.Info(fmt.Sprintf("%s in %s stays as it is: %s", v.AMI, v.Region, v.Why))
			continue
		}
		c, err := k.in(ctx, v.Region)
		if err != nil {
			return done, err
		}
		err = l.Hold(ctx, v.Image, func() (err error) {
			v.Made, err = c.do(ctx, l.Keep, v, l.Info)
			return err
		})
		if errors.Is(err, artifact.ErrInUse) {
			l.Info(fmt.Sprintf("%s in %s stays as it is: %v", v.AMI, v.Region, err))
			return done, nil
		}
		if err != nil {
			return done, fmt.Errorf("%s in %s: %w", v.AMI, v.Region, err)
		}
		done = append(done, v)
	}
	return done, nil
}

// Taken says when each step was taken by all of an image's AMIs that are not gone,
// which are listed; by hand is when one of them was restored.
func Taken(all []Made) (left []Made, taken map[Step]time.Time, byHand time.Time) {
	order := []Step{Deprecated, Disabled, Removing}
	reached := map[Step]int{}
	taken = map[Step]time.Time{}
	for _, m := range all {
		if m.Gone() {
			continue
		}
		left = append(left, m)
		if s := m.Last(); s.Step == Restored {
			byHand = s.Time
		}
		at := map[Step]time.Time{}
		for _, s := range m.States {
			if s.Step == Restored {
				clear(at)
				continue
			}
			for i := slices.Index(order, s.Step); i >= 0; i-- { // a later one stands for those before
				if _, ok := at[order[i]]; !ok || order[i] == s.Step {
					at[order[i]] = s.Time
				}
			}
		}
		for step, t := range at {
			reached[step]++
			if t.After(taken[step]) {
				taken[step] = t
			}
		}
	}
	for step, n := range reached {
		if n < len(left) {
			delete(taken, step)
		}
	}
	return left, taken, byHand
}

// Youngest is when the last of them was made.
func Youngest(all []Made) (t time.Time) {
	return slices.MaxFunc(all, func(a, b Made) int { return cmp.Compare(a.Time.UnixNano(), b.Time.UnixNano()) }).Time
}
