package awsfake_test

import (
	"bytes"
	"encoding/base64"
	"io"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/test/awsfake"
)

func (r *rig) instance(id string) ec2types.Instance {
	r.t.Helper()
	out := must(r.ec2.DescribeInstances(r.ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{id}}))(r.t)
	return out.Reservations[0].Instances[0]
}

func (r *rig) image(id string) ec2types.Image {
	r.t.Helper()
	return must(r.ec2.DescribeImages(r.ctx, &ec2.DescribeImagesInput{ImageIds: []string{id}}))(r.t).Images[0]
}

func (r *rig) reaches(id string, state ec2types.InstanceStateName) {
	r.t.Helper()
	eventually(r.t, id+" is "+string(state), func() bool { return r.instance(id).State.Name == state })
}

func tagged(kind ec2types.ResourceType, kv ...string) []ec2types.TagSpecification {
	s := ec2types.TagSpecification{ResourceType: kind}
	for i := 0; i < len(kv); i += 2 {
		s.Tags = append(s.Tags, ec2types.Tag{Key: &kv[i], Value: &kv[i+1]})
	}
	return []ec2types.TagSpecification{s}
}

func filter(name string, values ...string) []ec2types.Filter {
	return []ec2types.Filter{{Name: &name, Values: values}}
}

func TestAnInstanceFromLaunchToEnd(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	one, _ := images(c)
	must(r.ec2.ImportKeyPair(r.ctx, &ec2.ImportKeyPairInput{KeyName: aws.String("k"), PublicKeyMaterial: []byte("ssh-ed25519 AAAA"), TagSpecifications: tagged("key-pair", "rebake:build", "b")}))(t)
	_, err := r.ec2.ImportKeyPair(r.ctx, &ec2.ImportKeyPairInput{KeyName: aws.String("k"), PublicKeyMaterial: []byte("ssh-ed25519 AAAA")})
	wantCode(t, err, "InvalidKeyPair.Duplicate")
	sg := *must(r.ec2.CreateSecurityGroup(r.ctx, &ec2.CreateSecurityGroupInput{GroupName: aws.String("g"), Description: aws.String("d"), TagSpecifications: tagged("security-group", "rebake:build", "b")}))(t).GroupId
	open := &ec2.AuthorizeSecurityGroupIngressInput{GroupId: &sg, IpPermissions: []ec2types.IpPermission{{IpProtocol: aws.String("tcp"), FromPort: aws.Int32(22), ToPort: aws.Int32(22), IpRanges: []ec2types.IpRange{{CidrIp: aws.String("192.0.2.1/32")}}}}}
	must(r.ec2.AuthorizeSecurityGroupIngress(r.ctx, open))(t)
	_, err = r.ec2.AuthorizeSecurityGroupIngress(r.ctx, open)
	wantCode(t, err, "InvalidPermission.Duplicate")

	in := &ec2.RunInstancesInput{ImageId: &one, InstanceType: "t3.micro", MinCount: aws.Int32(1), MaxCount: aws.Int32(1), KeyName: aws.String("k"), SecurityGroupIds: []string{sg}, ClientToken: aws.String("c"),
		UserData: aws.String(base64.StdEncoding.EncodeToString([]byte("#cloud-config"))), MetadataOptions: &ec2types.InstanceMetadataOptionsRequest{HttpTokens: "required"},
		TagSpecifications:   append(tagged("instance", "rebake:build", "b"), tagged("volume", "rebake:build", "b")...),
		BlockDeviceMappings: []ec2types.BlockDeviceMapping{{DeviceName: aws.String("/dev/xvda"), Ebs: &ec2types.EbsBlockDevice{VolumeSize: aws.Int32(30)}}}}
	id := *must(r.ec2.RunInstances(r.ctx, in))(t).Instances[0].InstanceId
	if again := *must(r.ec2.RunInstances(r.ctx, in))(t).Instances[0].InstanceId; again != id {
		t.Errorf("the same token launched %s and %s", id, again)
	}
	other := *in
	other.InstanceType = "t3.large"
	_, err = r.ec2.RunInstances(r.ctx, &other)
	wantCode(t, err, "IdempotentParameterMismatch")
	r.reaches(id, "running")
	i := r.instance(id)
	if aws.ToString(i.PublicIpAddress) == "" || i.MetadataOptions.HttpTokens != "required" || *i.SecurityGroups[0].GroupId != sg || *i.Tags[0].Value != "b" {
		t.Errorf("%+v", i)
	}
	data := must(r.ec2.DescribeInstanceAttribute(r.ctx, &ec2.DescribeInstanceAttributeInput{InstanceId: &id, Attribute: "userData"}))(t)
	if *data.UserData.Value != *in.UserData {
		t.Errorf("user data %q", *data.UserData.Value)
	}
	vols := must(r.ec2.DescribeVolumes(r.ctx, &ec2.DescribeVolumesInput{Filters: filter("tag:rebake:build", "b")}))(t).Volumes
	if len(vols) != 1 || *vols[0].Size != 30 || *vols[0].Attachments[0].InstanceId != id {
		t.Errorf("%+v", vols)
	}
	_, err = r.ec2.DeleteSecurityGroup(r.ctx, &ec2.DeleteSecurityGroupInput{GroupId: &sg})
	wantCode(t, err, "DependencyViolation")
	must(r.ec2.StopInstances(r.ctx, &ec2.StopInstancesInput{InstanceIds: []string{id}}))(t)
	r.reaches(id, "stopped")
	must(r.ec2.TerminateInstances(r.ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{id}}))(t)
	r.reaches(id, "terminated")
	must(r.ec2.TerminateInstances(r.ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{id}}))(t) // twice is no error
	must(r.ec2.DeleteSecurityGroup(r.ctx, &ec2.DeleteSecurityGroupInput{GroupId: &sg}))(t)
	must(r.ec2.DeleteKeyPair(r.ctx, &ec2.DeleteKeyPairInput{KeyName: aws.String("k")}))(t)
	tags := must(r.ec2.DescribeTags(r.ctx, &ec2.DescribeTagsInput{Filters: filter("key", "rebake:build")}))(t).Tags
	if len(tags) != 1 || *tags[0].ResourceId != id {
		t.Errorf("left: %+v", tags)
	}
	_, err = r.ec2.DescribeInstances(r.ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{"i-0000000000000000a"}})
	wantCode(t, err, "InvalidInstanceID.NotFound")
}

func TestDryRunAndDeny(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	one, _ := images(c)
	in := &ec2.RunInstancesInput{ImageId: &one, MinCount: aws.Int32(1), MaxCount: aws.Int32(1), DryRun: aws.Bool(true)}
	_, err := r.ec2.RunInstances(r.ctx, in)
	wantCode(t, err, "DryRunOperation")
	c.Set(func() { c.Deny = func(a string) bool { return a == "ec2:RunInstances" } })
	_, err = r.ec2.RunInstances(r.ctx, in)
	wantCode(t, err, "UnauthorizedOperation")
	if n := len(c.Instances(region)); n != 0 {
		t.Errorf("%d instances", n)
	}
}

// TestAnImageHasItsInstancesBlocks makes an AMI whose snapshot holds what the test
// says is on the volume, copies it, protects, disables and removes it.
func TestAnImageHasItsInstancesBlocks(t *testing.T) {
	c := awsfake.Start(t)
	disk := bytes.Repeat([]byte("rebake.."), 1<<17) // 1 MiB
	c.VolumeContent = func(string, awsfake.Instance) (io.ReaderAt, int64) { return bytes.NewReader(disk), int64(len(disk)) }
	r := clients(t)
	one, _ := images(c)
	id := *must(r.ec2.RunInstances(r.ctx, &ec2.RunInstancesInput{ImageId: &one, MinCount: aws.Int32(1), MaxCount: aws.Int32(1)}))(t).Instances[0].InstanceId
	r.reaches(id, "running")
	in := &ec2.CreateImageInput{InstanceId: &id, Name: aws.String("web/1"), TagSpecifications: append(tagged("image", "k", "v"), tagged("snapshot", "k", "v")...)}
	ami := *must(r.ec2.CreateImage(r.ctx, in))(t).ImageId
	if s := r.image(ami).State; s != ec2types.ImageStatePending {
		t.Errorf("a new image is %s", s)
	}
	_, err := r.ec2.CreateImage(r.ctx, in)
	wantCode(t, err, "InvalidAMIName.Duplicate")
	eventually(t, "the image is available", func() bool { return r.image(ami).State == ec2types.ImageStateAvailable })
	snap := *r.image(ami).BlockDeviceMappings[0].Ebs.SnapshotId
	blocks := c.SnapshotBlocks(region, snap)
	if len(blocks) != 2 || !bytes.Equal(append(bytes.Clone(blocks[0]), blocks[1]...), disk) {
		t.Errorf("%d blocks", len(blocks))
	}
	_, err = r.ec2.DeleteSnapshot(r.ctx, &ec2.DeleteSnapshotInput{SnapshotId: &snap})
	wantCode(t, err, "InvalidSnapshot.InUse")

	west := clients(t)
	west.ec2 = ec2.New(west.ec2.Options(), func(o *ec2.Options) { o.Region = "us-west-2" })
	cp := &ec2.CopyImageInput{Name: aws.String("web/1"), SourceImageId: &ami, SourceRegion: aws.String(region), ClientToken: aws.String("x"), TagSpecifications: tagged("image", "k", "w")}
	copied := *must(west.ec2.CopyImage(r.ctx, cp))(t).ImageId
	if again := *must(west.ec2.CopyImage(r.ctx, cp))(t).ImageId; again != copied {
		t.Error("the same token copied twice")
	}
	eventually(t, "the copy is available", func() bool { return west.image(copied).State == ec2types.ImageStateAvailable })
	if got := west.image(copied); *got.SourceImageId != ami || *got.Tags[0].Value != "w" || len(c.SnapshotBlocks("us-west-2", *got.BlockDeviceMappings[0].Ebs.SnapshotId)) != 2 {
		t.Errorf("%+v", got)
	}
	r.leavesInSteps(ami, snap)
	if got := west.image(copied).State; got != ec2types.ImageStateAvailable {
		t.Errorf("the copy in the other region is %s", got)
	}
}

// leavesInSteps takes an image away as a retention ladder does.
func (r *rig) leavesInSteps(ami, snap string) {
	t := r.t
	at := time.Now().Add(time.Hour)
	must(r.ec2.EnableImageDeprecation(r.ctx, &ec2.EnableImageDeprecationInput{ImageId: &ami, DeprecateAt: &at}))(t)
	must(r.ec2.ModifyImageAttribute(r.ctx, &ec2.ModifyImageAttributeInput{ImageId: &ami, LaunchPermission: &ec2types.LaunchPermissionModifications{Add: []ec2types.LaunchPermission{{UserId: aws.String("111122223333")}}}}))(t)
	if p := must(r.ec2.DescribeImageAttribute(r.ctx, &ec2.DescribeImageAttributeInput{ImageId: &ami, Attribute: "launchPermission"}))(t).LaunchPermissions; len(p) != 1 || *p[0].UserId != "111122223333" {
		t.Errorf("%+v", p)
	}
	must(r.ec2.EnableImageDeregistrationProtection(r.ctx, &ec2.EnableImageDeregistrationProtectionInput{ImageId: &ami, WithCooldown: aws.Bool(true)}))(t)
	_, err := r.ec2.DeregisterImage(r.ctx, &ec2.DeregisterImageInput{ImageId: &ami})
	wantCode(t, err, "OperationNotPermitted")
	must(r.ec2.DisableImageDeregistrationProtection(r.ctx, &ec2.DisableImageDeregistrationProtectionInput{ImageId: &ami}))(t)
	if p := *r.image(ami).DeregistrationProtection; p != "disabled-with-cooldown" {
		t.Errorf("protection %s", p)
	}
	_, err = r.ec2.DeregisterImage(r.ctx, &ec2.DeregisterImageInput{ImageId: &ami})
	wantCode(t, err, "OperationNotPermitted")
	must(r.ec2.DisableImage(r.ctx, &ec2.DisableImageInput{ImageId: &ami}))(t)
	if n := len(must(r.ec2.DescribeImages(r.ctx, &ec2.DescribeImagesInput{Owners: []string{"self"}}))(t).Images); n != 0 {
		t.Errorf("a disabled image is listed")
	}
	_, err = r.ec2.RunInstances(r.ctx, &ec2.RunInstancesInput{ImageId: &ami, MinCount: aws.Int32(1), MaxCount: aws.Int32(1)})
	wantCode(t, err, "InvalidAMIID.Unavailable")
	must(r.ec2.EnableImage(r.ctx, &ec2.EnableImageInput{ImageId: &ami}))(t)
}

func TestDeregisterTakesTheSnapshotsWithIt(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	one, _ := images(c)
	id := *must(r.ec2.RunInstances(r.ctx, &ec2.RunInstancesInput{ImageId: &one, MinCount: aws.Int32(1), MaxCount: aws.Int32(1)}))(t).Instances[0].InstanceId
	r.reaches(id, "running")
	vol := *r.instance(id).BlockDeviceMappings[0].Ebs.VolumeId
	snap := *must(r.ec2.CreateSnapshot(r.ctx, &ec2.CreateSnapshotInput{VolumeId: &vol}))(t).SnapshotId
	reg := &ec2.RegisterImageInput{Name: aws.String("one"), Architecture: "x86_64", RootDeviceName: aws.String("/dev/xvda"), TagSpecifications: tagged("image", "k", "v"),
		BlockDeviceMappings: []ec2types.BlockDeviceMapping{{DeviceName: aws.String("/dev/xvda"), Ebs: &ec2types.EbsBlockDevice{SnapshotId: &snap}}}}
	_, err := r.ec2.RegisterImage(r.ctx, reg)
	wantCode(t, err, "InvalidParameterValue") // the snapshot is pending
	eventually(t, "the snapshot is completed", func() bool {
		return must(r.ec2.DescribeSnapshots(r.ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{snap}}))(t).Snapshots[0].State == ec2types.SnapshotStateCompleted
	})
	first := *must(r.ec2.RegisterImage(r.ctx, reg))(t).ImageId
	reg.Name = aws.String("two")
	second := *must(r.ec2.RegisterImage(r.ctx, reg))(t).ImageId
	if tags := r.image(first).Tags; len(tags) != 1 {
		t.Errorf("%+v", tags)
	}
	out := must(r.ec2.DeregisterImage(r.ctx, &ec2.DeregisterImageInput{ImageId: &first, DeleteAssociatedSnapshots: aws.Bool(true)}))(t)
	if out.DeleteSnapshotResults[0].ReturnCode != ec2types.SnapshotReturnCodesWarnSkipped {
		t.Errorf("a snapshot that another image has: %s", out.DeleteSnapshotResults[0].ReturnCode)
	}
	out = must(r.ec2.DeregisterImage(r.ctx, &ec2.DeregisterImageInput{ImageId: &second, DeleteAssociatedSnapshots: aws.Bool(true)}))(t)
	if out.DeleteSnapshotResults[0].ReturnCode != ec2types.SnapshotReturnCodesSuccess {
		t.Errorf("%s", out.DeleteSnapshotResults[0].ReturnCode)
	}
	_, err = r.ec2.DescribeSnapshots(r.ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{snap}})
	wantCode(t, err, "InvalidSnapshot.NotFound")
	_, err = r.ec2.DescribeImages(r.ctx, &ec2.DescribeImagesInput{ImageIds: []string{first}})
	wantCode(t, err, "InvalidAMIID.NotFound")
}

func TestDescribeIsPaged(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	one, _ := images(c)
	must(r.ec2.RunInstances(r.ctx, &ec2.RunInstancesInput{ImageId: &one, MinCount: aws.Int32(25), MaxCount: aws.Int32(25), TagSpecifications: tagged("instance", "k", "v")}))(t)
	seen, pages := map[string]bool{}, 0
	p := ec2.NewDescribeInstancesPaginator(r.ec2, &ec2.DescribeInstancesInput{MaxResults: aws.Int32(10), Filters: filter("tag:k", "v*")})
	for p.HasMorePages() {
		pages++
		for _, res := range must(p.NextPage(r.ctx))(t).Reservations {
			seen[*res.Instances[0].InstanceId] = true
		}
	}
	if len(seen) != 25 || pages != 3 {
		t.Errorf("%d instances on %d pages", len(seen), pages)
	}
	_, err := r.ec2.DescribeInstances(r.ctx, &ec2.DescribeInstancesInput{Filters: filter("no-such-filter", "v")})
	wantCode(t, err, "InvalidParameterValue")
	vpcs := must(r.ec2.DescribeVpcs(r.ctx, &ec2.DescribeVpcsInput{Filters: filter("is-default", "true")}))(t).Vpcs
	zones := must(r.ec2.DescribeAvailabilityZones(r.ctx, &ec2.DescribeAvailabilityZonesInput{}))(t).AvailabilityZones
	if len(vpcs) != 1 || len(zones) != 3 {
		t.Errorf("%d VPCs, %d zones", len(vpcs), len(zones))
	}
}
