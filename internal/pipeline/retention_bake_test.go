package pipeline_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/pipeline"
)

// An image says the rules of its name, and a version that was removed is given to no other.
func TestABakeSaysItsRulesAndTakesNoRemovedVersion(t *testing.T) {
	t.Parallel()
	w := cached(t)
	w.time.Store(time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC).UnixNano())
	text := steps(sh("a", "true")) + "labels: {team: shop}\n"
	o := pipeline.BakeOptions{SkipTest: true, Force: true}
	if l := w.one(text, o).Image.Labels; len(l) != 1 {
		t.Errorf("without rules its labels are %v", l)
	}
	text += "retention: {keep_last: 1, min_age: 0s}\n"
	second := w.one(text, o).Image
	if l := second.Labels; len(l) != 2 || l["team"] != "shop" || l["dev.rebake.retention"] != `{"keep_last":1,"min_age":"0s","keep_previous":1}` {
		t.Errorf("its labels are %v", l)
	}
	third := w.one(text, o).Image
	if second.Version != "20261128.2" || third.Version != "20261128.3" {
		t.Fatalf("versions %s, %s", second.Version, third.Version)
	}
	// By the rules that the newest says; then the newest goes too, by hand.
	plan, err := pipeline.PlanRetention(t.Context(), w.env, pipeline.Retention{})
	if err != nil || len(plan.Bare) > 0 {
		t.Fatal(plan.Bare, err)
	}
	gone, err := pipeline.Retain(w.record(t.Context()), w.env, pipeline.Retention{}, plan)
	if err != nil || len(gone) != 2 {
		t.Fatalf("%d went, %v: %+v", len(gone), err, plan.Plan)
	}
	if err := pipeline.Remove(t.Context(), w.env, w.images()[0], "by hand", false); err != nil {
		t.Fatal(err)
	}
	if fourth := w.one(text, o).Image; fourth.Version != "20261128.4" {
		t.Errorf("after all three were removed the next is %s", fourth.Version)
	}
	_, err = w.bake(text, pipeline.BakeOptions{SkipTest: true, Version: "20261128.3"})
	if !errors.Is(err, artifact.ErrExists) || !strings.Contains(err.Error(), "was removed on") {
		t.Errorf("a removed version by name: %v", err)
	}
	if freed, err := pipeline.Free(t.Context(), w.env, 0); err != nil {
		t.Error(freed, err)
	}
	if len(w.images()) != 1 {
		t.Errorf("%d images", len(w.images()))
	}
}
