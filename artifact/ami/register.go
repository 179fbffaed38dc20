package ami

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	"github.com/rebake/rebake/artifact"
)

// isCode tells whether an API refused with this code.
func isCode(err error, code string) bool {
	var api smithy.APIError
	return errors.As(err, &api) && api.ErrorCode() == code
}

// image finds the image's AMI by its name, which no other image has.
func (c *Cloud) image(ctx context.Context, img artifact.Image) (*types.Image, error) {
	out, err := c.EC2.DescribeImages(ctx, &ec2.DescribeImagesInput{Owners: []string{"self"}, IncludeDeprecated: aws.Bool(true), IncludeDisabled: aws.Bool(true),
		Filters: []types.Filter{{Name: aws.String("name"), Values: []string{Name(img)}}}})
	if err != nil {
		return nil, fmt.Errorf("look for the AMI: %w", c.asked("ec2:DescribeImages", err))
	}
	for _, i := range out.Images {
		switch {
		case i.State == types.ImageStateDeregistered:
		case i.State == types.ImageStateFailed || i.State == types.ImageStateError || i.State == types.ImageStateInvalid:
		case tagOf(i.Tags, TagDigest) != string(img.Digest) && len(i.Tags) > 0: // settle sets those that are not there yet
			return nil, fmt.Errorf("%s in %s has the name %s and not the tag %s=%s: somebody else made or changed it; rename or deregister it",
				aws.ToString(i.ImageId), c.Region, Name(img), TagDigest, img.Digest)
		case i.State == types.ImageStateDisabled:
			return nil, fmt.Errorf("%s in %s is disabled: `rebake ami restore %s:%s` enables it", aws.ToString(i.ImageId), c.Region, img.Name, img.Version)
		default:
			return &i, nil
		}
	}
	return nil, nil
}

func tagOf(tags []types.Tag, key string) string {
	for _, t := range tags {
		if aws.ToString(t.Key) == key {
			return aws.ToString(t.Value)
		}
	}
	return ""
}

func rootSnapshot(i *types.Image) string {
	for _, m := range i.BlockDeviceMappings {
		if m.Ebs != nil && aws.ToString(m.DeviceName) == aws.ToString(i.RootDeviceName) {
			return aws.ToString(m.Ebs.SnapshotId)
		}
	}
	return ""
}

func created(i *types.Image) time.Time {
	t, err := time.Parse(time.RFC3339, aws.ToString(i.CreationDate))
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

// rootDevice is what the root volume is called; the guest does not see this name.
const rootDevice = "/dev/xvda"

// register makes the AMI. RegisterImage has no client token: that a name is taken
// says that another try was there first.
func (c *Cloud) register(ctx context.Context, img artifact.Image, snapshot string, o Options) (string, time.Time, error) {
	in := &ec2.RegisterImageInput{
		Name: aws.String(Name(img)), Description: aws.String("rebake " + img.Name + ":" + img.Version),
		Architecture: types.ArchitectureValuesX8664, BootMode: types.BootModeValuesLegacyBios,
		RootDeviceName: aws.String(rootDevice), VirtualizationType: aws.String("hvm"),
		EnaSupport: aws.Bool(true), ImdsSupport: types.ImdsSupportValuesV20,
		BlockDeviceMappings: []types.BlockDeviceMapping{{DeviceName: aws.String(rootDevice), Ebs: &types.EbsBlockDevice{
			SnapshotId: &snapshot, DeleteOnTermination: aws.Bool(true), VolumeType: types.VolumeType(orElse(o.VolumeType, "gp3")),
		}}},
		TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeImage, Tags: tagList(o.tags(img))}},
	}
	if img.Arch == "arm64" {
		in.Architecture = types.ArchitectureValuesArm64
	}
	if img.Firmware == "uefi" || img.Arch == "arm64" {
		in.BootMode = types.BootModeValuesUefi
	}
	if o.BootMode != "" {
		in.BootMode = types.BootModeValues(o.BootMode)
	}
	out, err := c.EC2.RegisterImage(ctx, in)
	if isCode(err, "InvalidAMIName.Duplicate") {
		found, ferr := c.image(ctx, img)
		if ferr != nil || found == nil {
			return "", time.Time{}, errors.Join(err, ferr)
		}
		return aws.ToString(found.ImageId), created(found), nil
	}
	if err != nil {
		return "", time.Time{}, err
	}
	return aws.ToString(out.ImageId), time.Now().UTC().Truncate(time.Second), nil
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func tagList(tags map[string]string) []types.Tag {
	var out []types.Tag
	for k, v := range tags {
		out = append(out, types.Tag{Key: aws.String(k), Value: aws.String(v)})
	}
	slices.SortFunc(out, func(a, b types.Tag) int { return strings.Compare(*a.Key, *b.Key) })
	return out
}

// settle waits until the AMI can be launched, gives it what the options say, and
// returns it as it was before that.
// Each call sets, none adds: doing it again changes nothing.
func (c *Cloud) settle(ctx context.Context, id string, img artifact.Image, o Options) (*types.Image, error) {
	i, err := c.available(ctx, id, o)
	if err != nil {
		return nil, err
	}
	ids := []string{id}
	if s := rootSnapshot(i); s != "" {
		ids = append(ids, s) // a copy's may have none yet
	}
	if _, err := c.EC2.CreateTags(ctx, &ec2.CreateTagsInput{Resources: ids, Tags: tagList(o.tags(img))}); err != nil {
		return i, fmt.Errorf("tag %s: %w", strings.Join(ids, " and "), err)
	}
	if len(o.Users) > 0 {
		var add []types.LaunchPermission
		for _, u := range o.Users {
			add = append(add, permission(u))
		}
		if _, err := c.EC2.ModifyImageAttribute(ctx, &ec2.ModifyImageAttributeInput{ImageId: &id,
			LaunchPermission: &types.LaunchPermissionModifications{Add: add}}); err != nil {
			return i, fmt.Errorf("let %s launch %s: %w", strings.Join(o.Users, ", "), id, err)
		}
	}
	if o.Deprecate > 0 {
		at, soon := created(i).Add(o.Deprecate), time.Now().Add(deprecateIn)
		switch {
		case created(i).IsZero():
			at = time.Now().Add(o.Deprecate)
		case at.Before(soon): // EC2 takes no time that is past
			at = soon
		}
		if _, err := c.EC2.EnableImageDeprecation(ctx, &ec2.EnableImageDeprecationInput{ImageId: &id,
			DeprecateAt: aws.Time(at.UTC().Truncate(time.Minute))}); err != nil {
			return i, fmt.Errorf("deprecate %s: %w", id, err)
		}
	}
	if o.Protect {
		if _, err := c.EC2.EnableImageDeregistrationProtection(ctx, &ec2.EnableImageDeregistrationProtectionInput{ImageId: &id}); err != nil {
			return i, fmt.Errorf("protect %s: %w", id, err)
		}
	}
	return i, nil
}

// permission is of an account, an organisation or a unit of one.
func permission(who string) types.LaunchPermission {
	switch {
	case strings.HasPrefix(who, "arn:") && strings.Contains(who, ":organization/"):
		return types.LaunchPermission{OrganizationArn: aws.String(who)}
	case strings.HasPrefix(who, "arn:"):
		return types.LaunchPermission{OrganizationalUnitArn: aws.String(who)}
	}
	return types.LaunchPermission{UserId: aws.String(who)}
}

// Awaiting says how an AMI is waited for.
type Awaiting struct {
	Seen    time.Duration        // for how long what was just made need not be found
	Between func() time.Duration // until the next look
	Info    func(text string)    // told once if it is not there at once
}

// Await waits until an AMI can be launched, and returns it; with an error, as it
// was seen last. One that is not found for longer than Seen is gone.
func Await(ctx context.Context, c *ec2.Client, region, id string, a Awaiting) (types.Image, error) {
	var last types.Image
	waits := false
	for found := time.Now(); ; { // when it was found last
		out, err := c.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{id}})
		missing := isCode(err, "InvalidAMIID.NotFound") || err == nil && len(out.Images) == 0
		switch {
		case missing && time.Since(found) > a.Seen:
			return last, errors.Join(fmt.Errorf("wait for %s in %s: it is not there", id, region), err)
		case missing:
		case err != nil:
			return last, fmt.Errorf("wait for %s: %w", id, err)
		default:
			last, found = out.Images[0], time.Now()
			switch last.State {
			case types.ImageStateAvailable:
				return last, nil
			case types.ImageStatePending, types.ImageStateTransient:
			default:
				why := ""
				if last.StateReason != nil {
					why = ": " + aws.ToString(last.StateReason.Message)
				}
				return last, fmt.Errorf("%s in %s is %s%s; deregister it and make it again", id, region, last.State, why)
			}
		}
		if !waits {
			a.Info(fmt.Sprintf("waiting for %s in %s", id, region))
			waits = true
		}
		if err := pause(ctx, a.Between()); err != nil {
			return last, err
		}
	}
}

// available waits until the AMI can be launched, and returns it.
func (c *Cloud) available(ctx context.Context, id string, o Options) (*types.Image, error) {
	asked := -1
	i, err := Await(ctx, c.EC2, c.Region, id, Awaiting{Seen: cmp.Or(o.seen, 90*time.Second), Info: o.Info,
		Between: func() time.Duration { asked++; return o.between(asked) }})
	if err != nil {
		return nil, err
	}
	return &i, nil
}

// copyFrom makes a copy of another region's AMI in c's.
func (c *Cloud) copyFrom(ctx context.Context, region string, of Record, img artifact.Image, o Options) (Record, error) {
	r := Record{Region: c.Region, Name: of.Name, Content: of.Content, KMSKey: o.CopyKMSKeys[c.Region], From: of.AMI}
	found, err := c.image(ctx, img)
	if err != nil {
		return r, err
	}
	if found == nil {
		tags := tagList(o.tags(img))
		in := &ec2.CopyImageInput{Name: &r.Name, SourceImageId: &of.AMI, SourceRegion: &region,
			Description: aws.String("rebake " + img.Name + ":" + img.Version),
			ClientToken: aws.String(token("copy", region, c.Region, of.AMI, r.KMSKey)),
			TagSpecifications: []types.TagSpecification{
				{ResourceType: types.ResourceTypeImage, Tags: tags}, {ResourceType: types.ResourceTypeSnapshot, Tags: tags}}}
		if r.KMSKey != "" {
			in.Encrypted, in.KmsKeyId = aws.Bool(true), &r.KMSKey
		}
		out, err := c.EC2.CopyImage(ctx, in)
		if err != nil {
			return r, err
		}
		r.AMI = aws.ToString(out.ImageId)
	} else {
		r.AMI = aws.ToString(found.ImageId)
	}
	made, err := c.settle(ctx, r.AMI, img, o)
	if err != nil {
		return r, err
	}
	r.Account, r.Snapshot, r.Time = aws.ToString(made.OwnerId), rootSnapshot(made), created(made)
	return r, nil
}
