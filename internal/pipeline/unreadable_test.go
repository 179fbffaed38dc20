package pipeline_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/test/fake"
)

// A fleet whose record was damaged hides no other, and keeps its images.
func TestADamagedFleetHidesNoOther(t *testing.T) {
	w := newWorld(t, t.TempDir(), &fake.Store{})
	for name, text := range map[string]string{"bad": "{", "gone": ""} {
		dir := w.env.State.Fleet(name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if text != "" {
			if err := os.WriteFile(filepath.Join(dir, "fleet.json"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if names, err := pipeline.Fleets(t.Context(), w.env); err != nil || !slices.Equal(names, []pipeline.Place{{Name: "bad"}}) {
		t.Errorf("%v, %v", names, err)
	}
	if _, err := pipeline.Fleet(t.Context(), w.env, "bad"); err == nil || !strings.Contains(err.Error(), filepath.Join("bad", "fleet.json")) {
		t.Errorf("its error does not name the file: %v", err)
	}
	if _, err := pipeline.TendAll(t.Context(), w.env); err == nil || !strings.Contains(err.Error(), "bad") {
		t.Errorf("tend: %v", err)
	}
	if err := os.WriteFile(filepath.Join(w.env.State.Fleet("bad"), "journal.jsonl"), []byte("damaged\nlines\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := pipeline.Needed(t.Context(), w.env); err == nil {
		t.Error("what a damaged journal needs is taken as not needed")
	}
}
