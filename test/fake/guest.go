// Package fake holds in-memory parts that pass the suites of test/conformance,
// and an SSH server that runs in this process.
package fake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"sync"

	"github.com/rebake/rebake/provisioner"
)

// Guest is a provisioner.Guest in memory: it holds files, records commands and
// answers them from a script. The zero value is ready.
type Guest struct {
	// Answer says what a command does. nil, or a nil result, is success.
	Answer func(provisioner.Cmd) *Reply

	mu         sync.Mutex
	files      map[string]File
	commands   []provisioner.Cmd
	reconnects int
}

// Reply is a scripted answer.
type Reply struct {
	Stdout, Stderr string
	Code           int
	Err            error // instead of a status, e.g. provisioner.ErrDisconnected
	Block          bool  // until the context ends
}

// File is one file, directory or symlink of the guest.
type File struct {
	Mode fs.FileMode
	Data string
	Link string
}

var _ provisioner.Guest = (*Guest)(nil)

// Run implements provisioner.Guest. Stdin is read to its end and recorded as Line's input.
func (g *Guest) Run(ctx context.Context, c provisioner.Cmd) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if c.Stdin != nil {
		if _, err := io.Copy(io.Discard, c.Stdin); err != nil {
			return err
		}
	}
	g.mu.Lock()
	rec := c
	rec.Env, rec.Stdin, rec.Stdout, rec.Stderr = maps.Clone(c.Env), nil, nil, nil
	g.commands = append(g.commands, rec)
	answer := g.Answer
	g.mu.Unlock()
	if answer == nil {
		return nil
	}
	r := answer(c)
	if r == nil {
		return nil
	}
	for _, o := range []struct {
		w io.Writer
		s string
	}{{c.Stdout, r.Stdout}, {c.Stderr, r.Stderr}} {
		if o.w != nil {
			if _, err := io.WriteString(o.w, o.s); err != nil {
				return err
			}
		}
	}
	if r.Block {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	if r.Err != nil {
		return r.Err
	}
	if r.Code != 0 {
		return &provisioner.ExitError{Code: r.Code, Output: r.Stdout + r.Stderr}
	}
	return nil
}

// Upload implements provisioner.Guest.
func (g *Guest) Upload(ctx context.Context, dst string, src fs.FS) error {
	got := map[string]File{}
	err := fs.WalkDir(src, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		f := File{Mode: info.Mode()}
		switch {
		case name == ".":
			f.Mode = fs.ModeDir | 0o755
		case info.Mode().IsRegular():
			b, err := fs.ReadFile(src, name)
			if err != nil {
				return err
			}
			f.Data = string(b)
		case info.Mode().Type() == fs.ModeSymlink:
			if f.Link, err = fs.ReadLink(src, name); err != nil {
				return err
			}
		case !info.IsDir():
			return fmt.Errorf("%s: only files, directories and symlinks can be uploaded", name)
		}
		got[path.Join(dst, name)] = f
		return nil
	})
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.files == nil {
		g.files = map[string]File{}
	}
	maps.Copy(g.files, got)
	return nil
}

// Download implements provisioner.Guest.
func (g *Guest) Download(ctx context.Context, src string, w io.Writer) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	g.mu.Lock()
	f, ok := g.files[path.Clean(src)]
	g.mu.Unlock()
	if !ok {
		return fmt.Errorf("download %s: no such file: %w", src, fs.ErrNotExist)
	}
	if !f.Mode.IsRegular() {
		return errors.New("download " + src + ": not a regular file")
	}
	_, err := io.WriteString(w, f.Data)
	return err
}

// Reconnect implements provisioner.Guest.
func (g *Guest) Reconnect(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reconnects++
	return nil
}

// Files is a copy of what the guest holds, by absolute path.
func (g *Guest) Files() map[string]File {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.files)
}

// SetFile puts a file there.
func (g *Guest) SetFile(name string, f File) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.files == nil {
		g.files = map[string]File{}
	}
	g.files[path.Clean(name)] = f
}

// Commands are the commands run so far, without their streams.
func (g *Guest) Commands() []provisioner.Cmd {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]provisioner.Cmd(nil), g.commands...)
}

// Reconnects counts them.
func (g *Guest) Reconnects() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.reconnects
}
