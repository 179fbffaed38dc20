//go:build e2e

package e2e

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/load"
)

// as makes a text as long as the one that it takes the place of.
func as(t *testing.T, old, text string) string {
	t.Helper()
	if len(text) > len(old) {
		t.Fatalf("%q has %d bytes too many", text, len(text)-len(old))
	}
	return text + strings.Repeat("\n", len(old)-len(text))
}

// Real machines that do not do what they should, and one that is killed: each new
// image is refused for a reason that names it, and version 1 serves as before.
func TestMachinesThatGoWrongInASwap(t *testing.T) {
	t.Parallel() // it waits more than it works
	home, addr := t.TempDir(), freeAddr(t)
	r, err := newCrashRig(home, addr)
	must(t, err)
	t.Cleanup(func() {
		if _, err := os.Stat(r.d.Dir); err == nil {
			must(t, r.d.Destroy(context.Background()))
		}
		if left := (&world{t: t, home: home}).processes(); len(left) > 0 {
			t.Errorf("still running: %v", left)
		}
	})
	const (
		begin  = "#!/bin/sh\n# The tiny guest's init"
		stay   = "while :; do sleep 3600 & wait $!; done\n"
		answer = "cat >/dev/null\nprintf \"Content-Type: text/plain\\r\\n\\r\\n\"\ncat /www/index.html\n"
	)
	tinyImage(t, r.store, "1.0.0", page, "version 01\n")
	must(t, r.do(t.Context(), "deploy 1.0.0"))
	url := "http://" + addr + "/cgi-bin/page"
	for i, c := range []struct {
		what, old, new string
		within         time.Duration
		killed         bool
		says           string
		most           int // requests that may fail; -1: some do, they are counted
	}{
		{what: "never boots", old: begin, new: strings.Replace(begin, "/bin/sh", "/bin/no", 1), within: 15 * time.Second, says: "did not become healthy within 15s"},
		{what: "boots and then dies", old: stay, new: as(t, stay, "sleep 9;exec /sbin/down poweroff"), within: time.Minute, says: " died", most: -1},
		{what: "answers 500 after 60 requests", old: answer, new: as(t, answer, "echo>>n\n[ $(wc -c<n) -gt 60 ]&&s=5\nprintf \"Status: ${s-2}00\\n\\n\"\ncat ../*l\n"), within: time.Minute, says: "L7STS/500", most: -1},
		{what: "is killed", old: page, new: "version 05\n", within: time.Minute, killed: true, says: " died", most: -1},
	} {
		t.Run(c.what, func(t *testing.T) {
			began := time.Now()
			img := tinyImage(t, r.store, "2.0."+string(rune('0'+i)), c.old, c.new)
			policy := r.policy
			policy.Within, policy.Refuse = c.within, 5*time.Second
			policy.Steps = []fleet.Step{{Permille: 500, Hold: 25 * time.Second}, {Permille: 1000}}
			if c.killed {
				r.d.Recorded = func(kind, what string) {
					if kind == "transition" && what == string(fleet.Holding) {
						go func() {
							time.Sleep(3 * time.Second) // it has some traffic by now
							killOne(t, r, img)
						}()
					}
				}
			}
			lctx, stop := context.WithCancel(t.Context())
			done := make(chan load.Result, 1)
			go func() {
				done <- load.Run(lctx, load.Options{URL: url, Concurrency: 2, Pause: 20 * time.Millisecond, Timeout: 10 * time.Second})
			}()
			res, err := r.d.Deploy(t.Context(), fleet.Request{Spec: fleet.Spec{Image: img, Size: 1, Ports: []int{80}}, Policy: policy})
			stop()
			got := <-done
			r.d.Recorded = nil
			if !errors.Is(err, fleet.ErrRolledBack) || !strings.Contains(res.Reason, c.says) {
				t.Errorf("an image that %s: %s: %v, want %q", c.what, res.State, err, c.says)
			}
			if c.most >= 0 && got.Failed > c.most || got.Failed > got.Sent/2 || got.Sent == 0 {
				t.Errorf("an image that %s: %d of %d requests failed: %v", c.what, got.Failed, got.Sent, got.FirstErrors)
			}
			if c.most < 0 && got.ByVersion["version 01"] == got.Sent {
				t.Errorf("an image that %s had no traffic", c.what)
			}
			t.Logf("%-30s %3.0fs  %d of %d requests failed: %s", c.what, time.Since(began).Seconds(), got.Failed, got.Sent, res.Reason)
			if text := body(t, url); text != "version 01\n" {
				t.Fatalf("after an image that %s it serves %q", c.what, text)
			}
			groups, err := r.pool.Groups(t.Context(), "crash")
			must(t, err)
			if len(groups) != 1 {
				t.Errorf("an image that %s left %d groups", c.what, len(groups))
			}
		})
	}
}

// killOne ends the machine of the image as a power cut would.
func killOne(t *testing.T, r *crashRig, img artifact.Image) {
	groups, err := r.pool.Groups(context.WithoutCancel(t.Context()), "crash")
	if err != nil {
		t.Error(err)
		return
	}
	for _, g := range groups {
		if g.Image == img.Digest {
			if err := syscall.Kill(g.Instances[0].PID, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		}
	}
}
