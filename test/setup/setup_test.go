package setup

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const script = "../setup.sh"

// whole are the programs and files of a machine that lacks nothing, for all
// architectures.
var whole = []string{
	"qemu-img", "haproxy", "git", "mke2fs", "depmod", "cpio", "zstd", "docker-registry", "qemu-system-x86_64", "qemu-system-aarch64", "mmdebstrap", "grub-mkimage", "newuidmap",
	"/usr/sbin/dropbear", "/usr/lib/openssh/sftp-server", "/usr/bin/busybox", "/usr/lib/grub/i386-pc/boot.img", "/usr/share/AAVMF/AAVMF_CODE.fd",
	"/var/lib/apt/lists/deb.debian.org_main_binary-amd64_Packages.lz4",
}

// box is a machine that the script runs on.
type box struct {
	system, machine, uid string
	without              []string          // of whole
	with                 map[string]string // programs, by name, beside or instead of those of whole
}

const (
	aptGet = `echo "$DEBIAN_FRONTEND|apt-get $*" >>"$CALLS"`
	// sudo as it is: it keeps nothing of the environment, but for this test PATH and CALLS.
	sudo = `echo "sudo" >>"$CALLS"; exec env -i PATH="$PATH" CALLS="$CALLS" "$@"`
)

// run runs the script and returns its exit status, what it said, and which
// commands it gave to sudo and apt-get.
func (b box) run(t *testing.T) (status int, said string, calls []string) {
	t.Helper()
	root, bin, log := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "calls")
	program := func(path, body string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	programs := map[string]string{"uname": `[ "$1" = -s ] && echo ` + b.system + ` || echo ` + b.machine, "id": "echo " + b.uid}
	for _, w := range whole {
		switch {
		case slices.Contains(b.without, w):
		case w == "/usr/bin/busybox":
			program(root+w, "echo cat; echo httpd; echo ls")
		case strings.HasPrefix(w, "/"):
			program(root+w, "")
		default:
			programs[w] = "exit 1" // none is to be run
		}
	}
	maps.Copy(programs, b.with)
	for name, body := range programs {
		if strings.HasPrefix(name, "/") {
			program(root+name, body)
		} else {
			program(filepath.Join(bin, name), body)
		}
	}
	for _, real := range []string{"bash", "env", "grep", "tail", "mktemp", "rm"} {
		path, err := exec.LookPath(real)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(bin, real)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.ReadFile(script); err != nil { // tells go test's cache what the result depends on
		t.Fatal(err)
	}
	cmd := exec.Command("bash", script)
	cmd.Env = []string{"PATH=" + bin, "REBAKE_SETUP_ROOT=" + root, "CALLS=" + log, "TMPDIR=" + t.TempDir()}
	out, err := cmd.CombinedOutput()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(log)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if text := strings.TrimSpace(string(raw)); text != "" {
		calls = strings.Split(text, "\n")
	}
	return cmd.ProcessState.ExitCode(), string(out), calls
}

const (
	update  = "noninteractive|apt-get update"
	install = "noninteractive|apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "
)

func TestSetup(t *testing.T) {
	apt := map[string]string{"apt-get": aptGet}
	withSudo := map[string]string{"apt-get": aptGet, "sudo": sudo}
	debian := func(with map[string]string, without ...string) box {
		return box{"Linux", "x86_64", "0", without, with}
	}
	for name, c := range map[string]struct {
		box    box
		status int
		said   []string // in this order; nil: nothing at all
		calls  []string
	}{
		"nothing is missing": {debian(apt), 0, nil, nil},
		"one is missing": {debian(apt, "haproxy"), 0, []string{"setup: installing haproxy\n", "setup: done\n"},
			[]string{update, install + "haproxy"}},
		"some are missing, not root": {box{"Linux", "x86_64", "1000", []string{"zstd", "newuidmap", "/usr/lib/grub/i386-pc/boot.img"}, withSudo}, 0,
			[]string{"setup: installing zstd grub-pc-bin uidmap\n", "done"}, []string{"sudo", update, "sudo", install + "zstd grub-pc-bin uidmap"}},
		"root needs no uidmap": {debian(apt, "newuidmap"), 0, nil, nil},
		"a busybox without httpd": {debian(map[string]string{"apt-get": aptGet, "/usr/bin/busybox": "echo cat"}), 0, []string{"installing busybox-static\n", "done"},
			[]string{update, install + "busybox-static"}},
		"no busybox":       {debian(apt, "/usr/bin/busybox"), 0, []string{"installing busybox-static\n", "done"}, []string{update, install + "busybox-static"}},
		"programs in sbin": {debian(map[string]string{"apt-get": aptGet, "/usr/sbin/haproxy": "", "/sbin/mke2fs": ""}, "haproxy", "mke2fs"), 0, nil, nil},
		"no package lists": {debian(apt, "/var/lib/apt/lists/deb.debian.org_main_binary-amd64_Packages.lz4"), 0,
			[]string{"setup: reading apt's package lists\n", "setup: done\n"}, []string{update}},
		"no package lists, no sudo": {box{"Linux", "x86_64", "1000", []string{"/var/lib/apt/lists/deb.debian.org_main_binary-amd64_Packages.lz4"}, apt}, 1,
			[]string{"setup: there is no sudo: as root run: apt-get update\n"}, nil},
		"missing, no sudo": {box{"Linux", "x86_64", "1000", []string{"git", "cpio"}, apt}, 1,
			[]string{"setup: there is no sudo: as root run: apt-get update && apt-get install -y --no-install-recommends git cpio\n"}, nil},
		"update fails, install does not": {debian(map[string]string{"apt-get": aptGet + `; [ "$1" != update ] || { echo "E: a source"; exit 100; }`}, "git"), 0,
			[]string{"installing git\n", "apt-get update failed; trying with the lists that are there\n", "done\n"}, []string{update, install + "git"}},
		"install fails": {debian(map[string]string{"apt-get": aptGet + `; [ "$1" = update ] || { echo "E: Unable to locate package git" >&2; exit 100; }`}, "git"), 1,
			[]string{"installing git\n", "E: Unable to locate package git\n", "setup: apt-get install failed; mend it, then run make again\n"}, []string{update, install + "git"}},
		"update fails where it is all": {debian(map[string]string{"apt-get": aptGet + `; echo "E: no network"; exit 100`}, "/var/lib/apt/lists/deb.debian.org_main_binary-amd64_Packages.lz4"), 1,
			[]string{"E: no network\n", "setup: apt-get update failed; mend it"}, []string{update}},
		"arm64, whole": {box{"Linux", "aarch64", "1000", []string{"qemu-system-x86_64", "mmdebstrap", "grub-mkimage", "newuidmap", "/usr/lib/grub/i386-pc/boot.img",
			"/var/lib/apt/lists/deb.debian.org_main_binary-amd64_Packages.lz4"}, withSudo}, 0, nil, nil},
		"arm64, bare": {box{"Linux", "aarch64", "0", whole, apt}, 0,
			[]string{"installing qemu-utils haproxy git e2fsprogs kmod cpio zstd docker-registry dropbear-bin openssh-sftp-server busybox-static qemu-system-arm qemu-efi-aarch64\n", "done"},
			[]string{update, install + "qemu-utils haproxy git e2fsprogs kmod cpio zstd docker-registry dropbear-bin openssh-sftp-server busybox-static qemu-system-arm qemu-efi-aarch64"}},
		"amd64, bare": {debian(apt, whole...), 0, []string{"installing", "done"},
			[]string{update, install + "qemu-utils haproxy git e2fsprogs kmod cpio zstd docker-registry dropbear-bin openssh-sftp-server busybox-static qemu-system-x86 mmdebstrap grub-common grub-pc-bin"}},
		"no apt": {debian(nil, "haproxy", "/usr/lib/grub/i386-pc/boot.img"), 1,
			[]string{"setup: this system has no apt, and these are missing:\n", "  haproxy (Debian: haproxy)\n", "boot.img (Debian: grub-pc-bin)\n", "Install what provides them, then run make again.", "bin/rebake doctor", "on Debian"}, nil},
		"Fedora": {debian(map[string]string{"dnf": "exit 1", "sudo": sudo}, "haproxy"), 1, []string{"  haproxy", "sudo dnf install qemu-system-x86-core"}, nil},
		"Arch":   {debian(map[string]string{"pacman": "exit 1"}, "haproxy"), 1, []string{"  haproxy", "sudo pacman -S --needed"}, nil},
		"a Mac, whole": {box{"Darwin", "arm64", "501", []string{"qemu-system-x86_64", "/usr/bin/busybox", "/usr/sbin/dropbear", "/usr/lib/openssh/sftp-server", "mke2fs", "docker-registry", "/usr/share/AAVMF/AAVMF_CODE.fd"}, nil},
			0, nil, nil},
		"a Mac": {box{"Darwin", "arm64", "501", whole, nil}, 1,
			[]string{"qemu-img", "haproxy", "git", "qemu-system-aarch64", "brew install qemu haproxy git", "virtual machine"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			status, said, calls := c.box.run(t)
			if status != c.status {
				t.Errorf("exit status %d, want %d", status, c.status)
			}
			if d := cmp.Diff(c.calls, calls); d != "" {
				t.Error(d)
			}
			rest := said
			for _, s := range c.said {
				var ok bool
				if _, rest, ok = strings.Cut(rest, s); !ok {
					t.Errorf("%q is missing, or in another order, in:\n%s", s, said)
					break
				}
			}
			if c.said == nil && said != "" {
				t.Errorf("said: %s", said)
			}
		})
	}
}

// TestThisMachineLacksNothing runs the script as it is: make check has just run
// it. Nothing is installed by a test: apt-get and sudo refuse.
func TestThisMachineLacksNothing(t *testing.T) {
	bin := t.TempDir()
	for _, name := range []string{"apt-get", "sudo"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\necho 'not from a test: run `make setup`'\nexit 1\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("bash", script)
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("it does more than nothing: %v\n%s", err, out)
	}
}

func TestShellcheckFindsNothing(t *testing.T) {
	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Log("there is no shellcheck here: bash -n alone")
		if out, err := exec.Command("bash", "-n", script).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if out, err := exec.Command("shellcheck", script).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
