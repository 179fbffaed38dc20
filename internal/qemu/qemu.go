// Package qemu starts, finds and stops QEMU processes: the accelerator that
// really works, overlays, seeds, QMP, clean shutdown. builder/qemu and
// fleet/qemu stand on it; it knows nothing of either.
package qemu

import "time"

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
