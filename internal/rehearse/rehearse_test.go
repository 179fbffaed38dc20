package rehearse

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/fault"
)

func run(t *testing.T, p fleet.Policy, faults *fault.Plan) Report {
	t.Helper()
	p.Port, p.KeepOld = 80, time.Hour
	if p.Steps == nil {
		p.Steps = []fleet.Step{{Permille: 100, Hold: 10 * time.Second}, {Permille: 500, Hold: 10 * time.Second}, {Permille: 1000, Hold: 20 * time.Second}}
	}
	rep, err := Run(t.Context(), Options{
		Config: fleet.Config{Name: "web", Size: 3, Health: fleet.HealthCheck{Interval: time.Second, Rise: 2, Fall: 3}}, From: "web:1", Faults: faults,
		Request: fleet.Request{Policy: p, Spec: fleet.Spec{Size: 3, Ports: []int{80}, Image: artifact.Image{Name: "web", Version: "2", Digest: "sha256:2"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func verdicts(rep Report) (out []string) {
	for _, c := range rep.Cases {
		out = append(out, c.Verdict)
	}
	return out
}

func TestARehearsalTellsWhatUsersWouldSee(t *testing.T) {
	began := time.Now()
	rep := run(t, fleet.Policy{}, nil)
	if diff := cmp.Diff([]string{"promoted", "rolled back", "rolled back", "promoted"}, verdicts(rep)); diff != "" {
		t.Error(diff)
	}
	good, never, breaks, sly := rep.Cases[0], rep.Cases[1], rep.Cases[2], rep.Cases[3]
	if good.Failed+never.Failed > 0 || breaks.Failed == 0 || sly.Failed < breaks.Failed/10 {
		t.Errorf("failed: %d, %d, %d, %d", good.Failed, never.Failed, breaks.Failed, sly.Failed)
	}
	if !strings.Contains(rep.Warning, "add a gate") || !strings.Contains(breaks.Reason, "L7STS/500") || !strings.Contains(never.Reason, "within 5m0s") {
		t.Errorf("%q; %q; %q", rep.Warning, breaks.Reason, never.Reason)
	}
	if good.Seconds < 40 || good.Seconds > 60 || time.Since(began) > 20*time.Second {
		t.Errorf("modelled %.1f s in %s", good.Seconds, time.Since(began))
	}
	sum := 0
	for _, r := range good.Rows {
		sum += r.Sent
	}
	if sum != good.Sent || good.Sent < 4000 || good.Least != 3 || good.Rows[len(good.Rows)-1].State != fleet.Done {
		t.Errorf("rows add up to %d of %d requests, least %d: %+v", sum, good.Sent, good.Least, good.Rows)
	}
}

func TestAGateRefusesWhatChecksDoNotSee(t *testing.T) {
	rep := run(t, fleet.Policy{Gates: []fleet.Gate{{ErrorRate: &fleet.ErrorRateGate{Max: 0.01, Requests: 100}}, {Name: "ask", Command: &fleet.CommandGate{Args: []string{"false"}}}}}, nil)
	if diff := cmp.Diff([]string{"promoted", "rolled back", "rolled back", "rolled back"}, verdicts(rep)); diff != "" {
		t.Errorf("%s %+v", diff, rep.Cases[0])
	}
	if rep.Warning != "" || cmp.Diff([]string{"ask"}, rep.Asked) != "" || !strings.Contains(rep.Cases[3].Reason, "error_rate") {
		t.Errorf("%q, %v, %q", rep.Warning, rep.Asked, rep.Cases[3].Reason)
	}
}

func TestAPersonIsThere(t *testing.T) {
	rep := run(t, fleet.Policy{OnFailure: "pause", Steps: []fleet.Step{{Permille: 500, Hold: 15 * time.Second, Pause: true}, {Permille: 1000}}}, nil)
	if diff := cmp.Diff([]string{"promoted", "blocked, then rolled back by hand", "blocked, then rolled back by hand", "promoted"}, verdicts(rep)); diff != "" {
		t.Error(diff)
	}
	notes := func(c Played) (out string) {
		for _, r := range c.Rows {
			out += r.Note + ";"
		}
		return out
	}
	if !strings.Contains(notes(rep.Cases[0]), "deploy resume") || !strings.Contains(notes(rep.Cases[1]), "deploy abort") {
		t.Errorf("%q, %q", notes(rep.Cases[0]), notes(rep.Cases[1]))
	}
}

func TestRollingAndNoGoodImage(t *testing.T) {
	rep := run(t, fleet.Policy{Strategy: fleet.Rolling, Roll: fleet.Roll{MaxUnavailable: 1}}, nil)
	if c := rep.Cases[0]; c.Verdict != "promoted" || c.Failed > 0 || c.Least != 2 {
		t.Errorf("%s, %d failed, at least %d: %s", c.Verdict, c.Failed, c.Least, c.Reason)
	}
	rep = run(t, fleet.Policy{MaxHold: 30 * time.Second, Gates: []fleet.Gate{{ErrorRate: &fleet.ErrorRateGate{Max: 0.01, Requests: 1e6}}}}, nil)
	if c := rep.Cases[0]; c.Verdict != "rolled back" || !strings.Contains(rep.Warning, "a good image is not promoted: inconclusive") {
		t.Errorf("%s: %q", c.Verdict, rep.Warning)
	}
}

// With faults it is played to an end, the same one by the same seed.
func TestFaultsAreToldAndPlayedAgain(t *testing.T) {
	total := 0
	for seed := range uint64(3) {
		plan := fault.Mixed(seed)
		rep := run(t, fleet.Policy{Within: 30 * time.Second}, &plan)
		for _, c := range rep.Cases[:2] {
			if c.Failed > 0 || c.Least < 3 || c.Verdict == "" || c.Verdict == "unfinished" {
				t.Errorf("seed %d: %s: %s: %d requests failed, at least %d served", seed, c.Image, c.Verdict, c.Failed, c.Least)
			}
			total += len(c.Injected)
		}
		if seed == 2 {
			again := run(t, fleet.Policy{Within: 30 * time.Second}, &plan)
			if diff := cmp.Diff(rep, again, cmpopts.IgnoreFields(Played{}, "Reason")); diff != "" { // it names instances
				t.Errorf("the same seed: %s", diff)
			}
		}
	}
	if total < 15 {
		t.Errorf("only %d faults in all", total)
	}
}
