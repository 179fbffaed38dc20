package inventory

import (
	"fmt"
	"slices"
	"strings"
)

// Thing is something that an image may hold: its kind, of Things, and its name.
type Thing struct{ Kind, Name string }

func (t Thing) String() string { return t.Kind + " " + t.Name }

// Things are the kinds whose history can be told.
func Things() []string { return []string{"package", "file", "user", "group", "unit", "port"} }

// State is what an image says of a thing: versions of a package, facts of a file.
// A port is named by its number or as it is listed. It is an error if it cannot tell.
func (inv *Inventory) State(t Thing) (state string, there bool, err error) {
	part := map[string]string{"package": "packages", "file": "files", "unit": "units", "port": "ports"}[t.Kind]
	if why := inv.Unknown[part]; why != "" {
		return "", false, fmt.Errorf("its %s are not known: %s", part, why)
	}
	var found []string
	switch t.Kind {
	case "package":
		for _, p := range inv.Packages {
			if p.Name == t.Name || p.Name+":"+p.Arch == t.Name {
				found = append(found, p.Version)
			}
		}
	case "file":
		for _, f := range inv.Files {
			if f.Path == t.Name {
				found = append(found, facts(f, true))
			}
		}
	case "user":
		for _, u := range inv.Users {
			if name, is := u.parts(); name == t.Name {
				found = append(found, is)
			}
		}
	case "group":
		for _, g := range inv.Groups {
			if name, is := g.parts(); name == t.Name {
				found = append(found, is)
			}
		}
	case "unit":
		for _, u := range inv.Units {
			if u == t.Name || strings.HasSuffix(u, "/"+t.Name) {
				found = append(found, u)
			}
		}
	case "port":
		for _, p := range inv.Ports {
			if p == t.Name || strings.HasSuffix(p, ":"+t.Name) {
				found = append(found, p)
			}
		}
	default:
		return "", false, fmt.Errorf("%q is none of %s", t.Kind, strings.Join(Things(), ", "))
	}
	slices.Sort(found)
	return strings.Join(slices.Compact(found), ", "), len(found) > 0, nil
}

// Became says what was done to a thing between two states; "" for nothing.
func (t Thing) Became(from string, was bool, to string, is bool) string {
	switch {
	case was == is && from == to:
		return ""
	case !was:
		return Added
	case !is:
		return Removed
	case t.Kind == "package" && !strings.Contains(from+to, ", "):
		if CompareVersions(from, to) > 0 {
			return Down
		}
		return Up
	}
	return Changed
}
