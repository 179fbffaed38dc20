//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/internal/load"
	"github.com/rebake/rebake/internal/state"
)

// fleetTemplate is the tiny template with a fleet of two behind HAProxy. The
// page is a CGI that answers POST; broken=yes makes the health page fail.
func fleetTemplate(addr string) string {
	text := tiny(`  - shell:
      env: {RELEASE: "${{ var.release }}", BROKEN: "${{ var.broken }}"}
      inline:
        - mkdir -p /www/cgi-bin
        - |
          status="200 OK"
          [ "$BROKEN" = no ] || status="500 Broken"
          printf '#!/bin/sh\nprintf "Status: %s\\r\\nX-Release: %s\\r\\nContent-Type: text/plain\\r\\n\\r\\nrelease %s\\n"\n' "$status" "$RELEASE" "$RELEASE" > /www/cgi-bin/app
        - chmod 755 /www/cgi-bin/app
`)
	text = strings.Replace(text, "  token:", "  broken: {default: \"no\"}\n  token:", 1)
	return text + `fleet:
  size: 2
  pool: {qemu: {memory: 128M}}
  router: {haproxy: {listen: "` + addr + `"}}
  health:
    http: {port: 80, path: /cgi-bin/app}
    interval: 500ms
    timeout: 3s
    within: 90s
  deploy:
    steps: [{weight: 10, hold: 1s}, {weight: 50, hold: 1s}, {weight: 100, hold: 1s}]
    keep_old: 10m
    on_failure: rollback
`
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func body(t *testing.T, url string) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// under runs f while POSTs flow; none may fail.
func under(t *testing.T, url, what string, f func()) load.Result {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan load.Result, 1)
	go func() { done <- load.Run(ctx, load.Options{URL: url, Concurrency: 3}) }()
	f()
	stop()
	res := <-done
	t.Logf("%s: %d requests, %d failed, by version %v, p50 %s p99 %s", what, res.Sent, res.Failed, res.ByVersion, res.P50, res.P99)
	if res.Sent < 20 {
		t.Errorf("%s: only %d requests were sent: the test is blind", what, res.Sent)
	}
	if res.Failed != 0 {
		t.Errorf("%s: %d of %d requests failed: %v", what, res.Failed, res.Sent, res.FirstErrors)
	}
	return res
}

func TestUpSwapsUnderLoadRefusesABrokenImageAndRollsBack(t *testing.T) {
	w := newWorld(t)
	addr := freeAddr(t)
	url := "http://" + addr + "/cgi-bin/app"
	w.write("t.yaml", fleetTemplate(addr)+"retention: {keep_last: 1, min_age: 0s}\n")

	w.rebake(0, "up", "t.yaml", "--var", "release=1", "--skip-test")
	if got := body(t, url); got != "release 1\n" {
		t.Fatalf("after the first up it serves %q", got)
	}
	out, _ := w.rebake(0, "fleet", "ls")
	if !strings.Contains(out, "tiny") {
		t.Errorf("fleet ls: %q", out)
	}

	// The job of every night finds nothing to do, and says so to those who sleep.
	out, _ = w.rebake(0, "up", "t.yaml", "--var", "release=1", "--skip-test", "--if-changed", "--summary", "night.json", "--junit", "night.xml")
	if !strings.HasPrefix(out, "nothing changed: fleet tiny runs tiny:") || strings.Count(out, "\n") != 1 {
		t.Errorf("a night with nothing new: %q", out)
	}
	for file, want := range map[string]string{"night.json": `"outcome": "unchanged"`, "night.xml": "<skipped message=\"nothing changed"} {
		if raw, err := os.ReadFile(filepath.Join(w.dir, file)); err != nil || !strings.Contains(string(raw), want) {
			t.Errorf("%s lacks %s: %s, %v", file, want, raw, err)
		}
	}

	res := under(t, url, "swap 1 → 2", func() { w.rebake(0, "up", "t.yaml", "--var", "release=2", "--skip-test", "--summary", "swap.json") })
	var told struct {
		Builds []struct {
			Outcome string
			Steps   []struct{ Outcome string }
		}
		Deployment struct {
			Verdict string
			Moved   float64 `json:"moved_seconds"`
			Answers struct{ Requests, Failed int }
		}
	}
	raw, err := os.ReadFile(filepath.Join(w.dir, "swap.json"))
	if err == nil {
		err = json.Unmarshal(raw, &told)
	}
	if d := told.Deployment; err != nil || len(told.Builds) != 1 || d.Verdict != "promoted" || d.Moved <= 0 || d.Answers.Requests == 0 || d.Answers.Failed != 0 {
		t.Fatalf("the summary of the swap: %s, %v", raw, err)
	}
	if b := told.Builds[0]; b.Outcome != "baked" || len(b.Steps) == 0 {
		t.Errorf("the summary of the bake: %s", raw)
	}
	if res.ByVersion["1"] == 0 || res.ByVersion["2"] == 0 {
		t.Errorf("the load saw only %v", res.ByVersion)
	}
	if got := body(t, url); got != "release 2\n" {
		t.Fatalf("after the swap it serves %q", got)
	}

	began := time.Now()
	under(t, url, "rollback 2 → 1", func() {
		w.rebake(0, "rollback", "tiny")
		t.Logf("rollback: %.2fs", time.Since(began).Seconds())
		time.Sleep(time.Second) // lets the load see more of what came after
	})
	if got := body(t, url); got != "release 1\n" {
		t.Fatalf("after the rollback it serves %q", got)
	}

	_, log := w.rebake(3, "up", "t.yaml", "--var", "release=2", "--skip-test", "--if-changed")
	if !strings.Contains(log, "is not tried again: rolled back by hand") {
		t.Errorf("an image that was taken back: %s", log)
	}

	under(t, url, "broken 3 refused", func() {
		_, log := w.rebake(3, "up", "t.yaml", "--var", "release=3", "--var", "broken=yes", "--skip-test", "--summary", "night.md")
		if !strings.Contains(log, "500") {
			t.Errorf("the reason does not say 500:\n%s", log)
		}
	})
	if raw, err := os.ReadFile(filepath.Join(w.dir, "night.md")); err != nil || !strings.Contains(string(raw), "### Fleet tiny: rolled back\n") || !strings.Contains(string(raw), "500") {
		t.Errorf("the summary: %s, %v", raw, err)
	}
	if got := body(t, url); got != "release 1\n" {
		t.Fatalf("after the refusal it serves %q", got)
	}
	out, _ = w.rebake(0, "fleet", "status", "tiny")
	t.Logf("status:\n%s", out)

	// What the fleet runs stays, though it is the oldest, with every chunk that it
	// shares; the image that it went away from goes.
	out, _ = w.rebake(0, "images", "prune", "--yes", "--grace", "0s")
	if !strings.Contains(out, "fleet tiny runs it") || strings.Count(out, "\nremoved tiny:") != 1 || !strings.Contains(out, ": 2nd newest, beyond keep_last 1\n") {
		t.Errorf("pruned:\n%s", out)
	}
	w.rebake(0, "images", "verify")

	w.rebake(0, "fleet", "destroy", "tiny", "--yes")
	w.nothingRuns()
	if left := files(t, filepath.Join(w.home, "fleets")); len(left) > 0 {
		t.Errorf("left in fleets/: %v", left)
	}
	if left := w.sockets(); len(left) > 0 {
		t.Errorf("left in %s: %v", state.RunRoot(), left)
	}
}

func TestAnUnfinishedDeploymentIsResumedAfterAKill(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addr := freeAddr(t)
	url := "http://" + addr + "/cgi-bin/app"
	w.write("t.yaml", strings.Replace(fleetTemplate(addr), "weight: 50, hold: 1s", "weight: 50, hold: 20s", 1))
	w.rebake(0, "up", "t.yaml", "--var", "release=1", "--skip-test")
	w.rebake(0, "build", "t.yaml", "--var", "release=2", "--skip-test")
	cmd := w.command("deploy", "t.yaml", "--image", "tiny:latest", "--var", "release=2")
	log, err := os.Create(filepath.Join(w.dir, "deploy.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen := false
	for range 1200 {
		if body(t, url) == "release 2\n" { // traffic moves
			seen = true
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if !seen {
		raw, _ := os.ReadFile(log.Name())
		t.Fatalf("no traffic moved:\n%s", raw)
	}
	under(t, url, "resume", func() { w.rebake(0, "deploy", "resume", "tiny") })
	if got := body(t, url); got != "release 2\n" {
		t.Fatalf("after resume it serves %q", got)
	}
	w.rebake(0, "fleet", "destroy", "tiny", "--yes")
}
