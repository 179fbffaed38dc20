//go:build e2e

package ami

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/test/moto"
)

// Against moto, which makes a snapshot of its own when an AMI is registered: the
// record is given that one.
func TestAMIsGoWithTheirSnapshotsAndWhatIsUsedStays(t *testing.T) {
	moto.Start(t)
	ctx := t.Context()
	c, far, s := connect(t, "eu-central-1"), connect(t, "us-west-2"), openStore(t)
	img := baked(t, s, "1.0.0", someDisk(1))
	records, err := Publish(ctx, c, s, img, Options{poll: time.Millisecond, Copy: []*Cloud{far}})
	if err != nil {
		t.Fatal(err)
	}
	for i, cl := range []*Cloud{c, far} {
		r := records[i]
		there, err := cl.images(ctx, []string{r.AMI})
		if err != nil {
			t.Fatal(err)
		}
		image := there[r.AMI]
		r.Snapshot, r.Time = rootSnapshot(&image), r.Time.Add(-time.Hour)
		if _, err := cl.EC2.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{r.Snapshot}, Tags: tagList(Options{}.tags(img))}); err != nil {
			t.Fatal(err)
		}
		if err := Keep(ctx, s, img, r); err != nil {
			t.Fatal(err)
		}
		records[i] = r
	}
	run, err := far.EC2.RunInstances(ctx, &ec2.RunInstancesInput{ImageId: &records[1].AMI, MinCount: aws.Int32(1), MaxCount: aws.Int32(1), InstanceType: types.InstanceTypeT3Micro})
	if err != nil {
		t.Fatal(err)
	}
	lt, err := c.EC2.CreateLaunchTemplate(ctx, &ec2.CreateLaunchTemplateInput{LaunchTemplateName: aws.String("web"), LaunchTemplateData: &types.RequestLaunchTemplateData{ImageId: &records[0].AMI, InstanceType: types.InstanceTypeT3Micro}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.EC2.CreateLaunchTemplateVersion(ctx, &ec2.CreateLaunchTemplateVersionInput{LaunchTemplateId: lt.LaunchTemplate.LaunchTemplateId, LaunchTemplateData: &types.RequestLaunchTemplateData{ImageId: aws.String("ami-other"), InstanceType: types.InstanceTypeT3Micro}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Scaling.CreateAutoScalingGroup(ctx, &autoscaling.CreateAutoScalingGroupInput{AutoScalingGroupName: aws.String("web-a"), MinSize: aws.Int32(0), MaxSize: aws.Int32(1), AvailabilityZones: []string{"eu-central-1a"},
		LaunchTemplate: nil, MixedInstancesPolicy: nil, LaunchConfigurationName: configuration(t, c, records[0].AMI)}); err != nil {
		t.Fatal(err)
	}
	var said []string
	l := Ladder{Keep: s, Info: func(text string) { said = append(said, text) }, Hold: func(_ context.Context, _ artifact.Image, f func() error) error { return f() }}
	wish := func() []Wish {
		all, err := All(ctx, s, img)
		if err != nil {
			t.Fatal(err)
		}
		left, _, _ := Taken(all)
		return []Wish{{Image: img, AMIs: left, Step: Removed, Why: "old"}}
	}
	verdicts, err := l.Plan(ctx, wish())
	if err != nil {
		t.Fatal(err)
	}
	uses := slices.Concat(verdicts[0].Uses, verdicts[1].Uses)
	for _, want := range []string{"instance " + aws.ToString(run.Instances[0].InstanceId) + " is of it", "the default version of launch template web names it", "Auto Scaling group web-a launches it (launch configuration web)"} {
		if !slices.Contains(uses, want) {
			t.Errorf("%q is not told: %q", want, uses)
		}
	}
	if done, err := l.Apply(ctx, wish()); err != nil || len(done) > 0 || len(said) != 2 {
		t.Errorf("%+v, %v, %q", done, err, said)
	}

	if _, err := c.Scaling.DeleteAutoScalingGroup(ctx, &autoscaling.DeleteAutoScalingGroupInput{AutoScalingGroupName: aws.String("web-a"), ForceDelete: aws.Bool(true)}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.EC2.DeleteLaunchTemplate(ctx, &ec2.DeleteLaunchTemplateInput{LaunchTemplateId: lt.LaunchTemplate.LaunchTemplateId}); err != nil {
		t.Fatal(err)
	}
	if _, err := far.EC2.StopInstances(ctx, &ec2.StopInstancesInput{InstanceIds: []string{*run.Instances[0].InstanceId}}); err != nil {
		t.Fatal(err)
	}
	if verdicts, err = l.Plan(ctx, wish()); err != nil || verdicts[0].Do != "" || !strings.Contains(verdicts[0].Why, "us-west-2: instance ") {
		t.Errorf("a stopped instance does not keep it: %+v, %v", verdicts, err)
	}
	if _, err := far.EC2.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{*run.Instances[0].InstanceId}}); err != nil {
		t.Fatal(err)
	}
	done, err := l.Apply(ctx, wish())
	if err != nil || len(done) != 2 || done[0].Region != "us-west-2" {
		t.Fatalf("%+v, %v", done, err)
	}
	for i, cl := range []*Cloud{c, far} {
		there, err := cl.images(ctx, []string{records[i].AMI})
		if err != nil || len(there) > 0 {
			t.Errorf("%s is there still: %v", records[i].AMI, err)
		}
		if state, err := cl.snapshotState(ctx, records[i].Snapshot); err != nil || state != "" {
			t.Errorf("%s is %s: %v", records[i].Snapshot, state, err)
		}
	}
	if w := wish(); len(w[0].AMIs) > 0 {
		t.Errorf("not recorded: %+v", w)
	}
}

func configuration(t *testing.T, c *Cloud, id string) *string {
	name := aws.String("web")
	if _, err := c.Scaling.CreateLaunchConfiguration(t.Context(), &autoscaling.CreateLaunchConfigurationInput{LaunchConfigurationName: name, ImageId: &id, InstanceType: aws.String("t3.micro")}); err != nil {
		t.Fatal(err)
	}
	return name
}
