//go:build !linux

package qemu

import "os/exec"

func runBound(cmd *exec.Cmd) error { return cmd.Run() }
