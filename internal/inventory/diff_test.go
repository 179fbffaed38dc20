package inventory

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// random makes an inventory of a small world, so that two have much in common.
func random(r *rand.Rand) *Inventory {
	pick := func(l ...string) string { return l[r.IntN(len(l))] }
	inv := &Inventory{Format: 1, OS: map[string]string{"ID": "debian"}, SSHD: map[string][]string{"port": {pick("22", "2222")}}}
	for _, n := range []string{"a", "b", "c", "d"} {
		if r.IntN(3) > 0 {
			inv.Packages = append(inv.Packages, Package{"dpkg", n, pick("1.0", "1.0~rc1", "1:0.1", "1.10"), "amd64", n})
			inv.Users = append(inv.Users, User{n, pick("1", "2"), "1", "/", "/bin/sh"})
			inv.Units = append(inv.Units, n)
			inv.Ports = append(inv.Ports, "tcp "+n)
			inv.Files = append(inv.Files, File{Path: "/etc/" + n, Type: "f", Mode: 0o644, Digest: pick("sha256:1", "sha256:2", "md5:1", "")},
				File{Path: "/usr/bin/" + n, Type: "f", Mode: uint32(0o755 + r.IntN(2)*0o4000), Size: int64(r.IntN(2))})
		}
	}
	return inv
}

// apply does to a what the changes say.
func apply(a map[string]string, l []Change) map[string]string {
	for _, c := range l {
		if c.What == Removed {
			delete(a, c.Name)
		} else {
			a[c.Name] = c.To
		}
	}
	return a
}

func TestADiffIsWhatTellsTwoApart(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	versions := func(p Package) (string, string) { return p.Name + ":" + p.Arch, p.Version }
	file := func(f File) (string, string) { return f.Path, facts(f, true) }
	for range 500 {
		a, b := random(r), random(r)
		if s := Compare(a, a).Summary().String(); s != "nothing changed" {
			t.Fatal(s)
		}
		if broken, err := Compare(a, a).Broken(Gates()); len(broken) > 0 || err != nil {
			t.Fatal(broken, err)
		}
		d := Compare(a, b)
		for what, c := range map[string][2]map[string]string{
			"packages": {apply(by(a.Packages, versions), d.Packages), by(b.Packages, versions)},
			"users":    {apply(by(a.Users, User.parts), d.Users), by(b.Users, User.parts)},
			"units":    {apply(set(a.Units), d.Units), set(b.Units)},
			"ports":    {apply(set(a.Ports), d.Ports), set(b.Ports)},
			"sshd":     {apply(settings(a), d.SSHD), settings(b)},
		} {
			if !reflect.DeepEqual(c[0], c[1]) {
				t.Fatalf("%s: %v is not %v", what, c[0], c[1])
			}
		}
		{
			got, want := apply(by(a.Files, file), append(slices.Clone(d.Config), d.Files...)), by(b.Files, file)
			for _, f := range b.Files { // digests of two kinds are not compared
				if i := slices.IndexFunc(a.Files, func(o File) bool { return o.Path == f.Path }); i >= 0 && !comparable(a.Files[i], f) {
					delete(got, f.Path)
					delete(want, f.Path)
				}
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("files: %v is not %v", got, want)
			}
		}
		for _, c := range d.Packages {
			if back := Compare(b, a).Packages; !slices.ContainsFunc(back, func(o Change) bool {
				return o.Name == c.Name && o.From == c.To && o.What == map[string]string{Up: Down, Down: Up, Added: Removed, Removed: Added}[c.What]
			}) {
				t.Fatalf("%v, and back %v", c, back)
			}
		}
	}
}

func TestGatesAndSummary(t *testing.T) {
	a := &Inventory{Packages: []Package{{"dpkg", "nginx", "1.22-9", "amd64", ""}}, Ports: []string{"tcp 0.0.0.0:80"}, Files: []File{{Path: "/usr/bin/x", Type: "f", Mode: 0o755}}}
	b := &Inventory{Packages: []Package{{"dpkg", "nginx", "1.22-10", "amd64", ""}}, Ports: []string{"tcp 0.0.0.0:22"}, Files: []File{{Path: "/usr/bin/x", Type: "f", Mode: 0o4755}}}
	d := Compare(a, b)
	if got := d.Summary(); got.Text != "packages: 1 up; ports: 1 added, 1 removed; other files: 1 changed; new setuid or setgid: 1" || got.Counts["ports"][Removed] != 1 || len(got.Packages) != 1 {
		t.Errorf("%+v", got)
	}
	if got, err := d.Broken([]string{"setuid", "port", "user"}); err != nil || strings.Join(got, ", ") != "setuid: 1, port: 1" {
		t.Error(got, err)
	}
	if got, _ := Compare(b, a).Broken([]string{"setuid"}); len(got) > 0 {
		t.Error(got)
	}
	if _, err := d.Broken([]string{"suid"}); err == nil || !strings.Contains(err.Error(), "there are config, cron") {
		t.Error(err)
	}
	b.Files, b.Packages, b.Unknown = nil, nil, map[string]string{"files": "not asked for", "packages": "no dpkg-query"}
	for _, d := range []Diff{Compare(a, b), Compare(b, a), Compare(b, b)} {
		if got, _ := d.Broken([]string{"setuid", "package", "user"}); len(got) != 2 || !strings.HasPrefix(got[0], "setuid: unknown") || !strings.HasPrefix(got[1], "package: unknown") {
			t.Errorf("%q: a gate passed, and nobody can tell", got)
		}
		if got := d.Summary().Text; !strings.HasSuffix(got, "unknown: files, packages") || len(d.Packages)+len(d.Files) > 0 {
			t.Errorf("%s: %+v", got, d)
		}
	}
}

// The cases of deb-version(7), in order.
func TestVersions(t *testing.T) {
	l := []string{"1.0~~", "1.0~~a", "1.0~", "1.0", "1.0-1", "1.0-1+deb12u1", "1.0-2", "1.0-10", "1.0a", "1.0+", "1.9", "1.10", "2", "1:0.1"}
	for i := range l {
		for j := range l {
			if got, want := CompareVersions(l[i], l[j]), min(max(i-j, -1), 1); min(max(got, -1), 1) != want {
				t.Errorf("%s against %s is %d", l[i], l[j], got)
			}
		}
	}
	if CompareVersions("0:1.0-0", "1.0") != 0 {
		t.Error("0 is nothing")
	}
}
