//go:build e2e

package awsfleet_test

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ebs"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/alb"
	"github.com/rebake/rebake/fleet/asg"
	"github.com/rebake/rebake/internal/awscalls"
	"github.com/rebake/rebake/test/awsfake"
	"github.com/rebake/rebake/test/disks"
)

// serviceNames are those of the SDK, by those of the cloud's actions.
var serviceNames = map[string]string{"ec2": "EC2", "autoscaling": "AutoScaling", "elasticloadbalancing": "ElasticLoadBalancingv2", "ebs": "EBS"}

// callOf is an action of the cloud as a journal has it; "" for one that only looks.
func callOf(action string) string {
	service, op, _ := strings.Cut(action, ":")
	if awscalls.Reads(op) {
		return ""
	}
	return serviceNames[service] + "." + op
}

const secret = "hunter2"

// watch holds each call that changes something to what is on the disk when the cloud
// gets it, from now on, and counts those that are there.
func (w *world) watch() (seen map[string]int) {
	seen = map[string]int{}
	w.cloud.ResetCalls()
	w.cloud.Fault(awsfake.Fault{Action: "*", Match: func(c *awsfake.Call) bool {
		call := callOf(c.Action)
		if call == "" {
			return false
		}
		all, err := awscalls.Read(w.calls())
		if err != nil {
			w.t.Errorf("%s: %v", call, err)
		}
		block, _ := c.In.(*ebs.PutSnapshotBlockInput)
		open := map[int]bool{}
		for _, e := range all {
			switch {
			case e.Call != call:
			case block == nil:
				open[e.N] = true
			case slices.Contains(e.IDs, *block.SnapshotId): // the first of them stands for all
				seen[call]++
				return false
			}
			delete(open, e.Of)
		}
		if len(open) > 0 {
			seen[call]++
			return false
		}
		w.t.Errorf("%s reached the cloud and is not written down", call)
		return false
	}})
	return seen
}

// wroteDown holds a file to what the cloud got since watch: a line for each call, and
// one of what became of it. Each call that is named must be among them.
func (w *world) wroteDown(path string, seen map[string]int, some ...string) {
	w.t.Helper()
	all, err := awscalls.Read(path)
	w.ok(err)
	written, ended := map[string]int{}, map[int]awscalls.Entry{}
	for _, e := range all {
		if e.Of != 0 {
			ended[e.Of] = e
		}
	}
	for _, e := range all {
		if e.Call == "" {
			continue
		}
		written[e.Call]++
		// the router goes before the groups, and a group before its last activity ends
		if end, ok := ended[e.N]; !ok || end.Error != "" || !slices.Contains([]string{"", "ScalingActivityInProgress", "ValidationError"}, end.Code) {
			w.t.Errorf("%s ended as %+v, %t", e.Call, end, ok)
		}
	}
	for action, n := range w.cloud.Calls() {
		call := callOf(action)
		if call == "" {
			continue
		}
		if call == "EBS.PutSnapshotBlock" {
			if n < 2 {
				w.t.Errorf("%d blocks were sent: the test is blind", n)
			}
			n = 1 // the first of the snapshot
		}
		if written[call] != n {
			w.t.Errorf("%s: %d calls, %d are written down", call, n, written[call])
		}
	}
	for _, call := range some {
		if written[call] == 0 || seen[call] == 0 {
			w.t.Errorf("%s: %d lines, %d seen before they reached the cloud", call, written[call], seen[call])
		}
	}
	raw, err := os.ReadFile(path)
	w.ok(err)
	if strings.Contains(string(raw), secret) || strings.Contains(string(raw), base64.StdEncoding.EncodeToString([]byte(userData))[:40]) {
		w.t.Errorf("a secret is in it:\n%s", raw)
	}
	w.t.Logf("%d calls, %d bytes; %v", len(ended), len(raw), written)
}

const userData = "#!/bin/sh\necho this is user data, as long as you like\n# " + secret

// Whatever changes something is on the disk when the cloud gets it, and afterwards
// what became of it: an AMI that a deployment publishes, groups, targets, weights, a
// rollback, and the end of it all.
func TestEachCallOfAFleetIsWrittenDownBeforeItIsMade(t *testing.T) {
	w := newWorld(t, false, "1")
	w.images["2"] = disks.Bake(t, w.Store, artifact.Image{Name: "web", Version: "2", Arch: "amd64", Firmware: "bios", Seed: "nocloud", Created: time.Now().UTC().Truncate(time.Second)},
		slices.Repeat([]byte("2 "), 1<<20))
	w.d = w.deployer(func(c *asg.Config, _ *alb.Config) { c.Publish, c.Tags = true, map[string]string{"password": secret} })
	seen := w.watch()
	for _, v := range []string{"1", "2"} {
		req := w.request(v, 2)
		req.Spec.UserData = userData
		if res, err := w.d.Deploy(t.Context(), req); err != nil {
			t.Fatalf("%s: %v", res.State, err)
		}
	}
	if res, err := w.d.Rollback(t.Context(), "by hand"); err != nil || res.State != fleet.RolledBack {
		t.Fatalf("%s: %v", res.State, err)
	}
	kept := filepath.Join(w.dir, awscalls.Name) // the fleet's own goes with it
	w.ok(os.Link(w.calls(), kept))
	w.destroyed()
	w.wroteDown(kept, seen, "EBS.StartSnapshot", "EBS.CompleteSnapshot", "EC2.RegisterImage", "EC2.CreateLaunchTemplate", "EC2.DeleteLaunchTemplate",
		"AutoScaling.CreateAutoScalingGroup", "AutoScaling.LaunchInstances", "AutoScaling.UpdateAutoScalingGroup", "AutoScaling.DeleteAutoScalingGroup",
		"ElasticLoadBalancingv2.CreateRule", "ElasticLoadBalancingv2.ModifyRule", "ElasticLoadBalancingv2.DeleteTargetGroup")
}

func TestEachCallOfARefreshIsWrittenDownBeforeItIsMade(t *testing.T) {
	w := newWorld(t, true, "1", "2")
	w.somebodys(4)
	w.d = w.inPlace()
	seen := w.watch()
	for _, v := range []string{"1", "2"} {
		req := w.refresh(v)
		req.Spec.UserData = userData
		if req.Wait = v == "1"; !req.Wait {
			req.Policy.KeepOld = 47 * time.Hour
		}
		if res, err := w.d.Deploy(t.Context(), req); err != nil {
			t.Fatalf("%s: %v", res.State, err)
		}
	}
	if res, err := w.d.Rollback(t.Context(), "by hand"); err != nil || res.State != fleet.RolledBack {
		t.Fatalf("%s: %v", res.State, err)
	}
	w.wroteDown(w.calls(), seen, "EC2.CreateLaunchTemplate", "EC2.DeleteLaunchTemplate", "AutoScaling.StartInstanceRefresh", "AutoScaling.RollbackInstanceRefresh")
	all, err := awscalls.Read(w.calls())
	w.ok(err)
	for n, e := range all { // which one it is, is told by the answer
		if e.Call == "AutoScaling.StartInstanceRefresh" && (e.With["AutoScalingGroupName"] != "web-prod" || len(all[n+1].Made) != 1) {
			t.Errorf("%+v came to %+v", e, all[n+1])
		}
	}
}
