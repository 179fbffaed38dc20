package alb_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/alb"
	"github.com/rebake/rebake/test/awsfleet"
)

const ms = time.Millisecond

var health = fleet.HealthCheck{Type: "http", Port: 80, Path: "/health", Interval: 5 * time.Second, Timeout: 2 * time.Second, Rise: 2, Fall: 2}

func open(t testing.TB, cfg alb.Config) *alb.Router {
	t.Helper()
	r, err := alb.New(cfg, "suite", health, alb.Options{Poll: 2 * ms})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// machine runs an instance of its own, as a member.
func machine(t testing.TB, w *awsfleet.World, ami string, port int) fleet.Member {
	t.Helper()
	m := fleet.Member{ID: run(t, w, ami)}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); <-time.After(2 * ms) {
		in, err := w.EC2.DescribeInstances(t.Context(), &ec2.DescribeInstancesInput{InstanceIds: []string{m.ID}})
		if err == nil && in.Reservations[0].Instances[0].State.Name == types.InstanceStateNameRunning {
			m.Addr = aws.ToString(in.Reservations[0].Instances[0].PrivateIpAddress) + ":" + strconv.Itoa(port)
			return m
		}
	}
	t.Fatalf("%s does not run", m.ID)
	return m
}

func await(t testing.TB, r *alb.Router, what string, so func(fleet.RouterStatus) bool) {
	t.Helper()
	end := time.Now().Add(10 * time.Second)
	for {
		st, err := r.Status(t.Context())
		ok(t, err)
		if so(st) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s: %+v", what, st)
		}
		<-time.After(2 * ms)
	}
}

// weights are those of a rule's forward action, by the last word of the target group's name.
func weights(t testing.TB, w *awsfleet.World, rule string) map[string]int {
	t.Helper()
	out, err := w.ELB.DescribeRules(t.Context(), &elb.DescribeRulesInput{RuleArns: []string{rule}})
	ok(t, err)
	all := map[string]int{}
	for _, a := range out.Rules[0].Actions {
		if a.ForwardConfig == nil {
			continue
		}
		for _, g := range a.ForwardConfig.TargetGroups {
			name := strings.Split(aws.ToString(g.TargetGroupArn), "/")[1]
			all[name[strings.LastIndex(name, "-")+1:]] = int(aws.ToInt32(g.Weight))
		}
	}
	return all
}

func theRule(t testing.TB, w *awsfleet.World, priority string) string {
	t.Helper()
	out, err := w.ELB.DescribeRules(t.Context(), &elb.DescribeRulesInput{ListenerArn: &w.Listener})
	ok(t, err)
	for _, r := range out.Rules {
		if aws.ToString(r.Priority) == priority {
			return aws.ToString(r.RuleArn)
		}
	}
	t.Fatalf("no rule of priority %s", priority)
	return ""
}

// ruleIsMade: from nothing to traffic and back to nothing.
func ruleIsMade(t *testing.T) {
	ctx := t.Context()
	w := awsfleet.New(t)
	r := open(t, alb.Config{Listener: w.Listener, Priority: 10, Stickiness: 0, Preview: alb.Preview{Header: "X-Slot", Priority: 5}})
	if st, err := r.Status(ctx); err != nil || st.Up {
		t.Fatalf("before it was made: %+v, %v", st, err)
	}
	for range 2 {
		ok(t, r.Ensure(ctx))
	}
	m := machine(t, w, w.AMI(t, w.Image(t, "1")), 80)
	ok(t, r.Attach(ctx, fleet.Blue, []fleet.Member{m}))
	await(t, r, "healthy", func(st fleet.RouterStatus) bool {
		return len(st.Members[fleet.Blue]) == 1 && st.Members[fleet.Blue][0].Healthy
	})
	ok(t, r.SetWeights(ctx, map[fleet.Slot]int{fleet.Blue: 1000}))
	rule := theRule(t, w, "10")
	if got := weights(t, w, rule); got["blue"] != 999 || got["green"] != 0 {
		t.Errorf("weights are %v", got)
	}
	if err := r.SetWeights(ctx, map[fleet.Slot]int{fleet.Blue: 500, fleet.Green: 500}); !errors.Is(err, fleet.ErrNotHealthy) {
		t.Errorf("traffic for a slot without targets: %v", err)
	}
	again := open(t, alb.Config{Listener: w.Listener, Priority: 10})
	st, err := again.Status(ctx)
	ok(t, err)
	if !st.Up || st.Weights[fleet.Blue] != 1000 || len(st.Members[fleet.Blue]) != 1 || st.Members[fleet.Blue][0].Member != m {
		t.Errorf("another process sees %+v, want %+v", st, m)
	}
	ok(t, again.Fence(ctx, 8))
	ok(t, r.Fence(ctx, 8))
	ok(t, again.Fence(ctx, 9))
	if err := r.SetWeights(ctx, map[fleet.Slot]int{}); !errors.Is(err, fleet.ErrStale) {
		t.Errorf("an operator who was replaced: %v", err)
	}
	ok(t, again.Drain(ctx, fleet.Blue))
	await(t, again, "drained", func(st fleet.RouterStatus) bool { return len(st.Members[fleet.Blue]) == 0 })
	for range 2 {
		ok(t, again.Remove(ctx))
	}
	if left := w.Left(t, "suite"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// ruleIsAdopted: somebody else's rule gives its traffic to rebake's slots, and has
// it back when they have none; what else is in it stays.
func ruleIsAdopted(t *testing.T) {
	ctx := t.Context()
	w := awsfleet.New(t)
	theirs, err := w.ELB.CreateTargetGroup(ctx, &elb.CreateTargetGroupInput{Name: aws.String("legacy"), Protocol: elbtypes.ProtocolEnumHttp, Port: aws.Int32(80), VpcId: &w.VPC})
	ok(t, err)
	made, err := w.ELB.CreateRule(ctx, &elb.CreateRuleInput{ListenerArn: &w.Listener, Priority: aws.Int32(70),
		Conditions: []elbtypes.RuleCondition{{Field: aws.String("path-pattern"), PathPatternConfig: &elbtypes.PathPatternConditionConfig{Values: []string{"/*"}}}},
		Actions: []elbtypes.Action{{Type: elbtypes.ActionTypeEnumForward, ForwardConfig: &elbtypes.ForwardActionConfig{
			TargetGroups:                []elbtypes.TargetGroupTuple{{TargetGroupArn: theirs.TargetGroups[0].TargetGroupArn, Weight: aws.Int32(7)}},
			TargetGroupStickinessConfig: &elbtypes.TargetGroupStickinessConfig{Enabled: aws.Bool(true), DurationSeconds: aws.Int32(77)}}}}})
	ok(t, err)
	rule := aws.ToString(made.Rules[0].RuleArn)
	r := open(t, alb.Config{Rule: rule})
	ok(t, r.Ensure(ctx))
	if got := weights(t, w, rule); got["legacy"] != 7 || len(got) != 3 {
		t.Errorf("adopted: %v", got)
	}
	m := machine(t, w, w.AMI(t, w.Image(t, "2")), 80)
	ok(t, r.Attach(ctx, fleet.Green, []fleet.Member{m}))
	await(t, r, "healthy", func(st fleet.RouterStatus) bool {
		return len(st.Members[fleet.Green]) == 1 && st.Members[fleet.Green][0].Healthy
	})
	ok(t, r.SetWeights(ctx, map[fleet.Slot]int{fleet.Green: 1000}))
	if got := weights(t, w, rule); got["legacy"] != 0 || got["green"] != 999 {
		t.Errorf("with traffic: %v", got)
	}
	out, err := w.ELB.DescribeRules(ctx, &elb.DescribeRulesInput{RuleArns: []string{rule}})
	ok(t, err)
	if s := out.Rules[0].Actions[0].ForwardConfig.TargetGroupStickinessConfig; s == nil || aws.ToInt32(s.DurationSeconds) != 77 {
		t.Errorf("the stickiness was lost: %+v", s)
	}
	p, err := r.Fit(ctx, fleet.Policy{}, 1)
	if err != nil || p.KeepOld < 77*time.Second || p.Drain < 30*time.Second {
		t.Errorf("policy %+v, %v", p, err)
	}
	// somebody gives it back between two looks
	f := out.Rules[0].Actions[0].ForwardConfig
	for i := range f.TargetGroups {
		f.TargetGroups[i].Weight = aws.Int32(int32(i * 3))
	}
	_, err = w.ELB.ModifyRule(ctx, &elb.ModifyRuleInput{RuleArn: &rule, Actions: []elbtypes.Action{{Type: elbtypes.ActionTypeEnumForward, ForwardConfig: f}}})
	ok(t, err)
	if err := r.SetWeights(ctx, map[fleet.Slot]int{fleet.Green: 1000}); !errors.Is(err, alb.ErrChanged) {
		t.Errorf("an edited rule: %v", err)
	}
	if _, err := r.Status(ctx); err != nil { // somebody looked
		t.Error(err)
	}
	ok(t, r.SetWeights(ctx, map[fleet.Slot]int{fleet.Green: 1000}))
	ok(t, r.SetWeights(ctx, map[fleet.Slot]int{}))
	if got := weights(t, w, rule); got["legacy"] == 0 || got["green"] != 0 {
		t.Errorf("given back: %v", got)
	}
	ok(t, r.Drain(ctx, fleet.Green))
	await(t, r, "drained", func(st fleet.RouterStatus) bool { return len(st.Members[fleet.Green]) == 0 })
	ok(t, r.Remove(ctx))
	if got := weights(t, w, rule); got["legacy"] == 0 || len(got) != 1 {
		t.Errorf("removed: %v", got)
	}
	if left := w.Left(t, "suite"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
