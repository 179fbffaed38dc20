package alb

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	"github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"

	"github.com/rebake/rebake/fleet"
)

// Ensure implements fleet.Router: target groups, then the rule, then the previews.
// A rule that is there gets the two target groups beside those that it has,
// without any traffic.
func (r *Router) Ensure(ctx context.Context) error {
	return r.locked(ctx, func() error {
		if err := r.makeTargets(ctx); err != nil {
			return err
		}
		rule, err := r.live(ctx)
		if err != nil {
			return err
		}
		switch {
		case rule != nil:
		case r.ruleARN != "": // of somebody else, or edited by somebody: it lacks a target group
			if err := r.adopt(ctx); err != nil {
				return err
			}
		default:
			if r.ruleARN, err = r.makeRule(ctx, "main", r.cfg.Priority, r.cfg.conditions(), r.forwardTo(map[fleet.Slot]int{})); err != nil {
				return err
			}
		}
		return r.previews(ctx)
	})
}

func (r *Router) makeTargets(ctx context.Context) error {
	groups, err := r.targets(ctx)
	if err != nil || len(groups) == len(slots) {
		return err
	}
	if !r.cfg.made() {
		return fmt.Errorf("router.alb.target_groups: %d of 2 are there", len(groups))
	}
	vpc, err := r.vpc(ctx)
	if err != nil {
		return err
	}
	for _, s := range slots {
		if _, ok := groups[s]; ok {
			continue
		}
		out, err := r.elb.CreateTargetGroup(ctx, r.targetInput(s, vpc))
		if err != nil {
			return fmt.Errorf("make target group %s: %w", r.groupName(s), err)
		}
		arn := out.TargetGroups[0].TargetGroupArn
		if _, err := r.elb.ModifyTargetGroupAttributes(ctx, &elb.ModifyTargetGroupAttributesInput{TargetGroupArn: arn, Attributes: []types.TargetGroupAttribute{
			{Key: aws.String("deregistration_delay.timeout_seconds"), Value: aws.String(strconv.Itoa(int(time.Duration(r.cfg.Delay).Seconds())))}}}); err != nil {
			return fmt.Errorf("set the deregistration delay of %s: %w", r.groupName(s), err)
		}
	}
	return r.madeTargets(ctx)
}

// targetInput is a slot's target group; the same settings again are no error to
// ELB. It checks no more often than ELB can.
func (r *Router) targetInput(s fleet.Slot, vpc string) *elb.CreateTargetGroupInput {
	interval := min(max(int32((r.hc.Interval+time.Second-1)/time.Second), 5), 300)
	timeout := min(max(int32((r.hc.Timeout+time.Second-1)/time.Second), 2), interval-1, 120)
	status := r.hc.Status
	if status == 0 {
		status = 200
	}
	path := r.hc.Path
	if path == "" {
		path = "/"
	}
	return &elb.CreateTargetGroupInput{Name: aws.String(r.groupName(s)), Protocol: types.ProtocolEnumHttp, Port: aws.Int32(int32(r.hc.Port)), VpcId: &vpc,
		TargetType: types.TargetTypeEnumInstance, HealthCheckEnabled: aws.Bool(true), HealthCheckProtocol: types.ProtocolEnumHttp, HealthCheckPort: aws.String("traffic-port"),
		HealthCheckPath: &path, HealthCheckIntervalSeconds: &interval, HealthCheckTimeoutSeconds: &timeout, Matcher: &types.Matcher{HttpCode: aws.String(strconv.Itoa(status))},
		HealthyThresholdCount: aws.Int32(int32(min(max(r.hc.Rise, 2), 10))), UnhealthyThresholdCount: aws.Int32(int32(min(max(r.hc.Fall, 2), 10))),
		Tags: []types.Tag{{Key: aws.String(TagFleet), Value: &r.name}, {Key: aws.String(TagSlot), Value: aws.String(string(s))}}}
}

// vpc is that of the listener's, or the rule's, load balancer.
func (r *Router) vpc(ctx context.Context) (string, error) {
	_, name, _ := strings.Cut(r.cfg.balancer(), "/")
	name, _, _ = strings.Cut(name, "/")
	out, err := r.elb.DescribeLoadBalancers(ctx, &elb.DescribeLoadBalancersInput{Names: []string{name}})
	if err != nil {
		return "", fmt.Errorf("look at load balancer %s: %w", name, err)
	}
	if len(out.LoadBalancers) != 1 {
		return "", fmt.Errorf("there is no load balancer %s", name)
	}
	return aws.ToString(out.LoadBalancers[0].VpcId), nil
}

func (r *Router) makeRule(ctx context.Context, role string, priority int, conditions []types.RuleCondition, actions []types.Action) (string, error) {
	if found, err := r.find(ctx, role); err != nil || found != "" {
		return found, err
	}
	tags := []types.Tag{{Key: aws.String(TagFleet), Value: &r.name}, {Key: aws.String(tagRole), Value: &role}}
	if e := r.epoch.Load(); e != 0 {
		tags = append(tags, types.Tag{Key: aws.String(TagEpoch), Value: aws.String(strconv.FormatInt(e, 10))})
	}
	out, err := r.elb.CreateRule(ctx, &elb.CreateRuleInput{ListenerArn: aws.String(r.cfg.Listener), Priority: aws.Int32(int32(priority)), Conditions: conditions, Actions: actions, Tags: tags})
	if err != nil {
		if strings.HasPrefix(code(err), "PriorityInUse") {
			return "", fmt.Errorf("priority %d of the listener is another rule's: choose one that is free (router.alb.priority): %w", priority, err)
		}
		return "", fmt.Errorf("make the rule of priority %d: %w", priority, err)
	}
	return aws.ToString(out.Rules[0].RuleArn), nil
}

// adopt puts the target groups into a rule that is there, at weight 0, and writes
// down what the others have.
func (r *Router) adopt(ctx context.Context) error {
	out, err := r.elb.DescribeRules(ctx, &elb.DescribeRulesInput{RuleArns: []string{r.ruleARN}})
	if err != nil || len(out.Rules) != 1 {
		return fmt.Errorf("read the rule %s: %w", r.ruleARN, err)
	}
	rule := &out.Rules[0]
	n, f := forward(rule)
	if n < 0 {
		return fmt.Errorf("the rule %s forwards to no target group, so its traffic cannot be split: give it a forward action", r.ruleARN)
	}
	for _, s := range slots {
		if arn := r.groups[s].arn; !names(f, arn) {
			f.TargetGroups = append(f.TargetGroups, types.TargetGroupTuple{TargetGroupArn: aws.String(arn), Weight: aws.Int32(0)})
		}
	}
	return r.write(ctx, rule, f)
}

// previews makes the two rules that lead to one slot each.
func (r *Router) previews(ctx context.Context) error {
	if r.cfg.Preview.Header == "" {
		return nil
	}
	conditions := r.cfg.conditions()
	for n, s := range slots {
		to := types.Action{Type: types.ActionTypeEnumForward, Order: aws.Int32(1), TargetGroupArn: aws.String(r.groups[s].arn)}
		with := append(slices.Clone(conditions), types.RuleCondition{Field: aws.String("http-header"),
			HttpHeaderConfig: &types.HttpHeaderConditionConfig{HttpHeaderName: &r.cfg.Preview.Header, Values: []string{string(s)}}})
		if _, err := r.makeRule(ctx, string(s), r.cfg.Preview.Priority+n, with, []types.Action{to}); err != nil {
			return err
		}
	}
	return nil
}
