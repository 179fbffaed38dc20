//go:build e2e

package awsfleet_test

import (
	"errors"
	"testing"
	"time"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/fault"
	"github.com/rebake/rebake/test/awsfake"
)

// faulty deploys the other image while things go wrong, then, with nothing going
// wrong any more, brings the fleet to an end of it: no request fails meanwhile, and
// nothing is left but what serves.
func (w *world) faulty(t *testing.T, version string, before func(*fleet.Deployer), after func()) fleet.State {
	t.Helper()
	ctx := t.Context()
	req := w.request(version, 2)
	req.Wait, req.Policy.KeepOld = true, 10*ms
	req.Policy.Steps = []fleet.Step{{Permille: 500, Hold: 10 * ms}, {Permille: 1000, Hold: 10 * ms}}
	w.d = w.deployer()
	before(w.d)
	stop := w.clients(2)
	res, err := w.d.Deploy(ctx, req)
	came := res.State
	after()
	w.d = w.deployer()
	if errors.Is(err, fleet.ErrBlocked) {
		res, err = w.d.Resume(ctx, true)
	}
	if err != nil && !errors.Is(err, fleet.ErrRolledBack) {
		if res, err = w.d.Deploy(ctx, req); err != nil {
			t.Errorf("once nothing goes wrong: %s, %v", res.State, err)
		}
	}
	if err := w.d.Tend(ctx, true); err != nil {
		t.Errorf("tend: %v", err)
	}
	if sent, failed, _ := stop(); failed != 0 {
		t.Errorf("%d of %d requests failed on the way to %s: %v", failed, sent, came, err)
	}
	if left := w.Left(t, "web"); len(left) != 7 {
		t.Errorf("%d things are left: %q", len(left), left)
	}
	return came
}

// What goes wrong before pool and router: calls fail, are done and say that they
// were not, are refused for a while, are slow.
func TestFaultsBeforePoolAndRouter(t *testing.T) {
	w := newWorld(t, true, "1", "2")
	if _, err := w.d.Deploy(t.Context(), w.request("1", 2)); err != nil {
		t.Fatal(err)
	}
	version := "1"
	for seed := range uint64(3) {
		version = map[string]string{"1": "2", "2": "1"}[version]
		plan := fault.Mixed(seed)
		plan.Delay = 5 * ms
		in := fault.New(plan)
		told := 0
		in.Told = func(fault.Injected) { told++ }
		came := w.faulty(t, version, func(d *fleet.Deployer) { d.Pool, d.Router = in.Pool(d.Pool), in.Router(d.Router) }, func() {})
		if came == fleet.RolledBack {
			version = map[string]string{"1": "2", "2": "1"}[version]
		}
		t.Logf("seed %d: %d faults, came to %s", seed, told, came)
	}
}

// What goes wrong at AWS: answers are lost after the call was done, calls are
// throttled and refused with an error of AWS's own, groups are seen late.
func TestFaultsOfTheCloud(t *testing.T) {
	w := newWorld(t, true, "1", "2")
	if _, err := w.d.Deploy(t.Context(), w.request("1", 2)); err != nil {
		t.Fatal(err)
	}
	version := "1"
	each := func(f awsfake.Fault) (all []awsfake.Fault) {
		for _, action := range []string{"ec2:CreateLaunchTemplate", "ec2:DeleteLaunchTemplate", "autoscaling:CreateAutoScalingGroup", "autoscaling:LaunchInstances",
			"autoscaling:UpdateAutoScalingGroup", "autoscaling:DeleteAutoScalingGroup", "elasticloadbalancing:ModifyRule", "elasticloadbalancing:DeregisterTargets"} {
			f.Action, f.Times = action, 1
			all = append(all, f)
		}
		return all
	}
	for name, faults := range map[string][]awsfake.Fault{
		"lost answers": each(awsfake.Fault{After: true}),
		"throttling":   each(awsfake.Fault{Code: "Throttling", Message: "Rate exceeded"}),
		"seen late":    {{Action: "autoscaling:DescribeAutoScalingGroups", Chance: 0.2, Stale: 5 * time.Second}},
	} {
		version = map[string]string{"1": "2", "2": "1"}[version]
		var remove []func()
		came := w.faulty(t, version, func(*fleet.Deployer) {
			for _, f := range faults {
				remove = append(remove, w.cloud.Fault(f))
			}
		}, func() {
			if n := w.cloud.Hits(); n < len(faults) {
				t.Errorf("%s: %d of %d went wrong", name, n, len(faults))
			}
			for _, f := range remove {
				f()
			}
		})
		if came == fleet.RolledBack {
			version = map[string]string{"1": "2", "2": "1"}[version]
		}
		t.Logf("%s: came to %s", name, came)
	}
}
