//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func (w *world) steps(steps ...string) {
	w.t.Helper()
	text := fmt.Sprintf("name: steps\nbuild:\n  qemu:\n    from: {url: \"file:%s\", checksum: \"%s\"}\n    memory: 192M\nprovision:\n", guest.path, guest.sum)
	for _, s := range steps {
		text += "  - shell: " + s + "\n"
	}
	w.write("steps.yaml", text)
}

var provisioned = regexp.MustCompile(`provision: (\S+): done`)

// ran lists the steps that a build's output tells of.
func ran(stderr string) string {
	var names []string
	for _, m := range provisioned.FindAllStringSubmatch(stderr, -1) {
		names = append(names, m[1])
	}
	return strings.Join(names, " ")
}

// waitFor reads until a line holds the text, and throws the rest away.
func waitFor(t *testing.T, r io.Reader, text string) {
	t.Helper()
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		if strings.Contains(sc.Text(), text) {
			go func() { _, _ = io.Copy(io.Discard, r) }()
			return
		}
	}
	t.Fatalf("the output ended without %q", text)
}

func TestABuildGoesOnFromTheLastStateThatIsGood(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	build := func(want int, flags ...string) string {
		t.Helper()
		_, stderr := w.rebake(want, append([]string{"build", "steps.yaml", "--skip-test"}, flags...)...)
		return stderr
	}
	one := `{name: one, inline: ["sleep 2; echo one >> /www/log"]}`
	two := `{name: two, inline: ["sleep 2; echo two >> /www/log"]}`
	w.steps(one, two, `{name: three, inline: ["echo three >> /www/log"]}`)
	if got := ran(build(0)); got != "one two three" {
		t.Errorf("the first build ran %q", got)
	}
	w.steps(one, two, `{name: three, inline: ["echo drei >> /www/log; exit 3"]}`)
	out := build(1)
	if got := ran(out); got != "" || strings.Contains(out, "boot: started") || !strings.Contains(out, `go on after "two"`) {
		t.Errorf("a changed last step that fails: ran %q\n%s", got, out)
	}
	w.steps(one, two, `{name: three, inline: ["echo drei >> /www/log; date +%s > /www/now; cat /proc/uptime"]}`)
	out = build(0)
	if got := ran(out); got != "three" {
		t.Errorf("after it was mended the build ran %q\n%s", got, out)
	}
	w.steps(one, `{name: two, inline: ["sleep 2; echo zwei >> /www/log"]}`, `{name: three, inline: ["cat /www/log"]}`)
	out = build(0)
	if got := ran(out); got != "two three" || !strings.Contains(out, "three | one") || strings.Contains(out, "| two") || strings.Contains(out, "| drei") {
		t.Errorf("a changed second step: ran %q\n%s", got, out)
	}
	if got := ran(build(0, "--force", "--no-cache-from", "three")); got != "three" {
		t.Errorf("--no-cache-from three ran %q", got)
	}
	if got := ran(build(0, "--force", "--no-cache")); got != "one two three" {
		t.Errorf("--no-cache ran %q", got)
	}
	// Another machine cannot go on from that memory: its disk boots, once.
	text, err := os.ReadFile(filepath.Join(w.dir, "steps.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	w.write("steps.yaml", strings.Replace(strings.Replace(string(text), "memory: 192M", "memory: 224M", 1), "cat /www/log", "cat /www/log; free", 1))
	out = build(0)
	if got := ran(out); got != "three" || !strings.Contains(out, `boot as it was after "two"`) {
		t.Errorf("with more memory: ran %q\n%s", got, out)
	}
	out = build(0, "--force", "--no-cache-from", "three")
	if got := ran(out); got != "three" || !strings.Contains(out, `go on after "two"`) {
		t.Errorf("the second time with more memory: ran %q\n%s", got, out)
	}
	w.nothingRuns()
}

// A kill at any time while states are saved costs what was not saved, no more:
// the next build is right, and nothing is left but good checkpoints.
func TestAKillWhileStatesAreSavedLeavesOnlyGoodOnes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.steps(`{name: one, inline: ["sleep 1; echo one >> /www/log"]}`, `{name: two, inline: ["sleep 1; echo two >> /www/log"]}`,
		`{name: three, inline: ["echo three >> /www/log; cat /www/log"]}`)
	for _, after := range []time.Duration{0, 150 * time.Millisecond, 400 * time.Millisecond} {
		if err := os.RemoveAll(filepath.Join(w.home, "cache", "checkpoints")); err != nil {
			t.Fatal(err)
		}
		cmd := w.command("build", "steps.yaml", "--skip-test", "--force")
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, stderr, `save the state after "boot": started`)
		time.Sleep(after)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		_, out := w.rebake(0, "build", "steps.yaml", "--skip-test", "--force")
		if !strings.Contains(out, "three | one") || !strings.Contains(out, "three | two") || strings.Count(out, "three | one") != 1 {
			t.Errorf("after a kill %s into the save:\n%s", after, out)
		}
		w.rebake(0, "gc")
		found, err := filepath.Glob(filepath.Join(w.home, "cache", "checkpoints", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range found {
			if strings.HasSuffix(dir, ".lock") {
				continue
			}
			if _, err := os.Stat(filepath.Join(dir, "checkpoint.json")); err != nil {
				t.Errorf("after gc: %v", err)
			}
			if out, err := exec.Command("qemu-img", "check", "-q", filepath.Join(dir, "disk.qcow2")).CombinedOutput(); err != nil {
				t.Errorf("%s: %v %s", dir, err, out)
			}
		}
	}
	w.nothingRuns()
}

// Two builds that go on from one memory share neither random numbers nor time.
func TestTwoBuildsFromOneStateDiffer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.steps(`{name: one, inline: ["sleep 2"]}`, `{name: two, inline: ["true"]}`)
	w.rebake(0, "build", "steps.yaml", "--skip-test")
	seen := map[string]bool{}
	for i := range 3 {
		w.steps(`{name: one, inline: ["sleep 2"]}`,
			`{name: two, env: {I: "`+string(rune('a'+i))+`"}, inline: ["echo random: $(head -c 32 /dev/urandom | sha256sum)", "echo now: $(date +%s)"]}`)
		_, out := w.rebake(0, "build", "steps.yaml", "--skip-test")
		if got := ran(out); got != "two" {
			t.Fatalf("build %d ran %q\n%s", i, got, out)
		}
		random := regexp.MustCompile(`random: ([0-9a-f]{64})`).FindStringSubmatch(out)
		clock := regexp.MustCompile(`now: (\d+)`).FindStringSubmatch(out)
		if random == nil || clock == nil {
			t.Fatalf("no answer:\n%s", out)
		}
		if seen[random[1]] {
			t.Errorf("two guests have the same random numbers")
		}
		seen[random[1]] = true
		at, err := time.ParseDuration(clock[1] + "s")
		if err != nil {
			t.Fatal(err)
		}
		if off := time.Since(time.Unix(int64(at.Seconds()), 0)).Abs(); off > 15*time.Second {
			t.Errorf("the guest's clock is off by %s", off)
		}
	}
}
