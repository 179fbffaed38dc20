package awsfake

import (
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	asgtypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
)

func (r *region) putPolicy(in *autoscaling.PutScalingPolicyInput) (*autoscaling.PutScalingPolicyOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	p := &asgtypes.ScalingPolicy{Enabled: aws.Bool(true), PolicyType: aws.String("SimpleScaling")}
	copyAs(p, in)
	arn := r.arn("autoscaling", "scalingPolicy:"+r.cloud.elbID()+":autoScalingGroupName/"+*g.AutoScalingGroupName+":policyName/"+*in.PolicyName)
	if old, ok := g.policies.get(*in.PolicyName); ok {
		arn = *old.PolicyARN
	}
	p.PolicyARN = &arn
	if p.TargetTrackingConfiguration != nil {
		for _, kind := range []string{"AlarmHigh", "AlarmLow"} {
			name := "TargetTracking-" + *g.AutoScalingGroupName + "-" + kind
			p.Alarms = append(p.Alarms, asgtypes.Alarm{AlarmName: &name, AlarmARN: aws.String(r.arn("cloudwatch", "alarm:"+name))})
		}
	}
	g.policies.put(*in.PolicyName, p)
	return &autoscaling.PutScalingPolicyOutput{PolicyARN: &arn, Alarms: p.Alarms}, nil
}

func (r *region) deletePolicy(in *autoscaling.DeletePolicyInput) (*autoscaling.DeletePolicyOutput, error) {
	for _, g := range r.asgs.all() {
		for _, p := range g.policies.all() {
			if (*p.PolicyName == aws.ToString(in.PolicyName) || *p.PolicyARN == aws.ToString(in.PolicyName)) && (in.AutoScalingGroupName == nil || *in.AutoScalingGroupName == *g.AutoScalingGroupName) {
				g.policies.del(*p.PolicyName)
				return &autoscaling.DeletePolicyOutput{}, nil
			}
		}
	}
	return nil, refuse("ValidationError", "No scaling policy found with name: %s", aws.ToString(in.PolicyName))
}

func (r *region) describePolicies(in *autoscaling.DescribePoliciesInput) (*autoscaling.DescribePoliciesOutput, error) {
	if in.AutoScalingGroupName != nil {
		if _, err := r.group(in.AutoScalingGroupName); err != nil {
			return nil, err
		}
	}
	out := &autoscaling.DescribePoliciesOutput{ScalingPolicies: []asgtypes.ScalingPolicy{}}
	for _, g := range r.asgs.all() {
		for _, p := range g.policies.all() {
			if (in.AutoScalingGroupName == nil || *in.AutoScalingGroupName == *g.AutoScalingGroupName) && (len(in.PolicyNames) == 0 || slices.Contains(in.PolicyNames, *p.PolicyName)) && (len(in.PolicyTypes) == 0 || slices.Contains(in.PolicyTypes, *p.PolicyType)) {
				out.ScalingPolicies = append(out.ScalingPolicies, *p)
			}
		}
	}
	var err error
	out.ScalingPolicies, out.NextToken, err = page(out.ScalingPolicies, in.MaxRecords, in.NextToken, 100)
	return out, err
}

// putScheduled keeps an action and does it once at its start time, on the cloud's clock.
func (r *region) putScheduled(in *autoscaling.PutScheduledUpdateGroupActionInput) (*autoscaling.PutScheduledUpdateGroupActionOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	s := &asgtypes.ScheduledUpdateGroupAction{}
	copyAs(s, in)
	s.ScheduledActionARN = aws.String(r.arn("autoscaling", "scheduledUpdateGroupAction:"+r.cloud.elbID()+":autoScalingGroupName/"+*g.AutoScalingGroupName+":scheduledActionName/"+*in.ScheduledActionName))
	if s.StartTime == nil {
		s.StartTime = s.Time
	}
	g.scheduled.put(*in.ScheduledActionName, s)
	if s.StartTime != nil && s.Recurrence == nil {
		time.AfterFunc(max(0, s.StartTime.Sub(r.cloud.now())), func() {
			r.cloud.locked(func() {
				if now, ok := g.scheduled.get(*s.ScheduledActionName); !ok || now != s {
					return
				}
				g.scheduled.del(*s.ScheduledActionName)
				if g.suspended("ScheduledActions") {
					return
				}
				copyAs(&g.AutoScalingGroup, &struct{ MinSize, MaxSize, DesiredCapacity *int32 }{s.MinSize, s.MaxSize, s.DesiredCapacity})
				want := min(max(*g.DesiredCapacity, *g.MinSize), *g.MaxSize)
				g.DesiredCapacity = &want
				r.kick(g)
			})
		})
	}
	return &autoscaling.PutScheduledUpdateGroupActionOutput{}, nil
}

func (r *region) deleteScheduled(in *autoscaling.DeleteScheduledActionInput) (*autoscaling.DeleteScheduledActionOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	if _, ok := g.scheduled.get(aws.ToString(in.ScheduledActionName)); !ok {
		return nil, refuse("ValidationError", "Scheduled action name not found")
	}
	g.scheduled.del(*in.ScheduledActionName)
	return &autoscaling.DeleteScheduledActionOutput{}, nil
}

func (r *region) describeScheduled(in *autoscaling.DescribeScheduledActionsInput) (*autoscaling.DescribeScheduledActionsOutput, error) {
	out := &autoscaling.DescribeScheduledActionsOutput{ScheduledUpdateGroupActions: []asgtypes.ScheduledUpdateGroupAction{}}
	for _, g := range r.asgs.all() {
		for _, s := range g.scheduled.all() {
			if (in.AutoScalingGroupName == nil || *in.AutoScalingGroupName == *g.AutoScalingGroupName) && (len(in.ScheduledActionNames) == 0 || slices.Contains(in.ScheduledActionNames, *s.ScheduledActionName)) {
				out.ScheduledUpdateGroupActions = append(out.ScheduledUpdateGroupActions, *s)
			}
		}
	}
	var err error
	out.ScheduledUpdateGroupActions, out.NextToken, err = page(out.ScheduledUpdateGroupActions, in.MaxRecords, in.NextToken, 100)
	return out, err
}
