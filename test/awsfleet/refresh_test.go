//go:build e2e

package awsfleet_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/asg"
	"github.com/rebake/rebake/internal/awscalls"
	"github.com/rebake/rebake/test/awsfake"
)

// somebodys is a group of n instances of an AMI of its own, version 0.
func (w *world) somebodys(n int) {
	w.t.Helper()
	w.cloud.Set(func() { w.cloud.Delays.Stall = 100 * time.Hour }) // what is to be seen is what rebake does about it, however busy the machine
	w.images["0"] = w.Group(w.t, "web-prod", n, guestPort, "/health")
}

func (w *world) until(what string, so func() bool) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); !so(); time.Sleep(5 * ms) {
		if time.Now().After(end) {
			w.t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// inPlace is the fleet of that group, as a process opens it.
func (w *world) inPlace() *fleet.Deployer {
	w.t.Helper()
	both, err := asg.NewInPlace(asg.Config{Adopt: "web-prod"}, asg.Deps{Store: w.Store, Poll: 5 * ms, Calls: awscalls.Bounded(w.calls())}, "web")
	w.ok(err)
	d := w.deployer()
	d.Pool, d.Router = both, both
	d.Config.Policy.Strategy = fleet.Refresh
	return d
}

// refresh is a wish for a refresh.
func (w *world) refresh(version string) fleet.Request {
	req := w.request(version, 4)
	req.Policy.Strategy, req.Policy.Roll = fleet.Refresh, fleet.Roll{MaxSurge: 50}
	req.Policy.MinHealthy, req.Policy.KeepOld = 75, 10*time.Minute                                            // at a thousandth
	req.Policy.Steps = []fleet.Step{{Permille: 500, Hold: 20 * time.Minute}, {Permille: 1000, Hold: 50 * ms}} // the first is long enough for a busy machine to see it
	req.Wait = true
	return req
}

// runs checks which images the group's instances are of, and that it launches by one of them.
func (w *world) runs(version string, n int) {
	w.t.Helper()
	ctx := w.t.Context()
	var g astypes.AutoScalingGroup
	have := map[string]int{}
	w.until("the group settles", func() bool {
		out, err := w.AS.DescribeAutoScalingGroups(ctx, &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{"web-prod"}})
		w.ok(err)
		g, have = out.AutoScalingGroups[0], map[string]int{}
		for _, i := range g.Instances {
			for v, img := range w.images {
				if aws.ToString(i.ImageId) == w.AMI(w.t, img) {
					have[v]++
				}
			}
		}
		return len(g.Instances) == n
	})
	if have[version] != n {
		w.t.Errorf("the group's instances are of %v, want %d of %s", have, n, version)
	}
	lt, err := w.EC2.DescribeLaunchTemplateVersions(ctx, &ec2.DescribeLaunchTemplateVersionsInput{LaunchTemplateName: g.LaunchTemplate.LaunchTemplateName, Versions: []string{*g.LaunchTemplate.Version}})
	w.ok(err)
	if ami := aws.ToString(lt.LaunchTemplateVersions[0].LaunchTemplateData.ImageId); ami != w.AMI(w.t, w.images[version]) {
		w.t.Errorf("the group would launch %s by %s, which is not %s", ami, aws.ToString(g.LaunchTemplate.LaunchTemplateName), version)
	}
}

// userData is that of what the group launches, as EC2 keeps it.
func (w *world) userData() string {
	w.t.Helper()
	out, err := w.AS.DescribeAutoScalingGroups(w.t.Context(), &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{"web-prod"}})
	w.ok(err)
	lt := out.AutoScalingGroups[0].LaunchTemplate
	v, err := w.EC2.DescribeLaunchTemplateVersions(w.t.Context(), &ec2.DescribeLaunchTemplateVersionsInput{LaunchTemplateName: lt.LaunchTemplateName, Versions: []string{*lt.Version}})
	w.ok(err)
	return aws.ToString(v.LaunchTemplateVersions[0].LaunchTemplateData.UserData)
}

// templates are the launch templates with the fleet's tag.
func (w *world) templates(want int) {
	w.t.Helper()
	n := 0
	left := w.Left(w.t, "web")
	for _, what := range left {
		if strings.HasPrefix(what, "launch template ") {
			n++
		}
	}
	if n != want {
		w.t.Errorf("there are %d launch templates of the fleet, want %d: %q", n, want, left)
	}
}

func (w *world) served(stop func() (int64, int64, map[string]int64)) {
	w.t.Helper()
	sent, failed, by := stop()
	if failed != 0 || sent < 100 {
		w.t.Errorf("%d of %d requests failed; by AMI: %v", failed, sent, by)
	}
	w.t.Logf("%d requests, %d failed", sent, failed)
}

// A group that somebody else made is refreshed to an image, to the next one, back
// while its refresh bakes, back by a new deployment, and refuses an image that is
// no good; letting the fleet go leaves it as it is.
func TestAGroupIsRefreshedInPlace(t *testing.T) {
	w := newWorld(t, true, "1", "2", "3")
	w.somebodys(4)
	w.d = w.inPlace()
	ctx := t.Context()
	stop := w.clients(3)
	res, err := w.d.Deploy(ctx, w.refresh("1"))
	if err != nil || res.State != fleet.Done {
		t.Fatalf("%s: %v", res.State, err)
	}
	w.runs("1", 4)
	w.templates(1)
	if len(res.Weights) == 0 || res.Weights[len(res.Weights)-1].Weights[res.New.Group.Slot] != 1000 {
		t.Errorf("the shares on the way: %v", res.Weights)
	}

	long := w.refresh("2")
	long.Spec.UserData = "#!/bin/sh\n"
	long.Wait, long.Policy.KeepOld = false, 47*time.Hour
	if res, err = w.d.Deploy(ctx, long); err != nil || res.State != fleet.Baking {
		t.Fatalf("%s: %v", res.State, err)
	}
	w.runs2("2")
	if res, err = w.d.Rollback(ctx, "by hand"); err != nil || res.State != fleet.RolledBack {
		t.Fatalf("%s: %v", res.State, err)
	}
	w.runs("1", 4)
	w.templates(1)

	told := w.refresh("2")
	told.Spec.UserData = "#!/bin/sh\n"
	if res, err = w.d.Deploy(ctx, told); err != nil || res.State != fleet.Done {
		t.Fatalf("%s: %v", res.State, err)
	}
	w.runs("2", 4)
	if w.userData() == "" {
		t.Error("user data was not given")
	}
	if res, err = w.d.Rollback(ctx, "by hand"); err == nil && res.State != fleet.Done { // a busy machine may look when all of it is over
		res, err = w.d.Resume(ctx, true)
	}
	if err != nil || res.State != fleet.Done {
		t.Fatalf("%s: %v", res.State, err)
	}
	w.runs("1", 4)
	if data := w.userData(); data != "" {
		t.Errorf("user data of the image before lives on: %q", data)
	}

	w.breaks("3", 500)
	bad := w.refresh("3")
	bad.Policy.Refuse = 300 * ms
	if res, err = w.d.Deploy(ctx, bad); !errors.Is(err, fleet.ErrRolledBack) || !strings.Contains(res.Reason, "L7STS/500") {
		t.Fatalf("a bad image: %s: %v", res.State, err)
	}
	w.runs("1", 4)
	w.templates(1)
	w.served(stop)
	w.ok(w.d.Destroy(ctx))
	w.runs("1", 4)
	w.templates(1) // the one that it launches by

	// A fleet of the same name begins on what the last one left.
	if res, err = w.d.Deploy(ctx, bad); !errors.Is(err, fleet.ErrRolledBack) {
		t.Fatalf("a bad image in a fleet that begins again: %s: %v", res.State, err)
	}
	if err := w.d.Tend(ctx, true); err != nil {
		t.Errorf("what the group launches by is nobody's to tidy up: %v", err)
	}
	w.runs("1", 4)
}

// runs2 is runs where the group's own launch template is not the new one yet.
func (w *world) runs2(version string) {
	w.t.Helper()
	gs, err := w.d.Pool.Groups(w.t.Context(), "web")
	w.ok(err)
	for _, g := range gs {
		if (g.Image == w.images[version].Digest) != (len(g.Instances) == 4) {
			w.t.Errorf("%s has %d instances", g.ID.Slot, len(g.Instances))
		}
	}
}

// What ends a refresh besides its end: an alarm, an operator who cancels it, one
// who began another before, one who scales the group in the middle.
func TestARefreshThatIsDisturbed(t *testing.T) {
	w := newWorld(t, true, "1", "2")
	w.somebodys(4)
	w.d = w.inPlace()
	ctx := t.Context()
	stop := w.clients(2)
	defer w.served(stop)
	if res, err := w.d.Deploy(ctx, w.refresh("1")); err != nil {
		t.Fatalf("%s: %v", res.State, err)
	}
	name := aws.String("web-prod")
	once := func(state fleet.State, f func()) {
		done := false
		w.d.Recorded = func(kind, what string) {
			if kind == "transition" && what == string(state) && !done {
				done = true
				f()
			}
		}
	}
	t.Run("an alarm", func(t *testing.T) {
		w.cloud.SetAlarm("eu-central-1", "web-5xx", "OK", "")
		req := w.refresh("2")
		req.Policy.Gates = []fleet.Gate{{Name: "alarm", Alarm: &fleet.AlarmGate{Names: []string{"web-5xx"}}}}
		w.d.Ask = pass
		once(fleet.Replacing, func() { w.cloud.SetAlarm("eu-central-1", "web-5xx", "ALARM", "too many") })
		res, err := w.d.Deploy(ctx, req)
		if !errors.Is(err, fleet.ErrRolledBack) || !strings.Contains(res.Reason, "alarm web-5xx") {
			t.Errorf("%s: %v", res.State, err)
		}
		w.runs("1", 4)
		w.templates(1)
	})
	t.Run("cancelled", func(t *testing.T) {
		once(fleet.Replacing, func() {
			_, err := w.AS.CancelInstanceRefresh(ctx, &autoscaling.CancelInstanceRefreshInput{AutoScalingGroupName: name})
			w.ok(err)
		})
		res, err := w.d.Deploy(ctx, w.refresh("2"))
		if !errors.Is(err, fleet.ErrRolledBack) || !strings.Contains(res.Reason, "ancelled") {
			t.Errorf("%s: %v", res.State, err)
		}
		w.runs("1", 4)
		w.templates(1)
	})
	t.Run("somebody else's goes on", func(t *testing.T) {
		w.d.Recorded = nil
		_, err := w.AS.StartInstanceRefresh(ctx, &autoscaling.StartInstanceRefreshInput{AutoScalingGroupName: name, Preferences: &astypes.RefreshPreferences{
			MinHealthyPercentage: aws.Int32(50), CheckpointPercentages: []int32{25, 100}, CheckpointDelay: aws.Int32(172800)}})
		w.ok(err)
		before, err := w.d.History(ctx)
		w.ok(err)
		if res, err := w.d.Deploy(ctx, w.refresh("2")); !errors.Is(err, fleet.ErrRefreshing) {
			t.Errorf("%s: %v", res.State, err)
		}
		if after, err := w.d.History(ctx); err != nil || len(after) != len(before) {
			t.Errorf("a deployment was begun: %v", err)
		}
		_, err = w.AS.CancelInstanceRefresh(ctx, &autoscaling.CancelInstanceRefreshInput{AutoScalingGroupName: name})
		w.ok(err)
		w.until("it ends", func() bool {
			is, err := w.d.Pool.(fleet.InPlace).Refreshing(ctx)
			w.ok(err)
			return !is.Active()
		})
	})
	t.Run("scaled out", func(t *testing.T) {
		once(fleet.Replacing, func() {
			_, err := w.AS.SetDesiredCapacity(ctx, &autoscaling.SetDesiredCapacityInput{AutoScalingGroupName: name, DesiredCapacity: aws.Int32(6)})
			w.ok(err)
		})
		if res, err := w.d.Deploy(ctx, w.refresh("2")); err != nil || res.State != fleet.Done {
			t.Errorf("%s: %v", res.State, err)
		}
		w.runs("2", 6)
		w.templates(1)
	})
}

// A refresh and a rollback of one are killed at each record of the journal; whoever
// resumes brings it to its end, no request fails, and one launch template is left.
func TestARefreshKilledAtARecord(t *testing.T) {
	w := newWorld(t, true, "1", "2", "3")
	w.somebodys(3)
	w.breaks("3", 503)
	ctx := t.Context()
	w.d = w.inPlace()
	stop := w.clients(2)
	request := func(version string) fleet.Request {
		req := w.refresh(version)
		req.Policy.KeepOld, req.Policy.Refuse = time.Minute, 50*ms
		req.Policy.Steps = []fleet.Step{{Permille: 1000, Hold: 5 * ms}}
		return req
	}
	if res, err := w.d.Deploy(ctx, request("1")); err != nil {
		t.Fatalf("%s: %v", res.State, err)
	}
	version, tried := "1", 0
	for _, bad := range []bool{false, true} {
		for at := 1; !t.Failed(); at++ {
			next := map[string]string{"1": "2", "2": "1"}[version]
			if bad {
				next = "3"
			}
			var records []string
			w.d = w.inPlace()
			w.d.Recorded = func(kind, what string) {
				if records = append(records, kind+" "+what); len(records) == at {
					panic(crash{})
				}
			}
			_, killed := crashing(func() error { _, err := w.d.Deploy(ctx, request(next)); return err })
			if !killed {
				if !bad {
					version = next
				}
				break
			}
			tried++
			w.d = w.inPlace()
			res, err := w.d.Resume(ctx, true)
			if errors.Is(err, fleet.ErrNothing) { // before the plan, or after the end
				if h, herr := w.d.History(ctx); herr != nil || !h.Last().State.Finished() {
					t.Errorf("killed at record %d, %s: %v, %v", at, records[len(records)-1], err, herr)
				}
				if !strings.HasPrefix(records[len(records)-1], "lease") {
					if !bad {
						version = next
					}
					w.runs(version, 3)
					continue
				}
				res, err = w.d.Deploy(ctx, request(next))
			}
			switch {
			case bad && !errors.Is(err, fleet.ErrRolledBack), !bad && (err != nil || res.State != fleet.Done):
				t.Errorf("killed at record %d, %s: %s, %v", at, records[len(records)-1], res.State, err)
			case !bad:
				version = next
			}
			w.runs(version, 3)
			w.templates(1)
		}
	}
	w.served(stop)
	if tried < 20 {
		t.Errorf("only %d records were tried", tried)
	}
	t.Logf("killed at %d records", tried)
}

// What goes wrong at AWS in a refresh and in one that is taken back: answers are
// lost after the call was done, calls are throttled, what was done is seen late.
func TestFaultsInARefresh(t *testing.T) {
	w := newWorld(t, true, "1", "2", "3")
	w.somebodys(3)
	w.breaks("3", 500)
	ctx := t.Context()
	w.d = w.inPlace()
	stop := w.clients(2)
	if res, err := w.d.Deploy(ctx, w.refresh("1")); err != nil {
		t.Fatalf("%s: %v", res.State, err)
	}
	each := func(f awsfake.Fault, actions ...string) (all []awsfake.Fault) {
		for _, a := range actions {
			f.Action, f.Times = a, 1
			all = append(all, f)
		}
		return all
	}
	calls := []string{"ec2:CreateLaunchTemplate", "ec2:DeleteLaunchTemplate", "autoscaling:StartInstanceRefresh", "autoscaling:RollbackInstanceRefresh"}
	version := "1"
	for name, faults := range map[string][]awsfake.Fault{
		"lost answers": each(awsfake.Fault{After: true}, calls...),
		"throttling":   each(awsfake.Fault{Code: "Throttling", Message: "Rate exceeded"}, calls...),
		"seen late":    {{Action: "autoscaling:DescribeAutoScalingGroups", Chance: 0.2, Stale: 5 * time.Second}, {Action: "autoscaling:DescribeInstanceRefreshes", Chance: 0.2, Stale: 5 * time.Second}},
	} {
		for _, bad := range []bool{false, true} {
			next := map[string]string{"1": "2", "2": "1"}[version]
			if bad {
				next = "3"
			}
			var remove []func()
			for _, f := range faults {
				remove = append(remove, w.cloud.Fault(f))
			}
			req := w.refresh(next)
			req.Policy.Refuse, req.Policy.Steps = 100*ms, []fleet.Step{{Permille: 1000, Hold: 5 * ms}}
			w.d = w.inPlace()
			before := w.cloud.Hits()
			res, err := w.d.Deploy(ctx, req)
			want := map[bool]int{false: len(faults) - 1, true: len(faults)}[bad] // nothing is turned round of a good one
			if n := w.cloud.Hits() - before; n < want {
				t.Errorf("%s: deploying %s: %d went wrong, at least %d should", name, next, n, want)
			}
			for _, f := range remove {
				f()
			}
			if bad && !errors.Is(err, fleet.ErrRolledBack) || !bad && (err != nil || res.State != fleet.Done) {
				t.Errorf("%s: deploying %s: %s, %v", name, next, res.State, err)
			}
			if !bad {
				version = next
			}
			w.runs(version, 3)
			w.templates(1)
		}
	}
	w.served(stop)
}

// pass answers every gate's question.
func pass(context.Context, fleet.Question) (fleet.Verdict, string, error) { return fleet.Pass, "", nil }
