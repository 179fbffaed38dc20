// Command mutants is `make mutants`: it breaks the deployment engine on purpose,
// one way at a time, and shows that the tests of package fleet notice each. A
// break that no test sees is a hole in the tests, and the exit status says so.
package main

import (
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
	"time"
)

// mutant is one break: in a file of package fleet, old becomes new. old is there
// exactly once.
type mutant struct {
	what, file, old, new string
}

func main() {
	only := flag.String("only", "", "mutants whose description contains this")
	runs := flag.Int("runs", 1500, "runs of the simulator against each")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := all(ctx, *only, *runs)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants: "+err.Error())
		os.Exit(1)
	}
}

func all(ctx context.Context, only string, runs int) (err error) {
	dir, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	caught, alive := 0, []string{}
	for _, m := range mutants {
		if !strings.Contains(m.what, only) {
			continue
		}
		began := time.Now()
		by, err := m.run(ctx, dir, runs)
		if err != nil {
			return fmt.Errorf("%s: %w", m.what, err)
		}
		if by == "" {
			alive = append(alive, m.what)
			by = "NOTHING"
		} else {
			caught++
		}
		fmt.Printf("%-58s %5.1fs  %s\n", m.what, time.Since(began).Seconds(), by)
	}
	fmt.Printf("%d of %d caught\n", caught, caught+len(alive))
	if len(alive) > 0 {
		return fmt.Errorf("no test notices: %s", strings.Join(alive, "; "))
	}
	return nil
}

// run is the first line of what the tests say against the mutant, "" if nothing.
func (m mutant) run(ctx context.Context, dir string, runs int) (string, error) {
	path, err := filepath.Abs(filepath.Join("fleet", m.file))
	if err != nil {
		return "", err
	}
	src, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(src), m.old); n != 1 {
		return "", fmt.Errorf("%q is %d times in %s, want once: bring the mutant up to date", m.old, n, m.file)
	}
	broken := filepath.Join(dir, m.file)
	if err := os.WriteFile(broken, []byte(strings.Replace(string(src), m.old, m.new, 1)), 0o600); err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{path: broken}})
	if err != nil {
		return "", err
	}
	spec := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(spec, overlay, 0o600); err != nil {
		return "", err
	}
	if out, err := exec.CommandContext(ctx, "go", "vet", "-overlay", spec, "./fleet").CombinedOutput(); err != nil && ctx.Err() == nil {
		return "", fmt.Errorf("the mutant does not compile: %s", out)
	}
	out, err := exec.CommandContext(ctx, "go", "test", "-overlay", spec, "-failfast", "-timeout", "45s", "./fleet", "-runs", fmt.Sprint(runs)).CombinedOutput()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err == nil:
		return "", nil
	case !errors.As(err, &exit):
		return "", err
	}
	for _, line := range strings.Split(string(out), "\n") {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "--- FAIL") || strings.HasPrefix(line, "panic:") {
			return strings.TrimPrefix(line, "--- FAIL: "), nil
		}
	}
	return "the tests failed", nil
}
