package amazon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/internal/awscalls"
	"github.com/rebake/rebake/internal/event"
)

// sweep removes what has a machine's tag in a region, the last made first. It
// goes on until nothing is left and nothing can be on its way: what was just made
// may not be listed yet.
type sweep struct {
	d    Deps
	r    *region
	id   string
	kept *published // what stays, and loses the tag
	seen map[string]bool
}

func (s *sweep) run(ctx context.Context) error {
	s.seen = map[string]bool{}
	for _, id := range s.kept.ids(s.r.name) {
		s.seen[id] = true
	}
	said, began := "", time.Now()
	for {
		left, err := s.pass(ctx)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			unsure, err := s.unsure()
			if err != nil {
				return err
			}
			if !unsure {
				return s.release(ctx)
			}
			left = []string{"what was just made to be seen"}
		}
		if text := fmt.Sprintf("%s: %v", s.r.name, left); text != said {
			event.Waiting(ctx, "%s", text)
			said, began = text, time.Now()
		}
		if err := pause(ctx, s.d.wait(began)); err != nil {
			return fmt.Errorf("still there: %v: %w", left, err)
		}
	}
}

// pass asks once for all there is, orders its removal, and returns what is not gone.
func (s *sweep) pass(ctx context.Context) (left []string, err error) {
	for _, f := range []func(context.Context) ([]string, error){s.instances, s.images, s.snapshots, s.volumes, s.groups} {
		more, err := f(ctx)
		if err != nil {
			return left, err
		}
		if left = append(left, more...); len(left) > 0 { // what follows is held by it
			return left, nil
		}
	}
	return nil, nil
}

func (s *sweep) tag() types.Filter { return filter("tag:"+TagBuild, s.id) }

func (s *sweep) keeps(id string) bool { return slices.Contains(s.kept.ids(s.r.name), id) }

// gone is an answer that says that it was removed before.
func gone(err error) error {
	if isOne(err, "InvalidInstanceID.NotFound", "InvalidAMIID.NotFound", "InvalidAMIID.Unavailable", "InvalidSnapshot.NotFound", "InvalidVolume.NotFound", "InvalidGroup.NotFound", "InvalidGroupId.NotFound") {
		return nil
	}
	return err
}

// held is an answer that says that something else must go first.
func held(err error) bool {
	return isOne(err, "InvalidSnapshot.InUse", "VolumeInUse", "IncorrectState", "DependencyViolation", "InvalidGroup.InUse")
}

func (s *sweep) instances(ctx context.Context) (left []string, err error) {
	all, err := s.r.instances(ctx, s.id)
	if err != nil {
		return nil, err
	}
	var end []string
	for _, i := range all {
		id := aws.ToString(i.InstanceId)
		s.seen[id] = true
		if i.State != nil && i.State.Name == types.InstanceStateNameTerminated {
			continue
		}
		left = append(left, id)
		if i.State == nil || i.State.Name != types.InstanceStateNameShuttingDown {
			end = append(end, id)
		}
	}
	if len(end) > 0 {
		_, err = s.r.ec2.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: end})
	}
	return left, gone(err)
}

func (s *sweep) images(ctx context.Context) (left []string, err error) {
	all, err := s.r.images(ctx, s.tag())
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		id := aws.ToString(i.ImageId)
		s.seen[id] = true
		if s.keeps(id) || i.State == types.ImageStateDeregistered {
			continue
		}
		_, err := s.r.ec2.DeregisterImage(ctx, &ec2.DeregisterImageInput{ImageId: &id})
		if gone(err) != nil {
			return left, fmt.Errorf("deregister %s: %w", id, err)
		}
		left = append(left, id) // until it is not listed
	}
	return left, nil
}

func (s *sweep) snapshots(ctx context.Context) (left []string, err error) {
	in := &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}, Filters: []types.Filter{s.tag()}}
	for p := ec2.NewDescribeSnapshotsPaginator(s.r.ec2, in); p.HasMorePages(); {
		page, err := p.NextPage(ctx)
		if err != nil {
			return left, err
		}
		for _, sn := range page.Snapshots {
			id := aws.ToString(sn.SnapshotId)
			s.seen[id] = true
			if s.keeps(id) {
				continue
			}
			_, err := s.r.ec2.DeleteSnapshot(ctx, &ec2.DeleteSnapshotInput{SnapshotId: &id})
			if held(err) {
				err = s.testImages(ctx, id)
			}
			if gone(err) != nil {
				return left, fmt.Errorf("delete %s: %w", id, err)
			}
			left = append(left, id)
		}
	}
	return left, nil
}

// testImages deregisters the AMIs that test machines of this build have of its
// snapshot: whoever is destroyed first, the snapshot goes with the build.
func (s *sweep) testImages(ctx context.Context, snapshot string) error {
	all, err := s.r.images(ctx, filter("tag:"+TagBuild, s.id+"-*"))
	if err != nil {
		return err
	}
	for _, i := range all {
		of := slices.ContainsFunc(i.BlockDeviceMappings, func(m types.BlockDeviceMapping) bool {
			return m.Ebs != nil && aws.ToString(m.Ebs.SnapshotId) == snapshot
		})
		if !of || !strings.HasPrefix(tagOf(i.Tags, TagBuild), s.id+"-") {
			continue
		}
		if _, err := s.r.ec2.DeregisterImage(ctx, &ec2.DeregisterImageInput{ImageId: i.ImageId}); gone(err) != nil {
			return fmt.Errorf("deregister %s: %w", aws.ToString(i.ImageId), err)
		}
	}
	return nil
}

func (s *sweep) volumes(ctx context.Context) (left []string, err error) {
	for p := ec2.NewDescribeVolumesPaginator(s.r.ec2, &ec2.DescribeVolumesInput{Filters: []types.Filter{s.tag()}}); p.HasMorePages(); {
		page, err := p.NextPage(ctx)
		if err != nil {
			return left, err
		}
		for _, v := range page.Volumes {
			id := aws.ToString(v.VolumeId)
			s.seen[id] = true
			left = append(left, id)
			if v.State == types.VolumeStateInUse || v.State == types.VolumeStateDeleting {
				continue
			}
			_, err := s.r.ec2.DeleteVolume(ctx, &ec2.DeleteVolumeInput{VolumeId: &id})
			if gone(err) != nil && !held(err) {
				return left, fmt.Errorf("delete %s: %w", id, err)
			}
		}
	}
	return left, nil
}

func (s *sweep) groups(ctx context.Context) (left []string, err error) {
	all, err := s.r.securityGroups(ctx, s.tag())
	if err != nil {
		return nil, err
	}
	for _, g := range all {
		id := aws.ToString(g.GroupId)
		s.seen[id] = true
		_, err := s.r.ec2.DeleteSecurityGroup(ctx, &ec2.DeleteSecurityGroupInput{GroupId: &id})
		if gone(err) != nil && !held(err) {
			return left, fmt.Errorf("delete %s: %w", id, err)
		}
		left = append(left, id)
	}
	return left, nil
}

// made says what a call makes: ids that begin so.
var made = map[string]string{"EC2.RunInstances": "i-", "EC2.CreateSnapshot": "snap-", "EC2.RegisterImage": "ami-", "EC2.CopyImage": "ami-", "EC2.CreateSecurityGroup": "sg-"}

// unsure tells whether something may have been made that no list showed: a call
// that nobody knows the answer of, or an id that was not seen. After some time all
// is seen.
func (s *sweep) unsure() (bool, error) {
	all, err := awscalls.Read(s.d.callsPath(s.id))
	if err != nil {
		return false, err
	}
	ends, removed := map[int]awscalls.Entry{}, map[string]bool{}
	for _, e := range all {
		if e.Of != 0 {
			ends[e.Of] = e
		}
	}
	for _, e := range all {
		if slices.Contains([]string{"EC2.TerminateInstances", "EC2.DeregisterImage", "EC2.DeleteSnapshot", "EC2.DeleteVolume", "EC2.DeleteSecurityGroup"}, e.Call) {
			for _, id := range e.IDs {
				removed[id] = true
			}
		}
	}
	for _, e := range all {
		kind, makes := made[e.Call]
		if e.Region != s.r.name || time.Since(e.Time) > s.d.seen() || !makes {
			continue
		}
		end, answered := ends[e.N]
		switch {
		case answered && end.Code != "":
		case !answered || end.Error != "":
			return true, nil
		case e.Call == "EC2.CopyImage" && (len(end.Made) == 0 || !s.keeps(end.Made[0])): // its snapshot comes later
			return true, nil
		case slices.ContainsFunc(end.Made, func(id string) bool { return strings.HasPrefix(id, kind) && !s.seen[id] && !removed[id] }):
			return true, nil
		}
	}
	return false, nil
}

// release gives what was published to its image: no gc takes it from here on.
func (s *sweep) release(ctx context.Context) error {
	ids := s.kept.ids(s.r.name)
	if len(ids) == 0 {
		return nil
	}
	_, err := s.r.ec2.DeleteTags(ctx, &ec2.DeleteTagsInput{Resources: ids, Tags: []types.Tag{{Key: aws.String(TagBuild), Value: &s.id}}})
	if gone(err) != nil {
		return fmt.Errorf("take the build's tag from %v: %w", ids, err)
	}
	if ami := s.kept.AMIs[s.r.name]; s.kept.Protect && ami != "" {
		_, err := s.r.ec2.EnableImageDeregistrationProtection(ctx, &ec2.EnableImageDeregistrationProtectionInput{ImageId: &ami})
		return errors.Join(gone(err))
	}
	return nil
}
