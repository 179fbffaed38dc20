package fake

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/pkg/sftp"
)

// tree is a directory as the whole file system of a machine.
type tree struct{ *os.Root }

// at is a guest's absolute path in the tree.
func at(p string) string {
	if p = strings.TrimPrefix(path.Clean("/"+p), "/"); p == "" {
		return "."
	}
	return p
}

// Fileread implements sftp.FileReader.
func (t tree) Fileread(r *sftp.Request) (io.ReaderAt, error) { return t.Open(at(r.Filepath)) }

// Filewrite implements sftp.FileWriter.
func (t tree) Filewrite(r *sftp.Request) (io.WriterAt, error) {
	flags, f := os.O_WRONLY, r.Pflags()
	for flag, set := range map[int]bool{os.O_CREATE: f.Creat, os.O_EXCL: f.Excl, os.O_TRUNC: f.Trunc} {
		if set {
			flags |= flag
		}
	}
	return t.OpenFile(at(r.Filepath), flags, 0o644)
}

// Filecmd implements sftp.FileCmder.
func (t tree) Filecmd(r *sftp.Request) error {
	switch p := at(r.Filepath); r.Method {
	case "Setstat":
		if r.AttrFlags().Permissions {
			return t.Chmod(p, r.Attributes().FileMode())
		}
		return nil
	case "Rename", "PosixRename":
		return t.Rename(p, at(r.Target))
	case "Mkdir":
		return t.Mkdir(p, 0o755)
	case "Rmdir", "Remove":
		return t.Remove(p)
	case "Symlink": // the target is as it is written
		return t.Symlink(r.Filepath, at(r.Target))
	}
	return sftp.ErrSSHFxOpUnsupported
}

// PosixRename implements sftp.PosixRenameFileCmder.
func (t tree) PosixRename(r *sftp.Request) error { return t.Rename(at(r.Filepath), at(r.Target)) }

// Filelist implements sftp.FileLister.
func (t tree) Filelist(r *sftp.Request) (sftp.ListerAt, error) {
	if r.Method != "List" {
		info, err := t.Stat(at(r.Filepath))
		return infos{info}, err
	}
	entries, err := fs.ReadDir(t.FS(), at(r.Filepath))
	var l infos
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			l = append(l, info)
		}
	}
	return l, err
}

// Lstat implements sftp.LstatFileLister.
func (t tree) Lstat(r *sftp.Request) (sftp.ListerAt, error) {
	info, err := t.Root.Lstat(at(r.Filepath))
	return infos{info}, err
}

type infos []fs.FileInfo

// ListAt implements sftp.ListerAt.
func (l infos) ListAt(to []fs.FileInfo, off int64) (int, error) {
	n := copy(to, l[min(off, int64(len(l))):])
	if n < len(to) {
		return n, io.EOF
	}
	return n, nil
}

// pack writes the tree as a tar: the same tree, the same bytes.
func (t tree) pack(w io.Writer) error {
	tw := tar.NewWriter(w)
	err := fs.WalkDir(t.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		h := &tar.Header{Name: name, Mode: int64(info.Mode().Perm()), Format: tar.FormatPAX}
		switch {
		case info.IsDir():
			h.Typeflag = tar.TypeDir
		case info.Mode().Type() == fs.ModeSymlink:
			h.Typeflag = tar.TypeSymlink
			if h.Linkname, err = t.Readlink(name); err != nil {
				return err
			}
		case info.Mode().IsRegular():
			h.Typeflag, h.Size = tar.TypeReg, info.Size()
		default:
			return nil
		}
		if err := tw.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
			return err
		}
		f, err := t.Open(name)
		if err != nil {
			return err
		}
		_, err = io.Copy(tw, f)
		return errors.Join(err, f.Close())
	})
	return errors.Join(err, tw.Close())
}

// unpack makes what pack wrote.
func (t tree) unpack(r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		mode := fs.FileMode(h.Mode).Perm()
		switch h.Typeflag {
		case tar.TypeDir:
			if err = t.Mkdir(h.Name, mode|0o700); err == nil {
				err = t.Chmod(h.Name, mode|0o700) // whatever the umask
			}
		case tar.TypeSymlink:
			err = t.Symlink(h.Linkname, h.Name)
		default:
			var f *os.File
			if f, err = t.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode); err == nil {
				_, err = io.Copy(f, tr)
				err = errors.Join(err, f.Chmod(mode), f.Close())
			}
		}
		if err != nil {
			return err
		}
	}
}
