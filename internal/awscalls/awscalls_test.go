package awscalls

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
	"github.com/aws/smithy-go"

	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/test/awsfake"
)

func intend(t *testing.T, j *Journal, e Entry) int {
	t.Helper()
	n, err := j.intend(e)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTheJournalHoldsEveryChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "build", Name)
	j, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := intend(t, j, Entry{Call: "EC2.RunInstances", Region: "here"}); n != 1 {
		t.Fatal(n)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteString(`{"n":2,"call":"EC2.Creat`) // a kill in the middle of a line
	f.Close()
	again, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := intend(t, again, Entry{Call: "EC2.CopyImage", Region: "there"}); n != 2 {
		t.Fatal(n)
	}
	if n := intend(t, j, Entry{Call: "EC2.CreateTags", Region: "here"}); n != 3 {
		t.Fatalf("two who write give two calls the number %d", n)
	}
	all, err := Read(path)
	if err != nil || len(all) != 3 || !slices.Equal(Regions(all), []string{"here", "there"}) {
		t.Errorf("%+v, %v", all, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := j.intend(Entry{Call: "EC2.RunInstances"}); err == nil {
		t.Error("a call may be made of which nothing is known afterwards")
	}
}

func TestABoundedJournalBeginsAnewAndCountsOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fleets", "web", Name)
	j := Bounded(path)
	if Bounded(path) != j {
		t.Error("pool and router of a fleet have two journals")
	}
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a journal without a call is there: %v", err)
	}
	j.most = 4 << 10
	const calls = 200
	for i := range calls {
		if n := intend(t, j, Entry{Call: "AutoScaling.UpdateAutoScalingGroup", Region: "here"}); n != i+1 {
			t.Fatalf("call %d has the number %d", i+1, n)
		}
		if err := j.end(Entry{Of: i + 1}); err != nil {
			t.Fatal(err)
		}
		if i == 100 { // another process
			j = &Journal{path: path, most: j.most}
		}
	}
	var size int64
	files, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		st, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		size += st.Size()
	}
	if size > 2*(j.most+1024) {
		t.Errorf("%d bytes are kept, where each of two files has %d", size, j.most)
	}
	all, err := Read(path)
	if err != nil || len(all) < 20 || all[len(all)-1].Of != calls {
		t.Fatalf("%d lines, %v", len(all), err)
	}
	for i, e := range all[1:] {
		if was := all[i]; e.N != 0 && e.N != was.Of+1 || e.Of != 0 && e.Of != was.N {
			t.Fatalf("%+v follows %+v", e, was)
		}
	}
	to := filepath.Join(t.TempDir(), "logs", "fleet-web-"+Name)
	if err := Move(path, to); err != nil {
		t.Fatal(err)
	}
	if moved, err := Read(to); err != nil || len(moved) != len(all) {
		t.Errorf("%d of %d lines were moved, %v", len(moved), len(all), err)
	}
	if n := intend(t, j, Entry{Call: "AutoScaling.DeleteAutoScalingGroup"}); n != calls+1 {
		t.Errorf("after it was moved: %d", n)
	}
	if err := Move(filepath.Join(t.TempDir(), Name), to); err != nil {
		t.Errorf("nothing was called, and %v", err)
	}
}

func TestWhereNothingCanBeWrittenNothingIsCalled(t *testing.T) {
	cloud := awsfake.Start(t)
	cfg, err := ami.Config(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "fleets")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*ec2.Client{
		"a directory that is a file": ec2.NewFromConfig(Bounded(filepath.Join(file, "web", Name)).In(cfg)),
		"no journal":                 ec2.NewFromConfig(ByContext(cfg, nil))} {
		_, err := c.CreateSecurityGroup(t.Context(), &ec2.CreateSecurityGroupInput{GroupName: aws.String("a"), Description: aws.String("b")})
		if err == nil {
			t.Errorf("%s: the call was made", name)
		}
		if _, err := c.DescribeVpcs(t.Context(), &ec2.DescribeVpcsInput{}); err != nil {
			t.Errorf("%s: a call that changes nothing: %v", name, err)
		}
	}
	if n := cloud.Calls()["ec2:CreateSecurityGroup"]; n != 0 {
		t.Errorf("%d calls", n)
	}
}

// What is written is what somebody looks for afterwards, and no secret.
func TestWhatIsTold(t *testing.T) {
	secret := aws.String("hunter2")
	for _, c := range []struct {
		params any
		with   map[string]string
		ids    []string
	}{
		{&ec2.CreateLaunchTemplateInput{LaunchTemplateName: aws.String("rebake-web-blue-1"), ClientToken: aws.String("token"), VersionDescription: secret,
			LaunchTemplateData: &types.RequestLaunchTemplateData{UserData: secret, KeyName: secret},
			TagSpecifications:  []types.TagSpecification{{Tags: []types.Tag{{Key: secret, Value: secret}}}}},
			map[string]string{"LaunchTemplateName": "rebake-web-blue-1", "ClientToken": "token"}, nil},
		{&ec2.RunInstancesInput{ImageId: aws.String("ami-1"), UserData: secret, ClientToken: aws.String("t"), LaunchTemplate: &types.LaunchTemplateSpecification{LaunchTemplateId: aws.String("lt-1")}},
			map[string]string{"ClientToken": "t"}, []string{"ami-1", "lt-1"}},
		{&ec2.CreateTagsInput{Resources: []string{"i-1"}, Tags: []types.Tag{{Key: secret, Value: secret}}}, nil, []string{"i-1"}},
		{&ec2.RunInstancesOutput{Instances: []types.Instance{{InstanceId: aws.String("i-1"), KeyName: secret}, {InstanceId: aws.String("i-2")}}}, nil, []string{"i-1", "i-2"}},
		{&autoscaling.UpdateAutoScalingGroupInput{AutoScalingGroupName: aws.String("g"), MinSize: aws.Int32(0), DesiredCapacity: aws.Int32(3)},
			map[string]string{"AutoScalingGroupName": "g", "MinSize": "0", "DesiredCapacity": "3"}, nil},
		{&autoscaling.CreateOrUpdateTagsInput{Tags: []astypes.Tag{{ResourceId: aws.String("g"), Value: secret}, {ResourceId: aws.String("g")}}}, nil, []string{"g"}},
		{&autoscaling.LaunchInstancesOutput{Instances: []astypes.InstanceCollection{{InstanceIds: []string{"i-1", "i-2"}}}}, nil, []string{"i-1", "i-2"}},
		{&elb.RegisterTargetsInput{TargetGroupArn: aws.String("arn:tg"), Targets: []elbtypes.TargetDescription{{Id: aws.String("i-1")}}}, nil, []string{"arn:tg", "i-1"}},
		{&elb.CreateRuleOutput{Rules: []elbtypes.Rule{{RuleArn: aws.String("arn:rule"), Actions: []elbtypes.Action{{AuthenticateOidcConfig: &elbtypes.AuthenticateOidcActionConfig{ClientSecret: secret}}}}}},
			nil, []string{"arn:rule"}},
		{&elb.AddTagsInput{ResourceArns: []string{"arn:rule"}, Tags: []elbtypes.Tag{{Key: secret, Value: secret}}}, nil, []string{"arn:rule"}},
		{&ebs.StartSnapshotOutput{SnapshotId: aws.String("snap-1"), Tags: nil}, nil, []string{"snap-1"}},
		{nil, nil, nil},
	} {
		with, ids := told(c.params)
		if fmt.Sprint(with) != fmt.Sprint(c.with) || !slices.Equal(ids, c.ids) {
			t.Errorf("%T: %v %v, not %v %v", c.params, with, ids, c.with, c.ids)
		}
	}
}

type status struct {
	error
	code int
}

func (s status) HTTPStatusCode() int { return s.code }
func (s status) Unwrap() error       { return s.error }

func TestOutcomes(t *testing.T) {
	refused := &smithy.GenericAPIError{Code: "InsufficientInstanceCapacity"}
	full := &autoscaling.LaunchInstancesOutput{Errors: []astypes.LaunchInstancesError{{ErrorCode: aws.String("InsufficientInstanceCapacity"), ErrorMessage: aws.String("none")}}}
	answer := func(err error) bool { return errors.Is(err, refused) }
	for _, c := range []struct {
		want string
		got  Entry
	}{
		{`{"of":1,"made":["i-1"]}`, outcome(1, &ec2.RunInstancesOutput{Instances: []types.Instance{{InstanceId: aws.String("i-1")}}}, nil, nil)},
		{`{"of":1,"code":"InsufficientInstanceCapacity"}`, outcome(1, nil, status{refused, 400}, nil)},
		{`{"of":1,"code":"InsufficientInstanceCapacity"}`, outcome(1, nil, status{refused, 500}, answer)},
		{`{"of":1,"code":"InsufficientInstanceCapacity"}`, outcome(1, full, nil, nil)},
		{`{"of":1,"error":"status 500"}`, outcome(1, nil, status{refused, 500}, nil)},
		{`{"of":1,"error":"no answer"}`, outcome(1, nil, context.Canceled, answer)},
	} {
		raw, err := json.Marshal(c.got)
		if err != nil {
			t.Fatal(err)
		}
		if text := strings.Replace(string(raw), `"time":"0001-01-01T00:00:00Z",`, "", 1); text != c.want {
			t.Errorf("%s, not %s", text, c.want)
		}
	}
}

// Sixteen blocks at once, of which one is written down before any is sent.
func TestOfASnapshotsBlocksTheFirstIsWritten(t *testing.T) {
	cloud := awsfake.Start(t)
	path := filepath.Join(t.TempDir(), Name)
	cloud.Fault(awsfake.Fault{Action: "ebs:PutSnapshotBlock", Match: func(*awsfake.Call) bool {
		all, err := Read(path)
		if err != nil || !slices.ContainsFunc(all, func(e Entry) bool { return e.Call == "EBS.PutSnapshotBlock" }) {
			t.Errorf("a block was sent first: %v", err)
		}
		return false
	}})
	cfg, err := ami.Config(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	c := ami.CloudOf(Bounded(path).In(cfg))
	snap, err := c.EBS.StartSnapshot(t.Context(), &ebs.StartSnapshotInput{VolumeSize: aws.Int64(1)})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			_, err := c.EBS.PutSnapshotBlock(t.Context(), &ebs.PutSnapshotBlockInput{SnapshotId: snap.SnapshotId, BlockIndex: aws.Int32(int32(i)), BlockData: http.NoBody,
				DataLength: aws.Int32(524288), Checksum: aws.String("x"), ChecksumAlgorithm: "SHA256"})
			if err == nil {
				t.Error("an empty block was taken: the test is blind")
			}
		})
	}
	wg.Wait()
	all, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	var calls []string
	for _, e := range all {
		if e.Call != "" {
			calls = append(calls, e.Call)
		}
	}
	if want := []string{"EBS.StartSnapshot", "EBS.PutSnapshotBlock"}; !slices.Equal(calls, want) || cloud.Calls()["ebs:PutSnapshotBlock"] != 16 {
		t.Errorf("%v, want %v; %v", calls, want, cloud.Calls())
	}
}
