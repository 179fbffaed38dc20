package ami

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/test/awsfake"
)

const smallDisk = 1 << 20

const here, there = "eu-central-1", "us-west-2"

// world is an image with an AMI in two regions of a fake AWS.
type world struct {
	t     *testing.T
	fake  *awsfake.Cloud
	store *oci.Store
	img   artifact.Image
	c     map[string]*Cloud
	said  []string
}

// impatient is a region whose calls are tried once.
func impatient(ctx context.Context, region string) (*Cloud, error) {
	cfg, err := Config(ctx, region)
	cfg.RetryMaxAttempts = 1
	return CloudOf(cfg), err
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, fake: awsfake.Start(t), store: openStore(t), c: map[string]*Cloud{}}
	d := &w.fake.Delays
	d.Snapshot, d.Image, d.Pending, d.Stopping, d.ShuttingDown = time.Second, time.Second, time.Second, time.Second, time.Second
	for _, r := range []string{here, there} {
		c, err := impatient(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		w.c[r] = c
	}
	w.img = baked(t, w.store, "1.0.0", small(1))
	return w
}

// small is a disk of two blocks.
func small(n byte) []byte { return bytes.Repeat([]byte{n, 1}, smallDisk/2) }

// publish makes the AMIs and records them, as of a day ago.
func (w *world) publish(o Options) []Record {
	w.t.Helper()
	o.poll, o.Copy = time.Millisecond, []*Cloud{w.c[there]}
	records, err := Publish(w.t.Context(), w.c[here], w.store, w.img, o)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := range records {
		records[i].Time = records[i].Time.Add(-24 * time.Hour)
		if err := Keep(w.t.Context(), w.store, w.img, records[i]); err != nil {
			w.t.Fatal(err)
		}
	}
	return records
}

func (w *world) ladder() Ladder {
	return Ladder{Connect: impatient, Keep: w.store, Info: func(text string) { w.said = append(w.said, text) },
		Hold: func(_ context.Context, _ artifact.Image, f func() error) error { return f() }}
}

func (w *world) wish(step Step) []Wish {
	w.t.Helper()
	all, err := All(context.WithoutCancel(w.t.Context()), w.store, w.img)
	if err != nil {
		w.t.Fatal(err)
	}
	left, _, _ := Taken(all)
	return []Wish{{Image: w.img, AMIs: left, Step: step, Why: "old"}}
}

func (w *world) take(step Step) []Verdict {
	w.t.Helper()
	done, err := w.ladder().Apply(w.t.Context(), w.wish(step))
	if err != nil {
		w.t.Fatal(err)
	}
	return done
}

// stays is why nothing would be done.
func (w *world) stays(step Step) string {
	w.t.Helper()
	verdicts, err := w.ladder().Plan(w.t.Context(), w.wish(step))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, v := range verdicts {
		if v.Do != "" || v.Why != verdicts[0].Why {
			w.t.Errorf("%s in %s: %q, %s", v.AMI, v.Region, v.Do, v.Why)
		}
	}
	return verdicts[0].Why
}

func (w *world) image(r Record) *types.Image {
	w.t.Helper()
	all, err := w.c[r.Region].images(w.t.Context(), []string{r.AMI})
	if err != nil {
		w.t.Fatal(err)
	}
	if i, ok := all[r.AMI]; ok {
		return &i
	}
	return nil
}

// changed are the calls of the fake that changed something, from n on.
func (w *world) changed(n int) (out []string) {
	for _, c := range w.fake.Journal()[n:] {
		_, verb, _ := strings.Cut(c.Action, ":")
		if !strings.HasPrefix(verb, "Describe") && !strings.HasPrefix(verb, "Get") && c.Code == "" {
			out = append(out, c.Action)
		}
	}
	return out
}

func ok[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestAnAMIGoesDownTheLadderAndComesBackFromIt(t *testing.T) {
	w := newWorld(t)
	records := w.publish(Options{})
	if done := w.take(Deprecated); len(done) != 2 || done[0].Region != there {
		t.Errorf("%+v", done)
	}
	for _, r := range records {
		at, err := time.Parse(time.RFC3339, aws.ToString(w.image(r).DeprecationTime))
		if err != nil || time.Until(at) > 5*time.Minute {
			t.Errorf("%s is deprecated from %s: %v", r.AMI, at, err)
		}
	}
	w.take(Disabled)
	for _, r := range records {
		if i := w.image(r); i.State != types.ImageStateDisabled {
			t.Errorf("%s is %s", r.AMI, i.State)
		}
	}
	if _, err := Publish(t.Context(), w.c[here], w.store, w.img, Options{}); err == nil || !strings.Contains(err.Error(), "is disabled: `rebake ami restore web:1.0.0`") {
		t.Errorf("published again: %v", err)
	}
	all, err := All(t.Context(), w.store, w.img)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if _, err := w.c[m.Region].Restore(t.Context(), w.store, Of{w.img, m}, "by hand"); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range records {
		if i := w.image(r); i.State != types.ImageStateAvailable || aws.ToString(i.DeprecationTime) != "" {
			t.Errorf("%s is %s, deprecated from %q", r.AMI, i.State, aws.ToString(i.DeprecationTime))
		}
	}
	if all, err = All(t.Context(), w.store, w.img); err != nil {
		t.Fatal(err)
	}
	if _, taken, byHand := Taken(all); len(taken) > 0 || byHand.IsZero() {
		t.Errorf("taken %v, by hand %s", taken, byHand)
	}
	w.take(Removed)
	for _, r := range records {
		state, err := w.c[r.Region].snapshotState(t.Context(), r.Snapshot)
		if w.image(r) != nil || err != nil || state != "" {
			t.Errorf("%s is there, or its snapshot is %s: %v", r.AMI, state, err)
		}
	}
	if wish := w.wish(Removed); len(wish[0].AMIs) > 0 {
		t.Errorf("left: %+v", wish)
	}
}

func TestWhatRefersToAnAMIKeepsIt(t *testing.T) {
	w := newWorld(t)
	records := w.publish(Options{})
	ctx, c := t.Context(), w.c[there]
	one := &records[1].AMI
	data := &types.RequestLaunchTemplateData{ImageId: one, InstanceType: types.InstanceTypeT3Micro}
	other := &types.RequestLaunchTemplateData{ImageId: aws.String(w.fake.AddImage(there, types.Image{Name: aws.String("other")})), InstanceType: types.InstanceTypeT3Micro}
	const prefix = there + ": "
	for name, u := range map[string]struct {
		begin func() (end func())
		why   string
	}{
		"a stopped instance": {func() func() {
			run := ok[*ec2.RunInstancesOutput](t)(c.EC2.RunInstances(ctx, &ec2.RunInstancesInput{ImageId: one, MinCount: aws.Int32(1), MaxCount: aws.Int32(1), InstanceType: types.InstanceTypeT3Micro}))
			id := []string{aws.ToString(run.Instances[0].InstanceId)}
			if why := w.stays(Removed); !strings.Contains(why, "instance "+id[0]+" is of it") {
				t.Error(why)
			}
			wait(t, c, id[0], types.InstanceStateNameRunning)
			ok[*ec2.StopInstancesOutput](t)(c.EC2.StopInstances(ctx, &ec2.StopInstancesInput{InstanceIds: id}))
			return func() {
				ok[*ec2.TerminateInstancesOutput](t)(c.EC2.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: id}))
				wait(t, c, id[0], types.InstanceStateNameTerminated)
			}
		}, "instance i-"},
		"the default version of a launch template": {func() func() {
			lt := ok[*ec2.CreateLaunchTemplateOutput](t)(c.EC2.CreateLaunchTemplate(ctx, &ec2.CreateLaunchTemplateInput{LaunchTemplateName: aws.String("a"), LaunchTemplateData: data})).LaunchTemplate
			ok[*ec2.CreateLaunchTemplateVersionOutput](t)(c.EC2.CreateLaunchTemplateVersion(ctx, &ec2.CreateLaunchTemplateVersionInput{LaunchTemplateId: lt.LaunchTemplateId, LaunchTemplateData: other}))
			return func() {
				ok[*ec2.ModifyLaunchTemplateOutput](t)(c.EC2.ModifyLaunchTemplate(ctx, &ec2.ModifyLaunchTemplateInput{LaunchTemplateId: lt.LaunchTemplateId, DefaultVersion: aws.String("2")}))
			}
		}, "the default version of launch template a names it"},
		"the latest version of a launch template": {func() func() {
			lt := ok[*ec2.CreateLaunchTemplateOutput](t)(c.EC2.CreateLaunchTemplate(ctx, &ec2.CreateLaunchTemplateInput{LaunchTemplateName: aws.String("b"), LaunchTemplateData: other})).LaunchTemplate
			ok[*ec2.CreateLaunchTemplateVersionOutput](t)(c.EC2.CreateLaunchTemplateVersion(ctx, &ec2.CreateLaunchTemplateVersionInput{LaunchTemplateId: lt.LaunchTemplateId, LaunchTemplateData: data}))
			return func() {
				ok[*ec2.CreateLaunchTemplateVersionOutput](t)(c.EC2.CreateLaunchTemplateVersion(ctx, &ec2.CreateLaunchTemplateVersionInput{LaunchTemplateId: lt.LaunchTemplateId, LaunchTemplateData: other}))
			}
		}, "the latest version of launch template b names it"},
		"an old version that a group launches": {func() func() {
			lt := ok[*ec2.CreateLaunchTemplateOutput](t)(c.EC2.CreateLaunchTemplate(ctx, &ec2.CreateLaunchTemplateInput{LaunchTemplateName: aws.String("c"), LaunchTemplateData: other})).LaunchTemplate
			for _, d := range []*types.RequestLaunchTemplateData{data, other} {
				ok[*ec2.CreateLaunchTemplateVersionOutput](t)(c.EC2.CreateLaunchTemplateVersion(ctx, &ec2.CreateLaunchTemplateVersionInput{LaunchTemplateId: lt.LaunchTemplateId, LaunchTemplateData: d}))
			}
			ok[*autoscaling.CreateAutoScalingGroupOutput](t)(c.Scaling.CreateAutoScalingGroup(ctx, &autoscaling.CreateAutoScalingGroupInput{AutoScalingGroupName: aws.String("web"), MinSize: aws.Int32(0), MaxSize: aws.Int32(1),
				DesiredCapacity: aws.Int32(0), AvailabilityZones: []string{there + "a"}, LaunchTemplate: &astypes.LaunchTemplateSpecification{LaunchTemplateId: lt.LaunchTemplateId, Version: aws.String("2")}}))
			return func() {
				ok[*autoscaling.UpdateAutoScalingGroupOutput](t)(c.Scaling.UpdateAutoScalingGroup(ctx, &autoscaling.UpdateAutoScalingGroupInput{AutoScalingGroupName: aws.String("web"),
					LaunchTemplate: &astypes.LaunchTemplateSpecification{LaunchTemplateId: lt.LaunchTemplateId, Version: aws.String("3")}}))
			}
		}, "Auto Scaling group web launches it (launch template c, version 2)"},
	} {
		end := u.begin()
		before := len(w.fake.Journal())
		for _, step := range []Step{Deprecated, Disabled, Removed} {
			if why := w.stays(step); !strings.Contains(why, prefix+u.why) {
				t.Errorf("%s: %s, want %s", name, why, u.why)
			}
			if done := w.take(step); len(done) > 0 {
				t.Errorf("%s: %+v", name, done)
			}
		}
		if did := w.changed(before); len(did) > 0 {
			t.Errorf("%s: %q", name, did)
		}
		end()
	}
	if done := w.take(Removed); len(done) != 2 {
		t.Errorf("%+v, %q", done, w.said)
	}
}

func wait(t *testing.T, c *Cloud, id string, state types.InstanceStateName) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		out, err := c.EC2.DescribeInstances(t.Context(), &ec2.DescribeInstancesInput{InstanceIds: []string{id}})
		if err == nil && out.Reservations[0].Instances[0].State.Name == state {
			return
		}
	}
	t.Fatalf("%s is not %s", id, state)
}

func TestSharedAndProtectedAMIs(t *testing.T) {
	w := newWorld(t)
	const org = "arn:aws:organizations::111122223333:organization/o-abc123"
	records := w.publish(Options{Users: []string{"111122223333", org}, Protect: true})
	if why := w.stays(Disabled); !strings.Contains(why, "111122223333") || !strings.Contains(why, org) || !strings.Contains(why, "may launch it") {
		t.Error(why)
	}
	if done := w.take(Deprecated); len(done) != 2 { // which others are told, and keeps nobody from launching
		t.Errorf("%+v", done)
	}
	wish := w.wish(Removed)
	wish[0].Shared = true
	verdicts := ok[[]Verdict](t)(w.ladder().Plan(t.Context(), wish))
	if verdicts[0].Do != "" || !strings.Contains(verdicts[0].Why, "protected against deregistration") {
		t.Errorf("%+v", verdicts[0])
	}
	for _, r := range records {
		ok[*ec2.DisableImageDeregistrationProtectionOutput](t)(w.c[r.Region].EC2.DisableImageDeregistrationProtection(t.Context(), &ec2.DisableImageDeregistrationProtectionInput{ImageId: &r.AMI}))
	}
	if done := ok[[]Verdict](t)(w.ladder().Apply(t.Context(), wish)); len(done) != 2 {
		t.Errorf("%+v, %q", done, w.said)
	}
}

// Every question that Ask asks, denied or throttled: nothing is done.
func TestWithoutAnAnswerNothingIsRemoved(t *testing.T) {
	w := newWorld(t)
	w.publish(Options{})
	for _, action := range []string{"ec2:DescribeImages", "ec2:DescribeImageAttribute", "ec2:DescribeInstances", "ec2:DescribeLaunchTemplateVersions", "autoscaling:DescribeAutoScalingGroups"} {
		before := len(w.fake.Journal())
		w.fake.Set(func() { w.fake.Deny = func(a string) bool { return a == action } })
		done, err := w.ladder().Apply(t.Context(), w.wish(Removed))
		denied := (*DeniedError)(nil)
		if len(done) > 0 || !errors.As(err, &denied) || denied.Action != action {
			t.Errorf("%s denied: %+v, %v", action, done, err)
		}
		w.fake.Set(func() { w.fake.Deny = nil })
		stop := w.fake.Fault(awsfake.Fault{Action: action, Match: func(c *awsfake.Call) bool { return c.Region == there }, Code: "RequestLimitExceeded", HTTP: 503})
		if done, err = w.ladder().Apply(t.Context(), w.wish(Removed)); len(done) > 0 || err == nil || !strings.Contains(err.Error(), action+" in "+there) {
			t.Errorf("%s throttled: %+v, %v", action, done, err)
		}
		stop()
		if did := w.changed(before); len(did) > 0 {
			t.Errorf("%s: %q", action, did)
		}
	}
	w.fake.Set(func() {
		w.fake.Deny = func(a string) bool {
			return strings.HasPrefix(a, "ec2:DescribeI") || strings.HasPrefix(a, "autoscaling:")
		}
	})
	_, err := w.ladder().Plan(t.Context(), w.wish(Removed))
	if err == nil || strings.Count(err.Error(), "ec2:DescribeImages is not granted") != 2 {
		t.Errorf("not both regions are named: %v", err)
	}
}

// A kill at each call of AWS, before it was done and after: the next run ends well.
func TestARemovalThatWasCutOffGoesOn(t *testing.T) {
	for _, after := range []bool{false, true} {
		w := newWorld(t)
		for n := 0; ; n++ {
			if n == 1 { // most of what comes first are questions, which change nothing
				n = 7
			}
			w.img = baked(t, w.store, fmt.Sprintf("2.0.%d", n), small(byte(2+n)))
			records := w.publish(Options{})
			bystander := w.fake.AddImage(here, types.Image{Name: aws.String("another's " + w.img.Version), OwnerId: aws.String(awsfake.Account)})
			ctx, cancel := context.WithCancel(t.Context())
			before := len(w.fake.Journal())
			stop := w.fake.Fault(awsfake.Fault{Action: "*", After: after, Skip: n, Match: func(*awsfake.Call) bool { return true }, Code: cut(after)})
			done, err := w.ladder().Apply(ctx, w.wish(Removed))
			stop()
			cancel()
			name := fmt.Sprintf("after %d calls (done: %v)", n, after)
			if err == nil {
				if len(done) != 2 || n < 8 {
					t.Errorf("%s: %+v", name, done)
				}
				break
			}
			if again, err := w.ladder().Apply(t.Context(), w.wish(Removed)); err != nil {
				t.Fatalf("%s: %+v, %v", name, again, err)
			}
			for _, r := range records {
				state, err := w.c[r.Region].snapshotState(t.Context(), r.Snapshot)
				if w.image(r) != nil || err != nil || state != "" {
					t.Errorf("%s: %s is there, or its snapshot is %s: %v", name, r.AMI, state, err)
				}
			}
			if wish := w.wish(Removed); len(wish[0].AMIs) > 0 {
				t.Errorf("%s: left: %+v", name, wish)
			}
			if w.image(Record{Region: here, AMI: bystander}) == nil {
				t.Errorf("%s: another's AMI is gone", name)
			}
			for _, c := range w.changed(before) {
				if !slices.Contains([]string{"ec2:DeregisterImage", "ec2:DeleteSnapshot"}, c) {
					t.Errorf("%s: %s", name, c)
				}
			}
		}
		w.fake.Close()
	}
}

// Where EC2 does not delete the snapshots itself, nothing in AWS says which they were
// once the AMI is gone: what was recorded before does.
func TestSnapshotsAreFoundAfterTheirAMIIsGone(t *testing.T) {
	w := newWorld(t)
	ctx, c := t.Context(), w.c[here]
	w.fake.Fault(awsfake.Fault{Action: "ec2:DeregisterImage", Match: func(call *awsfake.Call) bool {
		call.In.(*ec2.DeregisterImageInput).DeleteAssociatedSnapshots = nil
		return false
	}})
	var snapshots []string
	for i := range byte(2) {
		one := baked(t, w.store, fmt.Sprintf("3.0.%d", i), small(10+i))
		records := ok[[]Record](t)(Publish(ctx, c, w.store, one, Options{poll: time.Millisecond}))
		ok[*ec2.DeregisterImageOutput](t)(c.EC2.DeregisterImage(ctx, &ec2.DeregisterImageInput{ImageId: &records[0].AMI}))
		snapshots = append(snapshots, records[0].Snapshot)
	}
	two := ok[*ec2.RegisterImageOutput](t)(c.EC2.RegisterImage(ctx, &ec2.RegisterImageInput{Name: aws.String("two volumes"), RootDeviceName: aws.String(rootDevice),
		TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeImage, Tags: tagList(Options{}.tags(w.img))}},
		BlockDeviceMappings: []types.BlockDeviceMapping{{DeviceName: aws.String(rootDevice), Ebs: &types.EbsBlockDevice{SnapshotId: &snapshots[0]}},
			{DeviceName: aws.String("/dev/sdf"), Ebs: &types.EbsBlockDevice{SnapshotId: &snapshots[1]}}}}))
	r := Record{Region: here, Account: awsfake.Account, AMI: *two.ImageId, Snapshot: snapshots[0], Time: time.Now().Add(-time.Hour)}
	if err := Keep(ctx, w.store, w.img, r); err != nil {
		t.Fatal(err)
	}
	stop := w.fake.Fault(awsfake.Fault{Action: "ec2:DeleteSnapshot", Code: "InternalError"})
	if done, err := w.ladder().Apply(ctx, w.wish(Removed)); err == nil || w.image(r) != nil {
		t.Fatalf("%+v, %v", done, err)
	}
	stop()
	if s := w.wish(Removed)[0].AMIs[0].Last(); s.Step != Removing || !slices.Contains(s.Snapshots, snapshots[1]) {
		t.Errorf("%+v", s)
	}
	w.take(Removed)
	for _, id := range snapshots {
		if state, err := c.snapshotState(ctx, id); err != nil || state != "" {
			t.Errorf("%s is %s: %v", id, state, err)
		}
	}
}

// cut is how a call ends: with an error that is not tried again, or a cut connection.
func cut(after bool) string {
	if after {
		return ""
	}
	return "InternalError"
}

func TestOnlyWhatIsRecordedAndTaggedGoes(t *testing.T) {
	w := newWorld(t)
	records := w.publish(Options{})
	ctx := t.Context()
	untag := func(id, key string) {
		ok[*ec2.DeleteTagsOutput](t)(w.c[here].EC2.DeleteTags(ctx, &ec2.DeleteTagsInput{Resources: []string{id}, Tags: []types.Tag{{Key: &key}}}))
	}
	tag := func(id, key, value string) {
		ok[*ec2.CreateTagsOutput](t)(w.c[here].EC2.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{id}, Tags: []types.Tag{{Key: &key, Value: &value}}}))
	}
	untag(records[0].AMI, TagDigest)
	if why := w.stays(Deprecated); !strings.Contains(why, "it has no tag rebake:digest") {
		t.Error(why)
	}
	tag(records[0].AMI, TagDigest, "sha256:another")
	if why := w.stays(Removed); !strings.Contains(why, "its tag rebake:digest is of another image") {
		t.Error(why)
	}
	tag(records[0].AMI, TagDigest, string(w.img.Digest))
	wish := w.wish(Removed)
	wish[0].AMIs[0].Snapshot = "snap-0123456789abcdef0"
	verdicts := ok[[]Verdict](t)(w.ladder().Plan(ctx, wish))
	if verdicts[0].Do != "" || !strings.Contains(verdicts[0].Why, "its snapshots are not snap-0123456789abcdef0") {
		t.Errorf("%+v", verdicts[0])
	}
	// Another AMI of the same snapshot: the snapshot stays, and it is said.
	ok[*ec2.RegisterImageOutput](t)(w.c[here].EC2.RegisterImage(ctx, &ec2.RegisterImageInput{Name: aws.String("another"), RootDeviceName: aws.String(rootDevice),
		BlockDeviceMappings: []types.BlockDeviceMapping{{DeviceName: aws.String(rootDevice), Ebs: &types.EbsBlockDevice{SnapshotId: &records[0].Snapshot}}}}))
	if done := w.take(Removed); len(done) != 2 {
		t.Errorf("%+v", done)
	}
	if said := strings.Join(w.said, "\n"); !strings.Contains(said, "snapshot "+records[0].Snapshot+" in "+here+" stays: another AMI has it") {
		t.Errorf("%q", w.said)
	}
	if state, err := w.c[here].snapshotState(ctx, records[0].Snapshot); err != nil || state != types.SnapshotStateCompleted {
		t.Errorf("the snapshot is %s: %v", state, err)
	}
}

// The credentials of another account see none of it.
func TestWhatIsNotSeenIsNotTakenForGone(t *testing.T) {
	w := newWorld(t)
	w.publish(Options{})
	all := w.wish(Removed)
	for i := range all[0].AMIs {
		all[0].AMIs[i].AMI = "ami-0123456789abcdef0"
		all[0].AMIs[i].Account = "999999999999"
	}
	verdicts := ok[[]Verdict](t)(w.ladder().Plan(t.Context(), all))
	if verdicts[0].Do != "" || !strings.Contains(verdicts[0].Why, "it is account 999999999999's, and these credentials are account "+awsfake.Account+"'s") {
		t.Errorf("%+v", verdicts[0])
	}
	all[0].AMIs[0].Account, all[0].AMIs[1].Account = "", awsfake.Account
	verdicts = ok[[]Verdict](t)(w.ladder().Plan(t.Context(), all))
	if verdicts[0].Do != "" || !strings.Contains(verdicts[0].Why, "whose it was is not recorded") {
		t.Errorf("%+v", verdicts[0])
	}
	all[0].AMIs[0].Account = awsfake.Account
	if verdicts = ok[[]Verdict](t)(w.ladder().Plan(t.Context(), all)); verdicts[0].Do != Removed {
		t.Errorf("%+v", verdicts[0])
	}
	all[0].AMIs[0].Time = time.Now()
	if verdicts = ok[[]Verdict](t)(w.ladder().Plan(t.Context(), all)); verdicts[0].Do != "" || !strings.Contains(verdicts[0].Why, "moments ago") {
		t.Errorf("%+v", verdicts[0])
	}
}

func TestPublishedWithKeysSharesAndDates(t *testing.T) {
	w := newWorld(t)
	const key, far, org = "arn:aws:kms:eu-central-1:123456789012:key/1", "arn:aws:kms:us-west-2:123456789012:key/2", "arn:aws:organizations::111122223333:organization/o-abc123"
	records := w.publish(Options{KMSKey: key, CopyKMSKeys: map[string]string{there: far}, Users: []string{"111122223333", org}, Deprecate: 90 * 24 * time.Hour, Protect: true, Tags: map[string]string{"team": "web"}})
	for i, want := range []string{key, far} {
		r := records[i]
		img := w.image(r)
		out := ok[*ec2.DescribeSnapshotsOutput](t)(w.c[r.Region].EC2.DescribeSnapshots(t.Context(), &ec2.DescribeSnapshotsInput{SnapshotIds: []string{r.Snapshot}}))
		s := out.Snapshots[0]
		if !aws.ToBool(s.Encrypted) || aws.ToString(s.KmsKeyId) != want || r.KMSKey != want {
			t.Errorf("%s: encrypted %v with %s, recorded %s", r.Region, aws.ToBool(s.Encrypted), aws.ToString(s.KmsKeyId), r.KMSKey)
		}
		for _, tags := range [][]types.Tag{s.Tags, img.Tags} {
			if tagOf(tags, "team") != "web" || tagOf(tags, TagDigest) != string(w.img.Digest) || tagOf(tags, TagImage) != "web:1.0.0" {
				t.Errorf("%s: tags %v", r.Region, tags)
			}
		}
		f := found(*img)
		if at := time.Until(f.Deprecated); at < 89*24*time.Hour || at > 91*24*time.Hour {
			t.Errorf("%s: deprecated from %s", r.Region, f.Deprecated)
		}
		shared, err := w.c[r.Region].shared(t.Context(), *img)
		if f.Protected == "" || err != nil || !slices.Equal(shared, []string{"111122223333", org}) {
			t.Errorf("%s: %+v, shared with %q, %v", r.Region, f, shared, err)
		}
	}
}

func TestARegionThatIsNotEnabledCostsNoUpload(t *testing.T) {
	w := newWorld(t)
	w.fake.Fault(awsfake.Fault{Action: "*", Match: func(c *awsfake.Call) bool { return c.Region == there }, Code: "AuthFailure", HTTP: 401})
	_, err := Publish(t.Context(), w.c[here], w.store, w.img, Options{poll: time.Millisecond, Copy: []*Cloud{w.c[there]}})
	if err == nil || !strings.Contains(err.Error(), "is the region enabled for this account?") || !strings.Contains(err.Error(), there) {
		t.Errorf("%v", err)
	}
	if did := w.changed(0); len(did) > 0 {
		t.Errorf("%q", did)
	}
}

func TestAParentThatIsGoneIsPassedOver(t *testing.T) {
	w := newWorld(t)
	first := w.publish(Options{})[0]
	data := small(1)
	copy(data[smallDisk-10:], "changed")
	next := baked(t, w.store, "1.1.0", data)
	w.fake.Fault(awsfake.Fault{Action: "ebs:StartSnapshot", Times: 1, Match: func(c *awsfake.Call) bool {
		in, ok := c.In.(*ebs.StartSnapshotInput)
		return ok && aws.ToString(in.ParentSnapshotId) == first.Snapshot
	}, Code: "ValidationException"})
	records, err := Publish(t.Context(), w.c[here], w.store, next, Options{poll: time.Millisecond, Parents: []Record{first}, Work: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(differ(data, make([]byte, smallDisk))) * BlockSize; records[0].From != "" || records[0].Sent != want {
		t.Errorf("built on %q, sent %d, want %d", records[0].From, records[0].Sent, want)
	}
	if _, err := w.c[here].EC2.DeregisterImage(t.Context(), &ec2.DeregisterImageInput{ImageId: &first.AMI, DeleteAssociatedSnapshots: aws.Bool(true)}); err != nil {
		t.Fatal(err)
	}
	third := baked(t, w.store, "1.2.0", append([]byte("also"), data[4:]...))
	if records, err = Publish(t.Context(), w.c[here], w.store, third, Options{poll: time.Millisecond, Parents: []Record{first, records[0]}}); err != nil || records[0].From == first.Snapshot || records[0].From == "" {
		t.Errorf("%+v, %v", records, err)
	}
}

// begun is the snapshot that a machine began and could not fill.
func (w *world) begun() string {
	w.t.Helper()
	stop := w.fake.Fault(awsfake.Fault{Action: "ebs:PutSnapshotBlock", Skip: 1, Code: "InternalServerException"})
	defer stop()
	if _, err := Publish(w.t.Context(), w.c[here], w.store, w.img, Options{poll: time.Millisecond, Parallel: 1, Work: w.t.TempDir()}); err == nil {
		w.t.Fatal("nothing failed")
	}
	out := ok[*ec2.DescribeSnapshotsOutput](w.t)(w.c[here].EC2.DescribeSnapshots(w.t.Context(), &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}}))
	if len(out.Snapshots) != 1 {
		w.t.Fatalf("%d snapshots", len(out.Snapshots))
	}
	return aws.ToString(out.Snapshots[0].SnapshotId)
}

func TestAnotherMachineGoesOnWithASnapshot(t *testing.T) {
	w := newWorld(t)
	first := w.begun()
	records, err := Publish(t.Context(), w.c[here], w.store, w.img, Options{poll: time.Millisecond, Work: t.TempDir()})
	if err != nil || records[0].Snapshot != first || records[0].Sent != smallDisk {
		t.Errorf("%+v, %v, want %s", records, err, first)
	}
}

func TestASnapshotThatWasDroppedIsPassedOver(t *testing.T) {
	w := newWorld(t)
	w.fake.Set(func() {
		w.fake.Speed, w.fake.Now = 5e5, func() time.Time { return time.Now().Add(-time.Hour) } // it is dropped in 7 ms
	})
	first := w.begun()
	for state := types.SnapshotStatePending; state == types.SnapshotStatePending; time.Sleep(5 * time.Millisecond) {
		var err error
		if state, err = w.c[here].snapshotState(t.Context(), first); err != nil {
			t.Fatal(err)
		}
	}
	w.fake.Set(func() { w.fake.Speed, w.fake.Now = 1000, nil })
	records, err := Publish(t.Context(), w.c[here], w.store, w.img, Options{poll: time.Millisecond, Work: t.TempDir()})
	if err != nil || records[0].Snapshot == first || records[0].Sent != smallDisk {
		t.Errorf("%+v, %v, not %s", records, err, first)
	}
}
