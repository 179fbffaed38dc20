package importer_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/rebake/rebake/artifact/importer"
)

// file is a member of a box.
type file struct {
	name, body string
	kind       byte // a tar type; 0 is a file
	size       int64
}

const good = `{"provider": "libvirt", "format": "qcow2", "virtual_size": 1}`

// box packs a box, by gzip or not.
func box(t *testing.T, zip bool, files ...file) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.box")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var to io.WriteCloser = f
	if zip {
		to = gzip.NewWriter(f)
		defer to.Close()
	}
	w := tar.NewWriter(to)
	for _, m := range files {
		h := &tar.Header{Name: m.name, Typeflag: m.kind, Mode: 0o644, Size: int64(len(m.body))}
		if m.kind == tar.TypeSymlink || m.kind == tar.TypeLink {
			h.Linkname, h.Size, m.body = m.body, 0, ""
		}
		if m.size > 0 {
			h.Size = m.size
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if m.size > 0 { // a bomb
			block := bytes.Repeat([]byte(m.body), 1<<20/len(m.body))
			for n := int64(0); n < m.size; n += int64(len(block)) {
				if _, err := w.Write(block); err != nil {
					t.Fatal(err)
				}
			}
		} else if _, err := w.Write([]byte(m.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func qcow2Of(t *testing.T, raw string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	img(t, "convert", "-f", "raw", "-O", "qcow2", raw, path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Boxes of both forms, packed in any order, give their disk and what they say.
func TestBox(t *testing.T) {
	raw, data := disk(t)
	qcow2 := qcow2Of(t, raw)
	script := "File.write('/tmp/owned', 'x')"
	for name, c := range map[string]struct {
		zip   bool
		files []file
		want  importer.Facts
	}{
		"as vagrant-libvirt packs it": {true, []file{{name: "./metadata.json", body: good}, {name: "./Vagrantfile", body: script}, {name: "./box.img", body: qcow2}}, importer.Facts{Firmware: "bios"}},
		"the disk first, not zipped":  {false, []file{{name: "box.img", body: qcow2}, {name: "dir/", kind: tar.TypeDir}, {name: "metadata.json", body: good}}, importer.Facts{Firmware: "bios"}},
		"raw": {true, []file{{name: "metadata.json", body: `{"provider": "qemu", "format": "raw", "architecture": "aarch64"}`}, {name: "box.img", body: string(data)}},
			importer.Facts{Arch: "arm64", Firmware: "bios"}},
		"with disks": {true, []file{{name: "metadata.json", body: `{"provider": "libvirt", "disks": [{"path": "sub/one.qcow2", "format": "qcow2"}]}`}, {name: "box.img", body: "no"}, {name: "sub/one.qcow2", body: qcow2}},
			importer.Facts{Firmware: "bios"}},
		"of rebake, with a seed": {true, []file{{name: "metadata.json", body: `{"provider": "libvirt", "architecture": "amd64", "disks": [{"path": "box.img"}, {"path": "seed.img"}],
			"rebake": {"firmware": "uefi", "seed": "nocloud", "user": "admin", "seed_disk": "seed.img"}}`}, {name: "seed.img", body: "s"}, {name: "box.img", body: qcow2}},
			importer.Facts{Arch: "amd64", Firmware: "uefi", Seed: "nocloud", User: "admin"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var done, total int64
			s, got := read(t, box(t, c.zip, c.files...), importer.Options{Dir: dir, Progress: func(d, n int64) { done, total = d, n }})
			if s.Format != "box" || s.Facts != c.want || !bytes.Equal(got, data) {
				t.Errorf("%s %+v, and %d bytes", s.Format, s.Facts, len(got))
			}
			if done == 0 || done != total {
				t.Errorf("progress ended at %d of %d", done, total)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}

func TestBoxRefuses(t *testing.T) {
	raw, _ := disk(t)
	qcow2 := qcow2Of(t, raw)
	backed := filepath.Join(t.TempDir(), "backed.qcow2")
	img(t, "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", backed)
	overlay, err := os.ReadFile(backed)
	if err != nil {
		t.Fatal(err)
	}
	meta := file{name: "metadata.json", body: good}
	boxImg := file{name: "box.img", body: qcow2}
	many := []file{meta}
	for i := range 1001 {
		many = append(many, file{name: fmt.Sprint(i)})
	}
	for name, c := range map[string]struct {
		files []file
		want  string
	}{
		"no metadata":           {[]file{boxImg}, "there is no metadata.json"},
		"metadata of no sense":  {[]file{{name: "metadata.json", body: "{"}, boxImg}, "read the box's metadata.json"},
		"huge metadata":         {[]file{{name: "metadata.json", body: " ", size: 2 << 20}, boxImg}, "metadata.json has 2097152 bytes"},
		"another provider":      {[]file{{name: "metadata.json", body: `{"provider": "virtualbox"}`}}, `provider "virtualbox"`},
		"another format":        {[]file{{name: "metadata.json", body: `{"provider": "libvirt", "format": "vmdk"}`}, boxImg}, `format "vmdk"`},
		"two disks":             {[]file{{name: "metadata.json", body: `{"provider": "libvirt", "disks": [{"path": "a"}, {"path": "b"}]}`}}, "has 2 disks"},
		"another architecture":  {[]file{{name: "metadata.json", body: `{"provider": "libvirt", "architecture": "s390x"}`}, boxImg}, `architecture "s390x"`},
		"a wrong hint":          {[]file{{name: "metadata.json", body: `{"provider": "libvirt", "rebake": {"seed": "floppy"}}`}, boxImg}, `seeded by "floppy"`},
		"no disk":               {[]file{meta}, "names the disk box.img, which is not in it"},
		"a disk outside":        {[]file{{name: "metadata.json", body: `{"provider": "libvirt", "disks": [{"path": "../../etc/passwd"}]}`}}, "outside of itself"},
		"a disk at the root":    {[]file{{name: "metadata.json", body: `{"provider": "libvirt", "disks": [{"path": "/etc/passwd"}]}`}}, "outside of itself"},
		"a name outside":        {[]file{meta, {name: "x/../../up", body: "x"}, boxImg}, "outside of itself"},
		"an absolute name":      {[]file{meta, boxImg, {name: "/etc/cron.d/x", body: "x"}}, "outside of itself"},
		"a symbolic link":       {[]file{meta, {name: "box.img", body: "/etc/passwd", kind: tar.TypeSymlink}}, "no plain file"},
		"a hard link":           {[]file{meta, {name: "box.img", body: "/etc/passwd", kind: tar.TypeLink}}, "no plain file"},
		"a device":              {[]file{meta, {name: "box.img", kind: tar.TypeBlock}}, "no plain file"},
		"a pipe after the disk": {[]file{meta, boxImg, {name: "fifo", kind: tar.TypeFifo}}, "no plain file"},
		"two disks of one name": {[]file{meta, boxImg, {name: "./box.img", body: "x"}}, "two files named"},
		"two metadata":          {[]file{meta, boxImg, meta}, "two files named"},
		"too many files":        {many, "more than 1000 files"},
		"a backing file":        {[]file{meta, {name: "box.img", body: string(overlay)}}, "names a backing file"},
		"a bomb as the disk":    {[]file{meta, {name: "box.img", body: "abcdefgh", size: 40 << 20}}, "expands more than 200 fold"},
		"a bomb beside it":      {[]file{meta, {name: "junk", body: "\x00", size: 70 << 20}, boxImg}, "claims 73400320 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s, err := importer.Open(t.Context(), box(t, true, c.files...), importer.Options{Format: "box", Dir: dir, Limit: 50 << 20})
			if err == nil {
				s.Disk.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v does not say %q", err, c.want)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}

// A sparse member that claims a huge disk costs no memory, no disk and no time.
func TestBoxSparseLie(t *testing.T) {
	dir := t.TempDir()
	for name, size := range map[string]string{"metadata.json": "", "box.img": "8T"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
			t.Fatal(err)
		}
		if size != "" {
			img(t, "create", "-q", "-f", "raw", path, size)
		}
	}
	path := filepath.Join(t.TempDir(), "a.box")
	if out, err := exec.Command("tar", "-C", dir, "-czSf", path, "metadata.json", "box.img").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	s, err := importer.Open(t.Context(), path, importer.Options{Dir: dir})
	if err == nil {
		s.Disk.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "claims 8796093022208 bytes; at most") {
		t.Error(err)
	}
}

// Unpacking holds no more in memory than its buffers, whatever the box's size.
func TestBoxMemory(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	body := make([]byte, 1<<20)
	for i := range body {
		body[i] = byte(r.Uint32())
	}
	body[510], body[511] = 0x55, 0xaa
	path := box(t, false, file{name: "metadata.json", body: `{"provider": "libvirt", "format": "raw"}`}, file{name: "box.img", body: string(body), size: 32 << 20})
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s, err := importer.Open(t.Context(), path, importer.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Disk.Close()
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 || s.Disk.Size() != 32<<20 {
		t.Errorf("%d bytes were allocated for a disk of %d", got, s.Disk.Size())
	}
}
