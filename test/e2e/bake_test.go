//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rebake/rebake/internal/inventory"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/test/servers"
)

// tiny is a template on the tiny guest; its page says the release.
func tiny(steps string) string {
	return fmt.Sprintf(`name: tiny
variables:
  release: {default: "1"}
  token: {default: "s3cr3t-token-value", sensitive: true}
build:
  qemu:
    from: {url: "file:%s", checksum: "sha256:%s"}
    memory: 192M
provision:
  - file: {content: "release ${{ var.release }}\n", destination: /www/index.html}
  - shell:
      env: {TOKEN: "${{ var.token }}"}
      inline: ["test -n \"$TOKEN\"", "echo \"got $TOKEN\""]
%s
test:
  - file: {path: /www/index.html, contains: release}
  - http: {port: 80, path: /, status: 200, contains: release, within: 60s}
tags: [nightly]
`, guest.path, strings.TrimPrefix(guest.sum, "sha256:"), steps)
}

func TestABakeIsTestedStoredTaggedAndNotRepeated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("t.yaml", tiny(""))
	began := time.Now()
	out, log := w.rebake(0, "build", "t.yaml", "--var", "release=7")
	t.Logf("bake with tests: %.1fs", time.Since(began).Seconds())
	if !strings.Contains(out, "baked tiny:") {
		t.Errorf("no summary in %q", out)
	}
	if strings.Contains(out+log, "s3cr3t-token-value") {
		t.Error("the sensitive value was printed")
	}
	img := w.image("tiny:nightly")
	if len(img.Tests) < 4 {
		t.Errorf("only %d test results: %+v", len(img.Tests), img.Tests)
	}
	for _, r := range img.Tests {
		if !r.Passed {
			t.Errorf("%s did not pass", r.Name)
		}
	}
	logs, err := filepath.Glob(filepath.Join(w.home, "logs", "*"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("no build log: %v", err)
	}
	for _, l := range logs {
		if raw, _ := os.ReadFile(l); bytes.Contains(raw, []byte("s3cr3t-token-value")) {
			t.Errorf("%s holds the sensitive value", l)
		}
	}
	if left := files(t, filepath.Join(w.home, "builds")); len(left) > 0 {
		t.Errorf("left in builds/: %v", left)
	}
	out, _ = w.rebake(0, "build", "t.yaml", "--var", "release=7")
	if !strings.Contains(out, "up to date") {
		t.Errorf("an unchanged template was baked again: %q", out)
	}
	w.rebake(0, "images", "verify")

	// What the image says that it holds.
	inv := w.inventory("tiny:nightly")
	sum := sha256.Sum256([]byte("release 7\n"))
	if f := inv.file("/www/index.html"); f.Digest != "sha256:"+hex.EncodeToString(sum[:]) || f.Size != 10 {
		t.Errorf("%+v", f)
	}
	if f := inv.file("/bin/ls"); f.Type != "l" || f.Link != "busybox" {
		t.Errorf("%+v", f)
	}
	if f := inv.file("/bin/busybox"); f.Mode != 0o755 || !strings.HasPrefix(f.Digest, "sha256:") {
		t.Errorf("%+v", f)
	}
	if f := inv.file("/root/.ssh/authorized_keys"); f.Path != "" {
		t.Error("the key of the build is in it")
	}
	if ports := strings.Join(inv.Ports, " "); !strings.Contains(ports, ":22") || !strings.Contains(ports, ":80") || len(inv.Users) != 2 || len(inv.Unknown) > 0 {
		t.Errorf("%s, %v, %v", ports, inv.Users, inv.Unknown)
	}
	w.write("policy.yaml", "sbom: true\n")
	w.rebake(0, "verify", "tiny:nightly", "--policy", "policy.yaml")
}

// inventory asks the binary what an image holds.
func (w *world) inventory(ref string) (inv held) {
	w.t.Helper()
	out, _ := w.rebake(0, "sbom", ref, "--format", "inventory")
	if err := json.Unmarshal([]byte(out), &inv); err != nil {
		w.t.Fatal(err)
	}
	return inv
}

type held struct{ inventory.Inventory }

func (h held) file(path string) inventory.File {
	for _, f := range h.Files {
		if f.Path == path {
			return f
		}
	}
	return inventory.File{}
}

func TestAnExportedImageBootsInPlainQEMU(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("t.yaml", tiny(`  - file: {content: "#!/bin/sh\necho EXPORTED-IMAGE-IS-UP >/dev/console\n", destination: /etc/start.d/up, mode: "0755"}`))
	w.rebake(0, "build", "t.yaml", "--skip-test")
	w.rebake(0, "images", "export", "tiny:latest", "out.qcow2")
	disk := filepath.Join(w.dir, "alone", "disk.qcow2")
	if err := os.MkdirAll(filepath.Dir(disk), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(w.dir, "out.qcow2"), disk); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var console bytes.Buffer
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-m", "512", "-nographic", "-no-reboot", disk)
	cmd.Dir = filepath.Dir(disk)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	buf := make([]byte, 4096)
	for {
		n, err := out.Read(buf)
		console.Write(buf[:n])
		if strings.Contains(console.String(), "EXPORTED-IMAGE-IS-UP") {
			return
		}
		if err != nil {
			t.Fatalf("it did not come up: %v\n%s", err, console.String())
		}
	}
}

func TestAKilledBuildLeavesNoMachineAndGCLeavesNothing(t *testing.T) {
	w := newWorld(t)
	w.write("t.yaml", tiny(`  - shell: {inline: ["echo STEP-IS-RUNNING", "sleep 600"]}`))
	cmd := w.command("build", "t.yaml", "--output", "plain")
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen bytes.Buffer
	buf := make([]byte, 4096)
	for !strings.Contains(seen.String(), "STEP-IS-RUNNING") {
		n, err := pipe.Read(buf)
		seen.Write(buf[:n])
		if err != nil {
			t.Fatalf("the build ended early: %v\n%s", err, seen.String())
		}
	}
	if len(w.processes()) == 0 {
		t.Fatal("no machine runs: the test is blind")
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	w.nothingRuns()
	out, _ := w.rebake(0, "gc")
	if !strings.Contains(out, "removed") {
		t.Errorf("gc said %q", out)
	}
	if left := files(t, filepath.Join(w.home, "builds")); len(left) > 0 {
		t.Errorf("left in builds/: %v", left)
	}
	if left := w.sockets(); len(left) > 0 {
		t.Errorf("left in %s: %v", state.RunRoot(), left)
	}
	if out, _ := w.rebake(0, "gc"); !strings.Contains(out, "nothing to remove") {
		t.Errorf("a second gc said %q", out)
	}
}

func TestAFailedStepSaysWhichAndLeavesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("t.yaml", tiny(`  - shell: {name: the broken one, inline: ["echo about to fail", "exit 9"]}`))
	_, log := w.rebake(1, "build", "t.yaml")
	for _, want := range []string{"the broken one", "exit status 9", "about to fail"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in:\n%s", want, log)
		}
	}
	if left := files(t, filepath.Join(w.home, "builds")); len(left) > 0 {
		t.Errorf("left in builds/: %v", left)
	}
}

func TestAFailedTestRegistersNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	text := strings.Replace(tiny(""), "tags: [nightly]", `  - command: {run: "cat /no-such-file"}`+"\ntags: [nightly]", 1)
	w.write("t.yaml", text)
	_, log := w.rebake(1, "build", "t.yaml")
	if !strings.Contains(log, "no-such-file") {
		t.Errorf("the evidence is missing:\n%s", log)
	}
	out, _ := w.rebake(0, "images", "ls")
	if !strings.Contains(out, "no images yet") {
		t.Errorf("registered all the same: %q", out)
	}
}

// The parent is made by one machine and the child by another, which share a registry.
func TestAChildOfAnImageKeepsWhatItsParentHad(t *testing.T) {
	t.Parallel()
	store := "oci://" + startRegistry(t) + "/team"
	first, w := newWorld(t), newWorld(t)
	first.write("parent.yaml", tiny(""))
	first.rebake(0, "--store", store, "build", "parent.yaml", "--skip-test", "--var", "release=parent")
	w.write("child.yaml", `name: child
store: `+store+`
build:
  qemu:
    from: {image: "tiny:latest"}
    memory: 192M
provision:
  - shell: {inline: ["cat /www/index.html", "echo child > /www/child"]}
test:
  - file: {path: /www/index.html, contains: parent}
  - file: {path: /www/child, contains: child}
`)
	w.rebake(0, "build", "child.yaml")
	first.rebake(0, "--store", store, "images", "verify", "child:latest")
	out, _ := first.rebake(0, "--store", store, "images", "ls")
	if !strings.Contains(out, "\nchild ") || !strings.Contains(out, "\ntiny ") {
		t.Errorf("the registry has:\n%s", out)
	}
	out, _ = w.rebake(0, "--store", store, "diff", "tiny:latest", "child:latest", "--files")
	if !regexp.MustCompile(`(?m)^file +added +/www/child `).MatchString(out) || strings.Contains(out, "/www/index.html") || strings.Contains(out, "/bin/") {
		t.Errorf("the child is its parent with one more file, not\n%s", out)
	}
	w.rebake(7, "--store", store, "diff", "tiny:latest", "child:latest", "--fail-on", "file")
	if out, _ := w.rebake(0, "--store", store, "blame", "child", "--file", "/www/index.html"); !strings.Contains(out, "from its base tiny:") {
		t.Error(out)
	}
	if out, _ = first.rebake(0, "images", "ls"); !strings.Contains(out, "no images yet") {
		t.Errorf("the first machine's own store has:\n%s", out)
	}
}

func startRegistry(t *testing.T) string {
	t.Helper()
	addr, stop, err := servers.DockerRegistry(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return addr
}
