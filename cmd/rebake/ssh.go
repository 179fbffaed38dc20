package main

import (
	"io"
	"os"
	"strings"
	"time"

	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/internal/ui"
	"github.com/rebake/rebake/provisioner"
	"golang.org/x/term"
)

func interactive(r io.Reader) bool {
	f, ok := r.(*os.File)
	return ok && ui.IsTerminal(f)
}

// fleetSSH logs in to an instance: a command if one is given, else a shell.
func fleetSSH(s *session) error {
	d, inst, command, err := s.instanceArgs()
	if err != nil {
		return err
	}
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}
	c, err := pipeline.Connect(s.ctx, d.Pool, inst, 30*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	app := s.c.App
	if len(command) > 0 {
		if err := s.ui.Close(); err != nil {
			return err
		}
		return c.Run(s.ctx, provisioner.Cmd{Line: strings.Join(command, " "), Stdin: stdinUnlessTerminal(app.Reader), Stdout: app.Writer, Stderr: app.ErrWriter})
	}
	return s.shell(c)
}

// shell hands the terminal over to a login shell in a guest.
func (s *session) shell(c *ssh.Client) error {
	if err := s.ui.Close(); err != nil {
		return err
	}
	app := s.c.App
	f, ok := app.Reader.(*os.File)
	if !ok || !ui.IsTerminal(f) {
		return c.Interactive(s.ctx, app.Reader, app.Writer, app.ErrWriter)
	}
	old, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return err
	}
	defer func() { _ = term.Restore(int(f.Fd()), old) }()
	w, h, err := term.GetSize(int(f.Fd()))
	if err != nil {
		w, h = 80, 24
	}
	return c.Interactive(s.ctx, f, app.Writer, app.ErrWriter, ssh.TTY{Term: os.Getenv("TERM"), Cols: w, Rows: h})
}

// stdinUnlessTerminal feeds a command from a pipe or file; a terminal's input
// stays with the person.
func stdinUnlessTerminal(r io.Reader) io.Reader {
	if interactive(r) {
		return nil
	}
	return r
}
