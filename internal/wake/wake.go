// Package wake brings a guest that goes on from a saved memory into the
// present: its clock is set, and its random generator gets entropy that no
// other guest of the same state has. Nothing else may run before.
//
// QEMU's vmgenid device does the second where the guest's kernel has a driver;
// Debian 12's cloud kernel has none, so it is always done by hand: RNDADDENTROPY
// and RNDRESEEDCRNG (random(4)), by perl, python3, or a program of 228 bytes.
package wake

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed" // the script
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rebake/rebake/provisioner"
)

//go:embed wake.sh
var script string

// seedSize is 512 bits: twice what the kernel's generator holds.
const seedSize = 64

// exitNoWay is the script's status for a guest that cannot be reseeded.
const exitNoWay = 42

// ErrNoWay says that a guest has nothing that could reseed it: its memory must
// not be gone on from.
var ErrNoWay = errors.New("the guest has neither perl nor python3, nor can it run a program of ours: its random generator cannot be reseeded")

// Up does it. It needs root, or sudo without a password, in the guest. It may
// be called on any guest: one that was never saved takes no harm.
func Up(ctx context.Context, g provisioner.Guest) error {
	// struct rand_pool_info: entropy_count in bits, buf_size in bytes, buf
	pool := make([]byte, 8+seedSize)
	binary.LittleEndian.PutUint32(pool, seedSize*8)
	binary.LittleEndian.PutUint32(pool[4:], seedSize)
	if _, err := rand.Read(pool[8:]); err != nil {
		return err
	}
	// All of it on standard input: the seed meets no process list and no file.
	stdin := fmt.Sprintf("%d\n%s\n%s\n", time.Now().Unix(), octal(pool), octal(program()))
	var out bytes.Buffer
	err := g.Run(ctx, provisioner.Cmd{Line: script, Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &out, Sudo: true})
	var exit *provisioner.ExitError
	if errors.As(err, &exit) && exit.Code == exitNoWay {
		return ErrNoWay
	}
	if err != nil {
		return fmt.Errorf("set the guest's clock and reseed it: %w: %s", err, strings.TrimSpace(out.String()))
	}
	return nil
}

// octal is b as printf(1) takes it.
func octal(b []byte) string {
	var s strings.Builder
	for _, c := range b {
		fmt.Fprintf(&s, `\%03o`, c)
	}
	return s.String()
}

// program is an ELF file for linux/amd64: reseed_amd64.s.txt, assembled. It
// reads a rand_pool_info from standard input and ends with 0 if the kernel took it.
func program() []byte {
	code := []byte{
		0x31, 0xc0, 0x31, 0xff, 0x48, 0x8d, 0x74, 0x24, 0x80, 0xba, 0x48, 0x00, 0x00, 0x00, 0x0f, 0x05, // read(0, buf, 72)
		0x83, 0xf8, 0x48, 0x75, 0x3f, // else fail
		0x49, 0x89, 0xf0, 0xb8, 0x02, 0x00, 0x00, 0x00, 0x48, 0x8d, 0x3d, 0x3c, 0x00, 0x00, 0x00, 0xbe, 0x01, 0x00, 0x00, 0x00, 0x0f, 0x05, // open(path, O_WRONLY)
		0x89, 0xc7, 0xb8, 0x10, 0x00, 0x00, 0x00, 0xbe, 0x03, 0x52, 0x08, 0x40, 0x4c, 0x89, 0xc2, 0x0f, 0x05, // ioctl(fd, RNDADDENTROPY, buf)
		0x85, 0xc0, 0x75, 0x14, // else fail
		0xb8, 0x10, 0x00, 0x00, 0x00, 0xbe, 0x07, 0x52, 0x00, 0x00, 0x0f, 0x05, // ioctl(fd, RNDRESEEDCRNG)
		0x85, 0xc0, 0x75, 0x04, // else fail
		0x31, 0xff, 0xeb, 0x05, // status 0
		0xbf, 0x01, 0x00, 0x00, 0x00, // fail: status 1
		0xb8, 0x3c, 0x00, 0x00, 0x00, 0x0f, 0x05, // exit(status)
	}
	code = append(code, "/dev/random\x00"...)
	const base, head = 0x400000, 64 + 56
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01")
	b.Write(make([]byte, 9))
	size := uint64(head + len(code))
	for _, v := range []any{
		uint16(2), uint16(62), uint32(1), uint64(base + head), uint64(64), uint64(0), uint32(0), // EXEC, x86-64, entry, program headers
		uint16(64), uint16(56), uint16(1), uint16(64), uint16(0), uint16(0),
		uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(0x1000), // LOAD, R+X
	} {
		_ = binary.Write(&b, binary.LittleEndian, v) // to memory
	}
	b.Write(code)
	return b.Bytes()
}
