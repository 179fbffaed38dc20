package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/internal/wake"
	"github.com/rebake/rebake/provisioner"
	"golang.org/x/sync/errgroup"
)

// saved is a checkpoint that a build can go on from: the state after at steps.
type saved struct {
	builder.Checkpoint
	at    int
	trail []passed
}

func (k *bake) checkpoints() (builder.Checkpointer, bool) {
	cp, ok := k.builder.(builder.Checkpointer)
	return cp, ok
}

// rig is the machine of a build with the way into it, and how far it got.
type rig struct {
	k     *bake
	id    string
	mach  builder.Machine
	guest *ssh.Client
	base  builder.Base
	trail []passed // the states that it is in and was in: the boot's and one for each step

	memory  bool          // its memory may be saved
	silent  bool          // nothing is saved any more; why was said
	cost    time.Duration // of a checkpoint
	unsaved time.Duration // of work that the last checkpoint does not have
	writing errgroup.Group
}

// goOnWithin is how long a guest whose memory was restored may take to accept
// SSH: it did when it was saved. One that does not is booted instead.
const goOnWithin = time.Minute

// firstCost is what a checkpoint is thought to cost before there was one.
const firstCost = time.Second

// lastWorth is how much longer than saving it the last steps must have taken.
const lastWorth = 2

// at is how many steps the machine has behind it.
func (r *rig) at() int { return len(r.trail) - 1 }

// start brings a machine up in the last state that is saved and still good, or
// boots it.
func (k *bake) start(ctx context.Context, id string) (*rig, error) {
	for {
		links, _ := k.chain()
		from := k.deepest(ctx, links)
		if from == nil {
			return k.boot(ctx, id, links[0])
		}
		r, err := k.goOn(ctx, id, from, links[from.at])
		if err == nil || ctx.Err() != nil {
			return r, err
		}
		// A checkpoint saves time, and nothing hangs on it.
		event.Warnf(ctx, "cannot go on after %q: %v", links[from.at].name, err)
		k.distrusted[from.Taken] = true
		if err := k.builder.Destroy(ctx, id); err != nil {
			return nil, err
		}
	}
}

func (k *bake) boot(ctx context.Context, id string, booted link) (*rig, error) {
	base, err := event.Do(ctx, "prepare base", k.builder.Prepare)
	if err != nil {
		return nil, err
	}
	k.why(ctx, 0)
	mach, err := event.Do(ctx, "boot "+base.Ref, func(ctx context.Context) (builder.Machine, error) {
		return k.builder.Boot(ctx, id)
	})
	if err != nil {
		return nil, err
	}
	r := &rig{k: k, id: id, mach: mach, base: base, trail: []passed{{booted.name, booted.kind, booted.key, booted.inputs, k.env.now(), id}}}
	if err := r.connect(ctx, k.sshTimeout()); err != nil {
		return r, err
	}
	r.tryWake(ctx)
	r.save(ctx) // whatever it costs: a boot takes longer
	return r, nil
}

// goOn brings up a machine from a checkpoint.
func (k *bake) goOn(ctx context.Context, id string, from *saved, at link) (*rig, error) {
	what := fmt.Sprintf("go on after %q, saved %s ago", at.name, k.env.clock().Sub(from.Taken).Round(time.Second))
	if !from.Memory {
		what = fmt.Sprintf("boot as it was after %q, saved %s ago", at.name, k.env.clock().Sub(from.Taken).Round(time.Second))
	}
	cp, _ := k.checkpoints()
	mach, err := event.Do(ctx, what, func(ctx context.Context) (builder.Machine, error) {
		return cp.BootFrom(ctx, id, from.Checkpoint)
	})
	if err != nil {
		return nil, err
	}
	r := &rig{k: k, id: id, mach: mach, base: from.Base, cost: firstCost, trail: from.trail}
	if last, err := k.lastBuild(); err == nil && last.Cost > 0 {
		r.cost = last.Cost
	}
	within := k.sshTimeout()
	if from.Memory {
		within = min(within, goOnWithin)
	}
	if err := r.connect(ctx, within); err != nil {
		return r, err
	}
	if !from.Memory {
		k.tellCached(ctx, r)
		r.cost = 0 // it booted: the next one need not
		r.tryWake(ctx)
		r.save(ctx)
		return r, nil
	}
	r.memory = true
	k.tellCached(ctx, r)
	if err := wake.Up(ctx, r.guest); err != nil {
		return r, errors.Join(err, r.guest.Close())
	}
	return r, nil
}

func (r *rig) connect(ctx context.Context, within time.Duration) (err error) {
	r.guest, err = event.Do(ctx, "connect", func(ctx context.Context) (*ssh.Client, error) {
		return connect(ctx, r.mach, within)
	})
	return err
}

// tryWake finds out whether the guest could go on from a saved memory.
func (r *rig) tryWake(ctx context.Context) {
	if _, ok := r.k.checkpoints(); !ok {
		r.silent = true
		return
	}
	err := wake.Up(ctx, r.guest)
	if r.memory = err == nil; !r.memory && ctx.Err() == nil {
		r.k.warnOnce(ctx, fmt.Sprintf("checkpoints hold the disk alone, and boot: %v", err))
	}
}

// step runs the next step.
func (r *rig) step(ctx context.Context) (err error) {
	links, _ := r.k.chain()
	s, l := r.k.steps[r.at()], links[r.at()+1]
	began, why := r.k.env.clock(), r.k.why(ctx, r.at()+1)
	defer func() { r.k.tellStep(ctx, s, began, why, err) }()
	if b, ok := s.Provisioner.(breakpoint); ok {
		if err := r.k.pause(ctx, r, s, b); err != nil {
			return err
		}
	} else if err := r.k.provision(ctx, s, r.guest); err != nil {
		if !r.k.opts.AskFails || r.k.env.Ask == nil || ctx.Err() != nil {
			return err
		}
		switch answer, aerr := r.k.decide(ctx, r, err.Error(), answerRetry, answerSkip, answerStop); {
		case aerr != nil:
			return errors.Join(err, aerr)
		case answer == answerRetry:
			return r.step(ctx)
		case answer != answerSkip:
			return err
		}
	}
	r.unsaved += r.k.env.clock().Sub(began)
	if err := r.k.unchanged(ctx, s); err != nil { // the state is not that of the key
		event.Warnf(ctx, "no more checkpoints in this build, and the next one bakes again: %v", err)
		r.k.cannotTell(r)
	}
	r.trail = append(r.trail, passed{l.name, l.kind, l.key, l.inputs, r.k.env.now(), r.id})
	if !l.never {
		r.save(ctx)
	}
	return nil
}

// breakpoint is a step at which a person may look at the machine.
type breakpoint interface{ Breakpoint() string }

func (k *bake) pause(ctx context.Context, r *rig, s step, b breakpoint) error {
	return event.Run(ctx, "provision: "+s.Name, func(ctx context.Context) error {
		if k.env.Ask == nil {
			event.Warnf(ctx, "breakpoint passed over: there is no terminal to ask at")
			return nil
		}
		answer, err := k.decide(ctx, r, b.Breakpoint(), answerGoOn, answerStop)
		if err == nil && answer != answerGoOn {
			err = errors.New("given up at the breakpoint")
		}
		return err
	})
}

// save makes a checkpoint of the machine, if what it saves the next build takes
// longer than saving it. No failure of it is one of the build.
func (r *rig) save(ctx context.Context) {
	cp, ok := r.k.checkpoints()
	worth := r.cost
	if r.at() == len(r.k.steps) { // only a change of the seal or the tests would go on from it
		worth *= lastWorth
	}
	if !ok || r.silent || ctx.Err() != nil || r.unsaved < worth && !r.k.outdates(ctx, cp, r.trail[r.at()].Key) {
		return
	}
	links, _ := r.k.chain()
	if have := r.k.usable(ctx, cp, links[:r.at()+1]); have != nil && (have.Memory || !r.memory) { // another build was faster
		r.cost, r.unsaved = max(r.cost, firstCost), 0
		return
	}
	began := r.k.env.clock()
	last := r.trail[r.at()]
	err := event.Run(ctx, fmt.Sprintf("save the state after %q", last.Name), func(ctx context.Context) error {
		// What the guest wrote must be on its disk for one that boots from there.
		if err := r.guest.Run(ctx, provisioner.Cmd{Line: "sync"}); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
		finish, err := cp.Save(ctx, r.mach, last.Key, r.memory, jsonLine(r.trail))
		if err != nil || finish == nil {
			return err
		}
		r.writing.Go(func() error { return finish(context.WithoutCancel(ctx)) })
		return nil
	})
	r.cost, r.unsaved = r.k.env.clock().Sub(began), 0
	if err != nil && ctx.Err() == nil {
		r.silent = true
		event.Warnf(ctx, "no more checkpoints in this build: %v", err)
	}
}

// close ends the connection and waits until what was saved is durable.
func (r *rig) close(ctx context.Context) {
	if r.guest != nil {
		_ = r.guest.Close() // the machine goes next
	}
	if err := r.writing.Wait(); err != nil {
		event.Warnf(ctx, "a checkpoint was not kept: %v", err)
	}
	if r.k.current != nil {
		return // nothing came of it: the one before tells more
	}
	if err := r.k.saveLast(lastBuild{r.trail, r.cost, r.k.printed()}); err != nil {
		event.Warnf(ctx, "`rebake plan --explain` will not know this build: %v", err)
	}
}

// provisionAll brings a machine through all steps, or until k.current makes the
// rest needless: the guest's refresh commands printed what they had. again: they
// tell of a later state that is saved and good, so start there.
func (k *bake) provisionAll(ctx context.Context, r *rig) (again bool, err error) {
	for r.at() < len(k.steps) {
		s := k.steps[r.at()]
		if _, asked := k.probes[r.at()]; s.Cache.Refresh != "" && !asked {
			if err := k.refresh(ctx, r, s); err != nil {
				return false, err
			}
			if k.imageInputs() != "" { // told at last
				if err := k.choose(ctx); err != nil || k.current != nil {
					return false, err
				}
			}
			links, _ := k.chain()
			if better := k.deepest(ctx, links); better != nil && better.at > r.at() {
				return true, nil
			}
		}
		if err := r.step(ctx); err != nil {
			return false, err
		}
	}
	return false, nil
}

// refresh runs a step's refresh command.
func (k *bake) refresh(ctx context.Context, r *rig, s step) error {
	return event.Run(ctx, fmt.Sprintf("ask whether %q would do anything else", s.Name), func(ctx context.Context) error {
		var out capped
		if err := r.guest.Run(ctx, provisioner.Cmd{Line: s.Cache.Refresh, Stdout: &out, Stderr: event.Writer(ctx)}); err != nil {
			var exit *provisioner.ExitError
			if !errors.As(err, &exit) || exit.Code != 1 { // 1 is grep's "nothing"
				return fmt.Errorf("step %q: cache.refresh: %w", s.Name, err)
			}
		}
		k.probes[r.at()] = string(out)
		return nil
	})
}

// capped keeps the first MiB that is written to it.
type capped []byte

func (c *capped) Write(p []byte) (int, error) {
	*c = append(*c, p[:min(len(p), 1<<20-len(*c))]...)
	return len(p), nil
}
