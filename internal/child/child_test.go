package child_test

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rebake/rebake/internal/child"
)

// The test binary is also the process that is killed.
func TestMain(m *testing.M) {
	if how := os.Getenv("CHILD_TEST"); how != "" {
		cmd := exec.CommandContext(context.Background(), "sh", "-c", "echo $$; exec sleep 300")
		cmd.Stdout = os.Stdout
		if how == "group" {
			_ = child.RunGroup(cmd)
		} else {
			_ = child.Run(cmd)
		}
		return
	}
	os.Exit(m.Run())
}

func TestNothingOutlivesAKill(t *testing.T) {
	for _, how := range []string{"group", "alone"} {
		t.Run(how, func(t *testing.T) {
			self := exec.Command(os.Args[0])
			self.Env = append(os.Environ(), "CHILD_TEST="+how)
			out, err := self.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := self.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				t.Fatal(err)
			}
			if err := self.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = self.Wait()
			gone(t, pid)
		})
	}
}

// A group is killed whole when its context ends.
func TestAGroupEndsWithItsContext(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", `sleep 300 & echo $! > "$0.new"; mv "$0.new" "$0"; wait`, file)
	cmd.Stdout = io.Discard
	done := make(chan error, 1)
	go func() { done <- child.RunGroup(cmd) }()
	var pid int
	for until := time.Now().Add(10 * time.Second); pid == 0; time.Sleep(5 * time.Millisecond) {
		if raw, err := os.ReadFile(file); err == nil {
			pid, _ = strconv.Atoi(strings.TrimSpace(string(raw)))
		}
		if time.Now().After(until) {
			t.Fatal("it does not start")
		}
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("killed, and no error")
	}
	gone(t, pid)
}

func gone(t *testing.T, pid int) {
	t.Helper()
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil && syscall.Kill(pid, 0) != nil || strings.Contains(string(raw), ") Z ") {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("process %d is still there", pid)
		}
	}
}
