package amazon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// subnets are those that an instance may stand in, all of one VPC, the likeliest first.
func (b *Builder) subnets(ctx context.Context, r *region) ([]types.Subnet, error) {
	n := b.cfg.Network
	in := &ec2.DescribeSubnetsInput{Filters: filters(n.Subnet.Filter)}
	if n.Subnet.ID != "" {
		in.SubnetIds = []string{n.Subnet.ID}
	}
	vpc, err := b.vpc(ctx, r)
	if err != nil {
		return nil, err
	}
	if vpc != "" {
		in.Filters = append(in.Filters, filter("vpc-id", vpc))
	}
	var all []types.Subnet
	for p := ec2.NewDescribeSubnetsPaginator(r.ec2, in); p.HasMorePages(); {
		out, err := p.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("network.subnet: %w", err)
		}
		all = append(all, out.Subnets...)
	}
	slices.SortFunc(all, func(a, b types.Subnet) int {
		return cmp.Or(cmp.Compare(aws.ToInt32(b.AvailableIpAddressCount), aws.ToInt32(a.AvailableIpAddressCount)), strings.Compare(aws.ToString(a.SubnetId), aws.ToString(b.SubnetId)))
	})
	if len(all) == 0 {
		return nil, fmt.Errorf("network.subnet: no subnet of this description is in %s", r.name)
	}
	first := aws.ToString(all[0].VpcId)
	return slices.DeleteFunc(all, func(s types.Subnet) bool { return aws.ToString(s.VpcId) != first }), nil
}

// vpc is the VPC's id, or "" where the subnet says it.
func (b *Builder) vpc(ctx context.Context, r *region) (string, error) {
	n := b.cfg.Network
	in := &ec2.DescribeVpcsInput{Filters: filters(n.VPC.Filter)}
	switch {
	case n.VPC.ID != "":
		return n.VPC.ID, nil
	case len(in.Filters) > 0:
	case n.Subnet.ID != "" || len(n.Subnet.Filter) > 0:
		return "", nil
	default:
		in.Filters = []types.Filter{filter("is-default", "true")}
	}
	out, err := r.ec2.DescribeVpcs(ctx, in)
	switch {
	case err != nil:
		return "", fmt.Errorf("network.vpc: %w", err)
	case len(out.Vpcs) == 0 && len(n.VPC.Filter) == 0:
		return "", fmt.Errorf("%s has no default VPC: give network.subnet", r.name)
	case len(out.Vpcs) != 1:
		return "", fmt.Errorf("network.vpc: %d VPCs of this description are in %s", len(out.Vpcs), r.name)
	}
	return aws.ToString(out.Vpcs[0].VpcId), nil
}

// groups are the security groups of an instance. One that is made has the id's
// name, which no other of the VPC can have.
func (b *Builder) groups(ctx context.Context, r *region, id, vpc string) ([]string, error) {
	g := b.cfg.Network.Groups
	if len(g.IDs) > 0 {
		return g.IDs, nil
	}
	if len(g.Filter) > 0 {
		found, err := r.securityGroups(ctx, append(filters(g.Filter), filter("vpc-id", vpc))...)
		if err != nil {
			return nil, fmt.Errorf("network.security_groups: %w", err)
		}
		var ids []string
		for _, f := range found {
			ids = append(ids, aws.ToString(f.GroupId))
		}
		if len(ids) == 0 {
			return nil, fmt.Errorf("network.security_groups: none of this description is in %s", vpc)
		}
		return ids, nil
	}
	name := "rebake-" + id
	out, err := r.ec2.CreateSecurityGroup(ctx, &ec2.CreateSecurityGroupInput{GroupName: &name, VpcId: &vpc,
		Description: aws.String("SSH to a machine of rebake, for as long as it lives"), TagSpecifications: tagged(b.tags(id), types.ResourceTypeSecurityGroup)})
	var group string
	switch {
	case code(err) == "InvalidGroup.Duplicate": // a try before this one was not heard of
		found, ferr := r.securityGroups(ctx, filter("group-name", name), filter("vpc-id", vpc), filter("tag:"+TagBuild, id))
		if ferr != nil || len(found) != 1 {
			return nil, fmt.Errorf("security group: %w", cmp.Or(ferr, err))
		}
		group = aws.ToString(found[0].GroupId)
	case err != nil:
		return nil, fmt.Errorf("security group: %w", err)
	default:
		group = aws.ToString(out.GroupId)
	}
	allow := types.IpPermission{IpProtocol: aws.String("tcp"), FromPort: aws.Int32(int32(b.guestPort())), ToPort: aws.Int32(int32(b.guestPort()))}
	for _, cidr := range b.allowed() {
		if strings.Contains(cidr, ":") {
			allow.Ipv6Ranges = append(allow.Ipv6Ranges, types.Ipv6Range{CidrIpv6: aws.String(cidr), Description: aws.String("rebake")})
		} else {
			allow.IpRanges = append(allow.IpRanges, types.IpRange{CidrIp: aws.String(cidr), Description: aws.String("rebake")})
		}
	}
	if len(allow.IpRanges)+len(allow.Ipv6Ranges) == 0 {
		return []string{group}, nil
	}
	err = soon(ctx, b.deps, func() error {
		_, err := r.ec2.AuthorizeSecurityGroupIngress(ctx, &ec2.AuthorizeSecurityGroupIngressInput{GroupId: &group, IpPermissions: []types.IpPermission{allow}})
		return err
	}, "InvalidGroup.NotFound")
	if err != nil && code(err) != "InvalidPermission.Duplicate" {
		return nil, fmt.Errorf("security group: %w", err)
	}
	return []string{group}, nil
}

// guestPort is where the machine's own sshd listens.
func (b *Builder) guestPort() int {
	if b.cfg.SSH.Host != "" { // the port is the tunnel's
		return 22
	}
	return b.cfg.SSH.Port
}

// allowed are the networks that the group made for the build lets in.
func (b *Builder) allowed() []string {
	switch {
	case len(b.cfg.Network.From.List) > 0:
		return b.cfg.Network.From.List
	case b.cfg.SSH.SSM:
		return nil
	case b.cfg.Network.Address == "private":
		return []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"}
	case b.cfg.Network.Address == "ipv6":
		return []string{"::/0"}
	}
	return []string{"0.0.0.0/0"}
}

func (r *region) securityGroups(ctx context.Context, f ...types.Filter) (out []types.SecurityGroup, err error) {
	for p := ec2.NewDescribeSecurityGroupsPaginator(r.ec2, &ec2.DescribeSecurityGroupsInput{Filters: f}); p.HasMorePages(); {
		page, err := p.NextPage(ctx)
		if err != nil {
			return out, err
		}
		out = append(out, page.SecurityGroups...)
	}
	return out, nil
}

// instances are all with a machine's tag, dead or alive.
func (r *region) instances(ctx context.Context, id string) (out []types.Instance, err error) {
	return r.instancesOf(ctx, filter("tag:"+TagBuild, id))
}

func (r *region) instancesOf(ctx context.Context, f ...types.Filter) (out []types.Instance, err error) {
	for p := ec2.NewDescribeInstancesPaginator(r.ec2, &ec2.DescribeInstancesInput{Filters: f}); p.HasMorePages(); {
		page, err := p.NextPage(ctx)
		if err != nil {
			return out, err
		}
		for _, res := range page.Reservations {
			out = append(out, res.Instances...)
		}
	}
	return out, nil
}
