package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/qemu"
	"github.com/rebake/rebake/internal/state"
)

// shelf is a store of which only Fetch is used.
type shelf struct {
	artifact.Store
	mu      sync.Mutex
	fetched int
}

func (s *shelf) Fetch(_ context.Context, _ artifact.Digest, path string, _ func(done, total int64)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetched++
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(1<<20), f.Close())
}

// bench stands for QEMU in tests of the pool's own logic: machines are
// entries of a map, as they are processes in reality.
type bench struct {
	mu      sync.Mutex
	next    int
	running map[string]int // by directory
	configs map[string]qemu.Config
	now     int // starts under way
	most    int
	meet    chan struct{} // if set: starts wait until so many are under way that it is closed
	fail    func(name string) error
}

func newBench() *bench { return &bench{running: map[string]int{}, configs: map[string]qemu.Config{}} }

func (b *bench) overlay(_ context.Context, path, backing string, _ int64) error {
	return os.WriteFile(path, []byte(backing), 0o600)
}

func (b *bench) start(_ context.Context, c qemu.Config) error {
	b.mu.Lock()
	b.now++
	b.most = max(b.most, b.now)
	if b.meet != nil && b.now == parallel {
		close(b.meet)
		b.meet = nil
	}
	meet := b.meet
	b.mu.Unlock()
	if meet != nil {
		select {
		case <-meet:
		case <-time.After(10 * time.Second):
			return errors.New("instances are not started side by side")
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now--
	if b.fail != nil {
		if err := b.fail(c.Name); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(c.Dir, "machine"), nil, 0o600); err != nil {
		return err
	}
	b.next++
	b.running[c.Dir], b.configs[c.Name] = b.next, c
	return nil
}

func (b *bench) look(dir string) (machine, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := os.Stat(filepath.Join(dir, "machine")); err != nil {
		return machine{}, err
	}
	pid := b.running[dir]
	return machine{pid: pid, running: pid != 0, ports: map[int]string{22: "127.0.0.1:2200", 80: "127.0.0.1:8000"}}, nil
}

func (b *bench) console(dir string, n int) (string, error) {
	if _, err := b.look(dir); err != nil {
		return "", err
	}
	return "hello from " + filepath.Base(dir) + "\n", nil
}

func (b *bench) remove(_ context.Context, dir string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.running, dir)
	return os.RemoveAll(dir)
}

func (b *bench) kill(dir string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.running, dir)
}

var blue = fleet.GroupID{Fleet: "web", Slot: fleet.Blue, Deployment: "01HZX3V5Q8J9K2M4N6P7R8ABCD"}

func image(n int) artifact.Image {
	return artifact.Image{
		Name: "web", Version: fmt.Sprintf("1.0.%d", n), User: "admin", Seed: "nocloud", DiskSize: 1 << 20,
		Digest: artifact.Digest(fmt.Sprintf("sha256:%064x", n)), Content: artifact.Digest(fmt.Sprintf("sha256:%064x", 1000+n)),
	}
}

func newPool(t *testing.T) (*Pool, *bench, *shelf) {
	t.Helper()
	b, s := newBench(), &shelf{}
	p, err := New(Config{}, Deps{State: state.Dir(t.TempDir()), Store: s}, "web")
	must(t, err)
	p.vms = b
	return p, b, s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func pids(t *testing.T, p *Pool) map[string]int {
	t.Helper()
	gs, err := p.Groups(context.Background(), "web")
	must(t, err)
	out := map[string]int{}
	for _, g := range gs {
		for _, in := range g.Instances {
			if in.Running != (in.PID != 0) {
				t.Errorf("%+v", in)
			}
			out[in.ID] = in.PID
		}
	}
	return out
}

func TestLaunchBringsTheGroupToItsSize(t *testing.T) {
	p, b, s := newPool(t)
	ctx := context.Background()
	for _, size := range []int{10, 10, 12, 3, 0, 2} {
		before := pids(t, p)
		must(t, p.Launch(ctx, blue, fleet.Spec{Image: image(1), Size: size, Ports: []int{80}}))
		after := pids(t, p)
		if len(after) != size || len(b.running) != size {
			t.Fatalf("size %d: %v", size, after)
		}
		for id, pid := range after {
			if old, ok := before[id]; ok && old != pid {
				t.Errorf("size %d: %s was started again", size, id)
			}
		}
	}
	if s.fetched != 1 {
		t.Errorf("image materialised %d times", s.fetched)
	}
}

func TestInstancesStartSideBySideWithinBounds(t *testing.T) {
	p, b, _ := newPool(t)
	b.meet = make(chan struct{})
	must(t, p.Launch(context.Background(), blue, fleet.Spec{Image: image(1), Size: 3 * parallel}))
	if b.most != parallel {
		t.Errorf("%d starts at a time, want %d", b.most, parallel)
	}
}

func TestAnInstanceIsToldWhoItIs(t *testing.T) {
	p, b, _ := newPool(t)
	must(t, p.Launch(context.Background(), blue, fleet.Spec{Image: image(1), Size: 2, Ports: []int{80}, UserData: "#!/bin/sh\n"}))
	one, two := b.configs["web-blue-r8abcd-1"], b.configs["web-blue-r8abcd-2"]
	if one.Name == "" || two.Name == "" {
		t.Fatalf("instances: %v", b.configs)
	}
	if s := one.Seed; s.InstanceID != one.Name || s.Hostname != one.Name || s.User != "admin" || s.Kind != "nocloud" || s.UserData != "#!/bin/sh\n" {
		t.Errorf("seed %+v", s)
	}
	if one.BindToOwner || one.RunDir == two.RunDir || string(one.Seed.HostKeyPEM) == string(two.Seed.HostKeyPEM) {
		t.Error("instances share a host key or a run directory, or die with their starter")
	}
	ep, err := p.Door(context.Background(), one.Name)
	must(t, err)
	host, err := ssh.ParsePrivateKey(one.Seed.HostKeyPEM)
	must(t, err)
	login, _, _, _, err := ssh.ParseAuthorizedKey([]byte(one.Seed.AuthorizedKeys[0]))
	must(t, err)
	if len(ep.HostKeys) != 1 || string(ep.HostKeys[0].Marshal()) != string(host.PublicKey().Marshal()) {
		t.Error("the pinned host key is not the one that was seeded")
	}
	if string(ep.Signer.PublicKey().Marshal()) != string(login.Marshal()) || ep.User != "admin" || ep.Addr != "127.0.0.1:2200" {
		t.Errorf("door %+v", ep)
	}
	err = filepath.WalkDir(string(p.deps.State), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if fi, err := d.Info(); err != nil || (fi.Mode().Perm()&0o077 != 0 && !strings.HasSuffix(path, ".raw")) && filepath.Base(path) != "machine" {
			t.Errorf("%s has mode %v (%v)", path, fi.Mode(), err)
		}
		return nil
	})
	must(t, err)
}

func TestADeadInstanceIsReplacedByAFreshOne(t *testing.T) {
	p, b, _ := newPool(t)
	ctx := context.Background()
	spec := fleet.Spec{Image: image(1), Size: 3}
	must(t, p.Launch(ctx, blue, spec))
	before := pids(t, p)
	dead := "web-blue-r8abcd-2"
	b.kill(p.dir("web", dead))
	mark := filepath.Join(p.dir("web", dead), "overlay.qcow2")
	must(t, os.WriteFile(mark, []byte("written by the dead one"), 0o600))
	if got := pids(t, p); len(got) != 3 || got[dead] != 0 {
		t.Errorf("a dead instance is not listed as such: %v", got)
	}
	if _, err := p.Door(ctx, dead); err == nil {
		t.Error("a dead instance has a door")
	}
	must(t, p.Launch(ctx, blue, spec))
	after := pids(t, p)
	if len(after) != 3 || after[dead] == 0 || after[dead] == before[dead] || after["web-blue-r8abcd-1"] != before["web-blue-r8abcd-1"] {
		t.Errorf("before %v, after %v", before, after)
	}
	if data, err := os.ReadFile(mark); err != nil || strings.Contains(string(data), "dead one") {
		t.Errorf("the old disk is used again: %q %v", data, err)
	}
}

func TestLaunchThatFailedInPartIsFinishedByTheNext(t *testing.T) {
	p, b, _ := newPool(t)
	ctx := context.Background()
	b.fail = func(name string) error {
		if strings.HasSuffix(name, "-2") {
			return errors.New("no more processes")
		}
		return nil
	}
	spec := fleet.Spec{Image: image(1), Size: 3}
	err := p.Launch(ctx, blue, spec)
	if err == nil || !strings.Contains(err.Error(), "web-blue-r8abcd-2: no more processes") {
		t.Errorf("launch: %v", err)
	}
	before := pids(t, p)
	if before["web-blue-r8abcd-1"] == 0 || before["web-blue-r8abcd-3"] == 0 {
		t.Errorf("one failure kept the others from starting: %v", before)
	}
	b.fail = nil
	must(t, p.Launch(ctx, blue, spec))
	if after := pids(t, p); after["web-blue-r8abcd-1"] != before["web-blue-r8abcd-1"] || after["web-blue-r8abcd-2"] == 0 {
		t.Errorf("before %v, after %v", before, after)
	}
}

// A kill -9 between any two steps leaves something with a name.
func TestRetireRemovesWhatAKillLeft(t *testing.T) {
	for name, leave := range map[string]func(*testing.T, *Pool){
		"only the group is written": func(t *testing.T, p *Pool) {
			must(t, p.record(blue, fleet.Spec{Image: image(1), Size: 2}))
		},
		"an instance's directory, nothing in it": func(t *testing.T, p *Pool) {
			must(t, p.record(blue, fleet.Spec{Image: image(1), Size: 2}))
			must(t, os.MkdirAll(p.dir("web", instanceID(blue, 1)), 0o700))
		},
		"instances that run": func(t *testing.T, p *Pool) {
			must(t, p.Launch(context.Background(), blue, fleet.Spec{Image: image(1), Size: 2}))
		},
		"nothing": func(*testing.T, *Pool) {},
	} {
		t.Run(name, func(t *testing.T) {
			p, b, _ := newPool(t)
			leave(t, p)
			for range 2 {
				must(t, p.Retire(context.Background(), blue))
			}
			gs, err := p.Groups(context.Background(), "web")
			must(t, err)
			entries, err := os.ReadDir(p.deps.State.Fleet("web"))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			left := slices.DeleteFunc(entries, func(e os.DirEntry) bool { return e.Name() == "pool.lock" })
			if len(gs) != 0 || len(b.running) != 0 || len(left) != 0 {
				t.Errorf("left: groups %v, machines %v, files %v", gs, b.running, left)
			}
		})
	}
}

func TestGroupsDoNotTouchEachOther(t *testing.T) {
	p, _, _ := newPool(t)
	ctx := context.Background()
	green := fleet.GroupID{Fleet: "web", Slot: fleet.Green, Deployment: "01HZX3V5Q8J9K2M4N6P7R8WXYZ"}
	must(t, p.Launch(ctx, blue, fleet.Spec{Image: image(1), Size: 2}))
	must(t, p.Launch(ctx, green, fleet.Spec{Image: image(2), Size: 1}))
	if err := p.Launch(ctx, green, fleet.Spec{Image: image(3), Size: 1}); err == nil {
		t.Error("a group changed its image")
	}
	gs, err := p.Groups(ctx, "web")
	must(t, err)
	if len(gs) != 2 || gs[0].ID != blue || len(gs[0].Instances) != 2 || gs[0].Image != image(1).Digest || gs[1].ID != green || len(gs[1].Instances) != 1 {
		t.Errorf("groups: %+v", gs)
	}
	ev, err := p.Evidence(ctx, green)
	if err != nil || ev != "console of web-green-r8wxyz-1:\nhello from web-green-r8wxyz-1\n" {
		t.Errorf("evidence: %q %v", ev, err)
	}
	must(t, p.Retire(ctx, blue))
	if got := pids(t, p); len(got) != 1 || got["web-green-r8wxyz-1"] == 0 {
		t.Errorf("after retiring blue: %v", got)
	}
	if _, err := p.Logs(ctx, "web-blue-r8abcd-1", 100); err == nil {
		t.Error("logs of an instance that is gone")
	}
	if _, err := p.Logs(ctx, "web-../../x", 100); err == nil {
		t.Error("logs of a path")
	}
}

func TestWrongNamesAreRefused(t *testing.T) {
	p, _, _ := newPool(t)
	for _, id := range []fleet.GroupID{
		{Fleet: "other", Slot: fleet.Blue, Deployment: "1"},
		{Fleet: "web", Slot: "red", Deployment: "1"},
		{Fleet: "web", Slot: fleet.Blue, Deployment: "../x"},
		{Fleet: "web", Slot: fleet.Blue},
	} {
		if p.Launch(context.Background(), id, fleet.Spec{Image: image(1), Size: 1}) == nil || p.Retire(context.Background(), id) == nil {
			t.Errorf("%+v was taken", id)
		}
	}
	img := image(1)
	img.Content = "sha256:../../../etc/passwd"
	if err := p.Launch(context.Background(), blue, fleet.Spec{Image: img, Size: 1}); err == nil {
		t.Error("a content digest with a path was taken")
	}
	for _, c := range []Config{{Memory: 1}, {CPUs: -1}} {
		if _, err := New(c, Deps{}, "web"); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
}

// What a fleet remembers of its template is JSON.
func TestConfigIsReadFromJSON(t *testing.T) {
	var c Config
	must(t, json.Unmarshal([]byte(`{"memory":"96M","cpus":2}`), &c))
	if c.Memory != 96<<20 || c.CPUs != 2 {
		t.Errorf("%+v", c)
	}
}
