package export

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/diskfs/go-diskfs/backend"
	"github.com/diskfs/go-diskfs/filesystem/fat12"
	"github.com/rebake/rebake/artifact"
)

// efi are files with UEFI's code and variables in one, by architecture: what the
// distributions call it. If none is there, the error names the first.
var efi = map[string][]string{
	"amd64": {"/usr/share/ovmf/OVMF.fd", "/usr/share/edk2/x64/OVMF.4m.fd", "/usr/share/edk2-ovmf/x64/OVMF.fd", "/usr/share/qemu/ovmf-x86_64.bin"},
	"arm64": {"/usr/share/qemu-efi-aarch64/QEMU_EFI.fd", "/usr/share/edk2/aarch64/QEMU_EFI.fd", "/usr/share/qemu/aavmf-aarch64-code.bin"},
}

// vagrantfile holds defaults, each of which a user's own Vagrantfile can change.
// Nothing in it but checked words and base64 is from outside.
func vagrantfile(img artifact.Image, o BoxOptions) string {
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line("# Defaults of %s:%s, made by rebake. Your own Vagrantfile comes after them.", img.Name, img.Version)
	line("Vagrant.configure(\"2\") do |config|")
	line("  config.ssh.username = %q", o.User)
	if o.User == "root" {
		line("  config.ssh.sudo_command = \"%%c\" # root needs no sudo")
	}
	if len(o.Keys) > 0 {
		line("  config.ssh.insert_key = false # the box lets in a key of its maker's: set config.ssh.private_key_path")
	}
	line("  config.vm.synced_folder \".\", \"/vagrant\", disabled: true # needs rsync or NFS in the image")
	uefi, native := img.Firmware == "uefi", map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[img.Arch]
	var quoted []string
	for _, f := range efi[img.Arch] {
		quoted = append(quoted, fmt.Sprintf("%q", f))
	}
	if uefi || img.Arch == "arm64" {
		line("  firmware = [%s]", strings.Join(quoted, ", "))
		line("  firmware = firmware.find { |f| File.exist?(f) } || firmware.first")
	}
	line("  config.vm.provider :libvirt do |p|")
	line("    p.memory = 1024")
	line("    p.machine_arch = %q", native)
	if img.Arch == "arm64" {
		line("    p.machine_type = \"virt\"")
	}
	if uefi || img.Arch == "arm64" {
		line("    p.loader = firmware")
	}
	var strs, args []string
	if img.Seed == "credentials" {
		for _, c := range credentials(img, o) {
			strs, args = append(strs, fmt.Sprintf("      %q,", c)), append(args, fmt.Sprintf("      %q, %q,", "-smbios", "type=11,value="+c))
		}
		line("    p.sysinfo = {\"oem strings\" => [ # who may log in, as systemd credentials\n%s\n    ]}", strings.Join(strs, "\n"))
	}
	line("  end")
	line("  config.vm.provider :qemu do |p|")
	line("    p.arch = %q", native)
	line("    p.memory = \"1G\"")
	if uefi && img.Arch == "amd64" {
		args = append(args, "      \"-bios\", firmware,")
	}
	if len(args) > 0 {
		line("    p.extra_qemu_args = [\n%s\n    ]", strings.Join(args, "\n"))
	}
	line("  end")
	line("end")
	return b.String()
}

// made says whether the box's account is one that the image lacks.
func (o BoxOptions) made(img artifact.Image) bool { return o.User != "root" && o.User != img.User }

func (o BoxOptions) keys() []string {
	if len(o.Keys) > 0 {
		return o.Keys
	}
	return []string{InsecureKey}
}

// credentials are system credentials (systemd 252 and later). Unlike those of a
// fleet's instance they write no file that is there: Vagrant replaces the key at
// the first login, and what it wrote must outlive the next boot.
func credentials(img artifact.Image, o BoxOptions) []string {
	var b strings.Builder
	put := func(path, mode, owner, text string) {
		fmt.Fprintf(&b, "f~ %s %s %s %s - %s\n", path, mode, owner, owner, base64.StdEncoding.EncodeToString([]byte(text)))
	}
	home := "/root"
	if o.User != "root" {
		home = "/home/" + o.User
	}
	encode := func(name, text string) string {
		return "io.systemd.credential.binary:" + name + "=" + base64.StdEncoding.EncodeToString([]byte(text))
	}
	var out []string
	if o.made(img) {
		out = append(out, encode("sysusers.extra", fmt.Sprintf("u %s 1000 - %s /bin/bash\n", o.User, home)))
		fmt.Fprintf(&b, "d %s 0755 %s %s -\n", home, o.User, o.User)
		put("/etc/sudoers.d/"+o.User, "0440", "root", o.User+" ALL=(ALL) NOPASSWD:ALL\n")
	}
	fmt.Fprintf(&b, "d %s/.ssh 0700 %s %s -\n", home, o.User, o.User)
	put(home+"/.ssh/authorized_keys", "0600", o.User, strings.Join(o.keys(), "\n")+"\n")
	return append(out, encode("tmpfiles.extra", b.String()))
}

// noCloud are the files of cloud-init's NoCloud seed. Its instance id is the
// image's: each machine of a box has a disk of its own, on which cloud-init
// writes keys once.
func noCloud(img artifact.Image, o BoxOptions) (files []boxFile, err error) {
	user := map[string]any{"name": o.User, "ssh_authorized_keys": o.keys()}
	config := map[string]any{"ssh_deletekeys": true, "users": []any{user}}
	if o.User == "root" {
		config["disable_root"] = false
	} else {
		user["sudo"], user["shell"], user["lock_passwd"] = "ALL=(ALL) NOPASSWD:ALL", "/bin/bash", true
	}
	meta, err := json.Marshal(map[string]string{"instance-id": "rebake-" + img.Digest.Hex()[:min(12, len(img.Digest.Hex()))]})
	if err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(config, "", "  ") // which is YAML too
	if err != nil {
		return nil, err
	}
	return []boxFile{{"meta-data", append(meta, '\n')}, {"user-data", append([]byte("#cloud-config\n"), append(data, '\n')...)}}, nil
}

const seedSize = 1 << 20

// cidata makes a file system that cloud-init finds by its label. The same files
// give the same bytes.
func cidata(files []boxFile, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	m := &memory{b: make([]byte, seedSize)}
	vfat, err := fat12.Create(m, seedSize, 0, 512, "cidata", true)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		w, err := vfat.OpenFile("/"+f.name, os.O_CREATE|os.O_RDWR)
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
	}
	return m.b, vfat.Close()
}

// memory is a small disk that a file system is made in.
type memory struct {
	b  []byte
	at int64
}

var _ backend.Storage = (*memory)(nil)

func (m *memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m.b).ReadAt(p, off) }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(m.b)-len(p)) {
		return 0, errors.New("the seed is too long")
	}
	return copy(m.b[off:], p), nil
}

func (m *memory) Read(p []byte) (int, error) {
	n, err := m.ReadAt(p, m.at)
	m.at += int64(n)
	return n, err
}

func (m *memory) Seek(off int64, whence int) (int64, error) {
	if whence == io.SeekCurrent {
		off += m.at
	}
	if whence == io.SeekEnd {
		off += int64(len(m.b))
	}
	m.at = off
	return off, nil
}

func (m *memory) Stat() (fs.FileInfo, error)              { return nil, backend.ErrNotSuitable }
func (m *memory) Sys() (*os.File, error)                  { return nil, backend.ErrNotSuitable }
func (m *memory) Writable() (backend.WritableFile, error) { return m, nil }
func (m *memory) Path() string                            { return "" }
func (m *memory) Close() error                            { return nil }
