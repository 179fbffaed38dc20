package pipeline

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/drift"
	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/test/fake"
)

// An instance of the test answers what drift looks with, and waits until each
// of them was asked.
const telling = `#!/bin/sh
case $2 in
"exec /bin/sh -c "*) : >"%[1]s/$$"
  while [ "$(ls "%[1]s" | wc -l)" -lt %[2]d ]; do sleep 0.02; done
  printf '%[3]s'; exit %[4]d;;
esac
exec /bin/sh "$@"
`

// wrongImage is a pool that has another image in a group than it was given.
type wrongImage struct {
	doors
	slot fleet.Slot
}

func (w *wrongImage) Groups(ctx context.Context, name string) ([]fleet.Group, error) {
	gs, err := w.doors.Groups(ctx, name)
	for i := range gs {
		if gs[i].ID.Slot == w.slot {
			gs[i].Image = "sha256:other"
		}
	}
	return gs, err
}

func TestDriftAsksEveryInstanceAtOnce(t *testing.T) {
	const clean, changed = `b 1\0s 2\0n 0\0.\0`, `b 1\0s 2\0f f 3 3 /etc/motd\0n 1\0o base-files /etc/motd\0v /etc/motd\0.\0`
	says := []struct {
		out  string
		exit int
		want string
	}{{clean, 0, DriftNone}, {changed, 0, DriftChanged}, {"", 75, DriftUnknown}, {"Welcome!", 0, DriftUnknown}, {"", 0, DriftDead}, {"", 0, DriftUnknown}}
	asked, login := t.TempDir(), newKey(t)
	p := new(fake.Pool)
	pool := &wrongImage{doors: doors{p, map[string]ssh.Target{}}}
	router := &fake.Router{Check: p.Check, Rise: 1, Every: time.Millisecond}
	d := &fleet.Deployer{Dir: t.TempDir(), Config: fleet.Config{Name: "web", Size: len(says)}, Pool: pool, Router: router, Poll: time.Millisecond}
	img := artifact.Image{Name: "web", Version: "1", Digest: "sha256:1"}
	res, err := d.Deploy(t.Context(), fleet.Request{Spec: fleet.Spec{Image: img, Size: len(says), Ports: []int{80}}, Policy: fleet.Policy{Port: 80}})
	if err != nil {
		t.Fatal(err)
	}
	groups, err := p.Groups(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	for n, i := range groups[0].Instances {
		switch {
		case says[n].want == DriftDead:
			p.Kill(i.ID)
			continue
		case n == len(says)-1: // the pool knows no way in
			continue
		}
		shell := filepath.Join(t.TempDir(), "sh")
		if err := os.WriteFile(shell, fmt.Appendf(nil, telling, asked, 4, says[n].out, says[n].exit), 0o755); err != nil {
			t.Fatal(err)
		}
		s := &fake.SSHD{HostKey: newKey(t), Authorized: login.PublicKey(), Shell: shell}
		if err := s.Start(""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Stop)
		pool.targets[i.ID] = ssh.Target{Addr: s.Addr(), User: "root", Signer: login, HostKeys: []gossh.PublicKey{s.HostKey.PublicKey()}}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	defer func(d time.Duration) { driftBoot = d }(driftBoot)
	driftBoot = time.Second
	f, err := Drift(ctx, d)
	if err != nil || len(f.Instances) != len(says) || f.Good() || f.Missing != 0 {
		t.Fatalf("%+v %v", f, err)
	}
	for n, i := range f.Instances {
		if i.State != says[n].want || (i.Why != "") != (i.State == DriftUnknown) || (i.Report != nil) != (i.State == DriftNone || i.State == DriftChanged) ||
			!i.Right() || !i.Serves || i.Good() != (n == 0) || i.Slot != res.New.Group.Slot {
			t.Errorf("%d: %+v, want %s", n, i, says[n].want)
		}
	}
	if got := f.Instances[1].Report.Changed; !slices.Equal(got, []drift.Change{{Path: "/etc/motd", Package: "base-files", What: drift.Changed}}) {
		t.Errorf("%+v", got)
	}
	if !strings.Contains(f.Instances[2].Why, "has not finished its boot") || !strings.Contains(f.Instances[3].Why, "makes no sense") {
		t.Errorf("%q, %q", f.Instances[2].Why, f.Instances[3].Why)
	}
	if got := f.Drifted(); !slices.Equal(got, []string{f.Instances[1].ID}) {
		t.Errorf("drifted are %v", got)
	}
	if _, err := json.Marshal(f); err != nil {
		t.Error(err)
	}

	// Another image than the deployment's, and one instance less than it started.
	pool.slot = res.New.Group.Slot
	if err := p.End(t.Context(), res.New.Group, f.Instances[5].ID); err != nil {
		t.Fatal(err)
	}
	if f, err = Drift(ctx, d); err != nil || f.Missing != 1 || f.Instances[0].Right() || f.Instances[0].Good() || f.Instances[0].Want != "sha256:1" {
		t.Errorf("%+v %v", f, err)
	}
	if got := f.Drifted(); len(got) != 4 {
		t.Errorf("drifted are %v: all that live", got)
	}
}

func TestWhatADeploymentGaveAGroup(t *testing.T) {
	rel := func(slot fleet.Slot, id, digest string) fleet.Release {
		return fleet.Release{Group: fleet.GroupID{Fleet: "web", Slot: slot, Deployment: id}, Spec: fleet.Spec{Image: artifact.Image{Digest: artifact.Digest(digest)}}}
	}
	one, two := rel(fleet.Blue, "01A", "one"), rel(fleet.Green, "01B", "two")
	h := fleet.History{{Plan: fleet.Plan{ID: "01A", New: one}}, {Plan: fleet.Plan{ID: "01B", New: two, Old: &one}}}
	for id, want := range map[fleet.GroupID]artifact.Digest{
		one.Group: "one", two.Group: "two",
		{Fleet: "web", Slot: fleet.Blue, Deployment: "01B"}: "one", // the baseline of 01B
		{Fleet: "web", Slot: fleet.Blue, Deployment: "01C"}: "",
	} {
		if got := wanted(h, id); got != want {
			t.Errorf("%v: %q, want %q", id, got, want)
		}
	}
}
