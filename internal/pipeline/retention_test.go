package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/retain"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/test/fake"
)

// shelf is a store with images and the fleets that use it.
type shelf struct {
	t     testing.TB
	env   Env
	mu    sync.Mutex
	pools map[string]*fake.Pool
	n     int
	disk  string
}

func newShelf(t testing.TB) *shelf {
	s := &shelf{t: t, pools: map[string]*fake.Pool{}, disk: filepath.Join(t.TempDir(), "disk")}
	dir := state.Dir(t.TempDir())
	st, err := oci.Open(dir.Store())
	if err == nil {
		err = os.WriteFile(s.disk, []byte("a disk"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.env = Env{State: dir, Store: st, Backends: Backends{Pool: func(_ Env, name, _ string, _ []byte) (fleet.Pool, error) { return s.pool(name), nil }}}
	return s
}

func (s *shelf) pool(name string) *fake.Pool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pools[name] == nil {
		s.pools[name] = new(fake.Pool)
	}
	return s.pools[name]
}

// put stores an image of an age.
func (s *shelf) put(age time.Duration) artifact.Image {
	s.t.Helper()
	d, err := artifact.FileDisk(s.disk)
	if err != nil {
		s.t.Fatal(err)
	}
	defer d.Close()
	content, _, err := s.env.Store.Write(s.t.Context(), d, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	s.n++
	v := fmt.Sprint(s.n)
	s.mu.Unlock()
	img, err := s.env.Store.Register(s.t.Context(), artifact.Image{Name: "web", Version: v, Content: content, Created: time.Now().UTC().Truncate(time.Second).Add(-age)})
	if err != nil {
		s.t.Fatal(err)
	}
	return img
}

// fleet is one that can be deployed to as the pipeline does.
func (s *shelf) fleet(name string) *fleet.Deployer {
	p := s.pool(name)
	return &fleet.Deployer{Dir: s.env.State.Fleet(name), Config: fleet.Config{Name: name, Size: 1}, Pool: p, Hold: s.env.hold,
		Router: &fake.Router{Check: p.Check, Rise: 1, Every: time.Millisecond}, Poll: time.Millisecond}
}

func deployTo(ctx context.Context, d *fleet.Deployer, img artifact.Image) error {
	_, err := d.Deploy(ctx, fleet.Request{Spec: fleet.Spec{Image: img, Size: 1, Ports: []int{80}}, Policy: fleet.Policy{Port: 80, Steps: []fleet.Step{{Permille: 1000}}}})
	return err
}

func (s *shelf) there(img artifact.Image) bool {
	s.t.Helper()
	_, err := s.env.Store.Resolve(s.t.Context(), artifact.Ref{Name: img.Name, Digest: img.Digest})
	if err != nil && !errors.Is(err, artifact.ErrNotFound) {
		s.t.Fatal(err)
	}
	return err == nil
}

// newest keeps one image, however young the others are.
var newest = Retention{Name: "web", Rules: &retain.Rules{KeepLast: 1, KeepPrevious: 1}}

func (s *shelf) plan(want int) Retained {
	s.t.Helper()
	p, err := PlanRetention(s.t.Context(), s.env, newest)
	if err != nil || len(p.Removals()) != want {
		s.t.Fatalf("%d removals, %v; want %d", len(p.Removals()), err, want)
	}
	return p
}

// killed is a store whose nth removal is the last thing that its process does,
// or, with late, the last but its effect.
type killed struct {
	*oci.Store
	n    int
	late bool
}

func (k *killed) Retire(ctx context.Context, img artifact.Image, why string, at time.Time) error {
	if k.n--; k.n == 0 && !k.late {
		panic(k)
	}
	err := k.Store.Retire(ctx, img, why, at)
	if k.n == 0 {
		panic(k)
	}
	return err
}

func TestAPruneThatIsKilledAnywhereIsFinishedByTheNext(t *testing.T) {
	t.Parallel()
	const removals = 4
	for kill := range 2 * removals {
		s := newShelf(t)
		for i := range removals + 1 {
			s.put(time.Duration(removals-i) * time.Hour)
		}
		whole := s.env.Store.(*oci.Store)
		dying := &killed{whole, 1 + kill/2, kill%2 == 1}
		s.env.Store = dying
		func() {
			defer func() {
				if recover() != dying {
					t.Error("it was not killed")
				}
			}()
			_, _ = Retain(t.Context(), s.env, newest, s.plan(removals))
		}()
		s.env.Store = whole
		done := kill/2 + kill%2
		plan := s.plan(removals - done)
		gone, err := Retain(t.Context(), s.env, newest, plan)
		if err != nil || len(gone) != removals-done {
			t.Fatalf("killed at %d: then %d went, %v", kill, len(gone), err)
		}
		if gone, err := Retain(t.Context(), s.env, newest, plan); err != nil || len(gone) != 0 { // the same plan once more
			t.Fatalf("a second time %d went, %v", len(gone), err)
		}
		left, err := whole.List(t.Context(), "")
		if err != nil || len(left) != 1 || left[0].Version != fmt.Sprint(removals+1) {
			t.Fatalf("left: %v, %v", left, err)
		}
		if stones, err := whole.Removed(t.Context(), "web"); err != nil || len(stones) != removals {
			t.Fatalf("%d are remembered, %v", len(stones), err)
		}
		if _, err := Free(t.Context(), s.env, 0); err != nil {
			t.Fatal(err)
		}
		if err := whole.Verify(t.Context(), left[0], nil); err != nil {
			t.Fatal(err)
		}
	}
}

// What began to be used, or got a tag, after the plan stays, and it is said why.
func TestWhatIsUsedSinceThePlanStays(t *testing.T) {
	s := newShelf(t)
	deployed, tagged, old := s.put(5*time.Hour), s.put(4*time.Hour), s.put(3*time.Hour)
	s.put(0)
	plan := s.plan(3)
	if err := deployTo(t.Context(), s.fleet("blog"), deployed); err != nil {
		t.Fatal(err)
	}
	if err := s.env.Store.Tag(t.Context(), "web", "stable", tagged.Digest); err != nil {
		t.Fatal(err)
	}
	var said []string
	ctx := event.With(t.Context(), func(e event.Event) { said = append(said, e.Text) }, nil)
	gone, err := Retain(ctx, s.env, newest, plan)
	if err != nil || len(gone) != 1 || gone[0].Digest != old.Digest || gone[0].Why != "retention: 2nd newest, beyond keep_last 1" {
		t.Fatalf("%v, %v", gone, err)
	}
	if !s.there(deployed) || !s.there(tagged) || s.there(old) {
		t.Error("the wrong ones are there")
	}
	text := strings.Join(said, "\n")
	for _, want := range []string{"web:1 stays after all: fleet blog runs it", "web:2 stays after all: tag stable points at it"} {
		if !strings.Contains(text, want) {
			t.Errorf("it said %q, not %q", text, want)
		}
	}
}

// Fleets deploy images that a prune goes after at the same time: a deployment either
// finds its image gone and begins nothing, or its image stays.
func TestDeploymentsAndPrunesAtOnce(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	var mu sync.Mutex
	var made []artifact.Image
	for i := range 6 {
		made = append(made, s.put(time.Duration(10-i)*time.Hour))
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg, prunes sync.WaitGroup
	missed, pruned := 0, 0
	for range 2 {
		prunes.Go(func() {
			for ctx.Err() == nil {
				plan, err := PlanRetention(t.Context(), s.env, newest)
				if err != nil {
					t.Error(err)
					return
				}
				gone, err := Retain(t.Context(), s.env, newest, plan)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				pruned += len(gone)
				mu.Unlock()
			}
		})
	}
	for f := range 3 {
		wg.Go(func() {
			d := s.fleet(fmt.Sprintf("fleet-%d", f))
			for i := range 6 {
				fresh := s.put(time.Duration(i%3) * time.Minute)
				mu.Lock()
				made = append(made, fresh)
				img := made[len(made)-1-(i*f)%4]
				mu.Unlock()
				err := deployTo(t.Context(), d, img)
				if gone := (*artifact.RemovedError)(nil); errors.As(err, &gone) {
					mu.Lock()
					missed++
					mu.Unlock()
					continue
				}
				if err != nil {
					t.Errorf("deploy: %v", err)
					return
				}
				h, err := fleet.ReadHistory(d.Dir)
				if err != nil {
					t.Error(err)
					return
				}
				for _, n := range h.Needs() {
					if n.Back <= 1 && !s.there(n.Image) {
						t.Errorf("%s needs %s, which is gone (%s)", d.Config.Name, n.Image.Version, n.Why)
					}
				}
			}
		})
	}
	wg.Wait()
	stop()
	prunes.Wait()
	if pruned < 6 {
		t.Errorf("only %d were pruned", pruned)
	}
	t.Logf("%d pruned, %d deployments came too late", pruned, missed)
}

// brokenPool is one that cannot say what it runs.
type brokenPool struct{ *fake.Pool }

func (brokenPool) Groups(context.Context, string) ([]fleet.Group, error) {
	return nil, errors.New("the cloud is down")
}

func TestNothingGoesWhileSomethingCannotBeRead(t *testing.T) {
	for name, tt := range map[string]struct {
		harm func(s *shelf) error
		want string
	}{
		"a fleet's record": {func(s *shelf) error {
			return os.WriteFile(filepath.Join(s.env.State.Fleet("web"), "fleet.json"), []byte("{"), 0o600)
		}, "fleet web: read the fleet's record"},
		"a fleet's journal": {func(s *shelf) error {
			return os.WriteFile(filepath.Join(s.env.State.Fleet("web"), "journal.jsonl"), []byte("{}\n{}\n"), 0o600)
		}, "fleet web: "},
		"a record that is lost": {func(s *shelf) error { return os.Remove(filepath.Join(s.env.State.Fleet("web"), "fleet.json")) }, "has a journal and no fleet.json"},
		"a pool": {func(s *shelf) error {
			s.env.Backends.Pool = func(Env, string, string, []byte) (fleet.Pool, error) { return brokenPool{}, nil }
			return nil
		}, "fleet web: list its instances: the cloud is down"},
		"a pool's settings": {func(s *shelf) error {
			s.env.Backends.Pool = func(Env, string, string, []byte) (fleet.Pool, error) { return nil, errors.New("unknown pool") }
			return nil
		}, "fleet web: unknown pool"},
		"what builds are on": {func(s *shelf) error {
			s.env.Backends.Contents = func(Env) ([]artifact.Digest, error) { return nil, errors.New("no permission") }
			return nil
		}, "no permission"},
		"the list of fleets": {func(s *shelf) error {
			return errors.Join(os.RemoveAll(s.env.State.Fleets()), os.WriteFile(s.env.State.Fleets(), nil, 0o600))
		}, "list the fleets"},
		"an image": {func(s *shelf) error {
			idx, err := os.ReadFile(filepath.Join(s.env.State.Store(), "index.json"))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(s.env.State.Store(), "index.json"), []byte(strings.Replace(string(idx), `"digest": "sha256:`, `"digest": "sha256:0`, 1)), 0o600)
		}, "do not match"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t)
			old := s.put(5 * time.Hour)
			if err := deployTo(t.Context(), s.fleet("web"), s.put(0)); err != nil {
				t.Fatal(err)
			}
			plan := s.plan(1)
			if err := tt.harm(s); err != nil {
				t.Fatal(err)
			}
			if _, err := PlanRetention(t.Context(), s.env, newest); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the plan: %v; want %q", err, tt.want)
			}
			gone, err := Retain(t.Context(), s.env, newest, plan)
			if err == nil || len(gone) > 0 {
				t.Errorf("%d went, %v", len(gone), err)
			}
			if name == "an image" {
				return
			}
			if !s.there(old) {
				t.Error("it is gone")
			}
			if err := Remove(t.Context(), s.env, old, "by hand", false); (err == nil) != strings.Contains("a pool's settings, what builds are on", name) {
				t.Errorf("by hand: %v", err)
			}
		})
	}
}

// An image in a label says the rules of its name; a build's base and a pool's instances stay.
func TestOtherUses(t *testing.T) {
	s := newShelf(t)
	based, runs := s.put(9*time.Hour), s.put(8*time.Hour)
	s.put(0)
	s.plan(2)
	s.env.Backends.Contents = func(Env) ([]artifact.Digest, error) { return []artifact.Digest{based.Content}, nil }
	s.plan(0) // they have one disk here
	s.env.Backends.Contents = nil
	d := s.fleet("web")
	if err := d.Config.Save(d.Dir); err != nil { // a fleet that knows nothing of what its pool runs
		t.Fatal(err)
	}
	if err := d.Pool.Launch(t.Context(), fleet.GroupID{Fleet: "web", Slot: fleet.Blue, Deployment: "x"}, fleet.Spec{Image: runs, Size: 1, Ports: []int{80}}); err != nil {
		t.Fatal(err)
	}
	if p := s.plan(1); p.Removals()[0].Image.Digest != based.Digest {
		t.Errorf("%v goes", p.Removals())
	}
}

// A deployment waits while images are removed, and a cancelled one waits no longer.
func TestADeploymentWaitsForARemoval(t *testing.T) {
	s := newShelf(t)
	img := s.put(0)
	l := flock.New(s.env.State.ImagesLock())
	if ok, err := l.TryLock(); !ok {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := deployTo(ctx, s.fleet("web"), img); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it did not wait: %v", err)
	}
	done := make(chan error)
	go func() { done <- deployTo(t.Context(), s.fleet("web"), img) }()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// After a rollback a fleet could go back to an image that was removed when it was not
// the one before: that must not stop the space of others from being freed.
func TestARollbackToBeforeAnImageThatIsGone(t *testing.T) {
	s := newShelf(t)
	d := s.fleet("web")
	var images []artifact.Image
	for i := range 3 {
		if err := os.WriteFile(s.disk, fmt.Append(nil, "disk ", i), 0o600); err != nil {
			t.Fatal(err)
		}
		images = append(images, s.put(time.Duration(3-i)*time.Hour))
		if err := deployTo(t.Context(), d, images[i]); err != nil {
			t.Fatal(err)
		}
		if err := d.Tend(t.Context(), true); err != nil {
			t.Fatal(err)
		}
	}
	if gone, err := Retain(t.Context(), s.env, newest, s.plan(1)); err != nil || len(gone) != 1 || gone[0].Digest != images[0].Digest {
		t.Fatalf("%v, %v", gone, err)
	}
	for range 2 { // once more with the rollback done
		if freed, err := Free(t.Context(), s.env, 0); err != nil {
			t.Fatal(freed, err)
		}
		if _, err := d.Rollback(t.Context(), "by hand"); err == nil {
			err = d.Tend(t.Context(), true)
			if err != nil {
				t.Fatal(err)
			}
		} else if gone := (*artifact.RemovedError)(nil); !errors.As(err, &gone) || gone.Removed.Version != "1" {
			t.Errorf("rolled back to an image that is gone: %v", err)
		}
	}
	if !s.there(images[1]) {
		t.Error("what it runs is gone")
	}
}

// A fleet whose images are in a registry needs nothing of this machine's own store
// but what happens to be here.
func TestAFleetOfARegistryKeepsWhatIsHere(t *testing.T) {
	s := newShelf(t)
	here := s.put(time.Hour)
	away := here
	away.Digest, away.Content = artifact.Digest("sha256:"+strings.Repeat("a", 64)), artifact.Digest("sha256:"+strings.Repeat("b", 64))
	for name, img := range map[string]artifact.Image{"one": here, "two": away} {
		d := s.fleet(name)
		d.Hold, d.Config.Store = nil, "oci://registry.example.com/team"
		if err := deployTo(t.Context(), d, img); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.env.Store.(*oci.Store).Remove(t.Context(), artifact.Ref{Name: "web", Tag: "1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := Free(t.Context(), s.env, 0); err != nil {
		t.Fatal(err)
	}
	if !s.env.Store.(*oci.Store).Has(here.Content) {
		t.Error("what it runs was here, and its chunks are gone")
	}
}

// unreachable is a store that cannot be asked.
type unreachable struct{ *oci.Store }

func (unreachable) Resolve(context.Context, artifact.Ref) (artifact.Image, error) {
	return artifact.Image{}, errors.New("no route to host")
}

// A deployment, a rollback above all, does not wait for a store that is out of reach:
// its image's disk may be here. One that is gone is refused before anything begins.
func TestADeploymentWithoutItsStore(t *testing.T) {
	s := newShelf(t)
	img, gone := s.put(time.Hour), s.put(0)
	if err := Remove(t.Context(), s.env, gone, "by hand", false); err != nil {
		t.Fatal(err)
	}
	d := s.fleet("web")
	if err := deployTo(t.Context(), d, gone); !errors.Is(err, artifact.ErrNotFound) || !strings.Contains(err.Error(), "web:2 cannot be deployed: web:2 was removed on ") {
		t.Errorf("an image that is gone: %v", err)
	}
	if h, err := fleet.ReadHistory(d.Dir); err != nil || len(h) != 0 {
		t.Errorf("%d deployments, %v", len(h), err)
	}
	s.env.Store = unreachable{s.env.Store.(*oci.Store)}
	if err := deployTo(t.Context(), s.fleet("web"), img); err != nil {
		t.Error(err)
	}
}

// registryLike is a store that remembers nothing of what it removes.
type registryLike struct {
	artifact.Store
	artifact.Lister
	artifact.Deleter
}

// refusing is one whose registry does not delete.
type refusing struct {
	artifact.Deleter
	asked int
}

func (r *refusing) Remove(context.Context, artifact.Ref) error {
	r.asked++
	return errors.New("405: the registry does not delete")
}

func TestAStoreThatRemembersNothing(t *testing.T) {
	s := newShelf(t)
	var old []artifact.Image
	for i := range 3 {
		old = append(old, s.put(time.Duration(3-i)*time.Hour))
	}
	s.put(0)
	whole := s.env.Store.(*oci.Store)
	no := &refusing{Deleter: whole}
	s.env.Store = registryLike{whole, whole, no}
	gone, err := Retain(t.Context(), s.env, newest, s.plan(3))
	if err == nil || !strings.Contains(err.Error(), "405") || len(gone) != 0 || no.asked != 1 {
		t.Errorf("%d went, asked %d times, %v", len(gone), no.asked, err)
	}
	s.env.Store = registryLike{whole, whole, whole}
	if gone, err := Retain(t.Context(), s.env, newest, s.plan(3)); err != nil || len(gone) != 3 || s.there(old[0]) {
		t.Errorf("%d went, %v", len(gone), err)
	}
	s.env.Store = struct {
		artifact.Store
		artifact.Lister
	}{whole, whole}
	s.put(time.Hour)
	if _, err := Retain(t.Context(), s.env, newest, s.plan(1)); !errors.Is(err, ErrCannotRemove) {
		t.Errorf("a store that removes nothing: %v", err)
	}
	if _, err := Free(t.Context(), s.env, 0); !errors.Is(err, ErrCannotRemove) {
		t.Errorf("a store that frees nothing: %v", err)
	}
}
