package awsfake

import (
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

var ec2Actions = map[string]action{
	"RunInstances": on((*region).runInstances), "DescribeInstances": on((*region).describeInstances), "DescribeInstanceStatus": on((*region).describeInstanceStatus),
	"StopInstances": on((*region).stopInstances), "StartInstances": on((*region).startInstances), "RebootInstances": on((*region).rebootInstances),
	"TerminateInstances": on((*region).terminateInstances), "DescribeInstanceAttribute": on((*region).describeInstanceAttribute),
	"ModifyInstanceAttribute": on((*region).modifyInstanceAttribute), "ModifyInstanceMetadataOptions": on((*region).modifyInstanceMetadataOptions),
	"GetConsoleOutput": on((*region).getConsoleOutput), "DescribeInstanceTypes": on((*region).describeInstanceTypes),
	"DescribeInstanceTypeOfferings": on((*region).describeInstanceTypeOfferings),
	"DescribeSpotInstanceRequests":  on((*region).describeSpotInstanceRequests), "CancelSpotInstanceRequests": on((*region).cancelSpotInstanceRequests),

	"CreateVolume": on((*region).createVolume), "DeleteVolume": on((*region).deleteVolume), "DescribeVolumes": on((*region).describeVolumes),
	"CreateSnapshot": on((*region).createSnapshot), "CreateSnapshots": on((*region).createSnapshots), "DescribeSnapshots": on((*region).describeSnapshots),
	"DeleteSnapshot": on((*region).deleteSnapshot), "CopySnapshot": on((*region).copySnapshot),

	"RegisterImage": on((*region).registerImage), "CreateImage": on((*region).createImage), "CopyImage": on((*region).copyImage),
	"DescribeImages": on((*region).describeImages), "DeregisterImage": on((*region).deregisterImage),
	"EnableImageDeprecation": on((*region).enableImageDeprecation), "DisableImageDeprecation": on((*region).disableImageDeprecation),
	"EnableImage": on((*region).enableImage), "DisableImage": on((*region).disableImage),
	"EnableImageDeregistrationProtection":  on((*region).enableImageDeregistrationProtection),
	"DisableImageDeregistrationProtection": on((*region).disableImageDeregistrationProtection),
	"ModifyImageAttribute":                 on((*region).modifyImageAttribute), "DescribeImageAttribute": on((*region).describeImageAttribute),

	"ImportKeyPair": on((*region).importKeyPair), "CreateKeyPair": on((*region).createKeyPair), "DeleteKeyPair": on((*region).deleteKeyPair), "DescribeKeyPairs": on((*region).describeKeyPairs),
	"CreateSecurityGroup": on((*region).createSecurityGroup), "DeleteSecurityGroup": on((*region).deleteSecurityGroup), "DescribeSecurityGroups": on((*region).describeSecurityGroups),
	"AuthorizeSecurityGroupIngress": on((*region).authorizeSecurityGroupIngress), "RevokeSecurityGroupIngress": on((*region).revokeSecurityGroupIngress),
	"DescribeVpcs": on((*region).describeVpcs), "DescribeSubnets": on((*region).describeSubnets), "DescribeAvailabilityZones": on((*region).describeAvailabilityZones), "DescribeRegions": on((*region).describeRegions),

	"CreateTags": on((*region).createTags), "DeleteTags": on((*region).deleteTags), "DescribeTags": on((*region).describeTags),

	"CreateLaunchTemplate": on((*region).createLaunchTemplate), "CreateLaunchTemplateVersion": on((*region).createLaunchTemplateVersion),
	"DescribeLaunchTemplates": on((*region).describeLaunchTemplates), "DescribeLaunchTemplateVersions": on((*region).describeLaunchTemplateVersions),
	"ModifyLaunchTemplate": on((*region).modifyLaunchTemplate), "DeleteLaunchTemplate": on((*region).deleteLaunchTemplate), "DeleteLaunchTemplateVersions": on((*region).deleteLaunchTemplateVersions),
}

// kinds of what can be tagged, by the prefix of its id.
var kinds = map[string]ec2types.ResourceType{"i": "instance", "vol": "volume", "snap": "snapshot", "ami": "image", "key": "key-pair", "sg": "security-group", "sgr": "security-group-rule",
	"vpc": "vpc", "subnet": "subnet", "lt": "launch-template", "sir": "spot-instances-request", "eni": "network-interface"}

// exists refuses the id of a resource that is not there or not seen yet.
func (r *region) exists(id string) error {
	prefix, _, _ := strings.Cut(id, "-")
	var err error
	switch prefix {
	case "i":
		_, err = r.find(id)
	case "vol":
		_, err = r.findVolume(id)
	case "snap":
		_, err = r.findSnapshot(id)
	case "ami":
		_, err = r.findImage(&id)
	case "sg":
		_, err = r.securityGroup(id)
	case "lt":
		_, err = r.template(&id, nil)
	default:
		if kinds[prefix] == "" {
			err = refuse("InvalidID", "The ID '%s' is not valid", id)
		}
	}
	return err
}

func (r *region) createTags(in *ec2.CreateTagsInput) (*ec2.CreateTagsOutput, error) {
	for _, id := range in.Resources {
		if err := r.exists(id); err != nil {
			return nil, err
		}
	}
	for _, t := range in.Tags {
		if strings.HasPrefix(aws.ToString(t.Key), "aws:") {
			return nil, refuse("InvalidParameterValue", "Tag keys starting with 'aws:' are reserved for internal use")
		}
	}
	for _, id := range in.Resources {
		r.tag(id, in.Tags)
		if len(r.tags[id]) > 50 {
			return nil, refuse("TagLimitExceeded", "The maximum number of Tags for a resource has been reached.")
		}
	}
	return &ec2.CreateTagsOutput{}, nil
}

func (r *region) deleteTags(in *ec2.DeleteTagsInput) (*ec2.DeleteTagsOutput, error) {
	for _, id := range in.Resources {
		r.tags[id] = slices.DeleteFunc(slices.Clone(r.tags[id]), func(h ec2types.Tag) bool {
			return len(in.Tags) == 0 || slices.ContainsFunc(in.Tags, func(t ec2types.Tag) bool { return *t.Key == *h.Key && (t.Value == nil || *t.Value == *h.Value) })
		})
	}
	return &ec2.DeleteTagsOutput{}, nil
}

func (r *region) describeTags(in *ec2.DescribeTagsInput) (*ec2.DescribeTagsOutput, error) {
	var ids []string
	for id := range r.tags {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	out := &ec2.DescribeTagsOutput{Tags: []ec2types.TagDescription{}}
	for _, id := range ids {
		if !r.seen(id) {
			continue
		}
		prefix, _, _ := strings.Cut(id, "-")
		for _, t := range r.tags[id] {
			f := map[string][]string{"resource-id": {id}, "resource-type": {string(kinds[prefix])}, "key": {*t.Key}, "value": {*t.Value}}
			ok, err := r.fits(id, in.Filters, f)
			if err != nil {
				return nil, err
			}
			if ok {
				out.Tags = append(out.Tags, ec2types.TagDescription{ResourceId: aws.String(id), ResourceType: kinds[prefix], Key: t.Key, Value: t.Value})
			}
		}
	}
	var err error
	out.Tags, out.NextToken, err = page(out.Tags, in.MaxResults, in.NextToken, 1000)
	return out, err
}
