// Package provisioner is the seam to whatever changes the inside of a guest.
// Backends: provisioner/shell, provisioner/file.
package provisioner

import (
	"context"
	"fmt"
	"io"
	"io/fs"

	"github.com/rebake/rebake/artifact"
)

// Provisioner is one step of a bake.
type Provisioner interface {
	// Key is what decides the step's effect: rendered config, environment,
	// digests of every local input (path, mode, type, link target, sha256; no
	// mtime, no owner, no absolute path). !ok: always run, cache nothing after it.
	// A sensitive value enters by name, never by value. A step that may read the
	// network besides also has Fetches() bool.
	Key(ctx context.Context) (in artifact.Inputs, ok bool, err error)
	// Provision does it. It reports through internal/event and obeys ctx.
	Provision(ctx context.Context, g Guest) error
}

// Guest is the inside of a machine. Implementations: internal/ssh, test/fake.
// All methods may be called concurrently and end when ctx does, the remote
// process being killed.
type Guest interface {
	// Run runs a command; a non-zero end is *ExitError, a lost connection wraps ErrDisconnected.
	Run(ctx context.Context, c Cmd) error
	// Upload writes the tree src under directory dst (made if missing), keeping
	// modes and symlinks. A single file is an fs.FS with one entry.
	Upload(ctx context.Context, dst string, src fs.FS) error
	// Download writes a regular file to w.
	Download(ctx context.Context, src string, w io.Writer) error
	// Reconnect waits for the guest to come back after it went away (a reboot).
	Reconnect(ctx context.Context) error
}

// Cmd is a command for a guest's shell.
type Cmd struct {
	Line   string            // given to the login shell as is
	Env    map[string]string // reaches the guest over stdin or a 0600 file, never a command line or a log
	Stdin  io.Reader         // may be nil
	Stdout io.Writer         // nil discards
	Stderr io.Writer         // nil discards
	Sudo   bool              // run as root by sudo -n where the user is not root
}

// ErrDisconnected is wrapped when the connection was lost while a command ran.
var ErrDisconnected = fmt.Errorf("guest disconnected")

// ExitError is the end of a command that failed.
type ExitError struct {
	Code   int
	Signal string
	Output string // the last lines, for the message
}

func (e *ExitError) Error() string {
	if e.Signal != "" {
		return "killed by signal " + e.Signal
	}
	return fmt.Sprintf("exit status %d", e.Code)
}
