//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/haproxy"
	"github.com/rebake/rebake/fleet/qemu"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/provisioner"
)

// rawDisk is a raw file as a store takes it.
type rawDisk struct {
	*os.File
	size int64
}

func (d rawDisk) Size() int64             { return d.size }
func (d rawDisk) Parent() artifact.Digest { return "" }
func (d rawDisk) Extents(context.Context) ([]artifact.Extent, error) {
	return []artifact.Extent{{Length: d.size}}, nil
}

// tinyImage puts the tiny guest into the store as an image whose page or
// program differs in place: old and new are of one length.
func tinyImage(t *testing.T, store artifact.Store, version, old, new string) artifact.Image {
	t.Helper()
	data, err := os.ReadFile(guest.path)
	must(t, err)
	if len(old) != len(new) || bytes.Count(data, []byte(old)) != 1 {
		t.Fatalf("%q is %d times on the tiny guest's disk, want once", old, bytes.Count(data, []byte(old)))
	}
	path := filepath.Join(t.TempDir(), "disk.raw")
	must(t, os.WriteFile(path, bytes.Replace(data, []byte(old), []byte(new), 1), 0o600))
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	content, _, err := store.Write(t.Context(), rawDisk{f, int64(len(data))}, nil)
	must(t, err)
	img, err := store.Register(t.Context(), artifact.Image{
		Name: "tiny", Version: version, Content: content, Created: time.Now().UTC(), Arch: "amd64", Firmware: "bios",
		Seed: "credentials", User: "root", DiskSize: int64(len(data)),
	})
	must(t, err)
	return img
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The parts without the command line: pool, router and deployer on two real
// instances, their images from a real store.
func TestDeployerSwapsARealFleetUnderLoad(t *testing.T) {
	ctx := t.Context()
	home := state.Dir(t.TempDir())
	store, err := oci.Open(home.Store())
	must(t, err)
	v1 := tinyImage(t, store, "1.0.0", page, "version 01\n")
	v2 := tinyImage(t, store, "2.0.0", page, "version 02\n")
	v3 := tinyImage(t, store, "3.0.0", program, strings.Replace(program, "Content-Type: text/plain", "Status: 500 Broken image", 1))

	addr := freeAddr(t)
	url := "http://" + addr + "/cgi-bin/page"
	health := fleet.HealthCheck{Type: "http", Port: 80, Path: "/cgi-bin/page", Interval: 500 * time.Millisecond, Timeout: 3 * time.Second, Rise: 2, Fall: 3}
	policy, err := fleet.Policy{Port: 80, Within: time.Minute, KeepOld: 0,
		Steps: []fleet.Step{{Permille: 100, Hold: time.Second}, {Permille: 500, Hold: time.Second}, {Permille: 1000, Hold: time.Second}}}.Complete()
	must(t, err)
	dir := home.Fleet("swap")
	pool, err := qemu.New(qemu.Config{Memory: 96 << 20}, qemu.Deps{State: home, Store: store}, "swap")
	must(t, err)
	runDir := state.RunFor("router", dir)
	router, err := haproxy.New(haproxy.Config{Listen: addr}, dir, runDir, "swap", health)
	must(t, err)
	d := &fleet.Deployer{Dir: dir, Pool: pool, Router: router,
		Config: fleet.Config{Name: "swap", Size: 2, PoolKind: "qemu", RouterKind: "haproxy", Health: health, Policy: policy}}
	t.Cleanup(func() {
		if _, err := os.Stat(dir); err == nil {
			must(t, d.Destroy(context.Background()))
		}
	})
	deploy := func(img artifact.Image) (fleet.Result, error) {
		return d.Deploy(ctx, fleet.Request{Spec: fleet.Spec{Image: img, Size: 2, Ports: []int{80}}, Policy: policy, Wait: true})
	}

	_, err = deploy(v1)
	must(t, err)
	if got := body(t, url); got != "version 01\n" {
		t.Fatalf("it serves %q", got)
	}
	res := under(t, url, "swap to v2", func() {
		r, err := deploy(v2)
		must(t, err)
		t.Logf("swap in %.1fs", r.SwapSeconds())
	})
	if res.ByVersion["version 01"] == 0 || res.ByVersion["version 02"] == 0 {
		t.Errorf("the load saw only %v", res.ByVersion)
	}
	res = under(t, url, "v3 refused", func() {
		r, err := deploy(v3)
		if !errors.Is(err, fleet.ErrRolledBack) {
			t.Fatalf("the broken v3: %v", err)
		}
		if !strings.Contains(r.Reason, "500") || !strings.Contains(r.Evidence, "tiny guest: ready") {
			t.Errorf("reason %q, evidence %.500q", r.Reason, r.Evidence)
		}
	})
	if len(res.ByVersion) != 1 || res.ByVersion["version 02"] != res.Sent {
		t.Errorf("while v3 was refused the load saw %v", res.ByVersion)
	}

	groups, err := pool.Groups(ctx, "swap")
	must(t, err)
	if len(groups) != 1 || len(groups[0].Instances) != 2 || groups[0].Image != v2.Digest {
		t.Fatalf("groups: %+v", groups)
	}
	inst := groups[0].Instances[0]
	if got := login(t, pool, inst.ID); got != inst.ID+"\n" {
		t.Errorf("over SSH instance %s calls itself %q", inst.ID, got)
	}

	must(t, d.Destroy(ctx))
	for _, i := range groups[0].Instances {
		for n := 0; syscall.Kill(i.PID, 0) == nil; n++ { // reaped by its starter, this process, in a moment
			if n > 1000 {
				t.Fatalf("instance %s still runs (process %d)", i.ID, i.PID)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	for _, path := range []string{dir, runDir} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left (%v)", path, err)
		}
	}
	if left := (&world{t: t, home: string(home)}).processes(); len(left) > 0 {
		t.Errorf("still running: %v", left)
	}
}

// login runs hostname in an instance, by the way that gates and `rebake fleet ssh` go.
func login(t *testing.T, pool fleet.Pool, inst string) string {
	t.Helper()
	client, err := pipeline.Connect(t.Context(), pool, inst, time.Minute)
	must(t, err)
	defer client.Close()
	var out bytes.Buffer
	must(t, client.Run(t.Context(), provisioner.Cmd{Line: "hostname", Stdout: &out}))
	return out.String()
}
