package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"

	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/memory"
	"github.com/rebake/rebake/internal/template"
	"golang.org/x/sync/semaphore"
)

// Bake bakes every build of a template: BakeAll of one.
func Bake(ctx context.Context, env Env, tpl *template.Template, opts BakeOptions) ([]Baked, error) {
	return BakeAll(ctx, env, []*template.Template{tpl}, opts)
}

// BakeAll bakes every build of the templates side by side, as many at once as
// opts.Parallel, the processors and the memory allow. A template whose base is
// another's image waits for that one. All input is checked before the first
// machine boots, but for such a template. A build that fails stops no other that
// does not need it, unless opts.FailFast; what was baked stays, and is returned
// in the order of the templates, with the errors of the rest.
func BakeAll(ctx context.Context, env Env, tpls []*template.Template, opts BakeOptions) ([]Baked, error) {
	jobs, err := jobsOf(env, tpls, opts)
	if err != nil {
		return nil, err
	}
	total := 0
	for _, j := range jobs {
		if len(j.needs) == 0 {
			if j.bakes, err = bakesOf(ctx, env, j.tpl, opts); err != nil {
				return nil, err
			}
		}
		total += len(j.tpl.Builds)
	}
	defer boundCache(ctx, env)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	room := newRoom(opts.Parallel)
	var all sync.WaitGroup
	for _, j := range jobs {
		all.Go(func() {
			defer close(j.done)
			if err := j.run(ctx, env, opts, room, total > 1); err != nil {
				j.err = err
				if opts.FailFast {
					stop(errors.New("another build failed (--fail-fast)"))
				}
			}
		})
	}
	all.Wait()
	var done []Baked
	var errs []error
	for _, j := range jobs {
		done, errs = append(done, j.baked...), append(errs, j.err)
	}
	return done, errors.Join(errs...)
}

// job is a template of several.
type job struct {
	tpl   *template.Template
	needs []*job // whose images are its bases
	bakes []*bake
	done  chan struct{}
	baked []Baked
	err   error
}

// jobsOf finds out who waits for whom.
func jobsOf(env Env, tpls []*template.Template, opts BakeOptions) ([]*job, error) {
	byName := map[string]*job{}
	var jobs []*job
	for _, t := range tpls {
		if byName[t.Name] != nil {
			return nil, fmt.Errorf("%s and %s both make image %s", byName[t.Name].tpl.Path, t.Path, t.Name)
		}
		j := &job{tpl: t, done: make(chan struct{})}
		byName[t.Name], jobs = j, append(jobs, j)
	}
	for _, j := range jobs {
		for _, b := range j.tpl.Builds {
			if len(opts.Only) > 0 && !contains(opts.Only, b.Name) {
				continue
			}
			made, err := env.Backends.Builder(env, b)
			if err != nil {
				return nil, err
			}
			if p, ok := made.(interface{ Parent() string }); ok && byName[p.Parent()] != nil && p.Parent() != j.tpl.Name {
				j.needs = append(j.needs, byName[p.Parent()])
			}
		}
	}
	for _, j := range jobs {
		if path := j.cycle(nil); path != "" {
			return nil, fmt.Errorf("each of these images is the base of the next: %s", path)
		}
	}
	return jobs, nil
}

func (j *job) cycle(seen []*job) string {
	for i, s := range seen {
		if s == j {
			var names []string
			for _, c := range append(seen[i:], j) {
				names = append(names, c.tpl.Name)
			}
			return strings.Join(names, " → ")
		}
	}
	for _, n := range j.needs {
		if path := n.cycle(append(seen[:len(seen):len(seen)], j)); path != "" {
			return path
		}
	}
	return ""
}

func (j *job) run(ctx context.Context, env Env, opts BakeOptions, room *room, named bool) (err error) {
	for _, n := range j.needs {
		select {
		case <-n.done:
		default:
			event.Infof(ctx, "%s waits for its base %s", j.tpl.Name, n.tpl.Name)
			<-n.done
		}
		if n.err != nil {
			j.skipped(ctx, opts, "its base "+n.tpl.Name+" failed")
			return fmt.Errorf("%s was not baked: its base %s failed", j.tpl.Name, n.tpl.Name)
		}
	}
	if j.bakes == nil {
		if j.bakes, err = bakesOf(ctx, env, j.tpl, opts); err != nil {
			return err
		}
	}
	results, errs := make([]Baked, len(j.bakes)), make([]error, len(j.bakes))
	var all sync.WaitGroup
	for i, k := range j.bakes {
		all.Go(func() {
			leave, err := room.enter(ctx, k)
			if err != nil {
				k.tellBuild(ctx, Baked{}, event.Skipped, err)
				errs[i] = err
				return
			}
			defer leave()
			defer func() { k.tellBuild(ctx, results[i], "", errs[i]) }()
			if !named {
				results[i], errs[i] = k.do(ctx)
				return
			}
			name := k.tpl.Name
			if len(j.bakes) > 1 {
				name += " " + k.build.Name
			}
			results[i], errs[i] = event.Do(ctx, "bake "+name, k.do)
			if errs[i] != nil {
				errs[i] = fmt.Errorf("%s: %w", name, errs[i])
			}
		})
	}
	all.Wait()
	for i := range results {
		if errs[i] == nil {
			j.baked = append(j.baked, results[i])
		}
	}
	return errors.Join(errs...)
}

// room bounds how many builds run at once.
type room struct {
	seats, memory *semaphore.Weighted
	size          int64 // of memory, in bytes
}

// newRoom takes what the machine has free now; parallel 0 is one build for each
// processor.
func newRoom(parallel int) *room {
	if parallel <= 0 {
		parallel = runtime.GOMAXPROCS(0)
	}
	free, _, ok, err := memory.Free()
	if err != nil || !ok {
		free = math.MaxInt64 // nobody knows: QEMU will say so itself
	}
	return &room{semaphore.NewWeighted(int64(parallel)), semaphore.NewWeighted(free), free}
}

// enter waits until there is room for a build. One that would never fit runs alone.
func (r *room) enter(ctx context.Context, k *bake) (leave func(), err error) {
	need := int64(0)
	if m, ok := k.builder.(interface{ Memory() int64 }); ok {
		need = min(2*m.Memory(), r.size) // two test boots run at once
	}
	if err := r.seats.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	if !r.memory.TryAcquire(need) {
		event.Infof(ctx, "%s waits for memory: another build has it", k.tpl.Name)
		if err := r.memory.Acquire(ctx, need); err != nil {
			r.seats.Release(1)
			return nil, context.Cause(ctx)
		}
	}
	return func() { r.memory.Release(need); r.seats.Release(1) }, nil
}
