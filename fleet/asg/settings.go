package asg

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/rebake/rebake/internal/event"
)

// model is what a group's settings are copied from.
type model struct {
	group    *astypes.AutoScalingGroup // adopt
	template string                    // NAME:VERSION
	data     *ec2types.ResponseLaunchTemplateData
}

// model reads what the configuration names, with settings from the launch template
// origin, NAME:VERSION, where it names none ("": from the group's); nil if it names nothing.
func (p *Pool) model(ctx context.Context, origin string) (*model, error) {
	if p.cfg.Adopt == "" && p.cfg.LaunchTemplate == "" {
		return nil, nil
	}
	m := &model{template: orElse(p.cfg.LaunchTemplate, origin)}
	if p.cfg.Adopt != "" {
		out, err := p.as.DescribeAutoScalingGroups(ctx, &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{p.cfg.Adopt}})
		if err != nil {
			return nil, fmt.Errorf("look at group %s: %w", p.cfg.Adopt, err)
		}
		if len(out.AutoScalingGroups) == 0 {
			return nil, fmt.Errorf("pool.asg.adopt: there is no Auto Scaling group %s in %s", p.cfg.Adopt, p.region)
		}
		m.group = &out.AutoScalingGroups[0]
		spec := m.group.LaunchTemplate
		if mixed := m.group.MixedInstancesPolicy; spec == nil && mixed != nil && mixed.LaunchTemplate != nil {
			spec = mixed.LaunchTemplate.LaunchTemplateSpecification
		}
		if m.template == "" && spec != nil {
			m.template = aws.ToString(spec.LaunchTemplateName) + ":" + aws.ToString(spec.Version)
		}
		if m.template == "" && len(p.cfg.Instance.Types) == 0 {
			return nil, fmt.Errorf("group %s has no launch template: give pool.asg.instance", p.cfg.Adopt)
		}
	}
	if m.template == "" {
		return m, nil
	}
	name, version, _ := strings.Cut(m.template, ":")
	out, err := p.ec2.DescribeLaunchTemplateVersions(ctx, &ec2.DescribeLaunchTemplateVersionsInput{LaunchTemplateName: &name, Versions: []string{version}})
	if err != nil {
		return nil, fmt.Errorf("look at launch template %s: %w", m.template, err)
	}
	if len(out.LaunchTemplateVersions) == 0 {
		return nil, fmt.Errorf("there is no launch template %s in %s", m.template, p.region)
	}
	m.data = out.LaunchTemplateVersions[0].LaunchTemplateData
	return m, nil
}

// into copies an adopted group's settings into a new one. Its hooks are made with
// the group, so that no instance comes up without them.
func (m *model) into(in *autoscaling.CreateAutoScalingGroupInput, subnets bool) {
	g := m.group
	if !subnets {
		in.VPCZoneIdentifier = g.VPCZoneIdentifier
	}
	in.MaxSize = aws.Int32(max(aws.ToInt32(in.MaxSize), aws.ToInt32(g.MaxSize)))
	in.CapacityRebalance, in.DefaultCooldown, in.MaxInstanceLifetime = g.CapacityRebalance, g.DefaultCooldown, g.MaxInstanceLifetime
	in.AvailabilityZoneDistribution, in.AvailabilityZoneImpairmentPolicy = g.AvailabilityZoneDistribution, g.AvailabilityZoneImpairmentPolicy
	in.CapacityReservationSpecification, in.InstanceMaintenancePolicy = g.CapacityReservationSpecification, g.InstanceMaintenancePolicy
	in.PlacementGroup, in.ServiceLinkedRoleARN, in.NewInstancesProtectedFromScaleIn = g.PlacementGroup, g.ServiceLinkedRoleARN, g.NewInstancesProtectedFromScaleIn
	if in.DefaultInstanceWarmup == nil {
		in.DefaultInstanceWarmup = g.DefaultInstanceWarmup
	}
	if aws.ToString(in.PlacementGroup) == "" {
		in.PlacementGroup = nil
	}
}

// copySettings gives a new group the hooks, policies and scheduled actions of the
// one that it takes the place of: the other slot's, else the adopted one.
func (p *Pool) copySettings(ctx context.Context, to group, from *model, others []group, target string) error {
	source := ""
	if from != nil && from.group != nil {
		source = aws.ToString(from.group.AutoScalingGroupName)
	}
	for _, o := range others {
		if o.id.Slot != to.id.Slot {
			source = o.name()
		}
	}
	if source == "" {
		return nil
	}
	return errors.Join(p.copyHooks(ctx, source, to.name()), p.copyPolicies(ctx, source, to.name(), target), p.copySchedule(ctx, source, to.name()))
}

func (p *Pool) copyHooks(ctx context.Context, from, to string) error {
	out, err := p.as.DescribeLifecycleHooks(ctx, &autoscaling.DescribeLifecycleHooksInput{AutoScalingGroupName: &from})
	if err != nil {
		return fmt.Errorf("read the lifecycle hooks of %s: %w", from, err)
	}
	for _, h := range out.LifecycleHooks {
		in := &autoscaling.PutLifecycleHookInput{AutoScalingGroupName: &to, LifecycleHookName: h.LifecycleHookName, LifecycleTransition: h.LifecycleTransition,
			DefaultResult: h.DefaultResult, HeartbeatTimeout: h.HeartbeatTimeout, NotificationMetadata: h.NotificationMetadata, NotificationTargetARN: h.NotificationTargetARN, RoleARN: h.RoleARN}
		if _, err := p.as.PutLifecycleHook(ctx, in); err != nil {
			return fmt.Errorf("copy lifecycle hook %s to %s: %w", aws.ToString(h.LifecycleHookName), to, err)
		}
	}
	return nil
}

func (p *Pool) copyPolicies(ctx context.Context, from, to, target string) error {
	pages := autoscaling.NewDescribePoliciesPaginator(p.as, &autoscaling.DescribePoliciesInput{AutoScalingGroupName: &from})
	for pages.HasMorePages() {
		out, err := pages.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("read the scaling policies of %s: %w", from, err)
		}
		for _, s := range out.ScalingPolicies {
			kind := aws.ToString(s.PolicyType)
			if kind != "TargetTrackingScaling" && kind != "PredictiveScaling" { // alarms that call it name it by its ARN
				event.Warnf(ctx, "scaling policy %s of %s is of type %s, which an alarm starts: it is not copied; make it a target tracking policy", aws.ToString(s.PolicyName), from, kind)
				continue
			}
			in := &autoscaling.PutScalingPolicyInput{AutoScalingGroupName: &to, PolicyName: s.PolicyName, PolicyType: s.PolicyType, Enabled: s.Enabled,
				EstimatedInstanceWarmup: s.EstimatedInstanceWarmup, PredictiveScalingConfiguration: s.PredictiveScalingConfiguration, TargetTrackingConfiguration: retarget(s.TargetTrackingConfiguration, target)}
			if _, err := p.as.PutScalingPolicy(ctx, in); err != nil {
				return fmt.Errorf("copy scaling policy %s to %s: %w", aws.ToString(s.PolicyName), to, err)
			}
		}
	}
	return nil
}

// retarget makes a policy that counts a target group's requests count the new one's.
func retarget(c *astypes.TargetTrackingConfiguration, target string) *astypes.TargetTrackingConfiguration {
	if c == nil || c.PredefinedMetricSpecification == nil || target == "" {
		return c
	}
	label := aws.ToString(c.PredefinedMetricSpecification.ResourceLabel)
	at, own := strings.Index(label, "/targetgroup/"), strings.Index(target, ":targetgroup/")
	if at < 0 || own < 0 {
		return c
	}
	out, spec := *c, *c.PredefinedMetricSpecification
	spec.ResourceLabel = aws.String(label[:at] + "/" + target[own+1:])
	out.PredefinedMetricSpecification = &spec
	return &out
}

func (p *Pool) copySchedule(ctx context.Context, from, to string) error {
	var all []astypes.ScheduledUpdateGroupActionRequest
	pages := autoscaling.NewDescribeScheduledActionsPaginator(p.as, &autoscaling.DescribeScheduledActionsInput{AutoScalingGroupName: &from})
	for pages.HasMorePages() {
		out, err := pages.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("read the scheduled actions of %s: %w", from, err)
		}
		for _, a := range out.ScheduledUpdateGroupActions {
			if a.StartTime != nil && a.StartTime.Before(time.Now()) {
				if aws.ToString(a.Recurrence) == "" {
					continue // it was
				}
				a.StartTime = nil
			}
			all = append(all, astypes.ScheduledUpdateGroupActionRequest{ScheduledActionName: a.ScheduledActionName, DesiredCapacity: a.DesiredCapacity,
				MinSize: a.MinSize, MaxSize: a.MaxSize, Recurrence: a.Recurrence, StartTime: a.StartTime, EndTime: a.EndTime, TimeZone: a.TimeZone})
		}
	}
	for part := range slices.Chunk(all, 50) {
		out, err := p.as.BatchPutScheduledUpdateGroupAction(ctx, &autoscaling.BatchPutScheduledUpdateGroupActionInput{AutoScalingGroupName: &to, ScheduledUpdateGroupActions: part})
		if err != nil {
			return fmt.Errorf("copy the scheduled actions to %s: %w", to, err)
		}
		for _, f := range out.FailedScheduledUpdateGroupActions {
			return fmt.Errorf("copy scheduled action %s to %s: %s: %s", aws.ToString(f.ScheduledActionName), to, aws.ToString(f.ErrorCode), aws.ToString(f.ErrorMessage))
		}
	}
	return nil
}
