// Package doctor looks for the external parts that rebake drives, says whether
// each will do, and which command mends it. It changes nothing.
package doctor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/rebake/rebake/internal/qemu"
)

// Finding is what is known of one part.
type Finding struct {
	Part     string `json:"part"`
	Version  string `json:"version,omitempty"`
	OK       bool   `json:"ok"`
	Optional bool   `json:"optional,omitempty"` // rebake works without it, with less
	Needed   string `json:"needed"`             // what for
	Why      string `json:"why,omitempty"`      // why it will not do, or what to know
	Fix      string `json:"fix,omitempty"`      // the command that mends it
}

// minFree is the disk space below which a bake is likely to end half way.
const minFree = 4 << 30

// Check looks for every part, on this machine as it is. The state directory,
// which need not be there yet, is where space is needed. It never fails: what
// cannot be found out is not OK.
func Check(ctx context.Context, stateDir string) []Finding {
	return thisMachine(stateDir).check(ctx)
}

// machine is what the checks ask; tests answer in its place.
type machine struct {
	os, arch  string
	root      bool
	installer installer
	look      func(name string) (string, error)
	output    func(ctx context.Context, argv ...string) (string, error)
	glob      func(pattern string) bool
	uefi      func(arch string) bool
	accel     func(ctx context.Context, arch string) (name, reason string)
	free      func() (int64, error)
}

func thisMachine(stateDir string) machine {
	m := machine{
		os: runtime.GOOS, arch: runtime.GOARCH, root: os.Geteuid() == 0,
		look: look, output: output, glob: globbed, accel: accel,
		uefi: func(arch string) bool { _, _, ok := qemu.UEFI(arch); return ok },
		free: func() (int64, error) { return freeSpace(existing(stateDir)) },
	}
	m.installer = m.findInstaller()
	return m
}

// existing is dir or the nearest directory above it that is there.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// look finds a program as the parts of rebake do: administrators' directories
// are not in everybody's PATH.
func look(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, name))
	}
	return path, err
}

func accel(ctx context.Context, arch string) (string, string) {
	a, reason := qemu.DetectAccel(ctx, arch)
	return string(a), reason
}

func globbed(pattern string) bool {
	found, err := filepath.Glob(pattern)
	return err == nil && len(found) > 0
}

const answerLimit = 10 * time.Second

// output runs a query; its answer is cut after 16 KiB.
func output(ctx context.Context, argv ...string) (string, error) {
	return outputWithin(ctx, answerLimit, argv...)
}

func outputWithin(ctx context.Context, limit time.Duration, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it gave no answer within %s", limit))
	defer cancel()
	var out head
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out    // mke2fs -V answers on standard error
	cmd.WaitDelay = 100 * time.Millisecond // its children may hold the pipe
	err := cmd.Run()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return string(out), err
}

// head keeps the first 16 KiB of what is written.
type head []byte

func (h *head) Write(p []byte) (int, error) {
	*h = append(*h, p[:min(len(p), 16<<10-len(*h))]...)
	return len(p), nil
}

// program is a part that is one executable.
type program struct {
	name    string
	ask     []string // arguments that make it tell its version
	atLeast string   // an older one will not do
	tested  string   // an older one may do
	needed  string
	pkg     string // the installer's key, see install.go
	debian  bool   // of use where Debian bases are made
	option  bool
}

func (m machine) programs() []program {
	const bases = "bakes from: {debian: …}"
	return []program{
		{name: qemu.Binary(m.arch), ask: []string{"--version"}, tested: "7.2", needed: "boots machines", pkg: "qemu"},
		{name: "qemu-img", ask: []string{"--version"}, tested: "7.2", needed: "makes disks", pkg: "qemu-img"},
		{name: "haproxy", ask: []string{"-v"}, atLeast: "2.6", needed: "fleets behind router: {haproxy: …}", pkg: "haproxy"},
		{name: "mmdebstrap", ask: []string{"--version"}, needed: bases, pkg: "mmdebstrap", debian: true},
		{name: "apt-get", ask: []string{"--version"}, needed: bases + ": packages and the guest's kernel", pkg: "apt", debian: true},
		{name: "mke2fs", ask: []string{"-V"}, atLeast: "1.43", needed: bases, pkg: "mke2fs", debian: true},
		{name: "grub-mkimage", ask: []string{"--version"}, needed: "makes the disks of from: {debian: …} bootable", pkg: "grub-mkimage", debian: true},
		{name: "git", ask: []string{"--version"}, needed: "${{ git.… }} and the commit in an image's lineage", pkg: "git", option: true},
	}
}

func (m machine) check(ctx context.Context) []Finding {
	var found []Finding
	for _, p := range m.programs() {
		found = append(found, m.program(ctx, p))
	}
	found = append(found, m.bootFiles()...)
	found = append(found, m.namespaces(ctx)...)
	return append(found, m.acceleration(ctx), m.space())
}

// makesBases tells whether from: {debian: …} is for this machine.
func (m machine) makesBases() bool { return m.os == "linux" && m.arch == "amd64" }

var versionRE = regexp.MustCompile(`[0-9]+(\.[0-9]+)+`)

func (m machine) program(ctx context.Context, p program) Finding {
	f := Finding{Part: p.name, Needed: p.needed, Optional: p.option}
	if p.debian && !m.makesBases() {
		f.Optional = true
		f.Why = "Debian bases are made on Linux on amd64 alone; use from: {url: …, checksum: …} or from: {image: …} here"
		return f
	}
	path, err := m.look(p.name)
	if err != nil {
		f.Why, f.Fix = "not found in PATH", m.fix(p.pkg)
		return f
	}
	text, err := m.output(ctx, append([]string{path}, p.ask...)...)
	if err == nil { // else a number in it is of something else
		f.Version = versionRE.FindString(text)
	}
	switch {
	case err != nil:
		f.Why, f.Fix = fmt.Sprintf("%s does not run: %s", path, said(text, err)), m.fix(p.pkg)
	case f.Version == "":
		f.Why, f.Fix = path+" tells no version", m.fix(p.pkg)
	case p.atLeast != "" && older(f.Version, p.atLeast):
		f.Why, f.Fix = "too old: at least "+p.atLeast+" is needed", m.fix(p.pkg)
	default:
		f.OK = true
		if p.tested != "" && older(f.Version, p.tested) {
			f.Why = "older than " + p.tested + ", the oldest that rebake is tested with"
		}
	}
	return f
}

// older compares dotted versions by number.
func older(have, want string) bool {
	h, w := strings.Split(have, "."), strings.Split(want, ".")
	for i := range w {
		n := 0
		if i < len(h) {
			n, _ = strconv.Atoi(h[i]) // versionRE lets digits alone through
		}
		if k, _ := strconv.Atoi(w[i]); n != k {
			return n < k
		}
	}
	return false
}

// said is an error with the first line that the program printed.
func said(text string, err error) string {
	first, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	if first == "" {
		return err.Error()
	}
	return fmt.Sprintf("%v: %.200s", err, first)
}

// bootFiles looks for what makes a disk bootable.
func (m machine) bootFiles() []Finding {
	var f Finding
	fix := ""
	switch {
	case m.makesBases():
		f = Finding{Part: "grub-pc", Needed: "makes the disks of from: {debian: …} bootable", OK: m.glob("/usr/lib/grub/i386-pc/boot.img")}
		fix = "grub"
	case m.arch == "arm64":
		f = Finding{Part: "UEFI firmware", Needed: "boots arm64 machines", OK: m.uefi("arm64")}
		fix = "firmware"
	default:
		return nil
	}
	if !f.OK {
		f.Why, f.Fix = "its files are not installed", m.fix(fix)
	}
	return []Finding{f}
}

// namespaces tries what a user other than root makes a Debian base in.
func (m machine) namespaces(ctx context.Context) []Finding {
	if !m.makesBases() || m.root {
		return nil
	}
	f := Finding{Part: "user namespaces", Needed: "bakes from: {debian: …} without root"}
	for _, p := range []struct{ name, pkg string }{{"unshare", "unshare"}, {"newuidmap", "uidmap"}} {
		if _, err := m.look(p.name); err != nil {
			f.Why, f.Fix = p.name+" is not found in PATH", m.fix(p.pkg)
			return []Finding{f}
		}
	}
	text, err := m.output(ctx, "unshare", "--user", "--map-root-user", "--map-auto", "--", "true")
	if f.OK = err == nil; f.OK {
		return []Finding{f}
	}
	f.Why = "unshare failed: " + said(text, err)
	switch {
	case strings.Contains(text, "map-auto"):
		f.Why, f.Fix = "unshare knows no --map-auto: util-linux 2.38 or later is needed", m.fix("unshare")
	case strings.Contains(text, "subuid"), strings.Contains(text, "subgid"):
		f.Fix = "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER"
	case strings.Contains(text, "not permitted"), strings.Contains(text, "ermission denied"):
		f.Fix = "sudo sysctl -w kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0 (one of them may not exist), or bake as root"
	case strings.Contains(text, "No space left"):
		f.Fix = "sudo sysctl -w user.max_user_namespaces=15000"
	default:
		f.Fix = "bake as root"
	}
	return []Finding{f}
}

func (m machine) acceleration(ctx context.Context) Finding {
	f := Finding{Part: "acceleration", Needed: "fast machines; emulation is about ten times slower", Optional: true}
	if _, err := m.look(qemu.Binary(m.arch)); err != nil {
		f.Why = "cannot be tried without " + qemu.Binary(m.arch)
		return f
	}
	f.Version, f.Why = m.accel(ctx, m.arch)
	f.OK = f.Version != string(qemu.TCG)
	f.Why = strings.TrimPrefix(f.Why, f.Version+": ")
	switch {
	case f.OK:
	case strings.Contains(f.Why, "not yours"):
		f.Why, f.Fix = "/dev/kvm is not yours to open", "sudo usermod -aG kvm $USER, then log in again"
	case strings.Contains(f.Why, "no /dev/kvm"):
		f.Fix = "turn virtualisation on in the firmware (in a virtual machine: nested virtualisation in its host), then: sudo modprobe kvm-intel || sudo modprobe kvm-amd"
	}
	return f
}

func (m machine) space() Finding {
	f := Finding{Part: "disk space", Needed: "images and caches in the state directory"}
	free, err := m.free()
	if err != nil {
		f.Why = err.Error()
		return f
	}
	f.Version = fmt.Sprintf("%.1f GiB free", float64(free)/(1<<30))
	if f.OK = free >= minFree; !f.OK {
		f.Why = fmt.Sprintf("less than %d GiB", minFree>>30)
		f.Fix = "rebake gc && rebake images prune, or set REBAKE_HOME to a larger disk"
	}
	return f
}
