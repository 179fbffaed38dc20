package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/template"
)

// What Up came to.
const (
	OutcomeUnchanged  = "unchanged"   // nothing was baked, and the fleet runs the image
	OutcomeHealed     = "healed"      // the same, but for dead instances, which were started anew
	OutcomeDeployed   = "deployed"    // the fleet was brought to the image
	OutcomeFrozen     = "frozen"      // the image is there, and may not be deployed now
	OutcomeRolledBack = "rolled back" // the fleet runs the image that it ran
	OutcomePaused     = "paused"      // a person is waited for
	OutcomeFailed     = "failed"
)

// Upped is what came of Up. After an error it holds what was done before it.
type Upped struct {
	Outcome    string       `json:"outcome"`
	Changed    bool         `json:"changed"` // an image was baked, or the fleet was touched
	Baked      []Baked      `json:"baked"`
	Deployment fleet.Result `json:"deployment"`
	Held       string       `json:"held,omitempty"` // why nothing was deployed: a freeze

	Healed []fleet.Replacement `json:"healed,omitempty"` // instances that were started anew
}

// Up bakes a template's image and brings its fleet to it. With IfChanged it is a
// job for every night: nothing is baked if an image of the same inputs is there,
// under any version, and nothing is deployed if the fleet runs it. Such a run
//   - is the only one of its fleet: ErrLocked names the other;
//   - ends a deployment that was cut off before it begins;
//   - bakes nothing while a deployment is paused or blocked: that error comes first;
//   - takes a freeze for no error: the next run after it deploys;
//   - starts dead instances of the image anew, and the router, as after a reboot;
//   - does not deploy an image again, unchanged, that the fleet was taken back
//     from: ErrRolledBack.
func Up(ctx context.Context, env Env, tpl *template.Template, bake BakeOptions, deploy DeployOptions) (u Upped, err error) {
	if err := CheckFleet(env, tpl); err != nil { // before anything is baked
		return Upped{Outcome: OutcomeFailed}, err
	}
	if !bake.IfChanged {
		return up(ctx, env, tpl, bake, deploy)
	}
	release, err := onlyUp(env, tpl.Fleet.Name)
	if err != nil {
		return Upped{Outcome: OutcomeFailed}, err
	}
	defer func() { err = errors.Join(err, release()) }()
	resumed, err := settle(ctx, env, tpl, deploy.Wait)
	if err != nil {
		return Upped{Outcome: OutcomeOf(resumed, err), Deployment: resumed}, err
	}
	if u, err = up(ctx, env, tpl, bake, deploy); u.Outcome == OutcomeUnchanged && resumed.ID != "" {
		u.Outcome, u.Changed, u.Deployment = OutcomeDeployed, true, resumed
	}
	return u, err
}

func up(ctx context.Context, env Env, tpl *template.Template, bake BakeOptions, deploy DeployOptions) (u Upped, err error) {
	u.Outcome = OutcomeFailed
	if u.Baked, err = Bake(ctx, env, tpl, bake); err != nil {
		return u, err
	}
	is := u.Baked[0]
	u.Changed = is.Changed
	if bake.IfChanged && !is.Changed {
		if err := takenBack(ctx, env, tpl, is.Image); err != nil {
			u.Outcome = OutcomeRolledBack
			return u, err
		}
	}
	u.Deployment, err = Deploy(ctx, env, tpl, is.Image, deploy)
	if bake.IfChanged && errors.Is(err, fleet.ErrFrozen) {
		event.Warnf(ctx, "%v", err)
		u.Outcome, u.Held = OutcomeFrozen, err.Error()
		return u, nil
	}
	u.Outcome = OutcomeOf(u.Deployment, err)
	if bake.IfChanged && u.Outcome == OutcomeUnchanged {
		if u.Healed, err = mend(ctx, env, env.placeOf(tpl)); err != nil {
			u.Outcome = OutcomeFailed
			return u, err
		}
		if len(u.Healed) > 0 {
			u.Outcome, u.Changed = OutcomeHealed, true
		}
	}
	u.Changed = u.Changed || err == nil && !u.Deployment.Unchanged
	return u, err
}

// OutcomeOf is what a deployment came to.
func OutcomeOf(res fleet.Result, err error) string {
	switch {
	case errors.Is(err, ErrRolledBack):
		return OutcomeRolledBack
	case errors.Is(err, fleet.ErrPaused):
		return OutcomePaused
	case err != nil:
		return OutcomeFailed
	case res.Unchanged:
		return OutcomeUnchanged
	}
	return OutcomeDeployed
}

// settle brings what an earlier run left of a deployment to its end, or says who
// has to.
func settle(ctx context.Context, env Env, tpl *template.Template, wait bool) (fleet.Result, error) {
	h, err := env.pastOf(ctx, tpl)
	if err != nil {
		return fleet.Result{}, err
	}
	if err := h.Waits(); err != nil {
		return fleet.Result{Record: *h.Last()}, fmt.Errorf("nothing was baked: %w", err)
	}
	if h.Unfinished() == nil {
		return fleet.Result{}, nil
	}
	d, err := FleetAt(ctx, env, env.placeOf(tpl))
	if err != nil {
		return fleet.Result{}, err
	}
	event.Infof(ctx, "going on with deployment %s, which was cut off, before anything is baked", h.Last().ID)
	res, err := d.Resume(ctx, wait)
	if errors.Is(err, fleet.ErrNothing) { // another operator ended it meanwhile
		err = nil
	}
	return res, outcome(err)
}

// mend starts the router if it is down, and dead and missing instances anew. Those
// that run are not touched.
func mend(ctx context.Context, env Env, p Place) ([]fleet.Replacement, error) {
	d, err := FleetAt(ctx, env, p)
	if err != nil {
		return nil, err
	}
	st, err := d.Status(ctx)
	if err != nil || st.Current == nil {
		return nil, err
	}
	alive := 0
	for _, g := range st.Groups {
		for _, i := range g.Instances {
			if g.ID == st.Current.Group && i.Running {
				alive++
			}
		}
	}
	switch {
	case alive < st.Current.Spec.Size:
		event.Warnf(ctx, "%d of %d instances of fleet %s run: the others are started anew", alive, st.Current.Spec.Size, p.Name)
	case !st.Router.Up:
		event.Warnf(ctx, "the router of fleet %s is down: it is started", p.Name)
	default:
		return nil, nil
	}
	healed, err := d.Heal(ctx)
	return healed.Replaced, err
}

// takenBack refuses an image that the fleet was taken back from, by its gates or
// by a person, and that is the same as it was then.
func takenBack(ctx context.Context, env Env, tpl *template.Template, img artifact.Image) error {
	h, err := env.pastOf(ctx, tpl)
	if err != nil {
		return err
	}
	r := h.TakenBack(img.Digest)
	if r == nil {
		return nil
	}
	why := r.Reason
	if why == "" {
		why = "rolled back by hand"
	}
	return fmt.Errorf("%w on %s by %s, and nothing changed since, so %s is not tried again: %s; `rebake deploy %s --image %s` does",
		ErrRolledBack, r.Began.Local().Format("2006-01-02 15:04"), r.By, imageName(img), why, tpl.Path, imageName(img))
}

// upOwner is who holds the lock of Up.
type upOwner struct {
	PID   int       `json:"pid"`
	Since time.Time `json:"since"`
}

// onlyUp takes the lock of those who bring the fleet up if something changed. The
// kernel takes it back from a killed process.
func onlyUp(env Env, name string) (release func() error, err error) {
	path := env.State.Up(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	l := flock.New(path, flock.SetPermissions(0o600), flock.SetFlag(os.O_CREATE|os.O_RDWR))
	ok, err := l.TryLock()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), l.Close())
	}
	if ok {
		if err := os.WriteFile(path, jsonLine(upOwner{os.Getpid(), env.now()}), 0o600); err != nil {
			return nil, errors.Join(err, l.Close())
		}
		return l.Close, nil
	}
	who := "its name is not known"
	var o upOwner
	if raw, err := os.ReadFile(path); err == nil && json.Unmarshal(raw, &o) == nil && o.PID != 0 {
		who = fmt.Sprintf("process %d, since %s", o.PID, o.Since.Local().Format("2006-01-02 15:04:05"))
	}
	return nil, errors.Join(fmt.Errorf("%w: another `rebake up --if-changed` of fleet %s is at work: %s", fleet.ErrLocked, name, who), l.Close())
}
