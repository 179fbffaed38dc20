//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rebake/rebake/fleet"
)

// guarded is a fleet with gates and hooks: the version of each new instance, the
// template's test block, a program, the error rate; a hook that keeps every notice.
func guarded(addr string) string {
	text := strings.Replace(fleetTemplate(addr), "    keep_old: 10m\n", `    keep_old: 1s
    gates:
      - {name: version, http: {port: 80, path: /cgi-bin/app, version: X-Release}}
      - {name: checks, test: true}
      - {name: ask, command: {run: [sh, -c, 'echo "$REBAKE_STEP $REBAKE_INSTANCES" >> asked']}}
      - {name: errors, error_rate: {max: 1%, requests: 5}}
    hooks:
      - {command: [sh, -c, 'cat >> notices']}
`, 1)
	return text
}

func notices(t *testing.T, w *world) (stages []string, all []fleet.Notice) {
	t.Helper()
	raw, err := os.ReadFile(w.dir + "/notices")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(raw)), "\n") {
		var n fleet.Notice
		if err := json.Unmarshal([]byte(line), &n); err != nil {
			t.Fatal(err)
		}
		stages, all = append(stages, string(n.Stage)), append(all, n)
	}
	return stages, all
}

// A fleet is deployed through gates, told of by a hook, looked at for drift, and
// healed, all on real guests.
func TestAFleetIsJudgedToldOfLookedAtAndHealed(t *testing.T) {
	t.Parallel() // it waits more than it works
	w := newWorld(t)
	addr := freeAddr(t)
	url := "http://" + addr + "/cgi-bin/app"
	w.write("t.yaml", guarded(addr))
	w.rebake(0, "up", "t.yaml", "--version", "1.0.0", "--var", "release=1.0.0", "--skip-test")
	under(t, url, "swap through the gates", func() {
		w.rebake(0, "up", "t.yaml", "--version", "2.0.0", "--var", "release=2.0.0", "--skip-test", "--wait")
	})
	stages, _ := notices(t, w)
	if got, want := strings.Join(stages, " "), "start traffic promoted start traffic traffic traffic promoted done"; got != want && got != strings.Replace(want, "promoted start", "promoted done start", 1) {
		t.Errorf("told %q, want %q", got, want)
	}
	raw, err := os.ReadFile(w.dir + "/asked")
	if err != nil || strings.Count(string(raw), "127.0.0.1:") < 4 {
		t.Errorf("the program was asked: %q, %v", raw, err)
	}
	// The answers of 3 carry another version than the template says.
	w.write("liar.yaml", strings.Replace(guarded(addr), `X-Release: %s\\r`, `X-Release: %s0\\r`, 1))
	_, log := w.rebake(3, "up", "liar.yaml", "--version", "3.0.0", "--var", "release=3.0.0", "--skip-test")
	if !strings.Contains(log, `"3.0.00"`) || !strings.Contains(log, "want 3.0.0") {
		t.Errorf("the reason does not name both versions:\n%s", log)
	}
	if got := body(t, url); got != "release 2.0.0\n" {
		t.Fatalf("after the refusal it serves %q", got)
	}

	w.rebake(0, "fleet", "status", "tiny", "--fail-on-drift")
	ids := instances(t, w)
	if len(ids) != 2 {
		t.Fatalf("instances %v", ids)
	}
	changed := ids[0].ID
	w.rebake(0, "fleet", "ssh", "tiny", changed, "--", "echo patched > /www/patched && chmod 600 /etc/hosts")
	out, _ := w.rebake(1, "fleet", "status", "tiny", "--fail-on-drift")
	for _, want := range []string{changed, "/www/patched", "/etc/hosts"} {
		if !strings.Contains(out, want) {
			t.Errorf("drift does not name %s:\n%s", want, out)
		}
	}
	why, _ := w.rebake(0, "fleet", "why", changed)
	if !strings.Contains(why, "tiny:2.0.0 sha256:") || !strings.Contains(why, "baked") {
		t.Errorf("why: %s", why)
	}
	under(t, url, "heal the one that was changed", func() { w.rebake(0, "fleet", "heal", "tiny", "--drifted", "--yes") })
	w.rebake(0, "fleet", "status", "tiny", "--fail-on-drift")
	if err := syscall.Kill(ids[1].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for alive(ids[1].PID) {
		time.Sleep(50 * time.Millisecond)
	}
	w.rebake(1, "fleet", "status", "tiny", "--fail-on-drift")
	under(t, url, "heal the dead one", func() { w.rebake(0, "fleet", "heal", "tiny") })
	w.rebake(0, "fleet", "status", "tiny", "--fail-on-drift")
	past, _ := w.rebake(0, "fleet", "history", "tiny")
	if strings.Count(past, "healed") != 2 || strings.Count(past, "rolled back") != 1 {
		t.Errorf("history:\n%s", past)
	}
	w.rebake(0, "fleet", "destroy", "tiny", "--yes")
	w.nothingRuns()
}

func alive(pid int) bool {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(raw), ") Z ")
}

// instances are those of the fleet's one group.
func instances(t *testing.T, w *world) []fleet.Instance {
	t.Helper()
	out, _ := w.rebake(0, "--output", "json", "fleet", "status", "tiny")
	for _, line := range strings.Split(out, "\n") {
		var o struct {
			Kind   string
			Result fleet.Status
		}
		if json.Unmarshal([]byte(line), &o) == nil && o.Kind == "result" && len(o.Result.Groups) > 0 {
			return o.Result.Groups[0].Instances
		}
	}
	t.Fatalf("no groups in %s", out)
	return nil
}
