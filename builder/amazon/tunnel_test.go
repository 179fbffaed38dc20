package amazon

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/provisioner"
	"github.com/rebake/rebake/test/fake"
	gossh "golang.org/x/crypto/ssh"
)

// sshd is a server with keys of its own.
func sshd(t *testing.T, change ...func(*fake.SSHD)) (addr string, login, host ssh.Key) {
	t.Helper()
	var err error
	if login, err = ssh.NewKey(); err != nil {
		t.Fatal(err)
	}
	if host, err = ssh.NewKey(); err != nil {
		t.Fatal(err)
	}
	s := &fake.SSHD{HostKey: host.Signer, Authorized: login.Signer.PublicKey()}
	for _, f := range change {
		f(s)
	}
	if err := s.Start(""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s.Addr(), login, host
}

// says logs in at addr and has the guest say something.
func says(t *testing.T, addr string, login, host ssh.Key) (string, error) {
	t.Helper()
	c, err := ssh.Dial(t.Context(), ssh.Target{Addr: addr, User: "root", Signer: login.Signer, HostKeys: []gossh.PublicKey{host.Signer.PublicKey()}},
		ssh.Options{Timeout: 3 * time.Second, Grace: 100 * time.Millisecond})
	if err != nil {
		return "", err
	}
	defer c.Close()
	var out bytes.Buffer
	err = c.Run(t.Context(), provisioner.Cmd{Line: "echo here", Stdout: &out})
	return strings.TrimSpace(out.String()), err
}

func TestSSHGoesThroughABastion(t *testing.T) {
	guest, login, host := sshd(t)
	bastion, key, its := sshd(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "key"), key.PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	name, port, err := net.SplitHostPort(bastion)
	if err != nil {
		t.Fatal(err)
	}
	b := &Bastion{Host: name, User: "ci", Key: "key", HostKey: its.Authorized}
	if b.Port, err = net.LookupPort("tcp", port); err != nil {
		t.Fatal(err)
	}
	f, err := throughBastion(b, dir, 3*time.Second, guest)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := says(t, f.addr(), login, host); err != nil || got != "here" {
		t.Errorf("through the bastion: %q, %v", got, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", f.addr()); err == nil {
		t.Error("the tunnel is open after its end")
	}
	b.HostKey = host.Authorized // another's
	f, err = throughBastion(b, dir, 300*time.Millisecond, guest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := says(t, f.addr(), login, host); err == nil {
		t.Errorf("a bastion with another host key was used: %q", got)
	}
}

// forwards makes the test binary the program of AWS's that forwards a port to here.
const forwards = "REBAKE_TEST_FORWARDS"

func TestMain(m *testing.M) {
	to := os.Getenv(forwards)
	if to == "" {
		os.Exit(m.Run())
	}
	_, near, _ := strings.Cut(os.Args[len(os.Args)-1], "localPortNumber=")
	l, err := net.Listen("tcp", "127.0.0.1:"+near)
	if err != nil {
		os.Exit(1)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			os.Exit(1)
		}
		far, err := net.Dial("tcp", to)
		if err != nil {
			os.Exit(1)
		}
		go func() { _, _ = io.Copy(far, c); far.Close() }()
		go func() { _, _ = io.Copy(c, far); c.Close() }()
	}
}

// The programs of Session Manager are not here: one that forwards as they say they
// do stands in, and keeps what it was asked.
func TestSSHGoesThroughSessionManager(t *testing.T) {
	guest, login, host := sshd(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	for name, text := range map[string]string{
		"aws":                    fmt.Sprintf("#!/bin/sh\necho \"$*\" >>'%s/asked'\n%s=%s exec '%s' \"$@\"\n", bin, forwards, guest, self),
		"session-manager-plugin": "#!/bin/sh\n",
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	s, err := sessionManager(t.Context(), here, "i-1", 22)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := says(t, s.addr(), login, host); err != nil || got != "here" {
		t.Errorf("through Session Manager: %q, %v", got, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", s.addr()); err == nil {
		t.Error("the program runs after its end")
	}
	raw, err := os.ReadFile(filepath.Join(bin, "asked"))
	if want := "ssm start-session --region eu-central-1 --target i-1 --document-name AWS-StartPortForwardingSession --parameters portNumber=22,localPortNumber="; err != nil || !strings.HasPrefix(string(raw), want) {
		t.Errorf("it was asked %q, %v", raw, err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := sessionManager(t.Context(), here, "i-1", 22); err == nil || !strings.Contains(err.Error(), "how to install it") {
		t.Errorf("without the programs: %v", err)
	}
}

// A hardened guest forwards nothing: its port is reached at its address, or that
// it is not is said, once.
func TestAGuestThatForwardsNothing(t *testing.T) {
	addr, login, host := sshd(t, func(s *fake.SSHD) { s.NoForward = true })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	var said []string
	m := &machine{addr: addr, user: "root", login: login, host: host, direct: "127.0.0.1", warn: func(format string, a ...any) { said = append(said, fmt.Sprintf(format, a...)) }}
	c, err := m.dialPort(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	l.Close()
	for range 2 {
		if _, err := m.dialPort(t.Context(), port); err == nil {
			t.Error("a port that is shut was reached")
		}
	}
	if len(said) != 1 || !strings.Contains(said[0], "network.security_groups") {
		t.Errorf("it said %q", said)
	}
}
