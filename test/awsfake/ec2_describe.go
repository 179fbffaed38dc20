package awsfake

import (
	"encoding/base64"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

func decoded(b64 string) string {
	b, err := base64.StdEncoding.DecodeString(b64)
	if err != nil {
		return b64
	}
	return string(b)
}

func instanceFields(i *instance) map[string][]string {
	f := map[string][]string{"instance-id": one(i.InstanceId), "image-id": one(i.ImageId), "instance-type": {string(i.InstanceType)},
		"instance-state-name": {string(i.state())}, "vpc-id": one(i.VpcId), "subnet-id": one(i.SubnetId), "key-name": one(i.KeyName),
		"client-token": one(i.ClientToken), "private-ip-address": one(i.PrivateIpAddress), "ip-address": one(i.PublicIpAddress),
		"availability-zone": one(i.Placement.AvailabilityZone), "instance-lifecycle": {string(i.InstanceLifecycle)},
		"architecture": {string(i.Architecture)}, "root-device-name": one(i.RootDeviceName), "instance-state-code": {strconv.Itoa(int(*i.State.Code))}, "spot-instance-request-id": one(i.SpotInstanceRequestId)}
	for _, g := range i.SecurityGroups {
		f["instance.group-id"] = append(f["instance.group-id"], *g.GroupId)
		f["instance.group-name"] = append(f["instance.group-name"], *g.GroupName)
	}
	return f
}

func (r *region) describeInstances(in *ec2.DescribeInstancesInput) (*ec2.DescribeInstancesOutput, error) {
	list := r.instances.all()
	if len(in.InstanceIds) > 0 {
		if in.MaxResults != nil {
			return nil, refuse("InvalidParameterCombination", "The parameter instancesSet cannot be used with the parameter maxResults")
		}
		var err error
		if list, err = r.findAll(in.InstanceIds); err != nil {
			return nil, err
		}
	}
	var found []*instance
	for _, i := range list {
		ok, err := r.fits(*i.InstanceId, in.Filters, instanceFields(i))
		if err != nil {
			return nil, err
		}
		if ok && r.seen(*i.InstanceId) {
			found = append(found, i)
		}
	}
	part, next, err := page(found, in.MaxResults, in.NextToken, 1000)
	out := &ec2.DescribeInstancesOutput{NextToken: next, Reservations: []ec2types.Reservation{}}
	for _, i := range part {
		out.Reservations = append(out.Reservations, ec2types.Reservation{OwnerId: aws.String(Account), Instances: []ec2types.Instance{r.show(i)},
			ReservationId: aws.String("r-" + strings.TrimPrefix(*i.InstanceId, "i-"))})
	}
	return out, err
}

func (r *region) describeInstanceStatus(in *ec2.DescribeInstanceStatusInput) (*ec2.DescribeInstanceStatusOutput, error) {
	list := r.instances.all()
	if len(in.InstanceIds) > 0 {
		var err error
		if list, err = r.findAll(in.InstanceIds); err != nil {
			return nil, err
		}
	}
	out := &ec2.DescribeInstanceStatusOutput{InstanceStatuses: []ec2types.InstanceStatus{}}
	for _, i := range list {
		if i.state() != ec2types.InstanceStateNameRunning && !aws.ToBool(in.IncludeAllInstances) {
			continue
		}
		ok, err := r.fits(*i.InstanceId, in.Filters, instanceFields(i))
		if err != nil {
			return nil, err
		}
		if !ok || !r.seen(*i.InstanceId) {
			continue
		}
		status := &ec2types.InstanceStatusSummary{Status: "not-applicable"}
		if i.state() == ec2types.InstanceStateNameRunning {
			status.Status = "ok"
		}
		out.InstanceStatuses = append(out.InstanceStatuses, ec2types.InstanceStatus{InstanceId: i.InstanceId, AvailabilityZone: i.Placement.AvailabilityZone,
			InstanceState: i.State, InstanceStatus: status, SystemStatus: status})
	}
	var err error
	out.InstanceStatuses, out.NextToken, err = page(out.InstanceStatuses, in.MaxResults, in.NextToken, 1000)
	return out, err
}

func (r *region) describeInstanceAttribute(in *ec2.DescribeInstanceAttributeInput) (*ec2.DescribeInstanceAttributeOutput, error) {
	i, err := r.find(aws.ToString(in.InstanceId))
	if err != nil {
		return nil, err
	}
	out := &ec2.DescribeInstanceAttributeOutput{InstanceId: i.InstanceId}
	switch in.Attribute {
	case ec2types.InstanceAttributeNameUserData:
		out.UserData = &ec2types.AttributeValue{}
		if i.userData != "" {
			out.UserData.Value = &i.userData
		}
	case ec2types.InstanceAttributeNameDisableApiTermination:
		out.DisableApiTermination = &ec2types.AttributeBooleanValue{Value: aws.Bool(i.protected)}
	case ec2types.InstanceAttributeNameInstanceType:
		out.InstanceType = &ec2types.AttributeValue{Value: aws.String(string(i.InstanceType))}
	case ec2types.InstanceAttributeNameRootDeviceName:
		out.RootDeviceName = &ec2types.AttributeValue{Value: i.RootDeviceName}
	case ec2types.InstanceAttributeNameGroupSet:
		out.Groups = i.SecurityGroups
	case ec2types.InstanceAttributeNameBlockDeviceMapping:
		out.BlockDeviceMappings = i.BlockDeviceMappings
	case ec2types.InstanceAttributeNameEnaSupport:
		out.EnaSupport = &ec2types.AttributeBooleanValue{Value: i.EnaSupport}
	default:
		return nil, refuse("InvalidParameterValue", "the fake does not tell the attribute %s", in.Attribute)
	}
	return out, nil
}

func (r *region) modifyInstanceAttribute(in *ec2.ModifyInstanceAttributeInput) (*ec2.ModifyInstanceAttributeOutput, error) {
	i, err := r.find(aws.ToString(in.InstanceId))
	if err != nil {
		return nil, err
	}
	switch {
	case in.DisableApiTermination != nil:
		i.protected = aws.ToBool(in.DisableApiTermination.Value)
	case in.EnaSupport != nil:
		i.EnaSupport = in.EnaSupport.Value
	case in.UserData != nil:
		if i.state() != ec2types.InstanceStateNameStopped {
			return nil, refuse("IncorrectInstanceState", "The instance '%s' is not in the 'stopped' state.", *i.InstanceId)
		}
		i.userData = base64.StdEncoding.EncodeToString(in.UserData.Value)
	case in.InstanceType != nil:
		if i.state() != ec2types.InstanceStateNameStopped {
			return nil, refuse("IncorrectInstanceState", "The instance '%s' is not in the 'stopped' state.", *i.InstanceId)
		}
		i.InstanceType = ec2types.InstanceType(aws.ToString(in.InstanceType.Value))
	case in.Groups != nil:
		i.SecurityGroups = nil
		for _, id := range in.Groups {
			g, ok := r.groups.get(id)
			if !ok {
				return nil, refuse("InvalidGroup.NotFound", "The security group '%s' does not exist", id)
			}
			i.SecurityGroups = append(i.SecurityGroups, ec2types.GroupIdentifier{GroupId: g.GroupId, GroupName: g.GroupName})
		}
	case in.SriovNetSupport != nil:
		i.SriovNetSupport = in.SriovNetSupport.Value
	}
	return &ec2.ModifyInstanceAttributeOutput{}, nil
}

func (r *region) modifyInstanceMetadataOptions(in *ec2.ModifyInstanceMetadataOptionsInput) (*ec2.ModifyInstanceMetadataOptionsOutput, error) {
	i, err := r.find(aws.ToString(in.InstanceId))
	if err != nil {
		return nil, err
	}
	o := *i.MetadataOptions
	copyAs(&o, in)
	i.MetadataOptions = &o
	return &ec2.ModifyInstanceMetadataOptionsOutput{InstanceId: i.InstanceId, InstanceMetadataOptions: &o}, nil
}

func (r *region) getConsoleOutput(in *ec2.GetConsoleOutputInput) (*ec2.GetConsoleOutputOutput, error) {
	i, err := r.find(aws.ToString(in.InstanceId))
	if err != nil {
		return nil, err
	}
	return &ec2.GetConsoleOutputOutput{InstanceId: i.InstanceId, Timestamp: aws.Time(r.cloud.now()),
		Output: aws.String(base64.StdEncoding.EncodeToString([]byte("the console of " + *i.InstanceId + "\n")))}, nil
}

func (r *region) rebootInstances(in *ec2.RebootInstancesInput) (*ec2.RebootInstancesOutput, error) {
	_, err := r.findAll(in.InstanceIds)
	return &ec2.RebootInstancesOutput{}, err
}

// known are the instance types of the fake: vCPUs, MiB, architecture.
var known = []struct {
	name   ec2types.InstanceType
	cpus   int32
	memory int64
	arch   ec2types.ArchitectureType
}{{"t3.nano", 2, 512, "x86_64"}, {"t3.micro", 2, 1024, "x86_64"}, {"t3.small", 2, 2048, "x86_64"}, {"t3.medium", 2, 4096, "x86_64"},
	{"t3.large", 2, 8192, "x86_64"}, {"t4g.micro", 2, 1024, "arm64"}, {"t4g.small", 2, 2048, "arm64"}, {"m7i.large", 2, 8192, "x86_64"},
	{"m7i.xlarge", 4, 16384, "x86_64"}, {"m7g.large", 2, 8192, "arm64"}, {"c7i.large", 2, 4096, "x86_64"}, {"c7g.large", 2, 4096, "arm64"}}

func (r *region) describeInstanceTypes(in *ec2.DescribeInstanceTypesInput) (*ec2.DescribeInstanceTypesOutput, error) {
	out := &ec2.DescribeInstanceTypesOutput{InstanceTypes: []ec2types.InstanceTypeInfo{}}
	for _, k := range known {
		if len(in.InstanceTypes) > 0 && !slices.Contains(in.InstanceTypes, k.name) {
			continue
		}
		info := ec2types.InstanceTypeInfo{InstanceType: k.name, CurrentGeneration: aws.Bool(true), FreeTierEligible: aws.Bool(false),
			SupportedBootModes: []ec2types.BootModeType{"legacy-bios", "uefi"}, SupportedVirtualizationTypes: []ec2types.VirtualizationType{"hvm"},
			SupportedUsageClasses: []ec2types.UsageClassType{"on-demand", "spot"}, SupportedRootDeviceTypes: []ec2types.RootDeviceType{"ebs"}, Hypervisor: "nitro",
			ProcessorInfo: &ec2types.ProcessorInfo{SupportedArchitectures: []ec2types.ArchitectureType{k.arch}},
			VCpuInfo:      &ec2types.VCpuInfo{DefaultVCpus: aws.Int32(k.cpus)}, MemoryInfo: &ec2types.MemoryInfo{SizeInMiB: aws.Int64(k.memory)},
			EbsInfo: &ec2types.EbsInfo{EbsOptimizedSupport: "default", EncryptionSupport: "supported", NvmeSupport: "required"}, NetworkInfo: &ec2types.NetworkInfo{EnaSupport: "required", Ipv6Supported: aws.Bool(true)}}
		if k.arch == "arm64" {
			info.SupportedBootModes = []ec2types.BootModeType{"uefi"}
		}
		ok, err := r.fits("", in.Filters, map[string][]string{"instance-type": {string(k.name)}, "processor-info.supported-architecture": {string(k.arch)}, "current-generation": {"true"}})
		if err != nil {
			return nil, err
		}
		if ok {
			out.InstanceTypes = append(out.InstanceTypes, info)
		}
	}
	if len(in.InstanceTypes) > len(out.InstanceTypes) && len(in.Filters) == 0 {
		return nil, refuse("InvalidInstanceType", "The following supplied instance types do not exist: %v", in.InstanceTypes)
	}
	return out, nil
}

func (r *region) describeInstanceTypeOfferings(in *ec2.DescribeInstanceTypeOfferingsInput) (*ec2.DescribeInstanceTypeOfferingsOutput, error) {
	out := &ec2.DescribeInstanceTypeOfferingsOutput{InstanceTypeOfferings: []ec2types.InstanceTypeOffering{}}
	places := []string{r.name}
	if in.LocationType == ec2types.LocationTypeAvailabilityZone {
		places = r.zones()
	}
	for _, k := range known {
		for _, p := range places {
			ok, err := r.fits("", in.Filters, map[string][]string{"instance-type": {string(k.name)}, "location": {p}})
			if err != nil {
				return nil, err
			}
			if ok {
				out.InstanceTypeOfferings = append(out.InstanceTypeOfferings, ec2types.InstanceTypeOffering{InstanceType: k.name, Location: aws.String(p), LocationType: in.LocationType})
			}
		}
	}
	return out, nil
}

// spotted makes the spot request of an instance that is to be one.
func (r *region) spotted(i *instance, in *ec2.RunInstancesInput) {
	if in.InstanceMarketOptions == nil || in.InstanceMarketOptions.MarketType != ec2types.MarketTypeSpot {
		return
	}
	i.spot = r.new(r.cloud.id("sir"), ec2types.ResourceTypeSpotInstancesRequest, in.TagSpecifications)
	i.InstanceLifecycle, i.SpotInstanceRequestId = ec2types.InstanceLifecycleTypeSpot, &i.spot
	r.spots.put(i.spot, &ec2types.SpotInstanceRequest{SpotInstanceRequestId: &i.spot, InstanceId: i.InstanceId, State: ec2types.SpotInstanceStateActive,
		Type: ec2types.SpotInstanceTypeOneTime, Status: &ec2types.SpotInstanceStatus{Code: aws.String("fulfilled")}, CreateTime: aws.Time(r.cloud.now())})
}

func (r *region) describeSpotInstanceRequests(in *ec2.DescribeSpotInstanceRequestsInput) (*ec2.DescribeSpotInstanceRequestsOutput, error) {
	out := &ec2.DescribeSpotInstanceRequestsOutput{SpotInstanceRequests: []ec2types.SpotInstanceRequest{}}
	for _, s := range r.spots.all() {
		ok, err := r.fits(*s.SpotInstanceRequestId, in.Filters, map[string][]string{"spot-instance-request-id": one(s.SpotInstanceRequestId), "state": {string(s.State)}, "instance-id": one(s.InstanceId)})
		if err != nil {
			return nil, err
		}
		if ok && (len(in.SpotInstanceRequestIds) == 0 || slices.Contains(in.SpotInstanceRequestIds, *s.SpotInstanceRequestId)) {
			show := *s
			show.Tags = r.tags[*s.SpotInstanceRequestId]
			out.SpotInstanceRequests = append(out.SpotInstanceRequests, show)
		}
	}
	return out, nil
}

func (r *region) cancelSpotInstanceRequests(in *ec2.CancelSpotInstanceRequestsInput) (*ec2.CancelSpotInstanceRequestsOutput, error) {
	out := &ec2.CancelSpotInstanceRequestsOutput{}
	for _, id := range in.SpotInstanceRequestIds {
		s, ok := r.spots.get(id)
		if !ok {
			return nil, &refusal{"InvalidSpotInstanceRequestID.NotFound", "The spot instance request ID '" + id + "' does not exist", http.StatusBadRequest}
		}
		s.State = ec2types.SpotInstanceStateCancelled
		out.CancelledSpotInstanceRequests = append(out.CancelledSpotInstanceRequests, ec2types.CancelledSpotInstanceRequest{SpotInstanceRequestId: s.SpotInstanceRequestId, State: "cancelled"})
	}
	return out, nil
}
