package amazon

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/builder"
)

// source is the AMI that a machine starts from.
type source struct {
	base     builder.Base
	ami      string
	snapshot string // of its root volume
	device   string // root device's name
	boot     types.BootModeValues
	img      artifact.Image // of the store; zero: the AMI is somebody's
	content  artifact.Digest
}

// key is what decides the machine's disk as it boots.
func (s *source) key(in *artifact.Inputs) {
	if s.img.Digest != "" {
		in.Add("source.image", string(s.img.Digest))
		return
	}
	in.Add("source.ami", s.ami)
	in.Add("source.snapshot", s.snapshot)
}

// source finds the AMI, once: a build begins and ends with the same.
func (b *Builder) source(ctx context.Context) (*source, error) {
	r, err := b.region(ctx)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	have := b.src
	b.mu.Unlock()
	if have != nil {
		return have, nil
	}
	var s *source
	if b.cfg.Source.Image != "" {
		s, err = b.stored(ctx, r)
	} else {
		s, err = b.given(ctx, r)
	}
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.src == nil {
		b.src = s
	}
	return b.src, nil
}

// given is an AMI by its id or by a filter.
func (b *Builder) given(ctx context.Context, r *region) (*source, error) {
	in := &ec2.DescribeImagesInput{}
	c := b.cfg.Source
	if c.AMI != "" {
		in.ImageIds = []string{c.AMI}
	} else {
		in.Owners = c.Filter.Owners
		in.Filters = append(filters(c.Filter.Filter), filter("state", "available"))
		if c.Filter.Name != "" {
			in.Filters = append(in.Filters, filter("name", c.Filter.Name))
		}
		if c.Filter.Arch != "" {
			in.Filters = append(in.Filters, filter("architecture", map[string]string{"amd64": "x86_64", "arm64": "arm64"}[c.Filter.Arch]))
		}
	}
	var all []types.Image
	for p := ec2.NewDescribeImagesPaginator(r.ec2, in); p.HasMorePages(); {
		out, err := p.NextPage(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, out.Images...)
	}
	slices.SortFunc(all, func(a, b types.Image) int {
		return cmp.Or(strings.Compare(aws.ToString(b.CreationDate), aws.ToString(a.CreationDate)), strings.Compare(aws.ToString(a.ImageId), aws.ToString(b.ImageId)))
	})
	switch {
	case len(all) == 0:
		return nil, fmt.Errorf("no AMI of this description is in %s", r.name)
	case len(all) > 1 && !c.Filter.Newest:
		var ids []string
		for _, i := range all[:min(len(all), 5)] {
			ids = append(ids, fmt.Sprintf("%s (%s)", aws.ToString(i.ImageId), aws.ToString(i.Name)))
		}
		return nil, fmt.Errorf("%d AMIs are of this description in %s, the newest %s: say newest: true, or more of it", len(all), r.name, strings.Join(ids, ", "))
	}
	s, err := r.describe(ctx, &all[0])
	if err != nil {
		return nil, err
	}
	s.base.Ref = s.ami
	s.base.Digest = artifact.Digest(fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(s.ami+"\n"+s.snapshot))))
	s.base.User = b.cfg.SSH.User
	s.base.Seed = "nocloud"
	return s, nil
}

// Check implements builder.Checker: of an image of the store it is known here whether
// it can be the source, and of an AMI nothing. Without a region, as where there are no
// credentials either, nothing is said of regions.
func (b *Builder) Check(ctx context.Context) error {
	if b.cfg.Source.Image == "" {
		return nil
	}
	img, records, err := b.recorded(ctx)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	r, err := b.region(ctx)
	if err == nil && !slices.ContainsFunc(records, func(rec ami.Record) bool { return rec.Region == r.name }) {
		return fmt.Errorf("source: %w", noAMI(img, r))
	}
	return nil
}

func noAMI(img artifact.Image, r *region) error {
	name := img.Name + ":" + img.Version
	return fmt.Errorf("%s has no AMI in %s: `rebake ami publish %s --region %s` makes one", name, r.name, name, r.name)
}

// recorded is the image of the store that the configuration names, and its AMIs.
func (b *Builder) recorded(ctx context.Context) (img artifact.Image, records []ami.Record, err error) {
	ref, err := artifact.ParseRef(b.cfg.Source.Image)
	if err != nil {
		return img, nil, err
	}
	if img, err = b.deps.Store.Resolve(ctx, ref); err != nil {
		return img, nil, err
	}
	if b.deps.Use != nil {
		if err := b.deps.Use(ctx, img); err != nil {
			return img, nil, err
		}
	}
	if img.Seed != "nocloud" {
		return img, nil, fmt.Errorf("%s:%s is told its keys by %s, which EC2 has not: use a base with cloud-init (seed: nocloud)", img.Name, img.Version, img.Seed)
	}
	keeper, ok := b.deps.Store.(artifact.Attacher)
	if !ok {
		return img, nil, fmt.Errorf("the store %T records no AMIs", b.deps.Store)
	}
	records, err = ami.Records(ctx, keeper, img)
	return img, records, err
}

// stored is an image of the store that has an AMI in the region.
func (b *Builder) stored(ctx context.Context, r *region) (*source, error) {
	img, records, err := b.recorded(ctx)
	if err != nil {
		return nil, err
	}
	for i := len(records) - 1; i >= 0; i-- {
		rec := records[i]
		if rec.Region != r.name {
			continue
		}
		out, err := r.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{rec.AMI}})
		if code(err) == "InvalidAMIID.NotFound" || code(err) == "InvalidAMIID.Unavailable" || err == nil && len(out.Images) == 0 {
			continue
		}
		if err != nil {
			return nil, err
		}
		s, err := r.describe(ctx, &out.Images[0])
		if err != nil {
			return nil, err
		}
		s.img = img
		if rec.Content == img.Content && rec.Snapshot == s.snapshot {
			s.content = b.contentHere(img.Content)
		}
		s.base.Ref, s.base.Digest, s.base.Seed = img.Name+":"+img.Version, img.Digest, img.Seed
		if s.base.User = b.cfg.SSH.User; s.base.User == "" {
			s.base.User = img.User
		}
		return s, nil
	}
	return nil, noAMI(img, r)
}

// contentHere is a content that the store has, or "".
func (b *Builder) contentHere(c artifact.Digest) artifact.Digest {
	if h, ok := b.deps.Store.(interface{ Has(artifact.Digest) bool }); ok && !h.Has(c) {
		return ""
	}
	return c
}

// describe tells what an AMI's machine is like.
func (r *region) describe(ctx context.Context, i *types.Image) (*source, error) {
	s := &source{ami: aws.ToString(i.ImageId), device: aws.ToString(i.RootDeviceName), boot: i.BootMode}
	switch {
	case i.State != types.ImageStateAvailable:
		return nil, fmt.Errorf("%s is %s", s.ami, i.State)
	case i.Platform == types.PlatformValuesWindows:
		return nil, fmt.Errorf("%s is Windows: rebake bakes Linux", s.ami)
	case len(i.ProductCodes) > 0 || aws.ToString(i.UsageOperation) != "" && aws.ToString(i.UsageOperation) != "RunInstances":
		return nil, fmt.Errorf("%s (%s) is billed by its AMI, and an AMI of a snapshot of it would not be: rebake makes none", s.ami, orElse(aws.ToString(i.PlatformDetails), "of AWS Marketplace"))
	}
	var size int64
	for _, m := range i.BlockDeviceMappings {
		if m.Ebs != nil && aws.ToString(m.DeviceName) == s.device {
			s.snapshot, size = aws.ToString(m.Ebs.SnapshotId), int64(aws.ToInt32(m.Ebs.VolumeSize))<<30
		}
	}
	if s.snapshot == "" {
		return nil, fmt.Errorf("%s has no EBS root volume: it cannot be captured", s.ami)
	}
	if size == 0 { // only its snapshot knows
		out, err := r.ec2.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{s.snapshot}})
		if err != nil {
			return nil, err
		}
		for _, sn := range out.Snapshots {
			size = int64(aws.ToInt32(sn.VolumeSize)) << 30
		}
	}
	s.base = builder.Base{DiskSize: size, Firmware: "bios", Arch: map[types.ArchitectureValues]string{types.ArchitectureValuesX8664: "amd64", types.ArchitectureValuesArm64: "arm64"}[i.Architecture]}
	if s.base.Arch == "" {
		return nil, fmt.Errorf("%s is of architecture %s: rebake knows x86_64 and arm64", s.ami, i.Architecture)
	}
	if s.boot == types.BootModeValuesUefi || s.boot == types.BootModeValuesUefiPreferred || s.boot == "" && s.base.Arch == "arm64" {
		s.base.Firmware = "uefi"
	}
	return s, nil
}

func filter(name string, values ...string) types.Filter {
	return types.Filter{Name: aws.String(name), Values: values}
}

// filters are those of a template, in an order that does not change.
func filters(m map[string]string) (out []types.Filter) {
	for k, v := range m {
		out = append(out, filter(k, v))
	}
	slices.SortFunc(out, func(a, b types.Filter) int { return strings.Compare(*a.Name, *b.Name) })
	return out
}
