package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/lifecycle"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/test/fake"
)

// nights is a world with a fleet, whose template asks the guest whether there is
// something to upgrade, and gives each night a version of its own.
type nights struct {
	*world
	night int
	pool  *fake.Pool
	path  string
	set   func(string)
}

func newNights(t *testing.T) *nights {
	t.Parallel()
	w := &nights{world: cached(t), pool: &fake.Pool{Behave: map[artifact.Digest]fake.Behaviour{}}}
	router := &fake.Router{Check: w.pool.Check, Rise: 1, Every: time.Millisecond}
	b := &w.env.Backends
	b.Kinds.Pools = map[string]func() any{"fake": func() any { return new(struct{}) }}
	b.Kinds.Routers = b.Kinds.Pools
	b.Pool = func(pipeline.Env, string, string, []byte) (fleet.Pool, error) { return w.pool, nil }
	b.Router = func(pipeline.Env, string, string, []byte, fleet.HealthCheck) (fleet.Router, error) {
		return router, nil
	}
	w.path, w.set = outside(t, "openssl 3.0.1\n")
	return w
}

// text is the template; more is more of its deploy: block, in YAML's short form.
func (w *nights) text(more string, extra ...string) string {
	upgrade := sh("upgrade", "cat "+w.path+" >>packages", fmt.Sprintf("cache: {refresh: %q}", "cat "+w.path))
	return fmt.Sprintf("version: \"2026.%d\"\n", w.night) + steps(append([]string{sh("install", "true", "cache: {max_age: 720h}"), upgrade}, extra...)...) + `fleet:
  size: 2
  pool: fake
  router: fake
  health: {http: {port: 80}, interval: 10ms, rise: 1}
  deploy: {` + more + `steps: [{weight: 100, hold: 1ms}], keep_old: 10m}
`
}

// up is the next night's run.
func (w *nights) up(text func() string) (pipeline.Upped, error) {
	w.t.Helper()
	w.night++
	w.time.forward(24 * time.Hour)
	w.ran()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	return pipeline.Up(w.record(ctx), w.env, w.load(text()), pipeline.BakeOptions{SkipTest: true, MaxAge: pipeline.DefaultMaxAge, IfChanged: true}, pipeline.DeployOptions{})
}

// gets is a run that must go well, and come to that.
func (w *nights) gets(outcome string, changed bool, text func() string) pipeline.Upped {
	w.t.Helper()
	u, err := w.up(text)
	if err != nil || u.Outcome != outcome || u.Changed != changed {
		w.t.Fatalf("night %d: %s, changed %v, %v; it said\n%s", w.night, u.Outcome, u.Changed, err, w.said())
	}
	return u
}

func (w *nights) runs() string {
	w.t.Helper()
	d, err := pipeline.Fleet(w.t.Context(), w.env, "web")
	if err != nil {
		w.t.Fatal(err)
	}
	st, err := d.Status(w.t.Context())
	if err != nil || st.Current == nil {
		w.t.Fatalf("%+v, %v", st, err)
	}
	return st.Current.Spec.Image.Version
}

func (w *nights) plain() string { return w.text("") }

func TestANightWithNothingNewChangesNothing(t *testing.T) {
	w := newNights(t)
	first := w.gets("deployed", true, w.plain)
	if first.Baked[0].Image.Version != "2026.1" || len(first.Baked[0].Why) == 0 {
		t.Errorf("%+v", first.Baked)
	}
	for range 2 {
		u := w.gets("unchanged", false, w.plain)
		is := u.Baked[0]
		if is.Changed || is.Image.Version != "2026.1" || is.Looked == nil || w.runs() != "2026.1" {
			t.Fatalf("%+v", is)
		}
		if got := is.Looked.String(); !strings.HasPrefix(got, `looked at the base fake, 2 steps with 0 local files, the refresh command of "upgrade", the seal and 0 tests; no step ran before 20`) {
			t.Errorf("%s", got)
		}
		if ran := w.ran(); !strings.HasSuffix(ran, `after boot`) && !strings.HasSuffix(ran, "after install") {
			t.Errorf("it ran %q", ran)
		}
	}
	w.set("openssl 3.0.1\nnginx 1.22\n")
	u := w.gets("deployed", true, w.plain)
	if why := fmt.Sprint(u.Baked[0].Why); why != `["upgrade": its refresh command prints something else: nginx 1.22]` || w.runs() != "2026.4" {
		t.Errorf("baked for %s; the fleet runs %s", why, w.runs())
	}
	w.gets("unchanged", false, w.plain)
	w.nothingLeft()
}

func TestWithoutTheFlagAVersionOfItsOwnIsBakedEachNight(t *testing.T) {
	w := newNights(t)
	w.night = 1
	for _, want := range []string{"2026.1", "2026.2"} {
		u, err := pipeline.Up(w.record(t.Context()), w.env, w.load(w.plain()), quick, pipeline.DeployOptions{})
		if err != nil || u.Outcome != "deployed" || w.runs() != want {
			t.Fatalf("%+v, %v", u, err)
		}
		w.night++
	}
}

func TestAStepThatNobodyCanAskAboutIsRunEachNight(t *testing.T) {
	w := newNights(t)
	text := func() string { return strings.ReplaceAll(w.plain(), "cache: {max_age: 720h}", "timeout: 1m") }
	w.gets("deployed", true, text)
	u := w.gets("deployed", true, text)
	if why := fmt.Sprint(u.Baked[0].Why); why != `["install" ran 24h0m2s ago, and is good for 20h0m0s]` {
		t.Error(why)
	}
}

func TestAFailedBakeKeepsYesterdaysFleet(t *testing.T) {
	w := newNights(t)
	w.gets("deployed", true, w.plain)
	w.set("worse")
	u, err := w.up(func() string { return w.text("", sh("broken", "exit 3")) })
	if err == nil || u.Outcome != "failed" || u.Changed || w.runs() != "2026.1" {
		t.Errorf("%+v, %v; the fleet runs %s", u, err, w.runs())
	}
	w.gets("deployed", true, w.plain)
}

func TestAFreezeHoldsTheNewImageBackAndTheNextNightDeploysIt(t *testing.T) {
	w := newNights(t)
	frozen := func() string { return w.text(`freeze: [{from: "00:00", to: "00:00", reason: fair}], `) }
	w.gets("deployed", true, w.plain)
	if u := w.gets("unchanged", false, frozen); u.Held != "" {
		t.Errorf("nothing to do in a freeze: %+v", u)
	}
	w.set("new")
	if u := w.gets("frozen", true, frozen); !strings.Contains(u.Held, "fair") || w.runs() != "2026.1" {
		t.Errorf("%+v; the fleet runs %s", u, w.runs())
	}
	if u := w.gets("deployed", true, w.plain); u.Baked[0].Changed || w.runs() != "2026.3" {
		t.Errorf("%+v; the fleet runs %s", u, w.runs())
	}
	// Without the flag a person asked for it, and is told by an error.
	w.night++
	_, err := pipeline.Up(w.record(t.Context()), w.env, w.load(frozen()), quick, pipeline.DeployOptions{})
	if !errors.Is(err, fleet.ErrFrozen) {
		t.Error(err)
	}
}

func TestAnImageThatWasTakenBackIsNotTriedAgainUnlessSomethingChanged(t *testing.T) {
	w := newNights(t)
	w.gets("deployed", true, w.plain)
	w.set("bad")
	w.night++
	bad := w.one(w.plain(), quick)
	w.pool.Behave[bad.Image.Digest] = fake.Behaviour{Never: true}
	short := func() string { return strings.Replace(w.plain(), "rise: 1", "rise: 1, within: 300ms", 1) }
	refused := func(why string) {
		t.Helper()
		before := w.runs()
		u, err := w.up(short)
		if !errors.Is(err, pipeline.ErrRolledBack) || u.Outcome != "rolled back" || !strings.Contains(fmt.Sprint(err), why) || w.runs() != before {
			t.Fatalf("%+v, %v", u, err)
		}
	}
	refused("did not become healthy")
	refused("web:2026.2 is not tried again: ")

	w.set("good")
	w.gets("deployed", true, w.plain)
	d, err := pipeline.Fleet(t.Context(), w.env, "web")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Rollback(t.Context(), "customers complain"); err != nil || w.runs() != "2026.1" {
		t.Fatal(err, w.runs())
	}
	refused("customers complain")
	w.set("better")
	w.gets("deployed", true, w.plain)
}

func TestTwoRunsAtOnceAndAFleetThatWaitsForAPerson(t *testing.T) {
	w := newNights(t)
	w.gets("deployed", true, w.plain)
	w.set("new")
	if err := os.MkdirAll(filepath.Dir(w.env.State.Up("web")), 0o700); err != nil {
		t.Fatal(err)
	}
	other := flock.New(w.env.State.Up("web"))
	if ok, err := other.TryLock(); !ok {
		t.Fatal(err)
	}
	if _, err := w.up(w.plain); !errors.Is(err, fleet.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("process %d, since ", os.Getpid())) || w.ran() != "" {
		t.Errorf("the second run: %v", err)
	}
	other.Close()

	pause := func() string {
		return strings.Replace(w.plain(), "hold: 1ms}", "hold: 1ms, pause: true}", 1)
	}
	if u, err := w.up(pause); !errors.Is(err, fleet.ErrPaused) || u.Outcome != "paused" {
		t.Fatalf("%+v, %v", u, err)
	}
	w.set("newer")
	if u, err := w.up(pause); !errors.Is(err, fleet.ErrPaused) || u.Outcome != "paused" || !strings.Contains(err.Error(), "nothing was baked") || w.ran() != "" {
		t.Errorf("a fleet that waits: %+v, %v", u, err)
	}
}

func TestADeploymentThatWasCutOffGoesOnBeforeAnythingIsBaked(t *testing.T) {
	w := newNights(t)
	w.gets("deployed", true, w.plain)
	w.set("new")
	ctx, cut := context.WithCancelCause(t.Context())
	w.night++
	tpl := w.load(strings.Replace(w.plain(), "hold: 1ms", "hold: 300ms", 1))
	_, err := pipeline.Up(w.record(ctx, func(e event.Event) {
		if e.Kind == event.Start && strings.HasPrefix(e.Name, "hold at") {
			cut(errors.New("the power went"))
		}
	}), w.env, tpl, pipeline.BakeOptions{SkipTest: true, IfChanged: true}, pipeline.DeployOptions{})
	if err == nil || !strings.Contains(err.Error(), "the power went") {
		t.Fatal(err)
	}
	if u := w.gets("deployed", true, w.plain); u.Baked[0].Changed || u.Deployment.ID == "" || w.runs() != "2026.2" {
		t.Errorf("%+v; the fleet runs %s", u, w.runs())
	}
	w.gets("unchanged", false, w.plain)
}

func TestARevokedImageIsNoResult(t *testing.T) {
	w := newNights(t)
	first := w.gets("deployed", true, w.plain)
	store, err := lifecycle.In(w.env.Store)
	if err != nil {
		t.Fatal(err)
	}
	who := lifecycle.Author{By: "ops", Now: w.time.now}
	if _, err := lifecycle.Revoke(t.Context(), store, who, first.Baked[0].Image, time.Time{}, "a key is in it"); err != nil {
		t.Fatal(err)
	}
	u := w.gets("deployed", true, w.plain)
	if why := fmt.Sprint(u.Baked[0].Why); !strings.Contains(why, "web:2026.1 of the same inputs is revoked: ") || !strings.Contains(why, "a key is in it") || w.runs() != "2026.2" {
		t.Errorf("baked for %s; the fleet runs %s", why, w.runs())
	}
	w.gets("unchanged", false, w.plain)
}

func TestAnUntestedImageIsNoResultForWhoTests(t *testing.T) {
	w := newNights(t)
	w.night = 1
	w.one(w.plain(), quick)
	for _, want := range []bool{true, false} {
		w.night++
		b, err := w.bake(w.plain(), pipeline.BakeOptions{IfChanged: true})
		if err != nil || b[0].Changed != want {
			t.Fatalf("%+v, %v", b, err)
		}
		if why := fmt.Sprint(b[0].Why); want && why != "[web:2026.1 of the same inputs was not tested (--skip-test)]" {
			t.Error(why)
		}
	}
}

func TestDeadInstancesAreStartedAnew(t *testing.T) {
	w := newNights(t)
	w.gets("deployed", true, w.plain)
	groups, err := w.pool.Groups(t.Context(), "web")
	if err != nil || !w.pool.Kill(groups[0].Instances[0].ID) {
		t.Fatal(err)
	}
	u := w.gets("healed", true, w.plain)
	if len(u.Healed) != 1 || u.Healed[0].Instance != groups[0].Instances[0].ID || u.Baked[0].Changed {
		t.Errorf("%+v", u.Healed)
	}
	w.gets("unchanged", false, w.plain)
}

// reports are those that were told, in short.
func (w *world) reports() (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		switch r := e.Report; {
		case r == nil:
		case r.Build != nil:
			out = append(out, fmt.Sprintf("build %s %s %s", r.Build.Image, r.Build.Build, r.Build.Outcome))
		case r.Step != nil:
			out = append(out, fmt.Sprintf("step %s %s", r.Step.Step, r.Step.Outcome))
		case !r.Test.Passed:
			out = append(out, "failed test "+r.Test.Test)
		}
	}
	return out
}

func TestABuildIsReported(t *testing.T) {
	w := cached(t)
	ok := steps(sh("a", "true"), sh("b", "true"))
	for _, c := range []struct{ text, want string }{
		{ok, "step a ran, step b ran, build web fake baked"},
		{ok, "build web fake unchanged"},
		{steps(sh("a", "true"), sh("b", "echo s3cr3t; exit 4")), "step a cached, step b failed, build web fake failed"},
	} {
		w.ran()
		if _, err := w.bake(c.text, quick); (err != nil) != strings.Contains(c.want, "failed") {
			t.Error(err)
		}
		if got := strings.Join(w.reports(), ", "); got != c.want {
			t.Errorf("reported %s, want %s", got, c.want)
		}
	}
	w.ran()
	_, err := w.bake(ok+"test: [{command: {name: answers, run: \"false\"}}]\n", pipeline.BakeOptions{})
	if got := strings.Join(w.reports(), ", "); err == nil || !strings.HasSuffix(got, "failed test answers, build web fake failed") {
		t.Errorf("reported %s, %v", got, err)
	}
}
