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
	if want := []string{"amazon", "child", "from-url", "minimal", "web"}; !slices.Equal(Names(), want) {
		t.Errorf("got %v", Names())
	}
	if _, err := Write("../etc", t.TempDir()); err == nil {
		t.Error("an unknown name was written")
	}
}
