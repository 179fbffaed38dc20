package awsfake

import (
	"crypto/ed25519"
	"crypto/md5"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

func (r *region) addGroup(name, about, vpc string) *ec2types.SecurityGroup {
	id := r.cloud.id("sg")
	g := &ec2types.SecurityGroup{GroupId: &id, GroupName: &name, Description: &about, VpcId: &vpc, OwnerId: aws.String(Account),
		IpPermissionsEgress: []ec2types.IpPermission{{IpProtocol: aws.String("-1"), IpRanges: []ec2types.IpRange{{CidrIp: aws.String("0.0.0.0/0")}}}}}
	r.groups.put(id, g)
	return g
}

func (r *region) createSecurityGroup(in *ec2.CreateSecurityGroupInput) (*ec2.CreateSecurityGroupOutput, error) {
	vpc := aws.ToString(in.VpcId)
	if vpc == "" {
		vpc = r.vpc
	}
	if vpc != r.vpc {
		return nil, refuse("InvalidVpcID.NotFound", "The vpc ID '%s' does not exist", vpc)
	}
	for _, g := range r.groups.all() {
		if *g.GroupName == *in.GroupName && *g.VpcId == vpc {
			return nil, refuse("InvalidGroup.Duplicate", "The security group '%s' already exists for VPC '%s'", *in.GroupName, vpc)
		}
	}
	g := r.addGroup(*in.GroupName, aws.ToString(in.Description), vpc)
	r.new(*g.GroupId, ec2types.ResourceTypeSecurityGroup, in.TagSpecifications)
	return &ec2.CreateSecurityGroupOutput{GroupId: g.GroupId, Tags: r.tags[*g.GroupId]}, nil
}

func (r *region) securityGroup(id string) (*ec2types.SecurityGroup, error) {
	if g, ok := r.groups.get(id); ok && r.seen(id) {
		return g, nil
	}
	return nil, refuse("InvalidGroup.NotFound", "The security group '%s' does not exist", id)
}

// rulesOf is a permission as one rule per range, which is what duplicates are told by.
func rulesOf(p ec2types.IpPermission) (out []string) {
	head := fmt.Sprintf("%s %d-%d ", aws.ToString(p.IpProtocol), aws.ToInt32(p.FromPort), aws.ToInt32(p.ToPort))
	for _, x := range p.IpRanges {
		out = append(out, head+aws.ToString(x.CidrIp))
	}
	for _, x := range p.Ipv6Ranges {
		out = append(out, head+aws.ToString(x.CidrIpv6))
	}
	for _, x := range p.UserIdGroupPairs {
		out = append(out, head+aws.ToString(x.GroupId))
	}
	return out
}

func (r *region) authorizeSecurityGroupIngress(in *ec2.AuthorizeSecurityGroupIngressInput) (*ec2.AuthorizeSecurityGroupIngressOutput, error) {
	g, err := r.securityGroup(aws.ToString(in.GroupId))
	if err != nil {
		return nil, err
	}
	add := in.IpPermissions
	if in.CidrIp != nil {
		add = append(add, ec2types.IpPermission{IpProtocol: in.IpProtocol, FromPort: in.FromPort, ToPort: in.ToPort, IpRanges: []ec2types.IpRange{{CidrIp: in.CidrIp}}})
	}
	var have []string
	for _, p := range g.IpPermissions {
		have = append(have, rulesOf(p)...)
	}
	out := &ec2.AuthorizeSecurityGroupIngressOutput{Return: aws.Bool(true)}
	for _, p := range add {
		for _, rule := range rulesOf(p) {
			if slices.Contains(have, rule) {
				return nil, refuse("InvalidPermission.Duplicate", "the specified rule \"%s\" already exists", rule)
			}
		}
		id := r.new(r.cloud.id("sgr"), ec2types.ResourceTypeSecurityGroupRule, in.TagSpecifications)
		out.SecurityGroupRules = append(out.SecurityGroupRules, ec2types.SecurityGroupRule{SecurityGroupRuleId: &id, GroupId: g.GroupId, IpProtocol: p.IpProtocol, FromPort: p.FromPort, ToPort: p.ToPort})
	}
	g.IpPermissions = append(slices.Clone(g.IpPermissions), add...)
	return out, nil
}

func (r *region) revokeSecurityGroupIngress(in *ec2.RevokeSecurityGroupIngressInput) (*ec2.RevokeSecurityGroupIngressOutput, error) {
	g, err := r.securityGroup(aws.ToString(in.GroupId))
	if err != nil {
		return nil, err
	}
	var gone []string
	for _, p := range in.IpPermissions {
		gone = append(gone, rulesOf(p)...)
	}
	g.IpPermissions = slices.DeleteFunc(slices.Clone(g.IpPermissions), func(p ec2types.IpPermission) bool {
		return slices.ContainsFunc(rulesOf(p), func(rule string) bool { return slices.Contains(gone, rule) })
	})
	return &ec2.RevokeSecurityGroupIngressOutput{Return: aws.Bool(true)}, nil
}

func (r *region) deleteSecurityGroup(in *ec2.DeleteSecurityGroupInput) (*ec2.DeleteSecurityGroupOutput, error) {
	g, err := r.securityGroup(aws.ToString(in.GroupId))
	if err != nil {
		return nil, err
	}
	if *g.GroupName == "default" {
		return nil, refuse("CannotDelete", "the specified group: \"%s\" name: \"default\" cannot be deleted by a user", *g.GroupId)
	}
	for _, i := range r.instances.all() {
		for _, used := range i.SecurityGroups {
			if *used.GroupId == *g.GroupId {
				return nil, refuse("DependencyViolation", "resource %s has a dependent object", *g.GroupId)
			}
		}
	}
	r.groups.del(*g.GroupId)
	delete(r.tags, *g.GroupId)
	return &ec2.DeleteSecurityGroupOutput{GroupId: g.GroupId, Return: aws.Bool(true)}, nil
}

func (r *region) describeSecurityGroups(in *ec2.DescribeSecurityGroupsInput) (*ec2.DescribeSecurityGroupsOutput, error) {
	out := &ec2.DescribeSecurityGroupsOutput{SecurityGroups: []ec2types.SecurityGroup{}}
	for _, id := range in.GroupIds {
		if _, err := r.securityGroup(id); err != nil {
			return nil, err
		}
	}
	for _, g := range r.groups.all() {
		ok, err := r.fits(*g.GroupId, in.Filters, map[string][]string{"group-id": one(g.GroupId), "group-name": one(g.GroupName), "vpc-id": one(g.VpcId), "description": one(g.Description), "owner-id": one(g.OwnerId)})
		if err != nil {
			return nil, err
		}
		if ok && r.seen(*g.GroupId) && (len(in.GroupIds) == 0 || slices.Contains(in.GroupIds, *g.GroupId)) && (len(in.GroupNames) == 0 || slices.Contains(in.GroupNames, *g.GroupName)) {
			show := *g
			show.Tags = r.tags[*g.GroupId]
			out.SecurityGroups = append(out.SecurityGroups, show)
		}
	}
	if len(in.GroupNames) > len(out.SecurityGroups) && len(in.Filters) == 0 {
		return nil, refuse("InvalidGroup.NotFound", "The security group '%s' does not exist in default VPC", in.GroupNames[0])
	}
	var err error
	out.SecurityGroups, out.NextToken, err = page(out.SecurityGroups, in.MaxResults, in.NextToken, 1000)
	return out, err
}

func (r *region) describeVpcs(in *ec2.DescribeVpcsInput) (*ec2.DescribeVpcsOutput, error) {
	for _, id := range in.VpcIds {
		if id != r.vpc {
			return nil, refuse("InvalidVpcID.NotFound", "The vpc ID '%s' does not exist", id)
		}
	}
	out := &ec2.DescribeVpcsOutput{Vpcs: []ec2types.Vpc{}}
	ok, err := r.fits(r.vpc, in.Filters, map[string][]string{"vpc-id": {r.vpc}, "is-default": {"true"}, "isDefault": {"true"}, "state": {"available"}, "cidr": {"172.31.0.0/16"}})
	if ok {
		out.Vpcs = append(out.Vpcs, ec2types.Vpc{VpcId: &r.vpc, IsDefault: aws.Bool(true), CidrBlock: aws.String("172.31.0.0/16"), State: ec2types.VpcStateAvailable, OwnerId: aws.String(Account), Tags: r.tags[r.vpc]})
	}
	return out, err
}

func (r *region) describeSubnets(in *ec2.DescribeSubnetsInput) (*ec2.DescribeSubnetsOutput, error) {
	out := &ec2.DescribeSubnetsOutput{Subnets: []ec2types.Subnet{}}
	for _, id := range in.SubnetIds {
		if _, ok := r.subnets.get(id); !ok {
			return nil, refuse("InvalidSubnetID.NotFound", "The subnet ID '%s' does not exist", id)
		}
	}
	for _, s := range r.subnets.all() {
		ok, err := r.fits(*s.SubnetId, in.Filters, map[string][]string{"subnet-id": one(s.SubnetId), "vpc-id": one(s.VpcId), "state": {string(s.State)}, "cidr-block": one(s.CidrBlock),
			"availability-zone": one(s.AvailabilityZone), "availabilityZone": one(s.AvailabilityZone), "availability-zone-id": one(s.AvailabilityZoneId),
			"default-for-az": {fmt.Sprint(*s.DefaultForAz)}, "defaultForAz": {fmt.Sprint(*s.DefaultForAz)}, "map-public-ip-on-launch": {fmt.Sprint(*s.MapPublicIpOnLaunch)}})
		if err != nil {
			return nil, err
		}
		if ok && (len(in.SubnetIds) == 0 || slices.Contains(in.SubnetIds, *s.SubnetId)) {
			show := *s
			show.Tags = r.tags[*s.SubnetId]
			out.Subnets = append(out.Subnets, show)
		}
	}
	return out, nil
}

func (r *region) describeAvailabilityZones(in *ec2.DescribeAvailabilityZonesInput) (*ec2.DescribeAvailabilityZonesOutput, error) {
	out := &ec2.DescribeAvailabilityZonesOutput{}
	for _, z := range r.zones() {
		ok, err := r.fits("", in.Filters, map[string][]string{"zone-name": {z}, "zone-id": {zoneID(z)}, "state": {"available"}, "region-name": {r.name}, "zone-type": {"availability-zone"}, "opt-in-status": {"opt-in-not-required"}})
		if err != nil {
			return nil, err
		}
		if ok && (len(in.ZoneNames) == 0 || slices.Contains(in.ZoneNames, z)) {
			out.AvailabilityZones = append(out.AvailabilityZones, ec2types.AvailabilityZone{ZoneName: aws.String(z), ZoneId: aws.String(zoneID(z)), RegionName: &r.name,
				State: ec2types.AvailabilityZoneStateAvailable, ZoneType: aws.String("availability-zone"), OptInStatus: "opt-in-not-required", GroupName: &r.name})
		}
	}
	return out, nil
}

func (r *region) describeRegions(in *ec2.DescribeRegionsInput) (*ec2.DescribeRegionsOutput, error) {
	out := &ec2.DescribeRegionsOutput{}
	for _, n := range []string{"eu-central-1", "eu-west-1", "us-east-1", "us-west-2", "ap-southeast-2"} {
		if len(in.RegionNames) == 0 || slices.Contains(in.RegionNames, n) {
			out.Regions = append(out.Regions, ec2types.Region{RegionName: aws.String(n), Endpoint: aws.String("ec2." + n + ".amazonaws.com"), OptInStatus: aws.String("opt-in-not-required")})
		}
	}
	return out, nil
}

func (r *region) addKey(name string, kind ec2types.KeyType, material []byte, specs []ec2types.TagSpecification) (*ec2types.KeyPairInfo, error) {
	if _, ok := r.keys.get(name); ok {
		return nil, refuse("InvalidKeyPair.Duplicate", "The keypair '%s' already exists.", name)
	}
	id := r.new(r.cloud.id("key"), ec2types.ResourceTypeKeyPair, specs)
	k := &ec2types.KeyPairInfo{KeyName: &name, KeyPairId: &id, KeyType: kind, CreateTime: aws.Time(r.cloud.now()), KeyFingerprint: aws.String(fmt.Sprintf("%x", md5.Sum(material)))}
	k.PublicKey = aws.String(string(material))
	r.keys.put(name, k)
	return k, nil
}

func (r *region) importKeyPair(in *ec2.ImportKeyPairInput) (*ec2.ImportKeyPairOutput, error) {
	kind := ec2types.KeyTypeRsa
	switch text := string(in.PublicKeyMaterial); {
	case strings.HasPrefix(text, "ssh-ed25519 "):
		kind = ec2types.KeyTypeEd25519
	case !strings.HasPrefix(text, "ssh-rsa "):
		return nil, refuse("InvalidKey.Format", "Key is not in valid OpenSSH public key format")
	}
	k, err := r.addKey(*in.KeyName, kind, in.PublicKeyMaterial, in.TagSpecifications)
	if err != nil {
		return nil, err
	}
	return &ec2.ImportKeyPairOutput{KeyName: k.KeyName, KeyPairId: k.KeyPairId, KeyFingerprint: k.KeyFingerprint, Tags: r.tags[*k.KeyPairId]}, nil
}

func (r *region) createKeyPair(in *ec2.CreateKeyPairInput) (*ec2.CreateKeyPairOutput, error) {
	var der []byte
	var err error
	if in.KeyType == ec2types.KeyTypeEd25519 {
		var key ed25519.PrivateKey
		if _, key, err = ed25519.GenerateKey(rand.Reader); err == nil {
			der, err = x509.MarshalPKCS8PrivateKey(key)
		}
	} else {
		var key *rsa.PrivateKey
		if key, err = rsa.GenerateKey(rand.Reader, 2048); err == nil {
			der, err = x509.MarshalPKCS8PrivateKey(key)
		}
	}
	if err != nil {
		return nil, err
	}
	k, err := r.addKey(*in.KeyName, in.KeyType, der, in.TagSpecifications)
	if err != nil {
		return nil, err
	}
	return &ec2.CreateKeyPairOutput{KeyName: k.KeyName, KeyPairId: k.KeyPairId, KeyFingerprint: k.KeyFingerprint, Tags: r.tags[*k.KeyPairId],
		KeyMaterial: aws.String(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))}, nil
}

// deleteKeyPair says nothing of a key that is not there, as EC2 does.
func (r *region) deleteKeyPair(in *ec2.DeleteKeyPairInput) (*ec2.DeleteKeyPairOutput, error) {
	for _, k := range r.keys.all() {
		if *k.KeyName == aws.ToString(in.KeyName) || *k.KeyPairId == aws.ToString(in.KeyPairId) {
			r.keys.del(*k.KeyName)
			delete(r.tags, *k.KeyPairId)
			return &ec2.DeleteKeyPairOutput{KeyPairId: k.KeyPairId, Return: aws.Bool(true)}, nil
		}
	}
	return &ec2.DeleteKeyPairOutput{Return: aws.Bool(true)}, nil
}

func (r *region) describeKeyPairs(in *ec2.DescribeKeyPairsInput) (*ec2.DescribeKeyPairsOutput, error) {
	out := &ec2.DescribeKeyPairsOutput{KeyPairs: []ec2types.KeyPairInfo{}}
	for _, name := range in.KeyNames {
		if k, ok := r.keys.get(name); !ok || !r.seen(*k.KeyPairId) {
			return nil, refuse("InvalidKeyPair.NotFound", "The key pair '%s' does not exist", name)
		}
	}
	for _, k := range r.keys.all() {
		ok, err := r.fits(*k.KeyPairId, in.Filters, map[string][]string{"key-name": one(k.KeyName), "key-pair-id": one(k.KeyPairId), "fingerprint": one(k.KeyFingerprint)})
		if err != nil {
			return nil, err
		}
		if ok && r.seen(*k.KeyPairId) && (len(in.KeyNames) == 0 || slices.Contains(in.KeyNames, *k.KeyName)) && (len(in.KeyPairIds) == 0 || slices.Contains(in.KeyPairIds, *k.KeyPairId)) {
			show := *k
			show.Tags = r.tags[*k.KeyPairId]
			if !aws.ToBool(in.IncludePublicKey) {
				show.PublicKey = nil
			}
			out.KeyPairs = append(out.KeyPairs, show)
		}
	}
	return out, nil
}
