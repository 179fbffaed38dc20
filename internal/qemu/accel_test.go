package qemu

import (
	"context"
	"os/exec"
	"testing"
	"time"
)

func TestProbeGuestRunsWhereTheAcceleratorWorks(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	if err := probe(context.Background(), TCG); err != nil {
		t.Fatal(err)
	}
}

func TestDetectedAcceleratorIsOneThatRunsTheProbe(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	a, why := DetectAccel(context.Background(), "amd64")
	t.Logf("%s (%s)", a, why)
	if err := probe(context.Background(), a); err != nil {
		t.Fatalf("DetectAccel said %s, but: %v", why, err)
	}
	began := time.Now()
	b, again := DetectAccel(context.Background(), "amd64")
	if a != b || why != again || time.Since(began) > time.Second {
		t.Errorf("the verdict was not kept: %s %q after %s", b, again, time.Since(began))
	}
}

func TestWatchedProcessDiesWithTheOwnersPipe(t *testing.T) {
	cmd := exec.Command("/bin/sleep", "1000")
	wait, err := spawnWatched(cmd)
	if err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	if cmd.Path != "/bin/sh" || !same(pid, mustStart(t, pid)) {
		t.Fatal("the process does not run")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := wait(); err == nil {
		t.Fatal("a killed process ended well")
	}
}

func mustStart(t *testing.T, pid int) string {
	t.Helper()
	s, err := startTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
