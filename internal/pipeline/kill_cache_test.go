package pipeline_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/state"
)

// savingBaker makes bakeAsProcess go on from checkpoints and save one after each step.
const savingBaker = "REBAKE_TEST_SAVES"

var savingText = steps(sh("a", "echo a >>log"), sh("b", "echo b >>log"), sh("c", "echo c >>log"))

// A build is killed wherever it deals with checkpoints. gc leaves nothing half,
// and the next build is right, from what was saved or from nothing.
func TestAKilledSaveIsNeverGoneOnFrom(t *testing.T) {
	t.Setenv(savingBaker, "yes")
	want := func() map[string]string {
		w := cached(t)
		return w.inventory(w.bakes("boot, a, b, c", savingText, quick))
	}()
	for _, at := range []string{"call save", "call finish", "call save #2", "call finish #2", "end save the state after \"b\"", "call save #4", "call finish #4", "call capture"} {
		t.Run(strings.NewReplacer(" ", "_", "\"", "", "#", "").Replace(at), func(t *testing.T) {
			home := t.TempDir()
			store, err := oci.Open(state.Dir(home).Store())
			if err != nil {
				t.Fatal(err)
			}
			process(t, home, at)
			w := newWorld(t, home, store)
			w.stop()
			if _, err := pipeline.GC(t.Context(), w.env); err != nil {
				t.Fatal(err)
			}
			w.nothingLeft()
			whole := func(end string) (l []string) {
				found, err := filepath.Glob(filepath.Join(w.env.State.Bases(), "checkpoints", "*"))
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range found {
					if strings.HasSuffix(f, end) {
						l = append(l, strings.TrimSuffix(f, end))
					}
				}
				return l
			}
			if all, notes, trees := whole(""), whole(".json"), whole(".tar"); len(all) != 2*len(notes) || !slices.Equal(notes, trees) {
				t.Errorf("gc left %q", all)
			}
			img := w.one(savingText, quick).Image
			got := w.inventory(img)
			for name, v := range want {
				if got[name] != v {
					t.Errorf("%s is %q, want %q", name, got[name], v)
				}
			}
			w.nothingLeft()
		})
	}
}
