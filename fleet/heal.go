package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/rebake/rebake/internal/event"
)

// ErrUnhealthy is a fresh instance that may not serve.
var ErrUnhealthy = errors.New("the fresh instance does not serve")

// Healed is what Heal did.
type Healed struct {
	Replaced []Replacement `json:"replaced"`
	Cut      int           `json:"cut"` // requests that the drain timeout ended
}

// Replacement is an instance that was started anew, under the name it had.
type Replacement struct {
	Instance string `json:"instance"`
	Why      string `json:"why"` // dead, missing, or live
}

// Heal replaces the serving slot's dead and missing instances, and the live ones
// that are named, with fresh ones of the same image: those one at a time, drained
// before, and never so that fewer than Policy.MinHealthy serve. Where that leaves
// no room a temporary instance, in a group of its own, serves meanwhile. It stops
// at the first fresh instance that may not serve, with ErrUnhealthy; that one
// stays, without traffic. ErrUnfinished while a deployment is unfinished.
//
// Killed at any point it leaves instances that the pool or the router knows by
// name: the next Heal, or the next deployment, goes on from what is there.
func (d *Deployer) Heal(ctx context.Context, live ...string) (Healed, error) {
	out := Healed{Replaced: []Replacement{}}
	if err := d.Config.notForRefreshed("heal"); err != nil {
		return out, err
	}
	_, err := d.session(ctx, func(ctx context.Context, s *session) (Result, error) {
		h, err := s.healer(live)
		if err != nil {
			return Result{}, err
		}
		err = h.run(ctx)
		out.Replaced, out.Cut = append(out.Replaced, h.replaced...), h.cut
		return Result{}, err
	})
	return out, err
}

// healer is one Heal.
type healer struct {
	*session
	id       string
	by       string
	cur      Release
	policy   Policy
	base     GroupID // of a deployment whose failed instances are kept for a look; or none
	victims  []string
	fresh    map[string]bool // launched here
	replaced []Replacement
	cut      int
}

func (s *session) healer(live []string) (*healer, error) {
	if r := s.history.Unfinished(); r != nil {
		return nil, unfinished(*r)
	}
	cur, last := s.history.Current(), s.history.Last()
	if cur == nil {
		return nil, fmt.Errorf("%w: nothing was deployed to %s that could be healed", ErrNothing, s.Config.Name)
	}
	if _, r := s.history.Kept(); r != nil && len(live) > 0 {
		return nil, fmt.Errorf("%w: its old instances are kept warm until %s, and an instance that is missing meanwhile looks like a bad image; replace live instances after `rebake gc` has ended them then",
			ErrUnfinished, r.Deadline.Local().Format("15:04:05"))
	}
	who := Me()
	h := &healer{session: s, id: ulid.Make().String(), by: who.User + "@" + who.Host, cur: *cur, victims: slices.Clone(live), fresh: map[string]bool{}}
	for _, r := range s.history {
		if r.New.Group == cur.Group || r.ID == last.ID && h.policy.Port == 0 {
			h.policy = r.Policy
		}
	}
	if !last.State.Finished() {
		h.base, _ = last.base()
	}
	var err error
	h.policy, err = h.policy.Complete() // older journals lack some of it
	return h, err
}

// run is the whole of it.
func (h *healer) run(ctx context.Context) error {
	if err := h.whole(ctx, h.cur.Group, h.cur.Spec.Size); err != nil {
		return err
	}
	o, err := h.look(ctx)
	if err != nil {
		return err
	}
	for _, id := range h.victims { // not before: one that was named and is missing is there now
		if !slices.ContainsFunc(instancesOf(o, h.cur.Group), func(i Instance) bool { return i.ID == id }) {
			return fmt.Errorf("%s is no instance of the slot that serves: `rebake fleet status %s` lists them", id, h.cur.Group.Fleet)
		}
	}
	for len(h.victims) > 0 {
		id := h.victims[0]
		err := event.Run(ctx, "replace "+id, func(ctx context.Context) error { return h.replace(ctx, id) })
		if err != nil {
			return err
		}
	}
	return h.clear(ctx)
}

// look observes, and goes on trying for a while if nobody answers.
func (h *healer) look(ctx context.Context) (Observation, error) {
	for began := h.now(); ; {
		o, err := h.observe(ctx)
		if err == nil {
			return o, nil
		}
		if ctx.Err() != nil {
			return o, context.Cause(ctx)
		}
		if h.now().Sub(began) >= blind {
			return o, err
		}
		h.pause(ctx, 10)
	}
}

func instancesOf(o Observation, id GroupID) []Instance {
	for _, g := range o.Groups {
		if g.ID == id {
			return g.Instances
		}
	}
	return nil
}

func (h *healer) slot() Slot { return h.cur.Group.Slot }

// note writes down what is about to be done.
func (h *healer) note(ctx context.Context, step string, g GroupID, instances ...string) error {
	return h.append(ctx, kindHeal, healNote{Heal: h.id, By: h.by, Step: step, Group: g, Instances: instances})
}

// whole brings a group to its size, with each instance let in: dead and missing
// ones are launched, what the router does not have is attached, and what becomes
// healthy and passes the gate gets traffic. An instance that serves badly is
// somebody else's to judge; one that is to be replaced anyway is not waited for.
func (h *healer) whole(ctx context.Context, g GroupID, size int) error {
	var until time.Time
	told, failures := "", 0
	for {
		o, err := h.look(ctx)
		if err != nil {
			return err
		}
		in := instancesOf(o, g)
		dead := namesOf(in, func(i Instance) bool { return !i.Running })
		if i := slices.IndexFunc(dead, func(id string) bool { return h.fresh[id] }); i >= 0 {
			return fmt.Errorf("%w: %s died; the others serve as before: see `rebake fleet logs %s %s`", ErrUnhealthy, dead[i], h.cur.Group.Fleet, dead[i])
		}
		if len(dead) > 0 || len(in) < size {
			if err := h.launch(ctx, o, g, size, dead); err != nil {
				if failures++; failures >= h.policy.Retries || ctx.Err() != nil {
					return err
				}
				event.Warnf(ctx, "%v", err)
				h.pause(ctx, 1<<failures)
			}
			until = h.now().Add(h.policy.Within)
			continue
		}
		if until.IsZero() {
			until = h.now().Add(h.policy.Within)
		}
		next, what, err := h.admit(ctx, o, g, in)
		switch {
		case err != nil || next == "":
			return err
		case next == again:
			continue
		case !h.now().Before(until):
			return fmt.Errorf("%w: %s did not become healthy within %s: router sees %s; it gets no traffic, the others serve as before: see `rebake fleet logs %s %s`",
				ErrUnhealthy, next, h.policy.Within, what, h.cur.Group.Fleet, next)
		}
		if line := fmt.Sprintf("%s to be healthy: %s", next, what); line != told {
			told = line
			event.Waiting(ctx, "%s", line)
		}
		h.pause(ctx, 1)
	}
}

const again = "look again"

// admit attaches what is not attached and lets in what is healthy. next names an
// instance that is waited for and what the router sees of it, again that
// something was done, "" that all serve.
func (h *healer) admit(ctx context.Context, o Observation, g GroupID, in []Instance) (next, what string, err error) {
	members := map[string]MemberStatus{}
	for _, m := range o.Router.Members[h.slot()] {
		members[m.ID] = m
	}
	var attach []Member
	var ready []Instance
	for _, i := range in {
		m, ok := members[i.ID]
		addr := i.Ports[h.policy.Port]
		switch {
		case slices.Contains(h.victims, i.ID):
		case addr == "":
			return "", "", fmt.Errorf("%s has no address for port %d: see `rebake fleet logs %s %s`", i.ID, h.policy.Port, i.ID, h.cur.Group.Fleet)
		case !ok || m.Addr != addr:
			attach = append(attach, Member{ID: i.ID, Addr: addr})
		case m.Admin == "ready": // it was let in before
		case m.Healthy:
			ready = append(ready, i)
		case next == "":
			next, what = i.ID, orWord(m.Check, "no check yet")
		}
	}
	switch {
	case len(attach) > 0:
		if err := h.note(ctx, "attach", g, memberNames(attach)...); err != nil {
			return "", "", err
		}
		return again, "", h.Router.Attach(ctx, h.slot(), attach)
	case len(ready) > 0:
		return again, "", h.letIn(ctx, g, ready)
	}
	return next, what, nil
}

// launch starts what is dead or missing. Requests to a dead instance are lost
// already: it is taken off the router at once.
func (h *healer) launch(ctx context.Context, o Observation, g GroupID, size int, dead []string) error {
	behind := slices.DeleteFunc(slices.Clone(dead), func(id string) bool { return !hasMember(o, h.slot(), id) })
	if len(behind) > 0 {
		if err := h.detach(ctx, g, true, behind...); err != nil {
			return err
		}
	}
	if err := h.note(ctx, "launch", g, dead...); err != nil {
		return err
	}
	spec := h.cur.Spec
	spec.Size = size
	before := instancesOf(o, g)
	lctx, cancel := context.WithTimeout(ctx, h.policy.Launch)
	defer cancel()
	err := event.Run(lctx, fmt.Sprintf("start %d instances of slot %s", len(dead)+size-len(before), h.slot()), func(ctx context.Context) error {
		return h.Pool.Launch(ctx, g, spec)
	})
	if err != nil {
		return fmt.Errorf("start fresh instances: %w", err)
	}
	if o, err = h.look(ctx); err != nil {
		return err
	}
	for _, i := range instancesOf(o, g) {
		why := "missing"
		if slices.Contains(dead, i.ID) {
			why = "dead"
		} else if slices.ContainsFunc(before, func(b Instance) bool { return b.ID == i.ID }) {
			continue // it ran before
		}
		h.fresh[i.ID] = true
		h.victims = slices.DeleteFunc(h.victims, func(v string) bool { return v == i.ID }) // it died before its turn
		if known := slices.ContainsFunc(h.replaced, func(r Replacement) bool { return r.Instance == i.ID }); !known && g == h.cur.Group {
			h.replaced = append(h.replaced, Replacement{i.ID, why})
		}
	}
	return nil
}

// letIn gives traffic to instances that are healthy, once they passed the gate.
// One that did not is taken off the router again, so that only good ones are let in.
func (h *healer) letIn(ctx context.Context, g GroupID, in []Instance) error {
	var refused error
	for _, i := range in {
		if err := h.gate(ctx, i); err != nil {
			if ctx.Err() != nil {
				return err
			}
			refused = errors.Join(refused, fmt.Errorf("%w: %s did not pass the gate: %w; it gets no traffic, the others serve as before", ErrUnhealthy, i.ID, err), h.detach(ctx, g, true, i.ID))
		}
	}
	if err := h.note(ctx, "ready", g, namesOf(in, func(Instance) bool { return true })...); err != nil {
		return errors.Join(refused, err)
	}
	if err := h.Router.Ready(ctx, h.slot()); err != nil && !errors.Is(err, ErrNotHealthy) { // those that are got in; the next look tells
		return errors.Join(refused, err)
	}
	return refused
}

func (h *healer) gate(ctx context.Context, i Instance) error {
	if h.Gate == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, h.policy.Verify)
	defer cancel()
	event.Waiting(ctx, "the gate in %s", i.ID)
	return h.Gate(ctx, i)
}

// replace takes a live instance out and has a fresh one in its place.
func (h *healer) replace(ctx context.Context, id string) error {
	o, err := h.look(ctx)
	if err != nil {
		return err
	}
	if left := h.without(o, id); left < h.floor() && hasAble(o, h.slot(), id) {
		if err := h.extra(ctx, o); err != nil {
			return err
		}
		if o, err = h.look(ctx); err != nil {
			return err
		}
		if left := h.without(o, id); left < h.floor() {
			return fmt.Errorf("%s stays: without it %d instances would serve, and at least %d must; `rebake fleet status %s` tells which do not", id, left, h.floor(), h.cur.Group.Fleet)
		}
	}
	if err := h.takeOut(ctx, o, h.cur.Group, id); err != nil {
		return err
	}
	if err := h.note(ctx, "end", h.cur.Group, id); err != nil {
		return err
	}
	if err := h.Pool.End(ctx, h.cur.Group, id); err != nil {
		return fmt.Errorf("end %s: %w", id, err)
	}
	h.victims = slices.DeleteFunc(h.victims, func(v string) bool { return v == id })
	h.replaced = append(h.replaced, Replacement{id, "live"})
	return h.whole(ctx, h.cur.Group, h.cur.Spec.Size)
}

func (h *healer) floor() int { return h.policy.floor(h.cur.Spec.Size) }

// without counts who would serve without the named ones.
func (h *healer) without(o Observation, names ...string) (n int) {
	for _, m := range o.Router.Members[h.slot()] {
		if m.Healthy && m.Admin == "ready" && !slices.Contains(names, m.ID) {
			n++
		}
	}
	return n
}

// takeOut drains instances, waits for their requests, at most as long as the
// policy says, and takes them off the router. If meanwhile too few are left to
// serve, they are let in again.
func (h *healer) takeOut(ctx context.Context, o Observation, g GroupID, ids ...string) error {
	counts := h.without(o, ids...) < h.without(o) // one that does not serve cannot be missed
	if err := h.note(ctx, "drain", g, ids...); err != nil {
		return err
	}
	if err := h.Router.Drain(ctx, h.slot(), ids...); err != nil {
		return fmt.Errorf("drain %v: %w", ids, err)
	}
	for until, told := h.now().Add(h.policy.Drain), 0; ; {
		o, err := h.look(ctx)
		if err != nil {
			return err
		}
		inFlight, there := 0, false
		for _, m := range o.Router.Members[h.slot()] {
			if slices.Contains(ids, m.ID) {
				inFlight, there = inFlight+m.InFlight, true
			}
		}
		late := !h.now().Before(until)
		switch left := h.without(o, ids...); {
		case !there:
			return nil
		case counts && left < h.floor():
			err := errors.Join(h.note(ctx, "ready", g, ids...), h.Router.Ready(ctx, h.slot()))
			return errors.Join(fmt.Errorf("%v stays: another instance stopped to serve meanwhile, %d are left and at least %d must be; `rebake fleet heal %s` again once they are healthy",
				ids, left, h.floor(), h.cur.Group.Fleet), err)
		case inFlight == 0 || late:
			if err := h.detach(ctx, g, late, ids...); !errors.Is(err, ErrBusy) { // a request may have slipped in: it is waited for
				return err
			}
		case inFlight != told:
			told = inFlight
			event.Waiting(ctx, "%d requests to %v to end", inFlight, ids)
		}
		h.pause(ctx, 1)
	}
}

func (h *healer) detach(ctx context.Context, g GroupID, force bool, ids ...string) error {
	if err := h.note(ctx, "detach", g, ids...); err != nil {
		return err
	}
	if force { // the router cuts only what it was told to drain
		if err := h.Router.Drain(ctx, h.slot(), ids...); err != nil {
			return fmt.Errorf("drain %v: %w", ids, err)
		}
	}
	cut, err := h.Router.Detach(ctx, h.slot(), force, ids...)
	if h.cut += cut; cut > 0 {
		event.Warnf(ctx, "%d requests in flight were cut", cut)
	}
	if err != nil {
		return fmt.Errorf("take %v off the router: %w", ids, err)
	}
	return nil
}

// extra lets one more instance of the image in, in a group of its own, which
// nothing else counts: whoever is killed here leaves a group that no deployment
// knows. One that was left is taken first.
func (h *healer) extra(ctx context.Context, o Observation) error {
	id := h.cur.Group
	id.Deployment = h.id
	for _, g := range o.Groups {
		if h.temporary(g.ID) && g.Image == h.cur.Spec.Image.Digest {
			id = g.ID
		}
	}
	return event.Run(ctx, "a temporary instance, so that enough serve", func(ctx context.Context) error { return h.whole(ctx, id, 1) })
}

// temporary groups are in the serving slot and of no deployment.
func (h *healer) temporary(id GroupID) bool {
	return id.Slot == h.slot() && id != h.cur.Group && id != h.base
}

// clear ends what is in the serving slot beside its own group: temporary
// instances. It takes none away that is needed to serve.
func (h *healer) clear(ctx context.Context) error {
	all, err := h.look(ctx)
	if err != nil {
		return err
	}
	for _, g := range all.Groups {
		if !h.temporary(g.ID) {
			continue
		}
		o, err := h.look(ctx)
		if err != nil {
			return err
		}
		ids := namesOf(g.Instances, func(i Instance) bool { return hasMember(o, h.slot(), i.ID) })
		if left := h.without(o, ids...); len(ids) > 0 && left < h.floor() && left < h.without(o) {
			event.Warnf(ctx, "temporary instances stay: %d of the others serve, and at least %d must; `rebake fleet heal %s` again once they do", left, h.floor(), h.cur.Group.Fleet)
			continue
		}
		if len(ids) > 0 {
			if err := h.takeOut(ctx, o, g.ID, ids...); err != nil {
				return err
			}
		}
		if err := h.note(ctx, "retire", g.ID); err != nil {
			return err
		}
		if err := h.Pool.Retire(ctx, g.ID); err != nil {
			return fmt.Errorf("end the temporary instance: %w", err)
		}
	}
	return nil
}

func namesOf(in []Instance, which func(Instance) bool) (names []string) {
	for _, i := range in {
		if which(i) {
			names = append(names, i.ID)
		}
	}
	return names
}

func hasMember(o Observation, s Slot, id string) bool {
	return slices.ContainsFunc(o.Router.Members[s], func(m MemberStatus) bool { return m.ID == id })
}

func hasAble(o Observation, s Slot, id string) bool {
	return slices.ContainsFunc(o.Router.Members[s], func(m MemberStatus) bool { return m.ID == id && m.Healthy && m.Admin == "ready" })
}
