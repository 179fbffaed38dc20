// Package keyring finds signing keys: by a name in a directory, where each is two
// PEM files, NAME.key (private, mode 0600) and NAME.pub, or by the path of a file.
package keyring

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/internal/statement"
)

// Dir is the directory of the named keys. It need not be there.
type Dir string

// ErrExists is a name that has a key.
var ErrExists = errors.New("a key of that name exists already")

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

func (d Dir) private(name string) string { return filepath.Join(string(d), name+".key") }
func (d Dir) public(name string) string  { return filepath.Join(string(d), name+".pub") }

// Generate makes a key and keeps it: first the private half, then the public one,
// each in one piece. ErrExists if there is one; a key is never written over.
func (d Dir) Generate(name, kind string) (statement.Public, error) {
	if !namePattern.MatchString(name) {
		return statement.Public{}, fmt.Errorf("%.80q cannot name a key: letters, digits, - and _, at most 64", name)
	}
	k, err := statement.Generate(kind)
	if err != nil {
		return statement.Public{}, err
	}
	text, err := k.PEM()
	if err != nil {
		return statement.Public{}, err
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return statement.Public{}, err
	}
	lock, err := d.lock()
	if err != nil {
		return statement.Public{}, err
	}
	defer lock.Close()
	if err := create(d.private(name), text, 0o600); err != nil {
		return statement.Public{}, err
	}
	pub := k.Public()
	pub.Name = name
	if err := create(d.public(name), pub.PEM(), 0o644); err != nil {
		return pub, err
	}
	return pub, nil
}

const unnamed = ".new-"

func (d Dir) lock() (*flock.Flock, error) {
	l := flock.New(filepath.Join(string(d), ".lock"), flock.SetPermissions(0o600))
	return l, l.Lock()
}

// Clean removes the files of those who were killed before a key had its name, in
// which a private key may be, and returns their paths.
func (d Dir) Clean() (gone []string, err error) {
	if _, err := os.Stat(string(d)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	lock, err := d.lock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	left, err := filepath.Glob(filepath.Join(string(d), unnamed+"*"))
	for _, path := range left {
		if rerr := os.Remove(path); rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		gone = append(gone, path)
	}
	return gone, err
}

// create writes a new file, whole or not at all, and never over another.
func create(path string, data []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), unnamed+"*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %s", ErrExists, path)
	} else if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// List is the public half of each key, by name. Where a kill came between the two
// halves, the public one is told from the private one.
func (d Dir) List() ([]statement.Public, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	names := map[string]bool{}
	for _, e := range entries {
		if name, ext := strings.TrimSuffix(e.Name(), filepath.Ext(e.Name())), filepath.Ext(e.Name()); (ext == ".key" || ext == ".pub") && namePattern.MatchString(name) {
			names[name] = true
		}
	}
	var out []statement.Public
	for name := range names {
		p, err := d.Public(name, "")
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b statement.Public) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// HasPrivate says whether the private half is here too.
func (d Dir) HasPrivate(name string) bool {
	_, err := os.Stat(d.private(name))
	return err == nil && namePattern.MatchString(name)
}

// Public finds a public key by name, or by a path relative to base.
func (d Dir) Public(spec, base string) (statement.Public, error) {
	if namePattern.MatchString(spec) {
		raw, err := read(d.public(spec))
		if err == nil {
			p, perr := statement.ParsePublic(spec, raw)
			return p, at(d.public(spec), perr)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return statement.Public{}, err
		}
		k, err := d.Private(spec, "")
		if err != nil {
			return statement.Public{}, d.unknown(spec, err)
		}
		p := k.Public()
		p.Name = spec
		return p, nil
	}
	path := under(base, spec)
	raw, err := read(path)
	if err != nil {
		return statement.Public{}, fmt.Errorf("read the public key: %w", err)
	}
	p, err := statement.ParsePublic(strings.TrimSuffix(filepath.Base(path), filepath.Ext(path)), raw)
	return p, at(path, err)
}

// Private finds a private key by name, or by a path relative to base. A file that
// others may read or change is refused.
func (d Dir) Private(spec, base string) (*statement.Key, error) {
	path := under(base, spec)
	named := namePattern.MatchString(spec)
	if named {
		path = d.private(spec)
	}
	st, err := os.Stat(path)
	if err != nil {
		if named {
			return nil, d.unknown(spec, err)
		}
		return nil, fmt.Errorf("read the signing key: %w", err)
	}
	if m := st.Mode().Perm(); m&0o026 != 0 {
		return nil, fmt.Errorf("the signing key %s has mode %04o: others may read or change it; `chmod 600` it, and think of making a new one", path, m)
	}
	raw, err := read(path)
	if err != nil {
		return nil, err
	}
	k, err := statement.ParseKey(raw)
	return k, at(path, err)
}

func (d Dir) unknown(name string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("there is no key %s in %s: `rebake key ls` lists them, `rebake key generate %s` makes one, and a path has a / in it", name, d, name)
}

func at(path string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func under(base, path string) string {
	if filepath.IsAbs(path) || base == "" {
		return path
	}
	return filepath.Join(base, path)
}

// read is a small file.
func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 1<<20))
}
