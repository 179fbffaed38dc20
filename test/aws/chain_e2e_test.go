//go:build e2e

package aws

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"

	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/test/awsguest"
)

// From one template: two bakes on instances, over SSH; what they left on their disks
// is what two Auto Scaling groups serve, one after the other and back; and at the end
// nothing is there that rebake made, but for the images' AMIs, which go with them.
func TestWhatIsBakedInAWSIsWhatServesThere(t *testing.T) {
	r := newRig(t)
	cfg, err := ami.Config(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	guests := awsguest.In(t, r.cloud, cfg)
	guests.Web = true
	source := guests.Image("somebody's debian", guests.Machines)
	r.write("web.yaml", fmt.Sprintf(`name: web
variables:
  release: {description: what the page says}
build:
  amazon:
    source: {ami: %s}
    instance_type: t3.micro
    ssh: {user: root, port: %d}
provision:
  - file: {content: "release ${{ var.release }}\n", destination: /www/index.html}
  - shell: {inline: ["echo over SSH >>$HOME/../www/index.html"]}
test:
  - file: {path: /www/index.html, contains: over SSH}
fleet:
  size: 2
  pool:
    asg: {instance: {types: [t3.micro]}, subnets: [%s]}
  router:
    alb: {listener: "%s", priority: 10, deregistration_delay: 10s}
  health: {http: {port: 80, path: /}, interval: 5s, within: 60s}
  deploy:
    steps: [{weight: 10, hold: 1s}, {weight: 100, hold: 1s}]
    keep_old: 1h
retention: {keep_last: 1, min_age: 0s, ami: {delete: 0s, min_age: 0s}}
`, source, guests.Port, strings.Join(r.Subnets, ", "), r.Listener))

	r.rebake(0, "up", "web.yaml", "--var", "release=1", "--version", "1.0.0")
	r.says("release 1\nover SSH\n")
	v1, sent := r.ami("1.0.0")
	if sent != 0 {
		t.Errorf("the AMI of a bake in AWS was sent there: %d bytes", sent)
	}
	r.serves(v1)
	if tags := r.tags(); len(tags) < 9 { // AMI and snapshot; group, template, two instances; rule, two target groups
		t.Fatalf("only %v is rebake's: the test is blind", tags)
	}

	var v2 string
	r.under("a second bake and the swap to it", func() {
		r.rebake(0, "build", "web.yaml", "--var", "release=2", "--version", "2.0.0")
		r.says("release 1\nover SSH\n")
		r.rebake(0, "deploy", "web.yaml", "--var", "release=2", "--image", "web:2.0.0")
		v2, _ = r.ami("2.0.0")
		r.serves(v2)
	})
	r.says("release 2\nover SSH\n")
	r.under("rollback", func() { r.rebake(0, "rollback", "web") })
	r.serves(v1)
	r.says("release 1\nover SSH\n")

	r.rebake(0, "fleet", "destroy", "web", "--yes")
	out, _ := r.rebake(0, "gc")
	if !strings.Contains(out, "nothing to remove") {
		t.Errorf("gc had to remove something: %s", out)
	}
	for of, keys := range r.tags() {
		if !strings.HasPrefix(of, "ami-") && !strings.HasPrefix(of, "snap-") || slices.Contains(keys, "rebake:build") || slices.Contains(keys, "rebake:fleet") {
			t.Errorf("left: %s with %v", of, keys)
		}
	}
	if !r.there(v1) || !r.there(v2) {
		t.Error("the AMI of an image that is there is gone")
	}
	for _, dir := range []string{state.Dir(r.home).Builds(), state.Dir(r.home).Fleets()} {
		if entries, err := os.ReadDir(dir); err != nil && !os.IsNotExist(err) || len(entries) > 0 {
			t.Errorf("%s holds %v, %v", dir, entries, err)
		}
	}
	r.rebake(0, "images", "rm", "web:2.0.0")
	r.rebake(0, "images", "rm", "web:1.0.0")
	r.rebake(0, "images", "prune", "--template", "web.yaml", "--var", "release=2", "--yes")
	if left := r.tags(); len(left) > 0 {
		t.Errorf("left of images that are gone: %v", left)
	}
}

// says checks what a request is answered.
func (r *rig) says(want string) {
	r.t.Helper()
	res, err := http.Get(r.url)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	if got, err := io.ReadAll(res.Body); err != nil || string(got) != want {
		r.t.Errorf("%q answers, not %q; %v", got, want, err)
	}
}

// tags are rebake's, by what has them and is not an instance that ended.
func (r *rig) tags() map[string][]string {
	r.t.Helper()
	ctx, found := r.t.Context(), map[string][]string{}
	add := func(of, key *string) {
		if strings.HasPrefix(aws.ToString(key), "rebake:") {
			found[aws.ToString(of)] = append(found[aws.ToString(of)], aws.ToString(key))
		}
	}
	out, err := r.EC2.DescribeTags(ctx, &ec2.DescribeTagsInput{})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, t := range out.Tags {
		add(t.ResourceId, t.Key)
	}
	instances, err := r.EC2.DescribeInstances(ctx, &ec2.DescribeInstancesInput{})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, res := range instances.Reservations {
		for _, i := range res.Instances {
			if i.State.Name == "terminated" {
				delete(found, aws.ToString(i.InstanceId))
			}
		}
	}
	groups, err := r.AS.DescribeTags(ctx, &autoscaling.DescribeTagsInput{})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, t := range groups.Tags {
		add(t.ResourceId, t.Key)
	}
	var arns []string
	targets, err := r.ELB.DescribeTargetGroups(ctx, &elb.DescribeTargetGroupsInput{})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, g := range targets.TargetGroups {
		arns = append(arns, aws.ToString(g.TargetGroupArn))
	}
	rules, err := r.ELB.DescribeRules(ctx, &elb.DescribeRulesInput{ListenerArn: &r.Listener})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, rule := range rules.Rules {
		arns = append(arns, aws.ToString(rule.RuleArn))
	}
	elbs, err := r.ELB.DescribeTags(ctx, &elb.DescribeTagsInput{ResourceArns: arns})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, d := range elbs.TagDescriptions {
		for _, t := range d.Tags {
			add(d.ResourceArn, t.Key)
		}
	}
	return found
}
