package wake

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The kernel lets only root add entropy: anybody else's program must say that
// it failed, and it must not crash.
func TestProgramReseedsTheKernelOrSaysThatItCould(t *testing.T) {
	path := filepath.Join(t.TempDir(), "reseed")
	if err := os.WriteFile(path, program(), 0o700); err != nil {
		t.Fatal(err)
	}
	pool := make([]byte, 8+seedSize) // no entropy is claimed: entropy_count is 0
	pool[4] = seedSize
	run := func(in []byte) int {
		cmd := exec.Command(path)
		cmd.Stdin = bytes.NewReader(in)
		err := cmd.Run()
		if cmd.ProcessState == nil || !cmd.ProcessState.Exited() {
			t.Fatalf("the program did not exit: %v", err)
		}
		return cmd.ProcessState.ExitCode()
	}
	want := 0
	if os.Geteuid() != 0 {
		want = 1
	}
	if got := run(pool); got != want {
		t.Errorf("status %d, want %d", got, want)
	}
	if got := run(pool[:20]); got != 1 {
		t.Errorf("status %d of a seed that is cut short, want 1", got)
	}
}
