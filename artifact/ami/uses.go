package ami

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// addUses tells of each AMI in all who refers to it in this region.
func (c *Cloud) addUses(ctx context.Context, all map[string]Found) error {
	use := func(ami, format string, a ...any) {
		if f, ok := all[ami]; ok {
			if why := fmt.Sprintf(format, a...); !slices.Contains(f.Uses, why) {
				f.Uses = append(f.Uses, why)
				all[ami] = f
			}
		}
	}
	return errors.Join(c.instances(ctx, slices.Sorted(maps.Keys(all)), use), c.templates(ctx, use), c.groups(ctx, use))
}

type use func(ami, format string, a ...any)

// instances are in use until they are terminated: also those that are stopped.
func (c *Cloud) instances(ctx context.Context, ids []string, use use) error {
	for some := range slices.Chunk(ids, atOnce) {
		pages := ec2.NewDescribeInstancesPaginator(c.EC2, &ec2.DescribeInstancesInput{MaxResults: aws.Int32(1000),
			Filters: []types.Filter{{Name: aws.String("image-id"), Values: some}}})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				return c.asked("ec2:DescribeInstances", err)
			}
			for _, r := range page.Reservations {
				for _, i := range r.Instances {
					if i.State == nil || i.State.Name != types.InstanceStateNameTerminated {
						use(aws.ToString(i.ImageId), "instance %s is of it", aws.ToString(i.InstanceId))
					}
				}
			}
		}
	}
	return nil
}

// templates looks at the latest and the default version of every launch template.
func (c *Cloud) templates(ctx context.Context, use use) error {
	return c.versions(ctx, &ec2.DescribeLaunchTemplateVersionsInput{Versions: []string{"$Latest", "$Default"}}, func(v types.LaunchTemplateVersion, ami string) {
		which := "the latest"
		if aws.ToBool(v.DefaultVersion) {
			which = "the default"
		}
		use(ami, "%s version of launch template %s names it", which, aws.ToString(v.LaunchTemplateName))
	})
}

// versions tells the AMI of each version that is asked for, also where it stands in
// a parameter of Systems Manager.
func (c *Cloud) versions(ctx context.Context, in *ec2.DescribeLaunchTemplateVersionsInput, f func(v types.LaunchTemplateVersion, ami string)) error {
	in.ResolveAlias, in.MaxResults = aws.Bool(true), aws.Int32(200)
	pages := ec2.NewDescribeLaunchTemplateVersionsPaginator(c.EC2, in)
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return c.asked("ec2:DescribeLaunchTemplateVersions", err)
		}
		for _, v := range page.LaunchTemplateVersions {
			if v.LaunchTemplateData != nil {
				f(v, aws.ToString(v.LaunchTemplateData.ImageId))
			}
		}
	}
	return nil
}

// groups looks at what Auto Scaling groups launch: template versions by number,
// overrides, launch configurations.
func (c *Cloud) groups(ctx context.Context, use use) error {
	named := map[string]map[string]string{} // template id: version: group
	configs := map[string]string{}          // launch configuration: group
	pages := autoscaling.NewDescribeAutoScalingGroupsPaginator(c.Scaling, &autoscaling.DescribeAutoScalingGroupsInput{MaxRecords: aws.Int32(100)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return c.asked("autoscaling:DescribeAutoScalingGroups", err)
		}
		for _, g := range page.AutoScalingGroups {
			name := aws.ToString(g.AutoScalingGroupName)
			for _, s := range specs(g) {
				if id := aws.ToString(s.LaunchTemplateId); id != "" {
					if named[id] == nil {
						named[id] = map[string]string{}
					}
					named[id][orElse(aws.ToString(s.Version), "$Default")] = name
				}
			}
			for _, ami := range overridden(g) {
				use(ami, "Auto Scaling group %s names it", name)
			}
			if lc := aws.ToString(g.LaunchConfigurationName); lc != "" {
				configs[lc] = name
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(named)) {
		for some := range slices.Chunk(slices.Sorted(maps.Keys(named[id])), atOnce) {
			if err := c.numbered(ctx, id, some, func(v types.LaunchTemplateVersion, ami string) {
				use(ami, "Auto Scaling group %s launches it (launch template %s, version %d)", group(named[id], v), aws.ToString(v.LaunchTemplateName), aws.ToInt64(v.VersionNumber))
			}); err != nil {
				return err
			}
		}
	}
	return c.configurations(ctx, configs, use)
}

// numbered looks at versions of one template. What was deleted launches nothing;
// one version that is not there fails the call for all.
func (c *Cloud) numbered(ctx context.Context, id string, versions []string, f func(v types.LaunchTemplateVersion, ami string)) error {
	err := c.versions(ctx, &ec2.DescribeLaunchTemplateVersionsInput{LaunchTemplateId: &id, Versions: versions}, f)
	switch {
	case isCode(err, "InvalidLaunchTemplateId.NotFound"):
		return nil
	case !isCode(err, "InvalidLaunchTemplateId.VersionNotFound"):
		return err
	case len(versions) == 1:
		return nil
	}
	for _, v := range versions {
		if err := c.numbered(ctx, id, []string{v}, f); err != nil {
			return err
		}
	}
	return nil
}

// group is whose the version is that was asked for by number or by name.
func group(named map[string]string, v types.LaunchTemplateVersion) string {
	if g, ok := named[fmt.Sprint(aws.ToInt64(v.VersionNumber))]; ok {
		return g
	}
	if g, ok := named["$Default"]; ok && aws.ToBool(v.DefaultVersion) {
		return g
	}
	return orElse(named["$Latest"], named["$Default"])
}

// specs are the launch templates that a group names, also for some instance types,
// and those of its instances: a rollback of a refresh launches them again.
func specs(g astypes.AutoScalingGroup) (out []astypes.LaunchTemplateSpecification) {
	add := func(s *astypes.LaunchTemplateSpecification) {
		if s != nil {
			out = append(out, *s)
		}
	}
	add(g.LaunchTemplate)
	for _, i := range g.Instances {
		add(i.LaunchTemplate)
	}
	if p := g.MixedInstancesPolicy; p != nil && p.LaunchTemplate != nil {
		add(p.LaunchTemplate.LaunchTemplateSpecification)
		for _, o := range p.LaunchTemplate.Overrides {
			add(o.LaunchTemplateSpecification)
		}
	}
	return out
}

// overridden are the AMIs that a group's own policy names.
func overridden(g astypes.AutoScalingGroup) (out []string) {
	if p := g.MixedInstancesPolicy; p != nil && p.LaunchTemplate != nil {
		for _, o := range p.LaunchTemplate.Overrides {
			if id := aws.ToString(o.ImageId); id != "" {
				out = append(out, id)
			}
		}
	}
	return out
}

// configurations looks at launch configurations, which are older than templates.
func (c *Cloud) configurations(ctx context.Context, groups map[string]string, use use) error {
	const most = 50 // names in a call
	for some := range slices.Chunk(slices.Sorted(maps.Keys(groups)), most) {
		pages := autoscaling.NewDescribeLaunchConfigurationsPaginator(c.Scaling, &autoscaling.DescribeLaunchConfigurationsInput{LaunchConfigurationNames: some})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				return c.asked("autoscaling:DescribeLaunchConfigurations", err)
			}
			for _, lc := range page.LaunchConfigurations {
				name := aws.ToString(lc.LaunchConfigurationName)
				use(aws.ToString(lc.ImageId), "Auto Scaling group %s launches it (launch configuration %s)", groups[name], name)
			}
		}
	}
	return nil
}
