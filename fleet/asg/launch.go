package asg

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/event"
)

// Launch implements fleet.Pool. It returns once all instances are in service in
// their group, past its lifecycle hooks. Where a zone has no room that is
// fleet.ErrNoCapacity at once, in the zone's words.
func (p *Pool) Launch(ctx context.Context, id fleet.GroupID, spec fleet.Spec) error {
	if err := p.check(id); err != nil {
		return err
	}
	if spec.Size < 0 || spec.Size > 1000 {
		return fmt.Errorf("%d instances are out of range", spec.Size)
	}
	g, others, err := p.find(ctx, id)
	if err != nil {
		return err
	}
	if err := p.quiet(ctx, g, others); err != nil {
		return err
	}
	if g == nil {
		if g, err = p.create(ctx, id, spec, others); err != nil {
			return err
		}
	} else if d := g.tags[TagDigest]; d != string(spec.Image.Digest) {
		return fmt.Errorf("group %s runs another image (%s): a group never changes its image", g.name(), d)
	}
	if err := p.pin(ctx, id, others); err != nil {
		return err
	}
	if len(g.live()) > spec.Size || int(aws.ToInt32(g.DesiredCapacity)) > spec.Size {
		err = p.shrink(ctx, *g, spec.Size)
	} else {
		err = p.grow(ctx, *g, spec.Size)
	}
	if err != nil {
		return err
	}
	return p.hold(ctx, *g, spec.Size, others)
}

// quiet refuses where something else is at work on the groups.
func (p *Pool) quiet(ctx context.Context, g *group, others []group) error {
	all := others
	if g != nil {
		all = append(slices.Clone(others), *g)
	}
	for _, o := range all {
		var off []string
		for _, s := range o.SuspendedProcesses {
			switch name := aws.ToString(s.ProcessName); name {
			case "Launch", "Terminate", "AddToLoadBalancer":
				off = append(off, name+" ("+aws.ToString(s.SuspensionReason)+")")
			}
		}
		if len(off) > 0 && g != nil && o.name() == g.name() {
			return fmt.Errorf("processes of group %s are suspended: %s; `aws autoscaling resume-processes --auto-scaling-group-name %s` lets it work", o.name(), strings.Join(off, ", "), o.name())
		}
		if len(off) > 0 {
			event.Warnf(ctx, "processes of group %s are suspended: %s", o.name(), strings.Join(off, ", "))
		}
	}
	if g != nil { // asked when the deployment began
		return nil
	}
	for _, o := range others {
		out, err := p.as.DescribeInstanceRefreshes(ctx, &autoscaling.DescribeInstanceRefreshesInput{AutoScalingGroupName: o.AutoScalingGroupName, MaxRecords: aws.Int32(1)}, maybe)
		if err != nil {
			if unknown(err) || gone(err) {
				continue
			}
			return fmt.Errorf("ask whether group %s is being refreshed: %w", o.name(), err)
		}
		for _, r := range out.InstanceRefreshes {
			switch r.Status {
			case astypes.InstanceRefreshStatusSuccessful, astypes.InstanceRefreshStatusFailed, astypes.InstanceRefreshStatusCancelled,
				astypes.InstanceRefreshStatusRollbackSuccessful, astypes.InstanceRefreshStatusRollbackFailed:
			default:
				return fmt.Errorf("group %s is in the middle of instance refresh %s (%s): wait for its end, or cancel it", o.name(), aws.ToString(r.InstanceRefreshId), r.Status)
			}
		}
	}
	return nil
}

// create makes the launch template and the empty group.
func (p *Pool) create(ctx context.Context, id fleet.GroupID, spec fleet.Spec, others []group) (*group, error) {
	img, err := p.image(ctx, spec.Image)
	if err != nil {
		return nil, err
	}
	from, err := p.model(ctx, "")
	if err != nil {
		return nil, err
	}
	p.looked.Store(false) // until the group is seen
	template, err := p.template(ctx, id, spec, img, from)
	if err != nil {
		return nil, err
	}
	arn := ""
	if p.targets != nil {
		if arn, err = p.targets.Target(ctx, id.Slot); err != nil {
			return nil, err
		}
	}
	in := p.input(id, spec, from, template, others)
	if arn != "" {
		in.TargetGroupARNs = []string{arn}
	}
	_, err = p.as.CreateAutoScalingGroup(ctx, in)
	if err != nil && code(err) != "AlreadyExists" && code(err) != "AlreadyExistsFault" {
		return nil, fmt.Errorf("make group %s: %w", groupName(id), err)
	}
	var g *group
	err = p.wait(ctx, func() (string, error) { // what was made may not be seen at once
		var err error
		g, _, err = p.find(ctx, id)
		if err != nil || g != nil {
			return "", err
		}
		return "group " + groupName(id) + " to be seen", nil
	})
	if err != nil {
		return nil, err
	}
	return g, p.copySettings(ctx, *g, from, others, arn)
}

// input is the group as it is made: empty, with all that it is known by.
func (p *Pool) input(id fleet.GroupID, spec fleet.Spec, from *model, template string, others []group) *autoscaling.CreateAutoScalingGroupInput {
	name := groupName(id)
	in := &autoscaling.CreateAutoScalingGroupInput{
		AutoScalingGroupName: &name, MinSize: aws.Int32(0), DesiredCapacity: aws.Int32(0), MaxSize: aws.Int32(int32(max(spec.Size, p.cfg.Capacity.Max))),
		DeletionProtection: astypes.DeletionProtectionPreventForceDeletion, HealthCheckType: aws.String("EC2"),
		HealthCheckGracePeriod: aws.Int32(seconds(p.cfg.Health.Grace)),
		VPCZoneIdentifier:      aws.String(strings.Join(p.cfg.Subnets, ",")),
	}
	if w := seconds(p.cfg.Health.Warmup); w > 0 {
		in.DefaultInstanceWarmup = &w
	}
	if from != nil && from.group != nil {
		from.into(in, len(p.cfg.Subnets) > 0)
	}
	lt := &astypes.LaunchTemplateSpecification{LaunchTemplateName: aws.String(template), Version: aws.String("1")}
	if len(p.cfg.Instance.Types) < 2 {
		in.LaunchTemplate = lt
	} else {
		in.MixedInstancesPolicy = &astypes.MixedInstancesPolicy{LaunchTemplate: &astypes.LaunchTemplate{LaunchTemplateSpecification: lt},
			InstancesDistribution: &astypes.InstancesDistribution{OnDemandAllocationStrategy: aws.String("prioritized")}}
		for _, kind := range p.cfg.Instance.Types {
			in.MixedInstancesPolicy.LaunchTemplate.Overrides = append(in.MixedInstancesPolicy.LaunchTemplate.Overrides, astypes.LaunchTemplateOverrides{InstanceType: aws.String(kind)})
		}
	}
	tags := p.tags(id, spec)
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		in.Tags = append(in.Tags, tag(name, k, tags[k], true))
	}
	in.Tags = append(in.Tags, tag(name, TagPinned, fmt.Sprintf("%d %s", orElse(p.cfg.Capacity.Min, spec.Size), p.cfg.Health.Check), false))
	if e := p.mine.Load(); e != 0 {
		in.Tags = append(in.Tags, tag(name, TagEpoch, strconv.FormatInt(e, 10), false))
	}
	return in
}

// tags are those of the group and of its instances.
func (p *Pool) tags(id fleet.GroupID, spec fleet.Spec) map[string]string {
	var ports []string
	for _, port := range spec.Ports {
		ports = append(ports, strconv.Itoa(port))
	}
	tags := map[string]string{"Name": id.Fleet + "-" + string(id.Slot)}
	maps.Copy(tags, spec.Labels)
	maps.Copy(tags, p.cfg.Tags)
	maps.Copy(tags, map[string]string{TagFleet: id.Fleet, TagSlot: string(id.Slot), TagDeployment: id.Deployment,
		TagDigest: string(spec.Image.Digest), TagAddress: p.cfg.Instance.Address, tagPorts: strings.Join(ports, " ")})
	return tags
}

// pin keeps the groups of the other slot as large as they are while this one
// comes up: they are what a rollback needs. One call for each that is not pinned.
func (p *Pool) pin(ctx context.Context, id fleet.GroupID, others []group) error {
	for _, o := range others {
		want := aws.ToInt32(o.DesiredCapacity)
		if o.id.Slot == id.Slot || aws.ToInt32(o.MinSize) >= want && aws.ToString(o.HealthCheckType) == "EC2" {
			continue
		}
		if _, err := p.as.UpdateAutoScalingGroup(ctx, &autoscaling.UpdateAutoScalingGroupInput{
			AutoScalingGroupName: o.AutoScalingGroupName, MinSize: &want, HealthCheckType: aws.String("EC2")}); err != nil {
			return fmt.Errorf("pin group %s to %d instances: %w", o.name(), want, err)
		}
		event.Infof(ctx, "group %s keeps its %d instances until the deployment is over", o.name(), want)
	}
	return nil
}

// hold sets the least size that a launched group may shrink to. While the other
// slot has a group that is all of it; a fleet's first group is its own at once.
func (p *Pool) hold(ctx context.Context, g group, size int, others []group) error {
	least, check := int32(size), "EC2"
	if !slices.ContainsFunc(others, func(o group) bool { return o.id.Slot != g.id.Slot }) {
		least, check = p.rest(g, int32(size))
	}
	if aws.ToInt32(g.MinSize) == least && aws.ToString(g.HealthCheckType) == check {
		return nil
	}
	if _, err := p.as.UpdateAutoScalingGroup(ctx, &autoscaling.UpdateAutoScalingGroupInput{
		AutoScalingGroupName: g.AutoScalingGroupName, MinSize: &least, HealthCheckType: &check}); err != nil {
		return fmt.Errorf("keep group %s at %d instances: %w", g.name(), size, err)
	}
	return nil
}

// rest is what a group goes back to when nothing is deployed.
func (p *Pool) rest(g group, size int32) (least int32, check string) {
	least, check = size, strings.ToUpper(p.cfg.Health.Check)
	if n, kind, ok := strings.Cut(g.tags[TagPinned], " "); ok {
		if v, err := strconv.Atoi(n); err == nil && v >= 0 {
			least = min(int32(v), size)
		}
		check = strings.ToUpper(kind)
	}
	if check == "ELB" && len(g.TargetGroupARNs) == 0 && len(g.TrafficSources) == 0 {
		check = "EC2"
	}
	return least, check
}

// shrink ends the instances above the size, the newest first, each by a call: a
// group told to be smaller chooses by itself.
func (p *Pool) shrink(ctx context.Context, g group, size int) error {
	least := int32(min(size, int(aws.ToInt32(g.MinSize))))
	in := &autoscaling.UpdateAutoScalingGroupInput{AutoScalingGroupName: g.AutoScalingGroupName, MinSize: &least}
	live := g.live()
	if want := int32(max(size, len(live))); aws.ToInt32(g.DesiredCapacity) > want {
		in.DesiredCapacity = &want
	}
	if _, err := p.as.UpdateAutoScalingGroup(ctx, in); err != nil {
		return fmt.Errorf("shrink group %s to %d: %w", g.name(), size, err)
	}
	machines, err := p.machines(ctx, g.id.Fleet)
	if err != nil {
		return err
	}
	slices.SortStableFunc(live, func(a, b astypes.Instance) int {
		return machines[aws.ToString(a.InstanceId)].started.Compare(machines[aws.ToString(b.InstanceId)].started)
	})
	for _, i := range live[min(size, len(live)):] {
		if _, err := p.as.TerminateInstanceInAutoScalingGroup(ctx, &autoscaling.TerminateInstanceInAutoScalingGroupInput{
			InstanceId: i.InstanceId, ShouldDecrementDesiredCapacity: aws.Bool(true)}); err != nil && !gone(err) {
			return fmt.Errorf("end %s: %w", aws.ToString(i.InstanceId), err)
		}
	}
	return p.wait(ctx, func() (string, error) {
		now, _, err := p.find(ctx, g.id)
		if err != nil || now == nil || len(now.Instances) <= size {
			return "", err
		}
		return fmt.Sprintf("%d of %d instances to end", len(now.Instances)-size, len(now.Instances)), nil
	})
}

// machine is what is used of an EC2 instance.
type machine struct {
	id, addr string
	running  bool
	started  time.Time
}

// instance is the machine as a fleet sees it.
func (m machine) instance(ports []int) fleet.Instance {
	in := fleet.Instance{ID: m.id, Running: m.running, Started: m.started, Ports: map[int]string{}}
	for _, port := range ports {
		if m.addr != "" {
			in.Ports[port] = hostPort(m.addr, port)
		}
	}
	return in
}

func sortInstances(all []fleet.Instance) {
	slices.SortFunc(all, func(a, b fleet.Instance) int {
		return orElse(a.Started.Compare(b.Started), strings.Compare(a.ID, b.ID))
	})
}

// looksAtMachines is how many looks at groups share one at their instances, whose
// list is long: that one of them died is told by its group and its router too.
const looksAtMachines = 5

// known are the machines of the groups, as of lately.
func (p *Pool) known(ctx context.Context, name string, all []group) (map[string]machine, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fresh := name == p.name && time.Since(p.told) < looksAtMachines*p.deps.Poll
	for _, g := range all {
		for _, i := range g.live() {
			m, ok := p.last[aws.ToString(i.InstanceId)]
			fresh = fresh && ok && m.running && m.addr != ""
		}
	}
	if fresh {
		return p.last, nil
	}
	machines, err := p.machines(ctx, name)
	if err == nil && name == p.name {
		p.last, p.told = machines, time.Now()
	}
	return machines, err
}

// machines are the fleet's instances, those that ended lately too.
func (p *Pool) machines(ctx context.Context, name string) (map[string]machine, error) {
	all := map[string]machine{}
	filter := p.filter
	if name != p.name { // of another fleet, which only status asks for
		filter = ec2Filter{Name: aws.String("tag:" + TagFleet), Values: []string{name}}
	}
	pages := ec2.NewDescribeInstancesPaginator(p.ec2, &ec2.DescribeInstancesInput{MaxResults: aws.Int32(1000), Filters: []ec2Filter{filter}})
	for pages.HasMorePages() {
		out, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list the instances of fleet %s: %w", name, err)
		}
		for _, r := range out.Reservations {
			for _, i := range r.Instances {
				m := p.machine(i)
				all[m.id] = m
			}
		}
	}
	return all, nil
}
