package qemu

import (
	"fmt"
	"strconv"
	"strings"
)

// esc doubles commas: QEMU's way to write one inside an option.
func esc(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// ramFD is the descriptor that a savable machine finds its memory at.
const ramFD = 3

// PipeName is what the guest calls the port of Config.Pipe, in /sys/class/virtio-ports.
const PipeName = "rebake.files"

// args is the command line. No secret is in it: seeds go by file.
func (c Config) args(accel Accel, ports map[int]int, seeds seedFiles) ([]string, error) {
	arch := hostArch(c.Arch)
	cpus := c.CPUs
	if cpus == 0 {
		cpus = 2
		if accel == TCG {
			cpus = 1 // measured: under TCG a second vCPU makes a boot slower
		}
	}
	cpu := "host"
	if accel == TCG {
		cpu = "max"
	}
	machine := "q35,usb=off,vmport=off"
	if arch == "arm64" {
		machine = "virt"
		if accel == TCG {
			cpu = "max,pauth-impdef=on"
		}
	}
	cache := "writeback"
	if c.BindToOwner {
		cache = "unsafe" // the disk is thrown away unless the guest shuts down cleanly
	}
	fwd := ""
	for _, guest := range sortedPorts(ports) {
		fwd += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", ports[guest], guest)
	}
	if c.Savable {
		machine += ",memory-backend=ram0"
	}
	a := []string{
		"-name", "guest=" + esc(c.Name),
		"-pidfile", c.pidfile(),
		"-no-user-config", "-nodefaults",
		"-machine", machine + ",accel=" + string(accel),
		"-cpu", cpu, "-smp", strconv.Itoa(cpus),
		"-m", strconv.FormatInt(c.Memory/1024, 10) + "k",
		"-display", "none", "-vga", "none",
		"-serial", "file:" + c.file(consoleName),
		"-qmp", "unix:" + esc(c.socket()) + ",server=on,wait=off",
		"-drive", "if=none,id=disk0,file=" + esc(c.Disk) + ",format=" + esc(c.DiskFormat) + ",cache=" + cache + ",discard=unmap,detect-zeroes=unmap",
		"-device", "virtio-blk-pci,drive=disk0,bootindex=1",
		"-netdev", "user,id=net0" + fwd,
		"-device", "virtio-net-pci,netdev=net0,romfile=,mac=" + c.mac(),
		"-object", "rng-random,id=rng0,filename=/dev/urandom",
		"-device", "virtio-rng-pci,rng=rng0",
	}
	if c.Pipe {
		a = append(a,
			"-device", "virtio-serial-pci",
			"-chardev", "socket,id=pipe0,path="+esc(c.pipe())+",server=on,wait=off",
			"-device", "virtserialport,chardev=pipe0,name="+PipeName)
	}
	if c.Savable {
		a = append(a, "-object", fmt.Sprintf("memory-backend-file,id=ram0,size=%dk,share=on,mem-path=/proc/self/fd/%d", c.Memory/1024, ramFD))
	}
	if c.Resume != "" {
		a = append(a, "-S", "-incoming", "defer")
	}
	if sandboxed {
		a = append(a, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	}
	if len(seeds.smbios) > 0 {
		opt := "type=11"
		for _, f := range seeds.smbios {
			opt += ",path=" + esc(f)
		}
		a = append(a, "-smbios", opt)
	}
	if seeds.iso != "" {
		a = append(a,
			"-drive", "if=none,id=seed0,format=raw,readonly=on,file="+esc(seeds.iso),
			"-device", "virtio-blk-pci,drive=seed0")
	}
	if c.Firmware == "uefi" || arch == "arm64" {
		code, _, ok := UEFI(arch)
		if !ok {
			return nil, fmt.Errorf("no UEFI firmware for %s on this machine (Debian: apt-get install %s)", arch, map[string]string{"amd64": "ovmf", "arm64": "qemu-efi-aarch64"}[arch])
		}
		a = append(a,
			"-drive", "if=pflash,format=raw,readonly=on,file="+esc(code),
			"-drive", "if=pflash,format=raw,file="+esc(c.file(varsName)))
	}
	return a, nil
}
