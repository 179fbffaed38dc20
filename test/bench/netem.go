package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

const (
	nsPrefix  = "rebake-bench-"
	roundTrip = "80 ms"
	oneWay    = "40ms" // the loopback is passed twice
)

// errNotRoot is why a slow network cannot be measured.
var errNotRoot = errors.New("needs root: a network namespace with delay by tc netem")

// slowNetwork makes a network namespace whose loopback has a round trip of 80 ms,
// and says how it is removed.
func slowNetwork(ctx context.Context) (name string, remove func() error, err error) {
	if os.Getuid() != 0 {
		return "", nil, errNotRoot
	}
	for _, prog := range []string{"ip", "tc"} {
		if _, err := exec.LookPath(prog); err != nil {
			return "", nil, fmt.Errorf("%w (Debian: apt-get install iproute2)", err)
		}
	}
	sweepNetworks(ctx)
	name = nsPrefix + strconv.Itoa(os.Getpid())
	remove = func() error { return ip(context.WithoutCancel(ctx), "ip", "netns", "delete", name) }
	if err := ip(ctx, "ip", "netns", "add", name); err != nil {
		return "", nil, err
	}
	for _, args := range [][]string{
		{"ip", "-n", name, "link", "set", "lo", "up"},
		{"ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", oneWay, "limit", "100000"},
	} {
		if err := ip(ctx, args...); err != nil {
			return "", nil, errors.Join(err, remove())
		}
	}
	return name, remove, nil
}

// sweepNetworks removes those of killed runs.
func sweepNetworks(ctx context.Context) {
	out, _ := exec.CommandContext(ctx, "ip", "netns", "list").Output()
	for _, f := range strings.Fields(string(out)) {
		pid, err := strconv.Atoi(strings.TrimPrefix(f, nsPrefix))
		if strings.HasPrefix(f, nsPrefix) && err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = ip(ctx, "ip", "netns", "delete", f)
		}
	}
}

func ip(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}
