package tinyguest

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// writeCPIO writes a directory as the kernel's "newc" archive, all owned by root, without times.
func writeCPIO(w io.Writer, root string) error {
	ino := 0
	put := func(name string, mode uint32, data []byte) error {
		ino++
		pad := func(n int) []byte { return make([]byte, (4-n%4)%4) }
		head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		for _, b := range [][]byte{[]byte(head + name + "\x00"), pad(len(head) + len(name) + 1), data, pad(len(data))} {
			if _, err := w.Write(b); err != nil {
				return err
			}
		}
		return nil
	}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil || rel == "." {
			return err
		}
		switch {
		case d.IsDir():
			return put(rel, 0o040755, nil)
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return put(rel, 0o120777, []byte(to))
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return put(rel, 0o100755, data)
	})
	if err != nil {
		return err
	}
	return put("TRAILER!!!", 0, nil)
}
