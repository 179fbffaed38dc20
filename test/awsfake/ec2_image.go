package awsfake

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// image is an AMI and what its protection is.
type image struct {
	ec2types.Image
	permissions []ec2types.LaunchPermission
	protected   bool
	cooldown    bool
	until       time.Time // the cooldown's end
}

// AddImage puts an AMI of Amazon into a region, available at once, and returns its id.
// What is empty in img is filled with what is usual; its tags are img's.
func (c *Cloud) AddImage(regionName string, img ec2types.Image) string {
	id := ""
	c.in(regionName, func(r *region) {
		s := r.newSnapshot(aws.String("of an image of Amazon"), 8, nil, nil, nil)
		s.State, s.OwnerId = ec2types.SnapshotStateCompleted, aws.String(Amazon)
		id = c.id("ami")
		full := ec2types.Image{ImageId: &id, Name: aws.String("an-image-" + id), OwnerId: aws.String(Amazon), ImageOwnerAlias: aws.String("amazon"), Public: aws.Bool(true),
			Architecture: "x86_64", BootMode: "uefi-preferred", EnaSupport: aws.Bool(true), CreationDate: aws.String(rfc(c.now())), RootDeviceName: aws.String("/dev/xvda"),
			BlockDeviceMappings: []ec2types.BlockDeviceMapping{{DeviceName: aws.String("/dev/xvda"), Ebs: &ec2types.EbsBlockDevice{SnapshotId: s.SnapshotId, VolumeSize: aws.Int32(8), VolumeType: "gp3", DeleteOnTermination: aws.Bool(true)}}}}
		copyAs(&full, &img)
		r.addImage(id, full, ec2types.ImageStateAvailable)
		r.tag(id, img.Tags)
	})
	return id
}

func (r *region) addImage(id string, img ec2types.Image, state ec2types.ImageState) *image {
	i := &image{Image: img}
	i.Tags = nil
	i.ImageId, i.State = &id, state
	i.ImageType, i.Hypervisor, i.RootDeviceType = ec2types.ImageTypeValuesMachine, ec2types.HypervisorTypeXen, ec2types.DeviceTypeEbs
	i.VirtualizationType, i.PlatformDetails, i.UsageOperation = ec2types.VirtualizationTypeHvm, aws.String("Linux/UNIX"), aws.String("RunInstances")
	i.ImageLocation = aws.String(aws.ToString(i.OwnerId) + "/" + aws.ToString(i.Name))
	r.images.put(id, i)
	return i
}

// user is an image that has the snapshot, or nil.
func (r *region) user(snapshot string) *image {
	for _, i := range r.images.all() {
		for _, m := range i.BlockDeviceMappings {
			if m.Ebs != nil && aws.ToString(m.Ebs.SnapshotId) == snapshot {
				return i
			}
		}
	}
	return nil
}

func (r *region) findImage(id *string) (*image, error) {
	if i, ok := r.images.get(aws.ToString(id)); ok && r.seen(*id) {
		return i, nil
	}
	return nil, refuse("InvalidAMIID.NotFound", "The image id '[%s]' does not exist", aws.ToString(id))
}

// taken refuses a name that another image of the account has.
func (r *region) taken(name *string) error {
	if n := len(aws.ToString(name)); n < 3 || n > 128 {
		return refuse("InvalidAMIName.Malformed", "AMI names must be between 3 and 128 characters long")
	}
	for _, i := range r.images.all() {
		if *i.Name == *name && *i.OwnerId == Account {
			return refuse("InvalidAMIName.Duplicate", "AMI name %s is already in use by AMI %s", *name, *i.ImageId)
		}
	}
	return nil
}

// settle makes an image available in its time.
func (r *region) settle(i *image) {
	r.cloud.after(r.cloud.Delays.Image, func() {
		if i.State == ec2types.ImageStatePending {
			i.State = ec2types.ImageStateAvailable
		}
	})
}

func (r *region) registerImage(in *ec2.RegisterImageInput) (*ec2.RegisterImageOutput, error) {
	if err := r.taken(in.Name); err != nil {
		return nil, err
	}
	img := ec2types.Image{OwnerId: aws.String(Account), CreationDate: aws.String(rfc(r.cloud.now())), Public: aws.Bool(false), Architecture: "i386", BlockDeviceMappings: []ec2types.BlockDeviceMapping{}}
	copyAs(&img, in)
	img.BlockDeviceMappings = slices.Clone(img.BlockDeviceMappings)
	root := false
	for n, m := range img.BlockDeviceMappings {
		if m.Ebs == nil {
			continue
		}
		ebs := *m.Ebs
		if ebs.SnapshotId != nil {
			s, err := r.findSnapshot(*ebs.SnapshotId)
			if err != nil {
				return nil, err
			}
			if s.State != ec2types.SnapshotStateCompleted {
				return nil, refuse("InvalidParameterValue", "Snapshot %s is in state '%s', not 'completed'", *s.SnapshotId, s.State)
			}
			if ebs.VolumeSize == nil {
				ebs.VolumeSize = s.VolumeSize
			} else if *ebs.VolumeSize < *s.VolumeSize {
				return nil, refuse("InvalidBlockDeviceMapping", "Volume of size %dGB is smaller than snapshot '%s', expect size >= %dGB", *ebs.VolumeSize, *s.SnapshotId, *s.VolumeSize)
			}
			ebs.Encrypted = s.Encrypted
			root = root || aws.ToString(m.DeviceName) == aws.ToString(img.RootDeviceName)
		}
		if ebs.VolumeType == "" {
			ebs.VolumeType = ec2types.VolumeTypeGp2
		}
		if ebs.DeleteOnTermination == nil {
			ebs.DeleteOnTermination = aws.Bool(true)
		}
		img.BlockDeviceMappings[n].Ebs = &ebs
	}
	if !root {
		return nil, refuse("InvalidBlockDeviceMapping", "The root device %s has no snapshot", aws.ToString(in.RootDeviceName))
	}
	id := r.new(r.cloud.id("ami"), ec2types.ResourceTypeImage, in.TagSpecifications)
	r.settle(r.addImage(id, img, ec2types.ImageStatePending))
	return &ec2.RegisterImageOutput{ImageId: &id}, nil
}

func (r *region) createImage(in *ec2.CreateImageInput) (*ec2.CreateImageOutput, error) {
	i, err := r.find(aws.ToString(in.InstanceId))
	if err != nil {
		return nil, err
	}
	if s := i.state(); s != ec2types.InstanceStateNameRunning && s != ec2types.InstanceStateNameStopped && s != ec2types.InstanceStateNameStopping {
		return nil, refuse("IncorrectState", "The instance '%s' is not in a state from which an image can be made: %s", *i.InstanceId, s)
	}
	if err := r.taken(in.Name); err != nil {
		return nil, err
	}
	id := r.new(r.cloud.id("ami"), ec2types.ResourceTypeImage, in.TagSpecifications)
	img := r.addImage(id, ec2types.Image{Name: in.Name, Description: in.Description, OwnerId: aws.String(Account), CreationDate: aws.String(rfc(r.cloud.now())), Public: aws.Bool(false), Architecture: i.Architecture,
		BootMode: i.BootMode, EnaSupport: i.EnaSupport, RootDeviceName: i.RootDeviceName, SourceInstanceId: i.InstanceId, SourceImageId: i.ImageId}, ec2types.ImageStatePending)
	if from, ok := r.images.get(*i.ImageId); ok {
		img.ImdsSupport = from.ImdsSupport
	}
	waits := len(i.BlockDeviceMappings)
	for _, m := range i.BlockDeviceMappings {
		v, err := r.findVolume(*m.Ebs.VolumeId)
		if err != nil {
			return nil, err
		}
		s := r.snap(v, aws.String("Created by CreateImage("+*i.InstanceId+") for "+id), in.TagSpecifications, func() {
			if waits--; waits == 0 {
				r.settle(img)
			}
		})
		img.BlockDeviceMappings = append(img.BlockDeviceMappings, ec2types.BlockDeviceMapping{DeviceName: m.DeviceName, Ebs: &ec2types.EbsBlockDevice{SnapshotId: s.SnapshotId, VolumeSize: v.Size, VolumeType: v.VolumeType,
			Iops: v.Iops, Throughput: v.Throughput, Encrypted: v.Encrypted, DeleteOnTermination: m.Ebs.DeleteOnTermination}})
	}
	if waits == 0 {
		r.settle(img)
	}
	if !aws.ToBool(in.NoReboot) && i.state() == ec2types.InstanceStateNameRunning {
		i.LaunchTime = aws.Time(r.cloud.now().UTC())
	}
	return &ec2.CreateImageOutput{ImageId: &id}, nil
}

func (r *region) copyImage(in *ec2.CopyImageInput) (*ec2.CopyImageOutput, error) {
	return once(r, "CopyImage", in.ClientToken, in, "IdempotentParameterMismatch", func() (*ec2.CopyImageOutput, error) {
		from := r.cloud.region(aws.ToString(in.SourceRegion))
		src, err := from.findImage(in.SourceImageId)
		if err != nil {
			return nil, err
		}
		if src.State != ec2types.ImageStateAvailable {
			return nil, refuse("InvalidAMIID.Unavailable", "The image ID '%s' is %s", *src.ImageId, src.State)
		}
		id := r.new(r.cloud.id("ami"), ec2types.ResourceTypeImage, in.TagSpecifications)
		img := r.addImage(id, src.Image, ec2types.ImageStatePending)
		img.OwnerId, img.Name, img.Description, img.Public, img.ImageOwnerAlias = aws.String(Account), in.Name, in.Description, aws.Bool(false), nil
		img.SourceImageId, img.SourceImageRegion, img.CreationDate, img.DeprecationTime = src.ImageId, in.SourceRegion, aws.String(rfc(r.cloud.now())), nil
		if aws.ToBool(in.CopyImageTags) {
			r.tag(id, from.tags[*src.ImageId])
		}
		img.BlockDeviceMappings = slices.Clone(src.BlockDeviceMappings)
		waits := 0
		for n, m := range img.BlockDeviceMappings {
			s, ok := (*snapshot)(nil), false
			if m.Ebs != nil {
				s, ok = from.snapshots.get(aws.ToString(m.Ebs.SnapshotId))
			}
			if !ok {
				continue
			}
			waits++
			made := r.copyOf(s, aws.String("Copied for DestinationAmi "+id+" from SourceAmi "+*src.ImageId), in.Encrypted, in.KmsKeyId, in.TagSpecifications)
			r.complete(made, func() {
				if waits--; waits == 0 {
					r.settle(img)
				}
			})
			ebs := *m.Ebs
			ebs.SnapshotId, ebs.Encrypted, ebs.KmsKeyId = made.SnapshotId, made.Encrypted, nil
			img.BlockDeviceMappings[n].Ebs = &ebs
		}
		if waits == 0 {
			r.settle(img)
		}
		return &ec2.CopyImageOutput{ImageId: &id}, nil
	})
}

func (r *region) describeImages(in *ec2.DescribeImagesInput) (*ec2.DescribeImagesOutput, error) {
	out := &ec2.DescribeImagesOutput{Images: []ec2types.Image{}}
	for _, id := range in.ImageIds {
		if _, err := r.findImage(&id); err != nil {
			return nil, err
		}
	}
	for _, i := range r.images.all() {
		f := map[string][]string{"image-id": one(i.ImageId), "name": one(i.Name), "state": {string(i.State)}, "architecture": {string(i.Architecture)}, "owner-id": one(i.OwnerId), "description": one(i.Description),
			"owner-alias": one(i.ImageOwnerAlias), "virtualization-type": {"hvm"}, "root-device-type": {"ebs"}, "root-device-name": one(i.RootDeviceName), "is-public": {strconv.FormatBool(aws.ToBool(i.Public))},
			"image-type": {"machine"}, "ena-support": {strconv.FormatBool(aws.ToBool(i.EnaSupport))}, "boot-mode": {string(i.BootMode)}, "source-image-id": one(i.SourceImageId), "source-instance-id": one(i.SourceInstanceId), "hypervisor": {"xen"}}
		for _, m := range i.BlockDeviceMappings {
			if m.Ebs != nil {
				f["block-device-mapping.snapshot-id"] = append(f["block-device-mapping.snapshot-id"], aws.ToString(m.Ebs.SnapshotId))
			}
		}
		ok, err := r.fits(*i.ImageId, in.Filters, f)
		if err != nil {
			return nil, err
		}
		if !ok || !r.seen(*i.ImageId) || len(in.ImageIds) > 0 && !slices.Contains(in.ImageIds, *i.ImageId) || !owned(in.Owners, i.OwnerId) {
			continue
		}
		if i.State == ec2types.ImageStateDisabled && !aws.ToBool(in.IncludeDisabled) && len(in.ImageIds) == 0 {
			continue
		}
		// Its owner sees a deprecated image all the same.
		if d, err := time.Parse(time.RFC3339, aws.ToString(i.DeprecationTime)); err == nil && r.cloud.now().After(d) && *i.OwnerId != Account && !aws.ToBool(in.IncludeDeprecated) && len(in.ImageIds) == 0 {
			continue
		}
		show := i.Image
		show.Tags = r.tags[*i.ImageId]
		show.DeregistrationProtection = aws.String(i.protection(r.cloud.now()))
		out.Images = append(out.Images, show)
	}
	var err error
	out.Images, out.NextToken, err = page(out.Images, in.MaxResults, in.NextToken, 1000)
	return out, err
}

func (i *image) protection(now time.Time) string {
	switch {
	case i.protected && i.cooldown:
		return "enabled-with-cooldown"
	case i.protected:
		return "enabled-without-cooldown"
	case now.Before(i.until):
		return "disabled-with-cooldown"
	}
	return "disabled"
}

func (r *region) deregisterImage(in *ec2.DeregisterImageInput) (*ec2.DeregisterImageOutput, error) {
	i, err := r.findImage(in.ImageId)
	if err != nil {
		return nil, err
	}
	if *i.OwnerId != Account {
		return nil, &refusal{"AuthFailure", "Not authorized for image:" + *i.ImageId, http.StatusForbidden}
	}
	if i.protected || r.cloud.now().Before(i.until) {
		return nil, refuse("OperationNotPermitted", "The image %s is protected from deregistration", *i.ImageId)
	}
	r.images.del(*i.ImageId)
	delete(r.tags, *i.ImageId)
	out := &ec2.DeregisterImageOutput{Return: aws.Bool(true)}
	if aws.ToBool(in.DeleteAssociatedSnapshots) {
		for _, m := range i.BlockDeviceMappings {
			if m.Ebs == nil || m.Ebs.SnapshotId == nil {
				continue
			}
			code := ec2types.SnapshotReturnCodesSuccess
			if r.user(*m.Ebs.SnapshotId) != nil {
				code = ec2types.SnapshotReturnCodesWarnSkipped
			} else {
				r.snapshots.del(*m.Ebs.SnapshotId)
				delete(r.tags, *m.Ebs.SnapshotId)
			}
			out.DeleteSnapshotResults = append(out.DeleteSnapshotResults, ec2types.DeleteSnapshotReturnCode{SnapshotId: m.Ebs.SnapshotId, ReturnCode: code})
		}
	}
	return out, nil
}

func (r *region) enableImageDeprecation(in *ec2.EnableImageDeprecationInput) (*ec2.EnableImageDeprecationOutput, error) {
	i, err := r.findImage(in.ImageId)
	if err != nil {
		return nil, err
	}
	if in.DeprecateAt == nil || in.DeprecateAt.Before(r.cloud.now().Add(-time.Minute)) {
		return nil, refuse("InvalidParameterValue", "DeprecateAt is to be in the future")
	}
	i.DeprecationTime = aws.String(rfc(in.DeprecateAt.Truncate(time.Minute)))
	return &ec2.EnableImageDeprecationOutput{Return: aws.Bool(true)}, nil
}

func (r *region) disableImageDeprecation(in *ec2.DisableImageDeprecationInput) (*ec2.DisableImageDeprecationOutput, error) {
	i, err := r.findImage(in.ImageId)
	if err != nil {
		return nil, err
	}
	i.DeprecationTime = nil
	return &ec2.DisableImageDeprecationOutput{Return: aws.Bool(true)}, nil
}

func (r *region) disableImage(in *ec2.DisableImageInput) (*ec2.DisableImageOutput, error) {
	i, err := r.findImage(in.ImageId)
	if err != nil {
		return nil, err
	}
	if i.State != ec2types.ImageStateAvailable {
		return nil, refuse("IncorrectState", "The image %s is %s", *i.ImageId, i.State)
	}
	i.State, i.permissions = ec2types.ImageStateDisabled, nil
	return &ec2.DisableImageOutput{Return: aws.Bool(true)}, nil
}

func (r *region) enableImage(in *ec2.EnableImageInput) (*ec2.EnableImageOutput, error) {
	i, err := r.findImage(in.ImageId)
	if err != nil {
		return nil, err
	}
	i.State = ec2types.ImageStateAvailable
	return &ec2.EnableImageOutput{Return: aws.Bool(true)}, nil
}

func (r *region) enableImageDeregistrationProtection(in *ec2.EnableImageDeregistrationProtectionInput) (*ec2.EnableImageDeregistrationProtectionOutput, error) {
	i, err := r.findImage(in.ImageId)
	if err != nil {
		return nil, err
	}
	i.protected, i.cooldown = true, aws.ToBool(in.WithCooldown)
	return &ec2.EnableImageDeregistrationProtectionOutput{Return: aws.String(i.protection(r.cloud.now()))}, nil
}

func (r *region) disableImageDeregistrationProtection(in *ec2.DisableImageDeregistrationProtectionInput) (*ec2.DisableImageDeregistrationProtectionOutput, error) {
	i, err := r.findImage(in.ImageId)
	if err != nil {
		return nil, err
	}
	if i.protected && i.cooldown {
		i.until = r.cloud.now().Add(r.cloud.wall(r.cloud.Delays.Cooldown))
	}
	i.protected, i.cooldown = false, false
	return &ec2.DisableImageDeregistrationProtectionOutput{Return: aws.String(i.protection(r.cloud.now()))}, nil
}

func (r *region) modifyImageAttribute(in *ec2.ModifyImageAttributeInput) (*ec2.ModifyImageAttributeOutput, error) {
	i, err := r.findImage(in.ImageId)
	if err != nil {
		return nil, err
	}
	switch p := in.LaunchPermission; {
	case p != nil:
		for _, add := range p.Add {
			i.permissions = append(i.permissions, add)
			i.Public = aws.Bool(aws.ToBool(i.Public) || add.Group == ec2types.PermissionGroupAll)
		}
		for _, gone := range p.Remove {
			i.permissions = slices.DeleteFunc(slices.Clone(i.permissions), func(h ec2types.LaunchPermission) bool {
				return aws.ToString(h.UserId) == aws.ToString(gone.UserId) && h.Group == gone.Group && aws.ToString(h.OrganizationArn) == aws.ToString(gone.OrganizationArn) && aws.ToString(h.OrganizationalUnitArn) == aws.ToString(gone.OrganizationalUnitArn)
			})
		}
	case in.Description != nil:
		i.Description = in.Description.Value
	case in.ImdsSupport != nil:
		i.ImdsSupport = ec2types.ImdsSupportValues(aws.ToString(in.ImdsSupport.Value))
	}
	return &ec2.ModifyImageAttributeOutput{}, nil
}

func (r *region) describeImageAttribute(in *ec2.DescribeImageAttributeInput) (*ec2.DescribeImageAttributeOutput, error) {
	i, err := r.findImage(in.ImageId)
	if err != nil {
		return nil, err
	}
	out := &ec2.DescribeImageAttributeOutput{ImageId: i.ImageId}
	switch in.Attribute {
	case ec2types.ImageAttributeNameLaunchPermission:
		out.LaunchPermissions = i.permissions
	case ec2types.ImageAttributeNameDescription:
		out.Description = &ec2types.AttributeValue{Value: i.Description}
	case ec2types.ImageAttributeNameBootMode:
		out.BootMode = &ec2types.AttributeValue{Value: aws.String(string(i.BootMode))}
	case ec2types.ImageAttributeNameDeregistrationProtection:
		out.DeregistrationProtection = &ec2types.AttributeValue{Value: aws.String(i.protection(r.cloud.now()))}
	default:
		return nil, refuse("InvalidParameterValue", "the fake does not tell the attribute %s", in.Attribute)
	}
	return out, nil
}
