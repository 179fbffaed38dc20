package file

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
)

// tree is an fs.FS of files from several places of the local disk, under the
// names that they will have in the guest.
type tree struct {
	nodes map[string]*node // "." is the root
}

type node struct {
	name  string // base name
	path  string // on the local disk; "" for content and made directories
	data  []byte
	mode  fs.FileMode
	size  int64
	mtime time.Time
	link  string
	kids  []string
}

func newTree() *tree {
	return &tree{nodes: map[string]*node{".": {name: ".", mode: fs.ModeDir | 0o755}}}
}

func (t *tree) put(name string, n *node) error {
	if _, ok := t.nodes[name]; ok {
		return fmt.Errorf("two sources would become %s", name)
	}
	parent := path.Dir(name)
	p, ok := t.nodes[parent]
	if !ok {
		return fmt.Errorf("%s has no directory", name)
	}
	n.name = path.Base(name)
	p.kids = append(p.kids, name)
	t.nodes[name] = n
	return nil
}

// addFile puts the local file p, a symlink followed, under name.
func (t *tree) addFile(name, p string) error {
	st, err := os.Stat(p)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", p)
	}
	return t.put(name, &node{path: p, mode: st.Mode(), size: st.Size(), mtime: st.ModTime()})
}

// addDir puts what is in the local directory dir under name, "." for the root.
func (t *tree) addDir(name, dir string, exclude []string) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if rel == "." && name == "." {
			return nil
		}
		if rel != "." && excluded(exclude, rel, d.IsDir()) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		st, err := os.Stat(p)
		if rel != "." {
			st, err = d.Info()
		}
		if err != nil {
			return err
		}
		n := &node{path: p, mode: st.Mode(), size: st.Size(), mtime: st.ModTime()}
		switch {
		case st.Mode().Type() == fs.ModeSymlink:
			if n.link, err = os.Readlink(p); err != nil {
				return err
			}
		case !st.IsDir() && !st.Mode().IsRegular():
			return fmt.Errorf("%s is neither a file, a directory nor a symlink; exclude it", p)
		}
		return t.put(path.Join(name, rel), n)
	})
}

// excluded matches patterns against the path below the source and against the
// last name; one that ends with / means directories only.
func excluded(patterns []string, rel string, dir bool) bool {
	for _, p := range patterns {
		if only := strings.HasSuffix(p, "/"); only && !dir {
			continue
		}
		p = strings.TrimSuffix(p, "/")
		for _, s := range []string{rel, path.Base(rel)} {
			if ok, err := path.Match(p, s); err == nil && ok { // New checked the pattern
				return true
			}
		}
	}
	return false
}

// names lists everything but the root, sorted.
func (t *tree) names() []string {
	l := make([]string, 0, len(t.nodes)-1)
	for name := range t.nodes {
		if name != "." {
			l = append(l, name)
		}
	}
	sort.Strings(l)
	return l
}

// key adds each entry as artifact.FileLine tells it.
func (t *tree) key(in *artifact.Inputs) error {
	var lines []byte
	for _, name := range t.names() {
		n := t.nodes[name]
		line, err := artifact.FileLine("file "+name, n.mode, n.link, func() (io.ReadCloser, error) {
			if n.path == "" {
				return io.NopCloser(bytes.NewReader(n.data)), nil
			}
			return os.Open(n.path)
		})
		if err != nil {
			return err
		}
		lines = append(lines, line...)
	}
	in.AddFiles(lines)
	return nil
}

var (
	_ fs.ReadDirFS  = (*tree)(nil)
	_ fs.ReadLinkFS = (*tree)(nil)
)

func (t *tree) node(op, name string) (*node, error) {
	n, ok := t.nodes[name]
	if !ok {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	return n, nil
}

// Open implements fs.FS. It opens files only; directories are read by ReadDir.
func (t *tree) Open(name string) (fs.File, error) {
	n, err := t.node("open", name)
	if err != nil {
		return nil, err
	}
	if !n.mode.IsRegular() {
		return &opened{n: n, r: bytes.NewReader(nil)}, nil
	}
	if n.path == "" {
		return &opened{n: n, r: bytes.NewReader(n.data)}, nil
	}
	f, err := os.Open(n.path)
	if err != nil {
		return nil, err
	}
	return &opened{n: n, r: f, c: f}, nil
}

// ReadDir implements fs.ReadDirFS.
func (t *tree) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := t.node("readdir", name)
	if err != nil {
		return nil, err
	}
	sort.Strings(n.kids)
	l := make([]fs.DirEntry, len(n.kids))
	for i, k := range n.kids {
		l[i] = fs.FileInfoToDirEntry(info{t.nodes[k]})
	}
	return l, nil
}

// Lstat implements fs.ReadLinkFS.
func (t *tree) Lstat(name string) (fs.FileInfo, error) {
	n, err := t.node("lstat", name)
	if err != nil {
		return nil, err
	}
	return info{n}, nil
}

// ReadLink implements fs.ReadLinkFS.
func (t *tree) ReadLink(name string) (string, error) {
	n, err := t.node("readlink", name)
	if err != nil {
		return "", err
	}
	if n.mode.Type() != fs.ModeSymlink {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: errors.New("not a symlink")}
	}
	return n.link, nil
}

type info struct{ n *node }

func (i info) Name() string       { return i.n.name }
func (i info) Size() int64        { return i.n.size }
func (i info) Mode() fs.FileMode  { return i.n.mode }
func (i info) ModTime() time.Time { return i.n.mtime }
func (i info) IsDir() bool        { return i.n.mode.IsDir() }
func (i info) Sys() any           { return nil }

type opened struct {
	n *node
	r io.Reader
	c io.Closer
}

func (o *opened) Stat() (fs.FileInfo, error) { return info{o.n}, nil }
func (o *opened) Read(b []byte) (int, error) { return o.r.Read(b) }
func (o *opened) Close() error {
	if o.c == nil {
		return nil
	}
	return o.c.Close()
}
