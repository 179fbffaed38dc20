// Command bench is `make bench`: rebake and Packer build the same images from
// one base disk with the same steps, in turn, and the page docs/benchmarks.md
// says what both took. It judges nothing by its exit status but whether both
// tools did their work: a target that is not met is on the page, not an error.
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
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
)

func main() {
	o := options{}
	flag.StringVar(&o.rebake, "rebake", "bin/rebake", "the binary to measure")
	flag.IntVar(&o.pairs, "pairs", 5, "how often each scenario is run by both tools")
	flag.StringVar(&o.only, "only", "", "scenarios to run, with commas between: real, trivial, files, netem, another, store, tests")
	flag.StringVar(&o.work, "work", ".cache/bench", "folder of everything but the page; the base disk in it is kept for the next run")
	flag.StringVar(&o.page, "page", "docs/benchmarks.md", "the page to write")
	flag.BoolVar(&o.again, "continue", false, "go on with what an interrupted run has not measured")
	flag.DurationVar(&o.budget, "budget", 0, "begin nothing more after so long; the page says that it is not a full run")
	flag.StringVar(&o.bootWait, "boot-wait", "", "Packer's boot_wait, instead of finding out which is best")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := measureAll(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: "+err.Error())
		os.Exit(1)
	}
}

type options struct {
	rebake, only, work, page, bootWait string
	pairs                              int
	budget                             time.Duration
	again                              bool
}

// pick are the scenarios that were asked for.
func (o options) pick() ([]scenario, error) {
	all := scenarios()
	if o.pairs < 1 {
		return nil, errors.New("-pairs: at least 1")
	}
	if o.only == "" {
		return all, nil
	}
	var some []scenario
	for _, name := range strings.Split(o.only, ",") {
		i := slices.IndexFunc(all, func(s scenario) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("-only: no scenario %q: real, trivial, files, netem, another, store or tests", name)
		}
		some = append(some, all[i])
	}
	if has := func(name string) int { return slices.IndexFunc(some, func(s scenario) bool { return s.name == name }) }; has("real") < 0 && has("another") >= 0 {
		some[has("another")].packer = packerOf("real")
	}
	return some, nil
}

func measureAll(ctx context.Context, o options) (err error) {
	began := time.Now()
	chosen, err := o.pick()
	if err != nil {
		return err
	}
	b := &bench{accel: "tcg", sizes: &sizes{}, note: func(format string, a ...any) { fmt.Printf(format+"\n", a...) }}
	if b.work, err = filepath.Abs(o.work); err != nil {
		return err
	}
	if b.rebake, err = filepath.Abs(o.rebake); err != nil {
		return err
	}
	if err := os.MkdirAll(b.work, 0o700); err != nil {
		return err
	}
	lock := flock.New(filepath.Join(b.work, "lock"))
	if ok, err := lock.TryLock(); err != nil || !ok {
		return errors.Join(err, fmt.Errorf("another benchmark works in %s", b.work))
	}
	defer lock.Close()
	page := page{bench: b, options: o, chosen: chosen, sittings: 1}
	if page.machine, err = b.describe(ctx); err != nil {
		return err
	}
	if b.proxy, err = startProxy(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.proxy.close()) }()
	if err := errors.Join(os.RemoveAll(filepath.Join(b.work, "homes")), os.RemoveAll(filepath.Join(b.work, "packer"))); err != nil {
		return err
	}
	if !o.again {
		if err := os.RemoveAll(filepath.Join(b.work, "logs")); err != nil {
			return err
		}
	}
	if err := errors.Join(b.makeInput(), b.makeKeys()); err != nil {
		return err
	}
	if buildsNothing(chosen) {
		page.done = []string{"commands"}
	} else if err := b.makeBase(ctx); err != nil {
		return err
	}
	if o.again {
		if err := page.resume(); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, os.RemoveAll(filepath.Join(b.work, "homes"))) }()
	if !buildsNothing(chosen) {
		if _, err := b.makeSeedHome(ctx); err != nil {
			return err
		}
	}
	if !page.did("commands") {
		if b.bootWait = o.bootWait; b.bootWait == "" {
			if err := b.tunePacker(ctx, min(3, o.pairs)); err != nil {
				return err
			}
		}
		if err := errors.Join(b.commands(ctx), ctx.Err()); err != nil {
			return err
		}
		if err := page.save("commands"); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(chosen, func(s scenario) bool { return s.name == "netem" }) {
		b.slow, err = slowNetwork(ctx)
		switch {
		case errors.Is(err, errNotAllowed):
			page.noSlow = err.Error()
			b.note("netem: not measured: %v", err)
		case err != nil:
			return err
		default:
			defer func() { err = errors.Join(err, b.slow.remove(ctx)) }()
		}
	}
	for n := 1; n <= o.pairs; n++ {
		for _, s := range chosen {
			name := fmt.Sprintf("%s, round %d", s.name, n)
			if (n-1)%s.every != 0 || page.did(name) {
				continue
			}
			if o.budget > 0 && time.Since(began) > o.budget {
				b.note("the budget of %s is spent", o.budget)
				return page.write()
			}
			if err := b.pair(ctx, s, n); err != nil {
				return err
			}
			if err := page.save(name); err != nil { // a run that is interrupted has its page
				return err
			}
		}
	}
	return nil
}

// pair runs both tools, the other one first in every other round.
func (b *bench) pair(ctx context.Context, s scenario, n int) error {
	order := []func(context.Context, round) error{s.rebake, s.packer}
	if n%2 == 0 {
		slices.Reverse(order)
	}
	for _, f := range order {
		if f == nil {
			continue
		}
		if err := f(ctx, round{b, n}); err != nil {
			return err
		}
	}
	return nil
}

// bootWaits are the default, a short one, and none: Packer takes 0 as the default.
var bootWaits = []string{"10s", "1s", "-1s"}

// tunePacker tries what the documentation of Packer says about speed, and keeps
// what is best.
func (b *bench) tunePacker(ctx context.Context, times int) error {
	took := map[string][]float64{}
	waits := slices.Clone(bootWaits)
	for n := 1; n <= times; n++ {
		for _, w := range waits {
			r, err := b.packerBuild(ctx, "tune: boot_wait "+w, n, packerBuild{template: "trivial", bootWait: w})
			if err != nil {
				return err
			}
			took[w] = append(took[w], r.Seconds)
		}
		slices.Reverse(waits)
	}
	b.bootWait = bootWaits[0]
	for _, w := range bootWaits {
		if spreadOf(took[w]).Med < spreadOf(took[b.bootWait]).Med {
			b.bootWait = w
		}
	}
	// The backing file is known not to work with some versions: then that is what there is to say.
	_, err := b.packerBuild(ctx, "tune: use_backing_file", 1, packerBuild{template: "trivial", backingFile: true})
	if ctx.Err() != nil {
		return err
	}
	b.backingFile = err == nil
	if err != nil {
		b.note("packer: use_backing_file does not work here and is left out")
		b.noBackingFile = err.Error()
	}
	return nil
}

// commands measures the commands that build nothing.
func (b *bench) commands(ctx context.Context) (err error) {
	input := filepath.Join(b.work, "input")
	home, err := b.freshHome(ctx, "commands")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(home)) }()
	packer := []string{"packer", "validate"}
	for k, v := range map[string]string{"base": b.base, "key": b.key, "seed": b.seed, "output": b.packerOutput(), "boot_wait": "1s"} {
		packer = append(packer, "-var", k+"="+v)
	}
	for n := 1; n <= 11; n++ {
		for _, c := range []struct {
			tool, name string
			args       []string
		}{
			{"rebake", "--version", []string{b.rebake, "--version"}},
			{"packer", "--version", []string{"packer", "version"}},
			{"rebake", "validate", []string{b.rebake, "validate", filepath.Join(input, "real.yaml"), "--var", "base=" + b.base, "--var", "checksum=" + b.checksum,
				"--var", "proxy=" + b.proxy.url(), "--var", "release=1", "--var", "change=0"}},
			{"packer", "validate", append(slices.Clone(packer), filepath.Join(input, "real.json"))},
		} {
			r := run{Tool: c.tool, Scenario: c.name, Round: n}
			if err := b.record(ctx, &r, command{args: c.args, dir: input, env: append(b.packerEnv(), "REBAKE_HOME="+home)}); err != nil {
				return err
			}
			b.runs = append(b.runs, r)
		}
	}
	return nil
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func writeJSON(path string, v any) error {
	raw, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o600)
}

// output is what a command says of itself, "" if it says nothing.
func output(ctx context.Context, args ...string) string {
	out, _ := exec.CommandContext(ctx, args[0], args[1:]...).Output()
	return strings.TrimSpace(string(out))
}
