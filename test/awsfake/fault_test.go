package awsfake_test

import (
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/test/awsfake"
)

func TestAnAnswerIsLostAndTheDeedIsDone(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	one, _ := images(c)
	c.Fault(awsfake.Fault{Action: "ec2:RunInstances", Times: 1, After: true})
	in := &ec2.RunInstancesInput{ImageId: &one, MinCount: aws.Int32(1), MaxCount: aws.Int32(1), ClientToken: aws.String("x")}
	if _, err := r.ec2.RunInstances(r.ctx, in); err == nil {
		t.Fatal("the answer was to be lost")
	}
	out := must(r.ec2.RunInstances(r.ctx, in))(t)
	if n := c.Instances(region); len(n) != 1 || n[0].ID != *out.Instances[0].InstanceId {
		t.Errorf("%+v", n)
	}
	j := c.Journal()
	if len(j) != 2 || !j[0].Lost || j[1].Lost || j[0].Action != "ec2:RunInstances" || *j[0].In.(*ec2.RunInstancesInput).ClientToken != "x" {
		t.Errorf("%+v", j)
	}
}

func TestFaultsByRule(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	gone := c.Fault(awsfake.Fault{Action: "autoscaling:Describe*", Skip: 1, Times: 2, Code: "InternalFailure"})
	describe := func() error {
		_, err := r.asg.DescribeAutoScalingGroups(r.ctx, &autoscaling.DescribeAutoScalingGroupsInput{})
		return err
	}
	for n, code := range []string{"", "InternalFailure", "InternalFailure", ""} {
		if err := describe(); code != "" {
			wantCode(t, err, code)
		} else if err != nil {
			t.Errorf("call %d: %v", n, err)
		}
	}
	if c.Hits() != 2 {
		t.Errorf("%d hits", c.Hits())
	}
	gone()
	if c.Hits() != 0 || c.Calls()["autoscaling:DescribeAutoScalingGroups"] != 4 {
		t.Errorf("%d %v", c.Hits(), c.Calls())
	}
	c.Seed(7)
	c.Fault(awsfake.Fault{Action: "autoscaling:*", Chance: 0.5, Code: "Throttling"})
	bad := 0
	for range 100 {
		if describe() != nil {
			bad++
		}
	}
	if bad < 30 || bad > 70 {
		t.Errorf("%d of 100 at a chance of one half", bad)
	}
}

func TestWhatIsNewIsNotFoundForAWhile(t *testing.T) {
	c := awsfake.Start(t)
	c.Speed, c.Lag = 100, 20*time.Second // 200 ms
	r := clients(t)
	id := *must(r.ec2.CreateSecurityGroup(r.ctx, &ec2.CreateSecurityGroupInput{GroupName: aws.String("g"), Description: aws.String("d")}))(t).GroupId
	_, err := r.ec2.DescribeSecurityGroups(r.ctx, &ec2.DescribeSecurityGroupsInput{GroupIds: []string{id}})
	wantCode(t, err, "InvalidGroup.NotFound")
	eventually(t, "it is found", func() bool {
		_, err := r.ec2.DescribeSecurityGroups(r.ctx, &ec2.DescribeSecurityGroupsInput{GroupIds: []string{id}})
		return err == nil
	})
}

func TestADescriptionMayBeStale(t *testing.T) {
	c := awsfake.Start(t)
	c.Speed = 100
	r := clients(t)
	_, rule, groups := r.balance(map[string]int32{"blue": 1, "green": 0})
	weight := func() int32 {
		return *must(r.elb.DescribeRules(r.ctx, &elb.DescribeRulesInput{RuleArns: []string{rule}}))(t).Rules[0].Actions[0].ForwardConfig.TargetGroups[1].Weight
	}
	if w := weight(); w != 0 {
		t.Fatal(w)
	}
	c.Fault(awsfake.Fault{Action: "elasticloadbalancing:DescribeRules", Stale: 20 * time.Second})
	must(r.elb.ModifyRule(r.ctx, &elb.ModifyRuleInput{RuleArn: &rule, Actions: forward(groups, map[string]int32{"blue": 1, "green": 9})}))(t)
	if w := weight(); w != 0 {
		t.Errorf("weight %d, want the old one", w)
	}
	eventually(t, "the new weight is seen", func() bool { return weight() == 9 })
}

// TestThrottlingAsDocumented sees that the bucket empties, refills and that the
// SDK's own retries come through.
func TestThrottlingAsDocumented(t *testing.T) {
	c := awsfake.Start(t)
	c.Speed, c.Throttle = 1, awsfake.Documented
	r := clients(t)
	refused := 0
	for range 130 {
		if _, err := r.ec2.DescribeVpcs(r.ctx, &ec2.DescribeVpcsInput{}); err != nil {
			wantCode(t, err, "RequestLimitExceeded")
			refused++
		}
	}
	if refused < 10 || refused > 30 {
		t.Errorf("%d of 130 refused, the bucket holds 100", refused)
	}
	must(r.ec2.DescribeSubnets(r.ctx, &ec2.DescribeSubnetsInput{}))(t) // each action of EC2 has its own
	one, _ := images(c)
	_, err := r.ec2.RunInstances(r.ctx, &ec2.RunInstancesInput{ImageId: &one, MinCount: aws.Int32(1), MaxCount: aws.Int32(1001)})
	wantCode(t, err, "RequestLimitExceeded") // a token for each instance, and the bucket holds 1000
	c.Set(func() { c.Speed = 50 })
	cfg := must(ami.Config(t.Context(), region))(t)
	cfg.Retryer = func() aws.Retryer {
		return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts, o.MaxBackoff = 10, 50*time.Millisecond })
	}
	patient := elb.NewFromConfig(cfg)
	var wg sync.WaitGroup
	for range 60 {
		wg.Go(func() {
			if _, err := patient.DescribeTargetGroups(r.ctx, &elb.DescribeTargetGroupsInput{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestRulesRefuseWhatELBRefuses(t *testing.T) {
	awsfake.Start(t)
	r := clients(t)
	listener, rule, groups := r.balance(map[string]int32{"blue": 1, "green": 0})
	_, err := r.elb.CreateRule(r.ctx, &elb.CreateRuleInput{ListenerArn: &listener, Priority: aws.Int32(10), Actions: forward(groups, map[string]int32{"blue": 1}), Conditions: []elbtypes.RuleCondition{{Field: aws.String("path-pattern"), Values: []string{"/x"}}}})
	wantCode(t, err, "PriorityInUse")
	_, err = r.elb.ModifyRule(r.ctx, &elb.ModifyRuleInput{RuleArn: &rule, Actions: forward(groups, map[string]int32{"blue": 1000})})
	wantCode(t, err, "ValidationError")
	_, err = r.elb.DeleteTargetGroup(r.ctx, &elb.DeleteTargetGroupInput{TargetGroupArn: aws.String(groups["green"])})
	wantCode(t, err, "ResourceInUse")
	must(r.elb.ModifyRule(r.ctx, &elb.ModifyRuleInput{RuleArn: &rule, Actions: forward(groups, map[string]int32{"blue": 7})}))(t)
	got := must(r.elb.DescribeRules(r.ctx, &elb.DescribeRulesInput{ListenerArn: &listener}))(t).Rules
	if len(got) != 2 || !*got[1].IsDefault || len(got[0].Actions[0].ForwardConfig.TargetGroups) != 1 || *got[0].Actions[0].TargetGroupArn != groups["blue"] {
		t.Errorf("a modified rule has the new list alone: %+v", got)
	}
	must(r.elb.AddTags(r.ctx, &elb.AddTagsInput{ResourceArns: []string{rule}, Tags: []elbtypes.Tag{{Key: aws.String("rebake:epoch"), Value: aws.String("3")}}}))(t)
	tags := must(r.elb.DescribeTags(r.ctx, &elb.DescribeTagsInput{ResourceArns: []string{rule}}))(t).TagDescriptions[0].Tags
	if len(tags) != 1 || *tags[0].Value != "3" {
		t.Errorf("%+v", tags)
	}
	must(r.elb.SetRulePriorities(r.ctx, &elb.SetRulePrioritiesInput{RulePriorities: []elbtypes.RulePriorityPair{{RuleArn: &rule, Priority: aws.Int32(20)}}}))(t)
	must(r.elb.DeleteRule(r.ctx, &elb.DeleteRuleInput{RuleArn: &rule}))(t)
	_, err = r.elb.ModifyRule(r.ctx, &elb.ModifyRuleInput{RuleArn: &rule, Actions: forward(groups, map[string]int32{"blue": 7})})
	wantCode(t, err, "RuleNotFound")
	must(r.elb.DeleteTargetGroup(r.ctx, &elb.DeleteTargetGroupInput{TargetGroupArn: aws.String(groups["green"])}))(t)
}
