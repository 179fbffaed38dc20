package pipeline_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/test/fake"
	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

func TestABakeRegistersAnImage(t *testing.T) {
	w := newWorld(t, t.TempDir(), &fake.Store{})
	b := w.one(web("", ""), pipeline.BakeOptions{Tags: []string{"extra"}}, "release=7")
	if !b.Changed || b.Image.Name != "web" || !regexp.MustCompile(`^\d{8}\.1$`).MatchString(b.Image.Version) {
		t.Errorf("baked %+v", b)
	}
	for _, tag := range []string{"latest", "nightly", "extra", b.Image.Version} {
		ref, err := artifact.ParseRef("web:" + tag)
		if err != nil {
			t.Fatal(err)
		}
		if img, err := w.env.Store.Resolve(t.Context(), ref); err != nil || img.Digest != b.Image.Digest {
			t.Errorf("%s is %s, %v", ref, img.Digest, err)
		}
	}
	if len(passed(b.Image.Tests)) != len(b.Image.Tests) || len(b.Image.Tests) < 6 {
		t.Errorf("tests %+v", b.Image.Tests)
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := w.env.Store.Fetch(t.Context(), b.Image.Content, disk, nil); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(disk)
	if err != nil || !bytes.Contains(raw, []byte("release 7\n")) {
		t.Errorf("the stored disk lacks what was baked (%v)", err)
	}
	for _, secret := range []string{"ssh-ed25519 AAAA", "PRIVATE KEY", "s3cr3t"} {
		if bytes.Contains(raw, []byte(secret)) {
			t.Errorf("the stored disk holds %q", secret)
		}
	}
	if l := b.Image.Lineage; l.BuildID == "" || l.Parent != "fake" || l.TemplateDigest == "" || l.Builder != "fake" || l.Rebake != "test" {
		t.Errorf("lineage %+v", l)
	}
	w.nothingLeft()
}

func TestNothingChangedNothingDone(t *testing.T) {
	w := newWorld(t, t.TempDir(), &fake.Store{})
	first := w.one(web("", ""), pipeline.BakeOptions{})
	boots := 0
	w.before = func(_ context.Context, op, _ string) error {
		if op == "boot" || op == "prepare" {
			boots++
		}
		return nil
	}
	again := w.one(web("", ""), pipeline.BakeOptions{Tags: []string{"moved"}})
	if again.Changed || again.Image.Digest != first.Image.Digest || boots > 0 {
		t.Errorf("changed %v, %d boots", again.Changed, boots)
	}
	ref, err := artifact.ParseRef("web:moved")
	if err != nil {
		t.Fatal(err)
	}
	if img, err := w.env.Store.Resolve(t.Context(), ref); err != nil || img.Digest != first.Image.Digest {
		t.Errorf("a tag that was asked for is at %s, %v", img.Digest, err)
	}
	for name, f := range map[string]func() pipeline.Baked{
		"another value": func() pipeline.Baked { return w.one(web("", ""), pipeline.BakeOptions{SkipTest: true}, "release=2") },
		"another test": func() pipeline.Baked {
			return w.one(web("", "  - command: {run: \"true\"}\n"), pipeline.BakeOptions{SkipTest: true})
		},
		"--force": func() pipeline.Baked { return w.one(web("", ""), pipeline.BakeOptions{Force: true, SkipTest: true}) },
		"a named version": func() pipeline.Baked {
			return w.one(web("", ""), pipeline.BakeOptions{Version: "1.0.0", SkipTest: true})
		},
		"another base": func() pipeline.Baked {
			return w.one(strings.Replace(web("", ""), "fake: {}", "fake: {motd: hello}", 1), pipeline.BakeOptions{SkipTest: true})
		},
	} {
		if b := f(); !b.Changed {
			t.Errorf("%s: nothing was done", name)
		}
	}
	if _, err := w.bake(web("", ""), pipeline.BakeOptions{Version: "1.0.0"}, "release=3"); !errors.Is(err, artifact.ErrExists) {
		t.Errorf("other inputs under a version that exists: %v", err)
	}
}

func TestAFailedStepRegistersNothingAndLeavesNothing(t *testing.T) {
	w := newWorld(t, t.TempDir(), &fake.Store{})
	steps := "  - shell: {name: broken, inline: [\"sleep 1000 >/dev/null 2>&1 &\", \"echo about to fail >&2\", \"exit 9\"]}\n"
	_, err := w.bake(web(steps, ""), pipeline.BakeOptions{})
	for _, want := range []string{`step "broken"`, "exit status 9"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v lacks %q", err, want)
		}
	}
	if n := len(w.images()); n != 0 {
		t.Errorf("%d images", n)
	}
	if w.began("seal") || w.began("capture") {
		t.Error("it went on after the failure")
	}
	w.nothingLeft()
	logs := w.logs()
	if !strings.Contains(logOf(logs, "-console.log"), "is up") || !strings.Contains(fmt.Sprint(logs), "about to fail") {
		t.Errorf("the evidence is not kept: %q", logs)
	}
	if !strings.Contains(w.said(), "the build's log: "+w.env.State.Logs()) {
		t.Error("nobody says where the log is")
	}
}

func TestAFailedTestRegistersNothingAndKeepsTheEvidence(t *testing.T) {
	for name, test := range map[string]string{
		"a check of the template": "  - command: {run: \"echo seen-by-nobody; exit 3\"}\n",
		"a port with no service":  "  - http: {port: 8081, within: 10ms}\n",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, t.TempDir(), &fake.Store{})
			_, err := w.bake(web("", test), pipeline.BakeOptions{})
			if !errors.Is(err, pipeline.ErrTestFailed) {
				t.Fatalf("got %v, want ErrTestFailed", err)
			}
			if n := len(w.images()); n != 0 {
				t.Errorf("%d images", n)
			}
			logs := w.logs()
			if text := logOf(logs, "-t1-console.log"); !strings.Contains(text, "is up") {
				t.Errorf("the test machine's console is not kept: %v", logs)
			}
			if strings.HasPrefix(name, "a check") && !strings.Contains(err.Error(), "seen-by-nobody") {
				t.Errorf("the evidence is not in %v", err)
			}
			w.nothingLeft()
		})
	}
}

// A sealed image that does not come up has only its console to show.
func TestAnImageThatDoesNotBootIsNotRegistered(t *testing.T) {
	w := newWorld(t, t.TempDir(), &fake.Store{})
	w.before = func(ctx context.Context, op, id string) error {
		if op == "endpoint" && strings.HasSuffix(id, "-t2") {
			if err := w.builder().Destroy(ctx, id); err != nil { // from behind: as if it had crashed
				return err
			}
		}
		return nil
	}
	_, err := w.bake(web("", ""), pipeline.BakeOptions{})
	if err == nil || !strings.Contains(err.Error(), "does not boot to SSH") {
		t.Errorf("got %v", err)
	}
	if n := len(w.images()); n != 0 {
		t.Errorf("%d images", n)
	}
	w.nothingLeft()
}

func TestCancelDestroysTheMachine(t *testing.T) {
	cause := errors.New("told to stop")
	for name, at := range map[string]func(e event.Event) bool{
		"while it boots":      func(e event.Event) bool { return e.Kind == event.Start && e.Name == "boot fake" },
		"in a step":           func(e event.Event) bool { return strings.Contains(e.Text, "STEP-RUNS") },
		"while it seals":      func(e event.Event) bool { return e.Kind == event.Start && e.Name == "seal" },
		"while it shuts down": func(e event.Event) bool { return e.Kind == event.Start && e.Name == "shut down" },
		"in the test":         func(e event.Event) bool { return e.Kind == event.Start && e.Name == "test boot 2" },
		"as it registers":     func(e event.Event) bool { return e.Kind == event.Start && e.Name == "register" },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, t.TempDir(), &fake.Store{})
			steps := ""
			if name == "in a step" {
				steps = "  - shell: {inline: [\"echo STEP-RUNS\", \"sleep 1000\"]}\n"
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			ctx = w.record(ctx, func(e event.Event) {
				if at(e) {
					cancel(cause)
				}
			})
			began := time.Now()
			_, err := pipeline.Bake(ctx, w.env, w.load(web(steps, "")), pipeline.BakeOptions{KeepFails: true})
			if ctx.Err() == nil {
				t.Fatal("it was never cancelled: the test is blind")
			}
			if name != "as it registers" && !errors.Is(err, cause) && !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want the context's cause", err)
			}
			if d := time.Since(began); d > 20*time.Second {
				t.Errorf("took %s to end", d)
			}
			if n := len(w.images()); err != nil && n != 0 {
				t.Errorf("%d images", n)
			}
			w.nothingLeft()
		})
	}
}

func TestAFailedMachineIsKeptAndCanBeEntered(t *testing.T) {
	for name, text := range map[string]string{
		"a step":  web("  - shell: {name: broken, inline: [\"exit 9\"]}\n", ""),
		"a check": web("", "  - command: {run: \"exit 3\"}\n"),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, t.TempDir(), &fake.Store{})
			ctx, interrupt := context.WithCancel(t.Context())
			said := make(chan string, 1)
			ctx = w.record(ctx, func(e event.Event) {
				if e.Kind == event.Wait && strings.Contains(e.Text, "kept") {
					said <- e.Text
				}
			})
			done := make(chan error, 1)
			go func() {
				_, err := pipeline.Bake(ctx, w.env, w.load(text), pipeline.BakeOptions{KeepFails: true})
				done <- err
			}()
			var line string
			select {
			case line = <-said:
			case err := <-done:
				t.Fatalf("nothing was kept: %v", err)
			case <-time.After(time.Minute):
				t.Fatal("nothing was said")
			}
			for _, want := range []string{"interrupt to destroy it", "rebake gc"} {
				if !strings.Contains(line, want) {
					t.Errorf("%q does not say %q", line, want)
				}
			}
			if err := enter(line); err != nil {
				t.Error(err)
			}
			interrupt()
			select {
			case err := <-done:
				if err == nil || errors.Is(err, context.Canceled) {
					t.Errorf("after the interrupt: %v, want what failed", err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("it does not end")
			}
			if n := len(w.images()); n != 0 {
				t.Errorf("%d images", n)
			}
			w.nothingLeft()
		})
	}
}

// enter does what the ssh command says, and runs a command there.
func enter(line string) error {
	m := regexp.MustCompile(`ssh -i '?([^ ']+)'? -o IdentitiesOnly=yes -o UserKnownHostsFile='?([^ ']+)'? -p (\d+) (\w+)@([\d.]+)`).FindStringSubmatch(line)
	if m == nil {
		return fmt.Errorf("no ssh command in %q", line)
	}
	st, err := os.Stat(m[1])
	if err != nil || st.Mode().Perm() != 0o600 {
		return fmt.Errorf("the key: %v, %w", st, err)
	}
	raw, err := os.ReadFile(m[1])
	if err != nil {
		return err
	}
	signer, err := gossh.ParsePrivateKey(raw)
	if err != nil {
		return err
	}
	known, err := knownhosts.New(m[2])
	if err != nil {
		return err
	}
	c, err := gossh.Dial("tcp", net.JoinHostPort(m[5], m[3]), &gossh.ClientConfig{User: m[4], HostKeyCallback: known,
		HostKeyAlgorithms: []string{gossh.KeyAlgoED25519}, Auth: []gossh.AuthMethod{gossh.PublicKeys(signer)}})
	if err != nil {
		return fmt.Errorf("the way in is closed: %w", err)
	}
	defer c.Close()
	s, err := c.NewSession()
	if err != nil {
		return err
	}
	if out, err := s.Output("cat built"); err != nil || string(out) != "web\n" {
		return fmt.Errorf("in the kept machine: %q, %w", out, err)
	}
	return nil
}

func TestTwoBakesAtOnceGiveTwoVersions(t *testing.T) {
	w := newWorld(t, t.TempDir(), &fake.Store{})
	var meet sync.WaitGroup // both have chosen before either registers
	meet.Add(2)
	w.before = func(_ context.Context, op, _ string) error {
		if op == "boot" {
			meet.Done()
			meet.Wait()
		}
		return nil
	}
	texts := []*pipeline.Baked{nil, nil}
	var wg sync.WaitGroup
	for i, release := range []string{"release=a", "release=b"} {
		tpl := w.load(web("", ""), release)
		wg.Go(func() {
			baked, err := pipeline.Bake(w.record(t.Context()), w.env, tpl, pipeline.BakeOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			texts[i] = &baked[0]
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	if a, b := texts[0].Image, texts[1].Image; a.Version == b.Version || a.Digest == b.Digest {
		t.Errorf("%s %s and %s %s", a.Version, a.Digest, b.Version, b.Digest)
	}
	if n := len(w.images()); n != 2 {
		t.Errorf("%d images", n)
	}
	w.nothingLeft()
}

func TestTwoBuildsOfOneTemplate(t *testing.T) {
	text := strings.Replace(web("", ""), "  fake: {}\n", "  one: {kind: fake}\n  two: {kind: fake, motd: hello}\n", 1)
	w := newWorld(t, t.TempDir(), &fake.Store{})
	baked, err := w.bake(text, pipeline.BakeOptions{})
	if err != nil || len(baked) != 2 || baked[0].Image.Version == baked[1].Image.Version {
		t.Errorf("%+v, %v", baked, err)
	}
	var booted atomic.Bool // both test boots are at once
	w.before = func(_ context.Context, op, _ string) error {
		if op == "boot" {
			booted.Store(true)
		}
		return nil
	}
	if _, err := w.bake(text, pipeline.BakeOptions{Version: "1.0.0"}); err == nil || !strings.Contains(err.Error(), "--only") || booted.Load() {
		t.Errorf("two builds of one version: %v, booted %v", err, booted.Load())
	}
	if b := w.one(text, pipeline.BakeOptions{Version: "1.0.0", Only: []string{"two"}}); b.Build != "two" || b.Image.Version != "1.0.0" {
		t.Errorf("%+v", b)
	}
}

func TestASensitiveValueIsNeverSaid(t *testing.T) {
	const secret = "s3cr3t-t0ken"
	for name, text := range map[string]string{
		"a bake that goes well": web("", ""),
		"a step that fails":     web("  - shell: {env: {T: \"${{ var.token }}\"}, inline: [\"echo $T\", \"echo $T >&2\", \"echo printed $T >>$HOME/../../console\", \"exit 1\"]}\n", ""),
		"a check that fails":    web("", "  - shell: {env: {T: \"${{ var.token }}\"}, inline: [\"echo $T; exit 1\"]}\n"),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, t.TempDir(), &fake.Store{})
			_, err := w.bake(text, pipeline.BakeOptions{})
			if (err == nil) != strings.Contains(name, "well") {
				t.Fatalf("got %v", err)
			}
			if said := w.said(); strings.Contains(said, secret) || !strings.Contains(said, "redacted") {
				t.Errorf("said:\n%s", said)
			}
			logs := w.logs()
			for name, text := range logs {
				if strings.Contains(text, secret) {
					t.Errorf("%s holds it", name)
				}
			}
			if strings.Contains(name, "step") && !strings.Contains(logOf(logs, "-console.log"), "printed ") {
				t.Error("the console does not show what was printed there: the test is blind")
			}
			for _, img := range w.images() {
				if strings.Contains(string(img.Lineage.InputsDigest)+img.Name, secret) {
					t.Error("an image names it")
				}
			}
			out, err := exec.Command("grep", "-rl", secret, string(w.env.State)).Output()
			if len(out) > 0 {
				t.Errorf("in the state directory: %s %v", out, err)
			}
		})
	}
}
