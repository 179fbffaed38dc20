package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// phase is a part of a run, in the tool's own words.
type phase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// run is one measured run of one tool.
type run struct {
	Tool     string    `json:"tool"`
	Scenario string    `json:"scenario"`
	Round    int       `json:"round"`
	Began    time.Time `json:"began"`
	Load     string    `json:"load"` // averages when it began
	Seconds  float64   `json:"seconds"`
	Phases   []phase   `json:"phases,omitempty"`
	Usage    usage     `json:"usage"`
	Stored   int64     `json:"stored_new,omitempty"` // bytes that the store grew by
	Command  string    `json:"command"`
}

// command is something to measure.
type command struct {
	args []string // the program first
	env  []string // beside this process's own
	ns   string   // network namespace, "" for this one
	dir  string   // where it runs, "" for here
	log  string   // where all that it prints goes
	line func(at time.Time, text string)

	grace time.Duration // to clean up when it is interrupted; 0: half a minute
}

const (
	longestRun = 20 * time.Minute
	longGrace  = 30 * time.Second
)

// measure runs a command in a process group of its own, and ends what is left
// of the group: Packer's plugins and its QEMU outlive a parent that is killed.
func measure(ctx context.Context, c command) (seconds float64, use usage, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, longestRun, fmt.Errorf("still running after %s", longestRun))
	defer cancel()
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return 0, use, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	fmt.Fprintf(log, "$ %s\n", strings.Join(c.args, " "))
	args := c.args
	if c.ns != "" {
		args = append([]string{"ip", "netns", "exec", c.ns}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...) //nolint:noctx // ended below, as a group
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), c.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, use, err
	}
	errs, err := cmd.StderrPipe()
	if err != nil {
		return 0, use, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, use, err
	}
	if c.grace == 0 {
		c.grace = longGrace
	}
	group := -cmd.Process.Pid
	look := sample(cmd.Process.Pid)
	var last tail
	read := make(chan struct{}, 2)
	for _, r := range []io.Reader{out, errs} {
		go func() {
			defer func() { read <- struct{}{} }()
			lines := bufio.NewScanner(r)
			lines.Buffer(nil, 1<<20)
			for lines.Scan() {
				at := time.Now()
				fmt.Fprintf(log, "%8.3f %s\n", at.Sub(began).Seconds(), lines.Text())
				last.add(lines.Text())
				if r == io.Reader(out) && c.line != nil {
					c.line(at, lines.Text())
				}
			}
			_, _ = io.Copy(io.Discard, r)
		}()
	}
	ended := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-ended:
			return
		case <-ctx.Done():
		}
		_ = syscall.Kill(group, syscall.SIGINT)
		select {
		case <-ended:
		case <-time.After(c.grace):
			_ = syscall.Kill(group, syscall.SIGKILL)
		}
	}()
	<-read
	<-read
	err = cmd.Wait()
	seconds = time.Since(began).Seconds()
	use = look.end()
	close(ended)
	<-stopped
	_ = syscall.Kill(group, syscall.SIGKILL) // whoever did not obey; no such process: nobody
	switch {
	case ctx.Err() != nil:
		return seconds, use, context.Cause(ctx)
	case err != nil:
		return seconds, use, fmt.Errorf("%s: %w; %s ends with:\n%s", c.args[0], err, c.log, last.text())
	}
	return seconds, use, nil
}

// loadAverage is what the kernel says of this computer.
func loadAverage() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(raw)); err == nil && len(f) >= 3 {
		return strings.Join(f[:3], " ")
	}
	return "unknown"
}
