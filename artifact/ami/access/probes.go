package access

import (
	"context"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	cwtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// What the probes speak of; none of it is there.
var (
	yes      = aws.Bool(true)
	name     = aws.String("rebake-doctor")
	image    = aws.String("ami-00000000000000000")
	snapshot = aws.String("snap-00000000000000000")
	instance = aws.String("i-00000000000000000")
	volume   = aws.String("vol-00000000000000000")
	group    = aws.String("sg-00000000000000000")
	template = aws.String("lt-00000000000000000")
)

// tags are those by which policies are bound.
func tags(of types.ResourceType) []types.TagSpecification {
	return []types.TagSpecification{{ResourceType: of, Tags: tagList()}}
}

func tagList() (out []types.Tag) {
	for _, k := range []string{"rebake:digest", "rebake:build", "rebake:fleet"} {
		out = append(out, types.Tag{Key: aws.String(k), Value: name})
	}
	return out
}

// arn is of something of a load balancer that is not there.
func (s *Session) arn(what string) *string {
	return aws.String("arn:" + s.partition + ":elasticloadbalancing:" + s.cfg.Region + ":000000000000:" + what)
}

func (s *Session) targets() *string { return s.arn("targetgroup/rebake-doctor/0000000000000000") }

// probe is err or nothing of a call that changes nothing.
type probe func(ctx context.Context, s *Session) error

// dry makes a probe of a call of EC2.
func dry[In, Out any](call func(*ec2.Client, context.Context, *In, ...func(*ec2.Options)) (*Out, error), in In) probe {
	return func(ctx context.Context, s *Session) error {
		in := in
		_, err := call(s.ec2, ctx, &in)
		return err
	}
}

var probes = map[string]probe{
	"ec2:DescribeImages":                 dry((*ec2.Client).DescribeImages, ec2.DescribeImagesInput{DryRun: yes, Owners: []string{"self"}}),
	"ec2:DescribeSnapshots":              dry((*ec2.Client).DescribeSnapshots, ec2.DescribeSnapshotsInput{DryRun: yes, OwnerIds: []string{"self"}}),
	"ec2:DescribeInstances":              dry((*ec2.Client).DescribeInstances, ec2.DescribeInstancesInput{DryRun: yes}),
	"ec2:DescribeVolumes":                dry((*ec2.Client).DescribeVolumes, ec2.DescribeVolumesInput{DryRun: yes}),
	"ec2:DescribeVpcs":                   dry((*ec2.Client).DescribeVpcs, ec2.DescribeVpcsInput{DryRun: yes}),
	"ec2:DescribeSubnets":                dry((*ec2.Client).DescribeSubnets, ec2.DescribeSubnetsInput{DryRun: yes}),
	"ec2:DescribeSecurityGroups":         dry((*ec2.Client).DescribeSecurityGroups, ec2.DescribeSecurityGroupsInput{DryRun: yes}),
	"ec2:DescribeLaunchTemplates":        dry((*ec2.Client).DescribeLaunchTemplates, ec2.DescribeLaunchTemplatesInput{DryRun: yes}),
	"ec2:DescribeLaunchTemplateVersions": dry((*ec2.Client).DescribeLaunchTemplateVersions, ec2.DescribeLaunchTemplateVersionsInput{DryRun: yes, Versions: []string{"$Latest"}}),
	"ec2:DescribeImageAttribute":         dry((*ec2.Client).DescribeImageAttribute, ec2.DescribeImageAttributeInput{DryRun: yes, ImageId: image, Attribute: types.ImageAttributeNameLaunchPermission}),
	"ec2:GetConsoleOutput":               dry((*ec2.Client).GetConsoleOutput, ec2.GetConsoleOutputInput{DryRun: yes, InstanceId: instance}),

	"ec2:CreateTags": dry((*ec2.Client).CreateTags, ec2.CreateTagsInput{DryRun: yes, Resources: []string{*image}, Tags: tagList()}),
	"ec2:RegisterImage": dry((*ec2.Client).RegisterImage, ec2.RegisterImageInput{DryRun: yes, Name: name, RootDeviceName: aws.String("/dev/xvda"), TagSpecifications: tags(types.ResourceTypeImage),
		BlockDeviceMappings: []types.BlockDeviceMapping{{DeviceName: aws.String("/dev/xvda"), Ebs: &types.EbsBlockDevice{SnapshotId: snapshot}}}}),
	"ec2:CopyImage":                           dry((*ec2.Client).CopyImage, ec2.CopyImageInput{DryRun: yes, Name: name, SourceImageId: image, SourceRegion: aws.String("us-east-1"), TagSpecifications: tags(types.ResourceTypeImage)}),
	"ec2:ModifyImageAttribute":                dry((*ec2.Client).ModifyImageAttribute, ec2.ModifyImageAttributeInput{DryRun: yes, ImageId: image, Description: &types.AttributeValue{Value: name}}),
	"ec2:EnableImageDeprecation":              dry((*ec2.Client).EnableImageDeprecation, ec2.EnableImageDeprecationInput{DryRun: yes, ImageId: image, DeprecateAt: aws.Time(time.Now().AddDate(1, 0, 0))}),
	"ec2:DisableImageDeprecation":             dry((*ec2.Client).DisableImageDeprecation, ec2.DisableImageDeprecationInput{DryRun: yes, ImageId: image}),
	"ec2:EnableImageDeregistrationProtection": dry((*ec2.Client).EnableImageDeregistrationProtection, ec2.EnableImageDeregistrationProtectionInput{DryRun: yes, ImageId: image}),
	"ec2:DisableImage":                        dry((*ec2.Client).DisableImage, ec2.DisableImageInput{DryRun: yes, ImageId: image}),
	"ec2:EnableImage":                         dry((*ec2.Client).EnableImage, ec2.EnableImageInput{DryRun: yes, ImageId: image}),
	"ec2:DeregisterImage":                     dry((*ec2.Client).DeregisterImage, ec2.DeregisterImageInput{DryRun: yes, ImageId: image}),
	"ec2:DeleteSnapshot":                      dry((*ec2.Client).DeleteSnapshot, ec2.DeleteSnapshotInput{DryRun: yes, SnapshotId: snapshot}),
	"ec2:CreateSnapshot":                      dry((*ec2.Client).CreateSnapshot, ec2.CreateSnapshotInput{DryRun: yes, VolumeId: volume, TagSpecifications: tags(types.ResourceTypeSnapshot)}),

	"ec2:DeleteVolume": dry((*ec2.Client).DeleteVolume, ec2.DeleteVolumeInput{DryRun: yes, VolumeId: volume}),
	"ec2:DeleteTags":   dry((*ec2.Client).DeleteTags, ec2.DeleteTagsInput{DryRun: yes, Resources: []string{*image}}),

	"ec2:RunInstances": dry((*ec2.Client).RunInstances, ec2.RunInstancesInput{DryRun: yes, ImageId: image, MinCount: aws.Int32(1), MaxCount: aws.Int32(1), InstanceType: types.InstanceTypeT3Micro,
		TagSpecifications: append(tags(types.ResourceTypeInstance), tags(types.ResourceTypeVolume)...)}),
	"ec2:StopInstances":       dry((*ec2.Client).StopInstances, ec2.StopInstancesInput{DryRun: yes, InstanceIds: []string{*instance}}),
	"ec2:TerminateInstances":  dry((*ec2.Client).TerminateInstances, ec2.TerminateInstancesInput{DryRun: yes, InstanceIds: []string{*instance}}),
	"ec2:CreateSecurityGroup": dry((*ec2.Client).CreateSecurityGroup, ec2.CreateSecurityGroupInput{DryRun: yes, GroupName: name, Description: name, TagSpecifications: tags(types.ResourceTypeSecurityGroup)}),
	"ec2:DeleteSecurityGroup": dry((*ec2.Client).DeleteSecurityGroup, ec2.DeleteSecurityGroupInput{DryRun: yes, GroupId: group}),
	"ec2:AuthorizeSecurityGroupIngress": dry((*ec2.Client).AuthorizeSecurityGroupIngress, ec2.AuthorizeSecurityGroupIngressInput{DryRun: yes, GroupId: group, IpPermissions: []types.IpPermission{
		{IpProtocol: aws.String("tcp"), FromPort: aws.Int32(22), ToPort: aws.Int32(22), IpRanges: []types.IpRange{{CidrIp: aws.String("192.0.2.0/24")}}}}}),
	"ec2:CreateLaunchTemplate": dry((*ec2.Client).CreateLaunchTemplate, ec2.CreateLaunchTemplateInput{DryRun: yes, LaunchTemplateName: name, TagSpecifications: tags(types.ResourceTypeLaunchTemplate),
		LaunchTemplateData: &types.RequestLaunchTemplateData{InstanceType: types.InstanceTypeT3Micro}}),
	"ec2:DeleteLaunchTemplate": dry((*ec2.Client).DeleteLaunchTemplate, ec2.DeleteLaunchTemplateInput{DryRun: yes, LaunchTemplateId: template}),

	"ebs:ListSnapshotBlocks": func(ctx context.Context, s *Session) error {
		_, err := s.ebs.ListSnapshotBlocks(ctx, &ebs.ListSnapshotBlocksInput{SnapshotId: snapshot})
		return err
	},

	"ebs:ListChangedBlocks": func(ctx context.Context, s *Session) error {
		_, err := s.ebs.ListChangedBlocks(ctx, &ebs.ListChangedBlocksInput{SecondSnapshotId: snapshot})
		return err
	},
	"ebs:GetSnapshotBlock": func(ctx context.Context, s *Session) error {
		out, err := s.ebs.GetSnapshotBlock(ctx, &ebs.GetSnapshotBlockInput{SnapshotId: snapshot, BlockIndex: aws.Int32(0), BlockToken: aws.String("AAAA")})
		if err == nil {
			err = out.BlockData.Close()
		}
		return err
	},

	"elasticloadbalancing:DescribeLoadBalancers": func(ctx context.Context, s *Session) error {
		_, err := s.elb.DescribeLoadBalancers(ctx, &elb.DescribeLoadBalancersInput{PageSize: aws.Int32(1)})
		return err
	},
	"elasticloadbalancing:DescribeRules": func(ctx context.Context, s *Session) error {
		_, err := s.elb.DescribeRules(ctx, &elb.DescribeRulesInput{ListenerArn: s.arn("listener/app/rebake-doctor/0000000000000000/0000000000000000")})
		return err
	},
	"elasticloadbalancing:DescribeTags": func(ctx context.Context, s *Session) error {
		_, err := s.elb.DescribeTags(ctx, &elb.DescribeTagsInput{ResourceArns: []string{*s.targets()}})
		return err
	},
	"elasticloadbalancing:DescribeTargetGroups": func(ctx context.Context, s *Session) error {
		_, err := s.elb.DescribeTargetGroups(ctx, &elb.DescribeTargetGroupsInput{PageSize: aws.Int32(1)})
		return err
	},
	"elasticloadbalancing:DescribeTargetGroupAttributes": func(ctx context.Context, s *Session) error {
		_, err := s.elb.DescribeTargetGroupAttributes(ctx, &elb.DescribeTargetGroupAttributesInput{TargetGroupArn: s.targets()})
		return err
	},
	"elasticloadbalancing:DescribeTargetHealth": func(ctx context.Context, s *Session) error {
		_, err := s.elb.DescribeTargetHealth(ctx, &elb.DescribeTargetHealthInput{TargetGroupArn: s.targets()})
		return err
	},

	"s3:ListBucket": func(ctx context.Context, s *Session) error {
		_, err := s.s3.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: &s.prefix, MaxKeys: aws.Int32(1)})
		return err
	},
	"s3:GetObject": func(ctx context.Context, s *Session) error {
		out, err := s.s3.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.bucket, Key: aws.String(s.prefix + "rebake-doctor")})
		if err == nil {
			err = out.Body.Close()
		}
		return err
	},

	"cloudwatch:DescribeAlarms": func(ctx context.Context, s *Session) error {
		_, err := s.alarms.DescribeAlarms(ctx, &cloudwatch.DescribeAlarmsInput{MaxRecords: aws.Int32(1)})
		return err
	},
	"cloudwatch:GetMetricData": func(ctx context.Context, s *Session) error {
		now := time.Now()
		_, err := s.alarms.GetMetricData(ctx, &cloudwatch.GetMetricDataInput{StartTime: aws.Time(now.Add(-time.Hour)), EndTime: &now, MetricDataQueries: []cwtypes.MetricDataQuery{{Id: aws.String("a"),
			MetricStat: &cwtypes.MetricStat{Metric: &cwtypes.Metric{Namespace: aws.String("AWS/ApplicationELB"), MetricName: aws.String("RequestCount")}, Period: aws.Int32(60), Stat: aws.String("Sum")}}}})
		return err
	},

	"autoscaling:DescribeAutoScalingGroups": func(ctx context.Context, s *Session) error {
		_, err := s.scaling.DescribeAutoScalingGroups(ctx, &autoscaling.DescribeAutoScalingGroupsInput{MaxRecords: aws.Int32(1)})
		return err
	},
	"autoscaling:DescribeInstanceRefreshes": func(ctx context.Context, s *Session) error {
		_, err := s.scaling.DescribeInstanceRefreshes(ctx, &autoscaling.DescribeInstanceRefreshesInput{AutoScalingGroupName: name, MaxRecords: aws.Int32(1)})
		return err
	},
	"autoscaling:DescribeLifecycleHooks": func(ctx context.Context, s *Session) error {
		_, err := s.scaling.DescribeLifecycleHooks(ctx, &autoscaling.DescribeLifecycleHooksInput{AutoScalingGroupName: name})
		return err
	},
	"autoscaling:DescribeLaunchConfigurations": func(ctx context.Context, s *Session) error {
		_, err := s.scaling.DescribeLaunchConfigurations(ctx, &autoscaling.DescribeLaunchConfigurationsInput{MaxRecords: aws.Int32(1)})
		return err
	},
	"autoscaling:DescribeScalingActivities": func(ctx context.Context, s *Session) error {
		_, err := s.scaling.DescribeScalingActivities(ctx, &autoscaling.DescribeScalingActivitiesInput{MaxRecords: aws.Int32(1)})
		return err
	},
	"autoscaling:DescribePolicies": func(ctx context.Context, s *Session) error {
		_, err := s.scaling.DescribePolicies(ctx, &autoscaling.DescribePoliciesInput{MaxRecords: aws.Int32(1)})
		return err
	},
	"autoscaling:DescribeScheduledActions": func(ctx context.Context, s *Session) error {
		_, err := s.scaling.DescribeScheduledActions(ctx, &autoscaling.DescribeScheduledActionsInput{MaxRecords: aws.Int32(1)})
		return err
	},
}
