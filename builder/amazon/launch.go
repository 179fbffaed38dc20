package amazon

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/internal/event"
)

// token is a client token that names one intent: the same for the same words.
func token(words ...string) string {
	h := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	return "rebake-" + hex.EncodeToString(h[:])[:48]
}

// tags are those of all that is made for a machine.
func (b *Builder) tags(id string) []types.Tag {
	out := map[string]string{"Name": "rebake-" + id}
	maps.Copy(out, b.cfg.Tags)
	out[TagBuild] = id
	return tagList(out)
}

func tagList(tags map[string]string) []types.Tag {
	var out []types.Tag
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		out = append(out, types.Tag{Key: aws.String(k), Value: aws.String(tags[k])})
	}
	return out
}

func tagged(tags []types.Tag, kinds ...types.ResourceType) (out []types.TagSpecification) {
	for _, k := range kinds {
		out = append(out, types.TagSpecification{ResourceType: k, Tags: tags})
	}
	return out
}

func tagOf(tags []types.Tag, key string) string {
	for _, t := range tags {
		if aws.ToString(t.Key) == key {
			return aws.ToString(t.Value)
		}
	}
	return ""
}

// place is one way to get an instance.
type place struct {
	kind   string // instance type
	subnet types.Subnet
	spot   bool
}

func (p place) String() string {
	market := ""
	if p.spot {
		market = "spot "
	}
	return fmt.Sprintf("%s%s in %s (%s)", market, p.kind, aws.ToString(p.subnet.AvailabilityZone), aws.ToString(p.subnet.SubnetId))
}

// places are all ways, in the order in which they are tried.
func (b *Builder) places(subnets []types.Subnet) (out []place) {
	markets := []bool{b.cfg.Spot.Use}
	if b.cfg.Spot.Use && b.cfg.Spot.OnDemand {
		markets = append(markets, false)
	}
	for _, spot := range markets {
		for _, kind := range b.cfg.Types.AnyOf {
			for _, s := range subnets {
				out = append(out, place{kind, s, spot})
			}
		}
	}
	return out
}

// launch gets an instance at the first place that has one.
func (b *Builder) launch(ctx context.Context, m *machine, l launch, dead int) error {
	data, err := b.userData(m, l.host)
	if err != nil {
		return err
	}
	subnets, err := b.subnets(ctx, m.r)
	if err != nil {
		return err
	}
	groups, err := b.groups(ctx, m.r, l.id, aws.ToString(subnets[0].VpcId))
	if err != nil {
		return err
	}
	var refused []string
	for _, p := range b.places(subnets) {
		in := b.instance(l, p, groups, data)
		in.ClientToken = aws.String(token("run", l.id, fmt.Sprint(dead), p.kind, aws.ToString(p.subnet.SubnetId), fmt.Sprint(p.spot)))
		var out *ec2.RunInstancesOutput
		err := soon(ctx, b.deps, func() (err error) {
			out, err = m.r.ec2.RunInstances(ctx, in, elsewhere)
			return err
		}, "InvalidGroup.NotFound", "InvalidAMIID.NotFound", "InvalidAMIID.Unavailable", "InvalidSnapshot.NotFound")
		if noCapacity(err) {
			refused = append(refused, fmt.Sprintf("%s: %s", p, why(err)))
			event.Infof(ctx, "%s: %s", p, why(err))
			continue
		}
		if err != nil {
			return fmt.Errorf("launch %s: %w", p, err)
		}
		if len(out.Instances) != 1 {
			return fmt.Errorf("launch %s: %d instances came", p, len(out.Instances))
		}
		m.instance, m.spot = aws.ToString(out.Instances[0].InstanceId), p.spot
		event.Infof(ctx, "%s is %s", m.instance, p)
		return nil
	}
	return fmt.Errorf("nowhere is an instance to be had:\n  %s\ngive more types in instance_type, a filter that finds more subnets, or spot.on_demand", strings.Join(refused, "\n  "))
}

// instance is the request for one.
func (b *Builder) instance(l launch, p place, groups []string, data []byte) *ec2.RunInstancesInput {
	one := aws.Int32(1)
	tags := b.tags(l.id)
	nic := types.InstanceNetworkInterfaceSpecification{DeviceIndex: aws.Int32(0), SubnetId: p.subnet.SubnetId, Groups: groups,
		DeleteOnTermination: aws.Bool(true), AssociatePublicIpAddress: aws.Bool(b.cfg.Network.Address == "public")}
	if b.cfg.Network.Address == "ipv6" {
		nic.Ipv6AddressCount = one
	}
	in := &ec2.RunInstancesInput{
		ImageId: aws.String(l.image), InstanceType: types.InstanceType(p.kind), MinCount: one, MaxCount: one,
		NetworkInterfaces:                 []types.InstanceNetworkInterfaceSpecification{nic},
		UserData:                          aws.String(base64.StdEncoding.EncodeToString(data)),
		InstanceInitiatedShutdownBehavior: types.ShutdownBehaviorStop,
		MetadataOptions:                   b.cfg.Metadata.request(),
		TagSpecifications:                 tagged(tags, types.ResourceTypeInstance, types.ResourceTypeVolume, types.ResourceTypeNetworkInterface),
	}
	switch {
	case strings.HasPrefix(b.cfg.Profile, "arn:"):
		in.IamInstanceProfile = &types.IamInstanceProfileSpecification{Arn: aws.String(b.cfg.Profile)}
	case b.cfg.Profile != "":
		in.IamInstanceProfile = &types.IamInstanceProfileSpecification{Name: aws.String(b.cfg.Profile)}
	}
	root := b.cfg.Root.device(true)
	if l.root > 0 {
		root.VolumeSize = aws.Int32(int32(l.root >> 30))
	}
	if p.spot {
		// One that is bought once cannot be stopped: it ends, and its volume stays
		// for the snapshot.
		in.InstanceInitiatedShutdownBehavior = types.ShutdownBehaviorTerminate
		root.DeleteOnTermination = aws.Bool(l.disk != nil)
		in.InstanceMarketOptions = &types.InstanceMarketOptionsRequest{MarketType: types.MarketTypeSpot,
			SpotOptions: &types.SpotMarketOptions{SpotInstanceType: types.SpotInstanceTypeOneTime, InstanceInterruptionBehavior: types.InstanceInterruptionBehaviorTerminate}}
		if b.cfg.Spot.MaxPrice != "" {
			in.InstanceMarketOptions.SpotOptions.MaxPrice = aws.String(b.cfg.Spot.MaxPrice)
		}
		in.TagSpecifications = append(in.TagSpecifications, tagged(tags, types.ResourceTypeSpotInstancesRequest)...)
	}
	in.BlockDeviceMappings = []types.BlockDeviceMapping{{DeviceName: aws.String(l.source.device), Ebs: root}}
	if l.disk == nil {
		for _, v := range b.cfg.Volumes {
			in.BlockDeviceMappings = append(in.BlockDeviceMappings, types.BlockDeviceMapping{DeviceName: aws.String(v.Device), Ebs: v.device(true)})
		}
	}
	return in
}

func (m Metadata) request() *types.InstanceMetadataOptionsRequest {
	out := &types.InstanceMetadataOptionsRequest{HttpEndpoint: types.InstanceMetadataEndpointStateEnabled, HttpTokens: types.HttpTokensState(m.Tokens)}
	if m.HopLimit > 0 {
		out.HttpPutResponseHopLimit = aws.Int32(int32(m.HopLimit))
	}
	if m.Tags {
		out.InstanceMetadataTags = types.InstanceMetadataTagsStateEnabled
	}
	return out
}

// device is a volume as an instance or an AMI has it.
func (v Volume) device(encryption bool) *types.EbsBlockDevice {
	d := &types.EbsBlockDevice{DeleteOnTermination: aws.Bool(true), VolumeType: types.VolumeType(orElse(v.Type, "gp3"))}
	if v.Size > 0 {
		d.VolumeSize = aws.Int32(int32(v.Size >> 30))
	}
	if v.IOPS > 0 {
		d.Iops = aws.Int32(int32(v.IOPS))
	}
	if v.Throughput > 0 {
		d.Throughput = aws.Int32(int32(v.Throughput))
	}
	if encryption && (v.Encrypted || v.KMSKey != "") {
		d.Encrypted = aws.Bool(true)
		if v.KMSKey != "" {
			d.KmsKeyId = aws.String(v.KMSKey)
		}
	}
	return d
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// elsewhere leaves the next try after a refusal for lack of capacity to launch:
// EC2 tells it as an error of the server, which the SDK would try again for long.
func elsewhere(o *ec2.Options) { o.Retryer = picky{o.Retryer} }

type picky struct{ aws.Retryer }

func (p picky) IsErrorRetryable(err error) bool {
	return !noCapacity(err) && p.Retryer.IsErrorRetryable(err)
}

// GetAttemptToken keeps the pace of an adaptive client.
func (p picky) GetAttemptToken(ctx context.Context) (func(error) error, error) {
	if v2, ok := p.Retryer.(aws.RetryerV2); ok {
		return v2.GetAttemptToken(ctx)
	}
	return p.Retryer.GetInitialToken(), nil
}

// soon repeats a call that refuses because something that was just made is not
// seen everywhere yet.
func soon(ctx context.Context, d Deps, f func() error, codes ...string) error {
	for began := time.Now(); ; {
		err := f()
		if !isOne(err, codes...) || time.Since(began) > d.seen() {
			return err
		}
		if perr := pause(ctx, d.wait(began)); perr != nil {
			return errors.Join(perr, err)
		}
	}
}

// seen is how long it may take until what was made is seen by all.
func (d Deps) seen() time.Duration {
	if d.settle > 0 {
		return d.settle
	}
	return 90 * time.Second
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
