package inventory

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/rebake/rebake/provisioner"
	"github.com/rebake/rebake/test/fake"
	"github.com/rebake/rebake/test/shells"
)

func guests(t *testing.T) map[string]shells.Guest {
	t.Helper()
	return shells.Guests(t, "cat find printf sed sh sha256sum stat tail tr uname xargs")
}

// deb installs a package of these files into root, with the real dpkg.
func deb(t *testing.T, root, name, version string, files map[string]string) {
	t.Helper()
	tree, out := t.TempDir(), filepath.Join(t.TempDir(), "x.deb")
	shells.Write(t, tree, "DEBIAN/control", "Package: "+name+"\nSource: src-"+name+"\nVersion: "+version+"\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: for a test\n")
	sums := ""
	for n, body := range files {
		shells.Write(t, tree, n, body)
		b, err := exec.Command("md5sum", filepath.Join(tree, n)).Output()
		if err != nil {
			t.Fatal(err)
		}
		sums += strings.Fields(string(b))[0] + "  " + n + "\n"
	}
	shells.Write(t, tree, "DEBIAN/md5sums", sums)
	for _, args := range [][]string{{"dpkg-deb", "--build", tree, out}, {"dpkg", "--root=" + root, "--log=/dev/null", "--force-not-root", "--force-bad-path", "--no-triggers", "-i", out}} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, b)
		}
	}
}

func newRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for n, body := range map[string]string{
		"etc/os-release": "ID=debian\nVERSION_ID=\"12\"\n", "etc/passwd": "root:x:0:0:r:/root:/bin/sh\nbob:x:7:8::/home/bob:/bin/false\n", "etc/group": "root:x:0:\nadm:x:4:bob,eve\n",
		"proc/net/tcp":          "  sl  local_address rem_address   st\n   0: 00000000:0016 00000000:0000 0A 0\n   1: 0100007F:1234 0100007F:0016 01 0\n",
		"proc/net/tcp6":         "   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0\n",
		"proc/net/udp":          "   0: 00000000:0044 00000000:0000 07 0\n   1: 00000000:9C40 00000000:0000 07 0\n",
		"etc/cron.d/job":        "* * * * * root true\n",
		"lib/modules/6.1.0-1/x": "",
		"run/secret":            "x", "tmp/x": "x", "sys/x": "x", "dev/x": "x",
		"srv/new\nline": "x", "srv/two  spaces": "hello\n",
		"var/lib/dpkg/status": "", "var/lib/dpkg/info/x": "", "var/lib/dpkg/updates/x": "",
	} {
		shells.Write(t, root, n, body)
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(root, "var/lib/dpkg/info/x")), os.RemoveAll(filepath.Join(root, "var/lib/dpkg/updates/x")),
		os.MkdirAll(filepath.Join(root, "usr/bin"), 0o755), os.Symlink("usr/bin", filepath.Join(root, "bin")),
		os.MkdirAll(filepath.Join(root, "etc/systemd/system/multi-user.target.wants"), 0o755),
		os.Symlink("/lib/nginx.service", filepath.Join(root, "etc/systemd/system/multi-user.target.wants/nginx.service")),
		os.Symlink("it's -> 't", filepath.Join(root, "srv/it's")), os.Symlink("a\nb", filepath.Join(root, "srv/a -> b")),
		os.Symlink("/lib/x.timer", filepath.Join(root, "etc/systemd/system/multi-user.target.wants/x.timer"))); err != nil {
		t.Fatal(err)
	}
	return root
}

func (inv *Inventory) at(path string) File {
	for _, f := range inv.Files {
		if f.Path == path {
			return f
		}
	}
	return File{}
}

func TestWhatAnImageHolds(t *testing.T) {
	const hello = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
	for name, g := range guests(t) {
		t.Run(name, func(t *testing.T) {
			root := newRoot(t)
			deb(t, root, "tool", "1.0-1", map[string]string{"bin/tool": "hello\n", "usr/lib/tool/data": "hello\n", "usr/lib/tool/baked": "x", "etc/tool.conf": "hello\n"})
			before, err := take(t.Context(), g, Files, root)
			if err != nil {
				t.Fatal(err)
			}
			if p := before.Packages; len(p) != 1 || p[0] != (Package{"dpkg", "tool", "1.0-1", "all", "src-tool"}) {
				t.Errorf("packages %+v", p)
			}
			if before.OS["VERSION_ID"] != "12" || len(before.Kernels) != 1 || before.Kernels[0] != "6.1.0-1" || before.Kernel == "" || before.Machine == "" {
				t.Errorf("%v %v %v %v", before.OS, before.Kernels, before.Kernel, before.Machine)
			}
			if !slices.Equal(before.Ports, []string{"tcp 0.0.0.0:22", "tcp [::1]:80", "udp 0.0.0.0:68"}) {
				t.Errorf("ports %q", before.Ports)
			}
			if !slices.Equal(before.Units, []string{"multi-user.target.wants/nginx.service", "multi-user.target.wants/x.timer"}) || !slices.Equal(before.Cron, []string{"/etc/cron.d/job", "multi-user.target.wants/x.timer"}) {
				t.Errorf("units %q, cron %q", before.Units, before.Cron)
			}
			if !slices.Contains(before.Users, User{"bob", "7", "8", "/home/bob", "/bin/false"}) || !slices.Contains(before.Groups, Group{"adm", "4", "bob,eve"}) {
				t.Errorf("%v %v", before.Users, before.Groups)
			}
			for path, want := range map[string]File{ // package, digest, who says so
				"/usr/bin/tool":      {Package: "tool", Digest: "md5:b1946ac92492d2347c6235b4d2611184", From: "dpkg"},
				"/usr/lib/tool/data": {Package: "tool", Digest: "md5:b1946ac92492d2347c6235b4d2611184", From: "dpkg"},
				"/etc/tool.conf":     {Package: "tool", Digest: hello},
				"/srv/two  spaces":   {Digest: hello},
				"/srv/new\nline":     {},
			} {
				f := before.at(path)
				if f.Type != "f" || f.Mode != 0o644 || f.Package != want.Package || f.Digest != want.Digest || f.From != want.From {
					t.Errorf("%q: %+v", path, f)
				}
			}
			if f := before.at("/bin"); f.Type != "l" || f.Link != "usr/bin" {
				t.Errorf("/bin: %+v", f)
			}
			if a, b := before.at("/srv/it's"), before.at("/srv/a -> b"); a.Link != "it's -> 't" || b.Link != "a\nb" || b.Type != "l" {
				t.Errorf("%+v, %+v", a, b)
			}
			for _, f := range before.Files {
				for _, not := range []string{"/run/", "/tmp/", "/sys/", "/dev/", "/proc/"} {
					if strings.HasPrefix(f.Path, not) || strings.HasPrefix(f.Path, root) {
						t.Errorf("%s is listed", f.Path)
					}
				}
			}

			// A change of the bake is seen even where the package's digest would hide it.
			list := filepath.Join(root, "var/lib/dpkg/info/tool.list")
			for { // whole seconds are compared
				shells.Write(t, root, "usr/lib/tool/baked", "y")
				if changedLater(t, filepath.Join(root, "usr/lib/tool/baked"), list) {
					break
				}
			}
			shells.Write(t, root, "etc/tool.conf", "HELLO\n")
			if err := os.Chmod(filepath.Join(root, "usr/bin/tool"), os.ModeSetuid|0o755); err != nil {
				t.Fatal(err)
			}
			after, err := take(t.Context(), g, Files, root)
			if err != nil {
				t.Fatal(err)
			}
			d := Compare(before, after)
			var got []string
			for _, c := range append(d.Config, d.Files...) {
				got = append(got, c.Name+" "+c.What)
			}
			slices.Sort(got)
			if !slices.Equal(got, []string{"/etc/tool.conf changed", "/usr/bin/tool changed"}) || !slices.Equal(d.SetID, []string{"/usr/bin/tool"}) {
				t.Errorf("got %q, setuid %q", got, d.SetID)
			}
			if f := after.at("/usr/lib/tool/baked"); !strings.HasPrefix(f.Digest, "sha256:") || f.From != "" {
				t.Errorf("%+v: dpkg's word is taken for a file that was written since", f)
			}

			b, err := Encode(after)
			if err != nil {
				t.Fatal(err)
			}
			back, err := Decode(b)
			if err != nil || Compare(after, back).Summary().Text != "nothing changed" {
				t.Errorf("%v", err)
			}
			few, err := take(t.Context(), g, Packages, root)
			if err != nil || len(few.Files) != 0 || len(few.Packages) != 1 || len(few.Units) != 2 {
				t.Errorf("packages only: %+v, %v", few, err)
			}
		})
	}
}

// changedLater by whole seconds of the inode's change.
func changedLater(t *testing.T, a, b string) bool {
	t.Helper()
	out, err := exec.Command("stat", "-c", "%Z", a, b).Output()
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(out))
	return f[0] > f[1]
}

// parse reads what a guest said, in pieces that end anywhere.
func parse(t testing.TB, out []byte) (*Inventory, []int, error) {
	t.Helper()
	p := newParser("")
	s := &stream{to: p.take, left: maxOutput}
	for i := 0; i < len(out); i += 7 {
		if _, err := s.Write(out[i:min(len(out), i+7)]); err != nil {
			return nil, nil, err
		}
	}
	return p.end()
}

// poor is a guest that lacks programs.
type poor struct {
	shells.Guest
	lacks string
}

func (g poor) Run(ctx context.Context, c provisioner.Cmd) error {
	line := strings.Replace(c.Line, "has() { ", "has() { case $1 in "+g.lacks+") return 1;; esac; ", 1)
	if line == c.Line && strings.Contains(c.Line, "has()") {
		return errors.New("it lacks nothing")
	}
	c.Line = line
	return g.Guest.Run(ctx, c)
}

func TestWhatAGuestCannotTellIsSaid(t *testing.T) {
	root := newRoot(t)
	deb(t, root, "tool", "1.0-1", map[string]string{"usr/bin/tool": "hello\n", "etc/tool.conf": "hello\n"})
	g := guests(t)["dash"]
	for lacks, want := range map[string][]string{ // what it does not know; what is held all the same
		"find":        {"cron: files: units:", "tool"},
		"find|stat":   {"cron: files: owners: units:", "tool"},
		"sha256sum":   {"digests:", "tool /usr/bin/tool md5 tool"},
		"xargs":       {"digests:", "tool /usr/bin/tool md5 tool"},
		"dpkg-query":  {"packages:", "/etc/tool.conf sha256 tool"},
		"tail":        {"owners:", "tool /usr/bin/tool sha256"},
		"sshd|ip|foo": {"", "tool /usr/bin/tool md5 tool /etc/tool.conf sha256 tool"},
	} {
		inv, err := take(t.Context(), poor{g, lacks}, Files, root)
		if err != nil {
			t.Errorf("without %s: %v", lacks, err)
			continue
		}
		unknown := []string{}
		for _, part := range slices.Sorted(maps.Keys(inv.Unknown)) {
			if !strings.Contains(inv.Unknown[part], "the guest has no ") {
				t.Errorf("without %s: %s: %q", lacks, part, inv.Unknown[part])
			}
			unknown = append(unknown, part+":")
		}
		held := ""
		for _, p := range inv.Packages {
			held += p.Name + " "
		}
		for _, path := range []string{"/usr/bin/tool", "/etc/tool.conf"} {
			kind, _, _ := strings.Cut(inv.at(path).Digest, ":")
			held += path + " " + kind + " " + inv.at(path).Package + " "
		}
		if strings.Join(unknown, " ") != want[0] || !strings.Contains(held+" ", want[1]) {
			t.Errorf("without %s: it does not know %q, and holds %q", lacks, unknown, held)
		}
		if len(inv.Users) != 2 || len(inv.Ports) != 3 {
			t.Errorf("without %s: %v %v", lacks, inv.Users, inv.Ports)
		}
	}
	if _, err := take(t.Context(), poor{g, "tr"}, Files, root); err == nil || !strings.Contains(err.Error(), "the guest has no tr") {
		t.Error(err)
	}
	inv, err := take(t.Context(), g, Contents, root)
	if f := inv.at("/usr/bin/tool"); err != nil || !strings.HasPrefix(f.Digest, "sha256:") || f.From != "" {
		t.Errorf("%+v, %v: every file should be read", f, err)
	}
}

func TestAPK(t *testing.T) {
	inv, _, err := parse(t, []byte("A P:musl\x00A V:1.2.4-r2\x00A A:x86_64\x00A o:musl\x00A F:lib\x00A R:ld.so\x00A P:busybox\x00A V:1.36\x00f f 755 0 0 5 1.5 /lib/ld.so\x00\x00.\x00"))
	if err != nil || len(inv.Packages) != 2 || inv.at("/lib/ld.so").Package != "musl" {
		t.Errorf("%+v, %v", inv, err)
	}
}

func TestAGuestIsNotTrusted(t *testing.T) {
	for name, c := range map[string]struct{ out, want string }{
		"cut off":       {"k 6.1\x00", "stopped in the middle"},
		"nothing":       {"", "stopped in the middle"},
		"no file":       {"f f 644 0 0 x 1 /a\x00\x00.\x00", "is no file"},
		"few words":     {"f f\x00\x00.\x00", "is no file"},
		"relative":      {"f f 644 0 0 1 1 a\x00\x00.\x00", "is no file"},
		"mode":          {"f f 99999 0 0 1 1 /a\x00\x00.\x00", "is no file"},
		"negative size": {"f f 644 0 0 -1 1 /a\x00\x00.\x00", "is no file"},
		"no version":    {"p dpkg\ta\t\tall\ta\tii \x00.\x00", "is no package"},
		"too many":      {strings.Repeat("f f 644 0 0 1 1 /a\x00\x00", maxEntries+1) + ".\x00", "more than 500000 files"},
		"no end":        {"k " + strings.Repeat("6", maxRecord+1), "a name without an end"},
		"no files":      {"k 6.1\x00.\x00", "lists no files"},
	} {
		g := &fake.Guest{Answer: func(provisioner.Cmd) *fake.Reply { return &fake.Reply{Stdout: c.out} }}
		if _, err := Take(t.Context(), g, Files); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (&stream{left: 4}).Write([]byte("12345")); !errors.Is(err, errFiles) {
		t.Error("a guest that never ends")
	}
	g := &fake.Guest{Answer: func(provisioner.Cmd) *fake.Reply { return &fake.Reply{Code: 3, Stderr: "no space"} }}
	if _, err := Take(t.Context(), g, Files); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Error(err)
	}
}

func TestHostileInventoriesAreRefusedWithBoundedMemory(t *testing.T) {
	pack := func(b []byte) []byte {
		w, _ := zstd.NewWriter(nil)
		return w.EncodeAll(b, nil)
	}
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"no zstd":  {[]byte("{}"), "read the inventory"},
		"bomb":     {pack(make([]byte, 1<<30)), "read the inventory"},
		"entries":  {pack([]byte(`{"format":1,"files":[` + strings.Repeat("{},", 9_000_000) + `{}]}`)), "too many entries"},
		"format":   {pack([]byte(`{"format":2}`)), "newer rebake"},
		"trailing": {pack([]byte(`{"format":1}{}`)), "something follows"},
		"package":  {pack([]byte(`{"format":1,"packages":[{"manager":"x","name":"a","version":"1"}]}`)), "is no package"},
		"file":     {pack([]byte(`{"format":1,"files":[{"path":"../x","type":"f"}]}`)), "is no file"},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Decode(c.b)
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 1<<30 {
			t.Errorf("%s: %d MiB were allocated", name, used>>20)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("f f 755 0 0 5 1.5 /lib/ld.so\x00\x00.\x00"))
	f.Add([]byte("B 2\x00/x\x00/l\x0081a4 0 0 5 1 /x\na1ff 0 0 1 1 '/l' -> 'x'\n\x00n tcp 0: 0100007F:0016 0:0 0A\x00y /\x00w a.list\x00L 5 /i/a.list\n\x00W ==> /i/a.list <==\n/x\n\n\x005 d41d8cd98f00b204e9800998ecf8427e  x\n\x00.\x00"))
	f.Fuzz(func(t *testing.T, out []byte) {
		inv, _, err := parse(t, out)
		if err != nil {
			return
		}
		b, err := json.Marshal(inv)
		if err != nil || !bytes.HasPrefix(b, []byte("{")) {
			t.Error(err)
		}
	})
}
