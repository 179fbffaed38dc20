package main

import (
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/drift"
	"github.com/rebake/rebake/internal/pipeline"
)

func holds(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains("\n"+text, "\n"+l+"\n") {
			t.Errorf("no line %q in\n%s", l, text)
		}
	}
	if strings.ContainsAny(text, "\x1b\x07") {
		t.Errorf("it drives the terminal: %q", text)
	}
}

func TestDriftIsToldInALineForEachInstance(t *testing.T) {
	const one, two = "sha256:1111111111112222", "sha256:3333333333334444"
	many := &drift.Report{Packages: []drift.Package{{Name: "nginx", What: drift.Upgraded, From: "1.22", To: "1.24"}}, Truncated: 7}
	for _, p := range []string{"/etc/motd", "/srv/\x1b[2J", "/srv/c"} {
		many.Changed = append(many.Changed, drift.Change{Path: p, What: drift.Written})
	}
	f := pipeline.FleetDrift{Missing: 1, Instances: []pipeline.InstanceDrift{
		{ID: "web-1", Serves: true, Image: one, Want: one, State: pipeline.DriftNone, Report: &drift.Report{}},
		{ID: "web-2", Serves: true, Image: one, Want: one, State: pipeline.DriftChanged, Report: many},
		{ID: "web-3", Serves: true, Image: one, Want: one, State: pipeline.DriftChanged, Report: &drift.Report{Changed: []drift.Change{{Path: "/usr/bin/x", Package: "tool", What: drift.Changed}}}},
		{ID: "web-4", Serves: true, Image: one, Want: one, State: pipeline.DriftDead},
		{ID: "web-5", Serves: true, Image: two, Want: one, State: pipeline.DriftUnknown, Why: "no SSH\x07: refused"},
		{ID: "web-6", Image: two, State: pipeline.DriftNone, Report: &drift.Report{}},
	}}
	holds(t, describeDrift("web", f),
		"INSTANCE  IMAGE                                 SINCE BOOT  WHAT",
		"web-1     as deployed                           as booted",
		`web-2     as deployed                           11 changes  nginx upgraded 1.22 to 1.24, /etc/motd written (no package), "/srv/\x1b[2J" written (no package), and 8 more`,
		"web-3     as deployed                           1 change    /usr/bin/x changed (tool)",
		"web-4     as deployed                           dead",
		"web-5     333333333333, should be 111111111111  unknown     no SSH: refused",
		"web-6     333333333333, of no deployment        as booted",
		"instances missing: 1",
		"next: `rebake fleet heal web --drifted` replaces 3 of them; --output json names every change")
	if err := driftError("web", f); !strings.HasPrefix(err.Error(), "6 instances of fleet web are not") {
		t.Error(err)
	}
	if good := (pipeline.FleetDrift{Instances: f.Instances[:1]}); !good.Good() || strings.Contains(describeDrift("web", good), "next:") {
		t.Error("a good fleet is told to be mended")
	}
}

func TestHistoryHasHealsBetweenDeployments(t *testing.T) {
	at := func(min int) time.Time { return time.Date(2026, 11, 27, 10, min, 0, 0, time.Local) }
	past := func(min int, from, to, outcome string, weights ...int) fleet.Past {
		p := fleet.Past{Outcome: outcome, ToEnd: 61.2}
		p.Began, p.By, p.New = at(min), "ann@ops", fleet.Release{Group: fleet.GroupID{Slot: fleet.Green}, Spec: fleet.Spec{Image: artifact.Image{Name: "web", Version: to}}}
		if from != "" {
			p.Old = &fleet.Release{Spec: fleet.Spec{Image: artifact.Image{Name: "web", Version: from}}}
		}
		for _, w := range weights {
			p.Weights = append(p.Weights, fleet.Change{Weights: map[fleet.Slot]int{fleet.Green: w}})
		}
		return p
	}
	bad := past(30, "1", "2", "rolled back", 25, 500, 0)
	bad.Reason, bad.Rollback = "web-1 \x1b[31mdied", true
	good := past(10, "", "1", "promoted", 1000)
	good.ToAll = 4.5
	heals := []fleet.PastHeal{{By: "bob@ops", Began: at(20), Last: at(21), Instances: []string{"web-1", "web-2"}}}
	text := describePast([]fleet.Past{bad, good}, heals)
	holds(t, text,
		"WHEN                 BY       FROM   TO     VERDICT                  PROMOTED  DONE   TRAFFIC     REASON",
		"2026-11-27 10:30:00  ann@ops  web:1  web:2  rolled back, a rollback  -         1m01s  2.5>50>0 %  web-1 died",
		"2026-11-27 10:20:00  bob@ops  -      -      healed                   -         1m00s  -           fresh: web-1, web-2",
		"2026-11-27 10:10:00  ann@ops  -      web:1  promoted                 4.5s      1m01s  100 %")
}

func TestWhyTellsTheChain(t *testing.T) {
	made := time.Date(2026, 11, 26, 9, 0, 0, 0, time.Local)
	img := func(name string, l artifact.Lineage) artifact.Image {
		return artifact.Image{Name: name, Version: "7", Digest: artifact.Digest("sha256:" + name), Created: made, Lineage: l}
	}
	base := img("base", artifact.Lineage{Template: "base", TemplateDigest: "sha256:t2", GitCommit: "beef", BuildID: "01B", Builder: "qemu", Rebake: "1"})
	r := fleet.Record{Plan: fleet.Plan{ID: "01DEP", By: "ann@ops", Began: made}, Progress: fleet.Progress{State: fleet.Done}}
	w := pipeline.Why{Instance: "web-blue-1", Running: true, Started: made, Fleet: "web", Slot: fleet.Blue, Template: "web.yaml", Record: &r, InStore: true,
		Image:   img("web", artifact.Lineage{Template: "web", TemplateDigest: "sha256:t1", GitCommit: "c0ffee", GitDirty: true, BuildID: "01A", Builder: "qemu", Rebake: "1"}),
		Parents: []pipeline.Parent{{Ref: "base:7", Digest: base.Digest, Image: &base}, {Ref: "debian:bookworm", Digest: "sha256:deb"}}}
	holds(t, describeWhy(w),
		"instance    web-blue-1 runs since 2026-11-26 09:00:00",
		"fleet       web, slot blue, template web.yaml",
		"deployment  01DEP by ann@ops, 2026-11-26 09:00:00: promoted",
		"image       web:7 sha256:web",
		"  baked     2026-11-26 09:00:00, build 01A by qemu, rebake 1",
		"  template  web sha256:t1",
		"  commit    c0ffee, dirty: with changes that are in no commit",
		"from        base:7 sha256:base",
		"  baked     2026-11-26 09:00:00, build 01B by qemu, rebake 1",
		"  commit    beef",
		"from        debian:bookworm sha256:deb (a base, or an image that is not in the store)")
}
