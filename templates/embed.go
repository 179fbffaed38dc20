// Package templates holds the example templates that `rebake init` writes. Each
// is one YAML file; the local files that it uses are in files/NAME/, those of
// NAME-aws too.
package templates

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

//go:embed *.yaml files
var content embed.FS

// Names lists the templates in alphabetical order.
func Names() []string {
	entries, err := content.ReadDir(".")
	if err != nil {
		panic(err) // the embedded root is always there
	}
	var out []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".yaml"); ok {
			out = append(out, name)
		}
	}
	slices.Sort(out) // of files, a dash comes before the dot
	return out
}

// Write writes a template and the files it uses below dir, which is made if
// missing, and returns their paths, the template first. A file that exists
// is an error and nothing is written; what a failed call wrote is removed.
func Write(name, dir string) (written []string, err error) {
	files, err := filesOf(name)
	if err != nil {
		return nil, err
	}
	var pairs [][2]string
	for _, f := range files {
		pairs = append(pairs, [2]string{f, f})
	}
	return writeAll(content, pairs, dir)
}

// writeAll writes files, each from its first path in fsys to its second below dir.
func writeAll(fsys fs.FS, files [][2]string, dir string) (written []string, err error) {
	for _, f := range files {
		path := filepath.Join(dir, filepath.FromSlash(f[1]))
		if _, err := os.Lstat(path); err == nil {
			return nil, fmt.Errorf("%s exists already: remove it or choose another directory with --dir", path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			for _, path := range written {
				err = errors.Join(err, os.Remove(path))
			}
			written = nil
		}
	}()
	for _, f := range files {
		path := filepath.Join(dir, filepath.FromSlash(f[1]))
		data, err := fs.ReadFile(fsys, f[0])
		if err != nil {
			return written, err
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			return written, err
		}
		out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if err != nil {
			return written, err
		}
		written = append(written, path)
		_, err = out.Write(data)
		if err := errors.Join(err, out.Close()); err != nil {
			return written, err
		}
	}
	return written, nil
}

// filesOf lists a template and the files it uses, the template first.
func filesOf(name string) ([]string, error) {
	known := false
	for _, n := range Names() {
		known = known || n == name
	}
	if !known {
		return nil, fmt.Errorf("there is no template %q", name)
	}
	out := []string{name + ".yaml"}
	err := fs.WalkDir(content, "files/"+strings.TrimSuffix(name, "-aws"), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a template without files
		}
		if err == nil && !d.IsDir() {
			out = append(out, path)
		}
		return err
	})
	return out, err
}
