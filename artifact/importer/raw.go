package importer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// sector is the block that a disk's own tables count in.
const sector = 512

// others are disks and archives that are not read, by how they begin: taken as
// a raw disk they would come to an image that does not boot.
var others = []struct {
	at    int64
	magic string
	what  string
}{
	{0, "KDMV", "a VMDK"}, {0, "# Disk DescriptorFile", "a VMDK"}, {0, "conectix", "a VHD"}, {0, "vhdxfile", "a VHDX"},
	{0x40, "\x7f\x10\xda\xbe", "a VDI"}, {0, "QED\x00", "a QED"}, {0, "LUKS\xba\xbe", "encrypted (LUKS)"},
	{32769, "CD001", "a CD, not a disk"}, {0, "\xfd7zXZ\x00", "compressed (xz)"}, {0, "\x28\xb5\x2f\xfd", "compressed (zstd)"},
	{0, "BZh", "compressed (bzip2)"}, {0, "PK\x03\x04", "a zip archive"},
}

// sniff says what a file holds: qcow2, box (a tar, which may be compressed by
// gzip) or raw.
func sniff(r io.ReaderAt) (string, error) {
	var b [33 << 10]byte
	n, err := r.ReadAt(b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	head := b[:n]
	for _, o := range others {
		if int64(len(head)) > o.at && bytes.HasPrefix(head[o.at:], []byte(o.magic)) {
			return "", fmt.Errorf("it is %s: convert it to qcow2 first", o.what)
		}
	}
	has := func(at int, s string) bool { return len(head) >= at+len(s) && string(head[at:at+len(s)]) == s }
	switch {
	case has(0, qcow2Magic):
		return "qcow2", nil
	case has(0, "\x1f\x8b"), has(257, "ustar"):
		return "box", nil
	case has(510, "\x55\xaa"):
		return "raw", nil
	}
	return "", errors.New("it is no qcow2, no box, and has no boot sector: if it is a raw disk all the same, say so")
}

// Types of GPT partitions, as they are on the disk.
var (
	espType      = []byte{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}
	biosBootType = []byte("Hah!IdontNeedEFI")
)

const mbrESP = 0xef

// firmware is what a disk boots by: uefi if it has an EFI system partition and
// nothing in its boot sector for a BIOS to run.
func firmware(r io.ReaderAt) (string, error) {
	var b [34 * sector]byte // the boot sector, and the usual place of a GPT
	if _, err := r.ReadAt(b[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	code := b[:440]
	esp, bios := false, slices.ContainsFunc(code, func(c byte) bool { return c != 0 })
	for i := range 4 {
		esp = esp || b[446+16*i+4] == mbrESP
	}
	if gpt := b[sector : 2*sector]; string(gpt[:8]) == "EFI PART" && binary.LittleEndian.Uint32(gpt[84:]) == 128 {
		for i := 2 * sector; i < len(b); i += 128 {
			esp = esp || bytes.Equal(b[i:i+16], espType)
			bios = bios || bytes.Equal(b[i:i+16], biosBootType)
		}
	}
	if esp && !bios {
		return "uefi", nil
	}
	return "bios", nil
}
