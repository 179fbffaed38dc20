package pipeline_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/template"
)

func named(name, builder string, list ...string) string {
	return strings.Replace(on(builder, list...), "name: web", "name: "+name, 1)
}

func (w *world) all(o pipeline.BakeOptions, texts ...string) ([]pipeline.Baked, error) {
	w.t.Helper()
	var tpls []*template.Template
	for _, text := range texts {
		tpls = append(tpls, w.load(text))
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	o.SkipTest = true
	return pipeline.BakeAll(w.record(ctx), w.env, tpls, o)
}

func names(baked []pipeline.Baked) string {
	var l []string
	for _, b := range baked {
		l = append(l, b.Image.Name)
	}
	return strings.Join(l, " ")
}

// atOnce counts the bakes that stand in a step at the same time; with meet a
// bake waits there for another.
func (w *world) atOnce(meet bool) func() int {
	var mu sync.Mutex
	now, most := 0, 0
	both := make(chan struct{})
	w.told = func(e event.Event) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case e.Kind == event.Start && e.Name == "seal":
			if now++; now == 2 {
				close(both)
			}
			most = max(most, now)
		case e.Kind == event.End && e.Name == "register":
			now--
		}
	}
	w.before = func(ctx context.Context, op, _ string) error {
		if op == "capture" && meet {
			select {
			case <-both:
			case <-time.After(20 * time.Second):
			}
		}
		return nil
	}
	return func() int { mu.Lock(); defer mu.Unlock(); return most }
}

func TestAChildWaitsForItsBaseAndSeesIt(t *testing.T) {
	w := cached(t)
	a, child, other := named("base", "", sh("a", "true")), named("child", "image: base", sh("c", "cat ../etc/motd >motd")), named("other", "", sh("o", "true"))
	baked, err := w.all(pipeline.BakeOptions{}, child, other, a)
	if err != nil || names(baked) != "child other base" {
		t.Fatalf("%s, %v: not in the order of the templates", names(baked), err)
	}
	w.holds(baked[0].Image, "root/motd", string(baked[2].Image.Digest))
	if !strings.Contains(w.said(), "child waits for its base base") {
		t.Error("it does not say that it waits")
	}
	baked, err = w.all(pipeline.BakeOptions{}, child, other, named("base", "", sh("a", "echo new")))
	if err != nil || !baked[0].Changed || baked[1].Changed || !baked[2].Changed {
		t.Fatalf("a new base: %+v, %v", baked, err)
	}
	w.holds(baked[0].Image, "root/motd", string(baked[2].Image.Digest))
}

func TestAFailureStopsWhatNeedsItAndNothingElse(t *testing.T) {
	w := cached(t)
	bad, child, other := named("base", "", sh("a", "exit 9")), named("child", "image: base", sh("c", "true")), named("other", "", sh("o", "true"))
	baked, err := w.all(pipeline.BakeOptions{}, bad, child, other)
	if names(baked) != "other" || err == nil {
		t.Fatalf("baked %q, %v", names(baked), err)
	}
	for _, want := range []string{"base: ", "exit status 9", "child was not baked: its base base failed"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
	w.nothingLeft()

	w = cached(t)
	long := named("other", "", sh("o", "echo LONG; sleep 1000"))
	running := make(chan struct{})
	var once sync.Once
	w.told = func(e event.Event) {
		if strings.Contains(e.Text, "LONG") {
			once.Do(func() { close(running) })
		}
	}
	w.before = func(_ context.Context, op, _ string) error {
		if op == "boot" && w.began("provision: o") {
			<-running
		}
		return nil
	}
	if baked, err = w.all(pipeline.BakeOptions{FailFast: true, Parallel: 2}, bad, long); len(baked) > 0 || err == nil || !strings.Contains(err.Error(), "--fail-fast") {
		t.Errorf("--fail-fast: %q, %v", names(baked), err)
	}
	w.nothingLeft()
}

func TestWhatCannotBeBakedTogetherIsRefused(t *testing.T) {
	w := cached(t)
	a := named("a", "", sh("a", "true"))
	for want, texts := range map[string][]string{
		"both make image a": {a, a},
		"each of these images is the base of the next: x → y → x": {named("x", "image: y", sh("a", "true")), named("y", "image: x", sh("a", "true"))},
	} {
		if _, err := w.all(pipeline.BakeOptions{}, texts...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if len(w.builds()) > 0 || w.began("prepare base") {
		t.Error("something was booted")
	}
}

func TestHowManyBuildsRunAtOnce(t *testing.T) {
	one, two := sh("a", "true"), sh("b", ": b")
	const much = "memory: 1000000000000000" // more than there is: it runs alone
	for name, tt := range map[string]struct {
		parallel, want int
		builder, says  string
	}{
		"--parallel 1":        {1, 1, "", ""},
		"--parallel 2":        {2, 2, "", ""},
		"no memory for two":   {2, 1, much, "waits for memory: another build has it"},
		"memory for two more": {2, 2, "memory: 1000000", ""},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			w := cached(t)
			builder := tt.builder
			if builder != "" {
				w.one(named("root", "", one), quick)
				builder += ", image: root"
			}
			most := w.atOnce(tt.want == 2)
			baked, err := w.all(pipeline.BakeOptions{Parallel: tt.parallel}, named("one", builder, one), named("two", builder, two))
			if err != nil || names(baked) != "one two" {
				t.Fatalf("%q, %v", names(baked), err)
			}
			if got := most(); got != tt.want {
				t.Errorf("%d at once, want %d", got, tt.want)
			}
			if !strings.Contains(w.said(), tt.says) {
				t.Errorf("it does not say %q", tt.says)
			}
		})
	}
}
