package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// bench is what every run stands on.
type bench struct {
	work     string // folder of everything but the page
	rebake   string // the binary
	accel    string // that rebake doctor found to work
	base     string // qcow2 that both tools start from
	checksum string // of it
	key      string // private key that Packer logs in with
	seed     string // SMBIOS strings that tell Packer's guests that key
	proxy    *proxy
	bootWait string // of Packer, the better one
	// backingFile: whether Packer can use one here; noBackingFile is why not.
	backingFile   bool
	noBackingFile string
	slow          *slowNet // nil if there is none
	sizes         *sizes
	note          func(format string, a ...any)
	runs          []run
}

// rebakeBuild is one `rebake build`.
type rebakeBuild struct {
	template string // real, trivial or files
	home     string
	vars     map[string]string
	tests    bool // with the test stage
	ns       string
	changed  bool // whether it must make an image
}

func (b *bench) rebakeBuild(ctx context.Context, scenario string, round int, k rebakeBuild) (run, error) {
	r := run{Tool: "rebake", Scenario: scenario, Round: round}
	args := []string{b.rebake, "--output", "json", "build", filepath.Join(b.work, "input", k.template+".yaml"),
		"--var", "base=" + b.base, "--var", "checksum=" + b.checksum}
	if k.template == "real" {
		args = append(args, "--var", "proxy="+b.proxy.url())
	}
	for _, name := range sortedKeys(k.vars) {
		args = append(args, "--var", name+"="+k.vars[name])
	}
	if !k.tests {
		args = append(args, "--skip-test")
	}
	var lines rebakeLines
	err := b.record(ctx, &r, command{args: args, env: []string{"REBAKE_HOME=" + k.home}, ns: k.ns, line: lines.line})
	r.Phases = lines.phases
	switch {
	case err != nil:
		return r, err
	case lines.bad != nil:
		return r, lines.bad
	case len(lines.result) != 1:
		return r, fmt.Errorf("rebake gave %d results, not one", len(lines.result))
	case lines.result[0].Changed != k.changed:
		return r, fmt.Errorf("%s: rebake says changed: %t; this scenario is not what it should be", scenario, lines.result[0].Changed)
	}
	if k.changed {
		r.Stored = lines.result[0].Image.StoredNew
	}
	b.runs = append(b.runs, r)
	return r, nil
}

// packerBuild is one `packer build`.
type packerBuild struct {
	template    string
	vars        map[string]string
	bootWait    string
	backingFile bool
	ns          string
	keepOutput  bool
}

func (b *bench) packerOutput() string { return filepath.Join(b.work, "packer", "output") }

func (b *bench) packerBuild(ctx context.Context, scenario string, round int, k packerBuild) (run, error) {
	r := run{Tool: "packer", Scenario: scenario, Round: round}
	if err := os.RemoveAll(b.packerOutput()); err != nil {
		return r, err
	}
	if k.bootWait == "" {
		k.bootWait, k.backingFile = b.bootWait, k.backingFile || b.backingFile
	}
	cpu := "host"
	if b.accel == "tcg" {
		cpu = "max"
	}
	vars := map[string]string{"base": b.base, "key": b.key, "seed": b.seed, "output": b.packerOutput(), "boot_wait": k.bootWait,
		"accelerator": b.accel, "cpu": cpu, "use_backing_file": fmt.Sprint(k.backingFile)}
	if k.template == "real" {
		vars["proxy"] = b.proxy.url()
	}
	for name, v := range k.vars {
		vars[name] = v
	}
	args := []string{"packer", "build", "-color=false"}
	for _, name := range sortedKeys(vars) {
		args = append(args, "-var", name+"="+vars[name])
	}
	lines := packerLines{seen: map[string]int{}}
	err := b.record(ctx, &r, command{args: append(args, filepath.Join(b.work, "input", k.template+".json")), env: b.packerEnv(), ns: k.ns, line: lines.line,
		dir: filepath.Join(b.work, "input")})
	r.Phases = lines.phases
	if !k.keepOutput {
		err = errors.Join(err, os.RemoveAll(b.packerOutput()))
	}
	if err != nil {
		return r, err
	}
	b.runs = append(b.runs, r)
	return r, nil
}

// packerEnv: its folders are the benchmark's own, and it asks no server whether it is new.
func (b *bench) packerEnv() []string {
	return []string{"PACKER_CACHE_DIR=" + filepath.Join(b.work, "packer", "cache"), "PACKER_CONFIG_DIR=" + filepath.Join(b.work, "packer"),
		"CHECKPOINT_DISABLE=1", "TMPDIR=" + filepath.Join(b.work, "packer", "tmp")}
}

var logName = strings.NewReplacer(" ", "-", ":", "")

// record measures a command into r.
func (b *bench) record(ctx context.Context, r *run, c command) (err error) {
	r.Began, r.Load = time.Now(), loadAverage()
	r.Command = strings.ReplaceAll(strings.Join(c.args, " "), b.work+"/", "")
	c.log = filepath.Join(b.work, "logs", fmt.Sprintf("%02d-%s-%s.log", r.Round, r.Tool, logName.Replace(r.Scenario)))
	if r.Seconds, r.Usage, err = measure(ctx, c); err != nil {
		return fmt.Errorf("%s, %s, round %d: %w", r.Scenario, r.Tool, r.Round, err)
	}
	b.note("%-7s %-40s round %d  %7.2f s   load %s", r.Tool, r.Scenario, r.Round, r.Seconds, r.Load)
	return nil
}
