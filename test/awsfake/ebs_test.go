package awsfake_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/test/awsfake"
)

const block = 512 << 10

// upload starts a snapshot and puts these blocks; it returns the aggregate of their checksums.
func (r *rig) upload(parent *string, blocks map[int32]byte, order ...int32) (id, sum string) {
	r.t.Helper()
	id = *must(r.ebs.StartSnapshot(r.ctx, &ebs.StartSnapshotInput{VolumeSize: aws.Int64(1), ParentSnapshotId: parent}))(r.t).SnapshotId
	whole := sha256.New()
	for _, i := range order {
		data := bytes.Repeat([]byte{blocks[i]}, block)
		s := sha256.Sum256(data)
		whole.Write(s[:])
		must(r.ebs.PutSnapshotBlock(r.ctx, &ebs.PutSnapshotBlockInput{SnapshotId: &id, BlockIndex: aws.Int32(i), BlockData: bytes.NewReader(data), DataLength: aws.Int32(block),
			Checksum: aws.String(base64.StdEncoding.EncodeToString(s[:])), ChecksumAlgorithm: "SHA256"}))(r.t)
	}
	return id, base64.StdEncoding.EncodeToString(whole.Sum(nil))
}

func (r *rig) completed(id string) {
	r.t.Helper()
	eventually(r.t, id+" is completed", func() bool {
		return must(r.ec2.DescribeSnapshots(r.ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{id}}))(r.t).Snapshots[0].State == ec2types.SnapshotStateCompleted
	})
}

func TestSnapshotsByBlocks(t *testing.T) {
	awsfake.Start(t)
	r := clients(t)
	id, sum := r.upload(nil, map[int32]byte{0: 'a', 7: 'b'}, 0, 7)
	complete := &ebs.CompleteSnapshotInput{SnapshotId: &id, ChangedBlocksCount: aws.Int32(2), Checksum: aws.String("AAAA"), ChecksumAlgorithm: "SHA256", ChecksumAggregationMethod: "LINEAR"}
	_, err := r.ebs.CompleteSnapshot(r.ctx, complete)
	wantCode(t, err, "ValidationException")
	complete.Checksum = &sum
	must(r.ebs.CompleteSnapshot(r.ctx, complete))(t)
	_, err = r.ebs.CompleteSnapshot(r.ctx, complete)
	wantCode(t, err, "ValidationException")
	_, err = r.ebs.ListSnapshotBlocks(r.ctx, &ebs.ListSnapshotBlocksInput{SnapshotId: &id})
	wantCode(t, err, "ValidationException") // not readable yet
	r.completed(id)

	child, sum := r.upload(&id, map[int32]byte{7: 'c', 9: 'd'}, 7, 9)
	must(r.ebs.CompleteSnapshot(r.ctx, &ebs.CompleteSnapshotInput{SnapshotId: &child, ChangedBlocksCount: aws.Int32(2), Checksum: &sum, ChecksumAlgorithm: "SHA256", ChecksumAggregationMethod: "LINEAR"}))(t)
	r.completed(child)
	list := must(r.ebs.ListSnapshotBlocks(r.ctx, &ebs.ListSnapshotBlocksInput{SnapshotId: &child}))(t)
	want := map[int32]byte{0: 'a', 7: 'c', 9: 'd'}
	for _, b := range list.Blocks {
		got := must(r.ebs.GetSnapshotBlock(r.ctx, &ebs.GetSnapshotBlockInput{SnapshotId: &child, BlockIndex: b.BlockIndex, BlockToken: b.BlockToken}))(t)
		data := must(io.ReadAll(got.BlockData))(t)
		if s := sha256.Sum256(data); len(data) != block || data[0] != want[*b.BlockIndex] || *got.Checksum != base64.StdEncoding.EncodeToString(s[:]) {
			t.Errorf("block %d: %d bytes of %q", *b.BlockIndex, len(data), data[0])
		}
	}
	if len(list.Blocks) != 3 {
		t.Errorf("%d blocks", len(list.Blocks))
	}
	changed := must(r.ebs.ListChangedBlocks(r.ctx, &ebs.ListChangedBlocksInput{FirstSnapshotId: &id, SecondSnapshotId: &child}))(t).ChangedBlocks
	if len(changed) != 2 || *changed[0].BlockIndex != 7 || *changed[1].BlockIndex != 9 || changed[1].FirstBlockToken != nil {
		t.Errorf("%+v", changed)
	}
	part := must(r.ebs.ListSnapshotBlocks(r.ctx, &ebs.ListSnapshotBlocksInput{SnapshotId: &child, MaxResults: aws.Int32(100), StartingBlockIndex: aws.Int32(5)}))(t)
	if len(part.Blocks) != 2 {
		t.Errorf("%d blocks from 5 on", len(part.Blocks))
	}
}

func TestABlockWithAWrongChecksumIsRefused(t *testing.T) {
	awsfake.Start(t)
	r := clients(t)
	id := *must(r.ebs.StartSnapshot(r.ctx, &ebs.StartSnapshotInput{VolumeSize: aws.Int64(1), ClientToken: aws.String("x")}))(t).SnapshotId
	if again := *must(r.ebs.StartSnapshot(r.ctx, &ebs.StartSnapshotInput{VolumeSize: aws.Int64(1), ClientToken: aws.String("x")}))(t).SnapshotId; again != id {
		t.Error("the same token started two")
	}
	_, err := r.ebs.StartSnapshot(r.ctx, &ebs.StartSnapshotInput{VolumeSize: aws.Int64(2), ClientToken: aws.String("x")})
	wantCode(t, err, "ConflictException")
	s := sha256.Sum256(nil)
	_, err = r.ebs.PutSnapshotBlock(r.ctx, &ebs.PutSnapshotBlockInput{SnapshotId: &id, BlockIndex: aws.Int32(0), BlockData: bytes.NewReader(make([]byte, block)), DataLength: aws.Int32(block),
		Checksum: aws.String(base64.StdEncoding.EncodeToString(s[:])), ChecksumAlgorithm: "SHA256"})
	wantCode(t, err, "ValidationException")
	_, err = r.ebs.ListSnapshotBlocks(r.ctx, &ebs.ListSnapshotBlocksInput{SnapshotId: aws.String("snap-0123456789abcdef0")})
	wantCode(t, err, "ResourceNotFoundException")
}
