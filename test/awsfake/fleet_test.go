package awsfake_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	asgtypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
	"github.com/rebake/rebake/test/awsfake"
)

func images(c *awsfake.Cloud) (string, string) {
	return c.AddImage(region, ec2types.Image{Name: aws.String("one")}), c.AddImage(region, ec2types.Image{Name: aws.String("two")})
}

// load posts n requests and counts the answers by status and image.
func load(t testing.TB, url string, n int) (codes map[int]int, served map[string]int) {
	t.Helper()
	codes, served = map[int]int{}, map[string]int{}
	for range n {
		res, err := http.Post(url+"/work", "text/plain", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		codes[res.StatusCode]++
		served[res.Header.Get("X-Image-Id")]++
	}
	return codes, served
}

func TestABlueGreenSwapServesEveryRequest(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	one, two := images(c)
	listener, rule, groups := r.balance(map[string]int32{"blue": 100, "green": 0})
	lt := r.template("web", one, two)
	r.fleet("web-blue", lt, "1", 3, groups["blue"])
	eventually(t, "blue is healthy", func() bool { return r.health(groups["blue"])["healthy"] == 3 })
	url := c.ListenerURL(listener)
	codes, served := load(t, url, 60)
	if codes[200] != 60 || served[one] != 60 {
		t.Fatalf("%v %v", codes, served)
	}
	r.fleet("web-green", lt, "2", 3, groups["green"])
	eventually(t, "green is healthy", func() bool { return r.health(groups["green"])["healthy"] == 3 })
	if got := c.Traffic(region)["green"].Requests; got != 0 {
		t.Errorf("green got %d requests at weight 0", got)
	}
	must(r.elb.ModifyRule(r.ctx, &elb.ModifyRuleInput{RuleArn: &rule, Actions: forward(groups, map[string]int32{"blue": 500, "green": 500})}))(t)
	codes, served = load(t, url, 200)
	if codes[200] != 200 || served[two] < 60 || served[two] > 140 {
		t.Errorf("half and half: %v %v", codes, served)
	}
	must(r.elb.ModifyRule(r.ctx, &elb.ModifyRuleInput{RuleArn: &rule, Actions: forward(groups, map[string]int32{"blue": 0, "green": 999})}))(t)
	if codes, served = load(t, url, 60); codes[200] != 60 || served[two] != 60 {
		t.Errorf("all to green: %v %v", codes, served)
	}
	must(r.asg.UpdateAutoScalingGroup(r.ctx, &autoscaling.UpdateAutoScalingGroupInput{AutoScalingGroupName: aws.String("web-blue"), MinSize: aws.Int32(0), DesiredCapacity: aws.Int32(0)}))(t)
	_, err := r.asg.DeleteAutoScalingGroup(r.ctx, &autoscaling.DeleteAutoScalingGroupInput{AutoScalingGroupName: aws.String("web-blue")})
	if err == nil {
		t.Error("a group with instances was deleted")
	}
	r.settled("web-blue", 0)
	must(r.asg.DeleteAutoScalingGroup(r.ctx, &autoscaling.DeleteAutoScalingGroupInput{AutoScalingGroupName: aws.String("web-blue")}))(t)
	eventually(t, "blue is gone", func() bool {
		return r.group("web-blue").AutoScalingGroupName == nil && len(r.health(groups["blue"])) == 0
	})
	if tr := c.Traffic(region); tr["blue"].Unasked+tr["green"].Unasked != 0 || tr["blue"].ELB5xx+tr["green"].ELB5xx != 0 {
		t.Errorf("%+v", tr)
	}
}

func TestTargetsAreChecked(t *testing.T) {
	c := awsfake.Start(t)
	status := map[string]int{}
	c.Status = func(i awsfake.Instance, _ *http.Request) (code int) {
		c.Set(func() { code = status[i.ID] })
		return max(code, 200)
	}
	r := clients(t)
	one, _ := images(c)
	listener, rule, groups := r.balance(map[string]int32{"blue": 1})
	r.fleet("web", r.template("web", one), "$Latest", 2, groups["green"])
	eventually(t, "a group that no rule refers to is unused", func() bool { return r.health(groups["green"])["unused"] == 2 })
	must(r.elb.ModifyRule(r.ctx, &elb.ModifyRuleInput{RuleArn: &rule, Actions: forward(groups, map[string]int32{"blue": 1, "green": 0})}))(t)
	eventually(t, "weight 0 is in use", func() bool { return r.health(groups["green"])["healthy"] == 2 })
	ill := *r.group("web").Instances[0].InstanceId
	c.Set(func() { status[ill] = 503 })
	eventually(t, "a target that says 503 is unhealthy", func() bool { return r.health(groups["green"])["unhealthy"] == 1 })
	d := must(r.elb.DescribeTargetHealth(r.ctx, &elb.DescribeTargetHealthInput{TargetGroupArn: aws.String(groups["green"]), Targets: []elbtypes.TargetDescription{{Id: &ill}}}))(t).TargetHealthDescriptions[0].TargetHealth
	if d.Reason != elbtypes.TargetHealthReasonEnumResponseCodeMismatch || *d.Description != "Health checks failed with these codes: [503]" {
		t.Errorf("%s: %s", d.Reason, *d.Description)
	}
	must(r.elb.ModifyRule(r.ctx, &elb.ModifyRuleInput{RuleArn: &rule, Actions: forward(groups, map[string]int32{"green": 1})}))(t)
	if codes, _ := load(t, c.ListenerURL(listener), 20); codes[200] != 20 {
		t.Errorf("an unhealthy target got requests: %v", codes)
	}
	for _, i := range r.group("web").Instances {
		c.Set(func() { status[*i.InstanceId] = 503 })
	}
	eventually(t, "all are unhealthy", func() bool { return r.health(groups["green"])["unhealthy"] == 2 })
	if codes, _ := load(t, c.ListenerURL(listener), 20); codes[503] != 20 || c.Traffic(region)["green"].Unasked != 20 {
		t.Errorf("a group with no healthy target fails open: %v %+v", codes, c.Traffic(region)["green"])
	}
}

// TestADrainingTargetEndsWhatItHas has a real backend that takes its time.
func TestADrainingTargetEndsWhatItHas(t *testing.T) {
	c := awsfake.Start(t)
	c.Speed = 400 // the deregistration delay of 300 s takes 750 ms
	slow := make(chan struct{})
	c.Backend = func(i awsfake.Instance) (string, func(), error) {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/slow" {
				<-slow
			}
			w.Header().Set("X-Image-Id", i.Image)
		}))
		return s.Listener.Addr().String(), s.Close, nil
	}
	r := clients(t)
	one, _ := images(c)
	listener, _, groups := r.balance(map[string]int32{"blue": 1})
	r.fleet("web", r.template("web", one), "1", 1, groups["blue"])
	eventually(t, "healthy", func() bool { return r.health(groups["blue"])["healthy"] == 1 })
	got := make(chan int, 1)
	go func() {
		res, err := http.Get(c.ListenerURL(listener) + "/slow")
		if err != nil {
			got <- 0
			return
		}
		res.Body.Close()
		got <- res.StatusCode
	}()
	eventually(t, "a request is in flight", func() bool { return c.Traffic(region)["blue"].Inflight == 1 })
	id := *r.group("web").Instances[0].InstanceId
	must(r.elb.DeregisterTargets(r.ctx, &elb.DeregisterTargetsInput{TargetGroupArn: aws.String(groups["blue"]), Targets: []elbtypes.TargetDescription{{Id: &id}}}))(t)
	if h := r.health(groups["blue"]); h["draining"] != 1 {
		t.Errorf("%v", h)
	}
	if codes, _ := load(t, c.ListenerURL(listener), 1); codes[503] != 1 {
		t.Errorf("a new request: %v, want 503", codes)
	}
	close(slow)
	if code := <-got; code != 200 {
		t.Errorf("the request in flight ended with %d", code)
	}
	eventually(t, "it is not registered any more", func() bool { return len(r.health(groups["blue"])) == 0 })
}

func TestGroupsReplaceAndScale(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	one, _ := images(c)
	r.fleet("web", r.template("web", one), "1", 3)
	list := r.settled("web", 3)
	zones := map[string]int{}
	for _, i := range list {
		zones[*i.AvailabilityZone]++
	}
	if len(zones) != 3 {
		t.Errorf("not balanced: %v", zones)
	}
	tags := c.Instances(region)[0].Tags
	if tags["aws:autoscaling:groupName"] != "web" || tags["rebake:fleet"] != "web" {
		t.Errorf("%v", tags)
	}
	dead := *list[0].InstanceId
	c.EndInstance(region, dead)
	eventually(t, "the dead one is replaced", func() bool {
		for _, i := range r.settled("web", 3) {
			if *i.InstanceId == dead {
				return false
			}
		}
		return true
	})
	must(r.asg.TerminateInstanceInAutoScalingGroup(r.ctx, &autoscaling.TerminateInstanceInAutoScalingGroupInput{InstanceId: r.group("web").Instances[0].InstanceId, ShouldDecrementDesiredCapacity: aws.Bool(true)}))(t)
	r.settled("web", 2)
	_, err := r.asg.SetDesiredCapacity(r.ctx, &autoscaling.SetDesiredCapacityInput{AutoScalingGroupName: aws.String("web"), DesiredCapacity: aws.Int32(21)})
	wantCode(t, err, "ValidationError")
	_, err = r.asg.CreateAutoScalingGroup(r.ctx, &autoscaling.CreateAutoScalingGroupInput{AutoScalingGroupName: aws.String("web"), MinSize: aws.Int32(0), MaxSize: aws.Int32(0)})
	wantCode(t, err, "AlreadyExists")
}

func TestCapacityErrorsAreTold(t *testing.T) {
	c := awsfake.Start(t)
	full := map[string]bool{region + "a": true}
	c.Capacity = func(zone, kind string) string {
		if full[zone] {
			return "We currently do not have sufficient " + kind + " capacity in the Availability Zone you requested (" + zone + ")."
		}
		return ""
	}
	r := clients(t)
	one, _ := images(c)
	lt := r.template("web", one)
	r.fleet("web", lt, "1", 2)
	for _, i := range r.group("web").Instances {
		if *i.AvailabilityZone == region+"a" {
			t.Error("launched where there is no capacity")
		}
	}
	out := must(r.asg.LaunchInstances(r.ctx, &autoscaling.LaunchInstancesInput{AutoScalingGroupName: aws.String("web"), ClientToken: aws.String("x"), RequestedCapacity: aws.Int32(3), AvailabilityZones: []string{region + "a", region + "b", region + "c"}}))(t)
	if len(out.Errors) != 1 || *out.Errors[0].ErrorCode != "InsufficientInstanceCapacity" || *out.Errors[0].AvailabilityZone != region+"a" || len(out.Instances) != 2 {
		t.Errorf("%+v", out)
	}
	again := must(r.asg.LaunchInstances(r.ctx, &autoscaling.LaunchInstancesInput{AutoScalingGroupName: aws.String("web"), ClientToken: aws.String("x"), RequestedCapacity: aws.Int32(3), AvailabilityZones: []string{region + "a", region + "b", region + "c"}}))(t)
	if again.Instances[0].InstanceIds[0] != out.Instances[0].InstanceIds[0] {
		t.Error("the same token launched again")
	}
	_, err := r.asg.LaunchInstances(r.ctx, &autoscaling.LaunchInstancesInput{AutoScalingGroupName: aws.String("web"), ClientToken: aws.String("x"), RequestedCapacity: aws.Int32(1), AvailabilityZones: []string{region + "b"}})
	wantCode(t, err, "IdempotentParameterMismatch")
	r.settled("web", 4)
	acts := must(r.asg.DescribeScalingActivities(r.ctx, &autoscaling.DescribeScalingActivitiesInput{AutoScalingGroupName: aws.String("web")}))(t).Activities
	failed := 0
	for _, a := range acts {
		if a.StatusCode == asgtypes.ScalingActivityStatusCodeFailed && strings.Contains(*a.StatusMessage, "sufficient t3.micro capacity") {
			failed++
		}
	}
	if failed < 2 {
		t.Errorf("%d failed activities", failed)
	}
}

func TestLifecycleHooksHold(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	one, _ := images(c)
	lt := r.template("web", one)
	name := aws.String("web")
	must(r.asg.CreateAutoScalingGroup(r.ctx, &autoscaling.CreateAutoScalingGroupInput{AutoScalingGroupName: name, MinSize: aws.Int32(0), MaxSize: aws.Int32(2), DesiredCapacity: aws.Int32(1), AvailabilityZones: []string{region + "a"},
		LaunchTemplate: &asgtypes.LaunchTemplateSpecification{LaunchTemplateId: &lt, Version: aws.String("1")},
		LifecycleHookSpecificationList: []asgtypes.LifecycleHookSpecification{{LifecycleHookName: aws.String("up"), LifecycleTransition: aws.String("autoscaling:EC2_INSTANCE_LAUNCHING")},
			{LifecycleHookName: aws.String("down"), LifecycleTransition: aws.String("autoscaling:EC2_INSTANCE_TERMINATING"), HeartbeatTimeout: aws.Int32(30), DefaultResult: aws.String("CONTINUE")}}}))(t)
	eventually(t, "it waits in its hook", func() bool {
		g := r.group("web")
		return len(g.Instances) == 1 && g.Instances[0].LifecycleState == asgtypes.LifecycleStatePendingWait
	})
	id := r.group("web").Instances[0].InstanceId
	must(r.asg.CompleteLifecycleAction(r.ctx, &autoscaling.CompleteLifecycleActionInput{AutoScalingGroupName: name, LifecycleHookName: aws.String("up"), InstanceId: id, LifecycleActionResult: aws.String("CONTINUE")}))(t)
	r.settled("web", 1)
	must(r.asg.SetDesiredCapacity(r.ctx, &autoscaling.SetDesiredCapacityInput{AutoScalingGroupName: name, DesiredCapacity: aws.Int32(0)}))(t)
	r.settled("web", 0) // by the hook's default, after its 30 s
}

func TestSuspendedProcessesAreKept(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	one, _ := images(c)
	_, _, groups := r.balance(map[string]int32{"blue": 1})
	name := aws.String("web")
	r.fleet("web", r.template("web", one), "1", 0, groups["blue"])
	must(r.asg.SuspendProcesses(r.ctx, &autoscaling.SuspendProcessesInput{AutoScalingGroupName: name, ScalingProcesses: []string{"AddToLoadBalancer"}}))(t)
	must(r.asg.SetDesiredCapacity(r.ctx, &autoscaling.SetDesiredCapacityInput{AutoScalingGroupName: name, DesiredCapacity: aws.Int32(1)}))(t)
	r.settled("web", 1)
	must(r.asg.ResumeProcesses(r.ctx, &autoscaling.ResumeProcessesInput{AutoScalingGroupName: name}))(t)
	time.Sleep(50 * time.Millisecond) // many looks of Auto Scaling
	if h := r.health(groups["blue"]); len(h) != 0 {
		t.Errorf("what was launched while AddToLoadBalancer was suspended is registered: %v", h)
	}
	must(r.asg.SuspendProcesses(r.ctx, &autoscaling.SuspendProcessesInput{AutoScalingGroupName: name}))(t)
	if n := len(r.group("web").SuspendedProcesses); n != 9 {
		t.Errorf("no list suspends all: %d", n)
	}
}

func TestLaunchTemplates(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	one, two := images(c)
	in := &ec2.CreateLaunchTemplateInput{LaunchTemplateName: aws.String("web"), ClientToken: aws.String("t"), LaunchTemplateData: &ec2types.RequestLaunchTemplateData{ImageId: &one, InstanceType: "t3.micro", UserData: aws.String("YQ=="),
		BlockDeviceMappings: []ec2types.LaunchTemplateBlockDeviceMappingRequest{{DeviceName: aws.String("/dev/xvda"), Ebs: &ec2types.LaunchTemplateEbsBlockDeviceRequest{VolumeSize: aws.Int32(20)}}},
		TagSpecifications:   []ec2types.LaunchTemplateTagSpecificationRequest{{ResourceType: "instance", Tags: []ec2types.Tag{{Key: aws.String("k"), Value: aws.String("v")}}}}},
		TagSpecifications: []ec2types.TagSpecification{{ResourceType: "launch-template", Tags: []ec2types.Tag{{Key: aws.String("rebake:fleet"), Value: aws.String("web")}}}}}
	lt := must(r.ec2.CreateLaunchTemplate(r.ctx, in))(t).LaunchTemplate
	if again := must(r.ec2.CreateLaunchTemplate(r.ctx, in))(t).LaunchTemplate; *again.LaunchTemplateId != *lt.LaunchTemplateId {
		t.Error("the same token made another")
	}
	in.ClientToken = aws.String("u")
	_, err := r.ec2.CreateLaunchTemplate(r.ctx, in)
	wantCode(t, err, "InvalidLaunchTemplateName.AlreadyExistsException")
	vin := &ec2.CreateLaunchTemplateVersionInput{LaunchTemplateId: lt.LaunchTemplateId, SourceVersion: aws.String("1"), ClientToken: aws.String("v"), LaunchTemplateData: &ec2types.RequestLaunchTemplateData{ImageId: &two}}
	for range 2 {
		v := must(r.ec2.CreateLaunchTemplateVersion(r.ctx, vin))(t).LaunchTemplateVersion
		if *v.VersionNumber != 2 || *v.LaunchTemplateData.ImageId != two || v.LaunchTemplateData.InstanceType != "t3.micro" || *v.LaunchTemplateData.BlockDeviceMappings[0].Ebs.VolumeSize != 20 || *v.DefaultVersion {
			t.Errorf("%+v", v)
		}
	}
	vin.LaunchTemplateData = &ec2types.RequestLaunchTemplateData{ImageId: &one}
	_, err = r.ec2.CreateLaunchTemplateVersion(r.ctx, vin)
	wantCode(t, err, "IdempotentParameterMismatch")
	all := must(r.ec2.DescribeLaunchTemplateVersions(r.ctx, &ec2.DescribeLaunchTemplateVersionsInput{LaunchTemplateName: aws.String("web")}))(t).LaunchTemplateVersions
	if len(all) != 2 || *all[0].VersionNumber != 2 {
		t.Errorf("%d versions", len(all))
	}
	found := must(r.ec2.DescribeLaunchTemplates(r.ctx, &ec2.DescribeLaunchTemplatesInput{Filters: []ec2types.Filter{{Name: aws.String("tag:rebake:fleet"), Values: []string{"web"}}}}))(t).LaunchTemplates
	if len(found) != 1 || *found[0].LatestVersionNumber != 2 || *found[0].DefaultVersionNumber != 1 || len(found[0].Tags) != 1 {
		t.Errorf("%+v", found)
	}
	out := must(r.ec2.RunInstances(r.ctx, &ec2.RunInstancesInput{LaunchTemplate: &ec2types.LaunchTemplateSpecification{LaunchTemplateId: lt.LaunchTemplateId, Version: aws.String("$Latest")}, MinCount: aws.Int32(1), MaxCount: aws.Int32(1)}))(t)
	if i := out.Instances[0]; *i.ImageId != two || i.InstanceType != "t3.micro" {
		t.Errorf("%+v", i)
	}
	if p := c.Instances(region)[0]; p.Version != "2" || p.Tags["k"] != "v" || p.UserData != "a" {
		t.Errorf("%+v", p)
	}
	must(r.ec2.ModifyLaunchTemplate(r.ctx, &ec2.ModifyLaunchTemplateInput{LaunchTemplateId: lt.LaunchTemplateId, DefaultVersion: aws.String("2")}))(t)
	del := must(r.ec2.DeleteLaunchTemplateVersions(r.ctx, &ec2.DeleteLaunchTemplateVersionsInput{LaunchTemplateId: lt.LaunchTemplateId, Versions: []string{"1", strconv.Itoa(7)}}))(t)
	if len(del.SuccessfullyDeletedLaunchTemplateVersions) != 1 || len(del.UnsuccessfullyDeletedLaunchTemplateVersions) != 1 {
		t.Errorf("%+v", del)
	}
	must(r.ec2.DeleteLaunchTemplate(r.ctx, &ec2.DeleteLaunchTemplateInput{LaunchTemplateId: lt.LaunchTemplateId}))(t)
	_, err = r.ec2.DescribeLaunchTemplates(r.ctx, &ec2.DescribeLaunchTemplatesInput{LaunchTemplateIds: []string{*lt.LaunchTemplateId}})
	wantCode(t, err, "InvalidLaunchTemplateId.NotFound")
}
