package ssh_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/provisioner"
	"github.com/rebake/rebake/test/conformance"
	"github.com/rebake/rebake/test/fake"
	xssh "golang.org/x/crypto/ssh"
)

type rig struct {
	*fake.SSHD
	ssh.Target
}

func key(t *testing.T) ssh.Key {
	t.Helper()
	k, err := ssh.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func serve(t *testing.T, change func(*fake.SSHD)) rig {
	t.Helper()
	host, user := key(t), key(t)
	s := &fake.SSHD{HostKey: host.Signer, Authorized: user.Signer.PublicKey()}
	if change != nil {
		change(s)
	}
	if err := s.Start(""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return rig{s, ssh.Target{Addr: s.Addr(), User: "root", Signer: user.Signer, HostKeys: []xssh.PublicKey{host.Signer.PublicKey()}}}
}

func dial(t *testing.T, r rig, o ssh.Options) *ssh.Client {
	t.Helper()
	c, err := ssh.Dial(t.Context(), r.Target, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// busybox makes a PATH with busybox alone, without the named applets.
func busybox(t *testing.T, without ...string) string {
	t.Helper()
	bb, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox is needed (apt-get install busybox-static): ", err)
	}
	dir := t.TempDir()
	if out, err := exec.Command(bb, "--install", "-s", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, w := range without {
		if err := os.Remove(filepath.Join(dir, w)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestConformance(t *testing.T) {
	bb := busybox(t)
	for name, change := range map[string]func(*fake.SSHD){
		"debian":               func(*fake.SSHD) {},
		"bash":                 func(s *fake.SSHD) { s.Shell = "/bin/bash" },
		"signals are ignored":  func(s *fake.SSHD) { s.NoSignals = true },
		"busybox, no sftp":     func(s *fake.SSHD) { s.Path, s.Shell, s.NoSFTP = bb, filepath.Join(bb, "ash"), true },
		"neither tar nor sftp": func(s *fake.SSHD) { s.Path, s.NoSFTP = busybox(t, "tar"), true },
		"sftp but no tar":      func(s *fake.SSHD) { s.Path = busybox(t, "tar") },
		"latency of 20 ms":     func(s *fake.SSHD) { s.Delay = 20 * time.Millisecond },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			conformance.Guest(t, func(t *testing.T) provisioner.Guest {
				return dial(t, serve(t, change), ssh.Options{})
			}, conformance.GuestOptions{Dir: func(t *testing.T) string { return filepath.Join(tempDir(t), "made") }})
		})
	}
}

func TestDialRefusesUnpinned(t *testing.T) {
	r := serve(t, nil)
	r.HostKeys = nil
	if _, err := ssh.Dial(t.Context(), r.Target, ssh.Options{}); !errors.Is(err, ssh.ErrNoHostKey) {
		t.Fatalf("got %v, want ErrNoHostKey", err)
	}
}

func TestDialWrongHostKey(t *testing.T) {
	r := serve(t, nil)
	r.HostKeys = []xssh.PublicKey{key(t).Signer.PublicKey()}
	_, err := ssh.Dial(t.Context(), r.Target, ssh.Options{Grace: 100 * time.Millisecond})
	if !errors.Is(err, ssh.ErrHostKey) {
		t.Fatalf("got %v, want ErrHostKey", err)
	}
}

func TestDialWrongUserKey(t *testing.T) {
	r := serve(t, nil)
	r.Signer = key(t).Signer
	_, err := ssh.Dial(t.Context(), r.Target, ssh.Options{Grace: 100 * time.Millisecond})
	if !errors.Is(err, ssh.ErrRefused) {
		t.Fatalf("got %v, want ErrRefused", err)
	}
}

func TestDialTimeoutNamesTheSetting(t *testing.T) {
	r := serve(t, func(s *fake.SSHD) { s.Mute = true })
	_, err := ssh.Dial(t.Context(), r.Target, ssh.Options{Timeout: 800 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "within 800ms (ssh.timeout)") || !strings.Contains(err.Error(), "banner") {
		t.Fatalf("got %v", err)
	}
}

// A connection that was accepted before the guest listened gets no banner: a
// fresh one must be tried soon after.
func TestDialDoesNotWaitOnASilentConnection(t *testing.T) {
	r := serve(t, func(s *fake.SSHD) { s.Mute = true })
	go func() {
		time.Sleep(300 * time.Millisecond)
		r.SetMute(false)
	}()
	began := time.Now()
	dial(t, r, ssh.Options{})
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("took %s", d)
	}
}

func TestDialEndsWithTheMachine(t *testing.T) {
	r := serve(t, func(s *fake.SSHD) { s.Mute = true })
	died := errors.New("the machine stopped")
	began := time.Now()
	_, err := ssh.Dial(t.Context(), r.Target, ssh.Options{Alive: func() error {
		if time.Since(began) > 100*time.Millisecond {
			return died
		}
		return nil
	}})
	if !errors.Is(err, died) {
		t.Fatalf("got %v, want %v", err, died)
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("took %s to notice", d)
	}
}

func TestDeadPeerIsNoticed(t *testing.T) {
	r := serve(t, nil)
	c := dial(t, r, ssh.Options{Keepalive: 50 * time.Millisecond, Dead: 300 * time.Millisecond})
	go func() {
		time.Sleep(100 * time.Millisecond)
		r.Freeze()
	}()
	err := c.Run(t.Context(), provisioner.Cmd{Line: "sleep 20"})
	if !errors.Is(err, provisioner.ErrDisconnected) || !strings.Contains(err.Error(), "answered nothing") {
		t.Fatalf("got %v, want ErrDisconnected with its reason", err)
	}
}

func TestReconnectAfterReboot(t *testing.T) {
	r := serve(t, nil)
	c := dial(t, r, ssh.Options{})
	go func() {
		time.Sleep(100 * time.Millisecond)
		r.Drop()
	}()
	if err := c.Run(t.Context(), provisioner.Cmd{Line: "sleep 3"}); !errors.Is(err, provisioner.ErrDisconnected) {
		t.Fatalf("got %v, want ErrDisconnected", err)
	}
	if err := c.Run(t.Context(), provisioner.Cmd{Line: "true"}); !errors.Is(err, provisioner.ErrDisconnected) {
		t.Fatalf("on the dead connection: %v, want ErrDisconnected", err)
	}
	if err := c.Reconnect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context(), provisioner.Cmd{Line: "true"}); err != nil {
		t.Fatal(err)
	}
}

func TestReconnectWaitsForTheGuestToGo(t *testing.T) {
	r := serve(t, nil)
	c := dial(t, r, ssh.Options{})
	go func() {
		time.Sleep(200 * time.Millisecond)
		r.Drop()
	}()
	if err := c.Reconnect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context(), provisioner.Cmd{Line: "true"}); err != nil {
		t.Fatal(err)
	}
}

func TestManySmallFilesDoNotCostRoundTrips(t *testing.T) {
	src := fstest.MapFS{}
	for i := range 10_000 {
		src[fmt.Sprintf("d%d/f%d", i%100, i)] = &fstest.MapFile{Data: []byte(fmt.Sprint(i)), Mode: 0o644}
	}
	r := serve(t, func(s *fake.SSHD) { s.Delay = 80 * time.Millisecond })
	c := dial(t, r, ssh.Options{})
	dir := tempDir(t)
	began, execs := time.Now(), r.Execs()
	if err := c.Upload(t.Context(), dir, src); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	t.Logf("10,000 files at 80 ms: %s", took)
	if took > 30*time.Second || r.Execs()-execs > 2 {
		t.Errorf("took %s and %d commands", took, r.Execs()-execs)
	}
	var n int
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			n++
		}
		return err
	})
	if err != nil || n != 10_000 {
		t.Errorf("%d files arrived, %v", n, err)
	}
}

func TestBigFileOverLatency(t *testing.T) {
	r := serve(t, func(s *fake.SSHD) { s.Delay = 80 * time.Millisecond })
	c := dial(t, r, ssh.Options{})
	data := bytes.Repeat([]byte("rebake!\n"), 4<<20) // 32 MiB
	dir := t.TempDir()
	began := time.Now()
	if err := c.Upload(t.Context(), dir, fstest.MapFS{"big": {Data: data, Mode: 0o640}}); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	t.Logf("32 MiB at 80 ms: %s", took)
	if took > 20*time.Second {
		t.Errorf("took %s", took)
	}
	got, err := os.ReadFile(filepath.Join(dir, "big"))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("other bytes arrived, %v", err)
	}
}

func TestDialPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = io.WriteString(c, "hello")
			c.Close()
		}
	}()
	c := dial(t, serve(t, nil), ssh.Options{})
	conn, err := c.DialPort(t.Context(), l.Addr().(*net.TCPAddr).Port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if b, err := io.ReadAll(conn); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestInteractive(t *testing.T) {
	c := dial(t, serve(t, nil), ssh.Options{})
	var out bytes.Buffer
	err := c.Interactive(t.Context(), strings.NewReader("echo in a shell\nexit 3\n"), &out, io.Discard, ssh.TTY{Term: "xterm", Cols: 80, Rows: 24})
	var exit *provisioner.ExitError
	if !errors.As(err, &exit) || exit.Code != 3 || !strings.Contains(out.String(), "in a shell") {
		t.Errorf("%v, %q", err, out.String())
	}
}

func TestUploadErrorsNameTheFile(t *testing.T) {
	dir, c := t.TempDir(), dial(t, serve(t, nil), ssh.Options{})
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, n := range map[string]int{"few": 1, "many": 20} {
		src := fstest.MapFS{}
		for i := range n {
			src[fmt.Sprint("x", i)] = &fstest.MapFile{Mode: 0o644}
		}
		dst := filepath.Join(dir, "file", "below")
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if err := c.Upload(ctx, dst, src); err == nil || !strings.Contains(err.Error(), dst) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
}

// tempDir is removed also where what was uploaded has directories that nobody may write to.
func tempDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				err = os.Chmod(p, 0o700)
			}
			return err
		})
	})
	return dir
}
