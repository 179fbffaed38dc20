// Package tinyguest builds the small guest that the end-to-end tests boot:
// Debian's cloud kernel, busybox and dropbear on a self-contained disk that
// reaches SSH in a few seconds even without an accelerator. It obeys the same
// credentials as a Debian guest (its init is a minute systemd-tmpfiles), powers
// off on ACPI, and serves /www on port 80.
package tinyguest

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/internal/qemu/bootdisk"
)

//go:embed guest
var guest embed.FS

const diskSize = 96 << 20

// Build makes the disk in dir, once: it is named by what it is made from.
func Build(ctx context.Context, dir string) (path, sum string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", err
	}
	lock := flock.New(filepath.Join(dir, "lock"))
	if err := lock.Lock(); err != nil {
		return "", "", err
	}
	defer lock.Close()
	kernel, err := kernelPackage(ctx)
	if err != nil {
		return "", "", err
	}
	path = filepath.Join(dir, "tiny-"+recipe(kernel)+".raw")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		err = build(ctx, dir, kernel, path)
		if err != nil {
			return "", "", fmt.Errorf("build the tiny guest: %w", err)
		}
	}
	sum, err = hash(path)
	return path, "sha256:" + sum, err
}

// recipe changes with the guest's own files, the kernel and the programs in it.
func recipe(kernel string) string {
	h := sha256.New()
	fmt.Fprintln(h, "1", kernel)
	for _, f := range append([]string{"/usr/bin/busybox"}, programs...) {
		if s, err := hash(f); err == nil {
			fmt.Fprintln(h, f, s)
		}
	}
	_ = fs.WalkDir(guest, ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			b, _ := guest.ReadFile(p)
			fmt.Fprintf(h, "%s %x\n", p, sha256.Sum256(b))
		}
		return err
	})
	return hex.EncodeToString(h.Sum(nil))[:16]
}

func hash(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

var (
	programs = []string{"/usr/sbin/dropbear", "/usr/bin/dropbearkey", "/usr/bin/dropbearconvert", "/usr/lib/openssh/sftp-server"}
	kernelRE = regexp.MustCompile(`Depends: (linux-image-\S+-cloud-amd64)`)
	libRE    = regexp.MustCompile(`(/\S+\.so\S*) \(`)
	applets  = "[ ash awk basename base64 cat chgrp chmod chown cmp cp cut date dd df diff dirname dmesg du echo env expr false find free grep gunzip gzip halt head hostname httpd id insmod ip kill killall ln ls lsmod md5sum mkdir mknod mktemp mount mv nc netstat nohup pidof poweroff printf ps pwd readlink realpath reboot rm rmdir sed seq setsid sh sha256sum sleep sort stat sync tail tar tee test time timeout touch tr true udhcpc umount uname uniq uptime vi wc wget which xargs yes zcat acpid switch_root"
	// drivers of the disks and the network card that a guest may meet, most needed first
	drivers = []string{"virtio_pci", "virtio_blk", "virtio_net", "virtio-rng", "ata_piix", "sd_mod", "button", "evdev", "crc32c-intel", "af_packet"}
)

func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

func kernelPackage(ctx context.Context) (string, error) {
	out, err := run(ctx, "", "apt-cache", "depends", "linux-image-cloud-amd64")
	if err != nil {
		return "", err
	}
	m := kernelRE.FindStringSubmatch(out)
	if m == nil {
		return "", errors.New("apt knows no Debian cloud kernel: run apt-get update")
	}
	return m[1], nil
}

func build(ctx context.Context, dir, kernel, path string) (err error) {
	work, err := os.MkdirTemp(dir, "work-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	pkg := filepath.Join(work, "pkg")
	if _, err := run(ctx, work, "apt-get", "-o", "APT::Sandbox::User=root", "download", kernel); err != nil {
		return err
	}
	debs, _ := filepath.Glob(filepath.Join(work, "*.deb"))
	if len(debs) != 1 {
		return fmt.Errorf("apt-get download %s gave %d files", kernel, len(debs))
	}
	if _, err := run(ctx, work, "dpkg", "-x", debs[0], pkg); err != nil {
		return err
	}
	release := strings.TrimPrefix(kernel, "linux-image-")
	root := filepath.Join(work, "root")
	if err := makeRoot(ctx, root); err != nil {
		return err
	}
	if err := copyFile(filepath.Join(pkg, "boot", "vmlinuz-"+release), filepath.Join(root, "boot/vmlinuz"), 0o644); err != nil {
		return err
	}
	if err := makeInitrd(ctx, work, pkg, release, filepath.Join(root, "boot/initrd")); err != nil {
		return err
	}
	cmd := bootdisk.Command{Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd", Options: "console=ttyS0 quiet panic=10"}
	if err := os.WriteFile(filepath.Join(root, "boot/grub/grub.cfg"), []byte(cmd.GrubConfig()), 0o644); err != nil {
		return err
	}
	disk := filepath.Join(work, "disk.raw")
	if err := bootdisk.Create(disk, diskSize); err != nil {
		return err
	}
	if err := bootdisk.Fill(ctx, disk, root, diskSize); err != nil {
		return err
	}
	if err := bootdisk.Finish(ctx, disk, diskSize); err != nil {
		return err
	}
	return os.Rename(disk, path)
}

func makeRoot(ctx context.Context, root string) error {
	for _, d := range []string{"bin", "boot/grub", "dev", "etc/dropbear", "etc/ssh", "lib", "lib64", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/sbin", "usr/lib", "var/lib", "var/log", "var/tmp", "www/cgi-bin"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	files, err := fs.Sub(guest, "guest/root")
	if err != nil {
		return err
	}
	err = fs.WalkDir(files, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(files, p)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(string(data), "#!") {
			mode = 0o755
		}
		dst := filepath.Join(root, p)
		if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
			return err
		}
		return os.WriteFile(dst, data, mode)
	})
	if err != nil {
		return err
	}
	if err := copyFile("/usr/bin/busybox", filepath.Join(root, "bin/busybox"), 0o755); err != nil {
		return fmt.Errorf("%w (apt-get install busybox-static)", err)
	}
	for _, a := range strings.Fields(applets) {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", a)); err != nil {
			return err
		}
	}
	libs := map[string]bool{"/lib/x86_64-linux-gnu/libnss_files.so.2": true, "/lib/x86_64-linux-gnu/libc.so.6": true}
	for _, p := range programs {
		if err := copyFile(p, filepath.Join(root, p), 0o755); err != nil {
			return fmt.Errorf("%w (apt-get install dropbear-bin openssh-sftp-server)", err)
		}
		out, err := run(ctx, "", "ldd", p)
		if err != nil {
			return err
		}
		for _, m := range libRE.FindAllStringSubmatch(out, -1) {
			libs[m[1]] = true
		}
	}
	for l := range libs {
		if err := copyFile(l, filepath.Join(root, l), 0o755); err != nil {
			return err
		}
	}
	return os.Chmod(filepath.Join(root, "root"), 0o700)
}

func copyFile(src, dst string, mode fs.FileMode) error {
	data, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	return os.WriteFile(dst, data, mode)
}

// makeInitrd packs busybox, an init and the drivers, in the order to load them.
func makeInitrd(ctx context.Context, work, pkg, release, dst string) error {
	if _, err := run(ctx, work, "busybox", "true"); err != nil {
		return err
	}
	if _, err := run(ctx, work, "/sbin/depmod", "-b", pkg, release); err != nil {
		return err
	}
	base := filepath.Join(pkg, "lib/modules", release)
	order, err := moduleOrder(base)
	if err != nil {
		return err
	}
	root := filepath.Join(work, "initrd")
	for _, d := range []string{"bin", "dev", "proc", "sys", "mnt", "mod"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	var load strings.Builder
	for i, m := range order {
		name := fmt.Sprintf("%02d-%s", i, filepath.Base(m))
		if err := copyFile(filepath.Join(base, m), filepath.Join(root, "mod", name), 0o644); err != nil {
			return err
		}
		fmt.Fprintln(&load, name)
	}
	init, err := guest.ReadFile("guest/initrd/init")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "init"), init, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "mod/order"), []byte(load.String()), 0o644); err != nil {
		return err
	}
	if err := copyFile("/usr/bin/busybox", filepath.Join(root, "bin/busybox"), 0o755); err != nil {
		return err
	}
	f, err := os.Create(dst)
	if err != nil {
		return err
	}
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return err
	}
	return errors.Join(writeCPIO(z, root), z.Close(), f.Close())
}

// moduleOrder lists the drivers and what they need, dependencies first.
func moduleOrder(base string) ([]string, error) {
	raw, err := os.ReadFile(filepath.Join(base, "modules.dep"))
	if err != nil {
		return nil, err
	}
	deps, byName := map[string][]string{}, map[string]string{}
	for _, l := range strings.Split(string(raw), "\n") {
		file, need, ok := strings.Cut(l, ":")
		if ok {
			deps[file] = strings.Fields(need)
			byName[strings.TrimSuffix(filepath.Base(file), ".ko")] = file
		}
	}
	var order []string
	seen := map[string]bool{}
	var add func(string)
	add = func(f string) {
		if seen[f] {
			return
		}
		seen[f] = true
		need := append([]string(nil), deps[f]...)
		sort.SliceStable(need, func(i, j int) bool { return len(deps[need[i]]) < len(deps[need[j]]) })
		for _, d := range need {
			add(d)
		}
		order = append(order, f)
	}
	for _, d := range drivers {
		if f, ok := byName[d]; ok { // else it is built into this kernel
			add(f)
		}
	}
	if len(order) == 0 {
		return nil, errors.New("the kernel package holds none of the drivers")
	}
	return order, nil
}
