package ssh

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pkg/sftp"
	"github.com/rebake/rebake/provisioner"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"
)

// entry is one thing to upload.
type entry struct {
	name string // slash separated, relative
	info fs.FileInfo
	link string // of a symlink
}

// few files go over sftp, each replaced atomically; many go as one tar stream,
// which costs one round trip for all of them.
const few = 4

// packet is how much of a stream is gathered: SSH's largest packets are 32 KiB.
const packet = 64 << 10

var errNoTool = errors.New("the guest has no tool for it")

// Upload implements provisioner.Guest. It takes the fastest way that the guest
// has: a pipe beside the network, one tar stream, sftp with many writes in
// flight, or `cat`.
func (c *Client) Upload(ctx context.Context, dst string, src fs.FS) error {
	list, err := walk(src)
	if err != nil {
		return err
	}
	ways := []func(context.Context, string, fs.FS, []entry) error{c.uploadTar, c.uploadSFTP, c.uploadCat}
	if len(list) <= few && plain(list) {
		ways[0], ways[1] = ways[1], ways[0]
	}
	if c.worthPiping(list) {
		ways = append([]func(context.Context, string, fs.FS, []entry) error{c.uploadPipe}, ways...)
	}
	for _, way := range ways {
		err = way(ctx, dst, src, list)
		if errors.Is(err, errNoStatus) && ctx.Err() == nil {
			err = way(ctx, dst, src, list) // a session was lost, not the connection; to send it again does no harm
		}
		if !errors.Is(err, errNoTool) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("upload to %s: %w", dst, err)
	}
	return nil
}

func plain(list []entry) bool {
	for _, e := range list {
		if !e.info.Mode().IsRegular() {
			return false
		}
	}
	return true
}

// walk lists src without its root; other kinds than files, directories and
// symlinks are refused before anything was sent.
func walk(src fs.FS) ([]entry, error) {
	var list []entry
	err := fs.WalkDir(src, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		e := entry{name: name, info: info}
		switch m := info.Mode(); {
		case m.IsRegular(), m.IsDir():
		case m.Type() == fs.ModeSymlink:
			if e.link, err = fs.ReadLink(src, name); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s is a %s: only files, directories and symlinks can be uploaded", name, m.Type())
		}
		list = append(list, e)
		return nil
	})
	return list, err
}

// noTool is the status of a remote script whose tool is missing.
const noTool = 42

func (c *Client) uploadTar(ctx context.Context, dst string, src fs.FS, list []entry) error {
	if c.noTar.Load() {
		return errNoTool
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		// Each write into the pipe becomes a packet, and a packet costs a guest
		// without KVM a millisecond: headers and small files travel together.
		out := bufio.NewWriterSize(pw, packet)
		err := writeTar(out, src, list)
		if err == nil {
			err = out.Flush()
		}
		if err != nil && !errors.Is(err, io.ErrClosedPipe) {
			cancel(err) // ends the remote tar, which cannot know why its input stopped
		}
		done <- err
		pw.Close()
	}()
	err := c.Run(ctx, provisioner.Cmd{
		Line: fmt.Sprintf(`command -v tar >/dev/null 2>&1 || exit %d; umask 022; mkdir -p "$D" && cd "$D" && umask 0 && exec tar -xpf -`, noTool),
		Env:  map[string]string{"D": dst}, Stdin: pr,
	})
	pr.Close()
	werr := <-done
	var exit *provisioner.ExitError
	if errors.As(err, &exit) {
		if exit.Code == noTool {
			c.noTar.Store(true)
			return errNoTool
		}
		return fmt.Errorf("tar in the guest: %w: %s", exit, exit.Output)
	}
	if err == nil && werr != nil && !errors.Is(werr, io.ErrClosedPipe) {
		err = werr
	}
	if err != nil {
		return err
	}
	return c.closeDirs(ctx, dst, list)
}

// closeDirs takes from directories what their owner may not do in them, from
// the innermost, now that all is in them. (A plain user's tar of busybox changes
// no mode of what is there.)
func (c *Client) closeDirs(ctx context.Context, dst string, list []entry) error {
	var script strings.Builder
	for _, e := range slices.Backward(list) {
		if m := unixMode(e.info.Mode()); e.info.IsDir() && m&0o700 != 0o700 {
			fmt.Fprintf(&script, "chmod %o %s || exit\n", m, provisioner.Quote("./"+e.name))
		}
	}
	if script.Len() == 0 {
		return nil
	}
	err := c.Run(ctx, provisioner.Cmd{Line: `cd "$D" && exec /bin/sh`, Env: map[string]string{"D": dst}, Stdin: strings.NewReader(script.String())})
	if err != nil {
		return fmt.Errorf("set the modes of directories: %w", err)
	}
	return nil
}

func writeTar(w io.Writer, src fs.FS, list []entry) error {
	tw := tar.NewWriter(w)
	for _, e := range list {
		h := tarHeader(e)
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := copyFile(tw, src, e.name); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return tw.Close()
}

func tarHeader(e entry) *tar.Header {
	h := &tar.Header{
		Name: "./" + e.name, Mode: int64(unixMode(e.info.Mode())), ModTime: e.info.ModTime(),
		Format: tar.FormatGNU, Typeflag: tar.TypeReg,
	}
	if h.ModTime.IsZero() {
		h.ModTime = time.Now()
	}
	switch {
	case e.info.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		h.Mode |= 0o700 // or a plain user's tar could put nothing in it; closeDirs
	case e.info.Mode().Type() == fs.ModeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
	default:
		h.Size = e.info.Size()
	}
	return h
}

func copyFile(w io.Writer, src fs.FS, name string) error {
	f, err := src.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// unixMode is permissions with the three bits that Go keeps elsewhere.
func unixMode(m fs.FileMode) uint32 {
	u := uint32(m.Perm())
	for bit, v := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&bit != 0 {
			u |= v
		}
	}
	return u
}

// withSFTP lends a client of the guest's sftp subsystem.
func (c *Client) withSFTP(ctx context.Context, f func(*sftp.Client) error) error {
	if c.noSFTP.Load() {
		return errNoTool
	}
	release, err := c.slot(ctx)
	if err != nil {
		return err
	}
	defer release()
	n, err := c.use()
	if err != nil {
		return err
	}
	ch, reqs, err := n.openSession(ctx)
	if err != nil {
		return err
	}
	defer ch.Close()
	go ssh.DiscardRequests(reqs)
	defer context.AfterFunc(ctx, func() { ch.Close() })()
	ok, err := ch.SendRequest("subsystem", true, ssh.Marshal(struct{ Name string }{"sftp"}))
	if ctx.Err() != nil { // which closed the channel
		return context.Cause(ctx)
	}
	if err != nil {
		return n.cutOff(err)
	}
	var s *sftp.Client
	if ok {
		s, err = sftp.NewClientPipe(ch, ch, sftp.UseConcurrentWrites(true))
	}
	if !ok || err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if n.isDead() {
			return n.lost()
		}
		c.noSFTP.Store(true) // dropbear accepts the subsystem and then finds no server
		return errNoTool
	}
	defer s.Close()
	if err = f(s); err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if n.isDead() {
		return n.lost()
	}
	return err
}

func (c *Client) uploadSFTP(ctx context.Context, dst string, src fs.FS, list []entry) error {
	return c.withSFTP(ctx, func(s *sftp.Client) error {
		if err := s.MkdirAll(dst); err != nil {
			return err
		}
		for _, e := range list { // parents come before what they hold
			if e.info.IsDir() {
				if err := s.MkdirAll(path.Join(dst, e.name)); err != nil {
					return fmt.Errorf("%s: %w", e.name, err)
				}
			}
		}
		mark, err := newMark()
		if err != nil {
			return err
		}
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(16)
		for _, e := range list {
			if e.info.IsDir() {
				continue
			}
			g.Go(func() error {
				if gctx.Err() != nil {
					return gctx.Err()
				}
				if err := put(s, path.Join(dst, e.name), src, e, mark); err != nil {
					return fmt.Errorf("%s: %w", e.name, err)
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		for i := len(list) - 1; i >= 0; i-- { // a read-only directory only now
			if e := list[i]; e.info.IsDir() {
				if err := s.Chmod(path.Join(dst, e.name), e.info.Mode()); err != nil {
					return fmt.Errorf("%s: %w", e.name, err)
				}
			}
		}
		return nil
	})
}

// put makes one file or symlink beside its place and renames it there.
func put(s *sftp.Client, dst string, src fs.FS, e entry, mark string) (err error) {
	tmp := path.Join(path.Dir(dst), "."+path.Base(dst)+"."+mark[:8])
	defer func() {
		if err != nil {
			_ = s.Remove(tmp) // the first error is the one to tell
		}
	}()
	if e.link != "" {
		if err := s.Symlink(e.link, tmp); err != nil {
			return err
		}
		return rename(s, tmp, dst)
	}
	in, err := src.Open(e.name)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := s.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	if err := out.Chmod(0o600 & e.info.Mode().Perm()); err != nil { // not for others while it is half there
		return errors.Join(err, out.Close())
	}
	_, err = out.ReadFromWithConcurrency(in, 64)
	if err == nil {
		err = out.Chmod(e.info.Mode())
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	return rename(s, tmp, dst)
}

func rename(s *sftp.Client, from, to string) error {
	if _, ok := s.HasExtension("posix-rename@openssh.com"); ok {
		return s.PosixRename(from, to)
	}
	if err := s.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.Rename(from, to)
}

// uploadCat needs only a shell. One command per file: the last resort.
func (c *Client) uploadCat(ctx context.Context, dst string, src fs.FS, list []entry) error {
	var dirs strings.Builder
	dirs.WriteString(`umask 022; mkdir -p "$D" && cd "$D"`)
	for _, e := range list {
		if e.info.IsDir() {
			dirs.WriteString(" && mkdir -p " + provisioner.Quote("./"+e.name))
		} else if e.link != "" {
			dirs.WriteString(" && ln -sfn " + provisioner.Quote(e.link) + " " + provisioner.Quote("./"+e.name))
		}
	}
	env := map[string]string{"D": dst}
	if err := c.Run(ctx, provisioner.Cmd{Line: dirs.String(), Env: env}); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxSessions)
	for _, e := range list {
		if !e.info.Mode().IsRegular() {
			continue
		}
		g.Go(func() error { return c.cat(gctx, dst, src, e) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var modes strings.Builder
	modes.WriteString(`cd "$D"`)
	for i := len(list) - 1; i >= 0; i-- {
		if e := list[i]; e.info.IsDir() {
			fmt.Fprintf(&modes, " && chmod %o %s", unixMode(e.info.Mode()), provisioner.Quote("./"+e.name))
		}
	}
	return c.Run(ctx, provisioner.Cmd{Line: modes.String(), Env: env})
}

func (c *Client) cat(ctx context.Context, dst string, src fs.FS, e entry) error {
	in, err := src.Open(e.name)
	if err != nil {
		return err
	}
	var once sync.Once
	closeIn := func() { once.Do(func() { in.Close() }) }
	defer closeIn()
	var stderr tailBuffer
	err = c.Run(ctx, provisioner.Cmd{
		Line: fmt.Sprintf(`umask 077; cd "$D" && cat >"$F.rebake" && [ "$(wc -c <"$F.rebake")" -eq %d ] && chmod %o "$F.rebake" && mv -f "$F.rebake" "$F"`,
			e.info.Size(), unixMode(e.info.Mode())),
		Env: map[string]string{"D": dst, "F": "./" + e.name}, Stdin: in, Stderr: &stderr,
	})
	if err != nil {
		return fmt.Errorf("%s: %w: %s", e.name, err, stderr.String())
	}
	return nil
}

// Download implements provisioner.Guest.
func (c *Client) Download(ctx context.Context, src string, w io.Writer) error {
	err := c.Run(ctx, provisioner.Cmd{
		Line:   `[ -f "$F" ] || { [ -e "$F" ] && echo "not a regular file" || echo "no such file"; exit 1; } >&2; exec cat <"$F"`,
		Env:    map[string]string{"F": src},
		Stdout: w,
	})
	var exit *provisioner.ExitError
	if errors.As(err, &exit) && exit.Code != 0 {
		return fmt.Errorf("download %s: %w: %s", src, err, exit.Output)
	}
	if err != nil {
		return fmt.Errorf("download %s: %w", src, err)
	}
	return nil
}
