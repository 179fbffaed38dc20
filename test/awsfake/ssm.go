package awsfake

import (
	"slices"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	ssmtypes "github.com/aws/aws-sdk-go-v2/service/ssm/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

var ssmActions = map[string]action{
	"GetParameter": on((*region).getParameter), "PutParameter": on((*region).putParameter), "DescribeInstanceInformation": on((*region).describeInformation),
	"StartSession": on((*region).startSession), "TerminateSession": on((*region).terminateSession),
}

var stsActions = map[string]action{"GetCallerIdentity": on((*region).callerIdentity)}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

func (r *region) callerIdentity(*sts.GetCallerIdentityInput) (*sts.GetCallerIdentityOutput, error) {
	return &sts.GetCallerIdentityOutput{Account: aws.String(Account), Arn: aws.String("arn:aws:iam::" + Account + ":user/test"), UserId: aws.String("AIDATEST")}, nil
}

// SetParameter sets one of SSM's, as those that name the newest AMI of a system.
func (c *Cloud) SetParameter(regionName, name, value string) {
	c.in(regionName, func(r *region) { r.params[name] = value })
}

func (r *region) getParameter(in *ssm.GetParameterInput) (*ssm.GetParameterOutput, error) {
	v, ok := r.params[aws.ToString(in.Name)]
	if !ok {
		return nil, refuse("ParameterNotFound", "%s", aws.ToString(in.Name))
	}
	return &ssm.GetParameterOutput{Parameter: &ssmtypes.Parameter{Name: in.Name, Value: &v, Type: ssmtypes.ParameterTypeString, Version: 1, ARN: aws.String(r.arn("ssm", "parameter"+*in.Name))}}, nil
}

func (r *region) putParameter(in *ssm.PutParameterInput) (*ssm.PutParameterOutput, error) {
	if _, ok := r.params[aws.ToString(in.Name)]; ok && !aws.ToBool(in.Overwrite) {
		return nil, refuse("ParameterAlreadyExists", "The parameter already exists. To overwrite this value, set the overwrite option in the request to true.")
	}
	r.params[aws.ToString(in.Name)] = aws.ToString(in.Value)
	return &ssm.PutParameterOutput{Version: 1}, nil
}

// describeInformation says that the agent of every running instance is there, if it
// has an instance profile.
func (r *region) describeInformation(in *ssm.DescribeInstanceInformationInput) (*ssm.DescribeInstanceInformationOutput, error) {
	out := &ssm.DescribeInstanceInformationOutput{InstanceInformationList: []ssmtypes.InstanceInformation{}}
	for _, i := range r.instances.all() {
		if i.state() != ec2types.InstanceStateNameRunning || i.IamInstanceProfile == nil {
			continue
		}
		ok := true
		for _, f := range in.Filters {
			ok = ok && (aws.ToString(f.Key) != "InstanceIds" || slices.Contains(f.Values, *i.InstanceId))
		}
		if ok {
			out.InstanceInformationList = append(out.InstanceInformationList, ssmtypes.InstanceInformation{InstanceId: i.InstanceId, PingStatus: ssmtypes.PingStatusOnline, PlatformType: ssmtypes.PlatformTypeLinux, ResourceType: ssmtypes.ResourceTypeEc2Instance})
		}
	}
	return out, nil
}

func (r *region) startSession(in *ssm.StartSessionInput) (*ssm.StartSessionOutput, error) {
	i, ok := r.instances.get(aws.ToString(in.Target))
	if !ok || i.state() != ec2types.InstanceStateNameRunning {
		return nil, refuse("TargetNotConnected", "%s is not connected.", aws.ToString(in.Target))
	}
	id := r.cloud.id("test")
	return &ssm.StartSessionOutput{SessionId: &id, TokenValue: aws.String("token-of-" + id), StreamUrl: aws.String("wss://ssmmessages." + r.name + ".amazonaws.com/v1/data-channel/" + id)}, nil
}

func (r *region) terminateSession(in *ssm.TerminateSessionInput) (*ssm.TerminateSessionOutput, error) {
	return &ssm.TerminateSessionOutput{SessionId: in.SessionId}, nil
}
