package fleet_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/test/fake"
)

// The journal tells when a deployment was promoted and when it ended, and what was healed.
func TestTimeline(t *testing.T) {
	pool := &fake.Pool{Behave: map[artifact.Digest]fake.Behaviour{"sha256:bad": {Status: 500}}}
	d := &fleet.Deployer{Dir: t.TempDir(), Config: fleet.Config{Name: "web"}, Pool: pool, Router: &fake.Router{Check: pool.Check, Rise: 1, Every: time.Millisecond}, Poll: time.Millisecond}
	if past, heals, err := d.Timeline(t.Context()); err != nil || len(past)+len(heals) != 0 {
		t.Fatalf("%v %v %v", past, heals, err)
	}
	deploy := func(version string, want error) {
		t.Helper()
		req := fleet.Request{Spec: fleet.Spec{Image: image(version), Size: 1, Ports: []int{80}},
			Policy: fleet.Policy{Port: 80, Within: 100 * time.Millisecond, KeepOld: 20 * time.Millisecond}, Wait: true}
		if _, err := d.Deploy(t.Context(), req); !errors.Is(err, want) {
			t.Fatal(err)
		}
	}
	deploy("1", nil)
	deploy("2", nil)
	groups, err := pool.Groups(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	victim := groups[0].Instances[0].ID
	if _, err := d.Heal(t.Context(), victim); err != nil { // a temporary instance helps out, and is not in the list
		t.Fatal(err)
	}
	if _, err := d.Heal(t.Context()); err != nil { // changes nothing
		t.Fatal(err)
	}
	deploy("bad", fleet.ErrRolledBack)

	past, heals, err := d.Timeline(t.Context())
	if err != nil || len(past) != 3 || len(heals) != 1 {
		t.Fatalf("%d deployments, %d heals, %v", len(past), len(heals), err)
	}
	good, bad, h := past[1], past[2], heals[0]
	switch {
	case past[0].New.Spec.Image.Version != "1", good.New.Spec.Image.Version != "2", good.Outcome != "promoted", bad.Outcome != "rolled back":
		t.Errorf("%+v", past)
	case good.ToAll <= 0, good.ToEnd < good.ToAll+0.02, good.Promoted.Before(good.Began), good.Ended.Sub(good.Promoted) < 20*time.Millisecond:
		t.Errorf("promoted after %gs, ended after %gs with keep_old 20ms", good.ToAll, good.ToEnd)
	case !bad.Promoted.IsZero(), bad.ToAll != 0, bad.ToEnd < 0.1:
		t.Errorf("promoted %s, ended after %gs with within 100ms", bad.Promoted, bad.ToEnd)
	case !slices.Equal(h.Instances, []string{victim}), !strings.Contains(h.By, "@"), h.Began.Before(good.Ended), h.Last.Before(h.Began), h.Last.After(bad.Began):
		t.Errorf("%+v", h)
	}
}
