// Package drift tells what was changed in a running instance since it booted.
// One POSIX shell script looks, in one command; this package makes the script,
// reads what it prints, and judges. It works on Debian (what dpkg shipped is
// compared) and on a guest that has busybox alone (every file that was written
// counts). docs/drift.md says what is looked at, what is not, and why.
//
// What a guest prints is not trusted: names may hold anything but NUL, and the
// amount of it is bounded.
package drift

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/rebake/rebake/internal/ansi"
	"github.com/rebake/rebake/provisioner"
)

// ErrBooting is an instance that has not finished its boot: what it changes now
// is nobody's doing.
var ErrBooting = errors.New("the instance has not finished its boot")

// What was done to a file.
const (
	Changed = "changed" // its content is not what its package shipped
	Mode    = "mode"    // its mode, owner or name was changed; the content is as shipped
	Touched = "touched" // it was written again, with what its package shipped
	Written = "written" // no package has it: it is new, or was changed
	Deleted = "deleted" // its package has it, and it is not there
)

// Change is one file.
type Change struct {
	Path    string `json:"path"`
	Package string `json:"package,omitempty"` // "": no package
	What    string `json:"what"`
}

// What was done to a package.
const (
	Installed   = "installed"
	Upgraded    = "upgraded" // or downgraded
	Reinstalled = "reinstalled"
	Removed     = "removed"
)

// Package is a package that was installed, removed or replaced.
type Package struct {
	Name  string `json:"name"`
	What  string `json:"what"`
	From  string `json:"from,omitempty"`
	To    string `json:"to,omitempty"`
	Files int    `json:"files,omitempty"` // written by that, and as shipped; they are not among the changes
}

// Report is what was changed since the end of the boot.
type Report struct {
	Boot      time.Time `json:"boot"`  // the kernel's start
	Since     time.Time `json:"since"` // what changed later counts
	Changed   []Change  `json:"changed"`
	Packages  []Package `json:"packages"`
	Truncated int       `json:"truncated"` // changed files beyond the first 1000, which were not looked into
	More      bool      `json:"more"`      // there are more than Truncated says: nobody counted to the end
}

// Clean says that nothing was changed.
func (r Report) Clean() bool { return r.Count() == 0 }

// Count is the number of changes, packages included.
func (r Report) Count() int { return len(r.Changed) + len(r.Packages) + r.Truncated }

// String names the package and what was done to it: nginx upgraded 1.22-9 to 1.24-1.
func (p Package) String() string {
	switch {
	case p.From != "" && p.To != "" && p.From != p.To:
		return p.Name + " " + p.What + " " + p.From + " to " + p.To
	case p.To+p.From != "":
		return p.Name + " " + p.What + " " + orElse(p.To, p.From)
	}
	return p.Name + " " + p.What
}

// String is the change for a person: /etc/motd changed (base-files).
func (c Change) String() string {
	return Quote(c.Path) + " " + c.What + " (" + orElse(c.Package, "no package") + ")"
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// Quote makes one word of a file name: as it is where it is plain, else quoted as
// Go does, so that nothing in it drives a terminal or looks like another name.
func Quote(path string) string {
	if ansi.Plain(path) && !strings.ContainsAny(path, ` "'\`) {
		return path
	}
	return strconv.QuoteToASCII(path)
}

// Look asks the guest. ErrBooting if it has not finished its boot.
func Look(ctx context.Context, g provisioner.Guest) (Report, error) { return look(ctx, g, "") }

// maxOutput bounds what a guest may say: a thousand paths, and what dpkg finds.
const maxOutput = 16 << 20

// look is Look in a directory: tests have no guest.
func look(ctx context.Context, g provisioner.Guest, root string) (Report, error) {
	out := &bounded{}
	err := g.Run(ctx, provisioner.Cmd{Line: "exec /bin/sh -c " + provisioner.Quote(script(root)), Stdout: out, Sudo: true})
	var exit *provisioner.ExitError
	switch {
	case errors.As(err, &exit) && exit.Code == booting:
		return Report{}, ErrBooting
	case errors.As(err, &exit):
		return Report{}, fmt.Errorf("look for changes: %w: %s", err, lastLine(exit.Output))
	case err != nil:
		return Report{}, fmt.Errorf("look for changes: %w", err)
	}
	return judge(string(out.b))
}

func lastLine(s string) string {
	s = strings.TrimSpace(s[strings.LastIndexByte(s, 0)+1:])
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// bounded keeps up to maxOutput bytes; what says more is refused.
type bounded struct{ b []byte }

func (w *bounded) Write(p []byte) (int, error) {
	if len(w.b)+len(p) > maxOutput {
		return 0, fmt.Errorf("it says more than %d MiB", maxOutput>>20)
	}
	w.b = append(w.b, p...)
	return len(p), nil
}
