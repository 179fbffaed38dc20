package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/lifecycle"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/require"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/internal/ui"
)

// Exit statuses, documented in docs/exit-codes.md and in each command's help.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitRolledBack  = 3
	exitLeftovers   = 4
	exitLocked      = 5
	exitPaused      = 6
	exitRefused     = 7
	exitInterrupted = 130
)

var errInterrupted = errors.New("interrupted")

// usageError is bad input on the command line.
type usageError struct{ msg, hint string }

func (e *usageError) Error() string { return e.msg }

func usagef(hint, format string, a ...any) error {
	return &usageError{msg: fmt.Sprintf(format, a...), hint: hint}
}

// hintError carries what to do next.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

func hinted(err error, format string, a ...any) error {
	if err == nil {
		return nil
	}
	return &hintError{err: err, hint: fmt.Sprintf(format, a...)}
}

// status is the exit status of an error.
func status(err error) int {
	var usage *usageError
	var tpl *template.Error
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	case errors.As(err, &usage), errors.As(err, &tpl):
		return exitUsage
	case errors.Is(err, pipeline.ErrRolledBack):
		return exitRolledBack
	case errors.Is(err, pipeline.ErrLeftovers), errors.Is(err, fleet.ErrBlocked):
		return exitLeftovers
	case errors.Is(err, fleet.ErrLocked):
		return exitLocked
	case errors.Is(err, fleet.ErrPaused):
		return exitPaused
	case errors.Is(err, fleet.ErrRefused), errors.As(err, new(*require.Refusal)), errors.Is(err, lifecycle.ErrRevoked), errors.Is(err, errDiffers):
		return exitRefused
	}
	return exitFailed
}

// hint says what to do next about an error, or "".
func hint(err error) string {
	var h *hintError
	var u *usageError
	store := storeHint(err)
	switch {
	case errors.As(err, &h):
		return h.hint
	case errors.As(err, &u):
		return u.hint
	case store != "":
		return store
	case errors.As(err, new(*ami.DeniedError)):
		return "`rebake aws policy` prints what to grant, `rebake doctor --aws` shows what is missing"
	case errors.Is(err, fleet.ErrRefused):
		return "give the image what it lacks, or say why that does not count: --override-policy REASON"
	case errors.Is(err, lifecycle.ErrRevoked):
		return "`rebake images ls` shows which are not; --allow-revoked takes it all the same"
	case errors.As(err, new(*artifact.RemovedError)):
		return "`rebake images show` says what is known of it, `rebake images ls` what the store has"
	case errors.Is(err, artifact.ErrNotFound):
		return "`rebake images ls` lists what the store has"
	case errors.Is(err, artifact.ErrExists):
		return "versions never change: give another with --version"
	case errors.Is(err, errInterrupted):
		return "what was made is cleaned up; `rebake gc` makes sure"
	}
	return ""
}

// printError tells a person; what guests and servers said is in it, so that
// ui.Error takes control characters out.
func printError(w io.Writer, err error) {
	fmt.Fprint(w, "rebake: ")
	ui.Error(w, err, hint(err))
}
