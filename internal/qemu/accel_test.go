package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
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

// ownerEnv makes the test binary an owner that can be killed.
const ownerEnv = "REBAKE_TEST_OWNER"

func TestMain(m *testing.M) {
	if os.Getenv(ownerEnv) == "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/bin/sleep", "1000")
	if _, err := spawnWatched(cmd); err != nil {
		os.Exit(1)
	}
	fmt.Println(cmd.Process.Pid)
	select {} // until it is killed
}

func TestWatchedProcessDiesWithItsOwner(t *testing.T) {
	owner := exec.Command(os.Args[0])
	owner.Env = append(os.Environ(), ownerEnv+"=1")
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	started := mustStart(t, pid)
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	for end := time.Now().Add(10 * time.Second); same(pid, started); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatal("the process outlived its owner")
		}
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
