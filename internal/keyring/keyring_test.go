package keyring_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rebake/rebake/internal/keyring"
	"github.com/rebake/rebake/internal/statement"
)

func TestKeyring(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	d := keyring.Dir(dir)
	if l, err := d.List(); err != nil || len(l) != 0 {
		t.Fatal(l, err)
	}
	made, err := d.Generate("release", statement.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(dir, "release.key"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatal(st.Mode(), err)
	}
	if _, err := d.Generate("release", statement.ECDSAP256); !errors.Is(err, keyring.ErrExists) {
		t.Error("written over:", err)
	}
	k, err := d.Private("release", "")
	if err != nil || !k.Public().Same(made) {
		t.Fatal(err)
	}
	byPath, err := d.Public("keys/release.pub", filepath.Dir(dir))
	if err != nil || !byPath.Same(made) || byPath.Name != "release" {
		t.Fatal(byPath, err)
	}
	// Cut off between the halves: the public one follows from the private one.
	if err := os.Remove(filepath.Join(dir, "release.pub")); err != nil {
		t.Fatal(err)
	}
	if l, err := d.List(); err != nil || len(l) != 1 || !l[0].Same(made) {
		t.Fatal(l, err)
	}
	if err := os.Chmod(filepath.Join(dir, "release.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Private("release", ""); err == nil || !strings.Contains(err.Error(), "others may read") {
		t.Error(err)
	}
	for spec, want := range map[string]string{"nobody": "rebake key generate nobody", "./nobody.pub": "no such file"} {
		if _, err := d.Public(spec, dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", spec, err)
		}
		if _, err := d.Private(spec, dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", spec, err)
		}
	}
	// Killed before the key had its name.
	if err := os.Chmod(filepath.Join(dir, "release.key"), 0o600); err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(dir, ".new-123")
	if err := os.WriteFile(half, []byte("half a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := d.List(); err != nil || len(l) != 1 {
		t.Error(l, err)
	}
	if gone, err := d.Clean(); err != nil || len(gone) != 1 || gone[0] != half {
		t.Error(gone, err)
	}
	if gone, err := keyring.Dir(filepath.Join(dir, "none")).Clean(); err != nil || len(gone) != 0 {
		t.Error(gone, err)
	}
	for _, name := range []string{"", "../x", "a/b", "-x", "a.b"} {
		if _, err := d.Generate(name, statement.Ed25519); err == nil {
			t.Errorf("%q names a key", name)
		}
	}
}
