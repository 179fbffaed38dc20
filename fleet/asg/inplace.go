package asg

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/event"
)

// TagBefore is of a launch template that a group was refreshed to: NAME:VERSION of
// the one that it launched by before. It is what going back needs.
const TagBefore = "rebake:before"

// TagModel is of one too: NAME:VERSION of the launch template that it was copied
// from. It is the one that somebody else made, never one of rebake's: what a template
// says no more does not live on in copies of copies.
const TagModel = "rebake:model"

// InPlace is a group that somebody else made and that Auto Scaling refreshes: the
// strategy refresh. Of the group nothing is changed but by a refresh. What is
// rebake's is a launch template for each deployment, with the name that a Pool
// gives its own, so that an instance tells by its template which deployment it is of.
type InPlace struct {
	fleet.Standing
	p *Pool

	once sync.Once
	elb  *elb.Client
	free bool // Remove was called: what serves stays as it is
}

var (
	_ fleet.InPlace  = (*InPlace)(nil)
	_ fleet.Fencer   = (*InPlace)(nil)
	_ fleet.Witness  = (*InPlace)(nil)
	_ fleet.Preparer = (*InPlace)(nil)
	_ fleet.Grower   = (*InPlace)(nil)
	_ fleet.Fitter   = (*InPlace)(nil)
	_ fleet.Paced    = (*InPlace)(nil)
	_ fleet.Noter    = (*InPlace)(nil)
)

// NewInPlace checks the configuration; it calls nobody.
func NewInPlace(cfg Config, deps Deps, fleetName string) (*InPlace, error) {
	const own = "with strategy: refresh the group keeps its own: leave it out"
	switch {
	case cfg.Adopt == "":
		return nil, fmt.Errorf("pool.asg.adopt: strategy: refresh is for a group that is there: which one?")
	case len(cfg.Subnets) > 0:
		return nil, fmt.Errorf("pool.asg.subnets: %s", own)
	case cfg.Capacity != (Capacity{}):
		return nil, fmt.Errorf("pool.asg.capacity: %s", own)
	case cfg.Health.Check != "" || cfg.Health.Grace != 0:
		return nil, fmt.Errorf("pool.asg.health: %s (but health.warmup)", own)
	case len(cfg.Instance.Types) > 1:
		return nil, fmt.Errorf("pool.asg.instance.types: with strategy: refresh at most one: a group of several types has them in its own mixed instances policy, which is kept")
	}
	p, err := New(cfg, deps, fleetName)
	if err != nil {
		return nil, err
	}
	p.filter = ec2Filter{Name: aws.String("tag:aws:autoscaling:groupName"), Values: []string{cfg.Adopt}}
	p.inPlace = true
	return &InPlace{p: p}, nil
}

func (g *InPlace) connect(ctx context.Context) error {
	if err := g.p.connect(ctx); err != nil {
		return err
	}
	g.once.Do(func() {
		cfg, err := g.p.config(context.WithoutCancel(ctx))
		if err == nil { // it was read before
			g.elb = elb.NewFromConfig(cfg)
		}
	})
	return ctx.Err()
}

// group is the group as it is now.
func (g *InPlace) group(ctx context.Context) (*group, error) {
	if err := g.connect(ctx); err != nil {
		return nil, err
	}
	name := g.p.cfg.Adopt
	out, err := g.p.as.DescribeAutoScalingGroups(ctx, &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{name}})
	if err != nil {
		return nil, fmt.Errorf("look at group %s: %w", name, err)
	}
	if len(out.AutoScalingGroups) == 0 {
		return nil, fmt.Errorf("pool.asg.adopt: there is no Auto Scaling group %s in %s", name, g.p.region)
	}
	return &group{AutoScalingGroup: out.AutoScalingGroups[0]}, nil
}

// launches is the launch template that a group makes its instances by.
func launches(g astypes.AutoScalingGroup) *astypes.LaunchTemplateSpecification {
	if m := g.MixedInstancesPolicy; g.LaunchTemplate == nil && m != nil && m.LaunchTemplate != nil {
		return m.LaunchTemplate.LaunchTemplateSpecification
	}
	return g.LaunchTemplate
}

// of is the deployment that a launch template is of; zero if it is not this fleet's.
func (g *InPlace) of(spec *astypes.LaunchTemplateSpecification) fleet.GroupID {
	if spec == nil {
		return fleet.GroupID{}
	}
	return g.named(aws.ToString(spec.LaunchTemplateName))
}

func (g *InPlace) named(template string) fleet.GroupID {
	rest, ok := strings.CutPrefix(template, "rebake-"+g.p.name+"-")
	slot, deployment, found := strings.Cut(rest, "-")
	id := fleet.GroupID{Fleet: g.p.name, Slot: fleet.Slot(slot), Deployment: deployment}
	if !ok || !found || g.p.check(id) != nil {
		return fleet.GroupID{}
	}
	return id
}

// templates are the fleet's launch templates, by what they are of. It refuses
// where another operator took over.
func (g *InPlace) templates(ctx context.Context) (map[fleet.GroupID]ec2types.LaunchTemplate, error) {
	all := map[fleet.GroupID]ec2types.LaunchTemplate{}
	pages := ec2.NewDescribeLaunchTemplatesPaginator(g.p.ec2, &ec2.DescribeLaunchTemplatesInput{Filters: []ec2Filter{{Name: aws.String("tag:" + TagFleet), Values: []string{g.p.name}}}})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list the launch templates of fleet %s: %w", g.p.name, err)
		}
		for _, t := range page.LaunchTemplates {
			if id := g.named(aws.ToString(t.LaunchTemplateName)); id != (fleet.GroupID{}) {
				all[id] = t
			}
		}
	}
	return all, nil
}

func tagOf(t ec2types.LaunchTemplate, key string) string {
	for _, one := range t.Tags {
		if aws.ToString(one.Key) == key {
			return aws.ToString(one.Value)
		}
	}
	return ""
}

// current refuses where another operator took the fleet over since.
func (g *InPlace) current(all map[fleet.GroupID]ec2types.LaunchTemplate) error {
	mine := g.p.mine.Load()
	for _, t := range all {
		if e, err := strconv.ParseInt(tagOf(t, TagEpoch), 10, 64); err == nil && mine != 0 && e > mine {
			return fmt.Errorf("%w: as epoch %d, and this is %d", fleet.ErrStale, e, mine)
		}
	}
	return nil
}

// Fence implements fleet.Fencer as a Pool does; the tags are of the launch
// templates, because the group is somebody else's.
func (g *InPlace) Fence(ctx context.Context, epoch int64) error {
	if err := g.connect(ctx); err != nil {
		return err
	}
	all, err := g.templates(ctx)
	if err != nil {
		return err
	}
	g.p.mine.Store(epoch)
	if err := g.current(all); err != nil {
		return err
	}
	var ids []string
	for _, t := range all {
		if tagOf(t, TagEpoch) != strconv.FormatInt(epoch, 10) {
			ids = append(ids, aws.ToString(t.LaunchTemplateId))
		}
	}
	return g.mark(ctx, epoch, ids...)
}

// mark writes an epoch down at launch templates.
func (g *InPlace) mark(ctx context.Context, epoch int64, ids ...string) error {
	if len(ids) == 0 {
		return nil
	}
	if _, err := g.p.ec2.CreateTags(ctx, &ec2.CreateTagsInput{Resources: ids, Tags: []ec2types.Tag{ // with the fleet's tag, by which a policy may allow it
		{Key: aws.String(TagEpoch), Value: aws.String(strconv.FormatInt(epoch, 10))}, {Key: aws.String(TagFleet), Value: &g.p.name}}}); err != nil {
		return fmt.Errorf("write the epoch down: %w", err)
	}
	return nil
}

// Prepare implements fleet.Preparer: the image can be launched, and the group can
// be refreshed, and turned round.
func (g *InPlace) Prepare(ctx context.Context, spec fleet.Spec) error {
	now, is, err := g.look(ctx)
	if err != nil {
		return err
	}
	if _, err := g.before(now.AutoScalingGroup); err != nil {
		return err
	}
	for _, s := range now.SuspendedProcesses {
		switch name := aws.ToString(s.ProcessName); name {
		case "Launch", "Terminate", "AddToLoadBalancer", "InstanceRefresh":
			return fmt.Errorf("process %s of group %s is suspended (%s), so it cannot be refreshed: `aws autoscaling resume-processes --auto-scaling-group-name %s --scaling-processes %s` lets it work",
				name, now.name(), aws.ToString(s.SuspensionReason), now.name(), name)
		}
	}
	if is.Active() && is.To == (fleet.GroupID{}) { // one of the fleet's is waited for
		return fmt.Errorf("%w: %s of group %s goes on: wait for its end, or cancel it", fleet.ErrRefreshing, is.ID, now.name())
	}
	return g.p.Prepare(ctx, spec)
}

// before is NAME:VERSION of what the group launches by now.
func (g *InPlace) before(now astypes.AutoScalingGroup) (string, error) {
	spec := launches(now)
	if spec == nil {
		return "", fmt.Errorf("group %s has no launch template, so a refresh could not be turned round: give it one", g.p.cfg.Adopt)
	}
	version := aws.ToString(spec.Version)
	if _, err := strconv.Atoi(version); err != nil {
		return "", fmt.Errorf("group %s launches version %s of %s, so a refresh could not be turned round: give it a number", g.p.cfg.Adopt, orElse(version, "$Default"), aws.ToString(spec.LaunchTemplateName))
	}
	return aws.ToString(spec.LaunchTemplateName) + ":" + version, nil
}

// Size implements fleet.Grower: whatever the group was told to be.
func (g *InPlace) Size(ctx context.Context, _ fleet.GroupID) (int, error) {
	now, err := g.group(ctx)
	if err != nil {
		return 0, err
	}
	return int(aws.ToInt32(now.DesiredCapacity)), nil
}

// Suits says what of a policy cannot be kept.
func (g *InPlace) Suits(pol fleet.Policy, size int) error { return g.p.Suits(pol, size) }

// Fit implements fleet.Fitter.
func (g *InPlace) Fit(ctx context.Context, pol fleet.Policy, size int) (fleet.Policy, error) {
	return g.p.Fit(ctx, pol, size)
}

// PollEvery implements fleet.Paced.
func (g *InPlace) PollEvery() time.Duration { return g.p.PollEvery() }

// Logs is the end of an instance's console as EC2 kept it last.
func (g *InPlace) Logs(ctx context.Context, instance string, n int) (string, error) {
	return g.p.Logs(ctx, instance, n)
}

// Notes implements fleet.Noter: the limits of a refresh, and what others must leave alone.
func (g *InPlace) Notes() []string {
	return []string{
		fmt.Sprintf("group %s is refreshed in place by Auto Scaling, which goes on when rebake does not; its size stays as it is", g.p.cfg.Adopt),
		"going back is no traffic write: every instance is replaced again, which takes as long as the way forward",
		"traffic is where the instances are: a step is a share of them, and no counter tells the two images apart",
		"it waits at each step for the longest hold of all, and goes on then: a gate that fails turns it round, one that does not know does not stop it before the end",
		"instances that are protected from scale-in or in standby are waited for, for an hour; then the refresh fails and is taken back",
		fmt.Sprintf("whatever else manages group %s has to ignore its launch template (in Terraform ignore_changes = [launch_template]): setting it back would be undone by nobody", g.p.cfg.Adopt),
	}
}

// Groups implements fleet.Pool: the group's instances by the deployment whose
// launch template made them. Those of another template are nobody's.
func (g *InPlace) Groups(ctx context.Context, name string) (out []fleet.Group, err error) {
	if name != g.p.name {
		return nil, fmt.Errorf("group of fleet %q in the pool of %q", name, g.p.name)
	}
	now, err := g.group(ctx)
	if err != nil {
		return nil, err
	}
	all, err := g.templates(ctx)
	if err != nil {
		return nil, err
	}
	machines, err := g.p.known(ctx, name, []group{*now})
	if err != nil {
		return nil, err
	}
	for id, t := range all {
		one := fleet.Group{ID: id, Image: artifact.Digest(tagOf(t, TagDigest))}
		ports := g.p.ports(group{tags: map[string]string{tagPorts: tagOf(t, tagPorts)}})
		for _, i := range now.live() {
			m, ok := machines[aws.ToString(i.InstanceId)]
			if ok && g.of(i.LaunchTemplate) == id {
				one.Instances = append(one.Instances, m.instance(ports))
			}
		}
		sortInstances(one.Instances)
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b fleet.Group) int { return strings.Compare(groupName(a.ID), groupName(b.ID)) })
	return out, nil
}

// Retire implements fleet.Pool: it removes the deployment's launch template once
// no instance of it is left. Where the fleet is let go, what the group needs stays.
func (g *InPlace) Retire(ctx context.Context, id fleet.GroupID) error {
	if err := g.p.check(id); err != nil {
		return err
	}
	if err := g.connect(ctx); err != nil {
		return err
	}
	all, err := g.templates(ctx)
	if err != nil {
		return err
	}
	if err := g.current(all); err != nil {
		return err
	}
	kept := false
	err = g.p.wait(ctx, func() (string, error) {
		now, is, err := g.look(ctx)
		if err != nil {
			return "", err
		}
		left := 0
		for _, i := range now.Instances {
			if g.of(i.LaunchTemplate) == id {
				left++
			}
		}
		own := g.of(launches(now.AutoScalingGroup)) == id || is.Active() && is.To == id
		switch {
		case g.free && (own || left > 0):
			kept = true
			event.Infof(ctx, "group %s keeps its instances, and launch template %s by which it makes them", now.name(), groupName(id))
			return "", nil
		case own:
			return "", fmt.Errorf("group %s launches by %s: it cannot be removed", now.name(), groupName(id))
		case left > 0:
			return fmt.Sprintf("%d instances of %s to end", left, groupName(id)), nil
		}
		return "", nil
	})
	if err != nil {
		return err
	}
	if kept && all[id].LaunchTemplateId != nil { // whoever begins a fleet here again begins with the first epoch
		return g.mark(ctx, 0, aws.ToString(all[id].LaunchTemplateId))
	}
	if kept {
		return nil
	}
	return g.p.unmake(ctx, id)
}

// Evidence implements fleet.Witness.
func (g *InPlace) Evidence(ctx context.Context, id fleet.GroupID) (string, error) {
	now, err := g.group(ctx)
	if err != nil {
		return "", err
	}
	var of []astypes.Instance
	for _, i := range now.Instances {
		if g.of(i.LaunchTemplate) == id {
			of = append(of, i)
		}
	}
	return g.p.evidence(ctx, now.name(), of), nil
}
