package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The external programs, as those of Debian 12 tell their versions.
var scripts = map[string]string{
	"qemu-system-x86_64":  `echo "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"; echo "Copyright (c) 2003-2022"`,
	"qemu-system-aarch64": `echo "QEMU emulator version 10.0.2"`,
	"qemu-img":            `echo "qemu-img version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"`,
	"haproxy":             `[ "$1" = -v ] && echo "HAProxy version 2.6.12-1+deb12u3 2025/10/01 - https://haproxy.org/"`,
	"mmdebstrap":          `echo "mmdebstrap 1.3.5"`,
	"apt-get":             `echo "apt 2.6.1 (amd64)"`,
	"mke2fs":              `echo "mke2fs 1.47.0 (5-Feb-2023)" >&2`,
	"grub-mkimage":        `echo "grub-mkimage (GRUB) 2.06-13+deb12u1"`,
	"git":                 `echo "git version 2.39.5"`,
	"unshare":             `exit 0`,
	"newuidmap":           `exit 1`,
}

// healthy is a Debian machine whose programs are the scripts, and PATH no others;
// without removes some, with replaces some.
func healthy(t *testing.T, with map[string]string, without ...string) machine {
	t.Helper()
	dir := t.TempDir()
	for name, body := range scripts {
		if w, ok := with[name]; ok {
			body = w
		}
		if !slices.Contains(without, name) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", dir)
	m := machine{
		os: "linux", arch: "amd64",
		look: exec.LookPath, output: output, glob: func(string) bool { return true },
		uefi:  func(string) bool { return true },
		accel: func(context.Context, string) (string, string) { return "kvm", "kvm: a probe guest ran" },
		free:  func() (int64, error) { return 20 << 30, nil },
	}
	m.installer = m.findInstaller()
	return m
}

func (m machine) find(t *testing.T, part string) Finding {
	t.Helper()
	found := m.check(t.Context())
	for _, f := range found {
		if f.Part == part {
			return f
		}
	}
	t.Fatalf("nothing of %s in %+v", part, found)
	return Finding{}
}

func TestAllIsWellOnAWholeMachine(t *testing.T) {
	m := healthy(t, nil)
	want := map[string]string{
		"qemu-system-x86_64": "7.2.22", "qemu-img": "7.2.22", "haproxy": "2.6.12", "mmdebstrap": "1.3.5", "apt-get": "2.6.1",
		"mke2fs": "1.47.0", "grub-mkimage": "2.06", "git": "2.39.5", "grub-pc": "", "user namespaces": "", "acceleration": "kvm", "disk space": "20.0 GiB free",
	}
	found := m.check(t.Context())
	for _, f := range found {
		version, known := want[f.Part]
		if !known || f.Version != version || !f.OK || f.Fix != "" || f.Needed == "" {
			t.Errorf("%+v", f)
		}
	}
	if len(found) != len(want) {
		t.Errorf("%d findings, want %d", len(found), len(want))
	}
}

func TestEachMissingProgramIsSaidWithItsCommand(t *testing.T) {
	for name, pkg := range map[string]string{
		"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "haproxy": "haproxy", "mmdebstrap": "mmdebstrap",
		"mke2fs": "e2fsprogs", "grub-mkimage": "grub-common", "git": "git",
	} {
		f := healthy(t, nil, name).find(t, name)
		if f.OK || f.Version != "" || f.Why != "not found in PATH" || f.Fix != "sudo apt-get install -y "+pkg || f.Optional != (name == "git") {
			t.Errorf("%+v", f)
		}
	}
}

func TestProgramsThatWillNotDo(t *testing.T) {
	for name, c := range map[string]struct {
		part, script string
		ok           bool
		version, why string
	}{
		"too old":                {"haproxy", `echo "HA-Proxy version 2.2.9-2+deb11u6 2023/12/07"`, false, "2.2.9", "too old: at least 2.6 is needed"},
		"older than what we try": {"qemu-img", `echo "qemu-img version 5.2.0"`, true, "5.2.0", "older than 7.2, the oldest that rebake is tested with"},
		"newer, by number":       {"haproxy", `echo "HAProxy version 2.10.1"`, true, "2.10.1", ""},
		"newer, shorter":         {"haproxy", `echo "HAProxy version 3.0"`, true, "3.0", ""},
		"no version":             {"mmdebstrap", `echo hello`, false, "", "mmdebstrap tells no version"},
		"it fails":               {"qemu-img", `echo "qemu-img: error while loading shared libraries: liburing.so.2.1: cannot open"; exit 127`, false, "", "qemu-img does not run: exit status 127: qemu-img: error while loading shared libraries: liburing.so.2.1: cannot open"},
		"it is killed":           {"mke2fs", `kill -9 $$`, false, "", "mke2fs does not run: signal: killed"},
	} {
		t.Run(name, func(t *testing.T) {
			f := healthy(t, map[string]string{c.part: c.script}).find(t, c.part)
			if f.OK != c.ok || f.Version != c.version || !strings.HasSuffix(f.Why, c.why) || (c.why == "") != (f.Why == "") {
				t.Errorf("%+v", f)
			}
			if (f.Fix == "") != c.ok {
				t.Errorf("fix: %q", f.Fix)
			}
		})
	}
}

func TestAProgramThatHangsOrFloodsIsLeft(t *testing.T) {
	m := healthy(t, map[string]string{"git": `/bin/sleep 600 & echo git version 2.39.5; /bin/sleep 600`, "mmdebstrap": `while :; do echo "mmdebstrap 1.3.5 and more"; done`})
	began := time.Now()
	for _, name := range []string{"git", "mmdebstrap"} {
		path, err := m.look(name)
		if err != nil {
			t.Fatal(err)
		}
		text, err := outputWithin(t.Context(), 300*time.Millisecond, path)
		if err == nil || err.Error() != "it gave no answer within 300ms" {
			t.Errorf("%s: %v", name, err)
		}
		if len(text) > 16<<10 || !strings.HasPrefix(text, name) {
			t.Errorf("%s: %d bytes", name, len(text))
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("that took %s", took)
	}
}

func TestTheCommandFitsTheSystem(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*machine)
		part   string
		want   string
	}{
		"apt":               {func(m *machine) {}, "mmdebstrap", "sudo apt-get install -y mmdebstrap"},
		"apt, as root":      {func(m *machine) { m.root = true }, "mmdebstrap", "apt-get install -y mmdebstrap"},
		"apt without lists": {func(m *machine) { m.glob = func(string) bool { return false } }, "mmdebstrap", "sudo apt-get update && sudo apt-get install -y mmdebstrap"},
		"dnf":               {func(m *machine) { m.installer = dnf }, "qemu-system-x86_64", "sudo dnf install -y qemu-system-x86-core"},
		"pacman":            {func(m *machine) { m.installer = pacman }, "qemu-img", "sudo pacman -S --needed qemu-img"},
		"dnf has no such":   {func(m *machine) { m.installer = dnf }, "grub-mkimage", "no command known for this system: install what Debian calls grub-common"},
		"nothing known":     {func(m *machine) { m.installer = none }, "haproxy", "no command known for this system: install what Debian calls haproxy"},
		"brew":              {func(m *machine) { m.os, m.installer = "darwin", brew }, "haproxy", "brew install haproxy"},
		"arm64":             {func(m *machine) { m.arch = "arm64" }, "qemu-system-aarch64", "sudo apt-get install -y qemu-system-arm"},
		"firmware, arm64":   {func(m *machine) { m.arch, m.uefi = "arm64", func(string) bool { return false } }, "UEFI firmware", "sudo apt-get install -y qemu-efi-aarch64"},
		"GRUB's files":      {func(m *machine) { m.glob = func(p string) bool { return !strings.Contains(p, "grub") } }, "grub-pc", "sudo apt-get install -y grub-pc-bin"},
		"firmware, on a Mac": {func(m *machine) {
			m.os, m.arch, m.installer, m.uefi = "darwin", "arm64", brew, func(string) bool { return false }
		}, "UEFI firmware", "brew install qemu"},
		"namespaces, no tool": {func(m *machine) {}, "user namespaces", "sudo apt-get install -y uidmap"},
	} {
		t.Run(name, func(t *testing.T) {
			m := healthy(t, nil, "qemu-system-x86_64", "qemu-system-aarch64", "qemu-img", "haproxy", "mmdebstrap", "grub-mkimage", "newuidmap")
			c.change(&m)
			if f := m.find(t, c.part); f.Fix != c.want || f.OK {
				t.Errorf("%+v", f)
			}
		})
	}
}

func TestTheInstallerIsFound(t *testing.T) {
	m := healthy(t, nil)
	if m.installer != apt {
		t.Errorf("%q beside apt-get", m.installer)
	}
	m = healthy(t, nil, "apt-get")
	if m.installer != none {
		t.Errorf("%q without any", m.installer)
	}
	for _, name := range []installer{dnf, pacman} {
		if err := os.WriteFile(filepath.Join(os.Getenv("PATH"), string(name)), []byte("#!/bin/sh\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		if got := m.findInstaller(); got != dnf && name == dnf || got == none {
			t.Errorf("%q with %s", got, name)
		}
	}
	m.os = "darwin"
	if got := m.findInstaller(); got != brew {
		t.Errorf("%q on a Mac", got)
	}
}

func TestDebiansToolsAreOptionalWhereNoBaseIsMade(t *testing.T) {
	for name, change := range map[string]func(*machine){
		"Mac":   func(m *machine) { m.os = "darwin" },
		"arm64": func(m *machine) { m.arch = "arm64" },
	} {
		m := healthy(t, nil, "mmdebstrap", "apt-get", "mke2fs", "grub-mkimage", "newuidmap")
		change(&m)
		seen := 0
		for _, f := range m.check(t.Context()) {
			switch f.Part {
			case "mmdebstrap", "apt-get", "mke2fs", "grub-mkimage":
				seen++
				if !f.Optional || f.OK || f.Fix != "" || !strings.Contains(f.Why, "from: {url:") {
					t.Errorf("%s: %+v", name, f)
				}
			case "user namespaces", "grub-pc":
				t.Errorf("%s: %+v", name, f)
			}
		}
		if seen != 4 {
			t.Errorf("%s: %d", name, seen)
		}
	}
}

func TestAccelerationThatWillNotDo(t *testing.T) {
	for name, c := range map[string]struct{ accel, reason, why, fix string }{
		"KVM opens but runs nothing": {"tcg", "tcg: kvm is there but a probe guest did not run under it: it hung for 2s", "kvm is there but a probe guest did not run under it: it hung for 2s", ""},
		"KVM is another's":           {"tcg", "tcg: /dev/kvm is not yours to open (sudo usermod -aG kvm $USER, then log in again)", "/dev/kvm is not yours to open", "sudo usermod -aG kvm $USER, then log in again"},
		"no KVM":                     {"tcg", "tcg: no /dev/kvm", "no /dev/kvm", "turn virtualisation on in the firmware (in a virtual machine: nested virtualisation in its host), then: sudo modprobe kvm-intel || sudo modprobe kvm-amd"},
	} {
		m := healthy(t, nil)
		m.accel = func(context.Context, string) (string, string) { return c.accel, c.reason }
		f := m.find(t, "acceleration")
		if f.OK || !f.Optional || f.Version != "tcg" || f.Why != c.why || f.Fix != c.fix {
			t.Errorf("%s: %+v", name, f)
		}
	}
	m := healthy(t, nil, "qemu-system-x86_64")
	m.accel = func(context.Context, string) (string, string) { t.Error("tried without QEMU"); return "", "" }
	if f := m.find(t, "acceleration"); f.OK || f.Why != "cannot be tried without qemu-system-x86_64" {
		t.Errorf("%+v", f)
	}
}

func TestUserNamespacesThatWillNotDo(t *testing.T) {
	for name, c := range map[string]struct{ script, why, fix string }{
		"no subordinate ids": {`echo 'unshare: no line matching user "joe" in /etc/subuid: Success' >&2; exit 1`, "no line matching user", "sudo usermod --add-subuids"},
		"not permitted":      {`echo "unshare: unshare failed: Operation not permitted" >&2; exit 1`, "Operation not permitted", "sudo sysctl -w kernel.unprivileged_userns_clone=1"},
		"AppArmor":           {`echo "unshare: write failed /proc/self/uid_map: Permission denied" >&2; exit 1`, "Permission denied", "apparmor_restrict_unprivileged_userns=0"},
		"an old unshare":     {`echo "unshare: unrecognized option '--map-auto'" >&2; exit 1`, "util-linux 2.38 or later is needed", "sudo apt-get install -y util-linux"},
		"none left":          {`echo "unshare: unshare failed: No space left on device" >&2; exit 1`, "No space left", "user.max_user_namespaces"},
		"who knows":          {`exit 3`, "exit status 3", "bake as root"},
	} {
		f := healthy(t, map[string]string{"unshare": c.script}).find(t, "user namespaces")
		if f.OK || f.Optional || !strings.Contains(f.Why, c.why) || !strings.Contains(f.Fix, c.fix) {
			t.Errorf("%s: %+v", name, f)
		}
	}
	m := healthy(t, nil)
	m.root = true
	if got := m.namespaces(t.Context()); got != nil {
		t.Errorf("root needs none: %+v", got)
	}
}

func TestSpace(t *testing.T) {
	m := healthy(t, nil)
	m.free = func() (int64, error) { return 3 << 30, nil }
	if f := m.find(t, "disk space"); f.OK || f.Version != "3.0 GiB free" || f.Why != "less than 4 GiB" || !strings.Contains(f.Fix, "rebake gc") || !strings.Contains(f.Fix, "REBAKE_HOME") {
		t.Errorf("%+v", f)
	}
	m.free = func() (int64, error) { return 0, errors.New("boom") }
	if f := m.find(t, "disk space"); f.OK || f.Why != "boom" {
		t.Errorf("%+v", f)
	}
}

func TestSpaceIsThatOfAStateDirectoryToBe(t *testing.T) {
	dir := t.TempDir()
	want, err := freeSpace(dir)
	if err != nil || want <= 0 {
		t.Fatal(want, err)
	}
	got, err := thisMachine(filepath.Join(dir, "not", "yet")).free()
	if err != nil || got <= 0 {
		t.Error(got, err)
	}
	if _, err := freeSpace(filepath.Join(dir, "not", "yet")); err == nil || !strings.Contains(err.Error(), "ask for free space in") {
		t.Error(err)
	}
}

func TestAProgramOfAdministratorsIsFoundByAll(t *testing.T) {
	t.Setenv("PATH", "")
	name := ""
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if found, err := filepath.Glob(dir + "/*"); err == nil && len(found) > 0 && name == "" {
			for _, f := range found {
				if _, err := exec.LookPath(f); err == nil {
					name = filepath.Base(f)
					break
				}
			}
		}
	}
	if path, err := look(name); name == "" || err != nil || filepath.Base(path) != name {
		t.Errorf("%q: %q, %v", name, path, err)
	}
	if path, err := look("no-such-program"); err == nil {
		t.Error(path)
	}
}

func TestThisMachineIsToldInFull(t *testing.T) {
	t.Setenv("PATH", t.TempDir()) // nothing is installed, nothing is run
	m := thisMachine(t.TempDir())
	m.look = exec.LookPath
	found := m.check(t.Context())
	for _, f := range found {
		if f.Part == "" || f.Needed == "" || !f.OK && f.Why == "" {
			t.Errorf("%+v", f)
		}
	}
	if len(found) < 9 {
		t.Error(len(found))
	}
}

func TestVersionsAreComparedByNumber(t *testing.T) {
	for _, c := range []struct {
		have, want string
		older      bool
	}{
		{"2.6", "2.6", false}, {"2.6.0", "2.6", false}, {"2.5.99", "2.6", true}, {"2.10", "2.6", false}, {"3", "2.6", false},
		{"2", "2.6", true}, {"1.43", "1.43", false}, {"1.42.9", "1.43", true}, {"10.0", "7.2", false}, {"99999999999999999999.1", "7.2", false},
	} {
		if got := older(c.have, c.want); got != c.older {
			t.Errorf("%s", fmt.Sprint(c, got))
		}
	}
}
