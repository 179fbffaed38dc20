package awsfake

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	ebstypes "github.com/aws/aws-sdk-go-v2/service/ebs/types"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

var ebsActions = map[string]action{
	"StartSnapshot": on((*region).startSnapshot), "PutSnapshotBlock": on((*region).putBlock), "CompleteSnapshot": on((*region).completeSnapshot),
	"GetSnapshotBlock": on((*region).getBlock), "ListSnapshotBlocks": on((*region).listBlocks), "ListChangedBlocks": on((*region).listChanged),
}

// parseEBS reads the REST form of the EBS direct APIs.
func parseEBS(hr *http.Request, body []byte) (name string, fill func(any) error) {
	p := strings.Split(strings.Trim(hr.URL.Path, "/"), "/")
	q := hr.URL.Query()
	num := func(s string) *int32 {
		n, err := strconv.Atoi(s)
		if err != nil {
			return nil
		}
		return aws.Int32(int32(n))
	}
	text := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	put := func(in any, fields map[string]any) error {
		v := reflect.ValueOf(in).Elem()
		for k, x := range fields {
			if f := reflect.ValueOf(x); f.IsValid() && !(f.Kind() == reflect.Pointer && f.IsNil()) {
				v.FieldByName(k).Set(f.Convert(v.FieldByName(k).Type()))
			}
		}
		return nil
	}
	list := map[string]any{"MaxResults": num(q.Get("maxResults")), "NextToken": text(q.Get("pageToken")), "StartingBlockIndex": num(q.Get("startingBlockIndex"))}
	h := hr.Header
	switch {
	case hr.Method == http.MethodPost && len(p) == 1:
		return "StartSnapshot", func(in any) error {
			var v any
			if err := json.Unmarshal(body, &v); err != nil {
				return refuse("ValidationException", "%v", err)
			}
			return fromTree(v, reflect.ValueOf(in).Elem())
		}
	case hr.Method == http.MethodPut && len(p) == 4:
		return "PutSnapshotBlock", func(in any) error {
			return put(in, map[string]any{"SnapshotId": &p[1], "BlockIndex": num(p[3]), "DataLength": num(h.Get("X-Amz-Data-Length")), "Checksum": text(h.Get("X-Amz-Checksum")),
				"ChecksumAlgorithm": h.Get("X-Amz-Checksum-Algorithm"), "BlockData": io.Reader(bytes.NewReader(body))})
		}
	case hr.Method == http.MethodPost && len(p) == 3:
		return "CompleteSnapshot", func(in any) error {
			return put(in, map[string]any{"SnapshotId": &p[2], "ChangedBlocksCount": num(h.Get("X-Amz-Changedblockscount")), "Checksum": text(h.Get("X-Amz-Checksum")),
				"ChecksumAlgorithm": h.Get("X-Amz-Checksum-Algorithm"), "ChecksumAggregationMethod": h.Get("X-Amz-Checksum-Aggregation-Method")})
		}
	case len(p) == 4:
		return "GetSnapshotBlock", func(in any) error {
			return put(in, map[string]any{"SnapshotId": &p[1], "BlockIndex": num(p[3]), "BlockToken": text(q.Get("blockToken"))})
		}
	case len(p) == 3 && p[2] == "blocks":
		return "ListSnapshotBlocks", func(in any) error { list["SnapshotId"] = &p[1]; return put(in, list) }
	case len(p) == 3 && p[2] == "changedblocks":
		return "ListChangedBlocks", func(in any) error {
			list["SecondSnapshotId"], list["FirstSnapshotId"] = &p[1], text(q.Get("firstSnapshotId"))
			return put(in, list)
		}
	}
	return hr.Method + " " + hr.URL.Path, func(any) error { return nil }
}

// encodeEBS puts an output on the wire: some of it is headers.
func encodeEBS(a *answer, out any) {
	switch o := out.(type) {
	case *ebs.PutSnapshotBlockOutput:
		a.status = http.StatusCreated
		a.header.Set("X-Amz-Checksum", *o.Checksum)
		a.header.Set("X-Amz-Checksum-Algorithm", string(o.ChecksumAlgorithm))
	case *ebs.GetSnapshotBlockOutput:
		a.header.Set("X-Amz-Checksum", *o.Checksum)
		a.header.Set("X-Amz-Checksum-Algorithm", string(o.ChecksumAlgorithm))
		a.header.Set("X-Amz-Data-Length", strconv.Itoa(int(*o.DataLength)))
		a.header.Set("Content-Type", "application/octet-stream")
		a.body, _ = io.ReadAll(o.BlockData)
	default:
		switch out.(type) {
		case *ebs.StartSnapshotOutput:
			a.status = http.StatusCreated
		case *ebs.CompleteSnapshotOutput:
			a.status = http.StatusAccepted
		}
		a.header.Set("Content-Type", "application/json")
		a.body, _ = json.Marshal(toTree(reflect.ValueOf(out).Elem()))
	}
}

func (r *region) direct(id *string) (*snapshot, error) {
	s, ok := r.snapshots.get(aws.ToString(id))
	if !ok {
		return nil, &refusal{"ResourceNotFoundException", "The snapshot " + aws.ToString(id) + " does not exist.", http.StatusNotFound}
	}
	return s, nil
}

func (r *region) startSnapshot(in *ebs.StartSnapshotInput) (*ebs.StartSnapshotOutput, error) {
	return once(r, "StartSnapshot", in.ClientToken, in, "ConflictException", func() (*ebs.StartSnapshotOutput, error) {
		size := aws.ToInt64(in.VolumeSize)
		if size < 1 || size > 65536 {
			return nil, refuse("ValidationException", "VolumeSize must be between 1 and 65536")
		}
		encrypted, key := in.Encrypted, in.KmsKeyArn
		var parent *snapshot
		if in.ParentSnapshotId != nil {
			var err error
			if parent, err = r.direct(in.ParentSnapshotId); err != nil {
				return nil, err
			}
			if in.Encrypted != nil || in.KmsKeyArn != nil {
				return nil, refuse("ValidationException", "A snapshot with a parent has the parent's encryption")
			}
			if parent.State != ec2types.SnapshotStateCompleted {
				return nil, refuse("ValidationException", "The parent snapshot is not completed")
			}
			if int64(*parent.VolumeSize) > size {
				return nil, refuse("ValidationException", "VolumeSize is smaller than the parent's")
			}
			encrypted, key = parent.Encrypted, parent.KmsKeyId
		}
		var tags []ec2types.Tag
		for _, t := range in.Tags {
			tags = append(tags, ec2types.Tag{Key: t.Key, Value: t.Value})
		}
		s := r.newSnapshot(in.Description, int32(size), encrypted, key, []ec2types.TagSpecification{{ResourceType: ec2types.ResourceTypeSnapshot, Tags: tags}})
		if parent != nil {
			s.blocks = maps.Clone(parent.blocks)
		}
		s.upload, s.sums, s.last = true, map[int32][32]byte{}, time.Now()
		timeout := time.Duration(aws.ToInt32(in.Timeout)) * time.Minute
		if timeout == 0 {
			timeout = time.Hour
		}
		r.expire(s, timeout)
		return &ebs.StartSnapshotOutput{SnapshotId: s.SnapshotId, BlockSize: aws.Int32(blockSize), Description: in.Description, KmsKeyArn: key, OwnerId: aws.String(Account), ParentSnapshotId: in.ParentSnapshotId,
			StartTime: s.StartTime, Status: ebstypes.StatusPending, Tags: in.Tags, VolumeSize: in.VolumeSize}, nil
	})
}

// expire cancels an upload to which nothing came for the timeout.
func (r *region) expire(s *snapshot, timeout time.Duration) {
	r.cloud.after(timeout, func() {
		switch idle := time.Since(s.last); {
		case !s.upload:
		case idle < r.cloud.wall(timeout)-time.Millisecond:
			r.expire(s, timeout)
		default:
			s.State, s.upload = ec2types.SnapshotStateError, false
			s.StateMessage = aws.String("The snapshot was cancelled: no block came in time")
		}
	})
}

func (r *region) putBlock(in *ebs.PutSnapshotBlockInput) (*ebs.PutSnapshotBlockOutput, error) {
	s, err := r.direct(in.SnapshotId)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(in.BlockData)
	in.BlockData = nil // the journal keeps the input
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	text := base64.StdEncoding.EncodeToString(sum[:])
	switch {
	case !s.upload:
		return nil, refuse("ValidationException", "The snapshot %s is not in the pending state", *s.SnapshotId)
	case in.BlockIndex == nil || *in.BlockIndex < 0 || int64(*in.BlockIndex) >= int64(*s.VolumeSize)*gib/blockSize:
		return nil, refuse("ValidationException", "The block index is not in the volume")
	case len(data) != blockSize || aws.ToInt32(in.DataLength) != blockSize:
		return nil, refuse("ValidationException", "A block has %d bytes, this one %d", blockSize, len(data))
	case aws.ToString(in.Checksum) != text:
		return nil, refuse("ValidationException", "The checksum of the block is %s, not %s", text, aws.ToString(in.Checksum))
	}
	s.blocks[*in.BlockIndex], s.sums[*in.BlockIndex], s.last = data, sum, time.Now()
	return &ebs.PutSnapshotBlockOutput{Checksum: &text, ChecksumAlgorithm: ebstypes.ChecksumAlgorithmChecksumAlgorithmSha256}, nil
}

func (r *region) completeSnapshot(in *ebs.CompleteSnapshotInput) (*ebs.CompleteSnapshotOutput, error) {
	s, err := r.direct(in.SnapshotId)
	if err != nil {
		return nil, err
	}
	if !s.upload {
		return nil, refuse("ValidationException", "The snapshot %s is not in the pending state", *s.SnapshotId)
	}
	if n := aws.ToInt32(in.ChangedBlocksCount); int(n) != len(s.sums) {
		return nil, refuse("ValidationException", "%d blocks were put, not %d", len(s.sums), n)
	}
	if in.Checksum != nil {
		whole := sha256.New()
		for _, i := range slices.Sorted(maps.Keys(s.sums)) {
			sum := s.sums[i]
			whole.Write(sum[:])
		}
		if want := base64.StdEncoding.EncodeToString(whole.Sum(nil)); want != *in.Checksum {
			return nil, refuse("ValidationException", "The checksum of the blocks is %s, not %s", want, *in.Checksum)
		}
	}
	s.upload = false
	r.complete(s)
	return &ebs.CompleteSnapshotOutput{Status: ebstypes.StatusPending}, nil
}

func blockToken(id string, index int32) *string {
	return aws.String(base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%s/%d", id, index)))
}

// readable is a snapshot whose blocks can be read.
func (r *region) readable(id *string) (*snapshot, error) {
	s, err := r.direct(id)
	if err == nil && s.State != ec2types.SnapshotStateCompleted {
		err = refuse("ValidationException", "The snapshot %s is %s", *s.SnapshotId, s.State)
	}
	return s, err
}

func (r *region) getBlock(in *ebs.GetSnapshotBlockInput) (*ebs.GetSnapshotBlockOutput, error) {
	s, err := r.readable(in.SnapshotId)
	if err != nil {
		return nil, err
	}
	data, ok := s.blocks[aws.ToInt32(in.BlockIndex)]
	if !ok || aws.ToString(in.BlockToken) != *blockToken(*s.SnapshotId, *in.BlockIndex) {
		return nil, refuse("ValidationException", "The block token is not one of block %d", aws.ToInt32(in.BlockIndex))
	}
	sum := sha256.Sum256(data)
	return &ebs.GetSnapshotBlockOutput{BlockData: io.NopCloser(bytes.NewReader(data)), Checksum: aws.String(base64.StdEncoding.EncodeToString(sum[:])), DataLength: aws.Int32(int32(len(data))),
		ChecksumAlgorithm: ebstypes.ChecksumAlgorithmChecksumAlgorithmSha256}, nil
}

func (r *region) listBlocks(in *ebs.ListSnapshotBlocksInput) (*ebs.ListSnapshotBlocksOutput, error) {
	s, err := r.readable(in.SnapshotId)
	if err != nil {
		return nil, err
	}
	out := &ebs.ListSnapshotBlocksOutput{BlockSize: aws.Int32(blockSize), VolumeSize: aws.Int64(int64(*s.VolumeSize)), ExpiryTime: aws.Time(r.cloud.now().Add(7 * 24 * time.Hour)), Blocks: []ebstypes.Block{}}
	for _, i := range slices.Sorted(maps.Keys(s.blocks)) {
		if i >= aws.ToInt32(in.StartingBlockIndex) {
			out.Blocks = append(out.Blocks, ebstypes.Block{BlockIndex: aws.Int32(i), BlockToken: blockToken(*s.SnapshotId, i)})
		}
	}
	out.Blocks, out.NextToken, err = page(out.Blocks, in.MaxResults, in.NextToken, 10000)
	return out, err
}

func (r *region) listChanged(in *ebs.ListChangedBlocksInput) (*ebs.ListChangedBlocksOutput, error) {
	second, err := r.readable(in.SecondSnapshotId)
	if err != nil {
		return nil, err
	}
	first := &snapshot{}
	if in.FirstSnapshotId != nil {
		if first, err = r.readable(in.FirstSnapshotId); err != nil {
			return nil, err
		}
	}
	indexes := map[int32]bool{}
	for i := range second.blocks {
		indexes[i] = true
	}
	for i := range first.blocks {
		indexes[i] = true
	}
	out := &ebs.ListChangedBlocksOutput{BlockSize: aws.Int32(blockSize), VolumeSize: aws.Int64(int64(*second.VolumeSize)), ExpiryTime: aws.Time(r.cloud.now().Add(7 * 24 * time.Hour)), ChangedBlocks: []ebstypes.ChangedBlock{}}
	for _, i := range slices.Sorted(maps.Keys(indexes)) {
		a, inA := first.blocks[i]
		b, inB := second.blocks[i]
		if i < aws.ToInt32(in.StartingBlockIndex) || inA == inB && bytes.Equal(a, b) {
			continue
		}
		c := ebstypes.ChangedBlock{BlockIndex: aws.Int32(i)}
		if inA {
			c.FirstBlockToken = blockToken(*first.SnapshotId, i)
		}
		if inB {
			c.SecondBlockToken = blockToken(*second.SnapshotId, i)
		}
		out.ChangedBlocks = append(out.ChangedBlocks, c)
	}
	out.ChangedBlocks, out.NextToken, err = page(out.ChangedBlocks, in.MaxResults, in.NextToken, 10000)
	return out, err
}

// SnapshotBlocks are the blocks of a snapshot, by index, each of 512 KiB.
func (c *Cloud) SnapshotBlocks(regionName, id string) map[int32][]byte {
	var out map[int32][]byte
	c.in(regionName, func(r *region) {
		if s, ok := r.snapshots.get(id); ok {
			out = maps.Clone(s.blocks)
		}
	})
	return out
}
