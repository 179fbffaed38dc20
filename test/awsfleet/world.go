// Package awsfleet is what a fleet in AWS needs around it, made in whatever cloud
// the environment points to: a network, a load balancer, images with AMIs.
package awsfleet

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/test/disks"
)

// World is an account with a network and a listener, and a store on this machine.
type World struct {
	Store    *oci.Store
	VPC      string
	Subnets  []string // one in each zone
	Balancer string   // ARN
	Listener string   // ARN, of one that answers 404 by default

	EC2 *ec2.Client
	AS  *autoscaling.Client
	ELB *elb.Client
	ebs *ebs.Client
}

var balancers atomic.Int64

// New makes a world.
func New(t testing.TB) *World {
	t.Helper()
	cfg, err := ami.Config(t.Context(), "")
	ok(t, err)
	w := &World{EC2: ec2.NewFromConfig(cfg), AS: autoscaling.NewFromConfig(cfg), ELB: elb.NewFromConfig(cfg), ebs: ebs.NewFromConfig(cfg)}
	w.Store, err = oci.Open(filepath.Join(t.TempDir(), "store"))
	ok(t, err)
	subnets, err := w.EC2.DescribeSubnets(t.Context(), &ec2.DescribeSubnetsInput{})
	ok(t, err)
	for _, s := range subnets.Subnets {
		w.VPC = aws.ToString(s.VpcId)
		w.Subnets = append(w.Subnets, aws.ToString(s.SubnetId))
	}
	if len(w.Subnets) < 2 {
		t.Fatalf("the default network has %d subnets", len(w.Subnets))
	}
	lb, err := w.ELB.CreateLoadBalancer(t.Context(), &elb.CreateLoadBalancerInput{Name: aws.String(fmt.Sprintf("front-%d", balancers.Add(1))), Subnets: w.Subnets, Type: elbtypes.LoadBalancerTypeEnumApplication})
	ok(t, err)
	w.Balancer = aws.ToString(lb.LoadBalancers[0].LoadBalancerArn)
	l, err := w.ELB.CreateListener(t.Context(), &elb.CreateListenerInput{LoadBalancerArn: &w.Balancer, Port: aws.Int32(80), Protocol: elbtypes.ProtocolEnumHttp,
		DefaultActions: []elbtypes.Action{{Type: elbtypes.ActionTypeEnumFixedResponse, FixedResponseConfig: &elbtypes.FixedResponseActionConfig{StatusCode: aws.String("404"), ContentType: aws.String("text/plain"), MessageBody: aws.String("nobody")}}}})
	ok(t, err)
	w.Listener = aws.ToString(l.Listeners[0].ListenerArn)
	return w
}

// Image is an image of the store with an AMI that is recorded with it.
func (w *World) Image(t testing.TB, version string) artifact.Image {
	t.Helper()
	ctx := t.Context()
	img := disks.Bake(t, w.Store, artifact.Image{Name: "web", Version: version, Arch: "amd64", Firmware: "bios", Seed: "nocloud", Created: time.Now().UTC().Truncate(time.Second)},
		slices.Repeat([]byte(version+" "), 1000))
	snap, err := w.ebs.StartSnapshot(ctx, &ebs.StartSnapshotInput{VolumeSize: aws.Int64(1), ClientToken: aws.String("snap-" + version)})
	ok(t, err)
	_, err = w.ebs.CompleteSnapshot(ctx, &ebs.CompleteSnapshotInput{SnapshotId: snap.SnapshotId, ChangedBlocksCount: aws.Int32(0)})
	ok(t, err)
	until(t, "the snapshot", func() bool {
		out, err := w.EC2.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{aws.ToString(snap.SnapshotId)}})
		return err == nil && out.Snapshots[0].State == types.SnapshotStateCompleted
	})
	made, err := w.EC2.RegisterImage(ctx, &ec2.RegisterImageInput{Name: aws.String(ami.Name(img)), RootDeviceName: aws.String("/dev/xvda"), Architecture: types.ArchitectureValuesX8664,
		VirtualizationType:  aws.String("hvm"),
		BlockDeviceMappings: []types.BlockDeviceMapping{{DeviceName: aws.String("/dev/xvda"), Ebs: &types.EbsBlockDevice{SnapshotId: snap.SnapshotId}}}})
	ok(t, err)
	_, err = w.EC2.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{aws.ToString(made.ImageId)}, Tags: []types.Tag{{Key: aws.String(ami.TagDigest), Value: aws.String(string(img.Digest))}}})
	ok(t, err)
	ok(t, ami.Keep(ctx, w.Store, img, ami.Record{Region: "eu-central-1", AMI: aws.ToString(made.ImageId), Snapshot: aws.ToString(snap.SnapshotId), Name: ami.Name(img), Content: img.Content, Time: time.Now().UTC().Truncate(time.Second)}))
	until(t, "the AMI", func() bool {
		out, err := w.EC2.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{aws.ToString(made.ImageId)}})
		return err == nil && len(out.Images) == 1 && out.Images[0].State == types.ImageStateAvailable
	})
	return img
}

// until looks until so, for ten seconds.
func until(t testing.TB, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !so(); <-time.After(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s does not become ready", what)
		}
	}
}

// AMI is what Image registered.
func (w *World) AMI(t testing.TB, img artifact.Image) string {
	t.Helper()
	records, err := ami.Records(t.Context(), w.Store, img)
	ok(t, err)
	return records[0].AMI
}

// Left is what is there that has the tag of a fleet: running instances, groups,
// launch templates, target groups and rules, in words.
func (w *World) Left(t testing.TB, fleet string) (all []string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	filter := []types.Filter{{Name: aws.String("tag:rebake:fleet"), Values: []string{fleet}}}
	in, err := w.EC2.DescribeInstances(ctx, &ec2.DescribeInstancesInput{Filters: filter})
	ok(t, err)
	for _, r := range in.Reservations {
		for _, i := range r.Instances {
			if i.State.Name == types.InstanceStateNameRunning || i.State.Name == types.InstanceStateNamePending {
				all = append(all, "instance "+aws.ToString(i.InstanceId))
			}
		}
	}
	lts, err := w.EC2.DescribeLaunchTemplates(ctx, &ec2.DescribeLaunchTemplatesInput{Filters: filter})
	ok(t, err)
	for _, lt := range lts.LaunchTemplates {
		all = append(all, "launch template "+aws.ToString(lt.LaunchTemplateName))
	}
	groups, err := w.AS.DescribeAutoScalingGroups(ctx, &autoscaling.DescribeAutoScalingGroupsInput{})
	ok(t, err)
	for _, g := range groups.AutoScalingGroups {
		for _, tag := range g.Tags {
			if aws.ToString(tag.Key) == "rebake:fleet" && aws.ToString(tag.Value) == fleet {
				all = append(all, "group "+aws.ToString(g.AutoScalingGroupName))
			}
		}
	}
	return append(all, w.leftBehind(t, fleet)...)
}

func (w *World) leftBehind(t testing.TB, fleet string) (all []string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	var arns []string
	tgs, err := w.ELB.DescribeTargetGroups(ctx, &elb.DescribeTargetGroupsInput{})
	ok(t, err)
	for _, g := range tgs.TargetGroups {
		arns = append(arns, aws.ToString(g.TargetGroupArn))
	}
	rules, err := w.ELB.DescribeRules(ctx, &elb.DescribeRulesInput{ListenerArn: &w.Listener})
	ok(t, err)
	for _, r := range rules.Rules {
		if !aws.ToBool(r.IsDefault) {
			arns = append(arns, aws.ToString(r.RuleArn))
		}
	}
	for part := range slices.Chunk(arns, 20) {
		out, err := w.ELB.DescribeTags(ctx, &elb.DescribeTagsInput{ResourceArns: part})
		ok(t, err)
		for _, d := range out.TagDescriptions {
			for _, tag := range d.Tags {
				if aws.ToString(tag.Key) == "rebake:fleet" && aws.ToString(tag.Value) == fleet {
					all = append(all, aws.ToString(d.ResourceArn))
				}
			}
		}
	}
	return all
}

// Terminate ends an instance as somebody at the console would.
func (w *World) Terminate(t testing.TB, id string) {
	t.Helper()
	_, err := w.EC2.TerminateInstances(t.Context(), &ec2.TerminateInstancesInput{InstanceIds: []string{id}})
	ok(t, err)
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
