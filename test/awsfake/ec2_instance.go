package awsfake

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// Instance is what the cloud's hooks are told of an instance.
type Instance struct {
	ID, Region, Zone, Image, Type string
	IP                            string // 127.x.y.z, its own: a backend may listen there
	UserData                      string // as the guest reads it, decoded
	Key                           string // name of its key pair
	Tags                          map[string]string
	Template, Version             string // launch template id and version, or ""
	Group                         string // Auto Scaling group, or ""
}

// instance is one of EC2 and what answers for it.
type instance struct {
	ec2types.Instance
	userData          string // base64, as it came
	template, version string
	group             string
	addr              string
	stop              func()
	serving           bool // addr, or the cloud itself, answers
	protected         bool // against termination by the API
	run               int  // how often it was started: what began before means nothing now
	spot              string
	shutdown          string
}

func (i *instance) state() ec2types.InstanceStateName { return i.State.Name }

var stateCodes = map[ec2types.InstanceStateName]int32{"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}

func (i *instance) become(s ec2types.InstanceStateName) {
	i.State = &ec2types.InstanceState{Name: s, Code: aws.Int32(stateCodes[s])}
}

func (r *region) public(i *instance) Instance {
	p := Instance{ID: *i.InstanceId, Region: r.name, Zone: aws.ToString(i.Placement.AvailabilityZone), Image: aws.ToString(i.ImageId), Type: string(i.InstanceType),
		IP: aws.ToString(i.PrivateIpAddress), UserData: decoded(i.userData), Key: aws.ToString(i.KeyName), Tags: map[string]string{},
		Template: i.template, Version: i.version, Group: i.group}
	for _, t := range r.tags[p.ID] {
		p.Tags[*t.Key] = *t.Value
	}
	return p
}

var hosts atomic.Uint32

// host gives out addresses of 127/8: never one twice in a process, and other
// processes are not likely to use it.
func host() string {
	n := hosts.Add(1)
	return fmt.Sprintf("127.%d.%d.%d", 16+(os.Getpid()+int(n/62500))%200, 1+n/250%250, 1+n%250)
}

// launched is what runInstances needs to know of a launch, from wherever it comes.
type launch struct {
	in    *ec2.RunInstancesInput
	zone  string // wanted, or ""
	group string
	tags  []ec2types.Tag // besides those of the request
	count int
}

func (r *region) runInstances(in *ec2.RunInstancesInput) (*ec2.RunInstancesOutput, error) {
	if aws.ToInt32(in.MinCount) < 1 || aws.ToInt32(in.MaxCount) < aws.ToInt32(in.MinCount) {
		return nil, refuse("InvalidParameterCombination", "MinCount and MaxCount are to be at least 1 and in order")
	}
	return once(r, "RunInstances", in.ClientToken, in, "IdempotentParameterMismatch", func() (*ec2.RunInstancesOutput, error) {
		made, err := r.launch(launch{in: in, count: int(*in.MaxCount)})
		if err != nil {
			return nil, err
		}
		out := &ec2.RunInstancesOutput{ReservationId: aws.String(r.cloud.id("r")), OwnerId: aws.String(Account)}
		for _, i := range made {
			out.Instances = append(out.Instances, r.show(i))
		}
		return out, nil
	})
}

// launch starts instances, all or none.
func (r *region) launch(l launch) ([]*instance, error) {
	in, template, version, err := r.resolved(l.in)
	if err != nil {
		return nil, err
	}
	img, ok := r.images.get(aws.ToString(in.ImageId))
	if aws.ToString(in.ImageId) == "" {
		return nil, refuse("MissingParameter", "The request must contain the parameter ImageId")
	}
	if !ok {
		return nil, refuse("InvalidAMIID.NotFound", "The image id '[%s]' does not exist", *in.ImageId)
	}
	if img.State != ec2types.ImageStateAvailable {
		return nil, refuse("InvalidAMIID.Unavailable", "The image ID '%s' is %s", *in.ImageId, img.State)
	}
	if in.KeyName != nil {
		if _, ok := r.keys.get(*in.KeyName); !ok {
			return nil, refuse("InvalidKeyPair.NotFound", "The key pair '%s' does not exist", *in.KeyName)
		}
	}
	subnet, groups, public, err := r.placed(in, l.zone)
	if err != nil {
		return nil, err
	}
	if in.InstanceType == "" {
		in.InstanceType = "m1.small"
	}
	if r.cloud.Capacity != nil {
		if lack := r.cloud.Capacity(*subnet.AvailabilityZone, string(in.InstanceType)); lack != "" {
			return nil, &refusal{"InsufficientInstanceCapacity", lack, http.StatusInternalServerError}
		}
	}
	var made []*instance
	for n := range l.count {
		i := r.boot(in, img, subnet, groups, public, n)
		i.template, i.version, i.group = template, version, l.group
		if template != "" {
			l.tags = append(slices.Clone(l.tags), ec2types.Tag{Key: aws.String("aws:ec2launchtemplate:id"), Value: &template},
				ec2types.Tag{Key: aws.String("aws:ec2launchtemplate:version"), Value: &version})
		}
		r.tag(*i.InstanceId, l.tags)
		made = append(made, i)
	}
	return made, nil
}

// placed finds subnet and security groups of a launch.
func (r *region) placed(in *ec2.RunInstancesInput, zone string) (*ec2types.Subnet, []ec2types.GroupIdentifier, bool, error) {
	subnetID, groups, public := aws.ToString(in.SubnetId), in.SecurityGroupIds, true
	if len(in.NetworkInterfaces) > 0 {
		n := in.NetworkInterfaces[0]
		if subnetID == "" {
			subnetID = aws.ToString(n.SubnetId)
		}
		groups, public = append(groups, n.Groups...), aws.ToBool(n.AssociatePublicIpAddress)
	}
	if zone == "" && in.Placement != nil {
		zone = aws.ToString(in.Placement.AvailabilityZone)
	}
	var subnet *ec2types.Subnet
	for _, s := range r.subnets.all() {
		if subnetID == "" && aws.ToBool(s.DefaultForAz) && (zone == "" || *s.AvailabilityZone == zone) || *s.SubnetId == subnetID {
			subnet = s
			break
		}
	}
	if subnet == nil && subnetID != "" {
		return nil, nil, false, refuse("InvalidSubnetID.NotFound", "The subnet ID '%s' does not exist", subnetID)
	}
	if subnet == nil {
		return nil, nil, false, refuse("InvalidParameterValue", "Invalid availability zone: [%s]", zone)
	}
	for _, name := range in.SecurityGroups {
		id := ""
		for _, g := range r.groups.all() {
			if *g.GroupName == name {
				id = *g.GroupId
			}
		}
		groups = append(groups, id)
	}
	if len(groups) == 0 {
		groups = []string{r.groups.order[0]}
	}
	var ids []ec2types.GroupIdentifier
	for _, id := range groups {
		g, ok := r.groups.get(id)
		if !ok {
			return nil, nil, false, refuse("InvalidGroup.NotFound", "The security group '%s' does not exist", id)
		}
		ids = append(ids, ec2types.GroupIdentifier{GroupId: g.GroupId, GroupName: g.GroupName})
	}
	return subnet, ids, public, nil
}

// boot makes one instance, its volumes and its interface.
func (r *region) boot(in *ec2.RunInstancesInput, img *image, subnet *ec2types.Subnet, groups []ec2types.GroupIdentifier, public bool, n int) *instance {
	c := r.cloud
	id, ip := r.new(c.id("i"), ec2types.ResourceTypeInstance, in.TagSpecifications), host()
	i := &instance{userData: aws.ToString(in.UserData), protected: aws.ToBool(in.DisableApiTermination), shutdown: string(in.InstanceInitiatedShutdownBehavior)}
	i.Instance = ec2types.Instance{InstanceId: &id, ImageId: in.ImageId, InstanceType: in.InstanceType, KeyName: in.KeyName, AmiLaunchIndex: aws.Int32(int32(n)),
		LaunchTime: aws.Time(c.now().UTC()), Architecture: img.Architecture, VpcId: subnet.VpcId, SubnetId: subnet.SubnetId,
		Placement:        &ec2types.Placement{AvailabilityZone: subnet.AvailabilityZone, AvailabilityZoneId: subnet.AvailabilityZoneId, Tenancy: "default"},
		PrivateIpAddress: &ip, PrivateDnsName: aws.String("ip-" + strings.ReplaceAll(ip, ".", "-") + "." + r.name + ".compute.internal"),
		SecurityGroups: groups, ClientToken: in.ClientToken, RootDeviceName: img.RootDeviceName, RootDeviceType: "ebs", VirtualizationType: "hvm",
		EnaSupport: img.EnaSupport, BootMode: img.BootMode, EbsOptimized: aws.Bool(aws.ToBool(in.EbsOptimized)),
		Hypervisor: "xen", SourceDestCheck: aws.Bool(true), Monitoring: &ec2types.Monitoring{State: "disabled"}}
	i.MetadataOptions = &ec2types.InstanceMetadataOptionsResponse{State: "applied", HttpTokens: "optional", HttpEndpoint: "enabled", HttpPutResponseHopLimit: aws.Int32(1)}
	if img.ImdsSupport == ec2types.ImdsSupportValuesV20 {
		i.MetadataOptions.HttpTokens, i.MetadataOptions.HttpPutResponseHopLimit = "required", aws.Int32(2)
	}
	if in.MetadataOptions != nil {
		copyAs(i.MetadataOptions, in.MetadataOptions)
	}
	if p := in.IamInstanceProfile; p != nil {
		arn := aws.ToString(p.Arn)
		if arn == "" {
			arn = "arn:aws:iam::" + Account + ":instance-profile/" + aws.ToString(p.Name)
		}
		i.IamInstanceProfile = &ec2types.IamInstanceProfile{Arn: &arn, Id: aws.String("AIPA" + strings.ToUpper(id[2:]))}
	}
	eni := c.id("eni")
	i.NetworkInterfaces = []ec2types.InstanceNetworkInterface{{NetworkInterfaceId: &eni, SubnetId: subnet.SubnetId, VpcId: subnet.VpcId, PrivateIpAddress: &ip,
		Groups: groups, Status: "in-use", Attachment: &ec2types.InstanceNetworkInterfaceAttachment{DeviceIndex: aws.Int32(0), Status: "attached", DeleteOnTermination: aws.Bool(true)}}}
	if public {
		i.PublicIpAddress, i.PublicDnsName = &ip, &ip
		i.NetworkInterfaces[0].Association = &ec2types.InstanceNetworkInterfaceAssociation{PublicIp: &ip, PublicDnsName: &ip}
	}
	r.spotted(i, in)
	r.attach(i, in, img)
	i.become(ec2types.InstanceStateNamePending)
	r.instances.put(id, i)
	r.running(i)
	return i
}

// running makes an instance run in its time and gives it its backend.
func (r *region) running(i *instance) {
	c := r.cloud
	i.run++
	run := i.run
	c.after(c.Delays.Pending, func() {
		if i.run != run || i.state() != ec2types.InstanceStateNamePending {
			return
		}
		i.become(ec2types.InstanceStateNameRunning)
		if c.Backend == nil {
			i.serving = true
			return
		}
		p, start := r.public(i), c.Backend
		go func() {
			addr, stop, err := start(p)
			c.locked(func() {
				if err == nil && i.run == run && i.state() == ec2types.InstanceStateNameRunning {
					i.addr, i.stop, i.serving = addr, stop, true
					return
				}
				if stop != nil {
					go stop()
				}
				if err != nil && i.run == run {
					i.StateReason = &ec2types.StateReason{Code: aws.String("Client.InstanceInitiatedShutdown"), Message: aws.String(err.Error())}
					r.end(i)
				}
			})
		}()
	})
}

// halt takes the backend away.
func (i *instance) halt() {
	i.run++
	if i.stop != nil {
		go i.stop()
	}
	i.addr, i.stop, i.serving = "", nil, false
}

// end terminates an instance.
func (r *region) end(i *instance) {
	c := r.cloud
	if i.state() == ec2types.InstanceStateNameTerminated || i.state() == ec2types.InstanceStateNameShuttingDown {
		return
	}
	i.become(ec2types.InstanceStateNameShuttingDown)
	i.halt()
	c.after(c.Delays.ShuttingDown, func() {
		i.become(ec2types.InstanceStateNameTerminated)
		i.StateTransitionReason = aws.String("User initiated")
		i.PublicIpAddress, i.PublicDnsName, i.PrivateIpAddress, i.PrivateDnsName, i.VpcId, i.SubnetId = nil, nil, nil, nil, nil, nil
		i.SecurityGroups, i.NetworkInterfaces = nil, nil
		r.detach(i)
		r.unregister(i)
		c.after(c.Delays.Terminated, func() {
			r.instances.del(*i.InstanceId)
			delete(r.tags, *i.InstanceId)
		})
	})
}

// find is the instance of an id, for those who may know it by now.
func (r *region) find(id string) (*instance, error) {
	if i, ok := r.instances.get(id); ok && r.seen(id) {
		return i, nil
	}
	if !strings.HasPrefix(id, "i-") {
		return nil, refuse("InvalidInstanceID.Malformed", "Invalid id: \"%s\"", id)
	}
	return nil, refuse("InvalidInstanceID.NotFound", "The instance ID '%s' does not exist", id)
}

func (r *region) findAll(ids []string) ([]*instance, error) {
	var out []*instance
	for _, id := range ids {
		i, err := r.find(id)
		if err != nil {
			return nil, err
		}
		out = append(out, i)
	}
	return out, nil
}

// show is the instance as EC2 describes it.
func (r *region) show(i *instance) ec2types.Instance {
	s := i.Instance
	s.Tags = r.tags[*i.InstanceId]
	return s
}

func (r *region) terminateInstances(in *ec2.TerminateInstancesInput) (*ec2.TerminateInstancesOutput, error) {
	list, err := r.findAll(in.InstanceIds)
	if err != nil {
		return nil, err
	}
	for _, i := range list {
		if i.protected {
			return nil, refuse("OperationNotPermitted", "The instance '%s' may not be terminated. Modify its 'disableApiTermination' instance attribute and try again.", *i.InstanceId)
		}
	}
	out := &ec2.TerminateInstancesOutput{}
	for _, i := range list {
		before := i.State
		if s := i.state(); s == ec2types.InstanceStateNamePending || s == ec2types.InstanceStateNameRunning {
			i.StateReason = because("Client.UserInitiatedShutdown", "User initiated shutdown")
		}
		r.end(i)
		out.TerminatingInstances = append(out.TerminatingInstances, ec2types.InstanceStateChange{InstanceId: i.InstanceId, PreviousState: before, CurrentState: i.State})
	}
	return out, nil
}

func (r *region) stopInstances(in *ec2.StopInstancesInput) (*ec2.StopInstancesOutput, error) {
	list, err := r.findAll(in.InstanceIds)
	if err != nil {
		return nil, err
	}
	out := &ec2.StopInstancesOutput{}
	for _, i := range list {
		before := i.State
		switch i.state() {
		case ec2types.InstanceStateNameRunning:
			i.StateReason = because("Client.UserInitiatedShutdown", "User initiated shutdown")
			r.stop(i)
		case ec2types.InstanceStateNameStopped, ec2types.InstanceStateNameStopping:
		default:
			return nil, refuse("IncorrectInstanceState", "The instance '%s' is not in a state from which it can be stopped.", *i.InstanceId)
		}
		out.StoppingInstances = append(out.StoppingInstances, ec2types.InstanceStateChange{InstanceId: i.InstanceId, PreviousState: before, CurrentState: i.State})
	}
	return out, nil
}

func (r *region) stop(i *instance) {
	i.become(ec2types.InstanceStateNameStopping)
	i.halt()
	run := i.run
	r.cloud.after(r.cloud.Delays.Stopping, func() {
		if i.run == run && i.state() == ec2types.InstanceStateNameStopping {
			i.become(ec2types.InstanceStateNameStopped)
			i.PublicIpAddress, i.PublicDnsName = nil, nil
		}
	})
}

func because(code, text string) *ec2types.StateReason {
	return &ec2types.StateReason{Code: aws.String(code), Message: aws.String(code + ": " + text)}
}

// PowerOff has the guest of an instance shut down by itself: the instance stops,
// or ends, as it was launched to. One that does not run stays as it is.
func (c *Cloud) PowerOff(regionName, id string) {
	c.in(regionName, func(r *region) {
		i, ok := r.instances.get(id)
		if !ok || i.state() != ec2types.InstanceStateNameRunning {
			return
		}
		i.StateReason = because("Client.InstanceInitiatedShutdown", "Instance initiated shutdown")
		if i.shutdown == string(ec2types.ShutdownBehaviorTerminate) {
			r.end(i)
			return
		}
		r.stop(i)
	})
}

func (r *region) startInstances(in *ec2.StartInstancesInput) (*ec2.StartInstancesOutput, error) {
	list, err := r.findAll(in.InstanceIds)
	if err != nil {
		return nil, err
	}
	out := &ec2.StartInstancesOutput{}
	for _, i := range list {
		before := i.State
		if i.state() == ec2types.InstanceStateNameStopped {
			i.become(ec2types.InstanceStateNamePending)
			i.LaunchTime, i.PublicIpAddress, i.PublicDnsName = aws.Time(r.cloud.now().UTC()), i.PrivateIpAddress, i.PrivateIpAddress
			r.running(i)
		} else if i.state() != ec2types.InstanceStateNameRunning && i.state() != ec2types.InstanceStateNamePending {
			return nil, refuse("IncorrectInstanceState", "The instance '%s' is not in a state from which it can be started.", *i.InstanceId)
		}
		out.StartingInstances = append(out.StartingInstances, ec2types.InstanceStateChange{InstanceId: i.InstanceId, PreviousState: before, CurrentState: i.State})
	}
	return out, nil
}

// EndInstance lets an instance die by itself, as a machine that fails.
func (c *Cloud) EndInstance(regionName, id string) {
	c.in(regionName, func(r *region) {
		if i, ok := r.instances.get(id); ok {
			r.end(i)
		}
	})
}

// Instances lists the instances of a region that are pending or running.
func (c *Cloud) Instances(regionName string) (out []Instance) {
	c.in(regionName, func(r *region) {
		for _, i := range r.instances.all() {
			if s := i.state(); s == ec2types.InstanceStateNameRunning || s == ec2types.InstanceStateNamePending {
				out = append(out, r.public(i))
			}
		}
	})
	return out
}

func rfc(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
