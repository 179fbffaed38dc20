package shell_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/provisioner"
	"github.com/rebake/rebake/provisioner/shell"
	"github.com/rebake/rebake/test/fake"
	xssh "golang.org/x/crypto/ssh"
)

// guest is this machine's shell behind a real SSH connection.
func guest(t *testing.T) (*ssh.Client, *fake.SSHD) {
	t.Helper()
	host, err := ssh.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	user, err := ssh.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	s := &fake.SSHD{HostKey: host.Signer, Authorized: user.Signer.PublicKey()}
	if err := s.Start(""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	c, err := ssh.Dial(t.Context(), ssh.Target{Addr: s.Addr(), User: "root", Signer: user.Signer, HostKeys: []xssh.PublicKey{host.Signer.PublicKey()}}, ssh.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, s
}

type recorder struct {
	mu    sync.Mutex
	lines []string
}

func (r *recorder) sink(e event.Event) {
	if e.Kind == event.Output {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.lines = append(r.lines, e.Text)
	}
}

func write(t *testing.T, dir, name, body string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestScripts(t *testing.T) {
	g, _ := guest(t)
	for name, c := range map[string]struct {
		cfg   shell.Config
		files map[string]string
		want  string // output
		err   string
	}{
		"inline stops at the first error": {cfg: shell.Config{Inline: []string{"echo one", "false", "echo two"}}, want: "one", err: "exit status 1"},
		"several lines are one script":    {cfg: shell.Config{Inline: []string{"x=1", "echo $x"}}, want: "1"},
		"environment":                     {cfg: shell.Config{Inline: []string{`echo "$A $REBAKE_BUILDER"`}, Env: map[string]string{"A": "a b"}, Exports: map[string]string{"REBAKE_BUILDER": "qemu", "A": "no"}}, want: "a b qemu"},
		"an inline #! line is obeyed":     {cfg: shell.Config{Inline: []string{"#!/bin/sh", "false", "echo on"}}, want: "on"},
		"a script":                        {cfg: shell.Config{Script: "a.sh"}, files: map[string]string{"a.sh": "echo file"}, want: "file"},
		"scripts in order":                {cfg: shell.Config{Scripts: []string{"b.sh", "a.sh"}}, files: map[string]string{"a.sh": "echo a", "b.sh": "echo b"}, want: "b,a"},
		"CR LF is mended":                 {cfg: shell.Config{Script: "a.sh"}, files: map[string]string{"a.sh": "#!/bin/sh\r\necho mended\r\n"}, want: "mended"},
		"interpreter":                     {cfg: shell.Config{Inline: []string{"this is {text}"}, Interpreter: "cat"}, want: "this is {text}"},
		"a valid exit code":               {cfg: shell.Config{Inline: []string{"exit 3"}, ValidExitCodes: []int{0, 3}}},
		"an exit code that is not valid":  {cfg: shell.Config{Inline: []string{"exit 0"}, ValidExitCodes: []int{3}}, err: "exit status 0 is none of valid_exit_codes [3]"},
		"the error names the script":      {cfg: shell.Config{Script: "a.sh"}, files: map[string]string{"a.sh": "exit 9"}, err: "a.sh: exit status 9"},
		"stdin is empty":                  {cfg: shell.Config{Inline: []string{"cat", "echo end"}}, want: "end"},
		"the directory is private":        {cfg: shell.Config{Inline: []string{`stat -c %a "$0" "$(dirname "$0")"; umask`}}, want: "700,700,0022"},
		"stderr too":                      {cfg: shell.Config{Inline: []string{"echo a >&2"}}, want: "a"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, remote := t.TempDir(), t.TempDir()
			for n, b := range c.files {
				write(t, dir, n, b)
			}
			c.cfg.RemoteFolder = remote
			p, err := shell.New(c.cfg, dir)
			if err != nil {
				t.Fatal(err)
			}
			var r recorder
			err = p.Provision(event.With(t.Context(), r.sink, nil), g)
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("got error %v, want %q", err, c.err)
			}
			if got := strings.Join(r.lines, ","); got != c.want {
				t.Errorf("printed %q, want %q", got, c.want)
			}
			if left, err := os.ReadDir(remote); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

func TestSkipCleanKeepsTheScript(t *testing.T) {
	g, _ := guest(t)
	remote := t.TempDir()
	p, err := shell.New(shell.Config{Inline: []string{"true"}, RemoteFolder: remote, SkipClean: true}, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Provision(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	if m, err := filepath.Glob(filepath.Join(remote, "rebake.*", "script")); err != nil || len(m) != 1 {
		t.Errorf("%v, %v", m, err)
	}
}

func TestBadConfigIsSaidBeforeABoot(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		cfg  shell.Config
		want string
	}{
		"nothing":         {want: "one of inline, script and scripts"},
		"two of them":     {cfg: shell.Config{Inline: []string{"x"}, Script: "y"}, want: "one of"},
		"missing script":  {cfg: shell.Config{Script: "nope.sh"}, want: "script nope.sh: no such file"},
		"a directory":     {cfg: shell.Config{Script: "."}, want: "not a regular file"},
		"exit code":       {cfg: shell.Config{Inline: []string{"x"}, ValidExitCodes: []int{256}}, want: "between 0 and 255"},
		"relative folder": {cfg: shell.Config{Inline: []string{"x"}, RemoteFolder: "tmp"}, want: "not an absolute path"},
	} {
		if _, err := shell.New(c.cfg, dir); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestReboot(t *testing.T) {
	lost := &fake.Reply{Stderr: "rebake: script started\n", Err: provisioner.ErrDisconnected}
	early := &fake.Reply{Err: provisioner.ErrDisconnected}
	for name, c := range map[string]struct {
		expect     bool
		replies    []*fake.Reply
		err        string
		reconnects int
	}{
		"expected":                       {expect: true, replies: []*fake.Reply{lost}, reconnects: 1},
		"expected, but it returns first": {expect: true, replies: []*fake.Reply{{}}, reconnects: 1},
		"not expected":                   {replies: []*fake.Reply{lost}, err: "expect_disconnect: true"},
		"before the script started":      {replies: []*fake.Reply{early, {}}, reconnects: 1},
	} {
		t.Run(name, func(t *testing.T) {
			n := 0
			g := &fake.Guest{Answer: func(provisioner.Cmd) *fake.Reply { n++; return c.replies[n-1] }}
			p, err := shell.New(shell.Config{Inline: []string{"reboot"}, ExpectDisconnect: c.expect}, "")
			if err != nil {
				t.Fatal(err)
			}
			err = p.Provision(t.Context(), g)
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("got %v, want %q", err, c.err)
			}
			if g.Reconnects() != c.reconnects || n != len(c.replies) {
				t.Errorf("%d reconnects, %d tries", g.Reconnects(), n)
			}
		})
	}
}

func TestRebootForReal(t *testing.T) {
	g, s := guest(t)
	mark := filepath.Join(t.TempDir(), "ran")
	p, err := shell.New(shell.Config{Inline: []string{"touch " + mark, "sleep 30"}, ExpectDisconnect: true}, "")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			if _, err := os.Stat(mark); err == nil {
				s.Drop()
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	if err := p.Provision(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	if err := g.Run(t.Context(), provisioner.Cmd{Line: "true"}); err != nil {
		t.Fatal(err)
	}
}

func TestKey(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.sh", "echo a")
	write(t, dir, "b.sh", "echo b")
	base := func() shell.Config { return shell.Config{Script: "a.sh", Env: map[string]string{"TOKEN": "hunter2"}} }
	key := func(c shell.Config) string {
		keyed := c
		if v := c.Env["TOKEN"]; strings.HasPrefix(v, "hunter") { // as Block.Masked has it
			keyed.Env = map[string]string{"TOKEN": "var:token"}
		}
		c.Keyed = &keyed
		p, err := shell.New(c, dir)
		if err != nil {
			t.Fatal(err)
		}
		k, ok, err := p.Key(context.Background())
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		if strings.Contains(string(k), "hunter") {
			t.Errorf("the key tells a secret: %s", k)
		}
		return string(k)
	}
	first := key(base())
	for name, c := range map[string]struct {
		change func(*shell.Config)
		same   bool
	}{
		"nothing":        {func(*shell.Config) {}, true},
		"secret's value": {func(c *shell.Config) { c.Env = map[string]string{"TOKEN": "hunter3"} }, true},
		"plain value":    {func(c *shell.Config) { c.Env = map[string]string{"TOKEN": "plain"} }, false},
		"script":         {func(c *shell.Config) { c.Script = "b.sh" }, false},
		"sudo":           {func(c *shell.Config) { c.Sudo = true }, false},
		"pause":          {func(c *shell.Config) { c.PauseAfter = time.Second }, true},
		"other name":     {func(c *shell.Config) { c.Script, c.Scripts = "", []string{"a.sh"} }, true},
	} {
		cfg := base()
		c.change(&cfg)
		if got := key(cfg) == first; got != c.same {
			t.Errorf("%s: same key: %v, want %v", name, got, c.same)
		}
	}
}
