package drift

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/test/shells"
)

// deb builds a package of these files; it may be installed by whoever runs the test.
func deb(t *testing.T, name, version string, files map[string]string) (path string) {
	t.Helper()
	tree := t.TempDir()
	shells.Write(t, tree, "DEBIAN/control", "Package: "+name+"\nVersion: "+version+"\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: for a test\n")
	sums := ""
	for n, body := range files {
		shells.Write(t, tree, n, body)
		if strings.HasPrefix(n, "etc/") {
			shells.Write(t, tree, "DEBIAN/conffiles", "/"+n+"\n")
			continue
		}
		out, err := exec.Command("md5sum", filepath.Join(tree, n)).Output()
		if err != nil {
			t.Fatal(err)
		}
		sums += strings.Fields(string(out))[0] + "  " + n + "\n"
	}
	shells.Write(t, tree, "DEBIAN/md5sums", sums)
	path = filepath.Join(t.TempDir(), name+".deb")
	if out, err := exec.Command("dpkg-deb", "--build", tree, path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

func dpkg(t *testing.T, root string, args ...string) {
	t.Helper()
	cmd := exec.Command("dpkg", append([]string{"--root=" + root, "--log=" + filepath.Join(root, "var/log/dpkg.log"), "--force-not-root", "--force-bad-path", "--no-triggers"}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "TZ=Asia/Tokyo")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("dpkg %v: %v: %s", args, err, out)
	}
}

// A guest with dpkg's own database: what a package shipped is known.
func TestDpkgKnowsWhatWasShipped(t *testing.T) {
	t.Parallel()
	g := guests(t)["dash"]
	root := newRoot(t)
	for _, d := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	shells.Write(t, root, "var/lib/dpkg/status", "")
	if err := os.Symlink("usr/bin", filepath.Join(root, "bin")); err != nil { // as Debian has it
		t.Fatal(err)
	}
	tool := map[string]string{
		"bin/tool": "tool", "bin/other": "other", "bin/stays": "stays", "usr/lib/tool/data": "data", "usr/lib/tool/baked": "baked", "usr/lib/tool/gone": "gone",
		"usr/lib/tool/ignored": "x", "usr/share/doc/tool/README": "read", "usr/share/doc/tool/NEWS": "new", "usr/lib/tool2/lost": "lost", "usr/lib/tool2/stays": "x", "etc/tool.conf": "shipped",
	}
	dpkg(t, root, "-i", deb(t, "tool", "1.0", tool), deb(t, "grows", "1.0", map[string]string{"usr/lib/grows/a": "1", "usr/lib/grows/b": "1"}),
		deb(t, "goes", "2.0", map[string]string{"usr/lib/goes/a": "1"}), deb(t, "same", "3", map[string]string{"usr/lib/same/a": "1"}))
	// The bake changes what its packages shipped: that is the image.
	shells.Write(t, root, "usr/lib/tool/baked", "by the bake")
	shells.Write(t, root, IgnoreFile, "/usr/lib/tool/ign*")
	if err := os.Remove(filepath.Join(root, "usr/lib/tool2/lost")); err != nil {
		t.Fatal(err)
	}
	booted(t, root)
	r, err := look(t.Context(), g, root)
	if err != nil {
		t.Fatal(err)
	}
	same(t, r)

	shells.Write(t, root, "usr/bin/tool", "trojan")
	shells.Write(t, root, "usr/lib/tool/data", "data") // as shipped
	shells.Write(t, root, "etc/tool.conf", "edited")
	shells.Write(t, root, "usr/lib/tool/extra", "x")
	shells.Write(t, root, "usr/share/doc/tool/x", "x")
	if err := errors.Join(os.Chmod(filepath.Join(root, "usr/bin/other"), 0o4755), os.Chmod(filepath.Join(root, "usr/lib/tool"), 0o700),
		os.Remove(filepath.Join(root, "usr/lib/tool/gone")), os.Remove(filepath.Join(root, "usr/lib/tool/ignored")), os.Remove(filepath.Join(root, "usr/share/doc/tool/NEWS"))); err != nil {
		t.Fatal(err)
	}
	changes := []string{
		"/usr/bin/tool changed (tool)", "/usr/bin/other mode (tool)", "/usr/lib/tool/data touched (tool)", "/etc/tool.conf changed (tool)",
		"/usr/lib/tool/extra written (no package)", "/usr/share/doc/tool/x written (no package)", "/usr/lib/tool/gone deleted (tool)",
	}
	if r, err = look(t.Context(), g, root); err != nil {
		t.Fatal(err)
	}
	same(t, r, changes...)

	dpkg(t, root, "-i", deb(t, "grows", "1.1", map[string]string{"usr/lib/grows/a": "2", "usr/lib/grows/c": "2"}), deb(t, "comes", "7", map[string]string{"usr/lib/comes/a": "1"}))
	dpkg(t, root, "-i", deb(t, "same", "3", map[string]string{"usr/lib/same/a": "1"}))
	dpkg(t, root, "-P", "goes")
	shells.Write(t, root, "usr/lib/comes/a", "and is changed")
	changes = append(changes, "/usr/lib/comes/a changed (comes)")
	if r, err = look(t.Context(), g, root); err != nil {
		t.Fatal(err)
	}
	same(t, r, append(changes, "grows upgraded 1.0 to 1.1, 2 files", "comes installed 7, 0 files", "same reinstalled 3, 1 files", "goes removed 2.0, 0 files")...)

	// Without a log the file lists' times tell; what was purged is not seen.
	if err := os.Remove(filepath.Join(root, "var/log/dpkg.log")); err != nil {
		t.Fatal(err)
	}
	if r, err = look(t.Context(), g, root); err != nil {
		t.Fatal(err)
	}
	same(t, r, append(changes, "grows installed 1.1, 2 files", "comes installed 7, 0 files", "same installed 3, 1 files")...)
	if r.Since.Before(time.Now().Add(-time.Minute)) {
		t.Error(r.Since)
	}
}

func TestPackagesByTheirLog(t *testing.T) {
	log := func(lines ...string) string {
		return "b 1\x00s 2\x00a amd64\x00l 2026-11-27 14:00:00 " + strings.Join(lines, "\x00l 2026-11-27 14:00:00 ") + "\x00.\x00"
	}
	for name, c := range map[string]struct {
		out  string
		want []string
	}{
		"up and up":       {log("upgrade a:amd64 1 2", "upgrade a:amd64 2 3"), []string{"a upgraded 1 to 3, 0 files"}},
		"up and back":     {log("upgrade a:amd64 1 2", "upgrade a:amd64 2 1"), []string{"a reinstalled 1, 0 files"}},
		"came and went":   {log("install a:all <none> 1", "remove a:all 1 <none>"), nil},
		"went":            {log("remove a:amd64 1 <none>", "purge a:amd64 1 <none>"), []string{"a removed 1, 0 files"}},
		"another's":       {log("install a:i386 <none> 1", "install a:amd64 <none> 1"), []string{"a installed 1, 0 files", "a:i386 installed 1, 0 files"}},
		"removed, no log": {"b 1\x00s 2\x00a amd64\x00p 3 rc  a 1\x00.\x00", []string{"a removed, 0 files"}},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := judge(c.out)
			if err != nil {
				t.Fatal(err)
			}
			same(t, r, c.want...)
		})
	}
}
