// Package doctor looks for the external parts that rebake drives, says whether
// each will do, and which command mends it. It changes nothing.
package doctor

import (
	"bytes"
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

// Check looks for every part, on this machine as it is. The state directory is
// where space is needed. It never fails: what cannot be found out is not OK.
func Check(ctx context.Context, stateDir string) []Finding {
	m := machine{
		os: runtime.GOOS, arch: runtime.GOARCH, root: os.Getuid() == 0,
		look: exec.LookPath, output: output, glob: globbed, accel: accel,
		free: func() (int64, error) { return freeSpace(stateDir) },
	}
	m.installer = m.findInstaller()
	return m.check(ctx)
}

// machine is what the checks ask; tests answer in its place.
type machine struct {
	os, arch  string
	root      bool
	installer installer
	look      func(name string) (string, error)
	output    func(ctx context.Context, argv ...string) (string, error)
	glob      func(pattern string) bool
	accel     func(ctx context.Context, arch string) (name, reason string)
	free      func() (int64, error)
}

func accel(ctx context.Context, arch string) (string, string) {
	a, reason := qemu.DetectAccel(ctx, arch)
	return string(a), reason
}

func globbed(pattern string) bool {
	found, err := filepath.Glob(pattern)
	return err == nil && len(found) > 0
}

// output runs a version query, at most 10 s long.
func output(ctx context.Context, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, fmt.Errorf("%s gave no answer within 10s", argv[0]))
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out // mke2fs -V answers on standard error
	err := cmd.Run()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return out.String(), err
}

// program is a part that is one executable.
type program struct {
	name    string
	ask     []string // arguments that make it tell its version
	atLeast string   // an older one will not do
	tested  string   // an older one may do
	needed  string
	pkg     string // the installer's key, see install.go
	linux   bool   // of use on Linux alone
	option  bool
}

func (m machine) programs() []program {
	const debian = "bakes from: {debian: …}"
	return []program{
		{name: qemu.Binary(m.arch), ask: []string{"--version"}, tested: "7.2", needed: "boots machines", pkg: "qemu"},
		{name: "qemu-img", ask: []string{"--version"}, tested: "7.2", needed: "makes disks", pkg: "qemu-img"},
		{name: "haproxy", ask: []string{"-v"}, atLeast: "2.6", needed: "fleets behind router: {haproxy: …}", pkg: "haproxy"},
		{name: "mmdebstrap", ask: []string{"--version"}, needed: debian, pkg: "mmdebstrap", linux: true},
		{name: "apt-get", ask: []string{"--version"}, needed: debian + ": packages and the guest's kernel", pkg: "apt", linux: true},
		{name: "mke2fs", ask: []string{"-V"}, atLeast: "1.43", needed: debian, pkg: "mke2fs", linux: true},
		{name: "git", ask: []string{"--version"}, needed: "${{ git.… }} and the commit in an image's lineage", pkg: "git", option: true},
	}
}

func (m machine) check(ctx context.Context) []Finding {
	var found []Finding
	for _, p := range m.programs() {
		found = append(found, m.program(ctx, p))
	}
	found = append(found, m.bootFiles()...)
	return append(found, m.acceleration(ctx), m.space())
}

var versionRE = regexp.MustCompile(`[0-9]+(\.[0-9]+)+`)

func (m machine) program(ctx context.Context, p program) Finding {
	f := Finding{Part: p.name, Needed: p.needed, Optional: p.option}
	if p.linux && m.os != "linux" {
		f.Optional = true
		f.Why = "Linux alone has it; use from: {url: …, checksum: …} or from: {image: …} here"
		return f
	}
	path, err := m.look(p.name)
	if err != nil && strings.HasPrefix(p.name, "mke2fs") {
		path, err = m.look("/sbin/mke2fs") // not in everybody's PATH
	}
	if err != nil {
		f.Why, f.Fix = "not found in PATH", m.fix(p.pkg)
		return f
	}
	text, err := m.output(ctx, append([]string{path}, p.ask...)...)
	f.Version = versionRE.FindString(text)
	switch {
	case err != nil:
		f.Why, f.Fix = fmt.Sprintf("%s does not run: %v", path, err), m.fix(p.pkg)
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

// bootFiles looks for what makes a disk bootable.
func (m machine) bootFiles() []Finding {
	if m.os != "linux" {
		return nil
	}
	f := Finding{Needed: "makes the disks of from: {debian: …} bootable"}
	switch m.arch {
	case "amd64":
		f.Part = "grub-pc"
		f.OK = m.glob("/usr/lib/grub/i386-pc/boot.img")
	case "arm64":
		f.Part, f.Needed = "UEFI firmware", "boots arm64 machines"
		f.OK = m.glob("/usr/share/AAVMF/AAVMF_CODE*.fd") || m.glob("/usr/share/qemu-efi-aarch64/QEMU_EFI.fd") || m.glob("/usr/share/edk2/aarch64/QEMU_EFI*")
	default:
		return nil
	}
	if !f.OK {
		f.Why, f.Fix = "its files are not installed", m.fix(map[string]string{"amd64": "grub", "arm64": "firmware"}[m.arch])
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
	if !f.OK && strings.Contains(f.Why, "not yours") {
		f.Fix = "sudo usermod -aG kvm $USER, then log in again"
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
