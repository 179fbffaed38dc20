package main

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// page is docs/benchmarks.md.
type page struct {
	*bench
	options  options
	chosen   []scenario
	machine  []fact
	sittings int      // more than one: it was interrupted
	done     []string // names of what is measured
	noSlow   string   // why the slow network was not measured
	out      bytes.Buffer
}

// fact is a line about the machine.
type fact struct {
	What  string `json:"what"`
	Value string `json:"value"`
}

// measured finds numbers among the runs.
type measured struct {
	tool, scenario string
	phases         []string // summed; none: the whole run
}

func (m measured) of(r run) (float64, bool) {
	if r.Tool != m.tool || r.Scenario != m.scenario {
		return 0, false
	}
	if len(m.phases) == 0 {
		return r.Seconds, true
	}
	sum, any := 0.0, false
	for _, p := range r.Phases {
		for _, want := range m.phases {
			if p.Name == want || strings.HasSuffix(want, "*") && strings.HasPrefix(p.Name, strings.TrimSuffix(want, "*")) {
				sum += p.Seconds
				any = true
			}
		}
	}
	return sum, any
}

// values are by round, so that two series pair up.
func (p *page) values(m measured) map[int]float64 {
	out := map[int]float64{}
	for _, r := range p.runs {
		if v, ok := m.of(r); ok {
			out[r.Round] = v
		}
	}
	return out
}

func (p *page) spread(m measured) spread {
	var v []float64
	for _, x := range p.values(m) {
		v = append(v, x)
	}
	return spreadOf(v)
}

// ratio divides a by b, round by round.
func (p *page) ratio(a, b measured) spread {
	var x, y []float64
	vb := p.values(b)
	for n, v := range p.values(a) {
		if w, ok := vb[n]; ok {
			x, y = append(x, v), append(y, w)
		}
	}
	return spreadOf(ratios(x, y))
}

func rebakeOf(scenario string, phases ...string) measured {
	return measured{"rebake", scenario, phases}
}
func packerIs(scenario string, phases ...string) measured {
	return measured{"packer", scenario, phases}
}

// row is one comparison. Its target is fixed: what misses it is shown to.
type row struct {
	label  string
	a, b   measured
	target float64 // of the ratio; 0: none
}

// What rebake calls its tasks.
const (
	bootPhases    = "boot *"
	connectPhase  = "connect"
	restorePhases = "go on after *"
	saveBoot      = `save the state after "boot"`
	wakePhase     = "wake"
)

func comparisons() []row {
	return []row{
		{"(a) first build, nothing cached, real", rebakeOf("real: first build"), packerIs("real"), 0.8},
		{"(b) last step changed, real", rebakeOf("real: last step changed"), packerIs("real"), 0.10},
		{"(c) nothing changed, real", rebakeOf("real: nothing changed"), packerIs("real"), 0.02},
		{"(d) first step changed, real", rebakeOf("real: first step changed"), packerIs("real"), 0},
		{"first build of real on a base that another template booted", rebakeOf("real: another template on the base"), packerIs("real"), 0.5},
		{"(a) first build, nothing cached, trivial", rebakeOf("trivial: first build"), packerIs("trivial"), 0},
		{"(b) last step changed, trivial", rebakeOf("trivial: last step changed"), packerIs("trivial"), 0.25},
		{"(c) nothing changed, trivial", rebakeOf("trivial: nothing changed"), packerIs("trivial"), 0.02},
		{"first build of trivial on a base that another template booted", rebakeOf("trivial: another template on the base"), packerIs("trivial"), 0.5},
		{"(e) 100 MB file: the step", rebakeOf("files: first build", "provision: big"), packerIs("files", "upload 1"), 0.5},
		{"(f) 1,000 small files, loopback: the step", rebakeOf("files: first build", "provision: small"), packerIs("files", "upload 2"), 0.5},
		{"(e, f) whole build with both", rebakeOf("files: first build"), packerIs("files"), 0},
		{"(f) 1,000 small files, round trip " + roundTrip + ": the step", rebakeOf("netem: first build", "provision: small"), packerIs("netem", "upload 2"), 0.05},
		{"(e) 100 MB file, round trip " + roundTrip + ": the step", rebakeOf("netem: first build", "provision: big"), packerIs("netem", "upload 1"), 0},
		{"(e, f) whole build with both, round trip " + roundTrip, rebakeOf("netem: first build"), packerIs("netem"), 0},
	}
}

// own are rebake's figures that are measured against its own cold boot.
func own() []row {
	cold := rebakeOf("trivial: first build", bootPhases, connectPhase)
	return []row{
		{"restore to first command, against a cold boot", rebakeOf("trivial: last step changed", restorePhases, connectPhase), cold, 0.1},
		{"the same, until the guest's clock and entropy are set", rebakeOf("trivial: last step changed", restorePhases, connectPhase, wakePhase), cold, 0},
		{"saving a checkpoint, against a cold boot", rebakeOf("trivial: first build", saveBoot), cold, 0.15},
	}
}

func verdict(value, target float64) string {
	switch {
	case target == 0:
		return ""
	case math.IsNaN(value):
		return "not measured"
	case value <= target:
		return "met"
	}
	return "**not met**"
}

func (p *page) printf(format string, a ...any) { fmt.Fprintf(&p.out, format, a...) }

// table prints rows whose ratio was measured; a target that was not measured stays in sight.
func (p *page) table(head string, rows []row) {
	p.printf("\n| %s | ratio | at most | |\n|---|---|---|---|---|---|---|\n", head)
	for _, r := range rows {
		s := p.ratio(r.a, r.b)
		if s.N == 0 && r.target == 0 {
			continue
		}
		target := ""
		if r.target > 0 {
			target = number(r.target)
		}
		p.printf("| %s | %d | %s | %s | %s | %s | %s |\n", r.label, s.N, p.spread(r.a), p.spread(r.b), s, target, verdict(s.Med, r.target))
	}
}

// write makes the page anew from the runs so far.
func (p *page) write() error {
	p.out.Reset()
	p.head()
	p.table("scenario | pairs | rebake, s | Packer, s", comparisons())
	p.printf("\nMedian (least–most). A ratio is rebake's time divided by Packer's in the same round; its median is over the rounds.\n")
	p.printf("Why those that are not met are not, and what was tried: [adr/0015](adr/0015-build-time.md).\n")
	if p.noSlow != "" {
		p.printf("\nThe round trip of %s was not measured: %s.\n", roundTrip, p.noSlow)
	}
	if p.slow != nil {
		p.printf("\nThe round trip of %s is made in a network namespace, by %s; QEMU is in the namespace too.\n", roundTrip, p.slow.how)
	}
	p.table("rebake alone | runs | this, s | cold boot, s", own())
	p.small()
	p.tests()
	p.store()
	p.resources()
	p.tuning()
	p.timeLines()
	if err := p.settings(); err != nil {
		return err
	}
	path := p.options.page
	tmp := path + ".tmp"
	return errors.Join(os.WriteFile(tmp, p.out.Bytes(), 0o644), os.Rename(tmp, path)) //nolint:gosec // a public page
}

func (p *page) head() {
	rounds := 0
	for _, r := range p.runs {
		if r.Tool == "rebake" && strings.Contains(r.Scenario, ": ") {
			rounds = max(rounds, r.Round)
		}
	}
	p.printf("# Benchmarks\n\nWritten by `make bench` (test/bench) on %s. Do not edit: run it.\n\n", time.Now().UTC().Format(time.DateOnly))
	p.printf("rebake and Packer build the same images from the same base disk, with the same steps, the same accelerator and the same\n" +
		"machine (1 CPU, 512 MB), in turn in one run; the one that goes first changes with every round.\n")
	if rounds < 5 {
		p.printf("\n> **Not a full run**: %d rounds; a full one has at least 5.\n", rounds)
	}
	if p.sittings > 1 {
		p.printf("\nMeasured in %d sittings (-continue), with one binary; the two of a pair are always of one sitting.\n", p.sittings)
	}
	p.printf("\n| machine | |\n|---|---|\n")
	for _, f := range p.machine {
		p.printf("| %s | %s |\n", f.What, f.Value)
	}
	p.printf("| load when a run began | %s |\n", p.loads())
	p.printf(`
What is compared:

- Packer has no cache: every build is a whole one. One build of Packer in a round is the peer of all of rebake's builds of that
  template in the round.
- rebake's ratios are of ` + "`rebake build --skip-test`" + `, because Packer has no test stage. Its time with tests is below.
  Nor do its templates have an inventory taken, for the same reason: what one costs is in docs/inventory.md.
- rebake's times hold more than Packer's: it seals the image (keys, ids, logs and package lists removed, file system trimmed),
  compresses and hashes it into its store, and saves its checkpoints. Packer's hold the copy of its base, which it makes each time.
- "Nothing cached" is a state directory with only the base disk in it. Reading a base for the first time is below, as a cost of its own.
- The steps' times are from ` + "`--output json`" + ` of rebake, and of Packer from when its lines arrive.
- Both guests' apt goes through one caching proxy of this program on 10.0.2.2, so that the network is no part of it.
`)
}

// loads are the 1 minute averages when runs began.
func (p *page) loads() string {
	var v []float64
	for _, r := range p.runs {
		var one float64
		if _, err := fmt.Sscan(r.Load, &one); err == nil {
			v = append(v, one)
		}
	}
	return spreadOf(v).String()
}

// small are the commands that build nothing, and the binary.
func (p *page) small() {
	p.printf("\n| command | runs | rebake, ms | Packer, ms | at most | |\n|---|---|---|---|---|---|\n")
	for _, name := range []string{"--version", "validate"} {
		ms := func(tool string) spread {
			s := p.spread(measured{tool: tool, scenario: name})
			return spread{s.N, s.Med * 1000, s.Min * 1000, s.Max * 1000}
		}
		r := ms("rebake")
		p.printf("| %s | %d | %s | %s | 60 | %s |\n", name, r.N, r, ms("packer"), verdict(r.Med, 60))
	}
	if n, err := os.Stat(p.rebake); err == nil {
		packer := "?"
		if m, err := os.Stat("/usr/bin/packer"); err == nil {
			packer = mb(float64(m.Size()))
		}
		p.printf("\nThe binary: rebake %s (stripped), Packer %s.\n", mb(float64(n.Size())), packer)
	}
}

func mb(n float64) string { return fmt.Sprintf("%.1f MB", n/1e6) }

func (p *page) tests() {
	p.printf("\n## What Packer does not do\n\n| | runs | s |\n|---|---|---|\n")
	for _, m := range []struct {
		label string
		m     measured
	}{
		{"first build of real with rebake's tests (two fresh boots of the sealed image)", rebakeOf("real: first build with tests")},
		{"the same without", rebakeOf("real: first build")},
		{"once for each base: read it", rebakeOf("a base never seen before", "prepare base")},
		{"once for each base: its chunks into the store", rebakeOf("a base never seen before", "store the base")},
	} {
		if s := p.spread(m.m); s.N > 0 {
			p.printf("| %s | %d | %s |\n", m.label, s.N, s)
		}
	}
}

// resources are (g) and (h).
func (p *page) resources() {
	p.printf("\n## (g) Memory and CPU of the tool itself\n\nThe tool and its children without QEMU (qemu-img counts). Memory is the largest sum of PSS in samples 0.2 s apart;\n" +
		"CPU is user and system time. QEMU's own CPU time, beside it, is the guest's work: it says more than seconds where other\nprograms run.\n\n" +
		"| build | rebake: MB | CPU, s | QEMU, CPU s | Packer: MB | CPU, s | QEMU, CPU s |\n|---|---|---|---|---|---|---|\n")
	for _, k := range []struct{ a, b string }{{"real: first build", "real"}, {"real: last step changed", "real"}, {"real: first step changed", "real"},
		{"trivial: first build", "trivial"}, {"trivial: last step changed", "trivial"}, {"files: first build", "files"}, {"netem: first build", "netem"}} {
		var cells []string
		for _, m := range []measured{rebakeOf(k.a), packerIs(k.b)} {
			var mem, cpu, qemu []float64
			for _, r := range p.runs {
				if _, ok := m.of(r); ok {
					mem, cpu, qemu = append(mem, float64(r.Usage.Memory)/1e6), append(cpu, r.Usage.CPU), append(qemu, r.Usage.QEMU)
				}
			}
			cells = append(cells, spreadOf(mem).String(), spreadOf(cpu).String(), spreadOf(qemu).String())
		}
		if p.spread(rebakeOf(k.a)).N > 0 {
			p.printf("| %s | %s |\n", k.a, strings.Join(cells, " | "))
		}
	}
	if len(p.sizes.list) == 0 {
		return
	}
	p.printf("\n## (h) Image size\n\nOf the first round, real template: space that is taken on disk, and seconds beside the build.\n\n| | MB | s |\n|---|---|---|\n")
	if n, err := allocated(p.base); err == nil {
		p.printf("| the base disk that both start from (qcow2) | %.0f | |\n", float64(n)/1e6)
	}
	for _, s := range p.sizes.list {
		took := ""
		if s.Seconds > 0 {
			took = number(s.Seconds)
		}
		p.printf("| %s | %.0f | %s |\n", s.What, float64(s.Bytes)/1e6, took)
	}
	p.printf("\nPacker's ratios are with skip_compaction, which is its fastest; rebake has no build without its compression. Packer's image\n" +
		"holds apt's lists and caches, which rebake's sealing removes.\n")
}

func (p *page) tuning() {
	p.printf("\n## Packer's settings\n\n| trivial template | runs | s |\n|---|---|---|\n")
	for _, w := range bootWaits {
		s := p.spread(packerIs("tune: boot_wait " + w))
		note := map[string]string{"10s": ", the default", "-1s": ", none"}[w]
		if w == p.bootWait {
			note += ": **used for all that is above**"
		}
		p.printf("| `boot_wait: %s`%s | %d | %s |\n", w, note, s.N, s)
	}
	if s := p.spread(packerIs("tune: use_backing_file")); s.N > 0 {
		p.printf("| `use_backing_file: true`: **used for all that is above** | %d | %s |\n", s.N, s)
	}
	if p.noBackingFile != "" {
		p.printf("\n`use_backing_file: true` does not work with these versions and is left out:\n\n```\n%s\n```\n", strings.ReplaceAll(excerpt(p.noBackingFile), p.work+string(filepath.Separator), ""))
	}
}

// excerpt is the lines of an error that tell it.
func excerpt(text string) string {
	var out []string
	for line := range strings.Lines(text) {
		if l := strings.TrimSpace(line); strings.Contains(strings.ToLower(l), "error") && !slices.Contains(out, l) && len(out) < 4 {
			out = append(out, l)
		}
	}
	return strings.Join(out, "\n")
}

// timeLines say where the time goes.
func (p *page) timeLines() {
	p.printf("\n## Where the time goes\n\nMedians, seconds. Tasks within tasks (`store the base`, `capture`) are counted in what holds them too.\n")
	for _, k := range []struct{ tool, scenario string }{
		{"packer", "real"}, {"rebake", "real: first build"}, {"rebake", "real: last step changed"}, {"rebake", "real: first step changed"},
		{"packer", "trivial"}, {"rebake", "trivial: first build"}, {"rebake", "trivial: last step changed"},
		{"packer", "files"}, {"rebake", "files: first build"}, {"packer", "netem"}, {"rebake", "netem: first build"},
	} {
		var names []string
		for _, r := range p.runs {
			if r.Tool == k.tool && r.Scenario == k.scenario {
				for _, ph := range r.Phases {
					if !slices.Contains(names, ph.Name) {
						names = append(names, ph.Name)
					}
				}
			}
		}
		if len(names) == 0 {
			continue
		}
		var parts []string
		for _, n := range names {
			parts = append(parts, fmt.Sprintf("%s %s", strings.ReplaceAll(n, p.work+"/", ""), number(p.spread(measured{k.tool, k.scenario, []string{n}}).Med)))
		}
		p.printf("\n**%s, %s** (%s): %s\n", k.tool, k.scenario, number(p.spread(measured{tool: k.tool, scenario: k.scenario}).Med), strings.Join(parts, " · "))
	}
}

// settings shows both tools' in full.
func (p *page) settings() error {
	p.printf("\n## Settings in full\n\nThe state directory is new for each round. The commands:\n\n```\n")
	for _, k := range []struct{ tool, scenario string }{{"packer", "real"}, {"rebake", "real: first build"}, {"packer", "files"}, {"rebake", "files: first build"}} {
		for _, r := range p.runs {
			if r.Tool == k.tool && r.Scenario == k.scenario {
				program, rest, _ := strings.Cut(r.Command, " ") // wherever it lies
				p.printf("%s %s\n", filepath.Base(program), strings.ReplaceAll(rest, p.work+"/", ""))
				break
			}
		}
	}
	p.printf("```\n\nPacker: `CHECKPOINT_DISABLE=1` in its environment. Its template of real; the others differ in `provisioners`, shown below it.\n")
	real, err := packerTemplate("real")
	if err != nil {
		return err
	}
	steps, err := files.ReadFile("files/packer-provisioners.json")
	if err != nil {
		return err
	}
	p.printf("\n```json\n%s\n```\n\n```json\n%s```\n\nrebake:\n", real, steps)
	for _, name := range []string{"real.yaml", "trivial.yaml", "files.yaml", "packages.sh", "release.sh"} {
		raw, err := files.ReadFile("files/" + name)
		if err != nil {
			return err
		}
		p.printf("\n`%s`\n```%s\n%s```\n", name, strings.TrimPrefix(filepath.Ext(name), "."), raw)
	}
	return nil
}
