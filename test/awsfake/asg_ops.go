package awsfake

import (
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	asgtypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
)

// memberOf finds an instance and its group; group nil is any.
func (r *region) memberOf(name, id *string) (*group, *member, error) {
	for _, g := range r.asgs.all() {
		for _, m := range g.members {
			if *m.InstanceId == aws.ToString(id) && (name == nil || *name == *g.AutoScalingGroupName) {
				return g, m, nil
			}
		}
	}
	return nil, nil, refuse("ValidationError", "Instance Id not found - No managed instance found for instance ID: %s", aws.ToString(id))
}

// terminateMember ends one instance, or with the group's name up to a hundred.
func (r *region) terminateMember(in *autoscaling.TerminateInstanceInAutoScalingGroupInput) (*autoscaling.TerminateInstanceInAutoScalingGroupOutput, error) {
	ids := in.InstanceIds
	if in.InstanceId != nil {
		ids = []string{*in.InstanceId}
	} else if in.AutoScalingGroupName == nil || len(ids) == 0 || len(ids) > 100 {
		return nil, refuse("ValidationError", "InstanceIds needs AutoScalingGroupName and at most 100 ids")
	}
	less := int32(0)
	for _, id := range ids {
		g, m, err := r.memberOf(in.AutoScalingGroupName, &id)
		if err != nil {
			return nil, err
		}
		if aws.ToBool(in.ShouldDecrementDesiredCapacity) && m.counts() {
			less++
		}
		if less > 0 && *g.DesiredCapacity-less < *g.MinSize {
			return nil, refuse("ValidationError", "Currently, desiredSize equals minSize (%d). Terminating instance without replacement will violate group's min size constraint. Either set shouldDecrementDesiredCapacity flag to false or lower group's min size.", *g.MinSize)
		}
	}
	out := &autoscaling.TerminateInstanceInAutoScalingGroupOutput{}
	for n, id := range ids {
		g, m, _ := r.memberOf(in.AutoScalingGroupName, &id)
		if n == 0 {
			want := *g.DesiredCapacity - less
			g.DesiredCapacity = &want
		}
		r.retire(g, m, "instance "+id+" was taken out of service in response to a user request.")
		a := *m.activity
		if in.InstanceId != nil {
			out.Activity = &a
		} else {
			out.Activities = append(out.Activities, a)
		}
	}
	return out, nil
}

func (r *region) launchInstances(in *autoscaling.LaunchInstancesInput) (*autoscaling.LaunchInstancesOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	n := int(aws.ToInt32(in.RequestedCapacity))
	switch {
	case aws.ToString(in.ClientToken) == "":
		return nil, refuse("ValidationError", "ClientToken is required")
	case n < 1 || n > 100:
		return nil, refuse("ValidationError", "RequestedCapacity %d must be between 1 and 100", n)
	}
	return once(r, "LaunchInstances", in.ClientToken, in, "IdempotentParameterMismatch", func() (*autoscaling.LaunchInstancesOutput, error) {
		if int(*g.DesiredCapacity)+n > int(*g.MaxSize) {
			return nil, refuse("ValidationError", "Launching %d instances would exceed the max size %d of the group", n, *g.MaxSize)
		}
		zones, err := r.launchZones(g, in)
		if err != nil {
			return nil, err
		}
		out := &autoscaling.LaunchInstancesOutput{AutoScalingGroupName: g.AutoScalingGroupName, ClientToken: in.ClientToken, Instances: []asgtypes.InstanceCollection{}, Errors: []asgtypes.LaunchInstancesError{}}
		made := 0
		for k, zone := range zones {
			share := n / len(zones)
			if k < n%len(zones) {
				share++
			}
			if share == 0 {
				continue
			}
			subnet := r.subnetOf(g, zone)
			members, err := r.launchInto(g, zone, share)
			if err != nil {
				code := "InternalError"
				if e, ok := err.(*refusal); ok {
					code = e.code
				}
				out.Errors = append(out.Errors, asgtypes.LaunchInstancesError{AvailabilityZone: &zone, AvailabilityZoneId: aws.String(zoneID(zone)), SubnetId: subnet, ErrorCode: &code, ErrorMessage: aws.String(messageOf(err)), MarketType: aws.String("OnDemand")})
				a := r.record1(g, "Launching a new EC2 instance.  Status Reason: "+messageOf(err), "a LaunchInstances request")
				r.finish(a, messageOf(err)+" Launching EC2 instance failed.")
				continue
			}
			c := asgtypes.InstanceCollection{AvailabilityZone: &zone, AvailabilityZoneId: aws.String(zoneID(zone)), SubnetId: subnet, InstanceType: members[0].InstanceType, MarketType: aws.String("OnDemand")}
			for _, m := range members {
				c.InstanceIds = append(c.InstanceIds, *m.InstanceId)
			}
			made += len(members)
			out.Instances = append(out.Instances, c)
		}
		if in.RetryStrategy == asgtypes.RetryStrategyRetryWithGroupConfiguration {
			made = n
		}
		want := *g.DesiredCapacity + int32(made)
		g.DesiredCapacity = &want
		r.kick(g)
		return out, nil
	})
}

// launchZones are the zones that LaunchInstances is asked for.
func (r *region) launchZones(g *group, in *autoscaling.LaunchInstancesInput) (zones []string, err error) {
	zones = slices.Clone(in.AvailabilityZones)
	for _, id := range in.AvailabilityZoneIds {
		for _, z := range g.AvailabilityZones {
			if zoneID(z) == id {
				zones = append(zones, z)
			}
		}
	}
	for _, id := range in.SubnetIds {
		s, ok := r.subnets.get(id)
		if !ok || !strings.Contains(aws.ToString(g.VPCZoneIdentifier), id) {
			return nil, refuse("ValidationError", "The subnet %s is not one of the group", id)
		}
		if !slices.Contains(zones, *s.AvailabilityZone) {
			zones = append(zones, *s.AvailabilityZone)
		}
	}
	if len(zones) == 0 && len(g.AvailabilityZones) == 1 {
		zones = g.AvailabilityZones
	}
	if len(zones) == 0 {
		return nil, refuse("ValidationError", "Either AvailabilityZones or SubnetIds must be specified for a group with multiple Availability Zones")
	}
	for _, z := range zones {
		if !slices.Contains(g.AvailabilityZones, z) {
			return nil, refuse("ValidationError", "The Availability Zone %s is not one of the group", z)
		}
	}
	return zones, nil
}

func (r *region) subnetOf(g *group, zone string) *string {
	for id := range strings.SplitSeq(aws.ToString(g.VPCZoneIdentifier), ",") {
		if s, ok := r.subnets.get(strings.TrimSpace(id)); ok && *s.AvailabilityZone == zone {
			return s.SubnetId
		}
	}
	return nil
}

func (r *region) attachTargetGroups(in *autoscaling.AttachLoadBalancerTargetGroupsInput) (*autoscaling.AttachLoadBalancerTargetGroupsOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	for _, arn := range in.TargetGroupARNs {
		tg, ok := r.targetGroups.get(arn)
		if !ok {
			return nil, refuse("ValidationError", "Provided Target Groups may not be valid. Please ensure they exist and try again.")
		}
		if slices.Contains(g.TargetGroupARNs, arn) {
			continue
		}
		g.TargetGroupARNs = append(slices.Clone(g.TargetGroupARNs), arn)
		for _, m := range g.members {
			if m.LifecycleState == asgtypes.LifecycleStateInService && !g.suspended("AddToLoadBalancer") {
				r.register(tg, *m.InstanceId, aws.ToInt32(tg.Port))
			}
		}
	}
	return &autoscaling.AttachLoadBalancerTargetGroupsOutput{}, nil
}

func (r *region) detachTargetGroups(in *autoscaling.DetachLoadBalancerTargetGroupsInput) (*autoscaling.DetachLoadBalancerTargetGroupsOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	for _, arn := range in.TargetGroupARNs {
		g.TargetGroupARNs = slices.DeleteFunc(slices.Clone(g.TargetGroupARNs), func(a string) bool { return a == arn })
		tg, ok := r.targetGroups.get(arn)
		if !ok {
			continue
		}
		for _, m := range g.members {
			for _, t := range tg.targets.all() {
				if t.id == *m.InstanceId {
					r.deregister(tg, t)
				}
			}
		}
	}
	return &autoscaling.DetachLoadBalancerTargetGroupsOutput{}, nil
}

func (r *region) describeGroupTargets(in *autoscaling.DescribeLoadBalancerTargetGroupsInput) (*autoscaling.DescribeLoadBalancerTargetGroupsOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	out := &autoscaling.DescribeLoadBalancerTargetGroupsOutput{LoadBalancerTargetGroups: []asgtypes.LoadBalancerTargetGroupState{}}
	for _, arn := range g.TargetGroupARNs {
		out.LoadBalancerTargetGroups = append(out.LoadBalancerTargetGroups, asgtypes.LoadBalancerTargetGroupState{LoadBalancerTargetGroupARN: aws.String(arn), State: aws.String("InService")})
	}
	return out, nil
}

// leave takes instances out of a group's capacity.
func (r *region) leave(name *string, ids []string, decrement bool, f func(g *group, m *member)) error {
	for _, id := range ids {
		g, m, err := r.memberOf(name, &id)
		if err != nil {
			return err
		}
		if decrement && m.counts() {
			if *g.DesiredCapacity-1 < *g.MinSize {
				return refuse("ValidationError", "The group's min size %d does not allow it", *g.MinSize)
			}
			want := *g.DesiredCapacity - 1
			g.DesiredCapacity = &want
		}
		for _, arn := range g.TargetGroupARNs {
			if tg, ok := r.targetGroups.get(arn); ok {
				for _, t := range tg.targets.all() {
					if t.id == id {
						r.deregister(tg, t)
					}
				}
			}
		}
		f(g, m)
		r.kick(g)
	}
	return nil
}

func (r *region) detachInstances(in *autoscaling.DetachInstancesInput) (*autoscaling.DetachInstancesOutput, error) {
	err := r.leave(in.AutoScalingGroupName, in.InstanceIds, aws.ToBool(in.ShouldDecrementDesiredCapacity), func(g *group, m *member) {
		g.members = slices.DeleteFunc(slices.Clone(g.members), func(o *member) bool { return o == m })
	})
	return &autoscaling.DetachInstancesOutput{}, err
}

func (r *region) enterStandby(in *autoscaling.EnterStandbyInput) (*autoscaling.EnterStandbyOutput, error) {
	err := r.leave(in.AutoScalingGroupName, in.InstanceIds, aws.ToBool(in.ShouldDecrementDesiredCapacity), func(_ *group, m *member) {
		m.LifecycleState = asgtypes.LifecycleStateStandby
	})
	return &autoscaling.EnterStandbyOutput{}, err
}

func (r *region) exitStandby(in *autoscaling.ExitStandbyInput) (*autoscaling.ExitStandbyOutput, error) {
	for _, id := range in.InstanceIds {
		g, m, err := r.memberOf(in.AutoScalingGroupName, &id)
		if err != nil {
			return nil, err
		}
		want := *g.DesiredCapacity + 1
		g.DesiredCapacity = &want
		m.activity = r.record1(g, "Moving EC2 instance out of Standby: "+id, "a user request")
		m.LifecycleState = asgtypes.LifecycleStatePending
		r.kick(g)
	}
	return &autoscaling.ExitStandbyOutput{}, nil
}

var processes = []string{"Launch", "Terminate", "AddToLoadBalancer", "AlarmNotification", "AZRebalance", "HealthCheck", "InstanceRefresh", "ReplaceUnhealthy", "ScheduledActions"}

// named are the processes of a request: all of them when it names none.
func named(list []string) ([]string, error) {
	if len(list) == 0 {
		return processes, nil
	}
	for _, p := range list {
		if !slices.Contains(processes, p) {
			return nil, refuse("ValidationError", "The process type '%s' is not valid", p)
		}
	}
	return list, nil
}

func (r *region) suspendProcesses(in *autoscaling.SuspendProcessesInput) (*autoscaling.SuspendProcessesOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	list, err := named(in.ScalingProcesses)
	for _, p := range list {
		if !g.suspended(p) {
			g.SuspendedProcesses = append(slices.Clone(g.SuspendedProcesses), asgtypes.SuspendedProcess{ProcessName: aws.String(p), SuspensionReason: aws.String("User suspended at " + rfc(r.cloud.now()))})
		}
	}
	return &autoscaling.SuspendProcessesOutput{}, err
}

func (r *region) resumeProcesses(in *autoscaling.ResumeProcessesInput) (*autoscaling.ResumeProcessesOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	list, err := named(in.ScalingProcesses)
	g.SuspendedProcesses = slices.DeleteFunc(slices.Clone(g.SuspendedProcesses), func(s asgtypes.SuspendedProcess) bool { return slices.Contains(list, *s.ProcessName) })
	r.kick(g)
	return &autoscaling.ResumeProcessesOutput{}, err
}

func (g *group) putHook(h *asgtypes.LifecycleHook) {
	h.AutoScalingGroupName = g.AutoScalingGroupName
	if h.HeartbeatTimeout == nil {
		h.HeartbeatTimeout = aws.Int32(3600)
	}
	if h.DefaultResult == nil {
		h.DefaultResult = aws.String("ABANDON")
	}
	h.GlobalTimeout = aws.Int32(min(172800, 100**h.HeartbeatTimeout))
	g.hooks.put(*h.LifecycleHookName, h)
}

func (r *region) putHook(in *autoscaling.PutLifecycleHookInput) (*autoscaling.PutLifecycleHookOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	h := &asgtypes.LifecycleHook{}
	if old, ok := g.hooks.get(aws.ToString(in.LifecycleHookName)); ok {
		*h = *old
	} else if in.LifecycleTransition == nil {
		return nil, refuse("ValidationError", "LifecycleTransition is required for a new hook")
	}
	copyAs(h, in)
	g.putHook(h)
	return &autoscaling.PutLifecycleHookOutput{}, nil
}

func (r *region) deleteHook(in *autoscaling.DeleteLifecycleHookInput) (*autoscaling.DeleteLifecycleHookOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	g.hooks.del(aws.ToString(in.LifecycleHookName))
	for _, m := range g.members { // those that wait for it are let go
		if m.hook != nil && *m.hook.LifecycleHookName == *in.LifecycleHookName {
			m.result = "CONTINUE"
		}
	}
	return &autoscaling.DeleteLifecycleHookOutput{}, nil
}

func (r *region) describeHooks(in *autoscaling.DescribeLifecycleHooksInput) (*autoscaling.DescribeLifecycleHooksOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	out := &autoscaling.DescribeLifecycleHooksOutput{LifecycleHooks: []asgtypes.LifecycleHook{}}
	for _, h := range g.hooks.all() {
		if len(in.LifecycleHookNames) == 0 || slices.Contains(in.LifecycleHookNames, *h.LifecycleHookName) {
			out.LifecycleHooks = append(out.LifecycleHooks, *h)
		}
	}
	return out, nil
}

// waiting finds the instance that waits for a hook, by its id or its token.
func (r *region) waiting(name, hook, id, token *string) (*group, *member, error) {
	g, err := r.group(name)
	if err != nil {
		return nil, nil, err
	}
	for _, m := range g.members {
		if m.hook != nil && *m.hook.LifecycleHookName == aws.ToString(hook) && (*m.InstanceId == aws.ToString(id) || token != nil && m.token == *token) {
			return g, m, nil
		}
	}
	return nil, nil, refuse("ValidationError", "No active Lifecycle Action found with instance ID %s", aws.ToString(id))
}

func (r *region) completeAction(in *autoscaling.CompleteLifecycleActionInput) (*autoscaling.CompleteLifecycleActionOutput, error) {
	g, m, err := r.waiting(in.AutoScalingGroupName, in.LifecycleHookName, in.InstanceId, in.LifecycleActionToken)
	if err != nil {
		return nil, err
	}
	if v := aws.ToString(in.LifecycleActionResult); v != "CONTINUE" && v != "ABANDON" {
		return nil, refuse("ValidationError", "LifecycleActionResult must be CONTINUE or ABANDON")
	}
	m.result = *in.LifecycleActionResult
	r.kick(g)
	return &autoscaling.CompleteLifecycleActionOutput{}, nil
}

func (r *region) heartbeat(in *autoscaling.RecordLifecycleActionHeartbeatInput) (*autoscaling.RecordLifecycleActionHeartbeatOutput, error) {
	_, m, err := r.waiting(in.AutoScalingGroupName, in.LifecycleHookName, in.InstanceId, in.LifecycleActionToken)
	if err != nil {
		return nil, err
	}
	m.until = time.Now().Add(r.cloud.wall(time.Duration(*m.hook.HeartbeatTimeout) * time.Second))
	return &autoscaling.RecordLifecycleActionHeartbeatOutput{}, nil
}

func (r *region) setHealth(in *autoscaling.SetInstanceHealthInput) (*autoscaling.SetInstanceHealthOutput, error) {
	g, m, err := r.memberOf(nil, in.InstanceId)
	if err != nil {
		return nil, err
	}
	grace := r.cloud.wall(time.Duration(aws.ToInt32(g.HealthCheckGracePeriod)) * time.Second)
	respect := in.ShouldRespectGracePeriod == nil || *in.ShouldRespectGracePeriod
	if aws.ToString(in.HealthStatus) == "Healthy" || !respect || time.Since(m.since) > grace {
		m.HealthStatus = in.HealthStatus
	}
	r.kick(g)
	return &autoscaling.SetInstanceHealthOutput{}, nil
}

func (r *region) setProtection(in *autoscaling.SetInstanceProtectionInput) (*autoscaling.SetInstanceProtectionOutput, error) {
	for _, id := range in.InstanceIds {
		g, m, err := r.memberOf(in.AutoScalingGroupName, &id)
		if err != nil {
			return nil, err
		}
		m.ProtectedFromScaleIn = aws.Bool(aws.ToBool(in.ProtectedFromScaleIn))
		r.kick(g)
	}
	return &autoscaling.SetInstanceProtectionOutput{}, nil
}

func (g *group) setTags(tags []asgtypes.Tag) {
	g.Tags = slices.Clone(g.Tags)
	for _, t := range tags {
		d := asgtypes.TagDescription{Key: t.Key, Value: aws.String(aws.ToString(t.Value)), PropagateAtLaunch: aws.Bool(aws.ToBool(t.PropagateAtLaunch)), ResourceId: g.AutoScalingGroupName, ResourceType: aws.String("auto-scaling-group")}
		if at := slices.IndexFunc(g.Tags, func(h asgtypes.TagDescription) bool { return *h.Key == *t.Key }); at >= 0 {
			g.Tags[at] = d
		} else {
			g.Tags = append(g.Tags, d)
		}
	}
	slices.SortFunc(g.Tags, func(a, b asgtypes.TagDescription) int { return strings.Compare(*a.Key, *b.Key) })
}

func (r *region) createGroupTags(in *autoscaling.CreateOrUpdateTagsInput) (*autoscaling.CreateOrUpdateTagsOutput, error) {
	for _, t := range in.Tags {
		g, err := r.group(t.ResourceId)
		if err != nil {
			return nil, err
		}
		g.setTags([]asgtypes.Tag{t})
	}
	return &autoscaling.CreateOrUpdateTagsOutput{}, nil
}

func (r *region) deleteGroupTags(in *autoscaling.DeleteTagsInput) (*autoscaling.DeleteTagsOutput, error) {
	for _, t := range in.Tags {
		g, err := r.group(t.ResourceId)
		if err != nil {
			return nil, err
		}
		g.Tags = slices.DeleteFunc(slices.Clone(g.Tags), func(h asgtypes.TagDescription) bool { return *h.Key == *t.Key })
	}
	return &autoscaling.DeleteTagsOutput{}, nil
}

func (r *region) describeGroupTags(in *autoscaling.DescribeTagsInput) (*autoscaling.DescribeTagsOutput, error) {
	out := &autoscaling.DescribeTagsOutput{Tags: []asgtypes.TagDescription{}}
	for _, g := range r.asgs.all() {
		for _, t := range g.Tags {
			have := map[string]string{"auto-scaling-group": *g.AutoScalingGroupName, "key": *t.Key, "value": *t.Value, "propagate-at-launch": "false"}
			if *t.PropagateAtLaunch {
				have["propagate-at-launch"] = "true"
			}
			if !slices.ContainsFunc(in.Filters, func(f asgtypes.Filter) bool { return !slices.Contains(f.Values, have[*f.Name]) }) {
				out.Tags = append(out.Tags, t)
			}
		}
	}
	var err error
	out.Tags, out.NextToken, err = page(out.Tags, in.MaxRecords, in.NextToken, 100)
	return out, err
}
