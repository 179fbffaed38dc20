package ami

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	ebstypes "github.com/aws/aws-sdk-go-v2/service/ebs/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/artifact"
	"golang.org/x/sync/errgroup"
)

// BlockSize is of a block of the EBS direct APIs, in bytes.
const BlockSize = 512 << 10

// pendingFor is how long EBS waits for blocks before it drops the snapshot by
// itself, so that a publication that nobody goes on with leaves nothing.
const pendingFor = 60 * time.Minute

// source is a disk and the blocks of it that must travel.
type source struct {
	disk   artifact.Disk
	blocks []int32 // in order
	parent Record  // whose snapshot it goes on top of; zero: none
}

// snapshot makes the image's snapshot, or finds it, and tells what it is built on
// and how many bytes travelled.
func (c *Cloud) snapshot(ctx context.Context, s artifact.Opener, img artifact.Image, o Options) (id, from string, sent int64, err error) {
	src, err := c.source(ctx, s, img, o)
	if err != nil {
		return "", "", 0, err
	}
	defer func() { err = errors.Join(err, src.disk.Close()) }()
	intent := token("snapshot", c.Region, string(img.Content), src.parent.Snapshot, o.KMSKey, fmt.Sprint(o.tags(img))) // as StartSnapshot is asked: EBS refuses a token with other words
	done, err := openProgress(o.Work, c.Region, img, intent)
	if err != nil {
		return "", "", 0, err
	}
	over := false
	defer func() { err = errors.Join(err, done.close(over)) }() // else it is for the next try
	id, err = c.start(ctx, img, src, intent, done, o)
	if src.parent.Snapshot != "" && (isCode(err, "ResourceNotFoundException") || isCode(err, "ValidationException")) {
		o.Info(fmt.Sprintf("EBS does not build on %s: %v", src.parent.Snapshot, err)) // it was deleted this moment, say
		o.Parents = slices.DeleteFunc(slices.Clone(o.Parents), func(r Record) bool { return r.Snapshot == src.parent.Snapshot })
		return c.snapshot(ctx, s, img, o)
	}
	if err != nil {
		return "", "", 0, err
	}
	sum, sent, err := c.send(ctx, id, src, done, o)
	if refused(err) { // it is complete, or gone, and what is kept of it is not of it
		over = true
		return "", "", 0, fmt.Errorf("%w; run it again", err)
	}
	if err != nil {
		return "", "", 0, err
	}
	if _, err := c.EBS.CompleteSnapshot(ctx, &ebs.CompleteSnapshotInput{
		SnapshotId: &id, ChangedBlocksCount: aws.Int32(int32(len(src.blocks))),
		Checksum: &sum, ChecksumAlgorithm: ebstypes.ChecksumAlgorithmChecksumAlgorithmSha256,
		ChecksumAggregationMethod: ebstypes.ChecksumAggregationMethodChecksumAggregationLinear,
	}); err != nil && (sent > 0 || !refused(err)) { // that all was sent before may mean that it was completed too
		return "", "", 0, fmt.Errorf("complete %s: %w", id, err)
	}
	o.Info(fmt.Sprintf("waiting for snapshot %s, %d blocks of %d KiB", id, len(src.blocks), BlockSize>>10))
	if err := c.completed(ctx, id, o); err != nil {
		return "", "", 0, err
	}
	over = true
	return id, src.parent.Snapshot, sent, nil
}

// refused tells whether EBS will not have a block or a completion, as it will of a
// snapshot that is complete.
func refused(err error) bool {
	return isCode(err, "ValidationException") || isCode(err, "ConflictException")
}

// findSnapshot looks for a complete snapshot of this very disk, with this key.
func (c *Cloud) findSnapshot(ctx context.Context, img artifact.Image, o Options) (string, error) {
	out, err := c.EC2.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}, Filters: []types.Filter{
		{Name: aws.String("tag:" + TagContent), Values: []string{string(img.Content)}},
		{Name: aws.String("status"), Values: []string{string(types.SnapshotStateCompleted)}},
	}})
	if err != nil {
		return "", fmt.Errorf("look for a snapshot of this disk: %w", err)
	}
	for _, s := range out.Snapshots {
		if o.KMSKey == "" || aws.ToString(s.KmsKeyId) == o.KMSKey {
			return aws.ToString(s.SnapshotId), nil
		}
	}
	return "", nil
}

// source opens the disk and chooses what it goes on top of: the snapshot that
// leaves the fewest blocks to send.
func (c *Cloud) source(ctx context.Context, s artifact.Opener, img artifact.Image, o Options) (*source, error) {
	best, err := open(ctx, s, img.Content, Record{})
	if err != nil {
		return nil, err
	}
	for _, p := range o.Parents {
		if p.Region != c.Region || p.KMSKey != o.KMSKey || p.Content == img.Content {
			continue
		}
		fits, err := c.buildable(ctx, p.Snapshot, img.DiskSize)
		if err != nil {
			return nil, errors.Join(err, best.disk.Close())
		}
		if !fits {
			continue
		}
		other, err := open(ctx, s, img.Content, p)
		if errors.Is(err, artifact.ErrCorrupt) {
			continue // the parent's disk is not in the store any more
		}
		if err != nil {
			return nil, errors.Join(err, best.disk.Close())
		}
		if len(other.blocks) < len(best.blocks) {
			best, other = other, best
		}
		if err := other.disk.Close(); err != nil {
			return nil, errors.Join(err, best.disk.Close())
		}
	}
	if best.parent.Snapshot != "" {
		o.Info(fmt.Sprintf("building on %s (%s)", best.parent.Snapshot, best.parent.Name))
	}
	return best, nil
}

// buildable tells whether a snapshot is there, complete, and not larger than the disk.
func (c *Cloud) buildable(ctx context.Context, id string, size int64) (bool, error) {
	out, err := c.EC2.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{id}})
	if isCode(err, "InvalidSnapshot.NotFound") {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at snapshot %s: %w", id, err)
	}
	return len(out.Snapshots) == 1 && out.Snapshots[0].State == types.SnapshotStateCompleted &&
		int64(aws.ToInt32(out.Snapshots[0].VolumeSize)) <= gib(size), nil
}

func gib(size int64) int64 { return max(1, (size+1<<30-1)>>30) }

// open lists the blocks that differ from the parent's disk, or without a parent
// those that are not all zeros. Only the disks' maps are read.
func open(ctx context.Context, s artifact.Opener, content artifact.Digest, parent Record) (*source, error) {
	disk, err := s.OpenDisk(ctx, content, parent.Content)
	if err != nil {
		return nil, err
	}
	extents, err := disk.Extents(ctx)
	if err != nil {
		return nil, errors.Join(err, disk.Close())
	}
	src := &source{disk: disk, parent: parent}
	last := int32(-1)
	for _, e := range extents {
		if e.Inherited || e.Zero && parent.Snapshot == "" {
			continue
		}
		for b := int32(e.Offset / BlockSize); int64(b)*BlockSize < e.Offset+e.Length; b++ {
			if b > last {
				src.blocks, last = append(src.blocks, b), b
			}
		}
	}
	return src, nil
}

// start begins the snapshot, or returns the one that an earlier try began: here,
// by what is kept of it, or elsewhere, as the same client token asks for the same.
func (c *Cloud) start(ctx context.Context, img artifact.Image, src *source, intent string, done *progress, o Options) (string, error) {
	if done.snapshot != "" {
		state, err := c.snapshotState(ctx, done.snapshot)
		if err != nil {
			return "", err
		}
		if state == types.SnapshotStatePending || state == types.SnapshotStateCompleted {
			o.Info(fmt.Sprintf("going on with snapshot %s: %d of its %d blocks are there", done.snapshot, len(done.done), len(src.blocks)))
			return done.snapshot, nil
		}
	}
	in := &ebs.StartSnapshotInput{
		VolumeSize:  aws.Int64(gib(src.disk.Size())),
		Description: aws.String("rebake " + img.Name + ":" + img.Version),
		Timeout:     aws.Int32(int32(pendingFor.Minutes())),
		ClientToken: &intent,
	}
	if done.snapshot != "" { // the token stands for one that is gone
		in.ClientToken = aws.String(token(intent, done.snapshot))
	}
	if src.parent.Snapshot != "" {
		in.ParentSnapshotId = &src.parent.Snapshot // and its encryption
	} else if o.KMSKey != "" {
		in.Encrypted, in.KmsKeyArn = aws.Bool(true), &o.KMSKey
	}
	for k, v := range o.tags(img) {
		in.Tags = append(in.Tags, ebstypes.Tag{Key: aws.String(k), Value: aws.String(v)})
	}
	slices.SortFunc(in.Tags, func(a, b ebstypes.Tag) int { return strings.Compare(*a.Key, *b.Key) })
	for range maxDead {
		out, err := c.EBS.StartSnapshot(ctx, in)
		if err != nil {
			return "", fmt.Errorf("start a snapshot: %w", err)
		}
		id := aws.ToString(out.SnapshotId)
		alive, err := c.alive(ctx, out)
		if err != nil {
			return "", err
		}
		if alive {
			return id, done.begin(id)
		}
		in.ClientToken = aws.String(token(*in.ClientToken, id)) // it stands for one that another machine left and EBS dropped
	}
	return "", fmt.Errorf("EBS answers with snapshots that it dropped (%d tries): wait a day, or give the image another --label", maxDead)
}

// maxDead bounds how many uploads that were begun elsewhere and dropped are passed over.
const maxDead = 16

// alive tells whether a started snapshot takes blocks: the answer to a token may be
// an old one.
func (c *Cloud) alive(ctx context.Context, s *ebs.StartSnapshotOutput) (bool, error) {
	const young = 2 * time.Minute // it may not be seen yet, and is pending
	switch {
	case s.Status == ebstypes.StatusError:
		return false, nil
	case s.StartTime == nil || time.Since(*s.StartTime) < young:
		return true, nil
	}
	state, err := c.snapshotState(ctx, aws.ToString(s.SnapshotId))
	return state == types.SnapshotStatePending || state == types.SnapshotStateCompleted, err
}

// snapshotState is "" if there is no such snapshot.
func (c *Cloud) snapshotState(ctx context.Context, id string) (types.SnapshotState, error) {
	out, err := c.EC2.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{id}})
	if isCode(err, "InvalidSnapshot.NotFound") || err == nil && len(out.Snapshots) == 0 {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look at snapshot %s: %w", id, err)
	}
	return out.Snapshots[0].State, nil
}

// send puts the blocks that an earlier try has not put, many at once, and returns
// the checksum of all of them and how many bytes travelled now.
func (c *Cloud) send(ctx context.Context, id string, src *source, done *progress, o Options) (string, int64, error) {
	sums := make([][sha256.Size]byte, len(src.blocks))
	var mu sync.Mutex
	var sent, seen int64
	total := int64(len(src.blocks)) * BlockSize
	told := func(n int64) {
		mu.Lock()
		defer mu.Unlock()
		sent += n
		if seen += BlockSize; o.Progress != nil {
			o.Progress(seen, total)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(o.Parallel)
	for i, block := range src.blocks {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			data := make([]byte, BlockSize)
			if _, err := src.disk.ReadAt(data, int64(block)*BlockSize); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			sums[i] = sha256.Sum256(data)
			if done.has(block, sums[i]) {
				told(0)
				return nil
			}
			if err := c.put(gctx, id, block, data, sums[i]); err != nil {
				return fmt.Errorf("block %d of %s: %w", block, id, err)
			}
			told(BlockSize)
			return done.add(block, sums[i])
		})
	}
	if err := g.Wait(); err != nil {
		return "", sent, err
	}
	if err := ctx.Err(); err != nil {
		return "", sent, context.Cause(ctx)
	}
	whole := sha256.New()
	for _, s := range sums {
		whole.Write(s[:])
	}
	return base64.StdEncoding.EncodeToString(whole.Sum(nil)), sent, nil
}

// put sends one block; EBS compares its checksum.
func (c *Cloud) put(ctx context.Context, id string, block int32, data []byte, sum [sha256.Size]byte) error {
	_, err := c.EBS.PutSnapshotBlock(ctx, &ebs.PutSnapshotBlockInput{
		SnapshotId: &id, BlockIndex: &block, BlockData: bytes.NewReader(data), DataLength: aws.Int32(BlockSize),
		Checksum: aws.String(base64.StdEncoding.EncodeToString(sum[:])), ChecksumAlgorithm: ebstypes.ChecksumAlgorithmChecksumAlgorithmSha256,
	})
	return err
}

// completed waits for as long as EBS works on it. A snapshot that is not seen for
// so long that it cannot be new is gone.
func (c *Cloud) completed(ctx context.Context, id string, o Options) error {
	const unseen = 2 * time.Minute
	began := time.Now()
	for asked := 0; ; asked++ {
		out, err := c.EC2.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{id}})
		if err != nil && (!isCode(err, "InvalidSnapshot.NotFound") || time.Since(began) > unseen) { // it may not be seen yet
			return fmt.Errorf("wait for snapshot %s: %w", id, err)
		}
		if err == nil && len(out.Snapshots) == 1 {
			switch s := out.Snapshots[0]; s.State {
			case types.SnapshotStateCompleted:
				return nil
			case types.SnapshotStateError:
				return fmt.Errorf("snapshot %s failed: %s; delete it (aws ec2 delete-snapshot --snapshot-id %s) and publish again", id, aws.ToString(s.StateMessage), id)
			}
		}
		if err := pause(ctx, o.between(asked)); err != nil {
			return err
		}
	}
}

// between is the time between questions: short at first.
func (o Options) between(asked int) time.Duration {
	return min(o.poll, 200*time.Millisecond<<min(asked, 10))
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (o Options) tags(img artifact.Image) map[string]string {
	out := map[string]string{}
	for k, v := range o.Tags {
		out[k] = v
	}
	out["Name"] = img.Name + ":" + img.Version
	out[TagImage], out[TagDigest], out[TagContent] = img.Name+":"+img.Version, string(img.Digest), string(img.Content)
	return out
}
