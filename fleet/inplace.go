package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Refresh is the strategy in which a cloud replaces the instances of one group by
// itself, some at a time: there is no second slot to give the traffic back to.
const Refresh = "refresh"

// InPlace is a group that somebody else made, whose instances are replaced where
// they are. It is pool and router in one: it tells which instances are of which
// deployment, and what the group's own load balancers see of them, and refuses
// every other change of a Pool or a Router than these and Retire. A Router's
// weights are the shares of the instances, and Remove lets the group go as it is.
type InPlace interface {
	Pool
	Router
	// Refreshing is the group's newest refresh, whoever began it.
	Refreshing(ctx context.Context) (RefreshState, error)
	// Replace begins to replace every instance by one of spec, or finds that this
	// was begun, and returns once that is seen. ErrRefreshing where somebody else's goes on.
	Replace(ctx context.Context, id GroupID, spec Spec, b Bounds) error
	// TakeBack turns the refresh to id round, or begins one to what the group
	// launched before it. It returns once that is seen.
	TakeBack(ctx context.Context, id GroupID, b Bounds) error
}

// Standing refuses what an InPlace does not do: it is embedded by each.
type Standing struct{}

var errStanding = errors.New("a group that is refreshed in place changes by refreshes alone")

// Launch is of a Pool.
func (Standing) Launch(context.Context, GroupID, Spec) error { return errStanding }

// End is of a Pool.
func (Standing) End(context.Context, GroupID, string) error { return errStanding }

// Attach is of a Router.
func (Standing) Attach(context.Context, Slot, []Member) error { return errStanding }

// Ready is of a Router.
func (Standing) Ready(context.Context, Slot) error { return errStanding }

// SetWeights is of a Router.
func (Standing) SetWeights(context.Context, map[Slot]int) error { return errStanding }

// Drain is of a Router.
func (Standing) Drain(context.Context, Slot, ...string) error { return errStanding }

// Detach is of a Router.
func (Standing) Detach(context.Context, Slot, bool, ...string) (int, error) { return 0, errStanding }

// ErrRefreshing is of a group that somebody else refreshes.
var ErrRefreshing = errors.New("somebody else refreshes the group")

// RefreshPhase is how far a refresh is.
type RefreshPhase string

// The phases. In the first three nothing else can be begun in the group.
const (
	RefreshRuns    RefreshPhase = "runs"
	RefreshBakes   RefreshPhase = "bakes"   // all were replaced: it can still be turned round
	RefreshTurning RefreshPhase = "turning" // it goes back
	RefreshDone    RefreshPhase = "done"
	RefreshTurned  RefreshPhase = "turned" // it went back
	RefreshEnded   RefreshPhase = "ended"  // it failed, or was cancelled, and left what is there
)

// RefreshState is what a group tells of its newest refresh. The zero value but for
// Serves and Size: there was none.
type RefreshState struct {
	ID     string       `json:"id"`
	To     GroupID      `json:"to"` // what it launches; zero: nothing of this fleet's
	Phase  RefreshPhase `json:"phase"`
	Why    string       `json:"why,omitempty"` // in the cloud's words
	Serves GroupID      `json:"serves"`        // what the group itself launches; zero: nothing of this fleet's
	Size   int          `json:"size"`          // instances that the group has, of whatever image
}

// Active says that the refresh goes on: no other can begin.
func (s RefreshState) Active() bool {
	return s.Phase == RefreshRuns || s.Phase == RefreshBakes || s.Phase == RefreshTurning
}

// Bounds are what a refresh keeps to.
type Bounds struct {
	MinHealthy  int           // percent of the group's size that serves at all times
	MaxHealthy  int           // percent of it that there is at most
	Checkpoints []int         // percent of the instances, rising to 100: it waits at each; nil: nowhere
	Delay       time.Duration // at each of them
	Bake        time.Duration // how long it can be turned round after the last
	Alarms      []AlarmGate   // it turns round by itself on any of them
}

// A cloud's limits of a refresh.
const (
	mostBake  = 48 * time.Hour
	mostDelay = 48 * time.Hour
)

// inPlace completes the policy of a refresh, and refuses what nobody could keep in one.
func (p Policy) inPlace() (Policy, error) {
	p.Roll = Roll{MaxSurge: p.Roll.MaxSurge}
	refuse := func(key, why string) (Policy, error) {
		return p, fmt.Errorf("deploy.%s: %s: leave it out, or take another strategy than refresh", key, why)
	}
	for _, g := range p.Gates {
		switch {
		case g.ErrorRate != nil, g.Latency != nil, g.Canary != nil:
			return refuse(fmt.Sprintf("gates[%s]", g.Name), "in a refresh both images are behind the same target group, and counters do not tell them apart")
		case g.Test:
			return refuse(fmt.Sprintf("gates[%s]", g.Name), "a refreshed group's instances have no door to log in by")
		}
	}
	for _, s := range p.Steps {
		if s.Pause {
			return refuse("steps", "a refresh goes on by itself after each step's hold, and waits for nobody")
		}
	}
	switch last := p.Steps[len(p.Steps)-1]; {
	case p.OnFailure == "pause":
		return refuse("on_failure", "a refresh goes on by itself while a person looks")
	case p.OnInconclusive == "pause":
		return refuse("on_inconclusive", "a refresh goes on by itself while a person looks")
	case p.Quarantine > 0:
		return refuse("quarantine", "the instances that a refresh takes back are ended by the group")
	case p.Roll.MaxSurge < 0 || p.Roll.MaxSurge > 100:
		return p, fmt.Errorf("deploy.max_surge: a refresh may have up to twice the instances: %d %% more are out of range", p.Roll.MaxSurge)
	case p.Roll.MaxSurge+100-p.MinHealthy > 100:
		return p, fmt.Errorf("deploy.min_healthy: %d %% with a max_surge of %d %%: in a refresh the two bounds are at most 100 %% apart", p.MinHealthy, p.Roll.MaxSurge)
	case p.Roll.MaxSurge == 0 && p.MinHealthy == 100:
		return p, errors.New("deploy.max_surge: with 0 and a min_healthy of 100 % nothing could be replaced")
	case last.Hold+p.KeepOld > mostBake:
		return p, fmt.Errorf("deploy.keep_old: a refresh can be turned round for %s after its last step, and with that step's hold this is %s", mostBake, last.Hold+p.KeepOld)
	case p.bounds().Delay > mostDelay:
		return p, fmt.Errorf("deploy.steps: a refresh holds for at most %s", mostDelay)
	}
	return p, nil
}

// bounds are the policy's, as a refresh is told them.
func (p Policy) bounds() Bounds {
	b := Bounds{MinHealthy: p.MinHealthy, MaxHealthy: 100 + p.Roll.MaxSurge, Bake: p.Steps[len(p.Steps)-1].Hold + p.KeepOld}
	for _, s := range p.Steps[:len(p.Steps)-1] {
		b.Checkpoints, b.Delay = append(b.Checkpoints, s.Permille/10), max(b.Delay, s.Hold)
	}
	if len(b.Checkpoints) > 0 {
		b.Checkpoints = append(b.Checkpoints, 100)
	}
	for _, g := range p.Gates {
		if g.Alarm != nil {
			b.Alarms = append(b.Alarms, *g.Alarm)
		}
	}
	return b
}

// back are the bounds of the way back: no steps, and nobody to turn it round.
func (b Bounds) back() Bounds { return Bounds{MinHealthy: b.MinHealthy, MaxHealthy: b.MaxHealthy} }

// turn is how long a refresh may take from one instance that serves to the next.
func (p Policy) turn() time.Duration { return p.Launch + p.Within + p.bounds().Delay }

// rounds is in how many turns a refresh replaces so many instances, at most.
func (b Bounds) rounds(size int) int {
	room := max(1, size*(b.MaxHealthy-b.MinHealthy)/100)
	return (size+room-1)/room + len(b.Checkpoints)
}

// inPlace walks through a refresh, as far as numbers go.
func (w *walk) inPlace() {
	p, b, size := w.p, w.p.bounds(), w.r.New.Spec.Size
	from := max(w.r.WantOld, size) // a group that somebody else made serves before its first deployment
	w.is.old = from
	turns := time.Duration(b.rounds(size)) * p.turn()
	w.phase(Provisioning, p.Launch, w.is, "make the launch template and begin the refresh")
	then := scene{fresh: size, in: size, permille: 1000}
	ph := w.phase(Replacing, turns, then, "replace the instances")
	ph.Instances, ph.Serving = Span{from, from * b.MaxHealthy / 100}, Span{p.floor(from), from}
	ph.Note = fmt.Sprintf("%d to %d %% of the group, by Auto Scaling itself", b.MinHealthy, b.MaxHealthy)
	if len(b.Checkpoints) > 0 {
		var at []string
		for _, c := range b.Checkpoints[:len(b.Checkpoints)-1] {
			at = append(at, fmt.Sprintf("%d %%", c))
		}
		ph.Note += fmt.Sprintf("; it waits %s at %s", b.Delay, strings.Join(at, ", "))
	}
	w.r.Step = len(p.Steps) - 1
	w.hold()
	w.WorstBack = p.Restore + time.Duration(b.back().rounds(size))*p.turn() + p.Launch
	if p.KeepOld > 0 {
		w.rest = true
		ph := w.phase(Baking, p.KeepOld, w.is, "keep what going back needs")
		ph.Hold, ph.Note = p.KeepOld, "`rebake rollback` turns the refresh round: every instance is replaced again"
	}
	if w.r.Old != nil {
		w.phase(Retiring, p.Drain, w.is, "remove the old launch template").Note = "from here on going back is a new deployment"
	}
}

// inPlaceTitles name the states of a refresh that are others than a swap's.
var inPlaceTitles = map[State]string{
	Planned: "look at the group", Provisioning: "begin the refresh", Replacing: "replace the instances in place", Baking: "keep what going back needs",
	Retiring: "remove the old launch template", Restoring: "take the instances back", DestroyNew: "remove the new launch template",
}

// refreshes says that a cloud does the deployment in place.
func (r Record) refreshes() bool { return r.Policy.Strategy == Refresh }

// notForRefreshed refuses what a group does by itself.
func (c Config) notForRefreshed(what string) error {
	if c.Policy.Strategy != Refresh {
		return nil
	}
	return fmt.Errorf("%s is not for fleet %s, which is refreshed in place: its group replaces what is not healthy by itself, and `rebake deploy TEMPLATE --redeploy` replaces all of it", what, c.Name)
}

// checkRefresh is Check for a refresh, whose cloud keeps the bounds itself.
func checkRefresh(r Record, o Observation, a Action, unsafe func(string, ...any) error) error {
	is, fresh := o.Refresh, r.New.Group
	switch {
	case slices.Contains([]Op{Replace, TakeBack, Verify, Evidence}, a.Op) && a.Group != fresh:
		return unsafe("group %s of slot %s is not this deployment's", a.Group.Deployment, a.Group.Slot)
	case a.Op == Replace && r.State != Provisioning:
		return unsafe("a refresh does not begin in %q", r.State)
	case a.Op == Replace && is.Active() && is.To != fresh:
		return unsafe("refresh %s goes on, and is somebody else's", is.ID)
	case a.Op == TakeBack && r.State != Restoring:
		return unsafe("a refresh is not turned round in %q", r.State)
	case a.Op == Retire && is.Serves == a.Group:
		return unsafe("the group launches by it")
	case a.Op == Retire && !(r.State == DestroyNew && a.Group == fresh) && !(r.State == Retiring && r.Old != nil && a.Group == r.Old.Group):
		return unsafe("what slot %s launches by is not to go in %q", a.Group.Slot, r.State)
	case !slices.Contains([]Op{Replace, TakeBack, Verify, Evidence, Retire}, a.Op):
		return unsafe("it is not of a refresh")
	}
	for _, g := range o.Groups {
		if a.Op == Retire && g.ID == a.Group && len(g.Instances) > 0 {
			return unsafe("%d instances still run by it", len(g.Instances))
		}
	}
	return nil
}
