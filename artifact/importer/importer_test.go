package importer_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rebake/rebake/artifact/importer"
)

// img runs qemu-img.
func img(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %v: %v: %s", args, err, out)
	}
}

// disk writes a raw disk with data, text that compresses, and holes; its size is
// no multiple of a cluster.
func disk(t *testing.T) (path string, data []byte) {
	t.Helper()
	data = make([]byte, 9<<20+1536)
	r := rand.New(rand.NewPCG(1, 2))
	for i := 2 << 20; i < 3<<20; i++ {
		data[i] = byte(r.Uint32())
	}
	copy(data[5<<20+777:], bytes.Repeat([]byte("rebake "), 200000))
	copy(data[len(data)-100:], bytes.Repeat([]byte{7}, 100))
	data[510], data[511] = 0x55, 0xaa
	path = filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, data
}

// read opens a file and returns its disk's bytes, which its extents must fit.
func read(t *testing.T, path string, o importer.Options) (*importer.Source, []byte) {
	t.Helper()
	s, err := importer.Open(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Disk.Close()
	got, err := io.ReadAll(io.NewSectionReader(s.Disk, 0, s.Disk.Size()))
	if err != nil || int64(len(got)) != s.Disk.Size() {
		t.Fatalf("%d of %d bytes, %v", len(got), s.Disk.Size(), err)
	}
	extents, err := s.Disk.Extents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	end := int64(0)
	for _, e := range extents {
		if e.Offset != end || e.Length <= 0 || e.Inherited {
			t.Fatalf("extents do not cover the disk: %+v", extents)
		}
		end += e.Length
		if e.Zero && len(bytes.Trim(got[e.Offset:end], "\x00")) > 0 {
			t.Errorf("there is data in %+v, which is said to be zero", e)
		}
	}
	if end != s.Disk.Size() {
		t.Errorf("extents end at %d of %d", end, s.Disk.Size())
	}
	return s, got
}

// What qemu-img writes in each of its ways is read as qemu-img itself reads it.
func TestQcow2(t *testing.T) {
	raw, data := disk(t)
	for _, opts := range []string{
		"compat=1.1", "compat=0.10", "cluster_size=512", "cluster_size=4k", "cluster_size=2M", "lazy_refcounts=on",
		"-c", "-c cluster_size=4k", "-c cluster_size=2M", "-c compression_type=zstd", "-c compression_type=zstd,cluster_size=1M", "-c compat=0.10",
	} {
		t.Run(opts, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.qcow2")
			args := []string{"convert", "-f", "raw", "-O", "qcow2"}
			if rest, ok := strings.CutPrefix(opts, "-c"); ok {
				args, opts = append(args, "-c"), strings.TrimSpace(rest)
			}
			if opts != "" {
				args = append(args, "-o", opts)
			}
			img(t, append(args, raw, path)...)
			s, got := read(t, path, importer.Options{})
			if s.Format != "qcow2" || !bytes.Equal(got, data) {
				t.Errorf("%s of %d bytes differs from the disk", s.Format, len(got))
			}
			if s.Facts != (importer.Facts{Firmware: "bios"}) {
				t.Errorf("%+v", s.Facts)
			}
		})
	}
}

// Clusters written as zeros over data, and discarded ones.
func TestQcow2Zeros(t *testing.T) {
	raw, data := disk(t)
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	img(t, "convert", "-f", "raw", "-O", "qcow2", raw, path)
	cmd := exec.Command("qemu-io", "-f", "qcow2", "-d", "unmap", "-c", "write -z 2M 192k", "-c", "discard 2304k 64k", "-c", "write -P 9 8M 100", path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	clear(data[2<<20 : 2<<20+192<<10])
	clear(data[2304<<10 : 2368<<10])
	copy(data[8<<20:], bytes.Repeat([]byte{9}, 100))
	if _, got := read(t, path, importer.Options{}); !bytes.Equal(got, data) {
		t.Error("other bytes than the disk's")
	}
}

func TestRaw(t *testing.T) {
	raw, data := disk(t)
	if s, got := read(t, raw, importer.Options{}); s.Format != "raw" || !bytes.Equal(got, data) {
		t.Error(s.Format, "differs from the disk")
	}
}

// patch writes big-endian values over a file: offset, value (its type is its width).
func patch(t *testing.T, path string, values ...any) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(values); i += 2 {
		b := &bytes.Buffer{}
		err = errors.Join(err, binary.Write(b, binary.BigEndian, values[i+1]))
		_, werr := f.WriteAt(b.Bytes(), int64(values[i].(int)))
		err = errors.Join(err, werr)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// Places in what qemu-img writes of disk: 64 KiB clusters, the first table in the fourth.
const (
	l1At = 3 << 16
	l2At = 4 << 16
)

// A qcow2 that lies is refused before anything is read by its tables.
func TestQcow2Refuses(t *testing.T) {
	raw, _ := disk(t)
	good := filepath.Join(t.TempDir(), "good.qcow2")
	img(t, "convert", "-f", "raw", "-O", "qcow2", raw, good)
	bytes, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	if binary.BigEndian.Uint64(bytes[40:]) != l1At || binary.BigEndian.Uint64(bytes[l1At:])&^(1<<63) != l2At {
		t.Fatal("this qemu-img lays files out in another way")
	}
	var same []any // every cluster is the same one
	for i := range 145 {
		same = append(same, l2At+8*i, uint64(1<<63|5<<16))
	}
	var bomb []any // every cluster of a large disk is the same compressed one
	for i := range 8192 {
		bomb = append(bomb, l2At+8*i, uint64(1<<62|1<<54|5<<16))
	}
	for name, c := range map[string]struct {
		spoil []any
		want  string
	}{
		"a backing file":            {[]any{8, uint64(512), 16, uint32(11), 512, []byte("/etc/passwd")}, "names a backing file"},
		"a data file":               {[]any{72, uint64(4)}, "external data file"},
		"a larger disk":             {[]any{24, uint64(2 << 40)}, "the disk claims 2199023255552 bytes; at most"},
		"no disk":                   {[]any{24, uint64(0)}, "0 bytes"},
		"a negative size":           {[]any{24, ^uint64(0)}, "larger than 16 TiB"},
		"huge clusters":             {[]any{20, uint32(63)}, "clusters of 2^63"},
		"tiny clusters":             {[]any{20, uint32(0)}, "clusters of 2^0"},
		"corrupt":                   {[]any{72, uint64(2)}, "marked as corrupt"},
		"subclusters":               {[]any{72, uint64(16)}, "subclusters"},
		"unknown features":          {[]any{72, uint64(1 << 40)}, "features that are not known"},
		"unknown compression":       {[]any{72, uint64(8), 100, uint32(112), 104, byte(9)}, "unknown way"},
		"a short first table":       {[]any{24, uint64(600 << 20)}, "has 1 entries; its disk needs 2"},
		"a first table at the end":  {[]any{40, uint64(1 << 40)}, "first table is said to be at"},
		"a negative first table":    {[]any{40, ^uint64(0xffff)}, "first table is said to be at"},
		"a crooked first table":     {[]any{40, uint64(l1At + 8)}, "first table is said to be at"},
		"a table outside":           {[]any{l1At, uint64(1<<63 | 1<<40)}, "a table of the qcow2 is said to be at"},
		"a cluster outside":         {[]any{l2At + 8, uint64(1<<63 | 1<<40)}, "a cluster of the qcow2 is said to be at"},
		"the header as data":        {[]any{l2At + 8, uint64(1<<63 | 512)}, "a cluster of the qcow2 is said to be at"},
		"a crooked cluster":         {[]any{l2At + 8, uint64(1<<63 | 5<<16 | 512)}, "a cluster of the qcow2 is said to be at"},
		"compressed outside":        {[]any{l2At + 8, uint64(1<<62 | 1<<40)}, "a cluster of the qcow2 is said to be at"},
		"one cluster for all":       {same, "the same data is named several times"},
		"one small cluster for all": {append([]any{24, uint64(500 << 20)}, bomb...), "expands more than 200 fold"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.qcow2")
			if err := os.WriteFile(path, bytes, 0o600); err != nil {
				t.Fatal(err)
			}
			patch(t, path, c.spoil...)
			if name == "one small cluster for all" { // 512 MiB from 128 KiB
				if err := os.Truncate(path, 6<<16); err != nil {
					t.Fatal(err)
				}
			}
			s, err := importer.Open(t.Context(), path, importer.Options{})
			if err == nil {
				s.Disk.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v does not say %q", err, c.want)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int, at int, magic string) {
		b := make([]byte, size)
		copy(b[at:], magic)
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("vmdk", 4096, 0, "KDMV")
	write("iso", 64<<10, 32769, "CD001")
	write("xz", 4096, 0, "\xfd7zXZ\x00")
	write("page", 4096, 0, "<!doctype html>")
	write("empty", 0, 0, "")
	write("cut", 4097, 510, "\x55\xaa")
	write("large", 4096, 510, "\x55\xaa")
	if err := exec.Command("mkfifo", filepath.Join(dir, "pipe")).Run(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		o    importer.Options
		want string
	}{
		{"vmdk", importer.Options{}, "it is a VMDK"},
		{"iso", importer.Options{}, "a CD, not a disk"},
		{"xz", importer.Options{}, "compressed (xz)"},
		{"page", importer.Options{}, "no boot sector"},
		{"page", importer.Options{Format: "qcow2"}, "it is no qcow2"},
		{"page", importer.Options{Format: "ova"}, "none of qcow2, raw, box"},
		{"empty", importer.Options{Format: "raw"}, "the file is empty"},
		{"large", importer.Options{Limit: 4095}, "claims 4096 bytes; at most 4095"},
		{"cut", importer.Options{}, "no whole sectors"},
		{"pipe", importer.Options{}, "not a regular file"},
		{".", importer.Options{}, "not a regular file"},
		{"none", importer.Options{}, "no such file"},
	} {
		s, err := importer.Open(t.Context(), filepath.Join(dir, c.name), c.o)
		if err == nil {
			s.Disk.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %+v: %v does not say %q", c.name, c.o, err, c.want)
		}
	}
}

// The firmware is what the disk's own tables ask for.
func TestFirmware(t *testing.T) {
	esp := "\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b"
	for name, c := range map[string]struct {
		put  map[int]string
		want string
	}{
		"MBR with code":              {map[int]string{0: "\xeb\x63"}, "bios"},
		"MBR with an ESP":            {map[int]string{450: "\xef"}, "uefi"},
		"MBR with code and an ESP":   {map[int]string{0: "\xeb\x63", 450: "\xef"}, "bios"},
		"GPT with an ESP":            {map[int]string{450: "\xee", 512: "EFI PART", 596: "\x80", 1024: esp}, "uefi"},
		"GPT with both":              {map[int]string{450: "\xee", 512: "EFI PART", 596: "\x80", 1024: esp, 1152: "Hah!IdontNeedEFI"}, "bios"},
		"GPT with code and an ESP":   {map[int]string{0: "\xeb\x63", 512: "EFI PART", 596: "\x80", 1280: esp}, "bios"},
		"GPT with large entries":     {map[int]string{512: "EFI PART", 596: "\xff\xff\xff", 1024: esp}, "bios"},
		"neither code nor any entry": {nil, "bios"},
	} {
		b := make([]byte, 64<<10)
		b[510], b[511] = 0x55, 0xaa
		for at, s := range c.put {
			copy(b[at:], s)
		}
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, _ := read(t, path, importer.Options{}); s.Facts.Firmware != c.want {
			t.Errorf("%s boots by %s, want %s", name, s.Facts.Firmware, c.want)
		}
	}
}

// FuzzQcow2 spoils two words of a file of qemu-img's: it is refused, or what is
// read of it is within its size and without a panic.
func FuzzQcow2(f *testing.F) {
	dir := f.TempDir()
	raw := filepath.Join(dir, "raw")
	if err := os.WriteFile(raw, bytes.Repeat([]byte("rebake "), 3000), 0o600); err != nil {
		f.Fatal(err)
	}
	var good [][]byte
	for i, opts := range []string{"cluster_size=512", "cluster_size=4k", "cluster_size=4k,compression_type=zstd"} {
		path := filepath.Join(dir, fmt.Sprint(i))
		args := []string{"convert", "-f", "raw", "-O", "qcow2", "-o", opts}
		if i > 0 {
			args = append(args, "-c")
		}
		if out, err := exec.Command("qemu-img", append(args, raw, path)...).CombinedOutput(); err != nil {
			f.Fatalf("%v: %s", err, out)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		good = append(good, b)
		l1 := binary.BigEndian.Uint64(b[40:])
		f.Add(uint8(i), uint16(24), uint64(1<<20), uint16(l1), uint64(1<<63|4096))
		f.Add(uint8(i), uint16(l1), uint64(1<<62), uint16(72), uint64(8))
	}
	f.Fuzz(func(t *testing.T, which uint8, at uint16, v uint64, at2 uint16, v2 uint64) {
		b := bytes.Clone(good[int(which)%len(good)])
		binary.BigEndian.PutUint64(b[int(at)%(len(b)-8):], v)
		binary.BigEndian.PutUint64(b[int(at2)%(len(b)-8):], v2)
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := importer.Open(t.Context(), path, importer.Options{Limit: 4 << 20})
		if err != nil {
			return
		}
		defer s.Disk.Close()
		n, err := io.Copy(io.Discard, io.NewSectionReader(s.Disk, 0, s.Disk.Size()))
		if n > 4<<20 || err == nil && n != s.Disk.Size() {
			t.Errorf("%d bytes of a disk of %d, %v", n, s.Disk.Size(), err)
		}
	})
}
