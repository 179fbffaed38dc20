// Command demo is `make demo`: it runs the rebake binary as a user would. It
// bakes a Debian image, runs a fleet of it, bakes a second one, replaces the
// fleet while requests flow, has a broken third one refused, prints what was
// measured, and removes all it started.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/rebake/rebake/internal/load"
)

func main() {
	bin := flag.String("rebake", "bin/rebake", "the binary to show")
	home := flag.String("home", ".cache/demo", "its state directory; the Debian base in it is kept for the next demo")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := demo(ctx, *bin, *home); err != nil {
		fmt.Fprintln(os.Stderr, "demo: "+err.Error())
		stop()
		os.Exit(1)
	}
}

const (
	templatePath = "test/demo/demo.yaml"
	address      = "http://127.0.0.1:18080/"
)

// cli runs rebake with a state directory of the demo's own.
type cli struct{ bin, home string }

// run shows the command and its output, and returns what it printed as its result.
func (c cli) run(ctx context.Context, args ...string) (string, error) {
	fmt.Printf("\n$ rebake %s\n", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, c.bin, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 2 * time.Minute
	cmd.Env = append(os.Environ(), "REBAKE_HOME="+c.home)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	err := cmd.Run()
	fmt.Print(out.String())
	return out.String(), err
}

// image asks for the digest of a reference.
func (c cli) image(ctx context.Context, ref string) (string, error) {
	cmd := exec.CommandContext(ctx, c.bin, "--output", "json", "images", "show", ref)
	cmd.Env = append(os.Environ(), "REBAKE_HOME="+c.home)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("images show %s: %w", ref, err)
	}
	var res struct {
		Result struct {
			Version, Digest string
		}
	}
	if err := json.Unmarshal(out, &res); err != nil {
		return "", fmt.Errorf("images show %s: %w in %q", ref, err, out)
	}
	return res.Result.Version + "  " + res.Result.Digest, nil
}

func demo(ctx context.Context, bin, home string) (err error) {
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	if home, err = filepath.Abs(home); err != nil {
		return err
	}
	c := cli{bin, home}
	began := time.Now()
	defer func() { err = errors.Join(err, cleanUp(c)) }()

	if _, err := c.run(ctx, "up", templatePath, "--var", "release=1", "--tag", "v1", "--force"); err != nil {
		return fmt.Errorf("bake and deploy v1: %w", err)
	}
	if _, err := c.run(ctx, "build", templatePath, "--var", "release=2", "--tag", "v2", "--force"); err != nil {
		return fmt.Errorf("bake v2: %w", err)
	}
	swap, swapped, err := underLoad(ctx, func() (string, error) {
		return c.run(ctx, "deploy", templatePath, "--var", "release=2", "--image", "demo:v2")
	})
	if err != nil {
		return fmt.Errorf("swap v1 for v2: %w", err)
	}
	if swap.Failed > 0 {
		return fmt.Errorf("%d of %d requests failed during the swap: %v", swap.Failed, swap.Sent, swap.FirstErrors)
	}
	if _, err := c.run(ctx, "build", templatePath, "--var", "release=3", "--var", "break=yes", "--tag", "v3", "--force"); err != nil {
		return fmt.Errorf("bake the broken v3: %w", err)
	}
	refused, verdict, err := underLoad(ctx, func() (string, error) {
		return c.run(ctx, "deploy", templatePath, "--var", "release=3", "--image", "demo:v3")
	})
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		return fmt.Errorf("the broken v3 should have been rolled back (exit status 3), got: %v", err)
	}
	if refused.Failed > 0 {
		return fmt.Errorf("%d of %d requests failed while v3 was refused: %v", refused.Failed, refused.Sent, refused.FirstErrors)
	}
	v1, err1 := c.image(ctx, "demo:v1")
	v2, err2 := c.image(ctx, "demo:v2")
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	fmt.Printf("\n%s\n", strings.Repeat("=", 100))
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	row := func(k, format string, a ...any) { fmt.Fprintf(w, "%s\t%s\n", k, fmt.Sprintf(format, a...)) }
	row("image v1", "%s", v1)
	row("image v2", "%s", v2)
	row("requests sent during the swap", "%d (POST, never replayed; answered by %s)", swap.Sent, versions(swap.ByVersion))
	row("failed", "%d", swap.Failed)
	row("swap", "%s", lastLine(swapped))
	row("latency during the swap", "p50 %s, p99 %s", swap.P50.Round(time.Millisecond), swap.P99.Round(time.Millisecond))
	row("broken v3", "%s", lastLine(verdict))
	row("requests sent while it was refused", "%d, failed %d, answered by %s", refused.Sent, refused.Failed, versions(refused.ByVersion))
	row("whole demo", "%s", time.Since(began).Round(time.Second))
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Println(strings.Repeat("=", 100))
	return nil
}

// underLoad runs f while requests flow.
func underLoad(ctx context.Context, f func() (string, error)) (load.Result, string, error) {
	lctx, stop := context.WithCancel(ctx)
	defer stop()
	results := make(chan load.Result, 1)
	go func() { results <- load.Run(lctx, load.Options{URL: address, Concurrency: 4}) }()
	out, err := f()
	stop()
	return <-results, out, err
}

func versions(m map[string]int) string {
	var parts []string
	for v, n := range m {
		parts = append(parts, fmt.Sprintf("%s: %d", v, n))
	}
	return strings.Join(parts, ", ")
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// cleanUp removes what the demo started; the Debian base stays for the next one.
func cleanUp(c cli) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	_, err1 := c.run(ctx, "fleet", "destroy", "demo", "--yes")
	_, err2 := c.run(ctx, "gc")
	var errs []error
	for _, d := range []string{"store", "builds", "fleets", "logs", "cache/disks"} {
		errs = append(errs, os.RemoveAll(filepath.Join(c.home, d)))
	}
	fmt.Printf("\nremoved: fleet, images, machines (kept for the next demo: %s)\n", filepath.Join(c.home, "cache"))
	return errors.Join(append(errs, err1, err2)...)
}
