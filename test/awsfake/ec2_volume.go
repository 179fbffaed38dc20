package awsfake

import (
	"crypto/sha256"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

const (
	blockSize = 512 << 10
	gib       = 1 << 30
)

// snapshot has blocks, as its own and its parent's together.
type snapshot struct {
	ec2types.Snapshot
	blocks map[int32][]byte
	upload bool               // by EBS direct, and not completed
	sums   map[int32][32]byte // of the blocks that this upload sent
	last   time.Time          // when a block of it came
}

// attach gives an instance the volumes of its image and of the request.
func (r *region) attach(i *instance, in *ec2.RunInstancesInput, img *image) {
	maps := slices.Clone(img.BlockDeviceMappings)
	for _, want := range in.BlockDeviceMappings {
		at := slices.IndexFunc(maps, func(m ec2types.BlockDeviceMapping) bool {
			return aws.ToString(m.DeviceName) == aws.ToString(want.DeviceName)
		})
		if at < 0 {
			maps = append(maps, want)
			continue
		}
		merged := maps[at]
		copyAs(&merged, &want)
		if old := maps[at].Ebs; old != nil && want.Ebs != nil {
			ebs := *old
			copyAs(&ebs, want.Ebs)
			merged.Ebs = &ebs
		}
		maps[at] = merged
	}
	i.BlockDeviceMappings = nil
	for _, m := range maps {
		if m.Ebs == nil || m.NoDevice != nil {
			continue
		}
		v := r.volume(*i.Placement.AvailabilityZone, m.Ebs, in.TagSpecifications)
		v.State = ec2types.VolumeStateInUse
		gone := m.Ebs.DeleteOnTermination == nil || *m.Ebs.DeleteOnTermination
		v.Attachments = []ec2types.VolumeAttachment{{InstanceId: i.InstanceId, VolumeId: v.VolumeId, Device: m.DeviceName, State: "attached", DeleteOnTermination: &gone, AttachTime: i.LaunchTime}}
		i.BlockDeviceMappings = append(i.BlockDeviceMappings, ec2types.InstanceBlockDeviceMapping{DeviceName: m.DeviceName,
			Ebs: &ec2types.EbsInstanceBlockDevice{VolumeId: v.VolumeId, Status: "attached", DeleteOnTermination: &gone, AttachTime: i.LaunchTime}})
	}
}

func (r *region) volume(zone string, of *ec2types.EbsBlockDevice, specs []ec2types.TagSpecification) *ec2types.Volume {
	id := r.new(r.cloud.id("vol"), ec2types.ResourceTypeVolume, specs)
	v := &ec2types.Volume{VolumeId: &id, AvailabilityZone: &zone, CreateTime: aws.Time(r.cloud.now()), SnapshotId: of.SnapshotId, Size: of.VolumeSize, VolumeType: of.VolumeType,
		Iops: of.Iops, Throughput: of.Throughput, Encrypted: aws.Bool(aws.ToBool(of.Encrypted)), KmsKeyId: of.KmsKeyId, State: ec2types.VolumeStateAvailable}
	if s, ok := r.snapshots.get(aws.ToString(of.SnapshotId)); ok {
		if v.Size == nil {
			v.Size = s.VolumeSize
		}
		if aws.ToBool(s.Encrypted) {
			v.Encrypted = aws.Bool(true)
		}
	}
	if v.VolumeType == "" {
		v.VolumeType = ec2types.VolumeTypeGp2
	}
	if v.Size == nil {
		v.Size = aws.Int32(8)
	}
	r.volumes.put(id, v)
	return v
}

// detach ends the volumes of a terminated instance.
func (r *region) detach(i *instance) {
	for _, m := range i.BlockDeviceMappings {
		v, ok := r.volumes.get(*m.Ebs.VolumeId)
		if !ok {
			continue
		}
		if aws.ToBool(m.Ebs.DeleteOnTermination) {
			r.volumes.del(*v.VolumeId)
			delete(r.tags, *v.VolumeId)
		} else {
			v.State, v.Attachments = ec2types.VolumeStateAvailable, nil
		}
	}
	i.BlockDeviceMappings = nil
}

func (r *region) findVolume(id string) (*ec2types.Volume, error) {
	if v, ok := r.volumes.get(id); ok && r.seen(id) {
		return v, nil
	}
	return nil, refuse("InvalidVolume.NotFound", "The volume '%s' does not exist.", id)
}

func (r *region) createVolume(in *ec2.CreateVolumeInput) (*ec2.CreateVolumeOutput, error) {
	return once(r, "CreateVolume", in.ClientToken, in, "IdempotentParameterMismatch", func() (*ec2.CreateVolumeOutput, error) {
		if in.SnapshotId != nil {
			if _, err := r.findSnapshot(*in.SnapshotId); err != nil {
				return nil, err
			}
		}
		v := r.volume(aws.ToString(in.AvailabilityZone), &ec2types.EbsBlockDevice{SnapshotId: in.SnapshotId, VolumeSize: in.Size, VolumeType: in.VolumeType, Iops: in.Iops,
			Throughput: in.Throughput, Encrypted: in.Encrypted, KmsKeyId: in.KmsKeyId}, in.TagSpecifications)
		out := &ec2.CreateVolumeOutput{Tags: r.tags[*v.VolumeId]}
		copyAs(out, v)
		return out, nil
	})
}

func (r *region) deleteVolume(in *ec2.DeleteVolumeInput) (*ec2.DeleteVolumeOutput, error) {
	v, err := r.findVolume(aws.ToString(in.VolumeId))
	if err != nil {
		return nil, err
	}
	if v.State == ec2types.VolumeStateInUse {
		return nil, refuse("VolumeInUse", "Volume %s is currently attached to %s", *v.VolumeId, *v.Attachments[0].InstanceId)
	}
	r.volumes.del(*v.VolumeId)
	delete(r.tags, *v.VolumeId)
	return &ec2.DeleteVolumeOutput{}, nil
}

func (r *region) describeVolumes(in *ec2.DescribeVolumesInput) (*ec2.DescribeVolumesOutput, error) {
	out := &ec2.DescribeVolumesOutput{Volumes: []ec2types.Volume{}}
	for _, id := range in.VolumeIds {
		if _, err := r.findVolume(id); err != nil {
			return nil, err
		}
	}
	for _, v := range r.volumes.all() {
		f := map[string][]string{"volume-id": one(v.VolumeId), "status": {string(v.State)}, "snapshot-id": one(v.SnapshotId), "availability-zone": one(v.AvailabilityZone), "volume-type": {string(v.VolumeType)},
			"attachment.instance-id": nil, "attachment.device": nil}
		for _, a := range v.Attachments {
			f["attachment.instance-id"], f["attachment.device"] = one(a.InstanceId), one(a.Device)
		}
		ok, err := r.fits(*v.VolumeId, in.Filters, f)
		if err != nil {
			return nil, err
		}
		if ok && r.seen(*v.VolumeId) && (len(in.VolumeIds) == 0 || slices.Contains(in.VolumeIds, *v.VolumeId)) {
			show := *v
			show.Tags = r.tags[*v.VolumeId]
			out.Volumes = append(out.Volumes, show)
		}
	}
	var err error
	out.Volumes, out.NextToken, err = page(out.Volumes, in.MaxResults, in.NextToken, 500)
	return out, err
}

func (r *region) findSnapshot(id string) (*snapshot, error) {
	if s, ok := r.snapshots.get(id); ok && r.seen(id) {
		return s, nil
	}
	return nil, refuse("InvalidSnapshot.NotFound", "The snapshot '%s' does not exist.", id)
}

func (r *region) newSnapshot(about *string, size int32, encrypted *bool, key *string, specs []ec2types.TagSpecification) *snapshot {
	id := r.new(r.cloud.id("snap"), ec2types.ResourceTypeSnapshot, specs)
	s := &snapshot{blocks: map[int32][]byte{}, Snapshot: ec2types.Snapshot{SnapshotId: &id, Description: aws.String(aws.ToString(about)), VolumeSize: &size,
		Encrypted: aws.Bool(aws.ToBool(encrypted)), KmsKeyId: key, OwnerId: aws.String(Account), State: ec2types.SnapshotStatePending, Progress: aws.String("0%"),
		StartTime: aws.Time(r.cloud.now().UTC()), StorageTier: ec2types.StorageTierStandard}}
	r.snapshots.put(id, s)
	return s
}

// complete makes a snapshot completed in its time, then does what waits for it.
func (r *region) complete(s *snapshot, then ...func()) {
	r.cloud.after(r.cloud.Delays.Snapshot, func() {
		s.State, s.Progress, s.CompletionTime = ec2types.SnapshotStateCompleted, aws.String("100%"), aws.Time(r.cloud.now().UTC())
		for _, f := range then {
			f()
		}
	})
}

// snap makes a snapshot of a volume as it is now.
func (r *region) snap(v *ec2types.Volume, about *string, specs []ec2types.TagSpecification, then ...func()) *snapshot {
	s := r.newSnapshot(about, *v.Size, v.Encrypted, v.KmsKeyId, specs)
	s.VolumeId = v.VolumeId
	if from, ok := r.snapshots.get(aws.ToString(v.SnapshotId)); ok {
		maps.Copy(s.blocks, from.blocks)
	}
	if r.cloud.VolumeContent != nil {
		var of Instance
		for _, a := range v.Attachments {
			if i, ok := r.instances.get(*a.InstanceId); ok {
				of = r.public(i)
			}
		}
		if content, size := r.cloud.VolumeContent(*v.VolumeId, of); content != nil {
			s.blocks = readBlocks(content, size)
		}
	}
	r.complete(s, then...)
	return s
}

// readBlocks are the blocks of a disk that are not all zero.
func readBlocks(content io.ReaderAt, size int64) map[int32][]byte {
	blocks := map[int32][]byte{}
	zero := sha256.Sum256(make([]byte, blockSize))
	for at := int64(0); at < size; at += blockSize {
		b := make([]byte, blockSize)
		if _, err := content.ReadAt(b[:min(blockSize, size-at)], at); err != nil && err != io.EOF {
			continue
		}
		if sha256.Sum256(b) != zero {
			blocks[int32(at/blockSize)] = b
		}
	}
	return blocks
}

func (r *region) createSnapshot(in *ec2.CreateSnapshotInput) (*ec2.CreateSnapshotOutput, error) {
	v, err := r.findVolume(aws.ToString(in.VolumeId))
	if err != nil {
		return nil, err
	}
	out := &ec2.CreateSnapshotOutput{}
	s := r.snap(v, in.Description, in.TagSpecifications)
	copyAs(out, &s.Snapshot)
	out.Tags = r.tags[*s.SnapshotId]
	return out, nil
}

func (r *region) createSnapshots(in *ec2.CreateSnapshotsInput) (*ec2.CreateSnapshotsOutput, error) {
	i, err := r.find(aws.ToString(in.InstanceSpecification.InstanceId))
	if err != nil {
		return nil, err
	}
	out := &ec2.CreateSnapshotsOutput{}
	for _, m := range i.BlockDeviceMappings {
		v, err := r.findVolume(*m.Ebs.VolumeId)
		if err != nil {
			return nil, err
		}
		if aws.ToBool(in.InstanceSpecification.ExcludeBootVolume) && *m.DeviceName == *i.RootDeviceName || slices.Contains(in.InstanceSpecification.ExcludeDataVolumeIds, *v.VolumeId) {
			continue
		}
		s := r.snap(v, in.Description, in.TagSpecifications)
		out.Snapshots = append(out.Snapshots, ec2types.SnapshotInfo{SnapshotId: s.SnapshotId, VolumeId: v.VolumeId, VolumeSize: s.VolumeSize, State: s.State, Progress: s.Progress, OwnerId: s.OwnerId, Description: s.Description, Encrypted: s.Encrypted, StartTime: s.StartTime, Tags: r.tags[*s.SnapshotId]})
	}
	return out, nil
}

func (r *region) describeSnapshots(in *ec2.DescribeSnapshotsInput) (*ec2.DescribeSnapshotsOutput, error) {
	out := &ec2.DescribeSnapshotsOutput{Snapshots: []ec2types.Snapshot{}}
	for _, id := range in.SnapshotIds {
		if _, err := r.findSnapshot(id); err != nil {
			return nil, err
		}
	}
	for _, s := range r.snapshots.all() {
		ok, err := r.fits(*s.SnapshotId, in.Filters, map[string][]string{"snapshot-id": one(s.SnapshotId), "status": {string(s.State)}, "volume-id": one(s.VolumeId), "owner-id": one(s.OwnerId),
			"description": one(s.Description), "volume-size": {strconv.Itoa(int(*s.VolumeSize))}, "encrypted": {strconv.FormatBool(*s.Encrypted)}, "progress": one(s.Progress)})
		if err != nil {
			return nil, err
		}
		if ok && r.seen(*s.SnapshotId) && (len(in.SnapshotIds) == 0 || slices.Contains(in.SnapshotIds, *s.SnapshotId)) && owned(in.OwnerIds, s.OwnerId) {
			show := s.Snapshot
			show.Tags = r.tags[*s.SnapshotId]
			out.Snapshots = append(out.Snapshots, show)
		}
	}
	var err error
	out.Snapshots, out.NextToken, err = page(out.Snapshots, in.MaxResults, in.NextToken, 1000)
	return out, err
}

func owned(owners []string, owner *string) bool {
	return len(owners) == 0 || slices.ContainsFunc(owners, func(o string) bool {
		return o == *owner || o == "self" && *owner == Account || o == "amazon" && *owner == Amazon
	})
}

func (r *region) deleteSnapshot(in *ec2.DeleteSnapshotInput) (*ec2.DeleteSnapshotOutput, error) {
	s, err := r.findSnapshot(aws.ToString(in.SnapshotId))
	if err != nil {
		return nil, err
	}
	if img := r.user(*s.SnapshotId); img != nil {
		return nil, refuse("InvalidSnapshot.InUse", "The snapshot %s is currently in use by %s", *s.SnapshotId, *img.ImageId)
	}
	r.snapshots.del(*s.SnapshotId)
	delete(r.tags, *s.SnapshotId)
	return &ec2.DeleteSnapshotOutput{}, nil
}

func (r *region) copySnapshot(in *ec2.CopySnapshotInput) (*ec2.CopySnapshotOutput, error) {
	from, err := r.cloud.region(aws.ToString(in.SourceRegion)).findSnapshot(aws.ToString(in.SourceSnapshotId))
	if err != nil {
		return nil, err
	}
	s := r.copyOf(from, in.Description, in.Encrypted, in.KmsKeyId, in.TagSpecifications)
	r.complete(s)
	return &ec2.CopySnapshotOutput{SnapshotId: s.SnapshotId, Tags: r.tags[*s.SnapshotId]}, nil
}

func (r *region) copyOf(from *snapshot, about *string, encrypted *bool, key *string, specs []ec2types.TagSpecification) *snapshot {
	if aws.ToBool(from.Encrypted) {
		encrypted = aws.Bool(true)
	}
	s := r.newSnapshot(about, *from.VolumeSize, encrypted, key, specs)
	s.blocks = maps.Clone(from.blocks)
	return s
}
