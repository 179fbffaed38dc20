package awsfleet

import (
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"

	"github.com/rebake/rebake/artifact"
)

// Group makes what an operator had before rebake: a group of n healthy instances,
// behind a target group that the listener forwards to. The image is theirs, version 0.
func (w *World) Group(t testing.TB, name string, n, port int, path string) artifact.Image {
	t.Helper()
	ctx := t.Context()
	own := w.Image(t, "0")
	_, err := w.EC2.CreateLaunchTemplate(ctx, &ec2.CreateLaunchTemplateInput{LaunchTemplateName: aws.String("terraform"),
		LaunchTemplateData: &types.RequestLaunchTemplateData{ImageId: aws.String(w.AMI(t, own)), InstanceType: types.InstanceTypeT3Small}})
	ok(t, err)
	tg, err := w.ELB.CreateTargetGroup(ctx, &elb.CreateTargetGroupInput{Name: aws.String("front"), Protocol: elbtypes.ProtocolEnumHttp, Port: aws.Int32(int32(port)), VpcId: &w.VPC,
		HealthCheckPath: &path, HealthCheckIntervalSeconds: aws.Int32(5), HealthCheckTimeoutSeconds: aws.Int32(4), HealthyThresholdCount: aws.Int32(2), UnhealthyThresholdCount: aws.Int32(2)})
	ok(t, err)
	arn := tg.TargetGroups[0].TargetGroupArn
	_, err = w.ELB.ModifyListener(ctx, &elb.ModifyListenerInput{ListenerArn: &w.Listener, DefaultActions: []elbtypes.Action{{Type: elbtypes.ActionTypeEnumForward, TargetGroupArn: arn}}})
	ok(t, err)
	_, err = w.AS.CreateAutoScalingGroup(ctx, &autoscaling.CreateAutoScalingGroupInput{AutoScalingGroupName: &name, MinSize: aws.Int32(0), MaxSize: aws.Int32(20), DesiredCapacity: aws.Int32(int32(n)),
		VPCZoneIdentifier: aws.String(strings.Join(w.Subnets, ",")), TargetGroupARNs: []string{*arn}, HealthCheckType: aws.String("EC2"), HealthCheckGracePeriod: aws.Int32(300), DefaultInstanceWarmup: aws.Int32(0),
		LaunchTemplate: &astypes.LaunchTemplateSpecification{LaunchTemplateName: aws.String("terraform"), Version: aws.String("1")}})
	ok(t, err)
	until(t, "group "+name, func() bool {
		out, err := w.ELB.DescribeTargetHealth(ctx, &elb.DescribeTargetHealthInput{TargetGroupArn: arn})
		ok(t, err)
		well := 0
		for _, one := range out.TargetHealthDescriptions {
			if one.TargetHealth.State == elbtypes.TargetHealthStateEnumHealthy {
				well++
			}
		}
		return well == n
	})
	return own
}
