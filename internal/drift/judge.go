package drift

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// file is a changed file as the guest told of it.
type file struct {
	path  string
	mtime int64
}

// said is what the script printed.
type said struct {
	boot, since int64
	files, dirs []file
	count       int
	more, whole bool
	owner       map[string]string // path → package
	differs     map[string]bool   // content is not as shipped
	gone        []Change
	arch        string
	present     []Package // by the time of their file list, of the status there is now
	log         []Package // what dpkg.log tells, in its order
}

// errWords is output that is not the script's.
var errWords = errors.New("the guest's answer makes no sense")

func parse(out string) (said, error) {
	s := said{owner: map[string]string{}, differs: map[string]bool{}}
	for len(out) > 0 {
		rec, rest, ok := strings.Cut(out, "\x00")
		if !ok {
			break
		}
		out = rest
		tag, text, _ := strings.Cut(rec, " ")
		if err := s.take(tag, text); err != nil {
			return s, fmt.Errorf("%w: %.200q", errWords, rec)
		}
	}
	if !s.whole || s.boot == 0 || s.since == 0 {
		return s, fmt.Errorf("%w: it ended too early", errWords)
	}
	return s, nil
}

func (s *said) take(tag, text string) (err error) {
	switch tag {
	case "b":
		s.boot, err = strconv.ParseInt(text, 10, 64)
	case "s":
		s.since, err = strconv.ParseInt(text, 10, 64)
	case "n":
		s.count, err = strconv.Atoi(strings.TrimSpace(text))
	case "x":
		s.more = true
	case "f", "d":
		f := strings.SplitN(text, " ", 4)
		if len(f) != 4 || !strings.HasPrefix(f[3], "/") {
			return errWords
		}
		one := file{path: f[3]}
		secs, _, _ := strings.Cut(f[2], ".")
		if one.mtime, err = strconv.ParseInt(secs, 10, 64); err != nil {
			return err
		}
		if tag == "f" {
			s.files = append(s.files, one)
		} else {
			s.dirs = append(s.dirs, one)
		}
	case "o", "m":
		pkg, path, ok := strings.Cut(text, " ")
		if !ok {
			return errWords
		}
		if tag == "o" {
			s.owner[path] = pkg
		} else {
			s.gone = append(s.gone, Change{Path: path, Package: pkg, What: Deleted})
		}
	case "v":
		s.differs[text] = true
	case "a":
		s.arch = text
	case "p": // MTIME STATUS PACKAGE VERSION
		f := strings.Fields(text)
		if len(f) < 3 {
			return errWords
		}
		p := Package{Name: f[2], What: Removed}
		if strings.HasPrefix(f[1], "ii") && len(f) > 3 {
			p.What, p.To = Installed, f[3]
		}
		s.present = append(s.present, p)
	case "l": // DATE TIME ACTION PACKAGE OLD NEW
		f := strings.Fields(text)
		if len(f) != 6 {
			return errWords
		}
		s.log = append(s.log, Package{Name: f[3], From: none(f[4]), To: none(f[5])})
	case ".":
		s.whole = true
	default:
		return errWords
	}
	return err
}

func none(version string) string {
	if version == "<none>" {
		return ""
	}
	return version
}

// judge makes a report of what the script printed.
func judge(out string) (Report, error) {
	s, err := parse(out)
	if err != nil {
		return Report{}, err
	}
	r := Report{Boot: time.Unix(s.boot, 0).UTC(), Since: time.Unix(s.since, 0).UTC(), Changed: []Change{}, Packages: s.packages(), More: s.more}
	byPackage := map[string]*Package{}
	for i := range r.Packages {
		byPackage[r.Packages[i].Name] = &r.Packages[i]
	}
	seen := map[string]bool{}
	for _, c := range s.changes() {
		if seen[c.Path] {
			continue
		}
		seen[c.Path] = true
		if p := byPackage[c.Package]; p != nil && (c.What == Mode || c.What == Touched) {
			p.Files++ // its upgrade wrote it, and dpkg finds it as shipped
			continue
		}
		r.Changed = append(r.Changed, c)
	}
	r.Truncated = max(0, s.count-min(len(s.files), maxPaths))
	slices.SortFunc(r.Changed, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	if over := len(r.Changed) - maxPaths; over > 0 {
		r.Changed, r.Truncated = r.Changed[:maxPaths], r.Truncated+over
	}
	return r, nil
}

// changes are the files, then the directories whose entries are not what was
// changed (those tell for themselves), then what is gone.
func (s said) changes() (all []Change) {
	for _, f := range s.files {
		all = append(all, s.change(f))
	}
	for _, d := range s.dirs {
		if d.mtime <= s.since {
			all = append(all, Change{Path: d.path, Package: s.name(s.owner[d.path]), What: Mode})
		}
	}
	for _, g := range s.gone {
		g.Package = s.name(g.Package)
		all = append(all, g)
	}
	return all
}

func (s said) change(f file) Change {
	c := Change{Path: f.path, Package: s.name(s.owner[f.path])}
	switch {
	case c.Package == "":
		c.What = Written
	case s.differs[f.path]:
		c.What = Changed
	case f.mtime > s.since:
		c.What = Touched
	default:
		c.What = Mode
	}
	return c
}

// name is a package's without the guest's own architecture, which some of
// dpkg's lists say and others do not.
func (s said) name(pkg string) string {
	if s.arch == "" {
		return pkg
	}
	return strings.TrimSuffix(strings.TrimSuffix(pkg, ":"+s.arch), ":all")
}

// packages are those that were changed: by the log, which knows both versions,
// and by the time of their file lists, which nobody rotates away.
func (s said) packages() []Package {
	all := map[string]*Package{}
	for _, l := range s.log {
		l.Name = s.name(l.Name)
		if p := all[l.Name]; p != nil { // the first From, the last To
			p.To = l.To
			continue
		}
		all[l.Name] = &l
	}
	for name, p := range all {
		switch {
		case p.From == "" && p.To == "": // came and went
			delete(all, name)
		case p.From == "":
			p.What = Installed
		case p.To == "":
			p.What = Removed
		case p.From == p.To:
			p.What = Reinstalled
		default:
			p.What = Upgraded
		}
	}
	for _, p := range s.present {
		if p.Name = s.name(p.Name); all[p.Name] == nil {
			all[p.Name] = &p
		}
	}
	out := make([]Package, 0, len(all))
	for _, p := range all {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b Package) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
