package importer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The limits of what is read of a qcow2, whatever its header claims.
const (
	maxVirtual = 16 << 40     // bytes of a disk
	maxL1      = 32 << 20 / 8 // entries of the first table: 32 MiB, QEMU's own limit
)

const qcow2Magic = "QFI\xfb"

// Bits of a qcow2's incompatible features.
const (
	featureDirty = 1 << iota
	featureCorrupt
	featureDataFile
	featureCompression
	featureExtendedL2
)

// header is what a reader needs of a qcow2's header.
type header struct {
	version      uint32
	clusterBits  uint32
	size         int64 // of the virtual disk
	l1Size       uint32
	l1Offset     int64
	incompatible uint64
	compression  byte // 0 deflate, 1 zstd
}

// CheckQcow2 tells whether r holds a qcow2, and refuses one that names other
// files, which could be any of this computer, or whose tables are absurd. It
// reads the header alone.
func CheckQcow2(r io.ReaderAt) (bool, error) {
	_, is, err := readHeader(r)
	return is, err
}

func readHeader(r io.ReaderAt) (h header, is bool, err error) {
	var b [112]byte
	n, err := r.ReadAt(b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return h, false, fmt.Errorf("read the disk's header: %w", err)
	}
	if n < 4 || string(b[:4]) != qcow2Magic {
		return h, false, nil
	}
	be := binary.BigEndian
	h = header{version: be.Uint32(b[4:]), clusterBits: be.Uint32(b[20:]), size: int64(be.Uint64(b[24:])), l1Size: be.Uint32(b[36:]), l1Offset: int64(be.Uint64(b[40:]))}
	if h.version == 3 {
		h.incompatible = be.Uint64(b[72:])
		if be.Uint32(b[100:]) > 104 {
			h.compression = b[104]
		}
	}
	switch {
	case h.version != 2 && h.version != 3:
		return h, false, fmt.Errorf("a qcow2 of unknown version %d", h.version)
	case be.Uint64(b[8:]) != 0:
		return h, false, errors.New("the qcow2 names a backing file, which could be any file of this computer: flatten it first (qemu-img convert)")
	case h.incompatible&featureDataFile != 0:
		return h, false, errors.New("the qcow2 names an external data file, which could be any file of this computer: flatten it first (qemu-img convert)")
	case be.Uint32(b[32:]) != 0:
		return h, false, errors.New("the qcow2 is encrypted: decrypt it first (qemu-img convert)")
	case be.Uint32(b[60:]) != 0:
		return h, false, errors.New("the qcow2 holds snapshots, which an image has no use for: flatten it first (qemu-img convert)")
	case h.l1Size > maxL1:
		return h, false, fmt.Errorf("the qcow2 claims a first table of %d entries; at most %d are read", h.l1Size, maxL1)
	case h.size < 0 || h.size > maxVirtual:
		return h, false, errors.New("the qcow2 claims to be larger than 16 TiB")
	}
	return h, true, nil
}
