package awsfake_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	asgtypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	cwtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/rebake/rebake/test/awsfake"
)

// metric sums a metric of a target group over the last hour and the next minute.
func (r *rig) metric(name, stat, group string) (sum float64, buckets int) {
	r.t.Helper()
	out := must(r.cw.GetMetricData(r.ctx, &cloudwatch.GetMetricDataInput{StartTime: aws.Time(time.Now().Add(-time.Hour)), EndTime: aws.Time(time.Now().Add(time.Minute)),
		MetricDataQueries: []cwtypes.MetricDataQuery{{Id: aws.String("m"), MetricStat: &cwtypes.MetricStat{Period: aws.Int32(60), Stat: &stat, Metric: &cwtypes.Metric{Namespace: aws.String("AWS/ApplicationELB"), MetricName: &name,
			Dimensions: []cwtypes.Dimension{{Name: aws.String("TargetGroup"), Value: aws.String(group[strings.LastIndex(group, ":")+1:])}}}}}}}))(r.t).MetricDataResults[0]
	for _, v := range out.Values {
		sum += v
	}
	return sum, len(out.Timestamps)
}

func TestMetricsAreOfRealRequestsAndLate(t *testing.T) {
	c := awsfake.Start(t)
	c.Speed = 400 // the delay of a minute takes 150 ms
	c.Status = func(_ awsfake.Instance, req *http.Request) int {
		if req.Method == http.MethodPost {
			return 500
		}
		return 200
	}
	r := clients(t)
	one, _ := images(c)
	listener, _, groups := r.balance(map[string]int32{"blue": 1, "green": 0})
	r.fleet("web", r.template("web", one), "1", 1, groups["blue"])
	eventually(t, "healthy", func() bool { return r.health(groups["blue"])["healthy"] == 1 })
	load(t, c.ListenerURL(listener), 12)
	if n, _ := r.metric("RequestCount", "Sum", groups["blue"]); n != 0 {
		t.Errorf("%v requests are told at once", n)
	}
	eventually(t, "they are told", func() bool { n, _ := r.metric("RequestCount", "Sum", groups["blue"]); return n == 12 })
	if n, _ := r.metric("HTTPCode_Target_5XX_Count", "Sum", groups["blue"]); n != 12 {
		t.Errorf("%v of 12 with 5xx", n)
	}
	if v, n := r.metric("TargetResponseTime", "p90", groups["blue"]); n == 0 || v <= 0 || v > 60 {
		t.Errorf("%v s in %d buckets", v, n)
	}
	if v, n := r.metric("RequestCount", "Sum", groups["green"]); n != 0 || v != 0 {
		t.Errorf("green: %v in %d buckets, want none at all", v, n)
	}
	if v, _ := r.metric("HealthyHostCount", "Maximum", groups["blue"]); v != 1 {
		t.Errorf("%v healthy hosts", v)
	}
}

func TestAlarms(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	must(r.cw.PutMetricAlarm(r.ctx, &cloudwatch.PutMetricAlarmInput{AlarmName: aws.String("a"), MetricName: aws.String("m"), Namespace: aws.String("n"), Threshold: aws.Float64(-1.5), EvaluationPeriods: aws.Int32(1), ComparisonOperator: "GreaterThanThreshold"}))(t)
	c.SetAlarm(region, "b", "ALARM", "by the test")
	all := must(r.cw.DescribeAlarms(r.ctx, &cloudwatch.DescribeAlarmsInput{}))(t).MetricAlarms
	if len(all) != 2 || all[0].StateValue != cwtypes.StateValueInsufficientData || *all[0].Threshold != -1.5 || all[1].StateValue != cwtypes.StateValueAlarm || all[1].StateUpdatedTimestamp == nil {
		t.Errorf("%+v", all)
	}
	bad := must(r.cw.DescribeAlarms(r.ctx, &cloudwatch.DescribeAlarmsInput{StateValue: "ALARM"}))(t).MetricAlarms
	if len(bad) != 1 || *bad[0].AlarmName != "b" {
		t.Errorf("%+v", bad)
	}
	_, err := r.cw.SetAlarmState(r.ctx, &cloudwatch.SetAlarmStateInput{AlarmName: aws.String("c"), StateValue: "OK", StateReason: aws.String("r")})
	wantCode(t, err, "ResourceNotFound")
}

func TestTheSmallServices(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	if id := must(r.sts.GetCallerIdentity(r.ctx, &sts.GetCallerIdentityInput{}))(t); *id.Account != awsfake.Account {
		t.Errorf("%+v", id)
	}
	c.SetParameter(region, "/aws/service/debian/release/13/latest/amd64", "ami-1")
	if p := must(r.ssm.GetParameter(r.ctx, &ssm.GetParameterInput{Name: aws.String("/aws/service/debian/release/13/latest/amd64")}))(t).Parameter; *p.Value != "ami-1" {
		t.Errorf("%+v", p)
	}
	_, err := r.ssm.GetParameter(r.ctx, &ssm.GetParameterInput{Name: aws.String("/no")})
	wantCode(t, err, "ParameterNotFound")
}

func TestPoliciesAndScheduledActions(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	one, _ := images(c)
	name := aws.String("web")
	must(r.asg.CreateLaunchConfiguration(r.ctx, &autoscaling.CreateLaunchConfigurationInput{LaunchConfigurationName: aws.String("old"), ImageId: &one, InstanceType: aws.String("t3.small")}))(t)
	must(r.asg.CreateAutoScalingGroup(r.ctx, &autoscaling.CreateAutoScalingGroupInput{AutoScalingGroupName: name, MinSize: aws.Int32(0), MaxSize: aws.Int32(3), LaunchConfigurationName: aws.String("old"), AvailabilityZones: []string{region + "a"}}))(t)
	must(r.asg.PutScalingPolicy(r.ctx, &autoscaling.PutScalingPolicyInput{AutoScalingGroupName: name, PolicyName: aws.String("cpu"), PolicyType: aws.String("TargetTrackingScaling"),
		TargetTrackingConfiguration: &asgtypes.TargetTrackingConfiguration{TargetValue: aws.Float64(50), PredefinedMetricSpecification: &asgtypes.PredefinedMetricSpecification{PredefinedMetricType: "ASGAverageCPUUtilization"}}}))(t)
	p := must(r.asg.DescribePolicies(r.ctx, &autoscaling.DescribePoliciesInput{AutoScalingGroupName: name}))(t).ScalingPolicies
	if len(p) != 1 || *p[0].TargetTrackingConfiguration.TargetValue != 50 || len(p[0].Alarms) != 2 {
		t.Errorf("%+v", p)
	}
	must(r.asg.PutScheduledUpdateGroupAction(r.ctx, &autoscaling.PutScheduledUpdateGroupActionInput{AutoScalingGroupName: name, ScheduledActionName: aws.String("now"), StartTime: aws.Time(time.Now().Add(20 * time.Millisecond)), DesiredCapacity: aws.Int32(2)}))(t)
	list := r.settled("web", 2) // by the scheduled action, by the launch configuration
	if *list[0].LaunchConfigurationName != "old" || *list[0].InstanceType != "t3.small" || list[0].LaunchTemplate != nil {
		t.Errorf("%+v", list[0])
	}
	must(r.asg.SetInstanceProtection(r.ctx, &autoscaling.SetInstanceProtectionInput{AutoScalingGroupName: name, InstanceIds: []string{*list[0].InstanceId}, ProtectedFromScaleIn: aws.Bool(true)}))(t)
	must(r.asg.SetDesiredCapacity(r.ctx, &autoscaling.SetDesiredCapacityInput{AutoScalingGroupName: name, DesiredCapacity: aws.Int32(0)}))(t)
	if left := r.settled("web", 1); *left[0].InstanceId != *list[0].InstanceId {
		t.Error("the protected one was ended")
	}
	must(r.asg.UpdateAutoScalingGroup(r.ctx, &autoscaling.UpdateAutoScalingGroupInput{AutoScalingGroupName: name, DeletionProtection: asgtypes.DeletionProtectionPreventForceDeletion}))(t)
	_, err := r.asg.DeleteAutoScalingGroup(r.ctx, &autoscaling.DeleteAutoScalingGroupInput{AutoScalingGroupName: name, ForceDelete: aws.Bool(true)})
	wantCode(t, err, "ValidationError")
	must(r.asg.UpdateAutoScalingGroup(r.ctx, &autoscaling.UpdateAutoScalingGroupInput{AutoScalingGroupName: name, DeletionProtection: asgtypes.DeletionProtectionNone}))(t)
	must(r.asg.DeleteAutoScalingGroup(r.ctx, &autoscaling.DeleteAutoScalingGroupInput{AutoScalingGroupName: name, ForceDelete: aws.Bool(true)}))(t)
	eventually(t, "it is gone", func() bool { return r.group("web").AutoScalingGroupName == nil && len(c.Instances(region)) == 0 })
}
