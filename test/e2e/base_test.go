//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAKilledBaseLeavesNoProcessNoMountAndGCLeavesNothing(t *testing.T) {
	w := newWorld(t)
	w.bases = true
	shared := func() []string { // where a plain user's base is made
		found, _ := filepath.Glob(filepath.Join(os.TempDir(), fmt.Sprintf("rebake-base-%d-*", os.Getuid())))
		return found
	}
	before := shared()
	w.write("t.yaml", "name: base\nbuild:\n  qemu:\n    from: {debian: bookworm}\n")
	cmd := w.command("build", "t.yaml")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	bases := filepath.Join(w.home, "cache", "bases")
	var found []string
	for end := time.Now().Add(3 * time.Minute); len(found) == 0; time.Sleep(50 * time.Millisecond) {
		// dpkg is unpacked: from here on there are mounts, and processes in the root
		found, _ = filepath.Glob(filepath.Join(bases, "*.raw.root", "usr", "bin", "dpkg"))
		if os.Geteuid() != 0 { // in a user namespace, which reaches /tmp alone
			found = nil
			for _, d := range shared() {
				if dpkg := filepath.Join(d, "root", "usr", "bin", "dpkg"); !slices.Contains(before, d) && exists(dpkg) {
					found = append(found, dpkg)
				}
			}
		}
		if time.Now().After(end) {
			_ = cmd.Process.Kill()
			t.Fatal("mmdebstrap unpacked nothing")
		}
	}
	time.Sleep(3 * time.Second) // into the configuration of packages
	if len(w.processes()) < 2 {
		t.Fatalf("no bootstrap runs: the test is blind: %v", w.processes())
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	w.nothingRuns()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), w.home) {
		t.Errorf("mounted below %s (%v)", w.home, err)
	}
	out, _ := w.rebake(0, "gc")
	if !strings.Contains(out, ".root") && !strings.Contains(out, "rebake-base-") {
		t.Errorf("gc said %q", out)
	}
	for _, d := range shared() {
		if !slices.Contains(before, d) {
			t.Errorf("gc left %s", d)
		}
	}
	for _, name := range files(t, bases) {
		if !strings.HasSuffix(name, ".lock") {
			t.Errorf("gc left %s", name)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
