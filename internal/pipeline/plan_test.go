package pipeline_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/test/fake"
)

// why is what a plan says of one state; s is its step's name, "boot" the boot.
func (w *world) why(s, text string, o pipeline.BakeOptions, vars ...string) pipeline.PlanStep {
	w.t.Helper()
	plans, err := pipeline.MakePlan(w.record(w.t.Context()), w.env, w.load(text, vars...), o)
	if err != nil || len(plans) != 1 {
		w.t.Fatalf("%d plans, %v", len(plans), err)
	}
	for _, p := range append(plans[0].Steps, plans[0].Boot) {
		if p.Name == s {
			return p
		}
	}
	w.t.Fatalf("no %s in %+v", s, plans[0])
	return pipeline.PlanStep{}
}

func TestAPlanSaysWhy(t *testing.T) {
	a, b, c := sh("a", "echo a"), sh("b", "echo b"), sh("c", "echo c")
	first := steps(a, b, c)
	never, asks := sh("b", "echo b", "cache: false"), sh("b", "echo b", `cache: {refresh: "true"}`)
	for _, tt := range []struct {
		name, text, step string
		o                pipeline.BakeOptions
		wait             time.Duration
		cached           bool
		why              string
		field, was, is   string
	}{
		{name: "nothing changed", text: first, step: "c", cached: true, why: "ran 1s ago", wait: time.Second},
		{name: "the boot", text: first, step: "boot", cached: true, why: "ran 7s ago", wait: time.Second},
		{name: "a script changed", text: steps(a, sh("b", "echo B"), c), step: "b", why: "changed: inline", field: "inline", was: "echo b", is: "echo B"},
		{name: "before it", text: steps(a, sh("b", "echo B"), c), step: "a", cached: true, why: "ago"},
		{name: "after it", text: steps(a, sh("b", "echo B"), c), step: "c", why: `comes after "b", which changed`},
		{name: "another kind", text: steps(a, "breakpoint: {name: b, disable: true}"), step: "b", why: "it is of another kind"},
		{name: "another kind with inputs", text: steps(a, "file: {name: b, content: x, destination: /root/b}"), step: "b", why: "it is of another kind"},
		{name: "an environment more", text: steps(a, sh("b", "echo b", "env: {A: x}")), step: "b", why: "changed: env A", field: "env A", is: "x"},
		{name: "another base", text: on("motd: hello", a), step: "boot", why: "changed: file etc/motd", field: "file etc/motd", is: "hello"},
		{name: "one step more", text: steps(a, b, c, sh("d", "echo d")), step: "d", why: "it did not run yet"},
		{name: "no cache", text: first, step: "a", o: pipeline.BakeOptions{NoCache: true}, why: "--no-cache"},
		{name: "no cache from", text: first, step: "b", o: pipeline.BakeOptions{NoCacheFrom: "b"}, why: "--no-cache-from b"},
		{name: "no cache from the next", text: first, step: "a", o: pipeline.BakeOptions{NoCacheFrom: "b"}, cached: true, why: "ago"},
		{name: "never", text: steps(a, never, c), step: "b", why: "cache: false"},
		{name: "after never", text: steps(a, never, c), step: "c", why: "comes after a step that always runs"},
		{name: "asked", text: steps(a, asks, c), step: "b", why: "its refresh command will be asked"},
		{name: "after asked", text: steps(a, asks, c), step: "c", why: `comes after "b", which the guest is asked about`},
		{name: "too old", text: first, step: "a", wait: 21 * time.Hour, why: `"a" ran 21h0m`},
		{name: "no checkpoints", text: on("plain: true", a, b, c), step: "a", why: "this builder makes no checkpoints"},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			w := sharedWorld(t, first)
			w.time.forward(tt.wait)
			p := w.why(tt.step, tt.text, tt.o)
			if p.Cached != tt.cached || !strings.Contains(p.Why, tt.why) || p.Field != tt.field || p.Was != tt.was || p.Is != tt.is {
				t.Errorf("got %+v", p)
			}
			w.nothingLeft()
		})
	}
	w := cached(t)
	if p := w.why("a", first, quick); p.Cached || p.Why != "no earlier build is known" {
		t.Errorf("before the first build: %+v", p)
	}
	w = sharedWorld(t, first)
	remove(t, w.files(".json"))
	if p := w.why("a", first, quick); p.Cached || p.Why != "its state was not saved, or is gone from the cache" {
		t.Errorf("without checkpoints: %+v", p)
	}
}

func sharedWorld(t *testing.T, text string) *world {
	w := cached(t)
	w.one(text, quick)
	return w
}

func TestAPlanTellsASecretByItsName(t *testing.T) {
	w := newWorld(t, t.TempDir(), &fake.Store{})
	w.stop()
	text := "name: web\nvariables: {token: {default: s3cr3t-t0ken, sensitive: true}}\nbuild: {fake: {}}\nprovision:\n  - shell: {name: a, env: {T: \"%\"}, inline: [\"true\"]}\n" + sealQuickly
	with := func(v string) string { return strings.Replace(text, "%", v, 1) }
	w.one(with("x"), quick)
	p := w.why("a", with("${{ var.token }}"), quick)
	if p.Field != "env T" || p.Was != "x" || p.Is == "" || strings.Contains(p.Is+p.Why, "s3cr3t") || !strings.Contains(p.Is, "token") {
		t.Errorf("got %+v", p)
	}
	was := p.Key
	if p = w.why("a", with("${{ var.token }}"), quick, "token=another"); p.Key != was {
		t.Error("another value of a secret is another key")
	}
}

func TestAPlanOfACheckpointThatCannotBeReadIsOne(t *testing.T) {
	w := sharedWorld(t, steps(sh("a", "true")))
	w.before = func(_ context.Context, op, _ string) error {
		if op == "find" {
			return errors.New("the computer says no")
		}
		return nil
	}
	if p := w.why("a", steps(sh("a", "true")), quick); p.Cached {
		t.Errorf("got %+v", p)
	}
}
