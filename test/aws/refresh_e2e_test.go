//go:build e2e

package aws

import (
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/fleet/asg"
)

// A group that Terraform made is refreshed to images of ours, as a person types it:
// looked at before, killed in the middle, turned round, let go.
func TestAGroupIsRefreshedAsAPersonTypesIt(t *testing.T) {
	r := newRig(t)
	r.cloud.Set(func() { r.cloud.Delays.Stall = 100 * time.Hour }) // what is to be seen is what rebake does about it
	v0 := r.AMI(t, r.Group(t, "web-prod", 3, 80, "/"))
	r.write("web.yaml", `name: web
build:
  qemu: {from: {debian: bookworm}}
fleet:
  pool: {asg: {adopt: web-prod, publish: true}}
  health: {http: {port: 80, path: /}, within: 60s, refuse_after: 2s}
  deploy:
    strategy: refresh
    min_healthy: 60%
    max_surge: 40%
    steps: [{weight: 30, hold: 10m}, {weight: 100, hold: 1s}]
    keep_old: 47h
`)
	for _, v := range []string{"1.0.0", "2.0.0", "3.0.0"} {
		r.bake(v, disk(v))
	}
	r.serves(v0)
	plan, _ := r.rebake(0, "deploy", "web.yaml", "--image", "web:1.0.0", "--plan")
	for _, want := range []string{"replacing", "group web-prod is refreshed in place", "going back is no traffic write", "ignore_changes = [launch_template]", "refresh: worst case"} {
		if !strings.Contains(plan, want) {
			t.Errorf("the plan does not say %q:\n%s", want, plan)
		}
	}
	policy, _ := r.rebake(0, "aws", "policy", "web.yaml")
	for want, there := range map[string]bool{"autoscaling:StartInstanceRefresh": true, "autoScalingGroupName/web-prod": true, "autoscaling:CreateAutoScalingGroup": false, "elasticloadbalancing:ModifyRule": false} {
		if strings.Contains(policy, want) != there {
			t.Errorf("the policy has %s: %t", want, !there)
		}
	}
	if _, why := r.rebake(1, "deploy", "web.yaml", "--rehearse"); !strings.Contains(why, "--plan") {
		t.Errorf("a rehearsal: %s", why)
	}

	r.under("the first refresh, killed and resumed", func() {
		r.rebake(0, "deploy", "web.yaml", "--image", "web:1.0.0")
		r.rebake(0, "rollback", "web") // turned round: back on what somebody else made
		r.serves(v0)
		r.edit("keep_old: 47h", "keep_old: 1m")
		r.rebake(0, "deploy", "web.yaml", "--image", "web:1.0.0", "--wait")
		r.killed(4, "deploy", "web.yaml", "--image", "web:2.0.0", "--wait")
		r.rebake(0, "deploy", "resume", "web", "--wait")
	})
	v2, _ := r.ami("2.0.0")
	r.serves(v2)
	status, _ := r.rebake(0, "fleet", "status", "web")
	for _, word := range []string{"2.0.0", "L7OK", "group web-prod"} {
		if !strings.Contains(status, word) {
			t.Errorf("no %s in the status:\n%s", word, status)
		}
	}
	if _, why := r.rebake(1, "fleet", "heal", "web"); !strings.Contains(why, "--redeploy") {
		t.Errorf("heal: %s", why)
	}

	r.rebake(0, "ami", "publish", "web:3.0.0")
	v3, _ := r.ami("3.0.0")
	r.mu.Lock()
	r.sick[v3] = true
	r.mu.Unlock()
	r.under("a broken image", func() {
		if _, why := r.rebake(3, "deploy", "web.yaml", "--image", "web:3.0.0"); !strings.Contains(why, "L7STS/500") {
			t.Errorf("why it was refused is not said:\n%s", why)
		}
	})
	r.serves(v2)
	history, _ := r.rebake(0, "fleet", "history", "web")
	if !strings.Contains(history, "rolled back") || !strings.Contains(history, "promoted") {
		t.Errorf("the history:\n%s", history)
	}
	r.rebake(0, "fleet", "destroy", "web", "--yes")
	r.serves(v2) // the group goes on
	if left := r.Left(t, "web"); len(left) != 4 {
		t.Errorf("destroy left three instances and the template that they are of, and more: %v (tag %s)", left, asg.TagFleet)
	}
}
