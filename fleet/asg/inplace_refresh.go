package asg

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/alb"
)

// Refreshing implements fleet.InPlace.
func (g *InPlace) Refreshing(ctx context.Context) (fleet.RefreshState, error) {
	_, is, err := g.look(ctx)
	return is, err
}

// look is the group and its newest refresh. That comes first: once it is seen to be
// done, the group launches by what it was to.
func (g *InPlace) look(ctx context.Context) (now *group, st fleet.RefreshState, err error) {
	if err := g.connect(ctx); err != nil {
		return nil, st, err
	}
	// There is one at a time, and the newest comes first.
	out, err := g.p.as.DescribeInstanceRefreshes(ctx, &autoscaling.DescribeInstanceRefreshesInput{AutoScalingGroupName: &g.p.cfg.Adopt, MaxRecords: aws.Int32(1)})
	if err != nil && !gone(err) {
		return nil, st, fmt.Errorf("ask how group %s is being refreshed: %w", g.p.cfg.Adopt, err)
	}
	if now, err = g.group(ctx); err != nil {
		return nil, st, err
	}
	st.Serves, st.Size = g.of(launches(now.AutoScalingGroup)), len(now.live())
	if out != nil && len(out.InstanceRefreshes) > 0 {
		g.read(out.InstanceRefreshes[0], &st)
	}
	return now, st, nil
}

// read is what a refresh tells.
func (g *InPlace) read(r astypes.InstanceRefresh, st *fleet.RefreshState) {
	st.ID, st.Why = aws.ToString(r.InstanceRefreshId), aws.ToString(r.StatusReason)
	if d := r.RollbackDetails; d != nil && aws.ToString(d.RollbackReason) != "" {
		st.Why = aws.ToString(d.RollbackReason)
	}
	if d := r.DesiredConfiguration; d != nil {
		st.To = g.of(d.LaunchTemplate)
		if m := d.MixedInstancesPolicy; m != nil && m.LaunchTemplate != nil {
			st.To = g.of(m.LaunchTemplate.LaunchTemplateSpecification)
		}
	}
	switch r.Status {
	case astypes.InstanceRefreshStatusBaking:
		st.Phase = fleet.RefreshBakes
	case astypes.InstanceRefreshStatusSuccessful:
		st.Phase = fleet.RefreshDone
	case astypes.InstanceRefreshStatusRollbackInProgress:
		st.Phase = fleet.RefreshTurning
	case astypes.InstanceRefreshStatusRollbackSuccessful:
		st.Phase = fleet.RefreshTurned
	case astypes.InstanceRefreshStatusFailed, astypes.InstanceRefreshStatusCancelled, astypes.InstanceRefreshStatusRollbackFailed:
		st.Phase, st.Why = fleet.RefreshEnded, orElse(st.Why, string(r.Status))
	case astypes.InstanceRefreshStatusCancelling:
		st.Phase, st.Why = fleet.RefreshTurning, "somebody cancelled it" // and what it began is waited for
	default:
		st.Phase = fleet.RefreshRuns
	}
}

// Replace implements fleet.InPlace. A refresh has no client token: one that goes
// on is found again by its launch template, which no other deployment has.
func (g *InPlace) Replace(ctx context.Context, id fleet.GroupID, spec fleet.Spec, b fleet.Bounds) error {
	if err := g.p.check(id); err != nil {
		return err
	}
	now, is, err := g.look(ctx)
	if err != nil {
		return err
	}
	all, err := g.templates(ctx)
	if err != nil {
		return err
	}
	if err := g.current(all); err != nil || is.To == id {
		return err
	}
	if is.Active() {
		return fmt.Errorf("%w: %s of group %s goes on: wait for its end, or cancel it", fleet.ErrRefreshing, is.ID, now.name())
	}
	before, err := g.before(now.AutoScalingGroup)
	if err != nil {
		return err
	}
	img, err := g.p.image(ctx, spec.Image)
	if err != nil {
		return err
	}
	origin := before
	if own := g.of(launches(now.AutoScalingGroup)); own != (fleet.GroupID{}) {
		origin = tagOf(all[own], TagModel)
	}
	from, err := g.p.model(ctx, origin)
	if err != nil {
		return err
	}
	template, err := g.p.template(ctx, id, spec, img, from, TagBefore, before, TagModel, from.template)
	if err != nil {
		return err
	}
	return g.start(ctx, now, template+":1", b, true)
}

// TakeBack implements fleet.InPlace.
func (g *InPlace) TakeBack(ctx context.Context, id fleet.GroupID, b fleet.Bounds) error {
	now, is, err := g.look(ctx)
	if err != nil {
		return err
	}
	all, err := g.templates(ctx)
	if err != nil {
		return err
	}
	if err := g.current(all); err != nil {
		return err
	}
	if is.To == id && (is.Phase == fleet.RefreshRuns || is.Phase == fleet.RefreshBakes) {
		_, err := g.p.as.RollbackInstanceRefresh(ctx, &autoscaling.RollbackInstanceRefreshInput{AutoScalingGroupName: &g.p.cfg.Adopt})
		switch c := code(err); {
		case err == nil:
			return g.seen(ctx, func(is fleet.RefreshState) bool {
				return is.Phase != fleet.RefreshRuns && is.Phase != fleet.RefreshBakes
			})
		case strings.HasPrefix(c, "ActiveInstanceRefreshNotFound"):
			return nil // it has just ended: the next look tells
		case strings.HasPrefix(c, "IrreversibleInstanceRefresh"): // then it is ended, and another begins
			if _, err := g.p.as.CancelInstanceRefresh(ctx, &autoscaling.CancelInstanceRefreshInput{AutoScalingGroupName: &g.p.cfg.Adopt}); err != nil && !strings.HasPrefix(code(err), "ActiveInstanceRefreshNotFound") {
				return fmt.Errorf("cancel the refresh of %s: %w", now.name(), err)
			}
			return nil
		}
		return fmt.Errorf("turn the refresh of %s round: %w", now.name(), err)
	}
	if is.Active() {
		return nil
	}
	// It has ended. What the group launched by before is its own still, unless the refresh came to its end.
	before := tagOf(all[id], TagBefore)
	if g.of(launches(now.AutoScalingGroup)) != id {
		if before, err = g.before(now.AutoScalingGroup); err != nil {
			return err
		}
	}
	if before == "" {
		return fmt.Errorf("nobody wrote down what group %s launched by before %s: refresh it by hand", now.name(), groupName(id))
	}
	return g.start(ctx, now, before, b, false)
}

// start begins a refresh to a launch template, NAME:VERSION, and waits until it is seen.
func (g *InPlace) start(ctx context.Context, now *group, template string, b fleet.Bounds, turns bool) error {
	name, version, _ := strings.Cut(template, ":")
	spec := &astypes.LaunchTemplateSpecification{LaunchTemplateName: &name, Version: &version}
	want := &astypes.DesiredConfiguration{LaunchTemplate: spec}
	if m := now.MixedInstancesPolicy; m != nil && m.LaunchTemplate != nil {
		if slices.ContainsFunc(m.LaunchTemplate.Overrides, func(o astypes.LaunchTemplateOverrides) bool { return o.LaunchTemplateSpecification != nil }) {
			return fmt.Errorf("group %s has a launch template of its own for some instance types, which rebake would not change: take those from its mixed instances policy", now.name())
		}
		mixed, lt := *m, *m.LaunchTemplate
		lt.LaunchTemplateSpecification, mixed.LaunchTemplate = spec, &lt
		want = &astypes.DesiredConfiguration{MixedInstancesPolicy: &mixed}
	}
	out, err := g.p.as.StartInstanceRefresh(ctx, &autoscaling.StartInstanceRefreshInput{AutoScalingGroupName: &g.p.cfg.Adopt, DesiredConfiguration: want, Preferences: g.preferences(b, turns)})
	if err != nil {
		if strings.HasPrefix(code(err), "InstanceRefreshInProgress") {
			return fmt.Errorf("%w, or an answer was lost: %w", fleet.ErrRefreshing, err) // the next look tells
		}
		return fmt.Errorf("refresh group %s to %s: %w", now.name(), template, err)
	}
	id := aws.ToString(out.InstanceRefreshId)
	return g.seen(ctx, func(is fleet.RefreshState) bool { return is.ID == id })
}

// seen waits until what was told is seen: answers may be behind.
func (g *InPlace) seen(ctx context.Context, so func(fleet.RefreshState) bool) error {
	return g.p.wait(ctx, func() (string, error) {
		is, err := g.Refreshing(ctx)
		if err != nil || so(is) {
			return "", err
		}
		return "the refresh to be seen", nil
	})
}

func (g *InPlace) preferences(b fleet.Bounds, turns bool) *astypes.RefreshPreferences {
	p := &astypes.RefreshPreferences{MinHealthyPercentage: aws.Int32(int32(b.MinHealthy)), MaxHealthyPercentage: aws.Int32(int32(b.MaxHealthy)), AutoRollback: &turns, SkipMatching: aws.Bool(true)}
	if s := seconds(g.p.cfg.Health.Warmup); s > 0 {
		p.InstanceWarmup = &s
	}
	if len(b.Checkpoints) > 0 {
		p.CheckpointDelay = aws.Int32(int32(b.Delay.Seconds()))
		for _, c := range b.Checkpoints {
			p.CheckpointPercentages = append(p.CheckpointPercentages, int32(c))
		}
	}
	if b.Bake > 0 {
		p.BakeTime = aws.Int32(int32(b.Bake.Seconds()))
	}
	var alarms []string
	for _, a := range b.Alarms {
		if a.Region == "" || a.Region == g.p.region { // it knows no others: those are asked by the gate alone
			alarms = append(alarms, a.Names...)
		}
	}
	if len(alarms) > 0 {
		p.AlarmSpecification = &astypes.AlarmSpecification{Alarms: alarms}
	}
	return p
}

// Status implements fleet.Router: what the group's load balancers see of each
// instance of the fleet, and each slot's share of the instances. A group behind
// none is judged by itself.
func (g *InPlace) Status(ctx context.Context) (fleet.RouterStatus, error) {
	st := fleet.RouterStatus{Weights: map[fleet.Slot]int{fleet.Blue: 0, fleet.Green: 0}, Members: map[fleet.Slot][]fleet.MemberStatus{}}
	now, err := g.group(ctx)
	if err != nil {
		return st, err
	}
	checks, err := g.checks(ctx, now)
	if err != nil {
		return st, err
	}
	all, err := g.templates(ctx)
	if err != nil {
		return st, err
	}
	machines, err := g.p.known(ctx, g.p.name, []group{*now})
	if err != nil {
		return st, err
	}
	st.Up, st.Listen = true, "group "+now.name()
	for _, i := range now.live() {
		id, inst := g.of(i.LaunchTemplate), aws.ToString(i.InstanceId)
		if id == (fleet.GroupID{}) {
			continue
		}
		m := fleet.MemberStatus{Member: fleet.Member{ID: inst}, Admin: "ready", Check: string(i.LifecycleState)}
		m.Healthy = i.LifecycleState == astypes.LifecycleStateInService && aws.ToString(i.HealthStatus) == "Healthy"
		for _, by := range checks {
			t, ok := by[inst]
			if !ok {
				m.Healthy, m.Check = false, "not registered"
			} else if m.Healthy = m.Healthy && alb.Healthy(t); !alb.Healthy(t) || m.Healthy {
				m.Check = alb.Words(t)
			}
			if alb.Draining(t) {
				m.Admin, m.InFlight = "drain", 1
			}
		}
		for _, port := range g.p.ports(group{tags: map[string]string{tagPorts: tagOf(all[id], tagPorts)}}) {
			if addr := machines[inst].addr; addr != "" && m.Addr == "" {
				m.Addr = hostPort(addr, port)
			}
		}
		st.Members[id.Slot] = append(st.Members[id.Slot], m)
	}
	st.Weights = g.shares(now)
	return st, nil
}

// shares are the slots' parts of the instances, in permille. Those that are
// nobody's count as of the slot that the fleet has nothing in.
func (g *InPlace) shares(now *group) map[fleet.Slot]int {
	n := map[fleet.Slot]int{}
	for _, i := range now.live() {
		if i.LifecycleState == astypes.LifecycleStateInService {
			n[g.of(i.LaunchTemplate).Slot]++
		}
	}
	mine := n[fleet.Blue] + n[fleet.Green]
	if mine == 0 {
		return map[fleet.Slot]int{fleet.Blue: 0, fleet.Green: 0}
	}
	if n[fleet.Green] == 0 {
		n[fleet.Green] = n[""]
	} else if n[fleet.Blue] == 0 {
		n[fleet.Blue] = n[""]
	}
	blue := 1000 * n[fleet.Blue] / (n[fleet.Blue] + n[fleet.Green])
	return map[fleet.Slot]int{fleet.Blue: blue, fleet.Green: 1000 - blue}
}

// checks are what each of the group's target groups says of its instances.
func (g *InPlace) checks(ctx context.Context, now *group) (out []map[string]elbtypes.TargetHealthDescription, err error) {
	arns := slices.Clone(now.TargetGroupARNs)
	for _, s := range now.TrafficSources {
		if a := aws.ToString(s.Identifier); strings.Contains(a, ":targetgroup/") && !slices.Contains(arns, a) {
			arns = append(arns, a)
		}
	}
	for _, arn := range arns {
		health, err := g.elb.DescribeTargetHealth(ctx, &elb.DescribeTargetHealthInput{TargetGroupArn: &arn})
		if err != nil {
			return nil, fmt.Errorf("the health of %s: %w", arn, err)
		}
		by := map[string]elbtypes.TargetHealthDescription{}
		for _, t := range health.TargetHealthDescriptions {
			if t.Target != nil {
				by[aws.ToString(t.Target.Id)] = t
			}
		}
		out = append(out, by)
	}
	return out, nil
}

// Ensure implements fleet.Router.
func (g *InPlace) Ensure(ctx context.Context) error { _, err := g.group(ctx); return err }

// Remove implements fleet.Router: the group goes on as it is.
func (g *InPlace) Remove(context.Context) error { g.free = true; return nil }
