//go:build !linux

package qemu

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

const sandboxed = false

// spawn starts cmd; a bound process is killed when this one ends.
func spawn(cmd *exec.Cmd, bound bool) (wait func() error, err error) {
	if bound {
		return spawnWatched(cmd)
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return cmd.Wait, nil
}

// startTime is a process's start as ps tells it; an error if it is gone or a zombie.
func startTime(pid int) (string, error) {
	out, err := exec.Command("ps", "-o", "state=,lstart=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		return "", err
	}
	state, start, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	if strings.HasPrefix(state, "Z") {
		return "", fmt.Errorf("process %d has ended", pid)
	}
	return strings.Join(strings.Fields(start), " "), nil
}

func bootID() string {
	out, err := exec.Command("sysctl", "-n", "kern.boottime").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// findProcess returns the process that has the two arguments next to each other, or 0.
func findProcess(flag, value string) (int, error) {
	out, err := exec.Command("ps", "-axww", "-o", "pid=,args=").Output()
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(out), "\n") {
		pid, args, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.Contains(args+" ", " "+flag+" "+value+" ") {
			return strconv.Atoi(pid)
		}
	}
	return 0, nil
}
