package awsfake

import (
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
)

// Bucket holds at most Size tokens; one call takes one, and Rate come back each second of AWS.
type Bucket struct {
	Size int
	Rate float64
}

// Documented are limits per account and region: those of EC2 and ELB as AWS's pages
// have them; those of the EBS direct APIs were not looked up, and are near what the
// quotas of an account begin with. A key is an action, or a kind of a service's actions ("ec2:describe",
// "ec2:unfiltered", "ec2:mutating", "elasticloadbalancing:registration"), or a service: a bucket that all of its calls
// take from too. "ec2:RunInstances/instances" is taken from for each instance. EC2
// has a bucket of each action by itself, the others one for each kind together.
// Of Auto Scaling and CloudWatch, AWS says only that there are limits: those here
// are low on purpose.
var Documented = map[string]Bucket{
	"ec2:describe": {100, 20}, "ec2:unfiltered": {50, 10}, "ec2:mutating": {50, 5},
	"ec2:RunInstances": {5, 2}, "ec2:StartInstances": {5, 2}, "ec2:TerminateInstances": {100, 5},
	"ec2:CopyImage": {100, 1}, "ec2:DeregisterImage": {100, 5}, "ec2:ModifyImageAttribute": {100, 5},
	"ec2:CreateSnapshot": {100, 5}, "ec2:CreateSnapshots": {100, 5}, "ec2:DeleteSnapshot": {100, 5},
	"ec2:CreateVolume": {100, 5}, "ec2:DeleteVolume": {100, 5}, "ec2:CreateTags": {100, 10}, "ec2:DeleteTags": {100, 10},
	"ec2:CreateLaunchTemplateVersion": {100, 5}, "ec2:ModifyLaunchTemplate": {100, 5}, "ec2:ModifyInstanceMetadataOptions": {100, 5},
	"ec2:RunInstances/instances": {1000, 2}, "ec2:StartInstances/instances": {1000, 2},
	"ec2:StopInstances/instances": {1000, 20}, "ec2:TerminateInstances/instances": {1000, 20},

	"elasticloadbalancing": {40, 10}, "elasticloadbalancing:describe": {40, 10}, "elasticloadbalancing:mutating": {20, 3},
	"elasticloadbalancing:registration": {20, 4}, "elasticloadbalancing:CreateLoadBalancer": {10, 0.2},

	"ebs:PutSnapshotBlock": {1000, 1000}, "ebs:GetSnapshotBlock": {1000, 1000}, "ebs:describe": {50, 50}, "ebs:mutating": {10, 10},

	"autoscaling:describe": {40, 10}, "autoscaling:mutating": {20, 5}, "cloudwatch:describe": {50, 50},
}

type level struct {
	tokens float64
	at     time.Time
}

// draw is what a call takes from one bucket.
type draw struct {
	limit, counter string
	tokens         float64
}

// unfiltered are the descriptions of EC2 that cost more without a filter or pages.
var unfiltered = map[string]bool{"DescribeInstances": true, "DescribeInstanceStatus": true, "DescribeNetworkInterfaces": true, "DescribeSecurityGroups": true,
	"DescribeSnapshots": true, "DescribeSpotInstanceRequests": true, "DescribeVolumes": true}

// kinds of an action, the most special first.
func (q request) kinds(name string) []string {
	kind := ":mutating"
	switch {
	case strings.HasPrefix(q.name, "Describe") || strings.HasPrefix(q.name, "Get") || strings.HasPrefix(q.name, "List"):
		kind = ":describe"
		v := reflect.ValueOf(q.in).Elem()
		if q.service == "ec2" && unfiltered[q.name] && v.FieldByName("Filters").Len() == 0 && v.FieldByName("MaxResults").IsNil() {
			return []string{name, q.service + ":unfiltered", q.service + kind}
		}
	case q.name == "RegisterTargets" || q.name == "DeregisterTargets":
		return []string{name, q.service + ":registration", q.service + kind}
	}
	return []string{name, q.service + kind}
}

// draws are all that a call takes.
func (c *Cloud) draws(q request, name string) (out []draw) {
	for _, limit := range q.kinds(name) {
		if _, ok := c.Throttle[limit]; ok {
			counter := limit
			if q.service == "ec2" {
				counter = name + " " + limit
			}
			out = append(out, draw{limit, counter, 1})
			break
		}
	}
	if _, ok := c.Throttle[q.service]; ok {
		out = append(out, draw{q.service, q.service, 1})
	}
	if limit := name + "/instances"; c.Throttle[limit].Size > 0 {
		n := 0
		switch in := q.in.(type) {
		case *ec2.RunInstancesInput:
			n = int(aws.ToInt32(in.MaxCount))
		case *ec2.StartInstancesInput:
			n = len(in.InstanceIds)
		case *ec2.StopInstancesInput:
			n = len(in.InstanceIds)
		case *ec2.TerminateInstancesInput:
			n = len(in.InstanceIds)
		}
		out = append(out, draw{limit, limit, float64(n)})
	}
	return out
}

// admit takes the tokens of a call; false is that one bucket has not enough, and then none is taken.
func (c *Cloud) admit(q request, name string) bool {
	draws := c.draws(q, name)
	now := time.Now()
	for _, d := range draws {
		b, key := c.Throttle[d.limit], q.region+" "+d.counter
		l := c.buckets[key]
		if l == nil {
			l = &level{tokens: float64(b.Size), at: now}
			c.buckets[key] = l
		}
		l.tokens = min(float64(b.Size), l.tokens+now.Sub(l.at).Seconds()*b.Rate*c.Speed)
		l.at = now
		if l.tokens < d.tokens {
			return false
		}
	}
	for _, d := range draws {
		c.buckets[q.region+" "+d.counter].tokens -= d.tokens
	}
	return true
}

func throttled(service string) error {
	switch service {
	case "ec2":
		return &refusal{"RequestLimitExceeded", "Request limit exceeded.", http.StatusServiceUnavailable}
	case "ebs":
		return &refusal{"RequestThrottledException", "The number of API requests has exceeded the maximum allowed.", http.StatusBadRequest}
	case "elasticloadbalancing", "ssm":
		return &refusal{"ThrottlingException", "Rate exceeded", http.StatusBadRequest}
	}
	return &refusal{"Throttling", "Rate exceeded", http.StatusBadRequest}
}
