package awsfake

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	asgtypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

var asgActions = map[string]action{
	"CreateAutoScalingGroup": on((*region).createGroup), "UpdateAutoScalingGroup": on((*region).updateGroup), "DeleteAutoScalingGroup": on((*region).deleteGroup),
	"DescribeAutoScalingGroups": on((*region).describeGroups), "DescribeAutoScalingInstances": on((*region).describeGroupInstances), "SetDesiredCapacity": on((*region).setDesired),
	"TerminateInstanceInAutoScalingGroup": on((*region).terminateMember), "LaunchInstances": on((*region).launchInstances), "DescribeScalingActivities": on((*region).describeActivities),
	"AttachLoadBalancerTargetGroups": on((*region).attachTargetGroups), "DetachLoadBalancerTargetGroups": on((*region).detachTargetGroups), "DescribeLoadBalancerTargetGroups": on((*region).describeGroupTargets),
	"DetachInstances": on((*region).detachInstances), "EnterStandby": on((*region).enterStandby), "ExitStandby": on((*region).exitStandby),
	"PutScalingPolicy": on((*region).putPolicy), "DeletePolicy": on((*region).deletePolicy), "DescribePolicies": on((*region).describePolicies),
	"CreateLaunchConfiguration": on((*region).createConfig), "DeleteLaunchConfiguration": on((*region).deleteConfig), "DescribeLaunchConfigurations": on((*region).describeConfigs),
	"BatchPutScheduledUpdateGroupAction": on((*region).putScheduledMany),
	"PutScheduledUpdateGroupAction":      on((*region).putScheduled), "DeleteScheduledAction": on((*region).deleteScheduled), "DescribeScheduledActions": on((*region).describeScheduled),
	"SuspendProcesses": on((*region).suspendProcesses), "ResumeProcesses": on((*region).resumeProcesses),
	"PutLifecycleHook": on((*region).putHook), "DeleteLifecycleHook": on((*region).deleteHook), "DescribeLifecycleHooks": on((*region).describeHooks),
	"CompleteLifecycleAction": on((*region).completeAction), "RecordLifecycleActionHeartbeat": on((*region).heartbeat),
	"SetInstanceHealth": on((*region).setHealth), "SetInstanceProtection": on((*region).setProtection),
	"CreateOrUpdateTags": on((*region).createGroupTags), "DeleteTags": on((*region).deleteGroupTags), "DescribeTags": on((*region).describeGroupTags),
	"StartInstanceRefresh": on((*region).startRefresh), "DescribeInstanceRefreshes": on((*region).describeRefreshes), "CancelInstanceRefresh": on((*region).cancelRefresh), "RollbackInstanceRefresh": on((*region).rollbackRefresh),
}

// group is an Auto Scaling group; its Tags are what CreateOrUpdateTags made of them.
type group struct {
	asgtypes.AutoScalingGroup
	members    []*member
	hooks      table[*asgtypes.LifecycleHook]
	policies   table[*asgtypes.ScalingPolicy]
	scheduled  table[*asgtypes.ScheduledUpdateGroupAction]
	activities []*asgtypes.Activity // the newest last
	refreshes  []*refresh           // the newest last
	looks      int
	deleting   bool
	wait       time.Time // before this no launch after one that failed
	failures   int
}

func (r *region) group(name *string) (*group, error) {
	if g, ok := r.asgs.get(aws.ToString(name)); ok && r.seen("asg/"+*name) {
		return g, nil
	}
	return nil, refuse("ValidationError", "AutoScalingGroup name not found - AutoScalingGroup '%s' not found", aws.ToString(name))
}

func (g *group) suspended(process string) bool {
	return slices.ContainsFunc(g.SuspendedProcesses, func(s asgtypes.SuspendedProcess) bool { return *s.ProcessName == process })
}

// checkTemplate tells whether instances can be launched by a specification, and completes it.
func (r *region) checkTemplate(s *asgtypes.LaunchTemplateSpecification) (*asgtypes.LaunchTemplateSpecification, error) {
	t, err := r.template(s.LaunchTemplateId, s.LaunchTemplateName)
	if err != nil {
		return nil, refuse("ValidationError", "You must use a valid fully-formed launch template. %s", err.(*refusal).message)
	}
	_, v, err := t.version(s.Version)
	if err != nil {
		return nil, refuse("ValidationError", "You must use a valid fully-formed launch template. %s", err.(*refusal).message)
	}
	if id := aws.ToString(v.data.ImageId); !strings.HasPrefix(id, "resolve:ssm:") {
		if _, ok := r.images.get(id); !ok {
			return nil, refuse("ValidationError", "You must use a valid fully-formed launch template. The image id '[%s]' does not exist", id)
		}
	}
	version := aws.ToString(s.Version)
	if version == "" {
		version = "$Default"
	}
	return &asgtypes.LaunchTemplateSpecification{LaunchTemplateId: t.LaunchTemplateId, LaunchTemplateName: t.LaunchTemplateName, Version: &version}, nil
}

func (r *region) createGroup(in *autoscaling.CreateAutoScalingGroupInput) (*autoscaling.CreateAutoScalingGroupOutput, error) {
	name := aws.ToString(in.AutoScalingGroupName)
	if _, ok := r.asgs.get(name); ok {
		return nil, refuse("AlreadyExists", "AutoScalingGroup by this name already exists - A group with the name %s already exists", name)
	}
	g := &group{AutoScalingGroup: asgtypes.AutoScalingGroup{AutoScalingGroupARN: aws.String(r.arn("autoscaling", "autoScalingGroup:"+r.cloud.elbID()+":autoScalingGroupName/"+name)), CreatedTime: aws.Time(r.cloud.now().UTC()),
		DefaultCooldown: aws.Int32(300), HealthCheckGracePeriod: aws.Int32(0), HealthCheckType: aws.String("EC2"), NewInstancesProtectedFromScaleIn: aws.Bool(false), TerminationPolicies: []string{"Default"},
		DesiredCapacity: in.MinSize, DeletionProtection: asgtypes.DeletionProtectionNone, SuspendedProcesses: []asgtypes.SuspendedProcess{}, EnabledMetrics: []asgtypes.EnabledMetric{},
		ServiceLinkedRoleARN: aws.String("arn:aws:iam::" + Account + ":role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling")}}
	tags, targets := in.Tags, in.TargetGroupARNs
	in2 := *in
	in2.Tags = nil
	copyAs(&g.AutoScalingGroup, &in2)
	g.TargetGroupARNs = slices.Clone(targets)
	if err := r.checkGroup(g, in.LaunchTemplate, in.MixedInstancesPolicy, in.LaunchConfigurationName); err != nil {
		return nil, err
	}
	for _, h := range in.LifecycleHookSpecificationList {
		hook := &asgtypes.LifecycleHook{}
		copyAs(hook, &h)
		g.putHook(hook)
	}
	g.setTags(tags)
	r.new("asg/"+name, "", nil)
	r.asgs.put(name, g)
	r.kick(g)
	return &autoscaling.CreateAutoScalingGroupOutput{}, nil
}

// checkGroup refuses a group that cannot be.
func (r *region) checkGroup(g *group, template *asgtypes.LaunchTemplateSpecification, mixed *asgtypes.MixedInstancesPolicy, config *string) (err error) {
	low, high, want := aws.ToInt32(g.MinSize), aws.ToInt32(g.MaxSize), aws.ToInt32(g.DesiredCapacity)
	if low > high {
		return refuse("ValidationError", "Max bound, %d, must be greater than or equal to min bound, %d", high, low)
	}
	if want < low || want > high {
		return refuse("ValidationError", "Desired capacity:%d must be between the specified min size:%d and max size:%d", want, low, high)
	}
	switch {
	case template != nil:
		if g.LaunchTemplate, err = r.checkTemplate(template); err != nil {
			return err
		}
		g.MixedInstancesPolicy, g.LaunchConfigurationName = nil, nil
	case mixed != nil && mixed.LaunchTemplate != nil && mixed.LaunchTemplate.LaunchTemplateSpecification != nil:
		full, err := r.checkTemplate(mixed.LaunchTemplate.LaunchTemplateSpecification)
		if err != nil {
			return err
		}
		m, lt := *mixed, *mixed.LaunchTemplate
		lt.LaunchTemplateSpecification, m.LaunchTemplate = full, &lt
		g.MixedInstancesPolicy, g.LaunchTemplate, g.LaunchConfigurationName = &m, nil, nil
	case config != nil:
		if _, ok := r.configs.get(*config); !ok {
			return refuse("ValidationError", "Launch configuration name not found - Launch configuration %s not found", *config)
		}
		g.MixedInstancesPolicy, g.LaunchTemplate = nil, nil
	case g.LaunchConfigurationName == nil && g.LaunchTemplate == nil && g.MixedInstancesPolicy == nil:
		return refuse("ValidationError", "Valid requests must contain either LaunchTemplate, LaunchConfigurationName, InstanceId or MixedInstancesPolicy parameter.")
	}
	for _, arn := range g.TargetGroupARNs {
		if _, ok := r.targetGroups.get(arn); !ok {
			return refuse("ValidationError", "Provided Target Groups may not be valid. Please ensure they exist and try again.")
		}
	}
	if ids := aws.ToString(g.VPCZoneIdentifier); ids != "" {
		g.AvailabilityZones = nil
		for id := range strings.SplitSeq(ids, ",") {
			s, ok := r.subnets.get(strings.TrimSpace(id))
			if !ok {
				return refuse("ValidationError", "The subnet ID '%s' does not exist", id)
			}
			if !slices.Contains(g.AvailabilityZones, *s.AvailabilityZone) {
				g.AvailabilityZones = append(g.AvailabilityZones, *s.AvailabilityZone)
			}
		}
	}
	if len(g.AvailabilityZones) == 0 {
		return refuse("ValidationError", "At least one Availability Zone or VPC Subnet is required.")
	}
	return nil
}

func (r *region) updateGroup(in *autoscaling.UpdateAutoScalingGroupInput) (*autoscaling.UpdateAutoScalingGroupOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	if g.deleting {
		return nil, refuse("ScalingActivityInProgress", "AutoScalingGroup %s is being deleted", *in.AutoScalingGroupName)
	}
	was := g.AutoScalingGroup
	copyAs(&g.AutoScalingGroup, in)
	if in.DesiredCapacity == nil { // the bounds move the desired capacity with them
		want := min(max(*g.DesiredCapacity, *g.MinSize), *g.MaxSize)
		g.DesiredCapacity = &want
	}
	if in.VPCZoneIdentifier == nil && in.AvailabilityZones != nil {
		g.VPCZoneIdentifier = nil
	}
	if err := r.checkGroup(g, in.LaunchTemplate, in.MixedInstancesPolicy, in.LaunchConfigurationName); err != nil {
		g.AutoScalingGroup = was
		return nil, err
	}
	g.wait, g.failures = time.Time{}, 0
	r.kick(g)
	return &autoscaling.UpdateAutoScalingGroupOutput{}, nil
}

func (r *region) deleteGroup(in *autoscaling.DeleteAutoScalingGroupInput) (*autoscaling.DeleteAutoScalingGroupOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	force := aws.ToBool(in.ForceDelete)
	if p := g.DeletionProtection; p == asgtypes.DeletionProtectionPreventAllDeletion || p == asgtypes.DeletionProtectionPreventForceDeletion && force {
		return nil, refuse("ValidationError", "The Auto Scaling group %s has deletion protection: %s", *in.AutoScalingGroupName, p)
	}
	if !force {
		for _, m := range g.members {
			if strings.HasPrefix(string(m.LifecycleState), "Terminating") || strings.HasPrefix(string(m.LifecycleState), "Pending") {
				return nil, refuse("ScalingActivityInProgress", "You cannot delete an AutoScalingGroup while there are scaling activities in progress for that group.")
			}
		}
		if len(g.members) > 0 {
			return nil, refuse("ResourceInUse", "You cannot delete an AutoScalingGroup while there are instances or pending Spot instance request(s) still in the group.")
		}
	}
	zero := int32(0)
	g.deleting, g.Status, g.DesiredCapacity, g.MinSize = true, aws.String("Delete in progress"), &zero, &zero
	g.hooks, g.policies, g.scheduled = table[*asgtypes.LifecycleHook]{}, table[*asgtypes.ScalingPolicy]{}, table[*asgtypes.ScheduledUpdateGroupAction]{}
	for _, m := range g.members {
		r.retire(g, m, "the group is being deleted")
	}
	r.kick(g)
	return &autoscaling.DeleteAutoScalingGroupOutput{}, nil
}

func (r *region) showGroup(g *group, instances bool) asgtypes.AutoScalingGroup {
	s := g.AutoScalingGroup
	s.Instances = []asgtypes.Instance{}
	for _, m := range g.members {
		if instances {
			s.Instances = append(s.Instances, m.Instance)
		}
	}
	s.TrafficSources = nil
	for _, arn := range g.TargetGroupARNs {
		s.TrafficSources = append(s.TrafficSources, asgtypes.TrafficSourceIdentifier{Identifier: aws.String(arn), Type: aws.String("elbv2")})
	}
	return s
}

func (r *region) describeGroups(in *autoscaling.DescribeAutoScalingGroupsInput) (*autoscaling.DescribeAutoScalingGroupsOutput, error) {
	var found []*group
	for _, g := range r.asgs.all() {
		if !r.seen("asg/"+*g.AutoScalingGroupName) || len(in.AutoScalingGroupNames) > 0 && !slices.Contains(in.AutoScalingGroupNames, *g.AutoScalingGroupName) {
			continue
		}
		ok, err := g.fits(in.Filters)
		if err != nil {
			return nil, err
		}
		if ok {
			found = append(found, g)
		}
	}
	size := in.MaxRecords
	if size == nil {
		size = aws.Int32(50)
	}
	part, next, err := page(found, size, in.NextToken, 100)
	out := &autoscaling.DescribeAutoScalingGroupsOutput{AutoScalingGroups: []asgtypes.AutoScalingGroup{}, NextToken: next}
	for _, g := range part {
		out.AutoScalingGroups = append(out.AutoScalingGroups, r.showGroup(g, in.IncludeInstances == nil || *in.IncludeInstances))
	}
	return out, err
}

// fits tells whether a group has the tags of all filters.
func (g *group) fits(filters []asgtypes.Filter) (bool, error) {
	for _, f := range filters {
		name := aws.ToString(f.Name)
		ok := slices.ContainsFunc(g.Tags, func(t asgtypes.TagDescription) bool {
			switch name {
			case "tag-key":
				return slices.Contains(f.Values, *t.Key)
			case "tag-value":
				return slices.Contains(f.Values, aws.ToString(t.Value))
			}
			return name == "tag:"+*t.Key && slices.Contains(f.Values, aws.ToString(t.Value))
		})
		if name != "tag-key" && name != "tag-value" && !strings.HasPrefix(name, "tag:") {
			return false, refuse("ValidationError", "Filter type %s is not correct. Allowed Filter types are: tag-key, tag-value, tag:<key>", name)
		}
		if !ok {
			return false, nil
		}
	}
	return true, nil
}

func (r *region) describeGroupInstances(in *autoscaling.DescribeAutoScalingInstancesInput) (*autoscaling.DescribeAutoScalingInstancesOutput, error) {
	out := &autoscaling.DescribeAutoScalingInstancesOutput{AutoScalingInstances: []asgtypes.AutoScalingInstanceDetails{}}
	for _, g := range r.asgs.all() {
		for _, m := range g.members {
			if len(in.InstanceIds) > 0 && !slices.Contains(in.InstanceIds, *m.InstanceId) {
				continue
			}
			out.AutoScalingInstances = append(out.AutoScalingInstances, asgtypes.AutoScalingInstanceDetails{AutoScalingGroupName: g.AutoScalingGroupName, AvailabilityZone: m.AvailabilityZone, HealthStatus: aws.String(strings.ToUpper(*m.HealthStatus)),
				InstanceId: m.InstanceId, InstanceType: m.InstanceType, LaunchTemplate: m.LaunchTemplate, LifecycleState: aws.String(string(m.LifecycleState)), ProtectedFromScaleIn: m.ProtectedFromScaleIn})
		}
	}
	var err error
	out.AutoScalingInstances, out.NextToken, err = page(out.AutoScalingInstances, in.MaxRecords, in.NextToken, 50)
	return out, err
}

func (r *region) setDesired(in *autoscaling.SetDesiredCapacityInput) (*autoscaling.SetDesiredCapacityOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	if n := aws.ToInt32(in.DesiredCapacity); n > *g.MaxSize {
		return nil, refuse("ValidationError", "New SetDesiredCapacity value %d is above max value %d for the AutoScalingGroup.", n, *g.MaxSize)
	} else if n < *g.MinSize {
		return nil, refuse("ValidationError", "New SetDesiredCapacity value %d is below min value %d for the AutoScalingGroup.", n, *g.MinSize)
	}
	g.DesiredCapacity = in.DesiredCapacity
	r.kick(g)
	return &autoscaling.SetDesiredCapacityOutput{}, nil
}

// specification is what the group's next instance is launched by: while an instance
// refresh goes on, its desired configuration.
func (g *group) specification() *asgtypes.LaunchTemplateSpecification {
	if f := g.active(); f != nil && f.target != nil {
		return f.target
	}
	return g.own()
}

// own is nil for a group with a launch configuration.
func (g *group) own() *asgtypes.LaunchTemplateSpecification {
	if g.LaunchTemplate != nil || g.MixedInstancesPolicy == nil {
		return g.LaunchTemplate
	}
	return g.MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification
}

// launchInto starts n instances of a group in a zone.
func (r *region) launchInto(g *group, zone string, n int) ([]*member, error) {
	spec := g.specification()
	var in *ec2.RunInstancesInput
	if spec != nil {
		in = &ec2.RunInstancesInput{LaunchTemplate: &ec2types.LaunchTemplateSpecification{LaunchTemplateId: spec.LaunchTemplateId, Version: spec.Version}}
	} else {
		c, _ := r.configs.get(*g.LaunchConfigurationName)
		in = configured(c)
	}
	for id := range strings.SplitSeq(aws.ToString(g.VPCZoneIdentifier), ",") {
		if s, ok := r.subnets.get(strings.TrimSpace(id)); ok && *s.AvailabilityZone == zone {
			in.SubnetId = s.SubnetId
		}
	}
	if g.MixedInstancesPolicy != nil {
		for _, o := range g.MixedInstancesPolicy.LaunchTemplate.Overrides {
			if o.InstanceType != nil {
				in.InstanceType = ec2types.InstanceType(*o.InstanceType)
				break
			}
		}
	}
	tags := []ec2types.Tag{{Key: aws.String("aws:autoscaling:groupName"), Value: g.AutoScalingGroupName}}
	for _, t := range g.Tags {
		if aws.ToBool(t.PropagateAtLaunch) {
			tags = append(tags, ec2types.Tag{Key: t.Key, Value: t.Value})
		}
	}
	made, err := r.launch(launch{in: in, zone: zone, group: *g.AutoScalingGroupName, tags: tags, count: n})
	if err != nil {
		return nil, err
	}
	var out []*member
	for _, i := range made {
		m := &member{Instance: asgtypes.Instance{InstanceId: i.InstanceId, AvailabilityZone: i.Placement.AvailabilityZone, HealthStatus: aws.String("Healthy"), LifecycleState: asgtypes.LifecycleStatePending, ImageId: i.ImageId,
			ProtectedFromScaleIn: aws.Bool(aws.ToBool(g.NewInstancesProtectedFromScaleIn)), InstanceType: aws.String(string(i.InstanceType))}}
		if spec != nil {
			m.LaunchTemplate = &asgtypes.LaunchTemplateSpecification{LaunchTemplateId: spec.LaunchTemplateId, LaunchTemplateName: spec.LaunchTemplateName, Version: aws.String(i.version)}
		} else {
			m.LaunchConfigurationName = g.LaunchConfigurationName
		}
		m.activity = r.record1(g, "Launching a new EC2 instance: "+*i.InstanceId, fmt.Sprintf("an instance was started in response to a difference between desired and actual capacity, increasing the capacity to %d.", len(g.members)+1))
		g.members = append(g.members, m)
		out = append(out, m)
	}
	return out, nil
}

// record1 begins an activity of a group.
func (r *region) record1(g *group, what, cause string) *asgtypes.Activity {
	now := r.cloud.now().UTC()
	a := &asgtypes.Activity{ActivityId: aws.String(strings.TrimPrefix(r.cloud.id("act"), "act-")), AutoScalingGroupName: g.AutoScalingGroupName, AutoScalingGroupARN: g.AutoScalingGroupARN, Description: &what, Cause: aws.String("At " + rfc(now) + " " + cause),
		StartTime: &now, StatusCode: asgtypes.ScalingActivityStatusCodeInProgress, Progress: aws.Int32(30), Details: aws.String("{}")}
	g.activities = append(g.activities, a)
	if len(g.activities) > 5000 {
		g.activities = g.activities[1000:]
	}
	return a
}

// finish ends an activity; a message makes it a failed one.
func (r *region) finish(a *asgtypes.Activity, message string) {
	if a == nil || a.EndTime != nil {
		return
	}
	a.EndTime, a.Progress, a.StatusCode = aws.Time(r.cloud.now().UTC()), aws.Int32(100), asgtypes.ScalingActivityStatusCodeSuccessful
	if message != "" {
		a.StatusCode, a.StatusMessage = asgtypes.ScalingActivityStatusCodeFailed, &message
	}
}

func (r *region) describeActivities(in *autoscaling.DescribeScalingActivitiesInput) (*autoscaling.DescribeScalingActivitiesOutput, error) {
	var list []asgtypes.Activity
	for _, g := range r.asgs.all() {
		if in.AutoScalingGroupName != nil && *g.AutoScalingGroupName != *in.AutoScalingGroupName {
			continue
		}
		for _, a := range slices.Backward(g.activities) {
			if len(in.ActivityIds) == 0 || slices.Contains(in.ActivityIds, *a.ActivityId) {
				list = append(list, *a)
			}
		}
	}
	if in.AutoScalingGroupName != nil {
		if _, err := r.group(in.AutoScalingGroupName); err != nil {
			return nil, err
		}
	}
	part, next, err := page(list, in.MaxRecords, in.NextToken, 100)
	return &autoscaling.DescribeScalingActivitiesOutput{Activities: part, NextToken: next}, err
}
