package check_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rebake/rebake/internal/check"
	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/provisioner"
	"github.com/rebake/rebake/test/fake"
	xssh "golang.org/x/crypto/ssh"
)

// guest is this machine's shell behind a real SSH connection.
func guest(t *testing.T) provisioner.Guest {
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
	return c
}

func no() *bool { b := false; return &b }

const short = time.Nanosecond // not the default of 30 s

func TestChecks(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "it's here")
	if err := os.WriteFile(path, []byte("some -text\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/late" && asked.Add(1) < 3:
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.URL.Path == "/moved":
			http.Redirect(w, r, "/", http.StatusFound)
		default:
			fmt.Fprintf(w, "%s %s from %s", r.Method, r.Header.Get("X-A"), r.Host)
		}
	}))
	defer web.Close()
	target := check.Target{Guest: guest(t), Dial: func(ctx context.Context, port int) (net.Conn, error) {
		if port == 81 {
			return nil, fmt.Errorf("connection refused")
		}
		return new(net.Dialer).DialContext(ctx, "tcp", web.Listener.Addr().String())
	}}
	for name, c := range map[string]struct {
		cfg  any
		want string // part of the message of a failure, "" passes
	}{
		"shell":                   {&check.Shell{Inline: []string{"x=1", `[ "$x$A" = 12 ]`}, Env: map[string]string{"A": "2"}}, ""},
		"shell stops at an error": {&check.Shell{Inline: []string{"echo why", "false", "true"}}, "exit status 1; it printed: why"},
		"command":                 {&check.Command{Run: "echo hello; exit 3", Exit: 3, StdoutContains: "hell"}, ""},
		"command status":          {&check.Command{Run: "echo bad >&2; exit 2"}, "exit status 2, want 0; it printed: bad"},
		"command output":          {&check.Command{Run: "echo hello", StdoutContains: "bye"}, `no "bye" in its output; it printed: hello`},
		"http":                    {&check.HTTP{Method: "POST", Header: map[string]string{"X-A": "1", "Host": "web.example"}, Contains: "POST 1 from web.example"}, ""},
		"http status":             {&check.HTTP{Path: "/moved", Within: short}, "status 302, want 200"},
		"http body":               {&check.HTTP{Contains: "nope", Within: short}, `no "nope" in the body; it printed: GET`},
		"http within":             {&check.HTTP{Path: "/late", Within: 20 * time.Second}, ""},
		"http refused":            {&check.HTTP{Port: 81, Within: short}, "connection refused"},
		"tcp":                     {&check.TCP{Port: 80}, ""},
		"tcp refused":             {&check.TCP{Port: 81, Within: short}, "connection refused"},
		"file":                    {&check.File{Path: path, Mode: "0640", Contains: "-text", SHA256: "8c3f1ba0"}, "sha256 "},
		"file attributes":         {&check.File{Path: path, Mode: "640", Contains: "-text"}, ""},
		"file mode":               {&check.File{Path: path, Mode: "0600"}, "mode 640, want 0600"},
		"file owner":              {&check.File{Path: path, Owner: "nobody-such"}, "want nobody-such"},
		"file text":               {&check.File{Path: path, Contains: "other"}, `no "other" in it; it starts: some -text`},
		"file missing":            {&check.File{Path: path + "x"}, "it is not there"},
		"file must be missing":    {&check.File{Path: path, Exists: no()}, "it is there"},
		"file is missing":         {&check.File{Path: path + "x", Exists: no()}, ""},
		"service stopped":         {&check.Service{Name: "no-such-daemon", Within: short}, "want active"},
		"service must be stopped": {&check.Service{Name: "no-such-daemon", State: "inactive", Within: short}, ""},
		"package":                 {&check.Package{Name: "dpkg"}, ""},
		"package version":         {&check.Package{Name: "dpkg", Version: "0.0"}, "is installed, want 0.0"},
		"package missing":         {&check.Package{Name: "no-such-package"}, "it is not installed"},
		"package unwanted":        {&check.Package{Name: "dpkg", Installed: no()}, "is installed"},
		"package is not there":    {&check.Package{Name: "no-such-package", Installed: no()}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			chk, err := check.New(c.cfg)
			if err != nil {
				t.Fatal(err)
			}
			r := check.Do(t.Context(), "x", chk, target)
			if r.Passed != (c.want == "") || !strings.Contains(r.Message, c.want) {
				t.Errorf("passed %v, %q; want %q", r.Passed, r.Message, c.want)
			}
		})
	}
}

func TestBadConfigIsSaidBeforeABoot(t *testing.T) {
	for name, cfg := range map[string]any{
		"no line": &check.Shell{}, "no command": &check.Command{}, "path": &check.HTTP{Path: "x"}, "port": &check.TCP{Port: 70000},
		"relative": &check.File{Path: "x"}, "mode": &check.File{Path: "/x", Mode: "rw"}, "option": &check.Service{Name: "-x"}, "no name": &check.Package{}, "none": 7,
	} {
		if _, err := check.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestBuiltInFindsFailedUnits(t *testing.T) {
	for out, want := range map[string]bool{"": true, "nginx.service loaded failed failed A web server\n": false} {
		g := &fake.Guest{Answer: func(c provisioner.Cmd) *fake.Reply {
			if strings.Contains(c.Line, "list-units") {
				return &fake.Reply{Stdout: out}
			}
			return nil
		}}
		passed, message := true, ""
		for _, c := range check.BuiltIn() {
			r := check.Do(t.Context(), c.Name(), c, check.Target{Guest: g})
			passed, message = passed && r.Passed, message+r.Message
		}
		if passed != want || !strings.Contains(message, strings.TrimSpace(out)) {
			t.Errorf("%q: passed %v, %q", out, passed, message)
		}
	}
}

func TestALongAnswerIsCut(t *testing.T) {
	g := &fake.Guest{Answer: func(provisioner.Cmd) *fake.Reply { return &fake.Reply{Stdout: strings.Repeat("x", 1<<20), Code: 1} }}
	c, err := check.New(&check.Command{Run: "yes"})
	if err != nil {
		t.Fatal(err)
	}
	if r := check.Do(t.Context(), "x", c, check.Target{Guest: g}); r.Passed || len(r.Message) > 1000 {
		t.Errorf("%d bytes of evidence", len(r.Message))
	}
}
