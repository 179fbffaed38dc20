package file_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/rebake/rebake/provisioner"
	"github.com/rebake/rebake/provisioner/file"
	"github.com/rebake/rebake/test/fake"
)

func ptr(s string) *string { return &s }

// site makes a directory to upload from.
func site(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, mode := range map[string]fs.FileMode{"site/index.html": 0o644, "site/run.sh": 0o755, "site/.git/config": 0o644, "site/css/a.css": 0o600, "one.conf": 0o640, "two.conf": 0o644} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("index.html", filepath.Join(dir, "site/home")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestWhereSourcesGo(t *testing.T) {
	dir := site(t)
	for name, c := range map[string]struct {
		cfg  file.Config
		want string
	}{
		"file to a name":       {file.Config{Source: "one.conf", Destination: "/etc/x.conf"}, "/etc/x.conf -rw-r-----"},
		"file to a directory":  {file.Config{Source: "one.conf", Destination: "/etc/"}, "/etc/one.conf -rw-r-----"},
		"directory":            {file.Config{Source: "site", Destination: "/srv", Exclude: []string{".git/", "*.css"}}, "/srv/site drwxr-xr-x; /srv/site/css drwxr-xr-x; /srv/site/home -> index.html; /srv/site/index.html -rw-r--r--; /srv/site/run.sh -rwxr-xr-x"},
		"directory's contents": {file.Config{Source: "site/", Destination: "/srv/", Exclude: []string{".git", "css/a.css", "run.sh"}}, "/srv/css drwxr-xr-x; /srv/home -> index.html; /srv/index.html -rw-r--r--"},
		"glob":                 {file.Config{Source: "*.conf", Destination: "/etc/conf.d"}, "/etc/conf.d/one.conf -rw-r-----; /etc/conf.d/two.conf -rw-r--r--"},
		"several":              {file.Config{Sources: []string{"one.conf", "site/css"}, Destination: "/etc"}, "/etc/css drwxr-xr-x; /etc/css/a.css -rw-------; /etc/one.conf -rw-r-----"},
		"content":              {file.Config{Content: ptr("hi"), Destination: "/etc/motd"}, "/etc/motd -rw-r--r--"},
		"empty content":        {file.Config{Content: ptr(""), Destination: "/etc/motd"}, "/etc/motd -rw-r--r--"},
		"mode":                 {file.Config{Source: "site/css", Destination: "/srv", Mode: "0640"}, "/srv/css drwxr-x---; /srv/css/a.css -rw-r-----"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := file.New(c.cfg, dir)
			if err != nil {
				t.Fatal(err)
			}
			g := &fake.Guest{}
			if err := p.Provision(t.Context(), g); err != nil {
				t.Fatal(err)
			}
			var got []string
			for n, f := range g.Files() {
				if f.Link != "" {
					got = append(got, n+" -> "+f.Link)
				} else if f.Mode != fs.ModeDir|0o755 || !strings.Contains(c.want, n+";") && strings.Contains(c.want, n+" d") {
					got = append(got, n+" "+f.Mode.String())
				} else if strings.Contains(c.want, n+" ") {
					got = append(got, n+" "+f.Mode.String())
				}
			}
			sort.Strings(got)
			if s := strings.Join(got, "; "); s != c.want {
				t.Errorf("got  %s\nwant %s", s, c.want)
			}
		})
	}
}

func TestTheTemplatesFolderIsNoPattern(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web [v2]*")
	if err := os.MkdirAll(filepath.Join(dir, "conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "conf", "a.conf"), []byte("a"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, src := range []string{"conf/*.conf", "conf/a.conf", "./con?/"} {
		if _, err := file.New(file.Config{Source: src, Destination: "/etc/conf.d/"}, dir); err != nil {
			t.Errorf("%s: %v", src, err)
		}
	}
}

func TestOwner(t *testing.T) {
	g := &fake.Guest{}
	p, err := file.New(file.Config{Content: ptr("x"), Destination: "/srv/x", Owner: "www-data", Group: "adm"}, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Provision(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	c := g.Commands()
	if len(c) != 1 || c[0].Env["O"] != "www-data:adm" || !strings.Contains(c[0].Line, "chown") {
		t.Errorf("ran %v", c)
	}
}

func TestSudoPutsThingsThereAsRoot(t *testing.T) {
	g := &fake.Guest{Answer: func(c provisioner.Cmd) *fake.Reply {
		if strings.Contains(c.Line, "mktemp") {
			return &fake.Reply{Stdout: "/tmp/rebake.abc\n"}
		}
		return nil
	}}
	p, err := file.New(file.Config{Content: ptr("x"), Destination: "/etc/x", Sudo: true}, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Provision(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	if _, ok := g.Files()["/tmp/rebake.abc/x"]; !ok {
		t.Errorf("not staged: %v", g.Files())
	}
	last := g.Commands()[1]
	if !last.Sudo || last.Env["D"] != "/etc" || last.Env["O"] != "0:0" {
		t.Errorf("ran %+v", last)
	}
}

func TestDownload(t *testing.T) {
	dir, g := t.TempDir(), &fake.Guest{}
	g.SetFile("/var/log/build.log", fake.File{Data: "log"})
	for dst, want := range map[string]string{"out/": "out/build.log", "other.log": "other.log"} {
		p, err := file.New(file.Config{Source: "/var/log/build.log", Destination: dst, Direction: "download"}, dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok, err := p.Key(t.Context()); ok || err != nil {
			t.Errorf("before: ok %v, %v", ok, err)
		}
		if err := p.Provision(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, want)); err != nil || string(b) != "log" {
			t.Errorf("%s: %q, %v", want, b, err)
		}
		if _, ok, err := p.Key(t.Context()); !ok || err != nil {
			t.Errorf("after: ok %v, %v", ok, err)
		}
	}
	p, err := file.New(file.Config{Source: "/missing", Destination: "out/", Direction: "download"}, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Provision(t.Context(), g); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if l, err := os.ReadDir(filepath.Join(dir, "out")); err != nil || len(l) != 1 {
		t.Errorf("a failed download left %v, %v", l, err)
	}
}

func TestBadConfigIsSaidBeforeABoot(t *testing.T) {
	dir := site(t)
	for name, c := range map[string]struct {
		cfg  file.Config
		want string
	}{
		"missing source":       {file.Config{Source: "nope", Destination: "/x"}, "source nope: no such file"},
		"glob of nothing":      {file.Config{Source: "*.nope", Destination: "/x"}, "nothing matches"},
		"no destination":       {file.Config{Source: "site"}, "destination is missing"},
		"relative destination": {file.Config{Source: "site", Destination: "x"}, "not an absolute path"},
		"both":                 {file.Config{Source: "site", Content: ptr(""), Destination: "/x"}, "either source(s) or content"},
		"neither":              {file.Config{Destination: "/x"}, "either source(s) or content"},
		"content to directory": {file.Config{Content: ptr(""), Destination: "/x/"}, "name of a file"},
		"mode":                 {file.Config{Source: "site", Destination: "/x", Mode: "rw"}, "octal mode"},
		"owner":                {file.Config{Source: "site", Destination: "/x", Owner: "a b"}, "name of an account"},
		"direction":            {file.Config{Source: "site", Destination: "/x", Direction: "sideways"}, "neither upload nor download"},
		"clash":                {file.Config{Sources: []string{"one.conf", "one.conf"}, Destination: "/x"}, "two sources would become one.conf"},
		"exclude":              {file.Config{Source: "site", Destination: "/x", Exclude: []string{"[a"}}, "exclude"},
	} {
		if _, err := file.New(c.cfg, dir); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestKey(t *testing.T) {
	a, b := site(t), site(t)
	key := func(dir string, cfg file.Config) string {
		t.Helper()
		p, err := file.New(cfg, dir)
		if err != nil {
			t.Fatal(err)
		}
		k, ok, err := p.Key(context.Background())
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		return string(k)
	}
	cfg := file.Config{Source: "site/", Destination: "/srv"}
	first := key(a, cfg)
	if key(b, cfg) != first {
		t.Error("the same files elsewhere, of another time, have another key")
	}
	change := func(what string, f func() error) {
		t.Helper()
		if err := f(); err != nil {
			t.Fatal(err)
		}
		if key(b, cfg) == first {
			t.Errorf("%s did not change the key", what)
		}
		b = site(t)
	}
	change("a mode", func() error { return os.Chmod(filepath.Join(b, "site/run.sh"), 0o700) })
	change("a byte", func() error { return os.WriteFile(filepath.Join(b, "site/run.sh"), []byte("y"), 0o755) })
	change("a name", func() error { return os.Rename(filepath.Join(b, "site/run.sh"), filepath.Join(b, "site/ran.sh")) })
	change("a link's target", func() error {
		return errors.Join(os.Remove(filepath.Join(b, "site/home")), os.Symlink("run.sh", filepath.Join(b, "site/home")))
	})
	secret := func(v string) string {
		return key(a, file.Config{Content: ptr("t=" + v), Destination: "/x", Keyed: &file.Config{Content: ptr("t=var:token"), Destination: "/x"}})
	}
	if k := secret("hunter2"); k != secret("hunter3") || strings.Contains(k, "hunter2") {
		t.Error("a secret's value is in the key")
	}
	if key(a, file.Config{Content: ptr("t=a"), Destination: "/x"}) == key(a, file.Config{Content: ptr("t=b"), Destination: "/x"}) {
		t.Error("content is not in the key")
	}
}
