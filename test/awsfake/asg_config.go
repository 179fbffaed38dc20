package awsfake

import (
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	asgtypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// Launch configurations are what came before launch templates: a group may still have one.

func (r *region) createConfig(in *autoscaling.CreateLaunchConfigurationInput) (*autoscaling.CreateLaunchConfigurationOutput, error) {
	name := aws.ToString(in.LaunchConfigurationName)
	if _, ok := r.configs.get(name); ok {
		return nil, refuse("AlreadyExists", "Launch Configuration by this name already exists - A launch configuration already exists with the name %s", name)
	}
	if _, ok := r.images.get(aws.ToString(in.ImageId)); !ok {
		return nil, refuse("ValidationError", "AMI cannot be described: The image id '[%s]' does not exist", aws.ToString(in.ImageId))
	}
	c := &asgtypes.LaunchConfiguration{CreatedTime: aws.Time(r.cloud.now().UTC()), LaunchConfigurationARN: aws.String(r.arn("autoscaling", "launchConfiguration:"+r.cloud.elbID()+":launchConfigurationName/"+name))}
	copyAs(c, in)
	r.configs.put(name, c)
	return &autoscaling.CreateLaunchConfigurationOutput{}, nil
}

func (r *region) deleteConfig(in *autoscaling.DeleteLaunchConfigurationInput) (*autoscaling.DeleteLaunchConfigurationOutput, error) {
	name := aws.ToString(in.LaunchConfigurationName)
	if _, ok := r.configs.get(name); !ok {
		return nil, refuse("ValidationError", "Launch configuration name not found - Launch configuration %s not found", name)
	}
	for _, g := range r.asgs.all() {
		if aws.ToString(g.LaunchConfigurationName) == name {
			return nil, refuse("ResourceInUse", "Cannot delete launch configuration %s because it is attached to AutoScalingGroup %s", name, *g.AutoScalingGroupName)
		}
	}
	r.configs.del(name)
	return &autoscaling.DeleteLaunchConfigurationOutput{}, nil
}

func (r *region) describeConfigs(in *autoscaling.DescribeLaunchConfigurationsInput) (*autoscaling.DescribeLaunchConfigurationsOutput, error) {
	out := &autoscaling.DescribeLaunchConfigurationsOutput{LaunchConfigurations: []asgtypes.LaunchConfiguration{}}
	for _, c := range r.configs.all() {
		if len(in.LaunchConfigurationNames) == 0 || slices.Contains(in.LaunchConfigurationNames, *c.LaunchConfigurationName) {
			out.LaunchConfigurations = append(out.LaunchConfigurations, *c)
		}
	}
	var err error
	out.LaunchConfigurations, out.NextToken, err = page(out.LaunchConfigurations, in.MaxRecords, in.NextToken, 100)
	return out, err
}

// configured is a launch by a launch configuration.
func configured(c *asgtypes.LaunchConfiguration) *ec2.RunInstancesInput {
	in := &ec2.RunInstancesInput{ImageId: c.ImageId, InstanceType: ec2types.InstanceType(aws.ToString(c.InstanceType)), UserData: c.UserData, SecurityGroupIds: c.SecurityGroups}
	if aws.ToString(c.KeyName) != "" {
		in.KeyName = c.KeyName
	}
	if c.IamInstanceProfile != nil {
		in.IamInstanceProfile = &ec2types.IamInstanceProfileSpecification{Name: c.IamInstanceProfile}
	}
	copyAs(in, &struct{ BlockDeviceMappings []asgtypes.BlockDeviceMapping }{c.BlockDeviceMappings})
	return in
}

func (r *region) putScheduledMany(in *autoscaling.BatchPutScheduledUpdateGroupActionInput) (*autoscaling.BatchPutScheduledUpdateGroupActionOutput, error) {
	if _, err := r.group(in.AutoScalingGroupName); err != nil {
		return nil, err
	}
	out := &autoscaling.BatchPutScheduledUpdateGroupActionOutput{FailedScheduledUpdateGroupActions: []asgtypes.FailedScheduledUpdateGroupActionRequest{}}
	for _, a := range in.ScheduledUpdateGroupActions {
		each := &autoscaling.PutScheduledUpdateGroupActionInput{AutoScalingGroupName: in.AutoScalingGroupName}
		copyAs(each, &a)
		if _, err := r.putScheduled(each); err != nil {
			out.FailedScheduledUpdateGroupActions = append(out.FailedScheduledUpdateGroupActions, asgtypes.FailedScheduledUpdateGroupActionRequest{ScheduledActionName: a.ScheduledActionName, ErrorCode: aws.String("ValidationError"), ErrorMessage: aws.String(err.Error())})
		}
	}
	return out, nil
}
