package alb

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	"github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"

	"github.com/rebake/rebake/fleet"
)

// live is the rule as it is now, nil where there is none or where a target group
// of it is missing: then Ensure has to make what is.
func (r *Router) live(ctx context.Context) (*types.Rule, error) {
	groups, err := r.targets(ctx)
	if err != nil || len(groups) < len(slots) {
		return nil, err
	}
	if r.ruleARN == "" {
		if r.ruleARN = r.cfg.Rule; r.ruleARN == "" {
			if r.ruleARN, err = r.find(ctx, "main"); err != nil || r.ruleARN == "" {
				return nil, err
			}
		}
	}
	out, err := r.elb.DescribeRules(ctx, &elb.DescribeRulesInput{RuleArns: []string{r.ruleARN}})
	if err != nil && !strings.HasPrefix(code(err), "RuleNotFound") {
		return nil, fmt.Errorf("read the rule: %w", err)
	}
	if err != nil || len(out.Rules) == 0 {
		if r.cfg.Rule != "" {
			return nil, fmt.Errorf("the rule %s is gone: somebody removed it; make it again and give its ARN as router.alb.rule", r.cfg.Rule)
		}
		r.ruleARN = ""
		return nil, nil
	}
	rule := &out.Rules[0]
	if _, f := forward(rule); !names(f, groups[fleet.Blue].arn) || !names(f, groups[fleet.Green].arn) {
		return nil, nil
	}
	return rule, nil
}

// find looks for a rule of the fleet in the listener by its tags: main, or the
// preview of a slot.
func (r *Router) find(ctx context.Context, role string) (arn string, err error) {
	var arns []string
	in := &elb.DescribeRulesInput{ListenerArn: aws.String(r.cfg.Listener)}
	for {
		out, err := r.elb.DescribeRules(ctx, in)
		if strings.HasPrefix(code(err), "ListenerNotFound") { // and its rules with it
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("read the rules of the listener: %w", err)
		}
		for _, rule := range out.Rules {
			if !aws.ToBool(rule.IsDefault) {
				arns = append(arns, aws.ToString(rule.RuleArn))
			}
		}
		if in.Marker = out.NextMarker; aws.ToString(in.Marker) == "" {
			break
		}
	}
	for part := range slices.Chunk(arns, 20) { // the most of one call
		out, err := r.elb.DescribeTags(ctx, &elb.DescribeTagsInput{ResourceArns: part})
		if err != nil {
			return "", fmt.Errorf("read the tags of the listener's rules: %w", err)
		}
		for _, d := range out.TagDescriptions {
			tags := map[string]string{}
			for _, t := range d.Tags {
				tags[aws.ToString(t.Key)] = aws.ToString(t.Value)
			}
			if tags[TagFleet] == r.name && tags[tagRole] == role {
				return aws.ToString(d.ResourceArn), nil
			}
		}
	}
	return "", nil
}

const tagRole = "rebake:role" // of a rule: main, blue or green

// targets are the slots' target groups, as far as they are there.
func (r *Router) targets(ctx context.Context) (map[fleet.Slot]target, error) {
	if len(r.groups) == len(slots) {
		return r.groups, nil
	}
	in := &elb.DescribeTargetGroupsInput{TargetGroupArns: []string{r.cfg.TargetGroups.Blue, r.cfg.TargetGroups.Green}}
	if r.cfg.made() {
		return r.groups, r.madeTargets(ctx)
	}
	out, err := r.elb.DescribeTargetGroups(ctx, in)
	if err != nil {
		return nil, fmt.Errorf("read the target groups: %w", err)
	}
	groups := map[fleet.Slot]target{}
	for _, g := range out.TargetGroups {
		if g.TargetType != types.TargetTypeEnumInstance && g.TargetType != "" {
			return nil, fmt.Errorf("target group %s has targets of type %s: rebake registers instances", aws.ToString(g.TargetGroupArn), g.TargetType)
		}
		slot := fleet.Blue
		if aws.ToString(g.TargetGroupArn) == r.cfg.TargetGroups.Green {
			slot = fleet.Green
		}
		groups[slot] = target{aws.ToString(g.TargetGroupArn), aws.ToInt32(g.Port)}
	}
	r.groups = groups
	return groups, nil
}

// madeTargets looks for those that rebake makes, by their names: each alone, as
// one name that is not there is an error for all.
func (r *Router) madeTargets(ctx context.Context) error {
	groups := map[fleet.Slot]target{}
	for _, s := range slots {
		out, err := r.elb.DescribeTargetGroups(ctx, &elb.DescribeTargetGroupsInput{Names: []string{r.groupName(s)}})
		if err != nil && !strings.HasPrefix(code(err), "TargetGroupNotFound") {
			return fmt.Errorf("look for target group %s: %w", r.groupName(s), err)
		}
		if err == nil && len(out.TargetGroups) == 1 {
			groups[s] = target{aws.ToString(out.TargetGroups[0].TargetGroupArn), aws.ToInt32(out.TargetGroups[0].Port)}
		}
	}
	r.groups = groups
	return nil
}

// forward is a rule's forward action as a split, and its place; -1 if it has none.
func forward(rule *types.Rule) (int, *types.ForwardActionConfig) {
	if rule == nil {
		return -1, nil
	}
	for n, a := range rule.Actions {
		if a.Type != types.ActionTypeEnumForward {
			continue
		}
		f := types.ForwardActionConfig{}
		if a.ForwardConfig != nil {
			f = *a.ForwardConfig
			f.TargetGroups = slices.Clone(f.TargetGroups)
		}
		if len(f.TargetGroups) == 0 && a.TargetGroupArn != nil {
			f.TargetGroups = []types.TargetGroupTuple{{TargetGroupArn: a.TargetGroupArn, Weight: aws.Int32(1)}}
		}
		return n, &f
	}
	return -1, nil
}

func names(f *types.ForwardActionConfig, arn string) bool {
	return f != nil && slices.ContainsFunc(f.TargetGroups, func(t types.TargetGroupTuple) bool { return aws.ToString(t.TargetGroupArn) == arn })
}

// forwardTo is the one action of a rule that rebake makes.
func (r *Router) forwardTo(w map[fleet.Slot]int) []types.Action {
	f := &types.ForwardActionConfig{TargetGroupStickinessConfig: r.sticky(nil)}
	for _, s := range slots {
		f.TargetGroups = append(f.TargetGroups, types.TargetGroupTuple{TargetGroupArn: aws.String(r.groups[s].arn), Weight: aws.Int32(weight(w[s]))})
	}
	return []types.Action{{Type: types.ActionTypeEnumForward, Order: aws.Int32(1), ForwardConfig: f}}
}

func (r *Router) sticky(have *types.TargetGroupStickinessConfig) *types.TargetGroupStickinessConfig {
	if d := time.Duration(r.cfg.Stickiness); d > 0 {
		return &types.TargetGroupStickinessConfig{Enabled: aws.Bool(true), DurationSeconds: aws.Int32(int32(d.Seconds()))}
	}
	return have
}

// weight is a share as ELB writes it: from 0 to 999.
func weight(permille int) int32 { return int32(min(permille, 999)) }

// split reads the weights of the two slots as shares of a thousand.
func (r *Router) split(rule *types.Rule) map[fleet.Slot]int {
	_, f := forward(rule)
	has := map[fleet.Slot]int{fleet.Blue: 0, fleet.Green: 0}
	for _, t := range f.TargetGroups {
		for _, s := range slots {
			if aws.ToString(t.TargetGroupArn) == r.groups[s].arn {
				has[s] = int(aws.ToInt32(t.Weight))
			}
		}
	}
	blue, green := has[fleet.Blue], has[fleet.Green]
	switch {
	case blue == 0 && green == 0 || blue+green == 1000:
	case green == 0:
		has[fleet.Blue] = 1000
	case blue == 0:
		has[fleet.Green] = 1000
	default: // somebody else's
		green = min(max((1000*green+(blue+green)/2)/(blue+green), 1), 999)
		has[fleet.Blue], has[fleet.Green] = 1000-green, green
	}
	return has
}

// write gives a rule a new forward action and keeps the rest of it.
func (r *Router) write(ctx context.Context, rule *types.Rule, f *types.ForwardActionConfig) error {
	n, _ := forward(rule)
	actions := slices.Clone(rule.Actions)
	f.TargetGroupStickinessConfig = r.sticky(f.TargetGroupStickinessConfig)
	actions[n].ForwardConfig, actions[n].TargetGroupArn = f, nil
	for i, a := range actions {
		if a.AuthenticateOidcConfig != nil { // it is not told
			c := *a.AuthenticateOidcConfig
			c.UseExistingClientSecret = aws.Bool(true)
			actions[i].AuthenticateOidcConfig = &c
		}
	}
	if _, err := r.elb.ModifyRule(ctx, &elb.ModifyRuleInput{RuleArn: rule.RuleArn, Actions: actions}); err != nil {
		return fmt.Errorf("change the rule: %w", err)
	}
	return nil
}

// SetWeights implements fleet.Router. Traffic never goes to a slot without a
// healthy target: the load balancer would send it to all of them, healthy or not.
func (r *Router) SetWeights(ctx context.Context, w map[fleet.Slot]int) error {
	blue, green := w[fleet.Blue], w[fleet.Green]
	for s := range w {
		if !slices.Contains(slots, s) {
			return fmt.Errorf("unknown slot %q", s)
		}
	}
	if blue < 0 || green < 0 || blue+green != 1000 && blue+green != 0 {
		return fmt.Errorf("weights blue %d, green %d: they must add up to 1000", blue, green)
	}
	want := map[fleet.Slot]int{fleet.Blue: blue, fleet.Green: green}
	return r.change(ctx, func(rule *types.Rule) error {
		have := r.split(rule)
		if r.seen != nil && !maps.Equal(have, r.seen) {
			return fmt.Errorf("%w: it gives blue %d, green %d permille, and a moment ago it gave blue %d, green %d; nothing was changed",
				ErrChanged, have[fleet.Blue], have[fleet.Green], r.seen[fleet.Blue], r.seen[fleet.Green])
		}
		for _, s := range slots {
			if want[s] <= have[s] {
				continue
			}
			all, err := r.health(ctx, s)
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(all, Healthy) {
				return fmt.Errorf("%w: slot %s has no healthy target to take traffic", fleet.ErrNotHealthy, s)
			}
		}
		_, f := forward(rule)
		if err := r.others(ctx, f, blue+green > 0); err != nil {
			return err
		}
		for i, t := range f.TargetGroups {
			for _, s := range slots {
				if aws.ToString(t.TargetGroupArn) == r.groups[s].arn {
					f.TargetGroups[i].Weight = aws.Int32(weight(want[s]))
				}
			}
		}
		if err := r.write(ctx, rule, f); err != nil {
			return err
		}
		err := r.settle(ctx, fmt.Sprintf("the rule was told to give blue %d, green %d permille and does not: does somebody else change it?", blue, green), func() (bool, error) {
			rule, err := r.live(ctx)
			return rule != nil && maps.Equal(r.split(rule), want), err
		})
		if err != nil {
			return err
		}
		r.seen = want
		return r.tag(ctx, TagWrote, fmt.Sprintf("blue=%d green=%d", blue, green))
	})
}

// others takes the traffic of target groups that are not rebake's, when its own
// get some, and gives it back when they get none. What they had is in a tag.
func (r *Router) others(ctx context.Context, f *types.ForwardActionConfig, take bool) error {
	var had []string
	var foreign []*types.TargetGroupTuple
	for i := range f.TargetGroups {
		t := &f.TargetGroups[i]
		if arn := aws.ToString(t.TargetGroupArn); arn != r.groups[fleet.Blue].arn && arn != r.groups[fleet.Green].arn {
			foreign = append(foreign, t)
			if w := aws.ToInt32(t.Weight); w > 0 {
				had = append(had, fmt.Sprintf("%s=%d", arn[strings.LastIndex(arn, "/")+1:], w))
			}
		}
	}
	switch {
	case take && len(had) > 0:
		if err := r.tag(ctx, TagBefore, strings.Join(had, " ")); err != nil {
			return err
		}
		for _, t := range foreign {
			t.Weight = aws.Int32(0)
		}
	case !take && len(had) == 0 && len(foreign) > 0:
		tags, err := r.tags(ctx, r.ruleARN)
		if err != nil {
			return err
		}
		for _, word := range strings.Fields(tags[TagBefore]) {
			of, w, _ := strings.Cut(word, "=")
			n, err := strconv.ParseInt(w, 10, 32)
			for _, t := range foreign {
				if err == nil && strings.HasSuffix(aws.ToString(t.TargetGroupArn), "/"+of) {
					t.Weight = aws.Int32(int32(n))
				}
			}
		}
	}
	return nil
}

// Remove implements fleet.Router: what rebake made goes, a rule of somebody else
// has its own target groups and weights again.
func (r *Router) Remove(ctx context.Context) error {
	return r.locked(ctx, func() error {
		if err := r.removeRules(ctx); err != nil {
			return err
		}
		r.ruleARN, r.seen = "", nil
		if !r.cfg.made() {
			return nil
		}
		groups, err := r.targets(ctx)
		if err != nil {
			return err
		}
		for _, s := range slots {
			if groups[s].arn == "" {
				continue
			}
			if _, err := r.elb.DeleteTargetGroup(ctx, &elb.DeleteTargetGroupInput{TargetGroupArn: aws.String(groups[s].arn)}); err != nil {
				return fmt.Errorf("remove target group %s: %w", r.groupName(s), err)
			}
		}
		r.groups = nil
		return nil
	})
}

func (r *Router) removeRules(ctx context.Context) error {
	if r.cfg.Rule == "" {
		for _, role := range []string{string(fleet.Blue), string(fleet.Green), "main"} {
			arn, err := r.find(ctx, role)
			if err != nil || arn == "" {
				if err != nil {
					return err
				}
				continue
			}
			if _, err := r.elb.DeleteRule(ctx, &elb.DeleteRuleInput{RuleArn: &arn}); err != nil && !strings.HasPrefix(code(err), "RuleNotFound") {
				return fmt.Errorf("remove the rule: %w", err)
			}
		}
		return nil
	}
	rule, err := r.live(ctx)
	if err != nil || rule == nil {
		return err
	}
	_, f := forward(rule)
	if err := r.others(ctx, f, false); err != nil {
		return err
	}
	ours := func(t types.TargetGroupTuple) bool {
		return aws.ToString(t.TargetGroupArn) == r.groups[fleet.Blue].arn || aws.ToString(t.TargetGroupArn) == r.groups[fleet.Green].arn
	}
	left := slices.DeleteFunc(slices.Clone(f.TargetGroups), ours)
	switch {
	case len(left) > 0:
		f.TargetGroups = left
	case r.cfg.made():
		return fmt.Errorf("the rule %s forwards to nothing but rebake's target groups: let it forward elsewhere first", r.ruleARN)
	default: // its own two: they stay, without traffic
		for i := range f.TargetGroups {
			f.TargetGroups[i].Weight = aws.Int32(0)
		}
	}
	return r.write(ctx, rule, f)
}
