package ssh

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/rebake/rebake/provisioner"
)

// worthPiping: opening the pipe costs as much as one small file by sftp.
func (c *Client) worthPiping(list []entry) bool {
	var size int64
	for _, e := range list {
		size += e.info.Size()
	}
	return c.opts.Pipe.Dial != nil && c.target.User == "root" && !c.noPipe.Load() && (len(list) > few || size > 256<<10)
}

// opened is the part of the guest's script that finds the port and reads until
// the mark: what comes before is the rest of an upload that was cut off. Until
// the guest's driver knows that somebody is at the other end, a read says end of
// file. What the shell can do itself, it does: a process costs an emulated guest 20 ms.
const opened = `P=; for d in /sys/class/virtio-ports/*; do IFS= read -r N 2>/dev/null <"$d/name" && [ "$N" = %[1]s ] && P=/dev/${d##*/}; done
[ -c "$P" ] && command -v tar >/dev/null 2>&1 && command -v head >/dev/null 2>&1 || exit %[3]d
umask 022; mkdir -p "$D" && cd "$D" || exit
exec 3<"$P" || exit %[3]d
n=0; while :; do
if IFS= read -r l <&3; then [ "$l" = %[2]s ] && break; continue; fi
n=$((n+1)); [ $n -gt 50 ] && exit %[3]d
sleep 0.1 2>/dev/null || sleep 1
done
`

// uploadPipe sends everything through the pipe, framed by its exact size: a
// port has no end of file.
func (c *Client) uploadPipe(ctx context.Context, dst string, src fs.FS, list []entry) error {
	c.piping.Lock()
	defer c.piping.Unlock()
	mark, err := newMark()
	if err != nil {
		return err
	}
	script := fmt.Sprintf(opened, provisioner.Quote(c.opts.Pipe.Name), mark, noTool)
	send := func(w io.Writer) error { return writeTar(w, src, list) }
	if len(list) <= few && plain(list) {
		script += placed(list)
		send = func(w io.Writer) error { return writeFiles(w, src, list) }
	} else {
		size, err := tarSize(list)
		if err != nil {
			return err
		}
		script += fmt.Sprintf("umask 0; head -c %d <&3 | tar -xpf -", size)
	}
	conn, err := c.opts.Pipe.Dial(ctx)
	if err != nil {
		c.noPipe.Store(true)
		return errNoTool
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() {
		out := bufio.NewWriterSize(conn, packet)
		_, err := io.WriteString(out, mark+"\n")
		if err == nil {
			err = send(out)
		}
		if err == nil {
			err = out.Flush()
		}
		if err != nil && !errors.Is(err, io.ErrClosedPipe) {
			cancel(err) // ends the guest's side, which waits for the rest
		}
		done <- err
	}()
	err = c.Run(ctx, provisioner.Cmd{Line: script, Env: map[string]string{"D": dst}})
	conn.Close() // ends the sender, if the guest stopped reading
	sent := <-done
	var exit *provisioner.ExitError
	switch {
	case errors.As(err, &exit) && exit.Code == noTool:
		c.noPipe.Store(true)
		return errNoTool
	case errors.As(err, &exit):
		return fmt.Errorf("the guest's end of the pipe: %w: %s", exit, exit.Output)
	case err != nil:
		return err
	case sent != nil:
		return sent
	}
	return c.closeDirs(ctx, dst, list)
}

// placed puts each of a few files beside its place and renames it there. The name
// beside it is always the same: what was cut off is written over by the next try.
func placed(list []entry) string {
	var b strings.Builder
	for _, e := range list {
		to := provisioner.Quote("./" + e.name)
		tmp := provisioner.Quote("./" + path.Join(path.Dir(e.name), "."+path.Base(e.name)+".rebake"))
		fmt.Fprintf(&b, `[ ! -d %[1]s ] || { echo "%[1]s is a directory" >&2; exit 1; }
(umask 077; head -c %[3]d <&3 >%[2]s) && [ "$(wc -c <%[2]s)" -eq %[3]d ] && chmod %[4]o %[2]s && mv -f %[2]s %[1]s || { rm -f %[2]s; exit 1; }
`, to, tmp, e.info.Size(), unixMode(e.info.Mode()))
	}
	return b.String()
}

func writeFiles(w io.Writer, src fs.FS, list []entry) error {
	for _, e := range list {
		f, err := src.Open(e.name)
		if err != nil {
			return err
		}
		n, err := io.Copy(w, io.LimitReader(f, e.info.Size()))
		if err = errors.Join(err, f.Close()); err == nil && n != e.info.Size() {
			err = fmt.Errorf("%s: it became shorter while it was sent", e.name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tarSize is how many bytes writeTar writes.
func tarSize(list []entry) (int64, error) {
	var n counter
	for _, e := range list {
		h := tarHeader(e)
		if err := tar.NewWriter(&n).WriteHeader(h); err != nil {
			return 0, err
		}
		n += counter((h.Size + 511) / 512 * 512)
	}
	return int64(n) + 1024, nil // two empty blocks end it
}

type counter int64

func (n *counter) Write(p []byte) (int, error) {
	*n += counter(len(p))
	return len(p), nil
}
