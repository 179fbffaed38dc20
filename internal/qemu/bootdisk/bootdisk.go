// Package bootdisk makes a raw disk that boots by itself on any PC BIOS: an MBR
// with one ext4 partition, GRUB's core in the gap before it. No root, no loop
// device and no mount is needed: mke2fs fills the file system from a directory.
package bootdisk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	sector = 512
	offset = 1 << 20 // of the partition
	// ID is the file system's UUID and its hash seed: fixed, so that two disks
	// of the same files share their bytes.
	ID      = "6f2b1f4e-52eb-4a6b-8a5e-5eba4e000001"
	grubDir = "/usr/lib/grub/i386-pc"
)

// Command is how a kernel in the root directory is booted.
type Command struct{ Kernel, Initrd, Options string }

// GrubConfig is the content of /boot/grub/grub.cfg.
func (c Command) GrubConfig() string {
	return fmt.Sprintf("linux %s root=UUID=%s %s\ninitrd %s\nboot\n", c.Kernel, ID, c.Options, c.Initrd)
}

// MkfsArgs is the mke2fs command line that fills the partition of a disk of
// size bytes at path from the directory root.
func MkfsArgs(path, root string, size int64) []string {
	blocks := (size - offset) / 4096
	return []string{"mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", "rebake-root", "-U", ID,
		"-E", "offset=" + strconv.Itoa(offset) + ",hash_seed=" + ID + ",root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1",
		"-O", "^metadata_csum_seed", "-m", "1", "-d", root, path, strconv.FormatInt(blocks, 10)}
}

// Create makes an empty sparse file of the given size.
func Create(path string, size int64) (err error) {
	if size < 16<<20 || size%4096 != 0 {
		return fmt.Errorf("disk size of %d bytes: give at least 16M, in multiples of 4096", size)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// Fill runs mke2fs.
func Fill(ctx context.Context, path, root string, size int64) error {
	a := MkfsArgs(path, root, size)
	cmd := exec.CommandContext(ctx, a[0], a[1:]...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "E2FSPROGS_FAKE_TIME=1700000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Finish writes the partition table and GRUB into the file, and syncs it.
func Finish(ctx context.Context, path string, size int64) (err error) {
	boot, err := os.ReadFile(filepath.Join(grubDir, "boot.img"))
	if err != nil {
		return fmt.Errorf("GRUB's boot code: %w (Debian: apt-get install grub-pc-bin)", err)
	}
	core, err := coreImage(ctx, filepath.Dir(path))
	if err != nil {
		return err
	}
	if len(boot) < 440 || len(core) > offset-sector {
		return fmt.Errorf("GRUB's images of %d and %d bytes do not fit", len(boot), len(core))
	}
	mbr := make([]byte, sector)
	copy(mbr, boot[:440])
	copy(mbr[440:], "rbak") // disk signature
	part := mbr[446:462]
	part[0], part[4] = 0x80, 0x83
	copy(part[1:4], []byte{0xfe, 0xff, 0xff}) // no CHS
	copy(part[5:8], []byte{0xfe, 0xff, 0xff})
	binary.LittleEndian.PutUint32(part[8:], offset/sector)
	binary.LittleEndian.PutUint32(part[12:], uint32((size-offset)/sector))
	mbr[510], mbr[511] = 0x55, 0xaa
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.WriteAt(mbr, 0); err != nil {
		return err
	}
	if _, err := f.WriteAt(core, sector); err != nil {
		return err
	}
	return f.Sync()
}

func coreImage(ctx context.Context, dir string) ([]byte, error) {
	tmp, err := os.MkdirTemp(dir, "grub-*")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	early := filepath.Join(tmp, "early.cfg")
	cfg := "search.fs_uuid " + ID + " root\nset prefix=($root)/boot/grub\nconfigfile ($root)/boot/grub/grub.cfg\n"
	if err := os.WriteFile(early, []byte(cfg), 0o600); err != nil {
		return nil, err
	}
	out := filepath.Join(tmp, "core.img")
	cmd := exec.CommandContext(ctx, "grub-mkimage", "-O", "i386-pc", "-o", out, "-c", early, "-p", "(hd0,msdos1)/boot/grub",
		"biosdisk", "part_msdos", "ext2", "linux", "configfile", "search_fs_uuid")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("grub-mkimage: %w: %s (Debian: apt-get install grub-common grub-pc-bin)", err, strings.TrimSpace(string(msg)))
	}
	return os.ReadFile(out)
}
