package templates

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestWriteGivesATemplateAndItsFiles(t *testing.T) {
	for _, name := range Names() {
		dir := filepath.Join(t.TempDir(), "new")
		files, err := Write(name, dir)
		if err != nil {
			t.Fatal(err)
		}
		if files[0] != filepath.Join(dir, name+".yaml") {
			t.Errorf("%s: first is %s", name, files[0])
		}
		for _, f := range files {
			got, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			rel, err := filepath.Rel(dir, f)
			if err != nil {
				t.Fatal(err)
			}
			want, err := content.ReadFile(filepath.ToSlash(rel))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s differs, %v", f, err)
			}
		}
		// Every local path that the template names was written too.
		text, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(text), "\n") {
			if _, path, ok := strings.Cut(line, "source: "); ok {
				if _, err := os.Stat(filepath.Join(dir, path)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
}

func TestWriteOverwritesNothing(t *testing.T) {
	dir := t.TempDir()
	mine := filepath.Join(dir, "files", "web", "nginx.conf") // not the first that is written
	if err := os.MkdirAll(filepath.Dir(mine), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(mine, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Write("web", dir); err == nil || !strings.Contains(err.Error(), mine+" exists already") {
		t.Errorf("got %v", err)
	}
	if b, err := os.ReadFile(mine); err != nil || string(b) != "mine" {
		t.Errorf("it is %q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "web.yaml")); !os.IsNotExist(err) {
		t.Errorf("web.yaml was written, %v", err)
	}
}

func TestNames(t *testing.T) {
	if want := []string{"amazon", "child", "from-url", "minimal", "web", "web-aws"}; !slices.Equal(Names(), want) {
		t.Errorf("got %v", Names())
	}
	if _, err := Write("../etc", t.TempDir()); err == nil {
		t.Error("an unknown name was written")
	}
}

// The two levels of the same thing: what is baked, tested and how it is deployed
// is one text, for a fleet on this computer and for one in AWS.
func TestTheAWSTemplateIsTheLocalOne(t *testing.T) {
	rest := func(name string) string {
		text, err := content.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		skip := -1 // the indentation of what differs
		for _, line := range strings.Split(string(text), "\n") {
			indent := len(line) - len(strings.TrimLeft(line, " "))
			if skip >= 0 && (indent > skip || strings.TrimSpace(line) == "") {
				continue
			}
			skip = -1
			switch strings.TrimSpace(line) {
			case "variables:", "build:", "pool:", "router:":
				skip = indent
			default:
				if !strings.HasPrefix(line, "#") {
					out = append(out, line)
				}
			}
		}
		return strings.Join(out, "\n")
	}
	local, cloud := rest("web.yaml"), rest("web-aws.yaml")
	if local != cloud {
		t.Errorf("they differ in more than variables, build, pool and router:\n%s\n---\n%s", local, cloud)
	}
	if !strings.Contains(local, "provision:") || !strings.Contains(local, "keep_old:") || strings.Contains(local, "haproxy") {
		t.Errorf("too much, or too little, was left out:\n%s", local)
	}
}
