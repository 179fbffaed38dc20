package qemu

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/internal/state"
)

func TestSweepRemovesWhatIsHalfMadeAndLeavesWhatIsInTheMaking(t *testing.T) {
	d := state.Dir(t.TempDir())
	put := func(name string) string {
		p := filepath.Join(d.Bases(), name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	dead, tree, live, whole := put("a.raw.tmp"), put("a.raw.root/etc/passwd"), put("b.raw.tmp"), put("c.raw")
	l := flock.New(filepath.Join(d.Bases(), "b.raw.lock"))
	if err := l.Lock(); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	gone, err := Sweep(d)
	if err != nil || len(gone) != 2 {
		t.Fatalf("%v, %v", gone, err)
	}
	for p, want := range map[string]bool{dead: false, tree: false, live: true, whole: true} {
		if _, err := os.Stat(p); (err == nil) != want {
			t.Errorf("%s: there is %v, want %v", p, err == nil, want)
		}
	}
}
