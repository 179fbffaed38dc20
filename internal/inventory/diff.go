package inventory

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// What was done to a thing between two images.
const (
	Added   = "added"
	Removed = "removed"
	Up      = "up" // a package: a later version
	Down    = "down"
	Changed = "changed"
)

// Change is one difference. From and To are what there was and is: versions of a
// package, shells of a user, values of a setting, facts of a file that differ.
type Change struct {
	Name string `json:"name"`
	What string `json:"what"`
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

// Size is how much a directory grew, in bytes of its regular files.
type Size struct {
	Dir  string `json:"dir"`
	Grew int64  `json:"grew"`
}

// Owned is how many files of one package were changed; Package "" is none.
type Owned struct {
	Package string `json:"package"`
	Added   int    `json:"added,omitempty"`
	Removed int    `json:"removed,omitempty"`
	Changed int    `json:"changed,omitempty"`
}

// Diff is what tells image B from image A. Lists are sorted by name. Where one of
// the two cannot tell (Inventory.Unknown), nothing is said: that is in Unknown.
type Diff struct {
	Packages []Change `json:"packages"`
	Config   []Change `json:"config"` // files below /etc
	Files    []Change `json:"files"`  // all others
	SetID    []string `json:"setid"`  // files that are setuid or setgid and were not
	Ports    []Change `json:"ports"`
	Users    []Change `json:"users"`
	Groups   []Change `json:"groups"`
	Units    []Change `json:"units"`
	Cron     []Change `json:"cron"`
	Kernel   []Change `json:"kernel"`
	SSHD     []Change `json:"sshd"`
	Sizes    []Size   `json:"sizes"`             // of the upper two levels, what grew or shrank
	Owners   []Owned  `json:"owners"`            // of the changed files, by package
	Unknown  []string `json:"unknown,omitempty"` // files, packages, ports, …
}

// Compare tells what was done to get from a to b. Compare(a, a) is empty.
func Compare(a, b *Inventory) Diff {
	d := Diff{
		Packages: comparePackages(a.Packages, b.Packages),
		Ports:    compare(set(a.Ports), set(b.Ports)), Units: compare(set(a.Units), set(b.Units)), Cron: compare(set(a.Cron), set(b.Cron)),
		Users:  compare(by(a.Users, User.parts), by(b.Users, User.parts)),
		Groups: compare(by(a.Groups, Group.parts), by(b.Groups, Group.parts)),
		Kernel: compare(kernels(a), kernels(b)), SSHD: compare(settings(a), settings(b)),
	}
	for part, l := range map[string]*[]Change{"packages": &d.Packages, "ports": &d.Ports, "units": &d.Units, "cron": &d.Cron, "sshd": &d.SSHD, "files": nil} {
		switch {
		case a.Unknown[part] != "" || b.Unknown[part] != "":
			d.Unknown = append(d.Unknown, part)
			if l != nil {
				*l = []Change{}
			}
		case part == "files":
			d.compareFiles(a.Files, b.Files)
		}
	}
	slices.Sort(d.Unknown)
	return d
}

func (u User) parts() (string, string) {
	return u.Name, fmt.Sprintf("uid %s, gid %s, %s, %s", u.UID, u.GID, u.Home, u.Shell)
}

func (g Group) parts() (string, string) {
	if g.Members == "" {
		return g.Name, "gid " + g.GID
	}
	return g.Name, "gid " + g.GID + ": " + g.Members
}

func set(l []string) map[string]string {
	m := make(map[string]string, len(l))
	for _, s := range l {
		m[s] = ""
	}
	return m
}

func by[T any](l []T, parts func(T) (string, string)) map[string]string {
	m := make(map[string]string, len(l))
	for _, e := range l {
		k, v := parts(e)
		m[k] = v
	}
	return m
}

func kernels(inv *Inventory) map[string]string {
	m := set(inv.Kernels)
	if len(inv.Kernels) == 0 && inv.Kernel != "" {
		m[inv.Kernel] = ""
	}
	return m
}

func settings(inv *Inventory) map[string]string {
	m := map[string]string{}
	for k, v := range inv.SSHD {
		m[k] = strings.Join(v, ", ")
	}
	return m
}

// compare is what was done to a map.
func compare(a, b map[string]string) []Change {
	out := []Change{}
	for k, from := range a {
		switch to, ok := b[k]; {
		case !ok:
			out = append(out, Change{k, Removed, from, ""})
		case from != to:
			out = append(out, Change{k, Changed, from, to})
		}
	}
	for k, to := range b {
		if _, ok := a[k]; !ok {
			out = append(out, Change{k, Added, "", to})
		}
	}
	slices.SortFunc(out, func(x, y Change) int { return cmp.Compare(x.Name, y.Name) })
	return out
}

// comparePackages pairs versions of one name: a package may be there in several.
func comparePackages(a, b []Package) []Change {
	versions := func(l []Package) map[string]string {
		m := map[string]string{}
		for _, p := range l {
			k := p.Name + ":" + p.Arch
			if p.Arch == "all" || p.Arch == "noarch" || p.Arch == "" { // may become one of an architecture
				k = p.Name
			}
			m[k] = strings.TrimPrefix(m[k]+" "+p.Version, " ")
		}
		return m
	}
	out := compare(versions(a), versions(b))
	for i := range out {
		if c := &out[i]; c.What == Changed && !strings.Contains(c.From+c.To, " ") {
			c.What = Up
			if CompareVersions(c.From, c.To) > 0 {
				c.What = Down
			}
		}
	}
	return out
}

// facts are what is compared of a file. Digests of two kinds say nothing about
// one another: size and mode have to do then.
func facts(f File, digest bool) string {
	s := fmt.Sprintf("%s %04o %d:%d", f.Type, f.Mode, f.UID, f.GID)
	switch f.Type {
	case "f":
		s += fmt.Sprintf(" %d bytes", f.Size)
		if digest && f.Digest != "" {
			s += " " + f.Digest
		}
	case "l":
		s += " to " + f.Link
	}
	return s
}

func comparable(a, b File) bool {
	ka, _, _ := strings.Cut(a.Digest, ":")
	kb, _, _ := strings.Cut(b.Digest, ":")
	return ka == kb
}

func (d *Diff) compareFiles(a, b []File) {
	d.Config, d.Files, d.SetID, d.Sizes, d.Owners = []Change{}, []Change{}, []string{}, []Size{}, []Owned{}
	was := make(map[string]File, len(a))
	sizes := map[string]int64{}
	for _, f := range a {
		was[f.Path] = f
		sizes[top(f.Path)] -= f.Size
	}
	is := make(map[string]bool, len(b))
	owners := map[string]*Owned{}
	add := func(c Change, owner string) {
		o := owners[owner]
		if o == nil {
			o = &Owned{Package: owner}
			owners[owner] = o
		}
		*map[string]*int{Added: &o.Added, Removed: &o.Removed, Changed: &o.Changed}[c.What]++
		if strings.HasPrefix(c.Name, "/etc/") {
			d.Config = append(d.Config, c)
		} else {
			d.Files = append(d.Files, c)
		}
	}
	for _, f := range b {
		is[f.Path] = true
		sizes[top(f.Path)] += f.Size
		old, ok := was[f.Path]
		if f.Type == "f" && f.Mode&0o6000 != 0 && (!ok || old.Type != "f" || old.Mode&0o6000&f.Mode != f.Mode&0o6000) {
			d.SetID = append(d.SetID, f.Path)
		}
		if digest := comparable(old, f); !ok {
			add(Change{f.Path, Added, "", facts(f, true)}, f.Package)
		} else if from, to := facts(old, digest), facts(f, digest); from != to {
			add(Change{f.Path, Changed, from, to}, f.Package)
		}
	}
	for _, f := range a {
		if !is[f.Path] {
			add(Change{f.Path, Removed, facts(f, true), ""}, f.Package)
		}
	}
	for _, l := range [][]Change{d.Config, d.Files} {
		slices.SortFunc(l, func(x, y Change) int { return cmp.Compare(x.Name, y.Name) })
	}
	slices.Sort(d.SetID)
	for _, name := range slices.Sorted(maps.Keys(owners)) {
		d.Owners = append(d.Owners, *owners[name])
	}
	for _, dir := range slices.Sorted(maps.Keys(sizes)) {
		if sizes[dir] != 0 {
			d.Sizes = append(d.Sizes, Size{dir, sizes[dir]})
		}
	}
}

// top is the directory of a file, at most two levels down.
func top(p string) string {
	f := strings.SplitN(strings.TrimPrefix(path.Dir(p), "/"), "/", 3)
	return "/" + strings.Join(f[:min(2, len(f))], "/")
}

// Gates are what --fail-on may name.
func Gates() []string {
	return []string{"config", "cron", "file", "group", "kernel", "package", "port", "setuid", "sshd", "unit", "user"}
}

// Broken are those of the gates that the diff does not pass, with how many changes
// there are. A gate about what one of the two cannot tell is not passed: "unknown". What
// only went away passes the gates setuid and port, which are about new dangers.
func (d Diff) Broken(gates []string) ([]string, error) {
	ports := 0
	for _, c := range d.Ports {
		if c.What != Removed {
			ports++
		}
	}
	n := map[string]int{"config": len(d.Config), "cron": len(d.Cron), "file": len(d.Files), "group": len(d.Groups), "kernel": len(d.Kernel),
		"package": len(d.Packages), "port": ports, "setuid": len(d.SetID), "sshd": len(d.SSHD), "unit": len(d.Units), "user": len(d.Users)}
	part := map[string]string{"config": "files", "file": "files", "setuid": "files", "package": "packages", "port": "ports", "unit": "units", "cron": "cron", "sshd": "sshd"}
	var out []string
	for _, g := range gates {
		count, ok := n[g]
		switch {
		case !ok:
			return nil, fmt.Errorf("no gate %q; there are %s", g, strings.Join(Gates(), ", "))
		case slices.Contains(d.Unknown, part[g]):
			out = append(out, g+": unknown, one of the images cannot tell its "+part[g])
		case count > 0:
			out = append(out, fmt.Sprintf("%s: %d", g, count))
		}
	}
	return out, nil
}
