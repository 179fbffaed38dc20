// Package child runs programs of this machine that do not outlive rebake.
package child

import (
	"errors"
	"os/exec"
	"syscall"
	"time"
)

// Run runs a program, which is killed when this process ends, however it does
// (Linux; elsewhere only an orderly end reaches it).
func Run(cmd *exec.Cmd) error { return bound(cmd) }

// RunGroup runs a program in a process group of its own, which is killed whole
// when the context of cmd ends. What it leaves in the background when it ends
// well may stay, and its output is not waited for. If this process is killed, so is
// the program, but not what that has started.
func RunGroup(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for children that keep its output open
	err := bound(cmd)
	if errors.Is(err, exec.ErrWaitDelay) { // it ended well itself
		return nil
	}
	return err
}
