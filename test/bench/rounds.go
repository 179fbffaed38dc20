package main

import (
	"context"
	"fmt"
	"os"
)

// round is one pass over a scenario: both tools, one after the other.
type round struct {
	*bench
	n int
}

// scenario is a set of runs that belong together.
type scenario struct {
	name   string
	what   string
	rebake func(context.Context, round) error
	packer func(context.Context, round) error
	every  int // run in each of so many rounds
}

func scenarios() []scenario {
	return []scenario{
		{"real", "the real template: first build, nothing changed, last step changed, first step changed; then trivial on the same base", rebakeReal, packerOf("real"), 1},
		{"trivial", "the same of the trivial template", rebakeTrivial, packerOf("trivial"), 1},
		{"files", "a file of 100 MB, 1,000 files of 2 KiB, loopback", rebakeFiles, packerOf("files"), 1},
		{"netem", "the same with a round trip of " + roundTrip, rebakeSlow, packerSlow, 1},
		{"another", "real on a base that trivial booted", rebakeAnother, nil, 1},
		{"store", "a disk of 2 GiB into a store, a registry, and another store, beside zstd and sha256sum", rebakeStore, storeBeside, 1},
		{"tests", "rebake's test stage, which Packer has not", rebakeTests, nil, 2},
	}
}

func packerOf(template string) func(context.Context, round) error {
	return func(ctx context.Context, r round) error {
		vars := map[string]string{}
		if template != "files" {
			vars["release"] = fmt.Sprintf("%d.0", r.n)
		}
		k := packerBuild{template: template, vars: vars, keepOutput: r.n == 1 && template == "real"}
		if _, err := r.packerBuild(ctx, template, r.n, k); err != nil {
			return err
		}
		if k.keepOutput {
			return r.sizes.ofPacker(ctx, r.bench)
		}
		return nil
	}
}

// builds runs several builds in one state directory.
func (r round) builds(ctx context.Context, home string, of []namedBuild) error {
	home, err := r.freshHome(ctx, home)
	if err != nil {
		return err
	}
	for _, k := range of {
		k.rebakeBuild.home = home
		if _, err := r.rebakeBuild(ctx, k.name, r.n, k.rebakeBuild); err != nil {
			return err
		}
		if k.then != nil {
			if err := k.then(ctx, r.bench, home); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(home)
}

type namedBuild struct {
	name string
	rebakeBuild
	then func(context.Context, *bench, string) error // not measured
}

func rebakeReal(ctx context.Context, r round) error {
	build := func(name, release, change string, changed bool) namedBuild {
		return namedBuild{name: "real: " + name, rebakeBuild: rebakeBuild{template: "real", changed: changed, vars: map[string]string{"release": fmt.Sprintf("%d.%s", r.n, release), "change": change}}}
	}
	first := build("first build", "0", "0", true)
	if r.n == 1 {
		first.then = func(ctx context.Context, b *bench, home string) error { return b.sizes.ofRebake(ctx, b, home) }
	}
	return r.builds(ctx, "real", []namedBuild{
		first,
		build("nothing changed", "0", "0", false),
		build("last step changed", "1", "0", true),
		build("first step changed", "1", "1", true),
		{name: "trivial: another template on the base", rebakeBuild: rebakeBuild{template: "trivial", changed: true, vars: map[string]string{"release": "1"}}},
	})
}

func rebakeTrivial(ctx context.Context, r round) error {
	build := func(name, release string, changed bool) namedBuild {
		return namedBuild{name: "trivial: " + name, rebakeBuild: rebakeBuild{template: "trivial", changed: changed, vars: map[string]string{"release": fmt.Sprintf("%d.%s", r.n, release)}}}
	}
	return r.builds(ctx, "trivial", []namedBuild{
		build("first build", "0", true),
		build("nothing changed", "0", false),
		build("last step changed", "1", true),
	})
}

// rebakeAnother: what Packer takes for it is known from the same round of real,
// where that is run.
func rebakeAnother(ctx context.Context, r round) error {
	trivial := rebakeBuild{template: "trivial", changed: true, vars: map[string]string{"release": "2"}}
	real := rebakeBuild{template: "real", changed: true, vars: map[string]string{"release": "2", "change": "0"}}
	return r.builds(ctx, "another", []namedBuild{{name: "another: that boots the base", rebakeBuild: trivial}, {name: "real: another template on the base", rebakeBuild: real}})
}

func rebakeFiles(ctx context.Context, r round) error {
	return r.builds(ctx, "files", []namedBuild{{name: "files: first build", rebakeBuild: rebakeBuild{template: "files", changed: true}}})
}

func rebakeSlow(ctx context.Context, r round) error {
	if r.slow == nil {
		return nil
	}
	return r.builds(ctx, "netem", []namedBuild{{name: "netem: first build", rebakeBuild: rebakeBuild{template: "files", changed: true, ns: r.slow.name}}})
}

func packerSlow(ctx context.Context, r round) error {
	if r.slow == nil {
		return nil
	}
	_, err := r.packerBuild(ctx, "netem", r.n, packerBuild{template: "files", ns: r.slow.name})
	return err
}

func rebakeTests(ctx context.Context, r round) error {
	return r.builds(ctx, "tests", []namedBuild{{name: "real: first build with tests", rebakeBuild: rebakeBuild{template: "real", changed: true, tests: true,
		vars: map[string]string{"release": "1", "change": "0"}}}})
}
