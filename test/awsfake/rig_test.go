package awsfake_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	asgtypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	"github.com/rebake/rebake/artifact/ami"
)

const region = "eu-central-1"

// rig are the SDK's clients of one region.
type rig struct {
	t   testing.TB
	ctx context.Context
	ec2 *ec2.Client
	asg *autoscaling.Client
	elb *elb.Client
	ebs *ebs.Client
	cw  *cloudwatch.Client
	ssm *ssm.Client
	sts *sts.Client
}

// clients never try again by themselves: a test sees each refusal. But they do after
// what the comment on buffered in serve.go tells of.
func clients(t testing.TB) *rig {
	t.Helper()
	cfg, err := ami.Config(t.Context(), region)
	if err != nil {
		t.Fatal(err)
	}
	cut := retry.IsErrorRetryableFunc(func(err error) aws.Ternary {
		return aws.BoolTernary(strings.Contains(err.Error(), "use of closed network connection"))
	})
	cfg.Retryer = func() aws.Retryer {
		return retry.NewStandard(func(o *retry.StandardOptions) {
			o.Retryables, o.MaxBackoff = []retry.IsErrorRetryable{cut}, time.Millisecond
		})
	}
	return &rig{t, t.Context(), ec2.NewFromConfig(cfg), autoscaling.NewFromConfig(cfg), elb.NewFromConfig(cfg), ebs.NewFromConfig(cfg), cloudwatch.NewFromConfig(cfg), ssm.NewFromConfig(cfg), sts.NewFromConfig(cfg)}
}

// must is the output of a call that works.
func must[O any](out O, err error) func(testing.TB) O {
	return func(t testing.TB) O {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
}

func wantCode(t testing.TB, err error, code string) {
	t.Helper()
	var api smithy.APIError
	if !errors.As(err, &api) || api.ErrorCode() != code {
		t.Fatalf("%v, want %s", err, code)
	}
}

// eventually waits, of this process's time, until f is true.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// template makes a launch template with a version per image.
func (r *rig) template(name string, images ...string) string {
	r.t.Helper()
	id := ""
	for n, img := range images {
		data := &ec2types.RequestLaunchTemplateData{ImageId: aws.String(img), InstanceType: "t3.micro"}
		if n == 0 {
			out := must(r.ec2.CreateLaunchTemplate(r.ctx, &ec2.CreateLaunchTemplateInput{LaunchTemplateName: &name, LaunchTemplateData: data}))(r.t)
			id = *out.LaunchTemplate.LaunchTemplateId
			continue
		}
		must(r.ec2.CreateLaunchTemplateVersion(r.ctx, &ec2.CreateLaunchTemplateVersionInput{LaunchTemplateId: &id, LaunchTemplateData: data}))(r.t)
	}
	return id
}

// balance makes a load balancer with one listener, whose default answer is 404, and
// target groups that a rule gives these weights.
func (r *rig) balance(weights map[string]int32) (listener, rule string, groups map[string]string) {
	r.t.Helper()
	subnets := must(r.ec2.DescribeSubnets(r.ctx, &ec2.DescribeSubnetsInput{}))(r.t).Subnets
	lb := must(r.elb.CreateLoadBalancer(r.ctx, &elb.CreateLoadBalancerInput{Name: aws.String("web"), Subnets: []string{*subnets[0].SubnetId, *subnets[1].SubnetId}}))(r.t).LoadBalancers[0]
	listener = *must(r.elb.CreateListener(r.ctx, &elb.CreateListenerInput{LoadBalancerArn: lb.LoadBalancerArn, Port: aws.Int32(8080), Protocol: elbtypes.ProtocolEnumHttp,
		DefaultActions: []elbtypes.Action{{Type: elbtypes.ActionTypeEnumFixedResponse, FixedResponseConfig: &elbtypes.FixedResponseActionConfig{StatusCode: aws.String("404")}}}}))(r.t).Listeners[0].ListenerArn
	groups = map[string]string{}
	for _, name := range []string{"blue", "green"} {
		g := must(r.elb.CreateTargetGroup(r.ctx, &elb.CreateTargetGroupInput{Name: &name, Port: aws.Int32(80), Protocol: elbtypes.ProtocolEnumHttp, VpcId: lb.VpcId, HealthCheckIntervalSeconds: aws.Int32(10)}))(r.t)
		groups[name] = *g.TargetGroups[0].TargetGroupArn
	}
	rule = *must(r.elb.CreateRule(r.ctx, &elb.CreateRuleInput{ListenerArn: &listener, Priority: aws.Int32(10), Actions: forward(groups, weights),
		Conditions: []elbtypes.RuleCondition{{Field: aws.String("path-pattern"), Values: []string{"/*"}}}}))(r.t).Rules[0].RuleArn
	return listener, rule, groups
}

func forward(groups map[string]string, weights map[string]int32) []elbtypes.Action {
	f := &elbtypes.ForwardActionConfig{}
	for _, name := range []string{"blue", "green"} {
		if w, ok := weights[name]; ok {
			f.TargetGroups = append(f.TargetGroups, elbtypes.TargetGroupTuple{TargetGroupArn: aws.String(groups[name]), Weight: aws.Int32(w)})
		}
	}
	return []elbtypes.Action{{Type: elbtypes.ActionTypeEnumForward, ForwardConfig: f}}
}

// fleet makes a group in all zones and waits until it is in service.
func (r *rig) fleet(name, template, version string, size int32, targets ...string) {
	r.t.Helper()
	must(r.asg.CreateAutoScalingGroup(r.ctx, &autoscaling.CreateAutoScalingGroupInput{AutoScalingGroupName: &name, MinSize: aws.Int32(0), MaxSize: aws.Int32(20), DesiredCapacity: &size,
		LaunchTemplate:    &asgtypes.LaunchTemplateSpecification{LaunchTemplateId: &template, Version: &version},
		AvailabilityZones: []string{region + "a", region + "b", region + "c"}, TargetGroupARNs: targets,
		Tags: []asgtypes.Tag{{Key: aws.String("rebake:fleet"), Value: &name, PropagateAtLaunch: aws.Bool(true)}}}))(r.t)
	r.settled(name, int(size))
}

// settled waits until a group has exactly n instances, all in service.
func (r *rig) settled(name string, n int) []asgtypes.Instance {
	r.t.Helper()
	var list []asgtypes.Instance
	eventually(r.t, name+" has its instances in service", func() bool {
		list = r.group(name).Instances
		for _, i := range list {
			if i.LifecycleState != asgtypes.LifecycleStateInService {
				return false
			}
		}
		return len(list) == n
	})
	return list
}

func (r *rig) group(name string) asgtypes.AutoScalingGroup {
	r.t.Helper()
	out := must(r.asg.DescribeAutoScalingGroups(r.ctx, &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{name}}))(r.t)
	if len(out.AutoScalingGroups) != 1 {
		return asgtypes.AutoScalingGroup{}
	}
	return out.AutoScalingGroups[0]
}

// health counts the targets of a group by their state.
func (r *rig) health(arn string) map[elbtypes.TargetHealthStateEnum]int {
	r.t.Helper()
	states := map[elbtypes.TargetHealthStateEnum]int{}
	for _, d := range must(r.elb.DescribeTargetHealth(r.ctx, &elb.DescribeTargetHealthInput{TargetGroupArn: &arn}))(r.t).TargetHealthDescriptions {
		states[d.TargetHealth.State]++
	}
	return states
}

func attribute(key, value string) []elbtypes.TargetGroupAttribute {
	return []elbtypes.TargetGroupAttribute{{Key: &key, Value: &value}}
}
