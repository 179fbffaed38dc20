package pipeline_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/state"
)

// baker makes the test binary a process that bakes in this state directory.
// Each of its boundaries (an event, a method of the builder) is a line on
// stdout; at the one that is named by haltAt it stands still for good.
const baker, haltAt = "REBAKE_TEST_BAKER", "REBAKE_TEST_HALT_AT"

func TestMain(m *testing.M) {
	if home := os.Getenv(baker); home != "" {
		bakeAsProcess(home)
		return
	}
	os.Exit(m.Run())
}

// slow is web with a step that runs a command for long, unless it is told not to.
func slow(seconds string) string {
	return web("  - shell: {name: slow, inline: [\"echo STEP-RUNS\", \"sleep "+seconds+"\"]}\n", "")
}

func bakeAsProcess(home string) {
	store, err := oci.Open(state.Dir(home).Store())
	if err != nil {
		fmt.Println("failed:", err)
		return
	}
	t := &processT{}
	defer t.cleanUp()
	w := newWorld(t, home, store)
	var mu sync.Mutex
	seen, saves := map[string]int{}, os.Getenv(savingBaker) != ""
	boundary := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		if seen[what]++; saves && seen[what] > 1 {
			what = fmt.Sprintf("%s #%d", what, seen[what])
		}
		fmt.Println("at", what)
		if what == os.Getenv(haltAt) {
			select {} // holding the lock: nothing more is told, other goroutines go on until they tell something
		}
	}
	w.before = func(_ context.Context, op, id string) error {
		if _, test, ok := strings.Cut(id, "-"); ok {
			op += " " + test
		}
		boundary("call " + op)
		return nil
	}
	sleep := "0"
	if os.Getenv(haltAt) == "output STEP-RUNS" {
		sleep = "987654"
	}
	ctx := event.With(context.Background(), func(e event.Event) {
		switch e.Kind {
		case event.Start, event.End:
			boundary(string(e.Kind) + " " + e.Name)
		case event.Output:
			boundary("output " + e.Text)
		}
	}, &w.red)
	tpl := w.load(slow(sleep), "release="+os.Getenv(haltAt)) // nothing of it is saved yet
	o := pipeline.BakeOptions{Force: true, NoCache: true}
	if saves {
		tpl, o = w.load(savingText), pipeline.BakeOptions{SkipTest: true}
	}
	w.stop() // each run comes by the same boundaries: whether a state is worth saving is a matter of time
	ctx = event.Tee(ctx, w.told)
	if _, err := pipeline.Bake(ctx, w.env, tpl, o); err != nil {
		fmt.Println("failed:", err)
		return
	}
	fmt.Println("baked")
}

// processT is as much of a testing.TB as the world needs outside of a test.
type processT struct {
	testing.TB
	dirs []string
}

func (t *processT) Helper() {}
func (t *processT) TempDir() string {
	dir, err := os.MkdirTemp(os.Getenv(baker), "template")
	if err != nil {
		t.Fatal(err)
	}
	t.dirs = append(t.dirs, dir)
	return dir
}
func (t *processT) Fatal(a ...any) { panic(fmt.Sprint(a...)) }
func (t *processT) cleanUp() {
	for _, d := range t.dirs {
		os.RemoveAll(d)
	}
}

// process bakes in home and is killed at the boundary; "" lets it end. It
// returns the boundaries that it came by.
func process(t *testing.T, home, at string) (seen []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), baker+"="+home, haltAt+"="+at)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	last := ""
	for in := bufio.NewScanner(out); in.Scan(); {
		last = in.Text()
		what, ok := strings.CutPrefix(last, "at ")
		if !ok {
			continue
		}
		seen = append(seen, what)
		if what == at {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	_, _ = io.Copy(io.Discard, out)
	err = cmd.Wait()
	forksEnd(t, home)
	if at == "" && (err != nil || last != "baked") {
		t.Fatalf("the baker ended with %q, %v", last, err)
	}
	if at != "" && (err == nil || !slices.Contains(seen, at)) {
		t.Fatalf("the baker never came to %q: %q", at, seen)
	}
	return seen
}

// forksEnd waits for what the baker had forked and was not yet another program
// when it was killed: it holds the baker's locks until then.
func forksEnd(t *testing.T, home string) {
	t.Helper()
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return // no such file system here
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		pids, err := filepath.Glob("/proc/[0-9]*")
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(pids, func(pid string) bool {
			exe, err := os.Readlink(pid + "/exe")
			if err != nil || exe != self {
				return false
			}
			environ, err := os.ReadFile(pid + "/environ")
			return err == nil && strings.Contains("\x00"+string(environ), "\x00"+baker+"="+home+"\x00")
		}) {
			return
		}
	}
	t.Fatal("a fork of the killed baker does not end")
}

// A build is killed at every boundary there is. What it left is named, gc takes
// it away, all of it, and nothing of the build that goes on beside it.
func TestAKilledBakeIsSweptWhereverItWasKilled(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	store, err := oci.Open(state.Dir(home).Store())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, home, store)
	seen := process(t, home, "")
	w.nothingLeft()
	var at []string
	for _, b := range seen {
		kind, _, _ := strings.Cut(b, " ") // most ends are where the next begins
		if !slices.Contains(at, b) && (kind == "start" || kind == "call" || slices.Contains([]string{"output STEP-RUNS", "end capture", "end test", "end register"}, b)) {
			at = append(at, b)
		}
	}
	for _, want := range []string{"call boot", "start connect", "output STEP-RUNS", "start seal", "call capture", "call boottest t2", "call destroy t1", "end register", "call destroy"} {
		if !slices.Contains(at, want) {
			t.Fatalf("no boundary %q: the test is blind; there are %q", want, at)
		}
	}
	beside, end := neighbour(t, home, store)
	for _, b := range at {
		t.Run(b, func(t *testing.T) {
			w := newWorld(t, home, store)
			before := len(w.images())
			process(t, home, b)
			left := w.builds()
			if b != "call key" && b != "end register" && len(left) == len(beside) {
				t.Errorf("the kill left nothing: %q", left)
			}
			if b == "output STEP-RUNS" && !strings.Contains(strings.Join(left, " "), "processes") {
				t.Errorf("the step's command is not seen: the test is blind: %q", left)
			}
			gone, err := pipeline.GC(t.Context(), w.env)
			if err != nil {
				t.Fatal(err)
			}
			if b != "call key" && len(gone) == 0 {
				t.Error("gc says that it removed nothing")
			}
			if after := w.builds(); !slices.Equal(after, beside) {
				t.Errorf("after gc there is %q, want %q", after, beside)
			}
			if again, err := pipeline.GC(t.Context(), w.env); err != nil || len(again) > 0 {
				t.Errorf("a second gc removed %+v, %v", again, err)
			}
			made := len(w.images()) - before
			if late := b == "end register" || b == "call destroy" || b == "call destroy t1" || b == "call destroy t2"; made > 1 || made > 0 && !late {
				t.Errorf("%d images were registered", made)
			}
			for _, img := range w.images() {
				if err := store.Verify(t.Context(), img, nil); err != nil {
					t.Errorf("%s:%s: %v", img.Name, img.Version, err)
				}
			}
		})
	}
	end()
	w.nothingLeft()
}

// neighbour is a build of this process that stands in a step until end. It
// returns what it has in builds/.
func neighbour(t *testing.T, home string, store artifact.Store) (has []string, end func()) {
	t.Helper()
	w := newWorld(t, home, store)
	ctx, cancel := context.WithCancel(t.Context())
	running, done := make(chan struct{}), make(chan error, 1)
	var once sync.Once
	ctx = w.record(ctx, func(e event.Event) {
		if strings.Contains(e.Text, "STEP-RUNS") {
			once.Do(func() { close(running) })
		}
	})
	go func() {
		_, err := pipeline.Bake(ctx, w.env, w.load(slow("987654")), pipeline.BakeOptions{Force: true, NoCache: true})
		done <- err
	}()
	select {
	case <-running:
	case err := <-done:
		t.Fatalf("the neighbour ended: %v", err)
	}
	return w.builds(), func() {
		select {
		case err := <-done:
			t.Fatalf("the neighbour was ended: %v", err)
		default:
		}
		cancel()
		<-done
	}
}

func TestGCTakesWhatIsHalfWritten(t *testing.T) {
	for name, files := range map[string][]string{
		"a lock alone":              {"01j.lock"},
		"a claim that was cut off":  {"01j.lock", "01j.json.tmp"},
		"a machine without a claim": {"01j/disk"},
		"a test machine, no lock":   {"01j-t1/console"},
		"a gc that was cut off":     {"01j.lock", "01j-t2/console"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, t.TempDir(), nil)
			destroy := w.env.Backends.Destroy
			w.env.Backends.Destroy = func(env pipeline.Env, kind string) func(string) error {
				if kind == "qemu" { // the kind of a build without a claim
					kind = "fake"
				}
				return destroy(env, kind)
			}
			for _, f := range files {
				p := filepath.Join(w.env.State.Builds(), f)
				if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(p, []byte("{"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if gone, err := pipeline.GC(t.Context(), w.env); err != nil || len(gone) != 1 {
				t.Errorf("removed %+v, %v", gone, err)
			}
			w.nothingLeft()
			if gone, err := pipeline.GC(t.Context(), w.env); err != nil || len(gone) != 0 {
				t.Errorf("a second gc removed %+v, %v", gone, err)
			}
		})
	}
}

func TestGCLeavesWhatItDoesNotKnow(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	builds := w.env.State.Builds()
	if err := os.MkdirAll(filepath.Join(builds, "01j"), 0o700); err != nil {
		t.Fatal(err)
	}
	for claim, want := range map[string]string{`{"id":"01j","kind":"cloud"}`: `unknown builder "cloud"`, "{": "delete it by hand"} {
		if err := os.WriteFile(filepath.Join(builds, "01j.json"), []byte(claim), 0o600); err != nil {
			t.Fatal(err)
		}
		if gone, err := pipeline.GC(t.Context(), w.env); err == nil || !strings.Contains(err.Error(), want) || len(gone) > 0 {
			t.Errorf("claim %s: removed %+v, %v", claim, gone, err)
		}
		if _, err := os.Stat(filepath.Join(builds, "01j")); err != nil {
			t.Errorf("claim %s: %v", claim, err)
		}
	}
}

// A machine that cannot be destroyed is left to gc, which is said.
func TestWhatCannotBeDestroyedIsLeftToGC(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	broken := true
	w.before = func(_ context.Context, op, id string) error {
		if op == "destroy" && broken {
			return fmt.Errorf("the computer says no")
		}
		return nil
	}
	_, err := w.bake(web("  - shell: {inline: [\"exit 1\"]}\n", ""), pipeline.BakeOptions{})
	if err == nil || !strings.Contains(err.Error(), pipeline.ErrLeftovers.Error()) || !strings.Contains(err.Error(), "rebake gc") {
		t.Errorf("got %v", err)
	}
	if len(w.builds()) == 0 {
		t.Fatal("nothing was left: the test is blind")
	}
	if gone, err := pipeline.GC(t.Context(), w.env); err != nil || len(gone) != 1 {
		t.Errorf("removed %+v, %v", gone, err)
	}
	w.nothingLeft()
}
