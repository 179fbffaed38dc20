package awsfake

import (
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
)

func valueOf(p any) reflect.Value { return reflect.ValueOf(p).Elem() }

// rule is a listener's. live is what requests go by: it follows Actions after Delays.Routes.
type rule struct {
	elbtypes.Rule
	listener *listener
	live     []elbtypes.Action
	written  int
}

// normal checks actions and makes them as the API tells them: a forward has both a
// configuration and, with one group alone, that group's ARN.
func (r *region) normal(in []elbtypes.Action, balancerARN string) ([]elbtypes.Action, error) {
	if len(in) == 0 {
		return nil, refuse("ValidationError", "At least one action is needed")
	}
	out := slices.Clone(in)
	for n, a := range out {
		if out[n].Order == nil {
			out[n].Order = aws.Int32(int32(n + 1))
		}
		if a.Type != elbtypes.ActionTypeEnumForward {
			continue
		}
		f := elbtypes.ForwardActionConfig{TargetGroupStickinessConfig: &elbtypes.TargetGroupStickinessConfig{Enabled: aws.Bool(false)}}
		if a.ForwardConfig != nil {
			copyAs(&f, a.ForwardConfig)
			f.TargetGroups = slices.Clone(f.TargetGroups)
		} else {
			f.TargetGroups = []elbtypes.TargetGroupTuple{{TargetGroupArn: a.TargetGroupArn}}
		}
		if len(f.TargetGroups) == 0 || len(f.TargetGroups) > 5 {
			return nil, refuse("TooManyTargetGroups", "A forward action has 1 to 5 target groups")
		}
		if s := f.TargetGroupStickinessConfig; aws.ToBool(s.Enabled) && (aws.ToInt32(s.DurationSeconds) < 1 || aws.ToInt32(s.DurationSeconds) > 604800) {
			return nil, refuse("InvalidLoadBalancerAction", "Target group stickiness duration must be between 1 and 604800 seconds")
		}
		for i := range f.TargetGroups {
			t := &f.TargetGroups[i]
			arn := aws.ToString(t.TargetGroupArn)
			if _, ok := r.targetGroups.get(arn); !ok {
				return nil, refuse("TargetGroupNotFound", "Target group '%s' not found", arn)
			}
			if t.Weight == nil {
				t.Weight = aws.Int32(1)
			}
			if *t.Weight < 0 || *t.Weight > 999 {
				return nil, refuse("ValidationError", "Weight '%d' must be between 0 and 999", *t.Weight)
			}
			if used := r.usedBy(arn); len(used) > 0 && !slices.Contains(used, balancerARN) {
				return nil, refuse("TargetGroupAssociationLimit", "The following target groups cannot be associated with more than one load balancer: %s", arn)
			}
		}
		out[n].ForwardConfig, out[n].TargetGroupArn = &f, nil
		if len(f.TargetGroups) == 1 {
			out[n].TargetGroupArn = f.TargetGroups[0].TargetGroupArn
		}
	}
	return out, nil
}

// conditions are told with their values both ways.
func conditions(in []elbtypes.RuleCondition) []elbtypes.RuleCondition {
	out := slices.Clone(in)
	for i := range out {
		c := &out[i]
		switch aws.ToString(c.Field) {
		case "path-pattern":
			if c.PathPatternConfig == nil {
				c.PathPatternConfig = &elbtypes.PathPatternConditionConfig{Values: c.Values}
			}
			c.Values = c.PathPatternConfig.Values
		case "host-header":
			if c.HostHeaderConfig == nil {
				c.HostHeaderConfig = &elbtypes.HostHeaderConditionConfig{Values: c.Values}
			}
			c.Values = c.HostHeaderConfig.Values
		}
	}
	return out
}

func (r *region) putRule(l *listener, priority string, conds []elbtypes.RuleCondition, actions []elbtypes.Action, tags []elbtypes.Tag) *rule {
	tail := strings.SplitN(*l.ListenerArn, ":listener/", 2)[1] + "/" + r.cloud.elbID()
	arn := r.newELB(r.arn("elasticloadbalancing", "listener-rule/"+tail), tags)
	u := &rule{listener: l, Rule: elbtypes.Rule{RuleArn: &arn, Priority: &priority, Conditions: conditions(conds), IsDefault: aws.Bool(priority == "default")}}
	if u.Conditions == nil {
		u.Conditions = []elbtypes.RuleCondition{}
	}
	u.live = actions // a new rule is used at once
	u.Actions = actions
	r.rules.put(arn, u)
	r.wake()
	return u
}

// setActions writes a rule's actions. They are used a little later.
func (r *region) setActions(u *rule, actions []elbtypes.Action) {
	u.Actions = actions
	u.written++
	n := u.written
	r.cloud.after(r.cloud.Delays.Routes, func() {
		if u.written == n {
			u.live = actions
		}
	})
	r.wake()
}

func (r *region) createRule(in *elb.CreateRuleInput) (*elb.CreateRuleOutput, error) {
	l, err := r.listener(aws.ToString(in.ListenerArn))
	if err != nil {
		return nil, err
	}
	if p := aws.ToInt32(in.Priority); p < 1 || p > 50000 {
		return nil, refuse("ValidationError", "Priority '%d' must be between 1 and 50000", p)
	}
	priority := strconv.Itoa(int(*in.Priority))
	for _, u := range r.rules.all() {
		if u.listener == l && *u.Priority == priority {
			return nil, refuse("PriorityInUse", "Priority '%s' is currently in use", priority)
		}
	}
	if len(in.Conditions) == 0 {
		return nil, refuse("ValidationError", "A rule needs conditions")
	}
	actions, err := r.normal(in.Actions, *l.LoadBalancerArn)
	if err != nil {
		return nil, err
	}
	u := r.putRule(l, priority, in.Conditions, actions, in.Tags)
	return &elb.CreateRuleOutput{Rules: []elbtypes.Rule{u.Rule}}, nil
}

func (r *region) rule(arn string) (*rule, error) {
	if u, ok := r.rules.get(arn); ok && r.seen(arn) {
		return u, nil
	}
	return nil, refuse("RuleNotFound", "One or more rules not found: '%s'", arn)
}

func (r *region) modifyRule(in *elb.ModifyRuleInput) (*elb.ModifyRuleOutput, error) {
	u, err := r.rule(aws.ToString(in.RuleArn))
	if err != nil {
		return nil, err
	}
	if *u.IsDefault {
		return nil, refuse("OperationNotPermitted", "Default rule '%s' cannot be modified", *u.RuleArn)
	}
	if in.Actions != nil {
		actions, err := r.normal(in.Actions, *u.listener.LoadBalancerArn)
		if err != nil {
			return nil, err
		}
		r.setActions(u, actions)
	}
	if in.Conditions != nil {
		u.Conditions = conditions(in.Conditions)
	}
	return &elb.ModifyRuleOutput{Rules: []elbtypes.Rule{u.Rule}}, nil
}

func (r *region) deleteRule(in *elb.DeleteRuleInput) (*elb.DeleteRuleOutput, error) {
	u, err := r.rule(aws.ToString(in.RuleArn))
	if err != nil {
		return nil, err
	}
	if *u.IsDefault {
		return nil, refuse("OperationNotPermitted", "Default rule '%s' cannot be deleted", *u.RuleArn)
	}
	r.rules.del(*u.RuleArn)
	delete(r.elbTags, *u.RuleArn)
	return &elb.DeleteRuleOutput{}, nil
}

// inOrder are a listener's rules as they are tried: the default is the last.
func (r *region) inOrder(l *listener) []*rule {
	var out []*rule
	for _, u := range r.rules.all() {
		if u.listener == l {
			out = append(out, u)
		}
	}
	slices.SortStableFunc(out, func(a, b *rule) int { return a.rank() - b.rank() })
	return out
}

func (u *rule) rank() int {
	n, err := strconv.Atoi(*u.Priority)
	if err != nil {
		return 1 << 20
	}
	return n
}

func (r *region) describeRules(in *elb.DescribeRulesInput) (*elb.DescribeRulesOutput, error) {
	out := &elb.DescribeRulesOutput{Rules: []elbtypes.Rule{}}
	switch {
	case in.ListenerArn != nil:
		l, err := r.listener(*in.ListenerArn)
		if err != nil {
			return nil, err
		}
		for _, u := range r.inOrder(l) {
			if r.seen(*u.RuleArn) {
				out.Rules = append(out.Rules, u.Rule)
			}
		}
	case len(in.RuleArns) > 0:
		for _, arn := range in.RuleArns {
			u, err := r.rule(arn)
			if err != nil {
				return nil, err
			}
			out.Rules = append(out.Rules, u.Rule)
		}
	default:
		return nil, refuse("ValidationError", "You must specify either listener ARN or rule ARNs")
	}
	var err error
	out.Rules, out.NextMarker, err = page(out.Rules, in.PageSize, in.Marker, 400)
	return out, err
}

func (r *region) setRulePriorities(in *elb.SetRulePrioritiesInput) (*elb.SetRulePrioritiesOutput, error) {
	out := &elb.SetRulePrioritiesOutput{}
	moved := map[*rule]string{}
	for _, p := range in.RulePriorities {
		u, err := r.rule(aws.ToString(p.RuleArn))
		if err != nil {
			return nil, err
		}
		if *u.IsDefault {
			return nil, refuse("OperationNotPermitted", "The priority of the default rule cannot be changed")
		}
		moved[u] = strconv.Itoa(int(aws.ToInt32(p.Priority)))
	}
	for u, p := range moved {
		for _, other := range r.rules.all() {
			at, ok := moved[other]
			if !ok {
				at = *other.Priority
			}
			if other != u && other.listener == u.listener && at == p {
				return nil, refuse("PriorityInUse", "Priority '%s' is currently in use", p)
			}
		}
	}
	for u, p := range moved {
		u.Priority = &p
		out.Rules = append(out.Rules, u.Rule)
	}
	return out, nil
}
