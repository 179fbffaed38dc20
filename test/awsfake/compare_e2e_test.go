//go:build e2e

package awsfake_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	asgtypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"
	"github.com/rebake/rebake/test/awsfake"
	"github.com/rebake/rebake/test/moto"
)

// log is what a scenario found out; ids in it are by the order in which they came.
type log struct {
	*rig
	lines []string
	ids   []string
}

func (l *log) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	for i, id := range l.ids {
		text = strings.ReplaceAll(text, id, fmt.Sprintf("<%d>", i))
	}
	l.lines = append(l.lines, text)
}

// id notes an id that both clouds name in their own way.
func (l *log) id(p *string) string { l.ids = append(l.ids, *p); return *p }

// refused notes the code of a refusal.
func (l *log) refused(what string, err error) {
	code := "none"
	var api smithy.APIError
	if errors.As(err, &api) {
		code = api.ErrorCode()
	} else if err != nil {
		code = err.Error()
	}
	l.note("%s: %s", what, code)
}

// TestMotoAndTheFakeAgree runs each scenario on both and compares what it found.
// Left out is what moto does in another way than AWS documents: tags, snapshots and
// architecture of RegisterImage, the version of a group's instances, a group of the
// same name, states at once, idempotence tokens.
func TestMotoAndTheFakeAgree(t *testing.T) {
	scenarios := []struct {
		name string
		run  func(*log)
	}{{"images by blocks", imagesByBlocks}, {"launch templates", launchTemplates}, {"groups", scalingGroups}, {"weighted rules", weightedRules}, {"instances", instances}}
	found := map[string][][]string{}
	for _, start := range []func(){func() { moto.Start(t) }, func() { awsfake.Start(t) }} {
		start()
		for _, s := range scenarios {
			l := &log{rig: clients(t)}
			s.run(l)
			found[s.name] = append(found[s.name], l.lines)
		}
	}
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			if d := cmp.Diff(found[s.name][0], found[s.name][1]); d != "" {
				t.Errorf("moto (-) and the fake (+) differ:\n%s", d)
			}
			if n := len(found[s.name][0]); n < 5 {
				t.Errorf("only %d findings", n)
			}
		})
	}
}

// motoImage uploads a disk of two blocks and registers it: both clouds can.
func (l *log) motoImage(name string) (image, snapshot string) {
	t := l.t
	id, sum := l.upload(nil, map[int32]byte{0: 'a', 3: 'b'}, 0, 3)
	must(l.ebs.CompleteSnapshot(l.ctx, &ebs.CompleteSnapshotInput{SnapshotId: &id, ChangedBlocksCount: aws.Int32(2), Checksum: &sum, ChecksumAlgorithm: "SHA256", ChecksumAggregationMethod: "LINEAR"}))(t)
	l.completed(id)
	l.id(&id)
	img := must(l.ec2.RegisterImage(l.ctx, &ec2.RegisterImageInput{Name: &name, Architecture: "x86_64", RootDeviceName: aws.String("/dev/xvda"), VirtualizationType: aws.String("hvm"),
		BlockDeviceMappings: []ec2types.BlockDeviceMapping{{DeviceName: aws.String("/dev/xvda"), Ebs: &ec2types.EbsBlockDevice{SnapshotId: &id}}}}))(t).ImageId
	eventually(t, name+" is available", func() bool { return l.image(*img).State == ec2types.ImageStateAvailable })
	return l.id(img), id
}

func imagesByBlocks(l *log) {
	t := l.t
	ami, snap := l.motoImage("images/1")
	must(l.ec2.CreateTags(l.ctx, &ec2.CreateTagsInput{Resources: []string{ami, snap}, Tags: []ec2types.Tag{{Key: aws.String("k"), Value: aws.String("v")}, {Key: aws.String("gone"), Value: aws.String("v")}}}))(t)
	must(l.ec2.DeleteTags(l.ctx, &ec2.DeleteTagsInput{Resources: []string{ami}, Tags: []ec2types.Tag{{Key: aws.String("gone")}}}))(t)
	for _, i := range must(l.ec2.DescribeImages(l.ctx, &ec2.DescribeImagesInput{Owners: []string{"self"}, Filters: filter("tag:k", "v")}))(t).Images {
		l.note("%s %s %s", *i.ImageId, *i.Name, i.State)
	}
	for _, s := range must(l.ec2.DescribeSnapshots(l.ctx, &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}, Filters: filter("tag:k", "v")}))(t).Snapshots {
		l.note("%s %s %d", *s.SnapshotId, s.State, *s.VolumeSize)
	}
	var tags []string
	for _, d := range must(l.ec2.DescribeTags(l.ctx, &ec2.DescribeTagsInput{Filters: filter("resource-id", ami, snap)}))(t).Tags {
		tags = append(tags, fmt.Sprint(*d.ResourceId == ami, d.ResourceType, *d.Key, *d.Value))
	}
	slices.Sort(tags)
	l.note("%v", tags)
	for i, b := range l.list(snap) {
		l.note("block %d begins with %c and has %d bytes", i, b[0], len(b))
	}
	_, err := l.ec2.DescribeImages(l.ctx, &ec2.DescribeImagesInput{ImageIds: []string{"ami-0123456789abcdef0"}})
	l.refused("an image that is not there", err)
	_, err = l.ec2.DescribeSnapshots(l.ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{"snap-0123456789abcdef0"}})
	l.refused("a snapshot that is not there", err)
	must(l.ec2.ModifyImageAttribute(l.ctx, &ec2.ModifyImageAttributeInput{ImageId: &ami, LaunchPermission: &ec2types.LaunchPermissionModifications{Add: []ec2types.LaunchPermission{{UserId: aws.String("111122223333")}}}}))(t)
	for _, p := range must(l.ec2.DescribeImageAttribute(l.ctx, &ec2.DescribeImageAttributeInput{ImageId: &ami, Attribute: "launchPermission"}))(t).LaunchPermissions {
		l.note("may launch: %s", *p.UserId)
	}
	must(l.ec2.DeregisterImage(l.ctx, &ec2.DeregisterImageInput{ImageId: &ami}))(t)
	must(l.ec2.DeleteSnapshot(l.ctx, &ec2.DeleteSnapshotInput{SnapshotId: &snap}))(t)
	_, err = l.ec2.DescribeSnapshots(l.ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{snap}})
	l.refused("a deleted snapshot", err)
}

// list reads a snapshot's blocks without the SDK, which does not take moto's list.
func (l *log) list(snap string) (blocks [][]byte) {
	l.t.Helper()
	req := must(http.NewRequestWithContext(l.ctx, http.MethodGet, os.Getenv("AWS_ENDPOINT_URL")+"/snapshots/"+snap+"/blocks", nil))(l.t)
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=test/20260101/"+region+"/ebs/aws4_request, SignedHeaders=host, Signature=0")
	res := must(http.DefaultClient.Do(req))(l.t)
	defer res.Body.Close()
	var list struct {
		Blocks []struct {
			BlockIndex json.Number
			BlockToken string
		}
	}
	if err := json.NewDecoder(res.Body).Decode(&list); err != nil {
		l.t.Fatal(err)
	}
	for _, b := range list.Blocks {
		index := must(b.BlockIndex.Int64())(l.t)
		got := must(l.ebs.GetSnapshotBlock(l.ctx, &ebs.GetSnapshotBlockInput{SnapshotId: &snap, BlockIndex: aws.Int32(int32(index)), BlockToken: &b.BlockToken}))(l.t)
		data := make([]byte, *got.DataLength)
		n := must(got.BlockData.Read(data))(l.t)
		got.BlockData.Close()
		if n == 0 {
			l.t.Error("an empty block")
		}
		blocks = append(blocks, data)
	}
	return blocks
}

func launchTemplates(l *log) {
	t := l.t
	ami, _ := l.motoImage("templates/1")
	data := &ec2types.RequestLaunchTemplateData{ImageId: &ami, InstanceType: "t3.micro", UserData: aws.String("YQ=="),
		BlockDeviceMappings: []ec2types.LaunchTemplateBlockDeviceMappingRequest{{DeviceName: aws.String("/dev/xvda"), Ebs: &ec2types.LaunchTemplateEbsBlockDeviceRequest{VolumeSize: aws.Int32(20), DeleteOnTermination: aws.Bool(true)}}},
		TagSpecifications:   []ec2types.LaunchTemplateTagSpecificationRequest{{ResourceType: "instance", Tags: []ec2types.Tag{{Key: aws.String("k"), Value: aws.String("v")}}}}}
	in := &ec2.CreateLaunchTemplateInput{LaunchTemplateName: aws.String("web"), LaunchTemplateData: data, TagSpecifications: tagged("launch-template", "k", "v")}
	lt := must(l.ec2.CreateLaunchTemplate(l.ctx, in))(t).LaunchTemplate
	l.id(lt.LaunchTemplateId)
	in.ClientToken = nil // the SDK has filled it in
	_, err := l.ec2.CreateLaunchTemplate(l.ctx, in)
	l.refused("the name twice", err)
	data.InstanceType = "t3.small"
	v := must(l.ec2.CreateLaunchTemplateVersion(l.ctx, &ec2.CreateLaunchTemplateVersionInput{LaunchTemplateId: lt.LaunchTemplateId, LaunchTemplateData: data, VersionDescription: aws.String("two")}))(t).LaunchTemplateVersion
	l.note("%d %s", *v.VersionNumber, v.LaunchTemplateData.InstanceType)
	for _, f := range must(l.ec2.DescribeLaunchTemplates(l.ctx, &ec2.DescribeLaunchTemplatesInput{Filters: filter("tag:k", "v")}))(t).LaunchTemplates {
		l.note("%s %s latest %d default %d", *f.LaunchTemplateId, *f.LaunchTemplateName, *f.LatestVersionNumber, *f.DefaultVersionNumber)
	}
	for _, version := range []string{"1", "2", "$Default"} {
		for _, f := range must(l.ec2.DescribeLaunchTemplateVersions(l.ctx, &ec2.DescribeLaunchTemplateVersionsInput{LaunchTemplateId: lt.LaunchTemplateId, Versions: []string{version}}))(t).LaunchTemplateVersions {
			d := f.LaunchTemplateData
			l.note("%s: %d %v %s %s %s %d %s", version, *f.VersionNumber, *f.DefaultVersion, *d.ImageId, d.InstanceType, *d.UserData, *d.BlockDeviceMappings[0].Ebs.VolumeSize, *d.TagSpecifications[0].Tags[0].Value)
		}
	}
	must(l.ec2.ModifyLaunchTemplate(l.ctx, &ec2.ModifyLaunchTemplateInput{LaunchTemplateId: lt.LaunchTemplateId, DefaultVersion: aws.String("2")}))(t)
	l.note("default %d", *must(l.ec2.DescribeLaunchTemplates(l.ctx, &ec2.DescribeLaunchTemplatesInput{LaunchTemplateNames: []string{"web"}}))(t).LaunchTemplates[0].DefaultVersionNumber)
	must(l.ec2.DeleteLaunchTemplate(l.ctx, &ec2.DeleteLaunchTemplateInput{LaunchTemplateId: lt.LaunchTemplateId}))(t)
	_, err = l.ec2.DescribeLaunchTemplates(l.ctx, &ec2.DescribeLaunchTemplatesInput{LaunchTemplateNames: []string{"web"}})
	l.refused("by the name of a deleted one", err)
}

func scalingGroups(l *log) {
	t := l.t
	ami, _ := l.motoImage("groups/1")
	lt := l.template("web", ami, ami)
	l.id(&lt)
	name := aws.String("web-blue")
	subnet := ""
	for _, s := range must(l.ec2.DescribeSubnets(l.ctx, &ec2.DescribeSubnetsInput{Filters: filter("availability-zone", region+"a")}))(t).Subnets {
		subnet = *s.SubnetId
	}
	in := &autoscaling.CreateAutoScalingGroupInput{AutoScalingGroupName: name, MinSize: aws.Int32(1), MaxSize: aws.Int32(4), DesiredCapacity: aws.Int32(2), VPCZoneIdentifier: &subnet,
		LaunchTemplate: &asgtypes.LaunchTemplateSpecification{LaunchTemplateId: &lt, Version: aws.String("2")},
		Tags:           []asgtypes.Tag{{Key: aws.String("rebake:fleet"), Value: aws.String("web"), PropagateAtLaunch: aws.Bool(true)}}}
	must(l.asg.CreateAutoScalingGroup(l.ctx, in))(t)
	show := func(when string, n int) {
		l.settled(*name, n)
		g := l.group(*name)
		l.note("%s: %d of %d to %d, %d instances, by %s version %s, %s, zones %v", when, *g.DesiredCapacity, *g.MinSize, *g.MaxSize, len(g.Instances), *g.LaunchTemplate.LaunchTemplateId, *g.LaunchTemplate.Version, *g.HealthCheckType, g.AvailabilityZones)
		for _, i := range g.Instances {
			l.note("%s %s %s", i.LifecycleState, *i.HealthStatus, *i.AvailabilityZone)
		}
		slices.SortFunc(g.Tags, func(a, b asgtypes.TagDescription) int { return strings.Compare(*a.Key, *b.Key) })
		for _, tag := range g.Tags {
			l.note("%s=%s on %s %s, at launch %v", *tag.Key, *tag.Value, *tag.ResourceType, *tag.ResourceId, *tag.PropagateAtLaunch)
		}
	}
	show("made", 2)
	n := 0
	for _, res := range must(l.ec2.DescribeInstances(l.ctx, &ec2.DescribeInstancesInput{Filters: filter("tag:aws:autoscaling:groupName", *name)}))(t).Reservations {
		n += len(res.Instances)
	}
	l.note("%d instances by the group's tag", n)
	byTag := must(l.asg.DescribeAutoScalingGroups(l.ctx, &autoscaling.DescribeAutoScalingGroupsInput{Filters: []asgtypes.Filter{{Name: aws.String("tag:rebake:fleet"), Values: []string{"web"}}}}))(t).AutoScalingGroups
	l.note("%d groups by tag", len(byTag))
	must(l.asg.UpdateAutoScalingGroup(l.ctx, &autoscaling.UpdateAutoScalingGroupInput{AutoScalingGroupName: name, MinSize: aws.Int32(2), DesiredCapacity: aws.Int32(3)}))(t)
	show("updated", 3)
	must(l.asg.CreateOrUpdateTags(l.ctx, &autoscaling.CreateOrUpdateTagsInput{Tags: []asgtypes.Tag{{ResourceId: name, ResourceType: aws.String("auto-scaling-group"), Key: aws.String("rebake:epoch"), Value: aws.String("4"), PropagateAtLaunch: aws.Bool(false)}}}))(t)
	must(l.asg.SuspendProcesses(l.ctx, &autoscaling.SuspendProcessesInput{AutoScalingGroupName: name, ScalingProcesses: []string{"AZRebalance"}}))(t)
	for _, s := range l.group(*name).SuspendedProcesses {
		l.note("suspended: %s", *s.ProcessName)
	}
	must(l.asg.ResumeProcesses(l.ctx, &autoscaling.ResumeProcessesInput{AutoScalingGroupName: name}))(t)
	l.note("%d suspended", len(l.group(*name).SuspendedProcesses))
	must(l.asg.PutLifecycleHook(l.ctx, &autoscaling.PutLifecycleHookInput{AutoScalingGroupName: name, LifecycleHookName: aws.String("h"), LifecycleTransition: aws.String("autoscaling:EC2_INSTANCE_LAUNCHING")}))(t)
	for _, h := range must(l.asg.DescribeLifecycleHooks(l.ctx, &autoscaling.DescribeLifecycleHooksInput{AutoScalingGroupName: name}))(t).LifecycleHooks {
		l.note("hook %s %s %d %s", *h.LifecycleHookName, *h.LifecycleTransition, *h.HeartbeatTimeout, *h.DefaultResult)
	}
	must(l.asg.DeleteLifecycleHook(l.ctx, &autoscaling.DeleteLifecycleHookInput{AutoScalingGroupName: name, LifecycleHookName: aws.String("h")}))(t)
	must(l.asg.UpdateAutoScalingGroup(l.ctx, &autoscaling.UpdateAutoScalingGroupInput{AutoScalingGroupName: name, MinSize: aws.Int32(0), DesiredCapacity: aws.Int32(0)}))(t)
	show("emptied", 0)
	must(l.asg.DeleteAutoScalingGroup(l.ctx, &autoscaling.DeleteAutoScalingGroupInput{AutoScalingGroupName: name}))(t)
	eventually(t, "it is gone", func() bool { return l.group(*name).AutoScalingGroupName == nil })
}

func weightedRules(l *log) {
	t := l.t
	listener, rule, groups := l.balance(map[string]int32{"blue": 100, "green": 0})
	for _, id := range []string{rule, listener, groups["blue"], groups["green"]} {
		l.id(&id)
	}
	show := func(when string) {
		for _, u := range must(l.elb.DescribeRules(l.ctx, &elb.DescribeRulesInput{ListenerArn: &listener}))(t).Rules {
			for _, a := range u.Actions {
				l.note("%s: rule %s (default %v): %s", when, *u.Priority, *u.IsDefault, a.Type)
				if a.ForwardConfig != nil {
					for _, g := range a.ForwardConfig.TargetGroups {
						l.note("  %s %d", *g.TargetGroupArn, *g.Weight)
					}
				}
			}
		}
	}
	show("made")
	must(l.elb.ModifyRule(l.ctx, &elb.ModifyRuleInput{RuleArn: &rule, Actions: forward(groups, map[string]int32{"blue": 1, "green": 999})}))(t)
	show("modified")
	_, err := l.elb.CreateRule(l.ctx, &elb.CreateRuleInput{ListenerArn: &listener, Priority: aws.Int32(10), Actions: forward(groups, map[string]int32{"blue": 1}), Conditions: []elbtypes.RuleCondition{{Field: aws.String("path-pattern"), Values: []string{"/x"}}}})
	l.refused("the priority twice", err)
	must(l.elb.AddTags(l.ctx, &elb.AddTagsInput{ResourceArns: []string{rule}, Tags: []elbtypes.Tag{{Key: aws.String("k"), Value: aws.String("v")}}}))(t)
	for _, d := range must(l.elb.DescribeTags(l.ctx, &elb.DescribeTagsInput{ResourceArns: []string{rule}}))(t).TagDescriptions {
		l.note("%s has %d tags, the first %s", *d.ResourceArn, len(d.Tags), *d.Tags[0].Value)
	}
	for _, g := range must(l.elb.DescribeTargetGroups(l.ctx, &elb.DescribeTargetGroupsInput{Names: []string{"blue"}}))(t).TargetGroups {
		l.note("%s port %d %s %s, checks %s each %d s", *g.TargetGroupName, *g.Port, g.Protocol, g.TargetType, *g.HealthCheckPath, *g.HealthCheckIntervalSeconds)
	}
	attrs := map[string]string{}
	must(l.elb.ModifyTargetGroupAttributes(l.ctx, &elb.ModifyTargetGroupAttributesInput{TargetGroupArn: aws.String(groups["blue"]), Attributes: attribute("deregistration_delay.timeout_seconds", "30")}))(t)
	for _, a := range must(l.elb.DescribeTargetGroupAttributes(l.ctx, &elb.DescribeTargetGroupAttributesInput{TargetGroupArn: aws.String(groups["blue"])}))(t).Attributes {
		attrs[*a.Key] = *a.Value
	}
	l.note("delay %s, stickiness %s", attrs["deregistration_delay.timeout_seconds"], attrs["stickiness.enabled"])
	_, err = l.elb.DescribeTargetGroups(l.ctx, &elb.DescribeTargetGroupsInput{Names: []string{"none"}})
	l.refused("a target group that is not there", err)
	must(l.elb.DeleteRule(l.ctx, &elb.DeleteRuleInput{RuleArn: &rule}))(t)
	show("deleted")
	_, err = l.elb.ModifyRule(l.ctx, &elb.ModifyRuleInput{RuleArn: &rule, Actions: forward(groups, map[string]int32{"blue": 1})})
	l.refused("a rule that is not there", err)
}

func instances(l *log) {
	t := l.t
	ami, _ := l.motoImage("instances/1")
	must(l.ec2.ImportKeyPair(l.ctx, &ec2.ImportKeyPairInput{KeyName: aws.String("k"), PublicKeyMaterial: []byte("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGlUmvLXcCwNZOhcDLIPnJ9ONZIlVRfeoQl8hhJcRM1c x"), TagSpecifications: tagged("key-pair", "b", "1")}))(t)
	sg := must(l.ec2.CreateSecurityGroup(l.ctx, &ec2.CreateSecurityGroupInput{GroupName: aws.String("g"), Description: aws.String("d"), TagSpecifications: tagged("security-group", "b", "1")}))(t).GroupId
	l.id(sg)
	_, err := l.ec2.CreateSecurityGroup(l.ctx, &ec2.CreateSecurityGroupInput{GroupName: aws.String("g"), Description: aws.String("d")})
	l.refused("the group's name twice", err)
	must(l.ec2.AuthorizeSecurityGroupIngress(l.ctx, &ec2.AuthorizeSecurityGroupIngressInput{GroupId: sg, IpPermissions: []ec2types.IpPermission{{IpProtocol: aws.String("tcp"), FromPort: aws.Int32(22), ToPort: aws.Int32(22), IpRanges: []ec2types.IpRange{{CidrIp: aws.String("192.0.2.1/32")}}}}}))(t)
	data := base64.StdEncoding.EncodeToString([]byte("#cloud-config\n"))
	id := must(l.ec2.RunInstances(l.ctx, &ec2.RunInstancesInput{ImageId: &ami, InstanceType: "t3.micro", MinCount: aws.Int32(1), MaxCount: aws.Int32(1), KeyName: aws.String("k"), SecurityGroupIds: []string{*sg}, UserData: &data, TagSpecifications: append(tagged("instance", "b", "1"), tagged("volume", "b", "1")...)}))(t).Instances[0].InstanceId
	l.id(id)
	l.reaches(*id, "running")
	i := l.instance(*id)
	l.note("%s %s %s %s %s %d volumes", *i.ImageId, i.InstanceType, *i.KeyName, *i.SecurityGroups[0].GroupId, *i.Tags[0].Value, len(i.BlockDeviceMappings))
	l.note("user data %v", *must(l.ec2.DescribeInstanceAttribute(l.ctx, &ec2.DescribeInstanceAttributeInput{InstanceId: id, Attribute: "userData"}))(t).UserData.Value == data)
	vols := must(l.ec2.DescribeVolumes(l.ctx, &ec2.DescribeVolumesInput{Filters: filter("attachment.instance-id", *id)}))(t).Volumes
	l.note("%d volumes, %s", len(vols), vols[0].State)
	must(l.ec2.StopInstances(l.ctx, &ec2.StopInstancesInput{InstanceIds: []string{*id}}))(t)
	l.reaches(*id, "stopped")
	made := must(l.ec2.CreateImage(l.ctx, &ec2.CreateImageInput{InstanceId: id, Name: aws.String("of-it"), TagSpecifications: tagged("image", "b", "1")}))(t).ImageId
	eventually(t, "the image is available", func() bool { return l.image(*made).State == ec2types.ImageStateAvailable })
	l.note("%s with %d tags", *l.image(*made).Name, len(l.image(*made).Tags))
	must(l.ec2.TerminateInstances(l.ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{*id}}))(t)
	l.reaches(*id, "terminated")
	must(l.ec2.DeleteSecurityGroup(l.ctx, &ec2.DeleteSecurityGroupInput{GroupId: sg}))(t)
	must(l.ec2.DeleteKeyPair(l.ctx, &ec2.DeleteKeyPairInput{KeyName: aws.String("k")}))(t)
	must(l.ec2.DeleteKeyPair(l.ctx, &ec2.DeleteKeyPairInput{KeyName: aws.String("k")}))(t)
	_, err = l.ec2.DescribeKeyPairs(l.ctx, &ec2.DescribeKeyPairsInput{KeyNames: []string{"k"}})
	l.refused("a key pair that is not there", err)
	_, err = l.ec2.TerminateInstances(l.ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{"i-0123456789abcdef0"}})
	l.refused("an instance that is not there", err)
	shown := must(l.ec2.DescribeInstances(l.ctx, &ec2.DescribeInstancesInput{Filters: append(filter("instance-state-name", "terminated"), filter("tag:b", "1")...)}))(t).Reservations
	l.note("%d terminated is still shown", len(shown))
}
