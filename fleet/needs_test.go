package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/test/fake"
)

func needs(h fleet.History) string {
	var all []string
	for _, n := range h.Needs() {
		all = append(all, fmt.Sprintf("%s %s %d", n.Image.Version, n.Why, n.Back))
	}
	return strings.Join(all, ", ")
}

func TestWhatAFleetNeeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, map[artifact.Digest]fake.Behaviour{"sha256:bad": {Never: true}})
		want := func(text string) {
			t.Helper()
			if got := needs(w.past.History); got != text {
				t.Errorf("it needs %q, want %q", got, text)
			}
		}
		deploy := func(v string) {
			t.Helper()
			if _, err := w.d.Deploy(t.Context(), request(v)); err != nil && !errors.Is(err, fleet.ErrRolledBack) {
				t.Fatal(err)
			}
		}
		want("")
		deploy("1")
		want("1 runs it 0")
		deploy("2")
		want("2 runs it 0, 1 keeps it warm 0")
		deploy("3")
		deploy("4")
		want("4 runs it 0, 3 keeps it warm 0, 2 can go back to it 2, 1 can go back to it 3")
		if err := w.d.Tend(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		want("4 runs it 0, 3 can go back to it 1, 2 can go back to it 2, 1 can go back to it 3")
		deploy("bad")
		want("4 runs it 0, 3 can go back to it 1, 2 can go back to it 2, 1 can go back to it 3")
		// What a rollback went away from is no way back, until it is proven again.
		if _, err := w.d.GoBack(t.Context(), fleet.Back{Reason: "x", Version: "2"}); err != nil {
			t.Fatal(err)
		}
		if err := w.d.Tend(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		want("2 runs it 0, 3 can go back to it 1, 1 can go back to it 2")
		deploy("4")
		deploy("5")
		if err := w.d.Tend(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		want("5 runs it 0, 4 can go back to it 1, 2 can go back to it 2, 3 can go back to it 3, 1 can go back to it 4")
	})
}

// An image that is being deployed is needed at each record of its deployment: there is
// no moment between the plan and the end at which it is not.
func TestADeploymentNeedsItsImagesAllTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
			t.Fatal(err)
		}
		n := 0
		w.d.Recorded = func(kind, what string) {
			l := w.past.History.Last()
			if kind == "lease" || l.New.Spec.Image.Version != "2" {
				return
			}
			n++
			if got := needs(w.past.History); !strings.Contains(got, "1 ") || !strings.Contains(got, "2 ") {
				t.Errorf("at %s (%s) it needs %q", what, l.State, got)
			}
		}
		if _, err := w.d.Deploy(t.Context(), request("2")); err != nil {
			t.Fatal(err)
		}
		if err := w.d.Tend(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if n < 10 {
			t.Errorf("%d records", n)
		}
	})
}

func TestAnImageIsHeldUntilThePlanNamesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		var told []string
		w.d.Recorded = func(kind, _ string) {
			if kind == "plan" {
				told = append(told, "plan "+w.past.History.Last().New.Spec.Image.Version)
			}
		}
		w.d.Hold = func(_ context.Context, img artifact.Image) (func() error, error) {
			if img.Version == "gone" {
				return nil, artifact.ErrNotFound
			}
			told = append(told, "hold "+img.Version)
			return func() error { told = append(told, "release "+img.Version); return nil }, nil
		}
		for _, v := range []string{"1", "2"} {
			if _, err := w.d.Deploy(t.Context(), request(v)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.d.Tend(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if _, err := w.d.Rollback(t.Context(), "x"); err != nil { // by a new deployment
			t.Fatal(err)
		}
		want := []string{"hold 1", "plan 1", "release 1", "hold 2", "plan 2", "release 2", "hold 1", "plan 1", "release 1"}
		if !slices.Equal(told, want) {
			t.Errorf("%v, want %v", told, want)
		}
		n := len(w.recs)
		if _, err := w.d.Deploy(t.Context(), request("gone")); !errors.Is(err, artifact.ErrNotFound) {
			t.Error(err)
		}
		for _, r := range w.recs[n:] {
			if r.Kind == "plan" {
				t.Error("a plan was written for an image that is not there")
			}
		}
		w.sound("1")
	})
}

func TestOrphans(t *testing.T) {
	root := t.TempDir()
	if got, err := fleet.Orphans(filepath.Join(root, "none")); err != nil || len(got) != 0 {
		t.Errorf("without fleets: %v, %v", got, err)
	}
	for name, files := range map[string]map[string]string{
		"whole": {"fleet.json": "{}", "journal.jsonl": "x"}, "new": {"journal.jsonl": ""}, "begun": {"fleet.json": "{}"}, "rest": {"lock": ""},
		"lost": {"journal.jsonl": "x"},
	} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o700); err != nil {
			t.Fatal(err)
		}
		for f, text := range files {
			if err := os.WriteFile(filepath.Join(root, name, f), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(root, "a file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := fleet.Orphans(root); err != nil || !slices.Equal(got, []string{filepath.Join(root, "lost")}) {
		t.Errorf("%v, %v", got, err)
	}
}
