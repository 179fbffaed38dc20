//go:build e2e

package awsfleet_test

import (
	"errors"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/rebake/rebake/fleet"
)

// From nothing to a fleet, then by steps to the next image, back at once, forward
// again, to the end, to a bad image that is refused, and away: under load that
// nothing may send twice, without one failed request.
func TestASwapUnderLoad(t *testing.T) {
	w := newWorld(t, true, "1", "2", "3")
	ctx := t.Context()
	res, err := w.d.Deploy(ctx, w.request("1", 2))
	if err != nil || res.State != fleet.Done {
		t.Fatalf("%s: %v", res.State, err)
	}
	w.serves("1", 1)
	stop := w.clients(4)
	if res, err = w.d.Deploy(ctx, w.request("2", 2)); err != nil || res.State != fleet.Baking {
		t.Fatalf("%s: %v", res.State, err)
	}
	w.serves("2", 2)
	if res, err = w.d.Rollback(ctx, "by hand"); err != nil || res.State != fleet.RolledBack {
		t.Fatalf("%s: %v", res.State, err)
	}
	w.serves("1", 1)
	req := w.request("2", 3)
	req.Wait, req.Policy.KeepOld = true, 50*ms
	if res, err = w.d.Deploy(ctx, req); err != nil || res.State != fleet.Done {
		t.Fatalf("%s: %v", res.State, err)
	}
	w.serves("2", 1)
	w.breaks("3", 500)
	bad := w.request("3", 3)
	bad.Policy.Refuse = 300 * ms
	if res, err = w.d.Deploy(ctx, bad); !errors.Is(err, fleet.ErrRolledBack) {
		t.Fatalf("a bad image: %s: %v", res.State, err)
	}
	w.serves("2", 1)
	sent, failed, by := stop()
	if failed != 0 || len(by) != 2 || sent < 100 {
		t.Errorf("%d of %d requests failed; by AMI: %v", failed, sent, by)
	}
	for name, tr := range w.cloud.Traffic("eu-central-1") {
		if tr.Unasked != 0 {
			t.Errorf("%s: %d requests went to targets that were not healthy", name, tr.Unasked)
		}
	}
	t.Logf("%d requests, none failed; reason of the refusal: %s", sent, res.Reason)
	w.destroyed()
}

// Both groups are made larger while traffic is split between them: what comes up
// in each is of its own image, and the deployment ends with all of them. What the
// fleet grew to is what the next deployment brings up.
func TestScaleOutInTheMiddleOfASwap(t *testing.T) {
	w := newWorld(t, true, "1", "2", "3")
	ctx := t.Context()
	if _, err := w.d.Deploy(ctx, w.request("1", 2)); err != nil {
		t.Fatal(err)
	}
	stop := w.clients(2)
	held := false
	w.d.Recorded = func(_, what string) {
		if what != string(fleet.Holding) || held {
			return
		}
		held = true
		groups, err := w.d.Pool.Groups(ctx, "web")
		w.ok(err)
		for _, g := range groups {
			name := "rebake-web-" + string(g.ID.Slot) + "-" + g.ID.Deployment
			_, err := w.AS.SetDesiredCapacity(ctx, &autoscaling.SetDesiredCapacityInput{AutoScalingGroupName: &name, DesiredCapacity: aws.Int32(4)})
			w.ok(err)
		}
	}
	req := w.request("2", 2)
	for i := range req.Policy.Steps {
		req.Policy.Steps[i].Hold = 300 * ms
	}
	if res, err := w.d.Deploy(ctx, req); err != nil || res.State != fleet.Baking {
		t.Fatalf("%s: %v", res.State, err)
	}
	w.d.Recorded = nil
	w.serves("2", 2)
	groups, err := w.d.Pool.Groups(ctx, "web")
	w.ok(err)
	for _, g := range groups {
		var ids []string
		for _, i := range g.Instances {
			ids = append(ids, i.ID)
		}
		out, err := w.EC2.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: ids})
		w.ok(err)
		n := 0
		for _, r := range out.Reservations {
			for _, i := range r.Instances {
				n++
				for _, v := range []string{"1", "2"} {
					if w.images[v].Digest == g.Image && aws.ToString(i.ImageId) != w.AMI(t, w.images[v]) {
						t.Errorf("%s of slot %s runs %s", aws.ToString(i.InstanceId), g.ID.Slot, aws.ToString(i.ImageId))
					}
				}
			}
		}
		if n != 4 {
			t.Errorf("slot %s has %d instances", g.ID.Slot, n)
		}
	}
	next := w.request("3", 2)
	if next.Spec.Size, err = w.d.Grown(ctx, next.Spec, next.Policy, false); err != nil || next.Spec.Size != 4 {
		t.Errorf("the next deployment is of %d, %v", next.Spec.Size, err)
	}
	if n, err := w.d.Grown(ctx, req.Spec, req.Policy, false); err != nil || n != 2 {
		t.Errorf("the same image again is of %d, %v", n, err)
	}
	if res, err := w.d.Deploy(ctx, next); err != nil || res.State != fleet.Baking {
		t.Fatalf("%s: %v", res.State, err)
	}
	if sent, failed, _ := stop(); failed != 0 {
		t.Errorf("%d of %d requests failed", failed, sent)
	}
	w.destroyed()
}
