package qemu

import (
	"os"
	"path/filepath"
	"strings"
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

// What a save left that was never finished goes with its machine, or by Sweep
// where the process was killed; so does a lock of nothing. What is held stays.
func TestUnfinishedCheckpointsGo(t *testing.T) {
	d := state.Dir(t.TempDir())
	dir := func(name string, files ...string) string {
		p := filepath.Join(d.Checkpoints(), name)
		if err := os.MkdirAll(p, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.WriteFile(filepath.Join(p, f), []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return p
	}
	lock := func(dir string) *flock.Flock {
		l, err := tryLock(dir+".lock", false)
		if err != nil || l == nil {
			t.Fatal(l, err)
		}
		return l
	}
	there := func(p string) bool { _, err := os.Stat(p); return err == nil }

	b := &Builder{deps: Deps{State: d}}
	half, whole := dir("half", layerName, "memory"), dir("whole", layerName, metaName)
	for _, p := range []string{half, whole} {
		b.hold("m", lock(p))
		b.begin("m", p)
	}
	if err := b.letGo("m"); err != nil {
		t.Fatal(err)
	}
	if there(half) || there(half+".lock") || !there(whole) {
		t.Errorf("after the machine: half %v, its lock %v, whole %v", there(half), there(half+".lock"), there(whole))
	}

	killed, making := dir("killed", layerName), dir("making", layerName)
	defer lock(making).Close()
	alone := filepath.Join(d.Checkpoints(), "alone")
	lock(alone).Close()
	lock(killed).Close()
	if _, err := Sweep(d); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]bool{killed: false, killed + ".lock": false, alone + ".lock": false, making: true, making + ".lock": true} {
		if there(p) != want {
			t.Errorf("%s: there is %v, want %v", filepath.Base(p), there(p), want)
		}
	}
}

func TestTheNoteOfABaseThatIsGoneKeepsNothing(t *testing.T) {
	d := state.Dir(t.TempDir())
	if err := os.MkdirAll(d.Bases(), 0o700); err != nil {
		t.Fatal(err)
	}
	content := "sha256:" + strings.Repeat("a", 64)
	for _, name := range []string{"here.raw", "here.raw.content", "gone.raw.content"} {
		if err := os.WriteFile(filepath.Join(d.Bases(), name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Contents(d); err != nil || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
}

// The image that a build is on is kept in the store while it is.
func TestTheImageOfARunningBuildIsKept(t *testing.T) {
	d := state.Dir(t.TempDir())
	held, idle := strings.Repeat("a", 64), strings.Repeat("b", 64)
	b := &Builder{deps: Deps{State: d}}
	for _, hex := range []string{held, idle} {
		if err := os.MkdirAll(d.Disks(), 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(d.Disks(), hex+".raw")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if ok, err := b.useBase("build-"+hex, path); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if err := b.letGo("build-" + idle); err != nil {
		t.Fatal(err)
	}
	if got, err := Contents(d); err != nil || len(got) != 1 || got[0].Hex() != held {
		t.Errorf("%v, %v", got, err)
	}
	if err := b.letGo("build-" + held); err != nil {
		t.Fatal(err)
	}
	if got, err := Contents(d); err != nil || len(got) != 0 {
		t.Errorf("afterwards: %v, %v", got, err)
	}
}
