package pipeline_test

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/test/fake"
)

// sealQuickly leaves out what costs a fake guest most of its time.
const sealQuickly = "seal: {skip: [cloud-init, ssh-host-keys, random-seed, credential-secret, network, package-caches, backups, agents, leftovers, credentials, trim]}\n"

// on is a template of these steps on a builder of that config.
func on(builder string, steps ...string) string {
	return "name: web\nbuild: {fake: {" + builder + "}}\nprovision:\n  - " + strings.Join(steps, "\n  - ") + "\n" + sealQuickly
}

func steps(list ...string) string { return on("", list...) }

// sh is a step that runs a line; more are its options.
func sh(name, line string, more ...string) string {
	return fmt.Sprintf("shell: {%s}", strings.Join(append([]string{"name: " + name, fmt.Sprintf("inline: [%q]", line)}, more...), ", "))
}

var quick = pipeline.BakeOptions{SkipTest: true}

// cached is a world in which every state is saved.
func cached(t *testing.T) *world {
	w := newWorld(t, t.TempDir(), &fake.Store{})
	w.stop()
	return w
}

// bakes bakes what must go well, and compares what ran.
func (w *world) bakes(want, text string, o pipeline.BakeOptions) artifact.Image {
	w.t.Helper()
	w.ran()
	o.SkipTest = true
	img := w.one(text, o).Image
	said := w.said()
	if got := w.ran(); got != want {
		w.t.Errorf("ran %q, want %q; it said\n%s", got, want, said)
	}
	return img
}

// inventory is type, mode, owner, link target and digest of every file of an image, by
// path. Left out is what is each machine's own: SSH keys, and the end of the
// build's public key in the record of the seal.
func (w *world) inventory(img artifact.Image) map[string]string {
	w.t.Helper()
	disk := filepath.Join(w.t.TempDir(), "disk")
	if err := w.env.Store.Fetch(w.t.Context(), img.Content, disk, nil); err != nil {
		w.t.Fatal(err)
	}
	f, err := os.Open(disk)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	all := map[string]string{}
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			w.t.Fatal(err)
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, tr); err != nil {
			w.t.Fatal(err)
		}
		if !strings.HasPrefix(h.Name, "etc/ssh/ssh_host_") && h.Name != "var/lib/rebake/seal" {
			all[h.Name] = fmt.Sprintf("%c %04o %d %s %s", h.Typeflag, h.Mode, h.Uid, h.Linkname, hex.EncodeToString(sum.Sum(nil)[:8]))
		}
	}
}

// holds compares a file of an image.
func (w *world) holds(img artifact.Image, name, data string) {
	w.t.Helper()
	sum := sha256.Sum256([]byte(data))
	if got := w.inventory(img)[name]; !strings.HasSuffix(got, " "+hex.EncodeToString(sum[:8])) {
		w.t.Errorf("%s:%s: %s is %q, want the content %q", img.Name, img.Version, name, got, data)
	}
}

// kept lists the notes of all checkpoints, by the name of the state.
func (w *world) kept() map[string]int {
	w.t.Helper()
	found, err := filepath.Glob(filepath.Join(w.env.State.Bases(), "checkpoints", "*.json"))
	if err != nil {
		w.t.Fatal(err)
	}
	names := map[string]int{}
	for _, p := range found {
		var rec struct {
			Note   []byte
			Memory bool
		}
		raw, err := os.ReadFile(p)
		if err == nil {
			err = json.Unmarshal(raw, &rec)
		}
		var trail []struct{ Name string }
		if err == nil {
			err = json.Unmarshal(rec.Note, &trail)
		}
		if err != nil {
			w.t.Fatal(err)
		}
		name := trail[len(trail)-1].Name
		if !rec.Memory {
			name += " (disk)"
		}
		names[name]++
	}
	return names
}

// outside is a file of this computer that scripts read: the world outside.
func outside(t *testing.T, text string) (path string, set func(string)) {
	path = filepath.Join(t.TempDir(), "net")
	set = func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set(text)
	return path, set
}

func TestOnlyWhatChangedRuns(t *testing.T) {
	t.Parallel()
	w := cached(t)
	a, b, c := sh("a", "echo a >>log"), sh("b", "echo b >>log"), sh("c", "echo c >>log")
	w.holds(w.bakes("boot, a, b, c", steps(a, b, c), quick), "root/log", "a\nb\nc\n")
	for _, tt := range []struct {
		name, ran, log string
		steps          []string
	}{
		{"the last step changed", "after b, c", "a\nb\nc2\n", []string{a, b, sh("c", "echo c2 >>log")}},
		{"one was added", "after c, d", "a\nb\nc\nd\n", []string{a, b, c, sh("d", "echo d >>log")}},
		{"one was taken away", "after a, c", "a\nc\n", []string{a, c}},
		{"one was put between", "after a, x, b, c", "a\nx\nb\nc\n", []string{a, sh("x", "echo x >>log"), b, c}},
		{"two changed places", "after c, b", "a\nc\nb\n", []string{a, c, b}},
		{"the first changed", "after boot, a, b", "a2\nb\n", []string{sh("a", "echo a2 >>log"), b}},
		{"another name", "after a, two, c", "a\n2\nc\n", []string{a, sh("two", "echo 2 >>log"), c}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.t = t
			w.holds(w.bakes(tt.ran, steps(tt.steps...), quick), "root/log", tt.log)
		})
	}
	w.t = t
	w.bakes("boot, a", on("motd: another", a), quick)
	w.nothingLeft()
}

func TestACachedStepIsNoStepOfAnotherKind(t *testing.T) {
	w := cached(t)
	w.bakes("boot, a", steps(`file: {name: a, content: x, destination: /srv/x}`), quick)
	w.bakes("after boot, a", steps(sh("a", "true")), quick)
}

func TestAFailedBuildGoesOnWhereItFailed(t *testing.T) {
	w := cached(t)
	a, c := sh("a", "echo a >>log"), sh("c", "echo c >>log")
	for _, bad := range []string{"echo half >half; exit 3", "rm log; exit 4"} {
		if _, err := w.bake(steps(a, sh("b", bad), c), quick); err == nil {
			t.Fatal("it did not fail")
		}
	}
	img := w.bakes("after a, b, c", steps(a, sh("b", "test ! -e half; echo b >>log"), c), quick)
	w.holds(img, "root/log", "a\nb\nc\n")
	w.nothingLeft()
}

func TestNoCacheRunsAllAndIsGoneOnFrom(t *testing.T) {
	w := cached(t)
	path, set := outside(t, "1")
	a, b, c := sh("a", "cat "+path+" >got"), sh("b", "cat "+path+" >>got"), sh("c", "true")
	w.bakes("boot, a, b, c", steps(a, b, c), quick)
	set("2")
	w.holds(w.bakes("boot, a, b, c", steps(a, b, c), pipeline.BakeOptions{NoCache: true}), "root/got", "22")
	w.holds(w.bakes("after b, c", steps(a, b, sh("c", ": changed")), quick), "root/got", "22")
	set("3")
	w.told = nil // no step takes long: what is outdated is saved anew for all that
	w.holds(w.bakes("after a, b, c", steps(a, b, c), pipeline.BakeOptions{NoCacheFrom: "b"}), "root/got", "23")
	w.holds(w.bakes("after b, c", steps(a, b, sh("c", ": changed again")), quick), "root/got", "23")
	if _, err := w.bake(steps(a), pipeline.BakeOptions{NoCacheFrom: "nobody"}); err == nil || !strings.Contains(err.Error(), `no step "nobody"`) {
		t.Errorf("a step that is not there: %v", err)
	}
}

func TestTimeMakesAStateUseless(t *testing.T) {
	t.Parallel()
	daily := pipeline.BakeOptions{MaxAge: pipeline.DefaultMaxAge}
	f := `file: {name: f, content: x, destination: /srv/x}`
	for _, tt := range []struct {
		name, options string
		file          bool
		o             pipeline.BakeOptions
		wait          time.Duration
		ran           string
	}{
		{"a script in time", "", false, daily, 20*time.Hour - time.Minute, "after a, last"},
		{"a script too late", "", false, daily, 20 * time.Hour, "after boot, a, last"},
		{"a script whatever --max-age says", "", false, pipeline.BakeOptions{MaxAge: 1000 * time.Hour}, 20 * time.Hour, "after boot, a, last"},
		{"a script without --max-age", "", false, pipeline.BakeOptions{}, 20 * time.Hour, "after boot, a, last"},
		{"a shorter --max-age", "", false, pipeline.BakeOptions{MaxAge: time.Minute}, time.Minute, "after boot, a, last"},
		{"its own shorter age", "cache: {max_age: 1h}", false, daily, time.Hour, "after boot, a, last"},
		{"its own longer age", "cache: {max_age: 240h}", false, daily, 239 * time.Hour, "after a, last"},
		{"its own longer age too late", "cache: {max_age: 240h}", false, daily, 240 * time.Hour, "after boot, a, last"},
		{"for ever", "cache: {max_age: 0s}", false, daily, 10000 * time.Hour, "after a, last"},
		{"a file", "", true, pipeline.BakeOptions{}, 10000 * time.Hour, "after f, last"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := cached(t)
			last := `file: {name: last, content: "%d", destination: /srv/last}`
			a := f
			if !tt.file {
				a = sh("a", "true", slices.DeleteFunc([]string{tt.options}, func(s string) bool { return s == "" })...)
			}
			w.one(steps(a, fmt.Sprintf(last, 1)), tt.o)
			w.time.forward(tt.wait)
			w.bakes(tt.ran, steps(a, fmt.Sprintf(last, 2)), tt.o)
			if strings.HasPrefix(tt.ran, "after boot") { // what was made anew is gone on from
				w.bakes("after a, last", steps(a, fmt.Sprintf(last, 3)), tt.o)
			}
		})
	}
}

// An image is as old as its oldest step, not as the bake that ended it.
func TestTimeMakesAnImageUseless(t *testing.T) {
	daily := pipeline.BakeOptions{MaxAge: pipeline.DefaultMaxAge}
	w := cached(t)
	a := sh("a", "true")
	w.one(steps(a), daily)
	w.time.forward(15 * time.Hour)
	text := steps(a, sh("b", "true"))
	w.bakes("after a, b", text, daily)
	w.bakes("", text, daily)
	w.time.forward(5 * time.Hour)
	w.bakes("after boot, a, b", text, daily)
	w.time.forward(19 * time.Hour)
	w.bakes("", text, daily)
	w.time.forward(1000 * time.Hour)
	w.bakes("", text, pipeline.BakeOptions{}) // --max-age 0

	long := steps(sh("a", "true", "cache: {max_age: 720h}"), `file: {name: f, content: x, destination: /srv/x}`)
	w.bakes("after boot, a, f", long, daily)
	w.time.forward(719 * time.Hour)
	w.bakes("", long, daily)
	w.time.forward(time.Hour)
	w.bakes("after boot, a, f", long, daily)
}

func TestRefreshAsksTheGuest(t *testing.T) {
	w := cached(t)
	daily := pipeline.BakeOptions{MaxAge: pipeline.DefaultMaxAge}
	path, set := outside(t, "1")
	r := sh("r", "cat "+path+" >>got", fmt.Sprintf("cache: {refresh: %q}", "cat "+path))
	last := `file: {name: last, content: x, destination: /srv/last}`
	w.holds(w.bakes("boot, r, last", steps(r, last), daily), "root/got", "1")

	w.time.forward(24 * time.Hour) // the next night
	if b, err := w.bake(steps(r, last), daily); err != nil || b[0].Changed {
		t.Errorf("the same answer: %+v, %v", b, err)
	}
	if !strings.Contains(w.said(), "nothing changed since web:") {
		t.Error("it does not say that nothing changed")
	}
	if got := w.ran(); !strings.HasSuffix(got, "after boot") {
		t.Errorf("the same answer: ran %q", got)
	}
	set("2")
	w.holds(w.bakes("after boot, r, last", steps(r, last), daily), "root/got", "2")
	set("1") // a later state is known by this answer, and is jumped to
	other := `file: {name: last, content: y, destination: /srv/last}`
	w.holds(w.bakes("after boot, after r, last", steps(r, other), daily), "root/got", "1")
	w.nothingLeft()

	if plans, err := pipeline.MakePlan(t.Context(), w.env, w.load(steps(r, other)), daily); err != nil || plans[0].Inputs != "" || plans[0].Current != "" {
		t.Errorf("a plan asks nobody: %+v, %v", plans, err)
	}
	for line, want := range map[string]string{"exit 1": "", "exit 2": "cache.refresh"} {
		_, err := w.bake(steps(sh("r", "true", fmt.Sprintf("cache: {refresh: %q}", line))), quick)
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `step "r"`)) {
			t.Errorf("a refresh command that ends with %s: %v", line, err)
		}
	}
}

// Two refresh commands: the second is asked in the state after the first step.
func TestRefreshOfALaterStep(t *testing.T) {
	w := cached(t)
	path, set := outside(t, "1")
	r := func(name string) string {
		return sh(name, "cat "+path+" >>"+name, fmt.Sprintf("cache: {refresh: %q}", "cat "+path+" "+name+" 2>/dev/null || true"))
	}
	text := steps(r("r"), sh("m", "echo m >m"), r("s"), sh("last", "true"))
	w.bakes("boot, r, m, s, last", text, quick)
	w.bakes("after boot, after m", text, quick) // asked twice, and nothing changed
	set("2")
	img := w.bakes("after boot, r, m, s, last", text, quick)
	w.holds(img, "root/r", "2")
	w.holds(img, "root/s", "2")
}

// files are the checkpoints' files that end so.
func (w *world) files(end string) []string {
	w.t.Helper()
	found, err := filepath.Glob(filepath.Join(w.env.State.Bases(), "checkpoints", "*"+end))
	if err != nil || len(found) == 0 {
		w.t.Fatalf("no checkpoint: %v", err)
	}
	return found
}

func TestAStateThatCannotBeGoneOnFromCostsABootAtMost(t *testing.T) {
	t.Parallel()
	fail := func(op string) func(*world) {
		return func(w *world) {
			w.before = func(_ context.Context, at, _ string) error {
				if at == op {
					return errors.New("the computer says no")
				}
				return nil
			}
		}
	}
	rewrite := func(change func(raw []byte) []byte) func(*world) {
		return func(w *world) {
			for _, p := range w.files(".json") {
				raw, err := os.ReadFile(p)
				if err == nil {
					err = os.WriteFile(p, change(raw), 0o600)
				}
				if err != nil {
					w.t.Fatal(err)
				}
			}
		}
	}
	note := func(to string) func(*world) {
		return rewrite(func(raw []byte) []byte {
			var rec map[string]any
			_ = json.Unmarshal(raw, &rec)
			rec["Note"] = []byte(to)
			out, _ := json.Marshal(rec)
			return out
		})
	}
	for name, tt := range map[string]struct {
		harm func(*world)
		ran  string
		says string
	}{
		"its note is no note":              {harm: note("?"), ran: "boot, a, b, last"},
		"its note is of something else":    {harm: note(`[{"name":"boot"},{"name":"a"}]`), ran: "boot, a, b, last"},
		"it is torn":                       {harm: rewrite(func(raw []byte) []byte { return raw[:len(raw)/2] }), ran: "boot, a, b, last"},
		"its disk is gone":                 {harm: func(w *world) { remove(w.t, w.files(".tar")) }, ran: "after b, after a, after boot, boot, a, b, last", says: `cannot go on after "b"`},
		"it cannot be read":                {harm: fail("find"), ran: "boot, a, b, last", says: "a checkpoint cannot be read: the computer says no"},
		"its machine does not start":       {harm: fail("bootfrom"), ran: "after b, after a, after boot, boot, a, b, last", says: "the computer says no"},
		"its guest does not answer":        {harm: rewrite(func(raw []byte) []byte { return []byte(strings.Replace(string(raw), `"Login":"`, `"Login":"AAAA`, 1)) }), ran: "after b, after a, after boot, boot, a, b, last", says: "cannot go on"},
		"its guest cannot be reseeded now": {ran: "after b, after a, last", says: "cannot be reseeded"},
	} {
		t.Run(name, func(t *testing.T) {
			w := cached(t)
			a, b := sh("a", "echo a >>log"), sh("b", "echo b >>log")
			want := "a\nb\n"
			if tt.harm == nil { // from then on it goes on from what is before that step
				b, want, tt.ran = sh("b", "touch ../etc/no-reseed; echo b >>log"), "a\nb\n", "after b, after a, b, last"
			}
			w.bakes("boot, a, b, last", steps(a, b, sh("last", "true")), quick)
			if tt.harm != nil {
				tt.harm(w)
			}
			img := w.bakes0(t, tt.ran, tt.says, steps(a, b, sh("last", ": changed")))
			w.holds(img, "root/log", want)
			w.nothingLeft()
			w.before = nil
			if tt.harm != nil { // it has healed
				w.holds(w.bakes("after b, last", steps(a, b, sh("last", ": again")), quick), "root/log", want)
			}
		})
	}
}

func (w *world) bakes0(t *testing.T, ran, says, text string) artifact.Image {
	t.Helper()
	w.ran()
	img := w.one(text, quick).Image
	said := w.said()
	if n := strings.Count(said, says); n == 0 {
		t.Errorf("it does not say %q but\n%s", says, said)
	}
	if got := w.ran(); got != ran {
		t.Errorf("ran %q, want %q", got, ran)
	}
	return img
}

func remove(t testing.TB, paths []string) {
	t.Helper()
	for _, p := range paths {
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAStateThatCannotBeSavedCostsNothingElse(t *testing.T) {
	for op, tt := range map[string]struct{ says string }{
		"save":   {"no more checkpoints in this build: no space left"},
		"finish": {"a checkpoint was not kept: no space left"},
	} {
		t.Run(op, func(t *testing.T) {
			w := cached(t)
			w.before = func(_ context.Context, at, _ string) error {
				if at == op {
					return errors.New("no space left")
				}
				return nil
			}
			text := steps(sh("a", "echo a >>log"), sh("b", "echo b >>log"))
			w.holds(w.bakes("boot, a, b", text, quick), "root/log", "a\nb\n")
			w.ran()
			w.bakes0(t, "boot, a, b", tt.says, steps(sh("a", "echo a >>log"), sh("b", "echo b >>log; true")))
			if n := len(w.kept()); n > 0 {
				t.Errorf("%d checkpoints", n)
			}
			w.nothingLeft()
			w.before = nil
			w.one(text, pipeline.BakeOptions{SkipTest: true, Force: true})
			if n := len(w.kept()); n != 3 {
				t.Errorf("%d checkpoints once there is space, want 3", n)
			}
		})
	}
	w := cached(t)
	saves := 0
	w.before = func(_ context.Context, at, _ string) error {
		if at == "save" {
			if saves++; saves == 2 {
				return errors.New("no space left")
			}
		}
		return nil
	}
	w.bakes("boot, a, b, c", steps(sh("a", "true"), sh("b", "true"), sh("c", "true")), quick)
	if got := w.kept(); saves != 2 || !maps.Equal(got, map[string]int{"boot": 1}) {
		t.Errorf("%d tries, kept %v: the disk is full, and it does not stop trying", saves, got)
	}
}

func TestTheCacheIsBoundedAfterABuild(t *testing.T) {
	w := cached(t)
	a, b := sh("a", "true"), sh("b", "true")
	w.one(steps(a, b), quick)
	if n := w.kept(); len(n) != 3 {
		t.Fatalf("kept %v", n)
	}
	long := time.Now().Add(-time.Hour) // the clock of the files
	for _, p := range w.files(".json") {
		if err := os.Chtimes(p, long, long); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := pipeline.Cached(t.Context(), w.env)
	if err != nil {
		t.Fatal(err)
	}
	w.env.MaxCache = entries[0].Size*2 + entries[0].Size/2
	w.ran()
	w.one(steps(a, sh("c", ": c")), quick) // goes on after a: used now
	if said := w.said(); strings.Count(said, "cache over its bound: removed checkpoint") != 2 {
		t.Errorf("it said\n%s", said)
	}
	if got, want := w.kept(), map[string]int{"a": 1, "c": 1}; !maps.Equal(got, want) {
		t.Errorf("kept %v, want %v: what was used last", got, want)
	}
	w.bakes("after a, d", steps(a, sh("d", ": d")), quick)
	if left := slices.Concat(w.files(".json"), w.files(".tar")); len(left) != 4 {
		t.Errorf("left %q", left)
	}
}

func TestAGuestThatCannotBeReseededIsSavedWithoutItsMemory(t *testing.T) {
	for name, tt := range map[string]struct{ builder, mem string }{
		"reseeded": {"", "m\n"},
		"not":      {"old: true", "no\n"},
	} {
		t.Run(name, func(t *testing.T) {
			w := cached(t)
			a := sh("a", "echo m >../run/mem; echo a >log")
			look := sh("look", "cat ../run/mem >>log || echo no >>log")
			w.one(on(tt.builder, a, sh("b", "true")), quick)
			disk := 0
			for k := range w.kept() {
				if strings.HasSuffix(k, "(disk)") {
					disk++
				}
			}
			warned := strings.Count(w.said(), "checkpoints hold the disk alone")
			if old := tt.builder != ""; old && (disk != 3 || warned != 1) || !old && (disk != 0 || warned != 0) {
				t.Errorf("%d of %v are of the disk alone, said %d times", disk, w.kept(), warned)
			}
			w.holds(w.bakes("after a, look", on(tt.builder, a, look), quick), "root/log", "a\n"+tt.mem)
		})
	}
}

// What a step takes, and what saving takes, is told to the clock.
func TestAStateIsSavedIfThatPays(t *testing.T) {
	w := cached(t)
	w.told = func(e event.Event) {
		if d, ok := strings.CutPrefix(e.Text, "takes "); ok && e.Kind == event.Output {
			by, err := time.ParseDuration(d)
			if err != nil {
				t.Error(err)
			}
			w.time.forward(by)
		}
	}
	w.before = func(_ context.Context, op, _ string) error {
		if op == "save" {
			w.time.forward(time.Second)
		}
		return nil
	}
	takes := func(name, d string) string { return sh(name, "echo takes "+d) }
	short, long := takes("short", "400ms"), takes("long", "5s")
	w.one(steps(short, long, takes("two", "600ms"), takes("three", "300ms")), quick)
	if got, want := w.kept(), map[string]int{"boot": 1, "long": 1}; !maps.Equal(got, want) {
		t.Errorf("kept %v, want %v", got, want)
	}
	// Short ones add up.
	w.one(steps(short, long, takes("four", "400ms"), takes("five", "400ms"), takes("six", "400ms"), takes("seven", "400ms")), quick)
	if got, want := w.kept(), map[string]int{"boot": 1, "long": 1, "six": 1}; !maps.Equal(got, want) {
		t.Errorf("kept %v, want %v", got, want)
	}
}

func TestWhatIsEditedWhileItIsBakedIsNotCached(t *testing.T) {
	t.Parallel()
	for name, step := range map[string]string{
		"a file step's source": `file: {name: copy, source: src/, destination: /srv/src}`,
		"a declared input":     sh("copy", "true", "inputs: [src]"),
	} {
		t.Run(name, func(t *testing.T) {
			w := cached(t)
			dir := t.TempDir()
			write := func(text string) {
				p := filepath.Join(dir, "src", "page")
				if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o700), os.WriteFile(p, []byte(text), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			write("one")
			tick := w.told
			w.told = func(e event.Event) {
				tick(e)
				if e.Kind == event.Start && e.Name == "provision: copy" {
					write("two")
				}
			}
			bake := func() []pipeline.Baked {
				t.Helper()
				baked, err := pipeline.Bake(w.record(t.Context()), w.env, w.loadIn(dir, steps(step, sh("b", "true"))), quick)
				if err != nil {
					t.Fatal(err)
				}
				return baked
			}
			first := bake()[0]
			if first.Image.Lineage.InputsDigest != "" || !strings.Contains(w.said(), "changed while it was baked") {
				t.Errorf("inputs %q; it said\n%s", first.Image.Lineage.InputsDigest, w.said())
			}
			if got, want := w.kept(), map[string]int{"boot": 1}; !maps.Equal(got, want) {
				t.Errorf("kept %v, want %v", got, want)
			}
			w.told = tick
			write("one")
			w.ran()
			if b := bake()[0]; !b.Changed {
				t.Error("the file is as it was, and the image that has another is taken for its own")
			}
			if got := w.ran(); got != "after boot, copy, b" {
				t.Errorf("ran %q", got)
			}
		})
	}
}
