// Package command runs the rebake binary in tests.
package command

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Run runs it; its exit status must be want.
func Run(t testing.TB, want int, cmd *exec.Cmd) (stdout, stderr string) {
	t.Helper()
	args := cmd.Args[1:]
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	began := time.Now()
	err := cmd.Run()
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		t.Fatalf("rebake %v: %v", args, err)
	}
	t.Logf("rebake %s: status %d in %.1fs", strings.Join(args, " "), got, time.Since(began).Seconds())
	if got != want {
		t.Fatalf("rebake %v: status %d, want %d\nstdout:\n%s\nstderr:\n%s", args, got, want, out.String(), errb.String())
	}
	return out.String(), errb.String()
}
