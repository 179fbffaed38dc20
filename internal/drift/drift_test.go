package drift

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/provisioner"
	"github.com/rebake/rebake/test/fake"
	"github.com/rebake/rebake/test/shells"
)

func guests(t *testing.T) map[string]shells.Guest {
	t.Helper()
	return shells.Guests(t, "awk cat date find head mktemp printf rm sed sh sort stat tr wc")
}

// kernelStart is when the kernel of every guest here began.
var kernelStart = time.Now().Add(-time.Hour).Truncate(time.Second)

func newRoot(t *testing.T, names ...string) string {
	t.Helper()
	root := t.TempDir()
	shells.Write(t, root, "proc/stat", fmt.Sprintf("cpu  1 2 3\nbtime %d\n", kernelStart.Unix()))
	for _, n := range names {
		shells.Write(t, root, n, "shipped")
	}
	return root
}

// booted has the guest say that its boot is over, and waits until what is
// changed from here on is later than that by the guest's whole seconds.
func booted(t *testing.T, root string) (since time.Time) {
	t.Helper()
	since = time.Now().Add(time.Second).Truncate(time.Second)
	shells.Write(t, root, "run/rebake/booted", "")
	at := since.Add(-margin * time.Second)
	if err := os.Chtimes(filepath.Join(root, "run/rebake/booted"), at, at); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(since.Add(time.Second + 20*time.Millisecond))) // the kernel counts whole seconds a little late
	return since
}

func (r Report) lines() (out []string) {
	for _, c := range r.Changed {
		out = append(out, c.String())
	}
	for _, p := range r.Packages {
		out = append(out, fmt.Sprintf("%s, %d files", p, p.Files))
	}
	return out
}

func same(t *testing.T, r Report, want ...string) {
	t.Helper()
	slices.Sort(want)
	got := r.lines()
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestWhatWasChangedSinceTheBoot(t *testing.T) {
	t.Parallel()
	for name, g := range guests(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := newRoot(t, "etc/old", "etc/edited", "etc/resolv.conf", "usr/bin/tool", "usr/bin/also", "opt/app/data/x", "etc/ssh/ssh_host_ed25519_key",
				"srv/site/index.html", "srv/kept/x", "root/.profile")
			shells.Write(t, root, IgnoreFile, "# what the application writes\n/opt/app/data/*\n/srv/*.tmp")
			since := booted(t, root)
			r, err := look(t.Context(), g, root)
			if err != nil {
				t.Fatal(err)
			}
			same(t, r)
			if !r.Clean() || !r.Since.Equal(since) || !r.Boot.Equal(kernelStart) {
				t.Errorf("%+v, since %s", r, since)
			}

			for _, n := range []string{
				"etc/edited", "etc/new", "var/www/index.html", "srv/site/a b", "srv/site/trailing ", "srv/site/new\nline", "srv/site/esc\x1b[2Jape", "srv/site/*",
				`srv/site/quo"te'`, "srv/site/\xff\xfe", "usr/lib/python3/x.py", "boot/grub.cfg", "home/bob/.ssh/authorized_keys",
				// what changes by itself, and what the image says that its application writes
				"etc/resolv.conf", "etc/ssh/ssh_host_ed25519_key", "var/log/syslog", "var/lib/app/db", "tmp/x", "var/tmp/x", "run/x", "root/.cache/pip/x", "root/.bash_history",
				"usr/lib/python3/__pycache__/x.pyc", "opt/app/data/y/z", "srv/site/upload.tmp", "usr/lib/modules/6.1.0/modules.dep",
			} {
				shells.Write(t, root, n, "changed")
			}
			old := time.Now().Add(-24 * time.Hour)
			if err := errors.Join(os.Chmod(filepath.Join(root, "usr/bin/tool"), 0o600), os.Chmod(filepath.Join(root, "srv/kept"), 0o700),
				os.Symlink("old", filepath.Join(root, "etc/link")), os.Chtimes(filepath.Join(root, "etc/new"), old, old),
				os.Rename(filepath.Join(root, "usr/bin/also"), filepath.Join(root, "usr/bin/moved"))); err != nil {
				t.Fatal(err)
			}
			if r, err = look(t.Context(), g, root); err != nil {
				t.Fatal(err)
			}
			want := []string{"/srv/kept mode (no package)"}
			for _, n := range []string{
				"/etc/edited", "/etc/new", "/etc/link", "/var/www/index.html", `"/srv/site/a b"`, `"/srv/site/trailing "`, `"/srv/site/new\nline"`, `"/srv/site/esc\x1b[2Jape"`,
				"/srv/site/*", `"/srv/site/quo\"te'"`, `"/srv/site/\xff\xfe"`, "/usr/lib/python3/x.py", "/boot/grub.cfg", "/home/bob/.ssh/authorized_keys", "/usr/bin/tool", "/usr/bin/moved",
			} {
				want = append(want, n+" written (no package)")
			}
			same(t, r, want...)

			shells.Write(t, root, IgnoreFile, "/opt/app/data/*\n/srv/*\n/etc/[elno]*\n/[bhuv]*") // not itself, which is told once
			if r, err = look(t.Context(), g, root); err != nil {
				t.Fatal(err)
			}
			same(t, r, IgnoreFile+" written (no package)")
			// Who hides what they did by the list is seen by the list.
			shells.Write(t, root, IgnoreFile, "/*")
			if r, err = look(t.Context(), g, root); err != nil {
				t.Fatal(err)
			}
			same(t, r, IgnoreFile+" written (no package)")
		})
	}
}

func TestNothingIsLeftInTheGuest(t *testing.T) {
	t.Parallel()
	all := guests(t)
	delete(all, "busybox") // its shell runs its own mktemp, whatever is in the PATH
	for name, g := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root, bin, temp := newRoot(t), t.TempDir(), t.TempDir()
			wrapper := "#!/bin/sh\nd=" + temp + "/made; mkdir $d && : >" + temp + "/asked && echo $d\n"
			if err := os.WriteFile(filepath.Join(bin, "mktemp"), []byte(wrapper), 0o755); err != nil {
				t.Fatal(err)
			}
			g.Bin = bin + ":" + g.Bin
			if _, err := look(t.Context(), g, root); err != nil {
				t.Fatal(err)
			}
			if left, err := os.ReadDir(temp); err != nil || len(left) != 1 || left[0].Name() != "asked" {
				t.Errorf("left behind: %v %v", left, err)
			}
		})
	}
}

func TestOfManyChangesAThousandAreNamed(t *testing.T) {
	t.Parallel()
	for name, g := range guests(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := newRoot(t)
			booted(t, root)
			for n := range maxPaths + 234 {
				shells.Write(t, root, fmt.Sprintf("opt/%d\n%d", n, n), "")
			}
			r, err := look(t.Context(), g, root)
			if err != nil || len(r.Changed) != maxPaths || r.Truncated != 234 || r.More || r.Count() != maxPaths+234 {
				t.Errorf("%d named, %d more (%t), %v %q", len(r.Changed), r.Truncated, r.More, err, r.Changed[max(0, len(r.Changed)-3):])
			}
		})
	}
}

func TestWhenTheBootWasOver(t *testing.T) {
	t.Parallel()
	for name, g := range guests(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for us, want := range map[string]time.Duration{"0": 0, "": 0, "31900000": 31*time.Second + margin*time.Second, "7200000000": 0} {
				root, bin := newRoot(t, "run/systemd/system/x"), t.TempDir()
				script := "#!/bin/sh\n[ \"$*\" = 'show -p FinishTimestampMonotonic' ] && echo FinishTimestampMonotonic=" + us + "\n"
				if err := os.WriteFile(filepath.Join(bin, "systemctl"), []byte(script), 0o755); err != nil {
					t.Fatal(err)
				}
				with := g
				with.Bin = bin + ":" + g.Bin
				r, err := look(t.Context(), with, root)
				switch {
				case want == 0 && !errors.Is(err, ErrBooting):
					t.Errorf("finished after %qus: %v", us, err)
				case want > 0 && (err != nil || r.Since.Sub(r.Boot) != want):
					t.Errorf("finished after %qus: since %s, %v", us, r.Since.Sub(r.Boot), err)
				}
			}
			// Neither systemd nor its own word: the start of what let us in.
			r, err := look(t.Context(), g, newRoot(t))
			if d := r.Since.Sub(r.Boot); err != nil || d <= grace*time.Second || d > (grace+latest)*time.Second {
				t.Errorf("since %s, %v", d, err)
			}
		})
	}
}

func TestAGuestThatCannotBeLookedAtIsAnError(t *testing.T) {
	for name, c := range map[string]struct {
		reply fake.Reply
		want  string
	}{
		"no shell":      {fake.Reply{Code: 127, Stderr: "sh: not found\nneither GNU find nor find and stat are there"}, "neither GNU find"},
		"cut off":       {fake.Reply{Err: provisioner.ErrDisconnected}, "guest disconnected"},
		"nothing":       {fake.Reply{}, "ended too early"},
		"half":          {fake.Reply{Stdout: "b 1\x00s 2\x00f f 3 3 /etc/x\x00"}, "ended too early"},
		"something":     {fake.Reply{Stdout: "Welcome to \x1b[2J\x00"}, "makes no sense"},
		"a relative":    {fake.Reply{Stdout: "b 1\x00s 2\x00f f 3 3 etc/x\x00.\x00"}, "makes no sense"},
		"without end":   {fake.Reply{Stdout: strings.Repeat("f f 3 3 /etc/x\x00", maxOutput/15+1)}, "more than 16 MiB"},
		"still booting": {fake.Reply{Code: booting}, "has not finished its boot"},
	} {
		t.Run(name, func(t *testing.T) {
			g := &fake.Guest{Answer: func(provisioner.Cmd) *fake.Reply { return &c.reply }}
			if r, err := Look(t.Context(), g); err == nil || !strings.Contains(err.Error(), c.want) || !r.Clean() {
				t.Errorf("%v, want %q", err, c.want)
			}
			if c := g.Commands(); len(c) != 1 || !c[0].Sudo {
				t.Errorf("one command, as root: %v", c)
			}
		})
	}
}

func TestTheReportIsBounded(t *testing.T) {
	out := "b 1\x00s 2\x00"
	for n := range maxPaths {
		out += fmt.Sprintf("f f 3 3 /etc/%d\x00", n)
	}
	out += fmt.Sprintf("f f 3 3 /etc/1\x00n %d\x00m tool /gone/1\x00m tool /gone/2\x00d d 3 1 /dir\x00.\x00", maxPaths+4)
	r, err := judge(out)
	if err != nil || len(r.Changed) != maxPaths || r.Truncated != 4+3 {
		t.Errorf("%d named, %d more, %v", len(r.Changed), r.Truncated, err)
	}
}

// The documentation has the whole of both lists.
func TestTheListsAreInTheDocumentation(t *testing.T) {
	doc, err := os.ReadFile("../../docs/drift.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range append(Places(), Files()...) {
		if line := fmt.Sprintf("| `%s` | %s |\n", a.Path, a.Why); !strings.Contains(string(doc), line) {
			t.Errorf("docs/drift.md lacks %s", line)
		}
	}
}

func FuzzJudge(f *testing.F) {
	f.Add("b 1\x00s 2\x00f f 3.5 3.5 /etc/x\x00d d 3 1 /etc\x00n 1\x00o tool /etc/x\x00v /etc/x\x00m tool /etc/y\x00a amd64\x00p 3 ii  tool:amd64 2\x00l 2026-11-27 14:00:00 upgrade tool:amd64 1 2\x00x\x00.\x00")
	f.Fuzz(func(t *testing.T, out string) {
		r, err := judge(out)
		if err != nil {
			return
		}
		if len(r.Changed) > maxPaths || r.Truncated < 0 || r.Clean() != (len(r.Changed)+len(r.Packages)+r.Truncated == 0) {
			t.Errorf("%+v", r)
		}
		for _, c := range r.Changed {
			if q := Quote(c.Path); strings.ContainsAny(q, "\n\x1b\x00") {
				t.Errorf("%q drives a terminal", q)
			}
		}
	})
}
