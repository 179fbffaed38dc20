package asg_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/asg"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/test/awsfake"
	"github.com/rebake/rebake/test/awsfleet"
	"github.com/rebake/rebake/test/disks"
)

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func groupID(slot fleet.Slot, deployment string) fleet.GroupID {
	return fleet.GroupID{Fleet: "web", Slot: slot, Deployment: deployment}
}

func theGroup(t testing.TB, w *awsfleet.World, id fleet.GroupID) astypes.AutoScalingGroup {
	t.Helper()
	out, err := w.AS.DescribeAutoScalingGroups(t.Context(), &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{"rebake-" + id.Fleet + "-" + string(id.Slot) + "-" + id.Deployment}})
	ok(t, err)
	if len(out.AutoScalingGroups) != 1 {
		t.Fatalf("there is no group of %v", id)
	}
	return out.AutoScalingGroups[0]
}

// A zone without room is told at once, in its own words, and again after it has
// room the launch goes on where it was.
func TestNoRoomInAZone(t *testing.T) {
	cloud := awsfake.Start(t)
	w := awsfleet.New(t)
	cloud.Set(func() {
		cloud.Capacity = func(zone, kind string) string {
			if strings.HasSuffix(zone, "b") {
				return "no " + kind + " there today"
			}
			return ""
		}
	})
	p, id, spec := open(t, w, "web", nil), groupID(fleet.Blue, "01A"), fleet.Spec{Image: w.Image(t, "1"), Size: 3, Ports: []int{80}}
	began := time.Now()
	err := p.Launch(t.Context(), id, spec)
	if !errors.Is(err, fleet.ErrNoCapacity) || !strings.Contains(err.Error(), "eu-central-1b: InsufficientInstanceCapacity") || !strings.Contains(err.Error(), "no t3.small there today") {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
	cloud.Set(func() { cloud.Capacity = nil })
	ok(t, p.Launch(t.Context(), id, spec))
	zones := map[string]int{}
	for _, i := range theGroup(t, w, id).Instances {
		zones[aws.ToString(i.AvailabilityZone)]++
	}
	if len(zones) != 3 {
		t.Errorf("instances by zone: %v", zones)
	}
	ok(t, p.Retire(t.Context(), id))
}

// While both slots have a group none of them shrinks; when one goes the other may.
// What somebody scaled the old one to is what the new one is brought up to.
func TestGroupsArePinnedWhileBothAreThere(t *testing.T) {
	awsfake.Start(t)
	w := awsfleet.New(t)
	p := open(t, w, "web", func(c *asg.Config) { c.Capacity = asg.Capacity{Min: 1, Max: 9} })
	blue, green := groupID(fleet.Blue, "01A"), groupID(fleet.Green, "01B")
	ok(t, p.Launch(t.Context(), blue, fleet.Spec{Image: w.Image(t, "1"), Size: 2}))
	if g := theGroup(t, w, blue); *g.MinSize != 1 || *g.MaxSize != 9 || aws.ToString(g.HealthCheckType) != "EC2" { // no target group: no checks of one
		t.Errorf("alone: min %d, max %d, %s", *g.MinSize, *g.MaxSize, *g.HealthCheckType)
	}
	_, err := w.AS.SetDesiredCapacity(t.Context(), &autoscaling.SetDesiredCapacityInput{AutoScalingGroupName: theGroup(t, w, blue).AutoScalingGroupName, DesiredCapacity: aws.Int32(4)})
	ok(t, err)
	if n, err := p.Size(t.Context(), blue); n != 4 || err != nil {
		t.Errorf("it grew to %d, %v", n, err)
	}
	ok(t, p.Launch(t.Context(), green, fleet.Spec{Image: w.Image(t, "2"), Size: 3}))
	if g := theGroup(t, w, blue); *g.MinSize != 4 {
		t.Errorf("the old group may shrink to %d", *g.MinSize)
	}
	if g := theGroup(t, w, green); *g.MinSize != 3 || aws.ToString(g.LaunchTemplate.Version) != "1" {
		t.Errorf("the new group may shrink to %d, launches version %s", *g.MinSize, aws.ToString(g.LaunchTemplate.Version))
	}
	ok(t, p.Retire(t.Context(), blue))
	if g := theGroup(t, w, green); *g.MinSize != 1 {
		t.Errorf("afterwards it may shrink to %d", *g.MinSize)
	}
	ok(t, p.Fence(t.Context(), 5))
	again := open(t, w, "web", nil)
	ok(t, again.Fence(t.Context(), 6))
	if err := p.Retire(t.Context(), green); !errors.Is(err, fleet.ErrStale) {
		t.Errorf("an operator who was replaced: %v", err)
	}
	ok(t, again.Retire(t.Context(), green))
	if left := w.Left(t, "web"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// A group that somebody else made is copied and stays as it is: its launch
// template's settings, its hooks, its policies.
func TestAGroupIsCopied(t *testing.T) {
	awsfake.Start(t)
	w := awsfleet.New(t)
	ctx := t.Context()
	img := w.Image(t, "1")
	_, err := w.EC2.CreateLaunchTemplate(ctx, &ec2.CreateLaunchTemplateInput{LaunchTemplateName: aws.String("theirs"), LaunchTemplateData: &types.RequestLaunchTemplateData{
		ImageId: aws.String(w.AMI(t, w.Image(t, "0"))), InstanceType: types.InstanceTypeC5Large, EbsOptimized: aws.Bool(true), UserData: aws.String("aGVsbG8="),
		Monitoring: &types.LaunchTemplatesMonitoringRequest{Enabled: aws.Bool(true)}}})
	ok(t, err)
	_, err = w.AS.CreateAutoScalingGroup(ctx, &autoscaling.CreateAutoScalingGroupInput{AutoScalingGroupName: aws.String("theirs"), MinSize: aws.Int32(0), MaxSize: aws.Int32(7), DefaultCooldown: aws.Int32(77),
		LaunchTemplate: &astypes.LaunchTemplateSpecification{LaunchTemplateName: aws.String("theirs"), Version: aws.String("1")}, VPCZoneIdentifier: aws.String(strings.Join(w.Subnets[:2], ","))})
	ok(t, err)
	_, err = w.AS.PutLifecycleHook(ctx, &autoscaling.PutLifecycleHookInput{AutoScalingGroupName: aws.String("theirs"), LifecycleHookName: aws.String("warm"),
		LifecycleTransition: aws.String("autoscaling:EC2_INSTANCE_TERMINATING"), HeartbeatTimeout: aws.Int32(30), DefaultResult: aws.String("CONTINUE")})
	ok(t, err)
	_, err = w.AS.PutScalingPolicy(ctx, &autoscaling.PutScalingPolicyInput{AutoScalingGroupName: aws.String("theirs"), PolicyName: aws.String("cpu"), PolicyType: aws.String("TargetTrackingScaling"),
		TargetTrackingConfiguration: &astypes.TargetTrackingConfiguration{TargetValue: aws.Float64(50), PredefinedMetricSpecification: &astypes.PredefinedMetricSpecification{PredefinedMetricType: astypes.MetricTypeASGAverageCPUUtilization}}})
	ok(t, err)
	p := open(t, w, "web", func(c *asg.Config) { c.Subnets, c.Instance, c.Adopt = nil, asg.Instance{}, "theirs" })
	id := groupID(fleet.Blue, "01A")
	ok(t, p.Launch(ctx, id, fleet.Spec{Image: img, Size: 1, Ports: []int{80}}))
	g := theGroup(t, w, id)
	if *g.MaxSize != 7 || *g.DefaultCooldown != 77 || aws.ToString(g.VPCZoneIdentifier) != strings.Join(w.Subnets[:2], ",") {
		t.Errorf("copied: %+v", g)
	}
	v, err := w.EC2.DescribeLaunchTemplateVersions(ctx, &ec2.DescribeLaunchTemplateVersionsInput{LaunchTemplateName: g.AutoScalingGroupName, Versions: []string{"1"}})
	ok(t, err)
	d := v.LaunchTemplateVersions[0].LaunchTemplateData
	if aws.ToString(d.ImageId) != w.AMI(t, img) || d.InstanceType != types.InstanceTypeC5Large || !aws.ToBool(d.EbsOptimized) || d.Monitoring == nil || aws.ToString(d.UserData) != "aGVsbG8=" ||
		d.MetadataOptions == nil || d.MetadataOptions.HttpTokens != types.LaunchTemplateHttpTokensStateRequired {
		t.Errorf("its launch template: %+v", d)
	}
	hooks, err := w.AS.DescribeLifecycleHooks(ctx, &autoscaling.DescribeLifecycleHooksInput{AutoScalingGroupName: g.AutoScalingGroupName})
	ok(t, err)
	policies, err := w.AS.DescribePolicies(ctx, &autoscaling.DescribePoliciesInput{AutoScalingGroupName: g.AutoScalingGroupName})
	ok(t, err)
	if len(hooks.LifecycleHooks) != 1 || len(policies.ScalingPolicies) != 1 {
		t.Errorf("%d hooks, %d policies", len(hooks.LifecycleHooks), len(policies.ScalingPolicies))
	}
	ok(t, p.Retire(ctx, id)) // its hook holds the instance for a while
	theirs, err := w.AS.DescribeAutoScalingGroups(ctx, &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{"theirs"}})
	ok(t, err)
	if len(theirs.AutoScalingGroups) != 1 || *theirs.AutoScalingGroups[0].MinSize != 0 || len(theirs.AutoScalingGroups[0].Tags) != 0 {
		t.Errorf("theirs is %+v", theirs.AutoScalingGroups)
	}
}

// An image without an AMI is refused with the command that makes one; one whose
// AMI has another image's tag too.
func TestAnImageWithoutAnAMI(t *testing.T) {
	awsfake.Start(t)
	w := awsfleet.New(t)
	p := open(t, w, "web", nil)
	img := w.Image(t, "1")
	ok(t, p.Prepare(t.Context(), fleet.Spec{Image: img}))
	other := img
	other.Version, other.Digest = "2", artifact.Digest("sha256:"+strings.Repeat("0", 64))
	if err := p.Prepare(t.Context(), fleet.Spec{Image: other}); err == nil || !strings.Contains(err.Error(), "`rebake ami publish web:2 --region eu-central-1`") {
		t.Errorf("none: %v", err)
	}
	_, err := w.EC2.CreateTags(t.Context(), &ec2.CreateTagsInput{Resources: []string{w.AMI(t, img)}, Tags: []types.Tag{{Key: aws.String(asg.TagDigest), Value: aws.String("sha256:x")}}})
	ok(t, err)
	if err := p.Prepare(t.Context(), fleet.Spec{Image: img}); err == nil || !strings.Contains(err.Error(), "has the tag rebake:digest=sha256:x") {
		t.Errorf("another image's: %v", err)
	}
}

func TestConfigIsRefused(t *testing.T) {
	good := asg.Config{Subnets: []string{"subnet-1"}, Instance: asg.Instance{Types: []string{"t3.small"}}}
	for want, change := range map[string]func(*asg.Config){
		"pool.asg.subnets: which ones?":                    func(c *asg.Config) { c.Subnets = nil },
		"pool.asg.instance.types: which ones?":             func(c *asg.Config) { c.Instance.Types = nil },
		`"web:$Latest" is not NAME:VERSION`:                func(c *asg.Config) { c.LaunchTemplate = "web:$Latest" },
		"min 3 and max 2 are not in order":                 func(c *asg.Config) { c.Capacity = asg.Capacity{Min: 3, Max: 2} },
		"rebake:fleet is not yours to set":                 func(c *asg.Config) { c.Tags = map[string]string{"rebake:fleet": "x"} },
		"metadata_hop_limit: 65 is not between 1 and 64":   func(c *asg.Config) { c.Instance.HopLimit = 65 },
		"fleet name \"a b\": use at most 40 letters":       nil,
		"capacity.max: 2 is less than fleet.size, 3":       func(c *asg.Config) { c.Capacity.Max = 2 },
		"the pool asg has no way to log in to an instance": func(c *asg.Config) { c.Launch = template.Duration(time.Second) },
	} {
		c, name := good, "web"
		if change == nil {
			name = "a b"
		} else {
			change(&c)
		}
		p, err := asg.New(c, asg.Deps{}, name)
		if err == nil {
			_, err = p.Fit(t.Context(), fleet.Policy{Gates: []fleet.Gate{{Name: "t", Test: true}}}, 3)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// With publish: true an image without an AMI gets one when its deployment begins,
// once; what was made is recorded with the image.
func TestAnImageIsPublishedWhenItsDeploymentBegins(t *testing.T) {
	awsfake.Start(t)
	w := awsfleet.New(t)
	img := disks.Bake(t, w.Store, artifact.Image{Name: "web", Version: "9", Arch: "amd64", Firmware: "bios", Seed: "nocloud", Created: time.Now().UTC().Truncate(time.Second)}, make([]byte, 1<<20))
	spec := fleet.Spec{Image: img, Size: 1, Ports: []int{80}}
	if err := open(t, w, "web", nil).Prepare(t.Context(), spec); err == nil {
		t.Fatal("it has an AMI before it was published")
	}
	p := open(t, w, "web", func(c *asg.Config) { c.Publish = true })
	for range 2 {
		ok(t, p.Prepare(t.Context(), spec))
	}
	records, err := ami.Records(t.Context(), w.Store, img)
	ok(t, err)
	if len(records) != 1 {
		t.Errorf("%d AMIs are recorded", len(records))
	}
	id := groupID(fleet.Blue, "01A")
	ok(t, p.Launch(t.Context(), id, spec))
	if g := theGroup(t, w, id); len(g.Instances) != 1 {
		t.Errorf("%d instances run", len(g.Instances))
	}
	ok(t, p.Retire(t.Context(), id))
}
