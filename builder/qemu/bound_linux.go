package qemu

import (
	"os/exec"
	"runtime"
	"syscall"
)

// runBound runs a tool that does not outlive this process. The signal comes
// with the end of the thread that started it, so that thread is held.
func runBound(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return cmd.Run()
}
