// Package file is the provisioner that brings files into the guest, or out of it.
//
// What a source becomes, with destination D:
//
//	file       →  D, or D/file if D ends with /
//	dir        →  D/dir
//	dir/       →  its contents in D
//	a glob, or several sources  →  each of them in D
//	content    →  the file D
//
// Symlinks inside a directory stay links; one that is a source itself is followed.
package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/provisioner"
)

// Config is a file: block of a template.
type Config struct {
	Source      string   `yaml:"source" json:"source,omitempty" jsonschema_description:"file, directory or glob, relative to the template; dir/ means what is in it"`
	Sources     []string `yaml:"sources" json:"sources,omitempty" jsonschema_description:"several of them"`
	Content     *string  `yaml:"content" json:"content,omitempty" rebake:"secret" jsonschema_description:"text of the file, instead of a source"`
	Destination string   `yaml:"destination" json:"destination" jsonschema:"required" jsonschema_description:"absolute path in the guest; with a / at its end a directory (download: a local path)"`
	Direction   string   `yaml:"direction" json:"direction,omitempty" jsonschema:"enum=upload,enum=download" jsonschema_description:"upload (the default), or download a file of the guest"`
	Owner       string   `yaml:"owner" json:"owner,omitempty" jsonschema_description:"owner of what was uploaded"`
	Group       string   `yaml:"group" json:"group,omitempty" jsonschema_description:"group of what was uploaded"`
	Mode        string   `yaml:"mode" json:"mode,omitempty" jsonschema_description:"octal mode of files; directories get x where they get r; default: as they are here"`
	Exclude     []string `yaml:"exclude" json:"exclude,omitempty" jsonschema_description:"globs, matched with the path below the source and with the name; dir/ means directories only"`
	Sudo        bool     `yaml:"sudo" json:"sudo,omitempty" jsonschema_description:"put it there as root, by sudo -n, if the user is not root"`

	Keyed *Config `yaml:"-" json:"-"` // the same with var:NAME for each sensitive value, for the key; nil: there is none
}

type step struct {
	cfg  Config
	dir  string
	tree *tree
	into string // directory of the guest that the tree goes into
}

var accountName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*\$?$`)

// New checks the config and finds the sources, relative to dir: a missing one
// is said before a machine boots.
func New(cfg Config, dir string) (provisioner.Provisioner, error) {
	s := &step{cfg: cfg, dir: dir}
	sources := cfg.Sources
	if cfg.Source != "" {
		sources = append([]string{cfg.Source}, sources...)
	}
	if cfg.Destination == "" {
		return nil, errors.New("destination is missing")
	}
	for _, a := range []string{cfg.Owner, cfg.Group} {
		if a != "" && !accountName.MatchString(a) {
			return nil, fmt.Errorf("%q is not the name of an account", a)
		}
	}
	for _, p := range cfg.Exclude {
		if _, err := path.Match(p, ""); err != nil {
			return nil, fmt.Errorf("exclude: %q: %w", p, err)
		}
	}
	switch cfg.Direction {
	case "", "upload":
		return s, s.plan(sources)
	case "download":
		if len(sources) != 1 || cfg.Content != nil || !strings.HasPrefix(sources[0], "/") {
			return nil, errors.New("a download has one source, an absolute path of the guest")
		}
		if cfg.Owner != "" || cfg.Group != "" || len(cfg.Exclude) > 0 || cfg.Sudo {
			return nil, errors.New("owner, group, exclude and sudo are for uploads")
		}
		_, err := s.mode(0)
		return s, err
	}
	return nil, fmt.Errorf("direction: %q is neither upload nor download", cfg.Direction)
}

// plan makes the tree of what goes where.
func (s *step) plan(sources []string) error {
	dst := s.cfg.Destination
	if !strings.HasPrefix(dst, "/") {
		return fmt.Errorf("destination: %s is not an absolute path of the guest", dst)
	}
	if strings.ContainsAny(dst, "\x00\n") {
		return errors.New("destination: holds a NUL byte or a line end")
	}
	if (s.cfg.Content != nil) == (len(sources) > 0) {
		return errors.New("give either source(s) or content")
	}
	s.tree, s.into = newTree(), path.Clean(dst)
	if s.cfg.Content != nil {
		if strings.HasSuffix(dst, "/") {
			return fmt.Errorf("destination: %s is a directory; content needs the name of a file", dst)
		}
		n := &node{data: []byte(*s.cfg.Content), mode: 0o644, size: int64(len(*s.cfg.Content))}
		s.into = path.Dir(s.into)
		if err := s.tree.put(path.Base(dst), n); err != nil {
			return err
		}
		return s.applyMode()
	}
	found, several, err := s.expand(sources)
	if err != nil {
		return err
	}
	for _, f := range found {
		st, err := os.Stat(f)
		if err != nil {
			return err
		}
		name := filepath.Base(strings.TrimRight(f, "/"))
		switch {
		case st.IsDir() && strings.HasSuffix(f, "/"):
			err = s.tree.addDir(".", filepath.Clean(f), s.cfg.Exclude)
		case st.IsDir():
			err = s.tree.addDir(name, f, s.cfg.Exclude)
		case several || strings.HasSuffix(dst, "/"):
			if !excluded(s.cfg.Exclude, name, false) {
				err = s.tree.addFile(name, f)
			}
		default:
			s.into = path.Dir(s.into)
			err = s.tree.addFile(path.Base(dst), f)
		}
		if err != nil {
			return err
		}
	}
	return s.applyMode()
}

// expand resolves the sources and their globs.
func (s *step) expand(sources []string) (found []string, several bool, err error) {
	several = len(sources) > 1
	for _, src := range sources {
		p := src
		if !filepath.IsAbs(p) {
			p = filepath.Join(s.dir, src)
			if strings.HasSuffix(src, "/") {
				p += "/"
			}
		}
		if _, err := os.Stat(p); err == nil || !strings.ContainsAny(src, "*?[") {
			if err != nil {
				return nil, false, fmt.Errorf("source %s: %w", src, errors.Unwrap(err))
			}
			found = append(found, p)
			continue
		}
		several = true
		m, err := s.glob(src, p)
		if err != nil {
			return nil, false, fmt.Errorf("source %s: %w", src, err)
		}
		if len(m) == 0 {
			return nil, false, fmt.Errorf("source %s: nothing matches", src)
		}
		sort.Strings(m)
		found = append(found, m...)
	}
	return found, several, nil
}

// glob matches a source, whose path is p. The template's folder is no pattern,
// whatever is in its name.
func (s *step) glob(src, p string) ([]string, error) {
	if s.dir == "" || !filepath.IsLocal(src) {
		return filepath.Glob(p)
	}
	found, err := fs.Glob(os.DirFS(s.dir), path.Clean(filepath.ToSlash(src)))
	for i, f := range found {
		found[i] = filepath.Join(s.dir, filepath.FromSlash(f))
	}
	return found, err
}

// mode is the configured one, or def.
func (s *step) mode(def fs.FileMode) (fs.FileMode, error) {
	if s.cfg.Mode == "" {
		return def, nil
	}
	m, err := strconv.ParseUint(strings.TrimPrefix(s.cfg.Mode, "0o"), 8, 32)
	if err != nil || m > 0o7777 {
		return 0, fmt.Errorf("mode: %q is not an octal mode such as 0644", s.cfg.Mode)
	}
	mode := fs.FileMode(m & 0o777)
	for bit, v := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= v
		}
	}
	return mode, nil
}

func (s *step) applyMode() error {
	m, err := s.mode(0)
	if err != nil || s.cfg.Mode == "" {
		return err
	}
	for name, n := range s.tree.nodes {
		switch {
		case name == ".":
		case n.mode.IsRegular():
			n.mode = m
		case n.mode.IsDir():
			n.mode = fs.ModeDir | m.Perm() | m.Perm()&0o444>>2
		}
	}
	return nil
}

// Key implements provisioner.Provisioner. A download changes nothing in the
// guest: its key is good as long as what it brings is there.
func (s *step) Key(context.Context) (in artifact.Inputs, ok bool, err error) {
	k := s.cfg
	if k.Keyed != nil {
		k = *k.Keyed
	}
	if s.tree == nil {
		in.Add("download", k.Source+strings.Join(k.Sources, ""))
		in.Add("destination", k.Destination)
		_, err := os.Stat(s.local()) // not there: it must run
		return in, err == nil, nil
	}
	in.Add("destination", s.into)
	in.Add("owner", k.Owner)
	in.Add("group", k.Group)
	in.Add("mode", k.Mode)
	in.Add("sudo", fmt.Sprint(k.Sudo))
	if k.Content != nil {
		in.Add("content", *k.Content)
		in.Add("name", path.Base(s.cfg.Destination))
		return in, true, nil
	}
	return in, true, s.tree.key(&in)
}

// Provision implements provisioner.Provisioner.
func (s *step) Provision(ctx context.Context, g provisioner.Guest) error {
	if s.tree == nil {
		return s.download(ctx, g)
	}
	if s.cfg.Sudo {
		return s.staged(ctx, g)
	}
	if err := g.Upload(ctx, s.into, s.tree); err != nil {
		return err
	}
	owner := owner(s.cfg.Owner, s.cfg.Group)
	if owner == "" {
		return nil
	}
	err := g.Run(ctx, provisioner.Cmd{
		Line:  `cd "$D" && xargs -0 chown -h "$O"`,
		Env:   map[string]string{"D": s.into, "O": owner},
		Stdin: strings.NewReader(s.list()),
	})
	return said(err, "chown "+owner)
}

// list names all that was uploaded for xargs -0.
func (s *step) list() string {
	var b strings.Builder
	for _, n := range s.tree.names() {
		b.WriteString("./" + n + "\x00")
	}
	return b.String()
}

// staged uploads as the user into a directory of its own, and lets root put it
// where it belongs.
func (s *step) staged(ctx context.Context, g provisioner.Guest) error {
	var out strings.Builder
	if err := g.Run(ctx, provisioner.Cmd{Line: `umask 077; mktemp -d /tmp/rebake.XXXXXXXXXX`, Stdout: &out}); err != nil {
		return said(err, "make a directory to upload to")
	}
	stage := strings.TrimSpace(out.String())
	if !strings.HasPrefix(stage, "/tmp/rebake.") {
		return fmt.Errorf("make a directory to upload to: mktemp answered %q", stage)
	}
	if err := g.Upload(ctx, stage, s.tree); err != nil {
		return err
	}
	o := owner(s.cfg.Owner, s.cfg.Group)
	if s.cfg.Owner == "" {
		o = "0:" + strings.TrimPrefix(o, ":")
		if s.cfg.Group == "" {
			o = "0:0"
		}
	}
	err := g.Run(ctx, provisioner.Cmd{
		Line: `cd "$S" && chown -hR "$O" . && mkdir -p "$D" && for f in * .[!.]* ..?*; do ` +
			`if [ -e "$f" ] || [ -L "$f" ]; then cp -a "./$f" "$D/" || exit 1; fi; done && cd / && rm -rf "$S"`,
		Env:  map[string]string{"S": stage, "D": s.into, "O": o},
		Sudo: true,
	})
	return said(err, "copy to "+s.into)
}

// owner is the argument of chown, "" for none.
func owner(user, group string) string {
	if group == "" {
		return user
	}
	return user + ":" + group
}

// said adds what a failed command printed.
func said(err error, what string) error {
	var exit *provisioner.ExitError
	if errors.As(err, &exit) && exit.Output != "" {
		return fmt.Errorf("%s: %w: %s", what, err, exit.Output)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// local is where a download goes.
func (s *step) local() string {
	p := s.cfg.Destination
	if !filepath.IsAbs(p) {
		p = filepath.Join(s.dir, p)
	}
	if st, err := os.Stat(p); strings.HasSuffix(s.cfg.Destination, "/") || err == nil && st.IsDir() {
		p = filepath.Join(p, path.Base(s.cfg.Source+strings.Join(s.cfg.Sources, "")))
	}
	return p
}

// download writes beside the destination and renames: a cut-off one shows nothing.
func (s *step) download(ctx context.Context, g provisioner.Guest) (err error) {
	dst := s.local()
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	mode, err := s.mode(0o644)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(dst), "."+filepath.Base(dst)+".*") // 0600 until it is whole
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	err = g.Download(ctx, s.cfg.Source+strings.Join(s.cfg.Sources, ""), f)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), dst)
}
