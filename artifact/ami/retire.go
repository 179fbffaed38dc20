package ami

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
	"github.com/rebake/rebake/artifact"
)

// do takes the step of a verdict and records it. Each may be done again: after a
// kill it goes on where it was.
func (c *Cloud) do(ctx context.Context, a artifact.Attacher, v Verdict, info func(string)) (Made, error) {
	switch v.Do {
	case Deprecated:
		if soon := time.Now().Add(deprecateIn); v.There() && (v.Deprecated.IsZero() || v.Deprecated.After(soon)) {
			if _, err := c.EC2.EnableImageDeprecation(ctx, &ec2.EnableImageDeprecationInput{ImageId: &v.AMI,
				DeprecateAt: aws.Time(soon.UTC().Truncate(time.Minute))}); err != nil {
				return v.Made, c.asked("ec2:EnableImageDeprecation", err)
			}
		}
	case Disabled:
		if v.There() && v.Found.State != string(types.ImageStateDisabled) {
			if _, err := c.EC2.DisableImage(ctx, &ec2.DisableImageInput{ImageId: &v.AMI}); err != nil {
				return v.Made, c.asked("ec2:DisableImage", err)
			}
		}
	case Removed:
		return c.remove(ctx, a, v, info)
	default:
		return v.Made, fmt.Errorf("no such step: %q", v.Do)
	}
	return v.Say(ctx, a, v.Image, State{Step: v.Do, Why: v.Why})
}

// deprecateIn is how far in the future a deprecation is asked for: EC2 takes none
// that is past, and whole minutes.
const deprecateIn = 2 * time.Minute

// remove deregisters the AMI and deletes its snapshots. What goes is recorded
// before the first call: once the AMI is gone nothing in AWS says which were its.
func (c *Cloud) remove(ctx context.Context, a artifact.Attacher, v Verdict, info func(string)) (m Made, err error) {
	m = v.Made
	snapshots := slices.Clone(v.Snapshots)
	if m.Last().Step == Removing {
		snapshots = append(snapshots, m.Last().Snapshots...)
	}
	if m.Snapshot != "" {
		snapshots = append(snapshots, m.Snapshot)
	}
	slices.Sort(snapshots)
	snapshots = slices.Compact(snapshots)
	if m.Last().Step != Removing {
		if m, err = m.Say(ctx, a, v.Image, State{Step: Removing, Snapshots: snapshots, Why: v.Why}); err != nil {
			return m, err
		}
	}
	if v.There() {
		_, err := c.EC2.DeregisterImage(ctx, &ec2.DeregisterImageInput{ImageId: &m.AMI, DeleteAssociatedSnapshots: aws.Bool(true)})
		if err != nil && !isCode(err, "InvalidAMIID.NotFound") && !isCode(err, "InvalidAMIID.Unavailable") {
			return m, c.asked("ec2:DeregisterImage", err)
		}
	}
	left, err := c.deleteSnapshots(ctx, snapshots)
	if err != nil {
		return m, err
	}
	for _, l := range left {
		info(l)
	}
	return m.Say(ctx, a, v.Image, State{Step: Removed, Why: v.Why, Snapshots: left})
}

// deleteSnapshots deletes those that are there still, and says which it leaves and
// why. That later snapshots were built on one is no reason: EBS keeps what they need.
func (c *Cloud) deleteSnapshots(ctx context.Context, ids []string) (left []string, err error) {
	if len(ids) == 0 {
		return nil, nil
	}
	out, err := c.EC2.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"},
		Filters: []types.Filter{{Name: aws.String("snapshot-id"), Values: ids}}})
	if err != nil {
		return nil, c.asked("ec2:DescribeSnapshots", err)
	}
	for _, s := range out.Snapshots {
		id := aws.ToString(s.SnapshotId)
		if !slices.ContainsFunc(s.Tags, func(t types.Tag) bool { return strings.HasPrefix(aws.ToString(t.Key), "rebake:") }) {
			left = append(left, fmt.Sprintf("snapshot %s in %s stays: it has no tag of rebake's", id, c.Region))
			continue
		}
		_, err := c.EC2.DeleteSnapshot(ctx, &ec2.DeleteSnapshotInput{SnapshotId: &id})
		switch {
		case err == nil, isCode(err, "InvalidSnapshot.NotFound"):
		case isCode(err, "InvalidSnapshot.InUse"):
			left = append(left, fmt.Sprintf("snapshot %s in %s stays: another AMI has it", id, c.Region))
		default:
			return left, c.asked("ec2:DeleteSnapshot", err)
		}
	}
	return left, nil
}

// Restore takes the ladder's steps back, but for the last: what is disabled can be
// launched again, what is deprecated is not any more. Whom a disabled AMI was
// shared with EC2 has forgotten. The ladder leaves it alone from then on.
func (c *Cloud) Restore(ctx context.Context, a artifact.Attacher, of Of, why string) (Made, error) {
	all, err := c.Look(ctx, []Of{of})
	if err != nil {
		return of.Made, err
	}
	f := all[of.AMI]
	switch {
	case !f.There() && f.Foreign == "":
		return of.Made, fmt.Errorf("%s is not in %s any more: publish the image again", of.AMI, c.Region)
	case f.Foreign != "":
		return of.Made, fmt.Errorf("%s in %s is not taken for the image's: %s", of.AMI, c.Region, f.Foreign)
	}
	if f.State == string(types.ImageStateDisabled) {
		if _, err := c.EC2.EnableImage(ctx, &ec2.EnableImageInput{ImageId: &of.AMI}); err != nil {
			return of.Made, c.asked("ec2:EnableImage", err)
		}
	}
	if !f.Deprecated.IsZero() {
		if _, err := c.EC2.DisableImageDeprecation(ctx, &ec2.DisableImageDeprecationInput{ImageId: &of.AMI}); err != nil {
			return of.Made, c.asked("ec2:DisableImageDeprecation", err)
		}
	}
	return of.Say(ctx, a, of.Image, State{Step: Restored, Why: why})
}

// clouds opens each region once.
type clouds struct {
	connect func(ctx context.Context, region string) (*Cloud, error)
	open    map[string]*Cloud
}

func (k *clouds) in(ctx context.Context, region string) (*Cloud, error) {
	if c := k.open[region]; c != nil {
		return c, nil
	}
	c, err := k.connect(ctx, region)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s", region), err)
	}
	k.open[region] = c
	return c, nil
}
