package amazon

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/internal/event"
)

const (
	readAhead   = 24  // blocks asked for before they are needed
	keptBlocks  = 160 // 80 MiB
	blockWithin = 2 * time.Minute
)

// snapshotDisk is the disk of a machine that was shut down: the snapshot of its
// root volume, block by block through the EBS direct APIs.
type snapshotDisk struct {
	r        *region
	id       string
	size     int64
	source   *source
	identity string // of the build that captured it
	ctx      context.Context
	cancel   context.CancelFunc

	listing sync.Mutex
	listed  bool
	tokens  map[int32]string // of blocks that hold something
	order   []int32          // those, in order
	place   map[int32]int    // in order
	changed map[int32]bool   // nil: it has no parent

	mu     sync.Mutex
	blocks map[int32]*block
	age    []int32 // the oldest first
	seats  chan struct{}
}

// block is one that is read or being read.
type block struct {
	ready chan struct{}
	data  []byte
	err   error
}

// capture makes the snapshot and waits until it is complete.
func (b *Builder) capture(ctx context.Context, m *machine) (*snapshotDisk, error) {
	volume, size, err := m.volume(ctx)
	if err != nil {
		return nil, err
	}
	out, err := m.r.ec2.CreateSnapshot(ctx, &ec2.CreateSnapshotInput{VolumeId: &volume, Description: aws.String("rebake " + m.id),
		TagSpecifications: tagged(b.tags(m.id), types.ResourceTypeSnapshot)})
	if err != nil {
		return nil, fmt.Errorf("snapshot of %s: %w", volume, err)
	}
	id := aws.ToString(out.SnapshotId)
	if err := m.r.completed(ctx, b.deps, id); err != nil {
		return nil, err
	}
	d := &snapshotDisk{r: m.r, id: id, size: size, source: m.source, identity: m.id, blocks: map[int32]*block{}, seats: make(chan struct{}, readAhead)}
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return d, nil
}

// volume is the machine's root volume, and its size in bytes.
func (m *machine) volume(ctx context.Context) (string, int64, error) {
	for began := time.Now(); ; {
		out, err := m.r.ec2.DescribeVolumes(ctx, &ec2.DescribeVolumesInput{Filters: []types.Filter{filter("tag:"+TagBuild, m.id)}})
		if err != nil {
			return "", 0, err
		}
		for _, v := range out.Volumes {
			// A spot instance's is detached by now, and its other volumes are gone.
			if m.spot && len(out.Volumes) == 1 && v.State == types.VolumeStateAvailable || attachedAs(v, m.instance, m.source.device) {
				return aws.ToString(v.VolumeId), int64(aws.ToInt32(v.Size)) << 30, nil
			}
		}
		if time.Since(began) > m.b.deps.seen() {
			return "", 0, fmt.Errorf("%s has no volume %s any more: nothing can be captured", m.instance, m.source.device)
		}
		if err := pause(ctx, m.b.deps.wait(began)); err != nil {
			return "", 0, err
		}
	}
}

func attachedAs(v types.Volume, instance, device string) bool {
	for _, a := range v.Attachments {
		if aws.ToString(a.InstanceId) == instance && aws.ToString(a.Device) == device {
			return true
		}
	}
	return false
}

// completed waits for as long as EC2 works on a snapshot.
func (r *region) completed(ctx context.Context, d Deps, id string) error {
	last := ""
	for began := time.Now(); ; {
		out, err := r.ec2.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{id}})
		if err != nil && (code(err) != "InvalidSnapshot.NotFound" || time.Since(began) > d.seen()) { // it may not be seen yet
			return fmt.Errorf("wait for snapshot %s: %w", id, err)
		}
		if err == nil && len(out.Snapshots) == 1 {
			switch s := out.Snapshots[0]; s.State {
			case types.SnapshotStateCompleted:
				return nil
			case types.SnapshotStateError:
				return fmt.Errorf("snapshot %s failed: %s", id, aws.ToString(s.StateMessage))
			default:
				if p := aws.ToString(s.Progress); p != last || last == "" {
					event.Waiting(ctx, "snapshot %s, %s so far", id, orElse(p, "0%"))
					last = orElse(p, "0%")
				}
			}
		}
		if err := pause(ctx, d.wait(began)); err != nil {
			return err
		}
	}
}

func (d *snapshotDisk) Size() int64             { return d.size }
func (d *snapshotDisk) Parent() artifact.Digest { return d.source.content }

// Close implements artifact.Disk: what is being read ends.
func (d *snapshotDisk) Close() error {
	d.cancel()
	return nil
}

// list asks once what blocks there are, and which of them are not the parent's.
func (d *snapshotDisk) list(ctx context.Context) error {
	d.listing.Lock()
	defer d.listing.Unlock()
	if d.listed {
		return nil
	}
	tokens, order, place := map[int32]string{}, []int32(nil), map[int32]int{}
	for p := ebs.NewListSnapshotBlocksPaginator(d.r.ebs, &ebs.ListSnapshotBlocksInput{SnapshotId: &d.id}); p.HasMorePages(); {
		out, err := p.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("list the blocks of %s: %w", d.id, err)
		}
		if size := aws.ToInt32(out.BlockSize); size != 0 && size != ami.BlockSize {
			return fmt.Errorf("%s has blocks of %d bytes, not of %d", d.id, size, ami.BlockSize)
		}
		for _, b := range out.Blocks {
			i := aws.ToInt32(b.BlockIndex)
			if len(order) > 0 && i <= order[len(order)-1] {
				return fmt.Errorf("%s lists block %d after %d", d.id, i, order[len(order)-1])
			}
			tokens[i], place[i], order = aws.ToString(b.BlockToken), len(order), append(order, i)
		}
	}
	if d.source.content != "" {
		changed, err := d.changes(ctx)
		if isOne(err, "ValidationException", "ResourceNotFoundException") { // they have no common origin
			event.Infof(ctx, "%s and %s cannot be compared: the whole disk is read", d.source.snapshot, d.id)
			d.source.content = ""
		} else if err != nil {
			return err
		}
		d.changed = changed
	}
	d.tokens, d.order, d.place, d.listed = tokens, order, place, true
	return nil
}

// changes are the blocks that are not as in the snapshot of the source.
func (d *snapshotDisk) changes(ctx context.Context) (map[int32]bool, error) {
	out := map[int32]bool{}
	for p := ebs.NewListChangedBlocksPaginator(d.r.ebs, &ebs.ListChangedBlocksInput{FirstSnapshotId: &d.source.snapshot, SecondSnapshotId: &d.id}); p.HasMorePages(); {
		page, err := p.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("compare %s with %s: %w", d.id, d.source.snapshot, err)
		}
		for _, b := range page.ChangedBlocks {
			out[aws.ToInt32(b.BlockIndex)] = true
		}
	}
	return out, nil
}

// Extents implements artifact.Disk: blocks that EBS does not list are zeros.
func (d *snapshotDisk) Extents(ctx context.Context) ([]artifact.Extent, error) {
	if err := d.list(ctx); err != nil {
		return nil, inWords(ctx, err)
	}
	var out []artifact.Extent
	for at := int64(0); at < d.size; at += ami.BlockSize {
		i := int32(at / ami.BlockSize)
		e := artifact.Extent{Offset: at, Length: min(ami.BlockSize, d.size-at)}
		_, holds := d.tokens[i]
		e.Zero = !holds
		e.Inherited = holds && d.changed != nil && !d.changed[i]
		if n := len(out); n > 0 && out[n-1].Zero == e.Zero && out[n-1].Inherited == e.Inherited {
			out[n-1].Length += e.Length
			continue
		}
		out = append(out, e)
	}
	return out, nil
}

// ReadAt implements artifact.Disk.
func (d *snapshotDisk) ReadAt(p []byte, off int64) (n int, err error) {
	if err := d.list(d.ctx); err != nil {
		return 0, err
	}
	for n < len(p) {
		if off >= d.size {
			return n, io.EOF
		}
		i, in := int32(off/ami.BlockSize), off%ami.BlockSize
		want := min(int64(len(p)-n), ami.BlockSize-in, d.size-off)
		if _, ok := d.tokens[i]; !ok {
			clear(p[n : n+int(want)])
		} else {
			b := d.get(i)
			select {
			case <-b.ready:
			case <-d.ctx.Done():
				return n, context.Cause(d.ctx)
			}
			if b.err != nil {
				return n, b.err
			}
			copy(p[n:n+int(want)], b.data[in:])
		}
		n, off = n+int(want), off+want
	}
	return n, nil
}

// get is a block, begun to be read if it was not; so are those after it that a
// reader of the whole disk will want next.
func (d *snapshotDisk) get(i int32) *block {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.begin(i)
	at := d.place[i]
	for _, next := range d.order[at+1 : min(at+readAhead, len(d.order))] {
		if d.changed == nil || d.changed[next] {
			d.begin(next)
		}
	}
	return b
}

// begin has d.mu.
func (d *snapshotDisk) begin(i int32) *block {
	if b := d.blocks[i]; b != nil {
		return b
	}
	b := &block{ready: make(chan struct{})}
	d.blocks[i], d.age = b, append(d.age, i)
	if len(d.age) > keptBlocks {
		delete(d.blocks, d.age[0])
		d.age = d.age[1:]
	}
	go func() {
		defer close(b.ready)
		select {
		case d.seats <- struct{}{}:
			defer func() { <-d.seats }()
		case <-d.ctx.Done():
			b.err = context.Cause(d.ctx)
			return
		}
		if b.data, b.err = d.fetch(i); b.err != nil {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.blocks[i] == b { // the next one who wants it asks again
				delete(d.blocks, i)
			}
		}
	}()
	return b
}

// fetch gets a block and holds it to its checksum.
func (d *snapshotDisk) fetch(i int32) ([]byte, error) {
	ctx, cancel := context.WithTimeout(d.ctx, blockWithin)
	defer cancel()
	var last error
	for range 3 { // a body that is cut off is no error that the SDK tries again
		out, err := d.r.ebs.GetSnapshotBlock(ctx, &ebs.GetSnapshotBlockInput{SnapshotId: &d.id, BlockIndex: &i, BlockToken: aws.String(d.tokens[i])})
		if err != nil {
			return nil, inWords(d.ctx, fmt.Errorf("block %d of %s: %w", i, d.id, err))
		}
		data, err := io.ReadAll(io.LimitReader(out.BlockData, ami.BlockSize+1))
		_ = out.BlockData.Close() // it was read to its end
		sum := sha256.Sum256(data)
		switch {
		case err != nil:
			last = err
		case len(data) != ami.BlockSize:
			last = fmt.Errorf("%d bytes came", len(data))
		case aws.ToString(out.Checksum) != base64.StdEncoding.EncodeToString(sum[:]):
			last = fmt.Errorf("its checksum is not the one that EBS gives: %w", artifact.ErrCorrupt)
		default:
			return data, nil
		}
	}
	return nil, fmt.Errorf("block %d of %s: %w", i, d.id, last)
}
