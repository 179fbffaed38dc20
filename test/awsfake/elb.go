package awsfake

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
)

var elbActions = map[string]action{
	"CreateLoadBalancer": on((*region).createLoadBalancer), "DeleteLoadBalancer": on((*region).deleteLoadBalancer), "DescribeLoadBalancers": on((*region).describeLoadBalancers),
	"DescribeLoadBalancerAttributes": on((*region).describeLoadBalancerAttributes), "ModifyLoadBalancerAttributes": on((*region).modifyLoadBalancerAttributes),
	"CreateListener": on((*region).createListener), "ModifyListener": on((*region).modifyListener), "DeleteListener": on((*region).deleteListener), "DescribeListeners": on((*region).describeListeners),
	"CreateRule": on((*region).createRule), "ModifyRule": on((*region).modifyRule), "DeleteRule": on((*region).deleteRule), "DescribeRules": on((*region).describeRules), "SetRulePriorities": on((*region).setRulePriorities),
	"CreateTargetGroup": on((*region).createTargetGroup), "ModifyTargetGroup": on((*region).modifyTargetGroup), "DeleteTargetGroup": on((*region).deleteTargetGroup), "DescribeTargetGroups": on((*region).describeTargetGroups),
	"DescribeTargetGroupAttributes": on((*region).describeTargetGroupAttributes), "ModifyTargetGroupAttributes": on((*region).modifyTargetGroupAttributes),
	"RegisterTargets": on((*region).registerTargets), "DeregisterTargets": on((*region).deregisterTargets), "DescribeTargetHealth": on((*region).describeTargetHealth),
	"AddTags": on((*region).addELBTags), "RemoveTags": on((*region).removeELBTags), "DescribeTags": on((*region).describeELBTags),
}

type balancer struct {
	elbtypes.LoadBalancer
	attrs map[string]string
}

func (r *region) balancer(arn string) (*balancer, error) {
	if b, ok := r.balancers.get(arn); ok && r.seen(arn) {
		return b, nil
	}
	return nil, refuse("LoadBalancerNotFound", "Load balancers '[%s]' not found", arn)
}

// elbID is the last part of an ARN.
func (c *Cloud) elbID() string { return strings.TrimPrefix(c.id("x"), "x-0") }

func (r *region) newELB(arn string, tags []elbtypes.Tag) string {
	if r.cloud.Lag > 0 {
		r.born[arn] = time.Now()
	}
	r.elbTags[arn] = map[string]string{}
	for _, t := range tags {
		r.elbTags[arn][aws.ToString(t.Key)] = aws.ToString(t.Value)
	}
	return arn
}

func (r *region) createLoadBalancer(in *elb.CreateLoadBalancerInput) (*elb.CreateLoadBalancerOutput, error) {
	for _, b := range r.balancers.all() {
		if *b.LoadBalancerName == aws.ToString(in.Name) {
			return &elb.CreateLoadBalancerOutput{LoadBalancers: []elbtypes.LoadBalancer{b.LoadBalancer}}, nil
		}
	}
	id := r.cloud.elbID()
	arn := r.newELB(r.arn("elasticloadbalancing", "loadbalancer/app/"+*in.Name+"/"+id), in.Tags)
	b := &balancer{attrs: map[string]string{"deletion_protection.enabled": "false", "idle_timeout.timeout_seconds": "60", "access_logs.s3.enabled": "false"}}
	b.LoadBalancer = elbtypes.LoadBalancer{LoadBalancerArn: &arn, LoadBalancerName: in.Name, Scheme: in.Scheme, Type: "application", VpcId: &r.vpc, IpAddressType: "ipv4", SecurityGroups: in.SecurityGroups,
		CreatedTime: aws.Time(r.cloud.now().UTC()), DNSName: aws.String(host()), CanonicalHostedZoneId: aws.String("Z215JYRZR1TBD5"), State: &elbtypes.LoadBalancerState{Code: "provisioning"}}
	if b.Scheme == "" {
		b.Scheme = "internet-facing"
	}
	for _, id := range in.Subnets {
		s, ok := r.subnets.get(id)
		if !ok {
			return nil, refuse("SubnetNotFound", "The subnet ID '%s' does not exist", id)
		}
		b.AvailabilityZones = append(b.AvailabilityZones, elbtypes.AvailabilityZone{SubnetId: s.SubnetId, ZoneName: s.AvailabilityZone})
	}
	r.balancers.put(arn, b)
	out := &elb.CreateLoadBalancerOutput{LoadBalancers: []elbtypes.LoadBalancer{b.LoadBalancer}}
	r.cloud.after(r.cloud.Delays.Pending, func() { b.State = &elbtypes.LoadBalancerState{Code: "active"} })
	return out, nil
}

func (r *region) deleteLoadBalancer(in *elb.DeleteLoadBalancerInput) (*elb.DeleteLoadBalancerOutput, error) {
	arn := aws.ToString(in.LoadBalancerArn)
	b, ok := r.balancers.get(arn)
	if ok && b.attrs["deletion_protection.enabled"] == "true" {
		return nil, refuse("OperationNotPermitted", "Load balancer '%s' cannot be deleted because deletion protection is enabled", arn)
	}
	for _, l := range r.listeners.all() {
		if *l.LoadBalancerArn == arn {
			r.removeListener(l)
		}
	}
	r.balancers.del(arn)
	delete(r.elbTags, arn)
	return &elb.DeleteLoadBalancerOutput{}, nil
}

func (r *region) describeLoadBalancers(in *elb.DescribeLoadBalancersInput) (*elb.DescribeLoadBalancersOutput, error) {
	out := &elb.DescribeLoadBalancersOutput{LoadBalancers: []elbtypes.LoadBalancer{}}
	for _, arn := range in.LoadBalancerArns {
		if _, err := r.balancer(arn); err != nil {
			return nil, err
		}
	}
	for _, b := range r.balancers.all() {
		if r.seen(*b.LoadBalancerArn) && (len(in.LoadBalancerArns) == 0 || slices.Contains(in.LoadBalancerArns, *b.LoadBalancerArn)) && (len(in.Names) == 0 || slices.Contains(in.Names, *b.LoadBalancerName)) {
			out.LoadBalancers = append(out.LoadBalancers, b.LoadBalancer)
		}
	}
	if len(in.Names) > len(out.LoadBalancers) {
		return nil, refuse("LoadBalancerNotFound", "Load balancers '%v' not found", in.Names)
	}
	var err error
	out.LoadBalancers, out.NextMarker, err = page(out.LoadBalancers, in.PageSize, in.Marker, 400)
	return out, err
}

func (r *region) describeLoadBalancerAttributes(in *elb.DescribeLoadBalancerAttributesInput) (*elb.DescribeLoadBalancerAttributesOutput, error) {
	b, err := r.balancer(aws.ToString(in.LoadBalancerArn))
	if err != nil {
		return nil, err
	}
	out := &elb.DescribeLoadBalancerAttributesOutput{}
	for _, k := range sortedKeys(b.attrs) {
		out.Attributes = append(out.Attributes, elbtypes.LoadBalancerAttribute{Key: aws.String(k), Value: aws.String(b.attrs[k])})
	}
	return out, nil
}

func (r *region) modifyLoadBalancerAttributes(in *elb.ModifyLoadBalancerAttributesInput) (*elb.ModifyLoadBalancerAttributesOutput, error) {
	b, err := r.balancer(aws.ToString(in.LoadBalancerArn))
	if err != nil {
		return nil, err
	}
	for _, a := range in.Attributes {
		b.attrs[*a.Key] = aws.ToString(a.Value)
	}
	return &elb.ModifyLoadBalancerAttributesOutput{Attributes: in.Attributes}, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (r *region) createListener(in *elb.CreateListenerInput) (*elb.CreateListenerOutput, error) {
	b, err := r.balancer(aws.ToString(in.LoadBalancerArn))
	if err != nil {
		return nil, err
	}
	for _, l := range r.listeners.all() {
		if *l.LoadBalancerArn == *b.LoadBalancerArn && *l.Port == aws.ToInt32(in.Port) {
			return nil, refuse("DuplicateListener", "A listener already exists on this port for this load balancer '%s'", *b.LoadBalancerArn)
		}
	}
	actions, err := r.normal(in.DefaultActions, *b.LoadBalancerArn)
	if err != nil {
		return nil, err
	}
	tail := strings.SplitN(*b.LoadBalancerArn, "loadbalancer/", 2)[1] + "/" + r.cloud.elbID()
	arn := r.newELB(r.arn("elasticloadbalancing", "listener/"+tail), in.Tags)
	l := &listener{region: r, Listener: elbtypes.Listener{ListenerArn: &arn, LoadBalancerArn: b.LoadBalancerArn, Port: in.Port, Protocol: in.Protocol, DefaultActions: actions, Certificates: in.Certificates, SslPolicy: in.SslPolicy}}
	if err := l.open(*b.DNSName, int(aws.ToInt32(in.Port))); err != nil {
		return nil, err
	}
	r.listeners.put(arn, l)
	r.putRule(l, "default", nil, actions, nil)
	return &elb.CreateListenerOutput{Listeners: []elbtypes.Listener{l.Listener}}, nil
}

func (r *region) listener(arn string) (*listener, error) {
	if l, ok := r.listeners.get(arn); ok && r.seen(arn) {
		return l, nil
	}
	return nil, refuse("ListenerNotFound", "One or more listeners not found: '%s'", arn)
}

func (r *region) modifyListener(in *elb.ModifyListenerInput) (*elb.ModifyListenerOutput, error) {
	l, err := r.listener(aws.ToString(in.ListenerArn))
	if err != nil {
		return nil, err
	}
	if in.DefaultActions != nil {
		actions, err := r.normal(in.DefaultActions, *l.LoadBalancerArn)
		if err != nil {
			return nil, err
		}
		l.DefaultActions = actions
		for _, u := range r.rules.all() {
			if u.listener == l && *u.IsDefault {
				r.setActions(u, actions)
			}
		}
	}
	return &elb.ModifyListenerOutput{Listeners: []elbtypes.Listener{l.Listener}}, nil
}

func (r *region) removeListener(l *listener) {
	for _, u := range r.rules.all() {
		if u.listener == l {
			r.rules.del(*u.RuleArn)
			delete(r.elbTags, *u.RuleArn)
		}
	}
	r.listeners.del(*l.ListenerArn)
	delete(r.elbTags, *l.ListenerArn)
	go l.close()
}

func (r *region) deleteListener(in *elb.DeleteListenerInput) (*elb.DeleteListenerOutput, error) {
	l, err := r.listener(aws.ToString(in.ListenerArn))
	if err != nil {
		return nil, err
	}
	r.removeListener(l)
	return &elb.DeleteListenerOutput{}, nil
}

func (r *region) describeListeners(in *elb.DescribeListenersInput) (*elb.DescribeListenersOutput, error) {
	if in.LoadBalancerArn != nil {
		if _, err := r.balancer(*in.LoadBalancerArn); err != nil {
			return nil, err
		}
	}
	for _, arn := range in.ListenerArns {
		if _, err := r.listener(arn); err != nil {
			return nil, err
		}
	}
	out := &elb.DescribeListenersOutput{Listeners: []elbtypes.Listener{}}
	for _, l := range r.listeners.all() {
		if r.seen(*l.ListenerArn) && (in.LoadBalancerArn == nil || *l.LoadBalancerArn == *in.LoadBalancerArn) && (len(in.ListenerArns) == 0 || slices.Contains(in.ListenerArns, *l.ListenerArn)) {
			out.Listeners = append(out.Listeners, l.Listener)
		}
	}
	var err error
	out.Listeners, out.NextMarker, err = page(out.Listeners, in.PageSize, in.Marker, 400)
	return out, err
}

func (r *region) createTargetGroup(in *elb.CreateTargetGroupInput) (*elb.CreateTargetGroupOutput, error) {
	g := elbtypes.TargetGroup{HealthCheckEnabled: aws.Bool(true), HealthCheckIntervalSeconds: aws.Int32(30), HealthCheckPath: aws.String("/"), HealthCheckPort: aws.String("traffic-port"), HealthCheckProtocol: in.Protocol,
		HealthCheckTimeoutSeconds: aws.Int32(5), HealthyThresholdCount: aws.Int32(5), UnhealthyThresholdCount: aws.Int32(2), Matcher: &elbtypes.Matcher{HttpCode: aws.String("200")},
		ProtocolVersion: aws.String("HTTP1"), TargetType: elbtypes.TargetTypeEnumInstance, IpAddressType: "ipv4", VpcId: &r.vpc, TargetGroupName: in.Name}
	copyAs(&g, in)
	if n := len(aws.ToString(in.Name)); n < 1 || n > 32 {
		return nil, refuse("ValidationError", "Target group name '%s' cannot be longer than '32' characters", aws.ToString(in.Name))
	}
	for _, have := range r.targetGroups.all() {
		if *have.TargetGroupName != *in.Name {
			continue
		}
		g.TargetGroupArn = have.TargetGroupArn
		if fmt.Sprint(toTree(valueOf(&g))) != fmt.Sprint(toTree(valueOf(&have.TargetGroup))) {
			return nil, refuse("DuplicateTargetGroupName", "A target group with the same name '%s' exists, but with different settings", *in.Name)
		}
		return &elb.CreateTargetGroupOutput{TargetGroups: []elbtypes.TargetGroup{r.showTarget(have)}}, nil
	}
	arn := r.newELB(r.arn("elasticloadbalancing", "targetgroup/"+*in.Name+"/"+r.cloud.elbID()), in.Tags)
	g.TargetGroupArn = &arn
	t := &targetGroup{TargetGroup: g, attrs: map[string]string{"deregistration_delay.timeout_seconds": "300", "stickiness.enabled": "false", "stickiness.type": "lb_cookie",
		"stickiness.lb_cookie.duration_seconds": "86400", "slow_start.duration_seconds": "0", "load_balancing.algorithm.type": "round_robin",
		"target_group_health.unhealthy_state_routing.minimum_healthy_targets.count": "1", "target_group_health.unhealthy_state_routing.minimum_healthy_targets.percentage": "off",
		"target_group_health.dns_failover.minimum_healthy_targets.count": "1", "target_group_health.dns_failover.minimum_healthy_targets.percentage": "off"}}
	r.targetGroups.put(arn, t)
	return &elb.CreateTargetGroupOutput{TargetGroups: []elbtypes.TargetGroup{r.showTarget(t)}}, nil
}

func (r *region) targetGroup(arn string) (*targetGroup, error) {
	if g, ok := r.targetGroups.get(arn); ok && r.seen(arn) {
		return g, nil
	}
	return nil, refuse("TargetGroupNotFound", "Target groups '%s' not found", arn)
}

// usedBy are the load balancers of which a rule refers to the group.
func (r *region) usedBy(arn string) (out []string) {
	for _, u := range r.rules.all() {
		for _, a := range u.Actions {
			if a.ForwardConfig == nil {
				continue
			}
			for _, t := range a.ForwardConfig.TargetGroups {
				if *t.TargetGroupArn == arn && !slices.Contains(out, *u.listener.LoadBalancerArn) {
					out = append(out, *u.listener.LoadBalancerArn)
				}
			}
		}
	}
	return out
}

func (r *region) showTarget(g *targetGroup) elbtypes.TargetGroup {
	s := g.TargetGroup
	s.LoadBalancerArns = r.usedBy(*g.TargetGroupArn)
	if s.LoadBalancerArns == nil {
		s.LoadBalancerArns = []string{}
	}
	return s
}

func (r *region) modifyTargetGroup(in *elb.ModifyTargetGroupInput) (*elb.ModifyTargetGroupOutput, error) {
	g, err := r.targetGroup(aws.ToString(in.TargetGroupArn))
	if err != nil {
		return nil, err
	}
	copyAs(&g.TargetGroup, in)
	return &elb.ModifyTargetGroupOutput{TargetGroups: []elbtypes.TargetGroup{r.showTarget(g)}}, nil
}

func (r *region) deleteTargetGroup(in *elb.DeleteTargetGroupInput) (*elb.DeleteTargetGroupOutput, error) {
	arn := aws.ToString(in.TargetGroupArn)
	if len(r.usedBy(arn)) > 0 {
		return nil, refuse("ResourceInUse", "Target group '%s' is currently in use by a listener or a rule", arn)
	}
	r.targetGroups.del(arn)
	delete(r.elbTags, arn)
	return &elb.DeleteTargetGroupOutput{}, nil
}

func (r *region) describeTargetGroups(in *elb.DescribeTargetGroupsInput) (*elb.DescribeTargetGroupsOutput, error) {
	out := &elb.DescribeTargetGroupsOutput{TargetGroups: []elbtypes.TargetGroup{}}
	for _, arn := range in.TargetGroupArns {
		if _, err := r.targetGroup(arn); err != nil {
			return nil, err
		}
	}
	for _, g := range r.targetGroups.all() {
		s := r.showTarget(g)
		if r.seen(*g.TargetGroupArn) && (len(in.TargetGroupArns) == 0 || slices.Contains(in.TargetGroupArns, *g.TargetGroupArn)) && (len(in.Names) == 0 || slices.Contains(in.Names, *g.TargetGroupName)) &&
			(in.LoadBalancerArn == nil || slices.Contains(s.LoadBalancerArns, *in.LoadBalancerArn)) {
			out.TargetGroups = append(out.TargetGroups, s)
		}
	}
	if len(in.Names) > len(out.TargetGroups) {
		return nil, refuse("TargetGroupNotFound", "One or more target groups not found")
	}
	var err error
	out.TargetGroups, out.NextMarker, err = page(out.TargetGroups, in.PageSize, in.Marker, 400)
	return out, err
}

func (r *region) describeTargetGroupAttributes(in *elb.DescribeTargetGroupAttributesInput) (*elb.DescribeTargetGroupAttributesOutput, error) {
	g, err := r.targetGroup(aws.ToString(in.TargetGroupArn))
	if err != nil {
		return nil, err
	}
	out := &elb.DescribeTargetGroupAttributesOutput{}
	for _, k := range sortedKeys(g.attrs) {
		out.Attributes = append(out.Attributes, elbtypes.TargetGroupAttribute{Key: aws.String(k), Value: aws.String(g.attrs[k])})
	}
	return out, nil
}

func (r *region) modifyTargetGroupAttributes(in *elb.ModifyTargetGroupAttributesInput) (*elb.ModifyTargetGroupAttributesOutput, error) {
	g, err := r.targetGroup(aws.ToString(in.TargetGroupArn))
	if err != nil {
		return nil, err
	}
	for _, a := range in.Attributes {
		if n, err := strconv.Atoi(aws.ToString(a.Value)); *a.Key == "deregistration_delay.timeout_seconds" && (err != nil || n < 0 || n > 3600) {
			return nil, refuse("ValidationError", "'%s' must be between '0' and '3600'", *a.Key)
		}
		g.attrs[*a.Key] = aws.ToString(a.Value)
	}
	return &elb.ModifyTargetGroupAttributesOutput{Attributes: in.Attributes}, nil
}

func (r *region) addELBTags(in *elb.AddTagsInput) (*elb.AddTagsOutput, error) {
	for _, arn := range in.ResourceArns {
		if r.elbTags[arn] == nil {
			return nil, notFoundELB(arn)
		}
		for _, t := range in.Tags {
			r.elbTags[arn][*t.Key] = aws.ToString(t.Value)
		}
	}
	return &elb.AddTagsOutput{}, nil
}

func notFoundELB(arn string) error {
	for part, code := range map[string]string{":listener-rule/": "RuleNotFound", ":listener/": "ListenerNotFound", ":targetgroup/": "TargetGroupNotFound"} {
		if strings.Contains(arn, part) {
			return refuse(code, "'%s' not found", arn)
		}
	}
	return refuse("LoadBalancerNotFound", "'%s' not found", arn)
}

func (r *region) removeELBTags(in *elb.RemoveTagsInput) (*elb.RemoveTagsOutput, error) {
	for _, arn := range in.ResourceArns {
		if r.elbTags[arn] == nil {
			return nil, notFoundELB(arn)
		}
		for _, k := range in.TagKeys {
			delete(r.elbTags[arn], k)
		}
	}
	return &elb.RemoveTagsOutput{}, nil
}

func (r *region) describeELBTags(in *elb.DescribeTagsInput) (*elb.DescribeTagsOutput, error) {
	if len(in.ResourceArns) > 20 {
		return nil, refuse("ValidationError", "Member must have length less than or equal to 20")
	}
	out := &elb.DescribeTagsOutput{}
	for _, arn := range in.ResourceArns {
		if r.elbTags[arn] == nil || !r.seen(arn) {
			return nil, notFoundELB(arn)
		}
		d := elbtypes.TagDescription{ResourceArn: aws.String(arn), Tags: []elbtypes.Tag{}}
		for _, k := range sortedKeys(r.elbTags[arn]) {
			d.Tags = append(d.Tags, elbtypes.Tag{Key: aws.String(k), Value: aws.String(r.elbTags[arn][k])})
		}
		out.TagDescriptions = append(out.TagDescriptions, d)
	}
	return out, nil
}
