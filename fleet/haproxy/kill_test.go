package haproxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/fleet"
)

// ensurer makes the test binary a rebake that ensures a router and is killed meanwhile.
const ensurer = "REBAKE_TEST_ENSURE"

func TestMain(m *testing.M) {
	if v := os.Getenv(ensurer); v != "" {
		f := strings.Split(v, "|")
		r, err := New(Config{Listen: f[0]}, f[1], f[2], "web", fast)
		if err == nil {
			err = r.Ensure(context.Background())
		}
		fmt.Println("ensured", err)
		select {}
	}
	os.Exit(m.Run())
}

// However early rebake is killed, the next one finds the router that the
// killed one started, and does not start a second.
func TestRebakeKilledWhileItStartsTheRouter(t *testing.T) {
	for i := range 12 {
		r := newRouter(t, fast)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), ensurer+"="+strings.Join([]string{r.cfg.Listen, r.dir, r.runDir}, "|"))
		must(t, cmd.Start())
		// from before the first file to after the socket
		for began := time.Now(); time.Since(began) < time.Duration(i)*4*time.Millisecond; {
			if _, err := os.Stat(r.socketPath()); err == nil {
				break
			}
		}
		must(t, cmd.Process.Kill())
		if err := cmd.Wait(); err == nil {
			t.Fatal("ended by itself")
		}
		ensure(t, r)
		if n := processes(t, r.file(configName)); n != 1 {
			t.Errorf("killed after %d ms: %d routers run", i*4, n)
		}
		serve(t, r, fleet.Blue, newBackend(t, "v").member("b"))
		must(t, r.Remove(context.Background()))
		if n := processes(t, r.file(configName)); n != 0 {
			t.Errorf("%d routers left", n)
		}
	}
}

// processes counts those that have this file among their arguments.
func processes(t *testing.T, config string) int {
	t.Helper()
	out, err := exec.Command("ps", "-A", "-ww", "-o", "command=").Output()
	must(t, err)
	n := 0
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "-f "+config) {
			n++
		}
	}
	return n
}

func TestRunDirectoryOfOthersIsRefused(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Symlink(dir, filepath.Join(dir, "link")))
	if err := privateDir(filepath.Join(dir, "link")); err == nil {
		t.Error("a link was taken for a private directory")
	}
	open := filepath.Join(dir, "open")
	must(t, os.Mkdir(open, 0o700))
	must(t, os.Chmod(open, 0o777))
	must(t, privateDir(open))
	if st, err := os.Stat(open); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func TestChangesWaitForTheirTurnAndGiveUpWithTheirContext(t *testing.T) {
	r := newRouter(t, fast)
	ensure(t, r)
	other, err := New(r.cfg, r.dir, r.runDir, r.name, r.hc)
	must(t, err)
	cancelled := errors.New("enough")
	must(t, r.locked(context.Background(), func() error {
		ctx, cancel := context.WithTimeoutCause(context.Background(), 50*time.Millisecond, cancelled)
		defer cancel()
		if err := other.SetWeights(ctx, map[fleet.Slot]int{fleet.Blue: 1000}); !errors.Is(err, cancelled) {
			t.Errorf("while another changes: %v", err)
		}
		return nil
	}))
	must(t, other.SetWeights(context.Background(), map[fleet.Slot]int{fleet.Blue: 1000}))
}

// The shell that becomes HAProxy holds the lock until its process id is
// written: in between nobody else may start one.
func TestLockOutlivesARebakeKilledBeforeTheProcessIDIsWritten(t *testing.T) {
	r := newRouter(t, fast)
	tools := t.TempDir()
	started, proceed := filepath.Join(tools, "started"), filepath.Join(tools, "proceed")
	mv, err := exec.LookPath("mv")
	must(t, err)
	slow := fmt.Sprintf("#!/bin/sh\n: >%s\nwhile [ ! -e %s ]; do sleep 0.01; done\nexec %s \"$@\"\n", started, proceed, mv)
	must(t, os.WriteFile(filepath.Join(tools, "mv"), []byte(slow), 0o700))
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "PATH="+tools+":"+os.Getenv("PATH"), ensurer+"="+strings.Join([]string{r.cfg.Listen, r.dir, r.runDir}, "|"))
	must(t, cmd.Start())
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		if _, err := os.Stat(started); err == nil {
			break
		}
		must(t, pause(ctx, time.Millisecond))
	}
	must(t, cmd.Process.Kill())
	if err := cmd.Wait(); err == nil {
		t.Fatal("ended by itself")
	}
	short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
	defer stop()
	if err := r.Ensure(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while the first router is on its way: %v", err)
	}
	must(t, os.WriteFile(proceed, nil, 0o600))
	must(t, r.Ensure(ctx))
	if n := processes(t, r.file(configName)); n != 1 {
		t.Errorf("%d routers run", n)
	}
}
