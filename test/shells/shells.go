// Package shells lets the scripts that rebake runs in guests run with the shells of
// this machine, on a directory that stands for the guest's root.
package shells

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rebake/rebake/provisioner"
)

// Guest runs `exec /bin/sh -c SCRIPT` with a shell of this machine, and with the
// programs of one directory before all others. It refuses a script that does not
// say R='…' below the directory for temporary files: none looks at the machine itself.
type Guest struct {
	provisioner.Guest
	Shell []string
	Bin   string // the directory
}

// Run implements a part of provisioner.Guest.
func (g Guest) Run(ctx context.Context, c provisioner.Cmd) error {
	word := strings.TrimPrefix(c.Line, "exec /bin/sh -c ")
	if !strings.Contains(word, `R='\''`+os.TempDir()+"/") {
		return errors.New("refusing to look at this machine")
	}
	// The line is one quoted word: the shell under test unquotes and runs it.
	cmd := exec.CommandContext(ctx, g.Shell[0], append(g.Shell[1:], "-c", "eval "+word)...)
	cmd.Env = append(os.Environ(), "PATH="+g.Bin+":"+os.Getenv("PATH"), "TZ=Asia/Tokyo")
	var said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, io.MultiWriter(os.Stderr, &said)
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &provisioner.ExitError{Code: exit.ExitCode(), Output: said.String()}
	}
	return err
}

// Guests are what instances have: Debian's shells with GNU's programs, and busybox
// alone, with these applets.
func Guests(t testing.TB, applets string) map[string]Guest {
	t.Helper()
	bb, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox is needed (apt-get install busybox-static): ", err)
	}
	bin := t.TempDir()
	for _, a := range strings.Fields(applets) {
		if err := os.Symlink(bb, filepath.Join(bin, a)); err != nil {
			t.Fatal(err)
		}
	}
	none := t.TempDir()
	return map[string]Guest{"dash": {Shell: []string{"/bin/sh"}, Bin: none}, "bash": {Shell: []string{"/bin/bash"}, Bin: none}, "busybox": {Shell: []string{bb, "sh"}, Bin: bin}}
}

// Write makes a file below root.
func Write(t testing.TB, root, name, body string) {
	t.Helper()
	p := filepath.Join(root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(body), 0o644)); err != nil {
		t.Fatal(err)
	}
}
