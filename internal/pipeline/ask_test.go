package pipeline_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/provisioner"
)

// person answers each question with the next word, after doing something in the guest.
func (w *world) person(do string, words ...string) (asked *[]string) {
	asked = new([]string)
	w.env.Ask = func(ctx context.Context, question string, choices []string) (string, error) {
		*asked = append(*asked, question+" "+strings.Join(choices, "/"))
		ways, err := pipeline.Ways(w.env)
		if err != nil || len(ways) != 1 {
			w.t.Errorf("%d ways in, %v", len(ways), err)
			return words[0], nil
		}
		c, err := pipeline.Enter(ctx, ways[0])
		if err != nil {
			w.t.Errorf("the person cannot enter: %v", err)
			return words[0], nil
		}
		defer c.Close()
		var out bytes.Buffer
		if err := c.Run(ctx, provisioner.Cmd{Line: do, Stdout: &out, Stderr: &out}); err != nil {
			w.t.Errorf("%v: %s", err, out.String())
		}
		word := words[0]
		words = words[1:]
		return word, nil
	}
	return asked
}

// keys is a step that keeps how many keys may log in.
var keys = sh("keys", "grep -c ssh- .ssh/authorized_keys >keys")

func TestAFailedStepAsksAPerson(t *testing.T) {
	a, broken := sh("a", "echo a >>log"), sh("broken", "echo try >>log; test -e fixed")
	ask := pipeline.BakeOptions{SkipTest: true, AskFails: true}
	for _, tt := range []struct {
		name, do string
		answers  []string
		ran, log string
		fails    bool
	}{
		{"retry", "touch fixed", []string{"retry"}, "boot, a, broken, broken, keys", "a\ntry\ntry\n", false},
		{"retry in vain", "true", []string{"retry", "skip"}, "boot, a, broken, broken, keys", "a\ntry\ntry\n", false},
		{"skip", "echo person >>log", []string{"skip"}, "boot, a, broken, keys", "a\ntry\nperson\n", false},
		{"give up", "true", []string{"give up"}, "boot, a, broken", "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := cached(t)
			asked := w.person(tt.do, tt.answers...)
			text := steps(a, broken, keys)
			baked, err := w.bake(text, ask)
			if (err != nil) != tt.fails || tt.fails && !strings.Contains(err.Error(), `step "broken"`) {
				t.Fatalf("got %v", err)
			}
			if got := w.ran(); got != tt.ran {
				t.Errorf("ran %q, want %q", got, tt.ran)
			}
			if len(*asked) != len(tt.answers) || !strings.Contains((*asked)[0], "retry/skip/give up") || !strings.Contains((*asked)[0], "rebake shell") {
				t.Errorf("asked %q", *asked)
			}
			w.nothingLeft()
			if n := w.kept(); len(n) != 2 || n["boot"] != 1 || n["a"] != 1 {
				t.Errorf("kept %v: what a person had their hands in is cached", n)
			}
			if tt.fails {
				return
			}
			img := baked[0].Image
			w.holds(img, "root/log", tt.log)
			w.holds(img, "root/keys", "1\n") // the person's is gone
			if img.Lineage.InputsDigest != "" {
				t.Error("the image says that it follows from its inputs")
			}
			w.person(tt.do, "skip", "skip")
			if again, err := w.bake(text, ask); err != nil || !again[0].Changed {
				t.Errorf("the next build: %+v, %v", again, err)
			}
			if got := w.ran(); !strings.HasPrefix(got, "after a, broken") {
				t.Errorf("the next build ran %q", got)
			}
		})
	}
	w := cached(t)
	if _, err := w.bake(steps(a, broken), ask); err == nil {
		t.Error("nobody was there, and it went on")
	}
	asked := w.person("true", "skip")
	if _, err := w.bake(steps(a, broken), quick); err == nil || len(*asked) > 0 {
		t.Errorf("nobody wanted to be asked: %v, %q", err, *asked)
	}
}

func TestABreakpointWaitsForAPerson(t *testing.T) {
	w := cached(t)
	a, stop := sh("a", "echo a >>log"), `breakpoint: {name: stop, note: look around}`
	text := steps(a, stop, keys)
	w.bakes0(t, "boot, a, stop, keys", "breakpoint passed over", text) // nobody is there, and all is cached
	if w.kept()["keys"] != 1 {
		t.Errorf("kept %v", w.kept())
	}
	if got := w.bakes("", text, quick); got.Lineage.InputsDigest == "" {
		t.Error("nobody was there, and its inputs are unknown")
	}

	asked := w.person("echo person >>log", "go on")
	img := w.bakes("after a, stop, keys", text, quick) // although a later state is saved
	if len(*asked) != 1 || !strings.Contains((*asked)[0], "look around") || !strings.Contains((*asked)[0], "go on/give up") {
		t.Errorf("asked %q", *asked)
	}
	w.holds(img, "root/log", "a\nperson\n")
	w.holds(img, "root/keys", "1\n")
	if img.Lineage.InputsDigest != "" {
		t.Error("the image says that it follows from its inputs")
	}
	w.person("true", "give up")
	if _, err := w.bake(text, quick); err == nil || !strings.Contains(err.Error(), "given up") {
		t.Errorf("given up: %v", err)
	}
	w.ran()
	asked = w.person("true", "go on")
	w.bakes("", steps(a, `breakpoint: {name: stop, disable: true}`, keys), quick) // nobody's build is the same
	if len(*asked) > 0 {
		t.Errorf("a disabled one asked %q", *asked)
	}
	w.nothingLeft()
	left, err := filepath.Glob(filepath.Join(string(w.env.State), "builds", "*", "person.key"))
	if err != nil || len(left) > 0 {
		t.Errorf("left %q, %v", left, err)
	}
	if _, err := os.Stat(w.env.State.Builds()); err != nil {
		t.Error(err)
	}
}

// A person who cannot be told the way in is asked all the same, and the key that
// was already in the guest does not get into the image.
func TestTheKeyOfAWayThatFailedIsTakenOut(t *testing.T) {
	w := cached(t)
	var asked []string
	w.env.Ask = func(_ context.Context, question string, _ []string) (string, error) {
		asked = append(asked, question)
		return "skip", nil
	}
	blocked := sh("blocked", "mkdir -p ../../way.json.tmp; false") // where the way is written down, outside of the guest's tree
	img := w.one(steps(blocked, keys), pipeline.BakeOptions{SkipTest: true, AskFails: true}).Image
	if len(asked) != 1 || !strings.Contains(asked[0], "nobody can log in") {
		t.Errorf("asked %q", asked)
	}
	w.holds(img, "root/keys", "1\n")
}
