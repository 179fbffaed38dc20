// Package qemu starts, finds and stops QEMU processes: the accelerator that
// really works, overlays, seeds, QMP, clean shutdown. builder/qemu and
// fleet/qemu stand on it; it knows nothing of either.
package qemu

import (
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// Config is one virtual machine. Every file it makes is in Dir.
type Config struct {
	Name        string        // shown in the process list; unique
	Dir         string        // the machine's directory: vm.json, console.log, seed
	RunDir      string        // short directory for the QMP socket
	Disk        string        // the disk to boot, made before by CreateOverlay
	DiskFormat  string        // qcow2 or raw
	Memory      int64         // bytes
	CPUs        int           // 0: 1 under TCG, else 2
	Arch        string        // amd64 or arm64; "" is the host's
	Firmware    string        // bios or uefi
	Ports       []int         // guest ports to forward from 127.0.0.1; 22 is always there
	Seed        Seed          // who the machine is
	BindToOwner bool          // die with this process (builds); otherwise a daemon (fleets)
	QuitAfter   time.Duration // grace for a clean shutdown; 0: 60 s
	Accel       Accel         // "": what DetectAccel finds
	MAC         string        // "": follows from Dir
	Pipe        bool          // a virtio port for bytes into the guest: VM.Pipe
	Savable     bool          // Save will be called: only where CanSave, with BindToOwner
	Resume      string        // directory that Save filled: go on from there instead of booting
}

// Seed is what a guest is told at first boot, by NoCloud or by credentials.
type Seed struct {
	Kind           string // nocloud or credentials
	InstanceID     string
	Hostname       string
	User           string   // account for the keys; "" is root for credentials, the distribution's default for nocloud
	AuthorizedKeys []string // OpenSSH lines
	HostKeyPEM     []byte   // OpenSSH private host key (ed25519), pinned by the caller; nil: the guest makes its own
	UserData       string   // passed through
}

// Accel is how guest code runs: kvm, hvf or tcg.
type Accel string

// The accelerators.
const (
	KVM Accel = "kvm"
	HVF Accel = "hvf"
	TCG Accel = "tcg" // software: works everywhere, about ten times slower
)

// Binary is the emulator's name for an architecture in GOARCH spelling.
func Binary(arch string) string {
	switch arch {
	case "arm64":
		return "qemu-system-aarch64"
	case "amd64", "":
		return "qemu-system-x86_64"
	}
	return "qemu-system-" + arch
}

func hostArch(arch string) string {
	if arch == "" {
		return runtime.GOARCH
	}
	return arch
}

// UEFI returns the firmware for an architecture: code (read-only) and the
// template of its variables; ok is false if the machine has none.
func UEFI(arch string) (code, vars string, ok bool) {
	pairs := map[string][][2]string{
		"amd64": {
			{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},
			{"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"},
			{"/opt/homebrew/share/qemu/edk2-x86_64-code.fd", "/opt/homebrew/share/qemu/edk2-i386-vars.fd"},
			{"/usr/local/share/qemu/edk2-x86_64-code.fd", "/usr/local/share/qemu/edk2-i386-vars.fd"},
		},
		"arm64": {
			{"/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"},
			{"/opt/homebrew/share/qemu/edk2-aarch64-code.fd", "/opt/homebrew/share/qemu/edk2-arm-vars.fd"},
		},
	}
	for _, p := range pairs[hostArch(arch)] {
		if isFile(p[0]) && isFile(p[1]) {
			return p[0], p[1], true
		}
	}
	return "", "", false
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

func (c Config) file(name string) string { return filepath.Join(c.Dir, name) }

func (c Config) grace() time.Duration {
	if c.QuitAfter > 0 {
		return c.QuitAfter
	}
	return time.Minute
}
