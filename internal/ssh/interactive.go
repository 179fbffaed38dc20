package ssh

import (
	"context"
	"errors"
	"io"

	"github.com/rebake/rebake/provisioner"
	"golang.org/x/crypto/ssh"
)

// TTY is the terminal that an interactive session is shown in. The caller sets
// its own terminal raw; this package knows none.
type TTY struct {
	Term       string // $TERM
	Cols, Rows int
	Resized    <-chan [2]int // columns, rows; may be nil
}

// Interactive runs a login shell, in a terminal of the guest's if one is given.
// It ends with the shell, or with ctx.
func (c *Client) Interactive(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, tty ...TTY) error {
	release, err := c.slot(ctx)
	if err != nil {
		return err
	}
	defer release()
	n, err := c.use()
	if err != nil {
		return err
	}
	s, err := n.NewSession()
	if err != nil {
		return n.cutOff(err)
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.Close() })()
	s.Stdout, s.Stderr = stdout, stderr
	in, err := s.StdinPipe() // not s.Stdin: Wait would wait for a key press
	if err != nil {
		return err
	}
	if len(tty) > 0 {
		t := tty[0]
		if err := s.RequestPty(t.Term, t.Rows, t.Cols, ssh.TerminalModes{}); err != nil {
			return err
		}
		if t.Resized != nil {
			stop := make(chan struct{})
			defer close(stop)
			go resize(s, t.Resized, stop)
		}
	}
	if err := s.Shell(); err != nil {
		return n.cutOff(err)
	}
	go func() {
		_, _ = io.Copy(in, stdin) // the shell's end is what tells
		_ = in.Close()
	}()
	err = s.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var exit *ssh.ExitError
	if errors.As(err, &exit) {
		return &provisioner.ExitError{Code: exit.ExitStatus(), Signal: exit.Signal()}
	}
	if err != nil {
		return n.cutOff(err)
	}
	return nil
}

func resize(s *ssh.Session, sizes <-chan [2]int, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case z, ok := <-sizes:
			if !ok || s.WindowChange(z[1], z[0]) != nil {
				return
			}
		}
	}
}
