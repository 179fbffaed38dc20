package amazon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/atomicfile"
	"github.com/rebake/rebake/internal/awscalls"
	"github.com/rebake/rebake/internal/event"
	"golang.org/x/sync/errgroup"
)

// published is published.json of a build's directory: what is an image's own once
// the store has that image. It is written before the image can be registered.
type published struct {
	Store   string              `json:"store"` // its address
	Name    string              `json:"name"`
	Digest  artifact.Digest     `json:"digest"`
	Owns    map[string][]string `json:"owns"` // by region: AMI and snapshots
	AMIs    map[string]string   `json:"amis"` // by region
	Protect bool                `json:"protect,omitempty"`
}

const publishedName = "published.json"

// owned is what a build published for an image that the store has; nil if it has
// none. Where that cannot be told nothing must be removed.
func (d Deps) owned(ctx context.Context, dir string) (*published, error) {
	raw, err := os.ReadFile(filepath.Join(dir, publishedName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var p published
	if err == nil {
		err = json.Unmarshal(raw, &p)
	}
	if err != nil {
		return nil, fmt.Errorf("read what was published: %w", err)
	}
	store := d.Store
	if p.Store != d.Address && d.Open != nil {
		if store, err = d.Open(p.Store); err != nil {
			return nil, fmt.Errorf("open the store %s, which may have the build's image: %w", p.Store, err)
		}
	}
	_, err = store.Resolve(ctx, artifact.Ref{Name: p.Name, Digest: p.Digest})
	if errors.Is(err, artifact.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look whether the build's image was registered: %w", err)
	}
	return &p, nil
}

// Publish implements builder.Publisher: an AMI of the snapshot, and its copies.
func (b *Builder) Publish(ctx context.Context, id string, d artifact.Disk, img artifact.Image) (_ []builder.Document, err error) {
	defer func() { err = inWords(ctx, err) }()
	disk, ok := d.(*snapshotDisk)
	if !ok {
		return nil, fmt.Errorf("a %T was not captured by this builder", d)
	}
	dir := b.deps.State.Build(id)
	j, err := b.deps.calls(id)
	if err != nil {
		return nil, err
	}
	ctx = awscalls.Writing(ctx, j)
	tags := b.imageTags(id, img)
	if _, err := disk.r.ec2.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{disk.id}, Tags: tags}); err != nil {
		return nil, fmt.Errorf("tag %s: %w", disk.id, err)
	}
	first := ami.Record{Region: disk.r.name, Snapshot: disk.id, Name: b.imageName(img), Content: img.Content, KMSKey: b.cfg.Root.KMSKey, From: disk.source.snapshot}
	in := b.registration(first.Name, disk)
	in.Description = aws.String(orElse(b.cfg.AMI.Description, "rebake "+img.Name+":"+img.Version))
	in.TagSpecifications = tagged(tags, types.ResourceTypeImage)
	if b.cfg.AMI.VolumeType != "" {
		in.BlockDeviceMappings[0].Ebs.VolumeType = types.VolumeType(b.cfg.AMI.VolumeType)
	}
	if first.AMI, err = disk.r.register(ctx, b.deps, id, in); err != nil {
		return nil, err
	}
	event.Infof(ctx, "%s in %s is %s", first.AMI, first.Region, first.Name)
	records := make([]ami.Record, 1+len(b.cfg.AMI.CopyTo))
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		records[0], err = b.finish(gctx, disk.r, first)
		return err
	})
	for i, to := range b.cfg.AMI.CopyTo {
		g.Go(func() (err error) {
			records[i+1], err = b.copyTo(gctx, to, first, tags, in.Description)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return b.record(dir, img, records)
}

// record writes down what will be the image's own, and returns its documents.
func (b *Builder) record(dir string, img artifact.Image, records []ami.Record) ([]builder.Document, error) {
	p := published{Store: b.deps.Address, Name: img.Name, Digest: img.Digest, Owns: map[string][]string{}, AMIs: map[string]string{}, Protect: b.cfg.AMI.Protect}
	var docs []builder.Document
	for _, r := range records {
		p.AMIs[r.Region] = r.AMI
		p.Owns[r.Region] = []string{r.AMI, r.Snapshot}
		a, body, err := r.Attachment(img.Created)
		if err != nil {
			return nil, err
		}
		docs = append(docs, builder.Document{Attachment: a, Body: body})
	}
	raw, err := json.Marshal(p)
	if err == nil {
		err = atomicfile.Write(filepath.Join(dir, publishedName), raw, 0o600)
	}
	return docs, err
}

func (b *Builder) imageName(img artifact.Image) string {
	if b.cfg.AMI.Name == "" {
		return ami.Name(img)
	}
	return strings.NewReplacer("{name}", img.Name, "{version}", img.Version, "{digest}", img.Digest.Hex()[:12]).Replace(b.cfg.AMI.Name)
}

// imageTags are those of an AMI and its snapshots; the build's is taken away once
// the image is registered.
func (b *Builder) imageTags(id string, img artifact.Image) []types.Tag {
	out := map[string]string{"Name": img.Name + ":" + img.Version}
	maps.Copy(out, b.cfg.AMI.Tags)
	out[ami.TagImage], out[ami.TagDigest], out[ami.TagContent], out[TagBuild] = img.Name+":"+img.Version, string(img.Digest), string(img.Content), id
	return tagList(out)
}

// registration is the request for an AMI of a snapshot.
func (b *Builder) registration(name string, d *snapshotDisk) *ec2.RegisterImageInput {
	in := &ec2.RegisterImageInput{
		Name: aws.String(name), RootDeviceName: aws.String(d.source.device), VirtualizationType: aws.String("hvm"),
		Architecture: types.ArchitectureValuesX8664, BootMode: types.BootModeValues(orElse(b.cfg.AMI.BootMode, string(d.source.boot))),
		EnaSupport: aws.Bool(b.cfg.AMI.ENA == nil || *b.cfg.AMI.ENA),
		BlockDeviceMappings: []types.BlockDeviceMapping{{DeviceName: aws.String(d.source.device), Ebs: &types.EbsBlockDevice{
			SnapshotId: &d.id, DeleteOnTermination: aws.Bool(true), VolumeType: types.VolumeTypeGp3}}},
	}
	if d.source.base.Arch == "arm64" {
		in.Architecture = types.ArchitectureValuesArm64
	}
	if b.cfg.Metadata.Tokens == "required" {
		in.ImdsSupport = types.ImdsSupportValuesV20
	}
	return in
}

// register makes an AMI and waits until it can be launched. RegisterImage has no
// client token: that the name is taken may say that a try was not heard of.
func (r *region) register(ctx context.Context, d Deps, id string, in *ec2.RegisterImageInput) (string, error) {
	out, err := r.ec2.RegisterImage(ctx, in)
	var ami string
	switch {
	case code(err) == "InvalidAMIName.Duplicate":
		found, ferr := r.images(ctx, filter("name", *in.Name))
		if ferr != nil {
			return "", errors.Join(err, ferr)
		}
		for _, i := range found {
			if tagOf(i.Tags, TagBuild) == id {
				ami = aws.ToString(i.ImageId)
			}
		}
		if ami == "" {
			return "", fmt.Errorf("an AMI %s is in %s already and is not of this build: deregister or rename it, or give ami.name: %w", *in.Name, r.name, err)
		}
	case err != nil:
		return "", fmt.Errorf("register %s: %w", *in.Name, err)
	default:
		ami = aws.ToString(out.ImageId)
	}
	i, err := r.available(ctx, d, ami)
	if err != nil {
		return ami, err
	}
	if tags := in.TagSpecifications[0].Tags; tagOf(i.Tags, TagBuild) != id { // a cloud that takes no tags with the AMI
		_, err = r.ec2.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{ami}, Tags: tags})
	}
	return ami, err
}

func (r *region) images(ctx context.Context, f ...types.Filter) (out []types.Image, err error) {
	in := &ec2.DescribeImagesInput{Owners: []string{"self"}, Filters: f, IncludeDeprecated: aws.Bool(true), IncludeDisabled: aws.Bool(true)}
	for p := ec2.NewDescribeImagesPaginator(r.ec2, in); p.HasMorePages(); {
		page, err := p.NextPage(ctx)
		if err != nil {
			return out, err
		}
		out = append(out, page.Images...)
	}
	return out, nil
}

// available waits until an AMI can be launched.
func (r *region) available(ctx context.Context, d Deps, id string) (types.Image, error) {
	began := time.Now()
	return ami.Await(ctx, r.ec2, r.name, id, ami.Awaiting{Seen: d.seen(), Between: func() time.Duration { return d.wait(began) },
		Info: func(text string) { event.Waiting(ctx, "%s", strings.TrimPrefix(text, "waiting for ")) }})
}

// copyTo makes a copy in another region.
func (b *Builder) copyTo(ctx context.Context, to Copy, of ami.Record, tags []types.Tag, description *string) (ami.Record, error) {
	rec := ami.Record{Region: to.Region, Name: of.Name, Content: of.Content, KMSKey: to.KMSKey, From: of.AMI}
	r, err := b.deps.connect(ctx, to.Region)
	if err != nil {
		return rec, err
	}
	in := &ec2.CopyImageInput{Name: &of.Name, SourceImageId: &of.AMI, SourceRegion: &of.Region, Description: description,
		ClientToken:       aws.String(token("copy", of.Region, to.Region, of.AMI, to.KMSKey)),
		TagSpecifications: tagged(tags, types.ResourceTypeImage, types.ResourceTypeSnapshot)}
	if to.KMSKey != "" {
		in.Encrypted, in.KmsKeyId = aws.Bool(true), &to.KMSKey
	}
	out, err := r.ec2.CopyImage(ctx, in)
	if err != nil {
		return rec, fmt.Errorf("copy %s to %s: %w", of.AMI, to.Region, err)
	}
	rec.AMI = aws.ToString(out.ImageId)
	i, err := r.available(ctx, b.deps, rec.AMI)
	if err != nil {
		return rec, fmt.Errorf("copy %s: %w", of.AMI, err)
	}
	if rec, err = b.finish(ctx, r, rec); err == nil && tagOf(i.Tags, TagBuild) == "" { // as in register
		_, err = r.ec2.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{rec.AMI, rec.Snapshot}, Tags: tags})
	}
	return rec, err
}

// finish lets others launch an AMI, says when it is old, and completes its record.
func (b *Builder) finish(ctx context.Context, r *region, rec ami.Record) (ami.Record, error) {
	c := b.cfg.AMI
	if !c.Share.empty() {
		var add []types.LaunchPermission
		for _, u := range c.Share.Users {
			add = append(add, types.LaunchPermission{UserId: aws.String(u)})
		}
		for _, o := range c.Share.Orgs {
			add = append(add, types.LaunchPermission{OrganizationArn: aws.String(o)})
		}
		for _, o := range c.Share.OUs {
			add = append(add, types.LaunchPermission{OrganizationalUnitArn: aws.String(o)})
		}
		if _, err := r.ec2.ModifyImageAttribute(ctx, &ec2.ModifyImageAttributeInput{ImageId: &rec.AMI, LaunchPermission: &types.LaunchPermissionModifications{Add: add}}); err != nil {
			return rec, fmt.Errorf("share %s: %w", rec.AMI, err)
		}
	}
	if c.Deprecate > 0 {
		at := time.Now().Add(c.Deprecate).UTC().Truncate(time.Minute)
		if _, err := r.ec2.EnableImageDeprecation(ctx, &ec2.EnableImageDeprecationInput{ImageId: &rec.AMI, DeprecateAt: &at}); err != nil {
			return rec, fmt.Errorf("deprecate %s: %w", rec.AMI, err)
		}
	}
	out, err := r.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{rec.AMI}})
	if err != nil || len(out.Images) != 1 {
		return rec, errors.Join(fmt.Errorf("%s in %s is not to be seen", rec.AMI, r.name), err)
	}
	i := out.Images[0]
	rec.Account = aws.ToString(i.OwnerId)
	rec.Time = time.Now().UTC().Truncate(time.Second)
	if t, err := time.Parse(time.RFC3339, aws.ToString(i.CreationDate)); err == nil {
		rec.Time = t.UTC()
	}
	if rec.Snapshot != "" {
		return rec, nil
	}
	for _, m := range i.BlockDeviceMappings {
		if m.Ebs != nil && aws.ToString(m.DeviceName) == aws.ToString(i.RootDeviceName) {
			rec.Snapshot = aws.ToString(m.Ebs.SnapshotId)
		}
	}
	if rec.Snapshot == "" {
		return rec, fmt.Errorf("%s in %s has no snapshot", rec.AMI, r.name)
	}
	return rec, nil
}

// testImage is an AMI for one test machine alone.
func (b *Builder) testImage(ctx context.Context, id string, d *snapshotDisk) (string, error) {
	in := b.registration("rebake-test/"+id, d)
	in.TagSpecifications = tagged(b.tags(id), types.ResourceTypeImage)
	return d.r.register(ctx, b.deps, id, in)
}

// ids are what a published image owns in a region.
func (p *published) ids(region string) []string {
	if p == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(p.Owns[region]), func(s string) bool { return s == "" })
}
