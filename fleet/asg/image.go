package asg

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/event"
)

// Prepare implements fleet.Preparer: the image has an AMI in the region, or gets
// one, before anything of a deployment is begun.
func (p *Pool) Prepare(ctx context.Context, spec fleet.Spec) error {
	if err := p.connect(ctx); err != nil {
		return err
	}
	_, err := p.image(ctx, spec.Image)
	if err == nil || !p.cfg.Publish || ctx.Err() != nil {
		return err
	}
	event.Infof(ctx, "%v: making it", err)
	cfg, err := p.config(ctx)
	if err != nil {
		return err
	}
	cloud := ami.CloudOf(cfg)
	a, ok := p.deps.Store.(artifact.Attacher)
	if !ok {
		return fmt.Errorf("the store %T cannot keep what is known of an image's AMI", p.deps.Store)
	}
	parents, err := ami.Parents(ctx, p.deps.Store, spec.Image, cloud.Region)
	if err != nil {
		return err
	}
	records, err := ami.Publish(ctx, cloud, p.deps.Store, spec.Image, ami.Options{Work: p.deps.Work, Parents: parents,
		Info: func(text string) { event.Infof(ctx, "%s", text) }})
	if err != nil {
		return fmt.Errorf("publish %s:%s: %w", spec.Image.Name, spec.Image.Version, err)
	}
	for _, r := range records {
		if err := ami.Keep(ctx, a, spec.Image, r); err != nil {
			return err
		}
	}
	_, err = p.image(ctx, spec.Image)
	return err
}

// image is the image's AMI in the region: one that is recorded with it, that can
// be launched, and that is tagged as this very image's.
func (p *Pool) image(ctx context.Context, img artifact.Image) (*ec2types.Image, error) {
	none := func(format string, a ...any) error {
		return fmt.Errorf("%s:%s has no AMI in %s that can be launched%s: `rebake ami publish %s:%s --region %s` makes one", img.Name, img.Version, p.region,
			fmt.Sprintf(format, a...), img.Name, img.Version, p.region)
	}
	a, ok := p.deps.Store.(artifact.Attacher)
	if !ok {
		return nil, fmt.Errorf("the store %T does not keep what is known of an image's AMIs", p.deps.Store)
	}
	records, err := ami.Records(ctx, a, img)
	if err != nil {
		return nil, fmt.Errorf("the AMIs of %s:%s: %w", img.Name, img.Version, err)
	}
	var ids []string
	for _, r := range records {
		if r.Region == p.region {
			ids = append(ids, r.AMI)
		}
	}
	if len(ids) == 0 {
		return nil, none("")
	}
	// By a filter: an id that is gone would be an error, and the others would not be told.
	out, err := p.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{Filters: []ec2Filter{{Name: aws.String("image-id"), Values: ids}}})
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", strings.Join(ids, ", "), err)
	}
	why := " (" + strings.Join(ids, ", ") + " is recorded, and gone)"
	for i := range out.Images {
		one := &out.Images[i]
		digest := ""
		for _, t := range one.Tags {
			if aws.ToString(t.Key) == TagDigest {
				digest = aws.ToString(t.Value)
			}
		}
		switch {
		case one.State != ec2types.ImageStateAvailable:
			why = fmt.Sprintf(" (%s is %s)", aws.ToString(one.ImageId), one.State)
		case digest != string(img.Digest):
			why = fmt.Sprintf(" (%s has the tag %s=%s, and the image is %s)", aws.ToString(one.ImageId), TagDigest, digest, img.Digest)
		default:
			return one, nil
		}
	}
	return nil, none("%s", why)
}

// template makes the group's launch template, or finds the one that a call before
// made. Its one version is what the group launches, ever.
// more are tags of it alone: key, value, and so on.
func (p *Pool) template(ctx context.Context, id fleet.GroupID, spec fleet.Spec, img *ec2types.Image, from *model, more ...string) (string, error) {
	name := groupName(id)
	data := new(ec2types.RequestLaunchTemplateData)
	if from != nil && from.data != nil {
		if err := recast(from.data, data); err != nil {
			return "", fmt.Errorf("copy launch template %s: %w", from.template, err)
		}
	}
	p.fill(data, id, spec, img)
	tags := []ec2types.Tag{}
	for k, v := range p.tags(id, spec) {
		tags = append(tags, ec2types.Tag{Key: aws.String(k), Value: aws.String(v)})
	}
	slices.SortFunc(tags, func(a, b ec2types.Tag) int { return strings.Compare(*a.Key, *b.Key) })
	for kv := range slices.Chunk(more, 2) {
		tags = append(tags, ec2types.Tag{Key: &kv[0], Value: &kv[1]})
	}
	_, err := p.ec2.CreateLaunchTemplate(ctx, &ec2.CreateLaunchTemplateInput{LaunchTemplateName: &name, LaunchTemplateData: data,
		ClientToken: aws.String(token("template", name)), VersionDescription: aws.String(spec.Image.Name + ":" + spec.Image.Version),
		TagSpecifications: []ec2types.TagSpecification{{ResourceType: ec2types.ResourceTypeLaunchTemplate, Tags: tags}}})
	switch code(err) {
	case "":
		if err != nil {
			return "", fmt.Errorf("make launch template %s: %w", name, err)
		}
	case "InvalidLaunchTemplateName.AlreadyExistsException", "IdempotentParameterMismatch": // a call before; of other settings only if the template was edited in between
	default:
		return "", fmt.Errorf("make launch template %s: %w", name, err)
	}
	return name, nil
}

// fill sets what the pool's configuration says over what was copied.
func (p *Pool) fill(data *ec2types.RequestLaunchTemplateData, id fleet.GroupID, spec fleet.Spec, img *ec2types.Image) {
	c := p.cfg.Instance
	data.ImageId = img.ImageId
	if len(c.Types) > 0 {
		data.InstanceType, data.InstanceRequirements = ec2types.InstanceType(c.Types[0]), nil
	}
	if len(c.SecurityGroups) > 0 {
		data.SecurityGroupIds = c.SecurityGroups
		for i := range data.NetworkInterfaces { // those of an interface go before
			data.NetworkInterfaces[i].Groups, data.SecurityGroupIds = c.SecurityGroups, nil
		}
	}
	if c.InstanceProfile != "" {
		data.IamInstanceProfile = &ec2types.LaunchTemplateIamInstanceProfileSpecificationRequest{}
		if strings.HasPrefix(c.InstanceProfile, "arn:") {
			data.IamInstanceProfile.Arn = &c.InstanceProfile
		} else {
			data.IamInstanceProfile.Name = &c.InstanceProfile
		}
	}
	if c.KeyName != "" {
		data.KeyName = &c.KeyName
	}
	if spec.UserData != "" {
		data.UserData = aws.String(base64.StdEncoding.EncodeToString([]byte(spec.UserData)))
	}
	if data.MetadataOptions == nil {
		data.MetadataOptions = &ec2types.LaunchTemplateInstanceMetadataOptionsRequest{}
	}
	data.MetadataOptions.HttpTokens = ec2types.LaunchTemplateHttpTokensStateRequired
	if c.HopLimit > 0 {
		data.MetadataOptions.HttpPutResponseHopLimit = aws.Int32(int32(c.HopLimit))
	}
	if v := c.Volume; v != (Volume{}) {
		data.BlockDeviceMappings = slices.DeleteFunc(data.BlockDeviceMappings, func(m ec2types.LaunchTemplateBlockDeviceMappingRequest) bool {
			return aws.ToString(m.DeviceName) == aws.ToString(img.RootDeviceName)
		})
		data.BlockDeviceMappings = append(data.BlockDeviceMappings, ec2types.LaunchTemplateBlockDeviceMappingRequest{DeviceName: img.RootDeviceName, Ebs: v.request()})
	}
	tags := p.tags(id, spec)
	var all []ec2types.Tag
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		all = append(all, ec2types.Tag{Key: aws.String(k), Value: aws.String(tags[k])})
	}
	kinds := []ec2types.ResourceType{ec2types.ResourceTypeVolume} // instances have the group's
	if p.inPlace {
		kinds = append(kinds, ec2types.ResourceTypeInstance)
	}
	data.TagSpecifications = slices.DeleteFunc(data.TagSpecifications, func(t ec2types.LaunchTemplateTagSpecificationRequest) bool {
		return slices.Contains(kinds, t.ResourceType)
	})
	for _, kind := range kinds {
		data.TagSpecifications = append(data.TagSpecifications, ec2types.LaunchTemplateTagSpecificationRequest{ResourceType: kind, Tags: all})
	}
}

func (v Volume) request() *ec2types.LaunchTemplateEbsBlockDeviceRequest {
	r := &ec2types.LaunchTemplateEbsBlockDeviceRequest{DeleteOnTermination: aws.Bool(true), VolumeType: ec2types.VolumeType(v.Type)}
	if v.Size > 0 {
		r.VolumeSize = aws.Int32(int32((int64(v.Size) + 1<<30 - 1) >> 30))
	}
	if v.IOPS > 0 {
		r.Iops = aws.Int32(int32(v.IOPS))
	}
	if v.Throughput > 0 {
		r.Throughput = aws.Int32(int32(v.Throughput))
	}
	if v.KMSKey != "" {
		r.Encrypted, r.KmsKeyId = aws.Bool(true), &v.KMSKey
	}
	return r
}

// recast makes of the settings that the API tells those that it takes: the types
// differ, their fields have the same names. A setting that would be lost is an error.
func recast(from *ec2types.ResponseLaunchTemplateData, to *ec2types.RequestLaunchTemplateData) error {
	data := *from
	data.Operator = nil // who manages it is not a setting
	if m := data.MetadataOptions; m != nil {
		copied := *m
		copied.State = "" // of a change that was pending
		data.MetadataOptions = &copied
	}
	b, err := json.Marshal(data)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, to); err != nil {
		return err
	}
	again, err := json.Marshal(to)
	if err != nil {
		return err
	}
	var was, is any
	if err := json.Unmarshal(b, &was); err != nil {
		return err
	}
	if err := json.Unmarshal(again, &is); err != nil {
		return err
	}
	if lost := differs("", was, is); lost != "" {
		return fmt.Errorf("setting%s is of a kind that this rebake cannot copy: leave launch_template out and give pool.asg.instance", lost)
	}
	return nil
}

// differs is the first setting of was that is not so in is. What is not set there is null, zero or empty.
func differs(at string, was, is any) string {
	switch w := was.(type) {
	case map[string]any:
		i, _ := is.(map[string]any)
		for _, k := range slices.Sorted(maps.Keys(w)) {
			if d := differs(at+" "+k, w[k], i[k]); d != "" {
				return d
			}
		}
		return ""
	case []any:
		i, _ := is.([]any)
		for n := range w {
			if n >= len(i) {
				return at
			}
			if d := differs(at, w[n], i[n]); d != "" {
				return d
			}
		}
		return ""
	}
	if was == nil || was == "" || reflect.DeepEqual(was, is) {
		return ""
	}
	return at
}

// orphans are groups of which there is only the launch template: a kill came
// before the group was made. It is asked for once, and again after a failure here.
func (p *Pool) orphans(ctx context.Context, name string, have []group) (out []fleet.Group, err error) {
	if p.looked.Load() {
		return nil, nil
	}
	pages := ec2.NewDescribeLaunchTemplatesPaginator(p.ec2, &ec2.DescribeLaunchTemplatesInput{Filters: []ec2Filter{{Name: aws.String("tag:" + TagFleet), Values: []string{name}}}})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list the launch templates of fleet %s: %w", name, err)
		}
		for _, t := range page.LaunchTemplates {
			tags := map[string]string{}
			for _, one := range t.Tags {
				tags[aws.ToString(one.Key)] = aws.ToString(one.Value)
			}
			id := fleet.GroupID{Fleet: tags[TagFleet], Slot: fleet.Slot(tags[TagSlot]), Deployment: tags[TagDeployment]}
			if id.Fleet == name && groupName(id) == aws.ToString(t.LaunchTemplateName) && !slices.ContainsFunc(have, func(g group) bool { return g.id == id }) {
				out = append(out, fleet.Group{ID: id, Image: artifact.Digest(tags[TagDigest])})
			}
		}
	}
	p.looked.Store(len(out) == 0)
	return out, nil
}

// unmake removes the group's launch template. One that is not there is no error.
func (p *Pool) unmake(ctx context.Context, id fleet.GroupID) error {
	name := groupName(id)
	out, err := p.ec2.DescribeLaunchTemplates(ctx, &ec2.DescribeLaunchTemplatesInput{Filters: []ec2Filter{{Name: aws.String("launch-template-name"), Values: []string{name}}}})
	if err != nil {
		return fmt.Errorf("look for launch template %s: %w", name, err)
	}
	for _, t := range out.LaunchTemplates {
		_, err := p.ec2.DeleteLaunchTemplate(ctx, &ec2.DeleteLaunchTemplateInput{LaunchTemplateId: t.LaunchTemplateId})
		if c := code(err); err != nil && !strings.Contains(c, "NotFound") && !strings.Contains(c, "DoesNotExist") {
			return fmt.Errorf("remove launch template %s: %w", name, err)
		}
	}
	return nil
}

// Logs is the end of an instance's console as EC2 kept it last.
func (p *Pool) Logs(ctx context.Context, instance string, n int) (string, error) {
	if !strings.HasPrefix(instance, "i-") {
		return "", fmt.Errorf("fleet %s has no instance %q: `rebake fleet status %s` lists them", p.name, instance, p.name)
	}
	if err := p.connect(ctx); err != nil {
		return "", err
	}
	out, err := p.ec2.GetConsoleOutput(ctx, &ec2.GetConsoleOutputInput{InstanceId: &instance})
	if err != nil {
		return "", fmt.Errorf("console of %s: %w", instance, err)
	}
	text, err := base64.StdEncoding.DecodeString(aws.ToString(out.Output))
	if err != nil {
		return "", fmt.Errorf("console of %s: %w", instance, err)
	}
	if t := out.Timestamp; t != nil && len(text) == 0 {
		return fmt.Sprintf("(nothing by %s)", t.Format(time.RFC3339)), nil
	}
	return string(text[max(0, len(text)-n):]), nil
}
