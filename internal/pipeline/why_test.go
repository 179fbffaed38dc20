package pipeline

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/test/fake"
)

// stored puts an image of its own content into the store.
func stored(t *testing.T, s artifact.Store, img artifact.Image) artifact.Image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, []byte(strings.Repeat(img.Name+img.Version, 1<<10)), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := artifact.FileDisk(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if img.Content, _, err = s.Write(t.Context(), d, nil); err != nil {
		t.Fatal(err)
	}
	if img, err = s.Register(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	return img
}

func TestExplainFollowsAnInstanceToItsBase(t *testing.T) {
	store, pools := new(fake.Store), map[string]*fake.Pool{}
	env := Env{State: state.Dir(t.TempDir()), Store: store, Backends: Backends{
		Pool: func(_ Env, name, _ string, _ []byte) (fleet.Pool, error) { return pools[name], nil },
		Router: func(_ Env, name, _ string, _ []byte, _ fleet.HealthCheck) (fleet.Router, error) {
			return &fake.Router{Check: pools[name].Check, Rise: 1, Every: time.Millisecond}, nil
		},
	}}
	base := stored(t, store, artifact.Image{Name: "base", Version: "1", Lineage: artifact.Lineage{Parent: "debian:bookworm", ParentDigest: "sha256:" + artifact.Digest(strings.Repeat("d", 64)), GitCommit: "beef"}})
	web := stored(t, store, artifact.Image{Name: "web", Version: "1", Lineage: artifact.Lineage{Parent: "base:1", ParentDigest: base.Digest, GitCommit: "c0ffee", GitDirty: true}})
	next := stored(t, store, artifact.Image{Name: "web", Version: "2", Lineage: artifact.Lineage{Parent: "gone:1", ParentDigest: "sha256:" + artifact.Digest(strings.Repeat("e", 64))}})
	if _, err := Explain(t.Context(), env, "web-blue-1"); err == nil || !strings.Contains(err.Error(), "there are no fleets yet") {
		t.Errorf("no fleets: %v", err)
	}
	var ids []string // of the first deployment's instance, and of the second's
	for _, name := range []string{"web", "web-eu"} {
		pools[name] = new(fake.Pool)
		cfg := fleet.Config{Name: name, Template: "web.yaml", Size: 1, Policy: fleet.Policy{Port: 80}}
		d, err := deployer(env, fleet.Local(env.State.Fleets()).Books(name), cfg)
		if err != nil {
			t.Fatal(err)
		}
		d.Poll = time.Millisecond
		for _, img := range []artifact.Image{web, next} {
			if _, err := d.Deploy(t.Context(), fleet.Request{Spec: fleet.Spec{Image: img, Size: 1, Ports: []int{80}}, Policy: cfg.Policy, Wait: true}); err != nil {
				t.Fatal(err)
			}
			gs, err := pools[name].Groups(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, gs[0].Instances[0].ID)
		}
	}
	gone, err := Explain(t.Context(), env, ids[0])
	if err != nil {
		t.Fatal(err)
	}
	if !gone.Gone || gone.Fleet != "web" || gone.Image.Digest != web.Digest || !gone.InStore || gone.Image.Lineage.GitCommit != "c0ffee" || gone.Record.Verdict() != "promoted" {
		t.Errorf("%+v", gone)
	}
	if p := gone.Parents; len(p) != 2 || p[0].Image == nil || p[0].Image.Lineage.GitCommit != "beef" || p[1].Ref != "debian:bookworm" || p[1].Image != nil {
		t.Errorf("parents %+v", p)
	}
	for _, img := range []artifact.Image{web, base} { // what was removed is still known
		if err := store.Retire(t.Context(), img, "old", time.Unix(1e9, 0)); err != nil {
			t.Fatal(err)
		}
	}
	gone, err = Explain(t.Context(), env, ids[0])
	if p := gone.Parents; err != nil || gone.InStore || len(p) != 2 || p[0].Image == nil || !p[0].Removed.Equal(time.Unix(1e9, 0)) || p[1].Ref != "debian:bookworm" || !p[1].Removed.IsZero() {
		t.Errorf("after the images were removed: %+v, %v", gone, err)
	}
	live, err := Explain(t.Context(), env, ids[3]) // of web-eu, not of a fleet web
	if err != nil || live.Gone || !live.Running || live.Fleet != "web-eu" || live.Image.Digest != next.Digest || len(live.Parents) != 1 || live.Parents[0].Image != nil {
		t.Errorf("%+v %v", live, err)
	}
	if _, err := Explain(t.Context(), env, "web-blue-1-00000000000000000000000000"); err == nil || !strings.Contains(err.Error(), "of web, web-eu") {
		t.Errorf("unknown: %v", err)
	}
	// A group that no deployment knows, as a killed heal leaves it.
	lost := fleet.GroupID{Fleet: "web", Slot: fleet.Blue, Deployment: "01ZZZZZZZZZZZZZZZZZZZZZZZZ"}
	if err := pools["web"].Launch(t.Context(), lost, fleet.Spec{Image: web, Size: 1, Ports: []int{80}}); err != nil {
		t.Fatal(err)
	}
	if _, err := Explain(t.Context(), env, "web-blue-1-01ZZZZZZZZZZZZZZZZZZZZZZZZ"); err == nil || !strings.Contains(err.Error(), "of no deployment that the journal knows") {
		t.Errorf("a leftover: %v", err)
	}
}
