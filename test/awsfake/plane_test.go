package awsfake_test

import (
	"net/http"
	"net/http/cookiejar"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
	"github.com/rebake/rebake/test/awsfake"
)

// ask sends one request and tells status and image.
func ask(t testing.TB, c *http.Client, req *http.Request) (int, string) {
	t.Helper()
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	return res.StatusCode, res.Header.Get("X-Image-Id")
}

// pair is a blue fleet of image one and a green one of image two, healthy.
func pair(t testing.TB, c *awsfake.Cloud, r *rig, weights map[string]int32) (listener, rule string, groups map[string]string, one, two string) {
	t.Helper()
	one, two = images(c)
	listener, rule, groups = r.balance(weights)
	lt := r.template("web", one, two)
	r.fleet("web-blue", lt, "1", 1, groups["blue"])
	r.fleet("web-green", lt, "2", 1, groups["green"])
	eventually(t, "both are healthy", func() bool {
		return r.health(groups["blue"])["healthy"] == 1 && r.health(groups["green"])["healthy"] == 1
	})
	return listener, rule, groups, one, two
}

func TestRulesChooseByWhatARequestHas(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	listener, _, groups, one, two := pair(t, c, r, map[string]int32{"blue": 1, "green": 0})
	for n, cond := range []elbtypes.RuleCondition{
		{Field: aws.String("http-header"), HttpHeaderConfig: &elbtypes.HttpHeaderConditionConfig{HttpHeaderName: aws.String("X-Preview"), Values: []string{"gr*"}}},
		{Field: aws.String("host-header"), Values: []string{"preview.example.com"}},
		{Field: aws.String("query-string"), QueryStringConfig: &elbtypes.QueryStringConditionConfig{Values: []elbtypes.QueryStringKeyValuePair{{Key: aws.String("v"), Value: aws.String("2")}}}},
		{Field: aws.String("http-request-method"), HttpRequestMethodConfig: &elbtypes.HttpRequestMethodConditionConfig{Values: []string{"DELETE"}}},
	} {
		must(r.elb.CreateRule(r.ctx, &elb.CreateRuleInput{ListenerArn: &listener, Priority: aws.Int32(int32(1 + n)), Actions: forward(groups, map[string]int32{"green": 1}), Conditions: []elbtypes.RuleCondition{cond}}))(t)
	}
	url := c.ListenerURL(listener)
	for name, change := range map[string]func(*http.Request){
		"plain": func(*http.Request) {}, "other header": func(q *http.Request) { q.Header.Set("X-Preview", "blue") },
		"header": func(q *http.Request) { q.Header.Set("X-Preview", "green") }, "host": func(q *http.Request) { q.Host = "preview.example.com" },
		"query": func(q *http.Request) { q.URL.RawQuery = "v=2" }, "method": func(q *http.Request) { q.Method = http.MethodDelete },
	} {
		req := must(http.NewRequest(http.MethodGet, url+"/a/b", nil))(t)
		change(req)
		want := two
		if name == "plain" || name == "other header" {
			want = one
		}
		if code, img := ask(t, http.DefaultClient, req); code != 200 || img != want {
			t.Errorf("%s: %d by %s", name, code, img)
		}
	}
}

func TestTheGroupsCookieCountsMoreThanWeights(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	listener, rule, groups, one, two := pair(t, c, r, map[string]int32{"blue": 1, "green": 0})
	sticky := func(weights map[string]int32) {
		a := forward(groups, weights)
		a[0].ForwardConfig.TargetGroupStickinessConfig = &elbtypes.TargetGroupStickinessConfig{Enabled: aws.Bool(true), DurationSeconds: aws.Int32(604800)}
		must(r.elb.ModifyRule(r.ctx, &elb.ModifyRuleInput{RuleArn: &rule, Actions: a}))(t)
	}
	sticky(map[string]int32{"blue": 1, "green": 0})
	old := &http.Client{Jar: must(cookiejar.New(nil))(t)}
	url := c.ListenerURL(listener)
	if _, img := ask(t, old, must(http.NewRequest(http.MethodGet, url, nil))(t)); img != one {
		t.Fatal(img)
	}
	sticky(map[string]int32{"blue": 0, "green": 1})
	if _, img := ask(t, old, must(http.NewRequest(http.MethodGet, url, nil))(t)); img != one {
		t.Errorf("a client with the cookie was served by %s", img)
	}
	if _, img := ask(t, http.DefaultClient, must(http.NewRequest(http.MethodGet, url, nil))(t)); img != two {
		t.Errorf("a new client was served by %s", img)
	}
}

func TestASlowStartIsSlow(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	one, _ := images(c)
	listener, _, groups := r.balance(map[string]int32{"blue": 1})
	r.fleet("web", r.template("web", one), "1", 1, groups["blue"])
	first := *r.group("web").Instances[0].InstanceId
	eventually(t, "healthy", func() bool { return r.health(groups["blue"])["healthy"] == 1 })
	began := time.Now()
	must(r.elb.ModifyTargetGroupAttributes(r.ctx, &elb.ModifyTargetGroupAttributesInput{TargetGroupArn: aws.String(groups["blue"]), Attributes: attribute("slow_start.duration_seconds", "900")}))(t)
	load(t, c.ListenerURL(listener), 10)
	if tr := c.Traffic(region)["blue"]; tr.Targets[first] != 10 {
		t.Errorf("a group that has none but new targets: %+v", tr)
	}
	eventually(t, "the first is warm", func() bool { return time.Since(began) > 900*time.Millisecond })
	must(r.asg.SetDesiredCapacity(r.ctx, &autoscaling.SetDesiredCapacityInput{AutoScalingGroupName: aws.String("web"), DesiredCapacity: aws.Int32(2)}))(t)
	eventually(t, "both are healthy", func() bool { return r.health(groups["blue"])["healthy"] == 2 })
	load(t, c.ListenerURL(listener), 30)
	if tr := c.Traffic(region)["blue"]; tr.Targets[first] < 10+16 {
		t.Errorf("the new one got as much as the first: %+v", tr)
	}
}

// TestTerminatingWithoutDrainingFailsRequests is why a swap drains first: the load
// balancer does not know yet.
func TestTerminatingWithoutDrainingFailsRequests(t *testing.T) {
	c := awsfake.Start(t)
	c.Speed = 100
	r := clients(t)
	one, _ := images(c)
	listener, _, groups := r.balance(map[string]int32{"blue": 1})
	id := must(r.ec2.RunInstances(r.ctx, &ec2.RunInstancesInput{ImageId: &one, MinCount: aws.Int32(1), MaxCount: aws.Int32(1)}))(t).Instances[0].InstanceId
	_, err := r.elb.RegisterTargets(r.ctx, &elb.RegisterTargetsInput{TargetGroupArn: aws.String(groups["blue"]), Targets: []elbtypes.TargetDescription{{Id: id}}})
	wantCode(t, err, "InvalidTarget") // it does not run yet
	r.reaches(*id, "running")
	must(r.elb.RegisterTargets(r.ctx, &elb.RegisterTargetsInput{TargetGroupArn: aws.String(groups["blue"]), Targets: []elbtypes.TargetDescription{{Id: id}}}))(t)
	eventually(t, "healthy", func() bool { return r.health(groups["blue"])["healthy"] == 1 })
	must(r.ec2.TerminateInstances(r.ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{*id}}))(t)
	if codes, _ := load(t, c.ListenerURL(listener), 1); codes[502] != 1 {
		t.Errorf("%v, want 502", codes)
	}
	r.reaches(*id, "terminated")
	if h := r.health(groups["blue"]); len(h) != 0 {
		t.Errorf("a terminated instance is still registered: %v", h)
	}
	tr := c.Traffic(region)["blue"]
	if tr.ELB5xx != 1 || tr.Requests != 1 {
		t.Errorf("%+v", tr)
	}
}
