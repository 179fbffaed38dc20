package seal

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rebake/rebake/provisioner"
	"github.com/rebake/rebake/test/fake"
)

const (
	key   = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBuildKeyBuildKeyBuildKeyBuildKeyBuildKeyBuild rebake"
	other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOtherKeyOtherKeyOtherKeyOtherKeyOtherKeyOther me@home"
)

// local runs the script with a shell of this machine. It refuses one whose
// root is not a test's directory: it would seal the machine itself.
type local struct {
	provisioner.Guest
	shell []string
}

func (l local) Run(ctx context.Context, c provisioner.Cmd) error {
	if !strings.Contains(c.Line, `R='\''`+os.TempDir()+"/") {
		return errors.New("refusing to seal this machine")
	}
	cmd := exec.CommandContext(ctx, l.shell[0], append(l.shell[1:], "-c", strings.TrimPrefix(c.Line, "exec /bin/sh -c "))...)
	// The line is one quoted word: let the shell under test unquote and run it.
	cmd.Args[len(cmd.Args)-1] = "eval " + strings.TrimPrefix(c.Line, "exec /bin/sh -c ")
	cmd.Stdout, cmd.Stderr = c.Stdout, os.Stderr
	return cmd.Run()
}

// guestRoot makes a guest's file system after a build.
func guestRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for name, body := range map[string]string{
		"etc/passwd":                               "root:x:0:0::/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\nnobody:x:9:9::/nonexistent:/bin/false\n",
		"etc/passwd-":                              "old",
		"etc/machine-id":                           "0123456789abcdef0123456789abcdef\n",
		"var/lib/dbus/machine-id":                  "0123456789abcdef0123456789abcdef\n",
		"etc/hostname":                             "builder\n",
		"etc/ssh/sshd_config":                      "",
		"etc/ssh/ssh_host_ed25519_key":             "private",
		"etc/ssh/ssh_host_ed25519_key.pub":         "public",
		"run/systemd/system/x":                     "",
		"root/.ssh/authorized_keys":                key + "\n",
		"home/bob/.ssh/authorized_keys":            other + "\n" + key + "\n",
		"root/.bash_history":                       "rm -rf /",
		"tmp/left":                                 "x",
		"tmp/.hidden":                              "x",
		"var/lib/systemd/random-seed":              "seed",
		"var/lib/systemd/credential.secret":        "secret",
		"var/lib/dhcp/dhclient.eth0.leases":        "lease",
		"var/lib/apt/lists/deb_Packages":           "list",
		"var/cache/apt/archives/x.deb":             "deb",
		"var/log/syslog":                           "line",
		"var/log/dpkg.log.1":                       "line",
		"var/log/journal/0123/system.journal":      "entries",
		"var/lib/cloud/instances/i-1/user-data":    "x",
		"etc/salt/minion_id":                       "builder",
		"var/www/html/index.html":                  "kept",
		"home/bob/.profile":                        "kept",
		"usr/lib/systemd/system/systemd-x.service": "",
	} {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// shells are those that guests have.
func shells(t *testing.T) map[string][]string {
	t.Helper()
	bb, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox is needed (apt-get install busybox-static): ", err)
	}
	return map[string][]string{"dash": {"/bin/sh"}, "bash": {"/bin/bash"}, "busybox": {bb, "sh"}}
}

func read(t *testing.T, root, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if errors.Is(err, fs.ErrNotExist) {
		return "(gone)"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestApplySealsAGuest(t *testing.T) {
	for name, sh := range shells(t) {
		t.Run(name, func(t *testing.T) {
			root := guestRoot(t)
			results, err := apply(t.Context(), local{shell: sh}, nil, key, root)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range results {
				if !r.OK {
					t.Errorf("%s", r)
				}
			}
			for file, want := range map[string]string{
				"etc/passwd-": "(gone)", "etc/machine-id": "", "etc/hostname": "localhost\n",
				"etc/ssh/ssh_host_ed25519_key": "(gone)", "etc/ssh/ssh_host_ed25519_key.pub": "(gone)",
				"root/.ssh/authorized_keys": "(gone)", "home/bob/.ssh/authorized_keys": other + "\n",
				"root/.bash_history": "(gone)", "tmp/left": "(gone)", "tmp/.hidden": "(gone)",
				"var/lib/systemd/random-seed": "(gone)", "var/lib/systemd/credential.secret": "(gone)",
				"var/lib/dhcp/dhclient.eth0.leases": "(gone)", "var/lib/apt/lists/deb_Packages": "(gone)",
				"var/cache/apt/archives/x.deb": "(gone)", "var/log/syslog": "", "var/log/dpkg.log.1": "(gone)",
				"var/log/journal/0123/system.journal": "(gone)", "var/lib/cloud/instances/i-1/user-data": "(gone)",
				"etc/salt/minion_id": "(gone)", "var/www/html/index.html": "kept", "home/bob/.profile": "kept",
			} {
				if got := read(t, root, file); got != want {
					t.Errorf("%s is %q, want %q", file, got, want)
				}
			}
			if l, err := os.Readlink(filepath.Join(root, "var/lib/dbus/machine-id")); err != nil || l != "/etc/machine-id" {
				t.Errorf("dbus machine-id: %q, %v", l, err)
			}
			unit := read(t, root, "etc/systemd/system/rebake-ssh-host-keys.service")
			if !strings.Contains(unit, "ssh-keygen -A") || !strings.Contains(unit, "Before=ssh.service") {
				t.Errorf("nothing makes host keys: %q", unit)
			}
			if m, err := os.Stat(filepath.Join(root, "home/bob/.ssh/authorized_keys")); err != nil || m.Mode().Perm() != 0o600 {
				t.Errorf("bob's keys: %v, %v", m, err)
			}
			// A second seal finds nothing to object to.
			if _, err := apply(t.Context(), local{shell: sh}, nil, key, root); err != nil {
				t.Errorf("again: %v", err)
			}
		})
	}
}

// Each item's check must see what it is there for: the fixes are left out.
func TestChecksSeeAnUnsealedGuest(t *testing.T) {
	root := guestRoot(t)
	if err := os.WriteFile(filepath.Join(root, "root/.netrc"), []byte("machine x"), 0o600); err != nil {
		t.Fatal(err)
	}
	blob, err := keyBlob(key)
	if err != nil {
		t.Fatal(err)
	}
	results, err := run(t.Context(), local{shell: []string{"/bin/sh"}}, root, blob, nil,
		func(it Item) string { return call(it.ID, it.Applies, "", it.Check) }, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if r.OK != (r.ID == "trim") || !r.OK && r.Detail == "no reason given" {
			t.Errorf("%s: OK %v, %q", r.ID, r.OK, r.Detail)
		}
	}
}

func TestHostKeysStayWhereNothingMakesNewOnes(t *testing.T) {
	root := guestRoot(t)
	if err := os.RemoveAll(filepath.Join(root, "run/systemd")); err != nil {
		t.Fatal(err)
	}
	_, err := apply(t.Context(), local{shell: []string{"/bin/sh"}}, nil, key, root)
	if err == nil || !strings.Contains(err.Error(), "ssh-host-keys: nothing in this guest makes new SSH host keys") {
		t.Errorf("got %v", err)
	}
	if got := read(t, root, "etc/ssh/ssh_host_ed25519_key"); got != "private" {
		t.Errorf("the key is %q", got)
	}
	if _, err := apply(t.Context(), local{shell: []string{"/bin/sh"}}, []string{"ssh-host-keys"}, key, root); err != nil {
		t.Errorf("skipped: %v", err)
	}
}

func TestCredentialsLeftBehindAreAnError(t *testing.T) {
	root := guestRoot(t)
	if err := os.MkdirAll(filepath.Join(root, "home/bob/.aws"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "home/bob/.aws/credentials"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := apply(t.Context(), local{shell: []string{"/bin/sh"}}, nil, key, root)
	if err == nil || !strings.Contains(err.Error(), "credentials: remove in a step: "+root+"/home/bob/.aws/credentials") {
		t.Errorf("got %v", err)
	}
}

func TestVerify(t *testing.T) {
	sh := local{shell: []string{"/bin/sh"}}
	look := func(root string) map[string]string {
		t.Helper()
		results, err := verify(t.Context(), sh, nil, root)
		if err != nil {
			t.Fatal(err)
		}
		bad := map[string]string{}
		for _, r := range results {
			if !r.OK {
				bad[r.ID] = r.Detail
			}
		}
		return bad
	}
	root := guestRoot(t)
	if bad := look(root); !strings.Contains(bad["build-key"], "not sealed") {
		t.Errorf("an image that was never sealed: %v", bad)
	}
	if _, err := apply(t.Context(), sh, nil, key, root); err != nil {
		t.Fatal(err)
	}
	if bad := look(root); bad["machine-id"] == "" || bad["ssh-host-keys"] == "" {
		t.Errorf("a boot that made no identity: %v", bad)
	}
	write := func(name, body string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/machine-id", "fresh\n")
	write("etc/ssh/ssh_host_ed25519_key", "fresh")
	write("root/.ssh/authorized_keys", other+"\n")
	if bad := look(root); len(bad) > 0 {
		t.Errorf("a good boot: %v", bad)
	}
	write("root/.ssh/authorized_keys", other+"\n"+key+"\n")
	if bad := look(root); !strings.Contains(bad["build-key"], "still in "+root+"/root/.ssh/authorized_keys") {
		t.Errorf("the build key is there: %v", bad)
	}
}

func TestSkip(t *testing.T) {
	for name, c := range map[string]struct {
		skip []string
		want string
	}{
		"none": {}, "known": {skip: []string{"logs", "trim"}},
		"unknown":   {skip: []string{"log"}, want: `no item "log"`},
		"build key": {skip: []string{"build-key"}, want: "cannot be skipped"},
	} {
		err := CheckSkip(c.skip)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	root := guestRoot(t)
	results, err := apply(t.Context(), local{shell: []string{"/bin/sh"}}, []string{"logs"}, key, root)
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(results, func(r Result) bool { return r.ID == "logs" }) || read(t, root, "var/log/syslog") != "line" {
		t.Error("a skipped item was worked on")
	}
}

func TestAScriptThatEndsEarlyIsNotASuccess(t *testing.T) {
	g := &fake.Guest{Answer: func(provisioner.Cmd) *fake.Reply { return &fake.Reply{Stdout: "@rebake-seal cloud-init ok\n"} }}
	results, err := Apply(t.Context(), g, nil, key)
	if err == nil || !strings.Contains(err.Error(), "build-key: the sealing script ended before it") || !results[0].OK {
		t.Errorf("%v, %v", results, err)
	}
	if c := g.Commands(); len(c) != 1 || !c[0].Sudo {
		t.Errorf("%d commands, want one as root", len(c))
	}
}

func TestShutdownExpectsToBeCutOff(t *testing.T) {
	for want, r := range map[bool]*fake.Reply{true: {Err: provisioner.ErrDisconnected}, false: {Code: 1, Stderr: "no"}} {
		g := &fake.Guest{Answer: func(provisioner.Cmd) *fake.Reply { return r }}
		if err := Shutdown(t.Context(), g); (err == nil) != want {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("@rebake-seal logs ok\n@rebake-seal logs failed why not\n")
	f.Add("@rebake-seal  \n\x00")
	f.Fuzz(func(t *testing.T, out string) {
		r, err := parse(out, []string{"logs", "trim"})
		if err != nil || len(r) != 2 || r[0].ID != "logs" || r[1].ID != "trim" {
			t.Errorf("%v, %v", r, err)
		}
	})
}
