package awsfake_test

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	"github.com/rebake/rebake/test/awsfake"
)

// TestAThousandInstances is that the fake itself is quick enough for a simulation:
// a thousand instances in three zones come up, are healthy and end.
func TestAThousandInstances(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	one, _ := images(c)
	_, _, groups := r.balance(map[string]int32{"blue": 1, "green": 0})
	name := aws.String("web")
	r.fleet("web", r.template("web", one), "1", 0, groups["blue"])
	must(r.elb.ModifyTargetGroupAttributes(r.ctx, &elb.ModifyTargetGroupAttributesInput{TargetGroupArn: aws.String(groups["blue"]), Attributes: attribute("deregistration_delay.timeout_seconds", "30")}))(t)
	began := time.Now()
	must(r.asg.UpdateAutoScalingGroup(r.ctx, &autoscaling.UpdateAutoScalingGroupInput{AutoScalingGroupName: name, MaxSize: aws.Int32(1000), DesiredCapacity: aws.Int32(1000)}))(t)
	list := r.settled("web", 1000)
	eventually(t, "all are healthy", func() bool { return r.health(groups["blue"])["healthy"] == 1000 })
	up := time.Since(began)
	zones := map[string]int{}
	for _, i := range list {
		zones[*i.AvailabilityZone]++
	}
	for z, n := range zones {
		if n < 333 || n > 334 {
			t.Errorf("%d in %s", n, z)
		}
	}
	must(r.asg.UpdateAutoScalingGroup(r.ctx, &autoscaling.UpdateAutoScalingGroupInput{AutoScalingGroupName: name, DesiredCapacity: aws.Int32(0)}))(t)
	r.settled("web", 0)
	t.Logf("1,000 instances up in %v, up and down in %v", up.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
}
