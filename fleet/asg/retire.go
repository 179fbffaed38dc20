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
	"github.com/aws/smithy-go"

	"github.com/rebake/rebake/fleet"
)

// Retire implements fleet.Pool: the group goes down to nothing, by its own hooks
// and its target group's delay, then it and its launch template are removed. The
// groups that stay are no longer pinned once only one slot is left.
func (p *Pool) Retire(ctx context.Context, id fleet.GroupID) error {
	if err := p.check(id); err != nil {
		return err
	}
	g, others, err := p.find(ctx, id)
	if err != nil {
		return err
	}
	if g != nil {
		if err := p.empty(ctx, *g); err != nil {
			return err
		}
	}
	if err := p.unmake(ctx, id); err != nil {
		return err
	}
	if g == nil {
		return nil
	}
	// The group goes last: as long as it is seen, all of this is done again.
	if err := p.unpin(ctx, others); err != nil {
		return err
	}
	return p.remove(ctx, *g)
}

// empty takes every protection off and waits until no instance is left.
func (p *Pool) empty(ctx context.Context, g group) error {
	err := p.update(ctx, g, &autoscaling.UpdateAutoScalingGroupInput{AutoScalingGroupName: g.AutoScalingGroupName,
		MinSize: aws.Int32(0), DesiredCapacity: aws.Int32(0), NewInstancesProtectedFromScaleIn: aws.Bool(false), DeletionProtection: astypes.DeletionProtectionNone})
	if err != nil && !gone(err) {
		return fmt.Errorf("shrink group %s to nothing: %w", g.name(), err)
	}
	return p.wait(ctx, func() (string, error) {
		now, _, err := p.find(ctx, g.id)
		if err != nil || now == nil || len(now.Instances) == 0 {
			return "", err
		}
		var protected []string
		hooked, standby := "", ""
		for _, i := range now.Instances {
			switch id := aws.ToString(i.InstanceId); {
			case aws.ToBool(i.ProtectedFromScaleIn):
				protected = append(protected, id)
			case i.LifecycleState == astypes.LifecycleStateTerminatingWait:
				hooked = ", " + id + " waits for its lifecycle hook"
			case i.LifecycleState == astypes.LifecycleStateStandby:
				standby = ", " + id + " is in standby: `aws autoscaling exit-standby` lets it go"
			}
		}
		for part := range slices.Chunk(protected, 50) {
			if _, err := p.as.SetInstanceProtection(ctx, &autoscaling.SetInstanceProtectionInput{
				AutoScalingGroupName: g.AutoScalingGroupName, InstanceIds: part, ProtectedFromScaleIn: aws.Bool(false)}); err != nil && !gone(err) {
				return "", fmt.Errorf("take the scale-in protection off in %s: %w", g.name(), err)
			}
		}
		return fmt.Sprintf("%d instances of %s to end%s%s", len(now.Instances), g.name(), hooked, standby), nil
	})
}

// update changes a group whose target groups may have gone before it, as with
// `fleet destroy`: one that names what is not there takes no change.
func (p *Pool) update(ctx context.Context, g group, in *autoscaling.UpdateAutoScalingGroupInput) error {
	_, err := p.as.UpdateAutoScalingGroup(ctx, in)
	if !targetless(err) {
		return err
	}
	if _, err := p.as.DetachLoadBalancerTargetGroups(ctx, &autoscaling.DetachLoadBalancerTargetGroupsInput{
		AutoScalingGroupName: g.AutoScalingGroupName, TargetGroupARNs: g.TargetGroupARNs}); err != nil {
		return fmt.Errorf("take group %s from target groups that are gone: %w", g.name(), err)
	}
	_, err = p.as.UpdateAutoScalingGroup(ctx, in)
	return err
}

// targetless is of a group that is behind target groups which are gone.
func targetless(err error) bool {
	var api smithy.APIError
	return errors.As(err, &api) && api.ErrorCode() == "ValidationError" && strings.Contains(api.ErrorMessage(), "Target Groups may not be valid")
}

// remove deletes an empty group and waits until it is not seen any more.
func (p *Pool) remove(ctx context.Context, g group) error {
	return p.wait(ctx, func() (string, error) {
		_, err := p.as.DeleteAutoScalingGroup(ctx, &autoscaling.DeleteAutoScalingGroupInput{AutoScalingGroupName: g.AutoScalingGroupName})
		switch c := code(err); {
		case err == nil || gone(err):
			now, _, err := p.find(ctx, g.id)
			if err != nil || now == nil {
				return "", err
			}
		case strings.HasPrefix(c, "ScalingActivityInProgress"), strings.HasPrefix(c, "ResourceInUse"), strings.HasPrefix(c, "ResourceContention"):
		default:
			return "", fmt.Errorf("remove group %s: %w", g.name(), err)
		}
		return "group " + g.name() + " to be removed", nil
	})
}

// unpin lets the groups that stay scale as they are meant to, if they are of one slot.
func (p *Pool) unpin(ctx context.Context, left []group) error {
	for _, g := range left {
		if g.id.Slot != left[0].id.Slot {
			return nil
		}
	}
	for _, g := range left {
		least, check := p.rest(g, aws.ToInt32(g.MinSize))
		if aws.ToInt32(g.MinSize) == least && aws.ToString(g.HealthCheckType) == check {
			continue
		}
		if err := p.update(ctx, g, &autoscaling.UpdateAutoScalingGroupInput{
			AutoScalingGroupName: g.AutoScalingGroupName, MinSize: &least, HealthCheckType: &check}); err != nil {
			return fmt.Errorf("let group %s scale again: %w", g.name(), err)
		}
	}
	return nil
}

// Size implements fleet.Grower: what a group was told to be, by whoever did.
func (p *Pool) Size(ctx context.Context, id fleet.GroupID) (int, error) {
	g, _, err := p.find(ctx, id)
	if err != nil || g == nil {
		return 0, err
	}
	return int(aws.ToInt32(g.DesiredCapacity)), nil
}

// PollEvery implements fleet.Paced.
func (p *Pool) PollEvery() time.Duration { return p.deps.Poll }

// Evidence implements fleet.Witness: what the group did last, and the consoles of
// its first instances, which have no batch call.
func (p *Pool) Evidence(ctx context.Context, id fleet.GroupID) (string, error) {
	g, _, err := p.find(ctx, id)
	if err != nil || g == nil {
		return "", err
	}
	return p.evidence(ctx, g.name(), g.Instances), nil
}

func (p *Pool) evidence(ctx context.Context, group string, of []astypes.Instance) string {
	const consoles, bytes = 3, 4 << 10
	var b strings.Builder
	out, err := p.as.DescribeScalingActivities(ctx, &autoscaling.DescribeScalingActivitiesInput{AutoScalingGroupName: &group, MaxRecords: aws.Int32(20)}, maybe)
	if err != nil && !unknown(err) {
		fmt.Fprintf(&b, "(activities of %s: %v)\n", group, err)
	} else if err == nil {
		for _, a := range out.Activities {
			fmt.Fprintf(&b, "%s %s: %s %s\n", aws.ToTime(a.StartTime).UTC().Format(time.RFC3339), a.StatusCode, aws.ToString(a.Description), aws.ToString(a.StatusMessage))
		}
	}
	for n, i := range of {
		if n == consoles {
			fmt.Fprintf(&b, "and %d more instances\n", len(of)-n)
			break
		}
		text, err := p.Logs(ctx, aws.ToString(i.InstanceId), bytes)
		if err != nil {
			text = "(" + err.Error() + ")"
		}
		fmt.Fprintf(&b, "console of %s (%s):\n%s\n", aws.ToString(i.InstanceId), i.LifecycleState, strings.TrimSpace(text))
	}
	return b.String()
}
