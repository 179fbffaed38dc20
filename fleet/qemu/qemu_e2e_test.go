//go:build e2e

package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/state"
)

// launcher makes the test binary a process that launches two instances and
// then waits to be killed, as a rebake in the middle of a deployment.
const launcher = "REBAKE_TEST_POOL_LAUNCHER"

func TestMain(m *testing.M) {
	if home := os.Getenv(launcher); home != "" {
		p, err := New(Config{Memory: 64 << 20}, Deps{State: state.Dir(home), Store: &shelf{}}, "web")
		if err == nil {
			err = p.Launch(context.Background(), blue, fleet.Spec{Image: image(1), Size: 2, Ports: []int{80}})
		}
		fmt.Println("launched", err)
		select {}
	}
	os.Exit(m.Run())
}

// The disks hold no system: what is tested are the processes around them.
func TestRealInstancesOutliveAKilledRebake(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	home := t.TempDir()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), launcher+"="+home)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	if line != "launched <nil>\n" {
		t.Fatal(line)
	}
	must(t, cmd.Process.Kill())
	if err := cmd.Wait(); err == nil {
		t.Fatal("the launcher ended by itself")
	}

	p, err := New(Config{Memory: 64 << 20}, Deps{State: state.Dir(home), Store: &shelf{}}, "web")
	must(t, err)
	p.grace = time.Second
	t.Cleanup(func() { p.Retire(context.Background(), blue) })
	before := pids(t, p)
	one, two := instanceID(blue, 1), instanceID(blue, 2)
	if len(before) != 2 || before[one] == 0 || before[two] == 0 {
		t.Fatalf("after the kill: %v", before)
	}
	if door, err := p.Door(ctx, one); err != nil || door.Addr == "" {
		t.Errorf("door %+v, %v", door, err)
	}
	must(t, syscall.Kill(before[two], syscall.SIGKILL))
	awaitEnd(ctx, t, before[two])
	if got := pids(t, p); got[two] != 0 {
		t.Errorf("the killed instance is said to run: %v", got)
	}
	spec := fleet.Spec{Image: image(1), Size: 2, Ports: []int{80}}
	must(t, p.Launch(ctx, blue, spec))
	after := pids(t, p)
	if after[one] != before[one] || after[two] == 0 || after[two] == before[two] {
		t.Errorf("before %v, after %v", before, after)
	}
	run1, run2 := runDir(p.dir("web", one)), runDir(p.dir("web", two))
	must(t, p.Retire(ctx, blue))
	for _, pid := range after {
		awaitEnd(ctx, t, pid)
	}
	for _, path := range []string{run1, run2, p.dir("web", one), p.dir("web", two), groupFile(p.deps.State.Fleet("web"), blue)} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left (%v)", path, err)
		}
	}
}

// awaitEnd waits until the process has ended. Whoever adopted it may never reap
// it: in a container the first process often does not.
func awaitEnd(ctx context.Context, t *testing.T, pid int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for syscall.Kill(pid, 0) == nil && !zombie(pid) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("process %d does not end", pid)
		}
	}
}

func zombie(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	return strings.HasPrefix(rest, "Z")
}
