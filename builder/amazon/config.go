package amazon

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/internal/template"
)

// Config is the build.amazon block of a template.
type Config struct {
	Region   string            `yaml:"region" json:"region,omitempty" jsonschema_description:"where the instance runs; default: AWS_REGION or the profile's"`
	Source   Source            `yaml:"source" json:"source" rebake:"required" jsonschema:"required" jsonschema_description:"what the instance starts from: exactly one of ami, filter and image"`
	Types    Types             `yaml:"instance_type" json:"instance_type" rebake:"required" jsonschema:"required" jsonschema_description:"instance type, or a list of them: the next one is tried when there is no capacity"`
	Spot     Spot              `yaml:"spot" json:"spot,omitempty" jsonschema_description:"true: a spot instance"`
	Network  Network           `yaml:"network" json:"network,omitempty" jsonschema_description:"where the instance stands; default: the default VPC, and a security group for this build alone"`
	Profile  string            `yaml:"instance_profile" json:"instance_profile,omitempty" jsonschema_description:"IAM instance profile of the machine, a name or an ARN; default none"`
	UserData string            `yaml:"user_data" json:"user_data,omitempty" rebake:"secret" jsonschema_description:"more user data for the machine's first boot: cloud-config, a script, or MIME; rebake's own is added to it"`
	Metadata Metadata          `yaml:"metadata" json:"metadata,omitempty" jsonschema_description:"the instance metadata service"`
	Root     Volume            `yaml:"root" json:"root,omitempty" jsonschema_description:"the root volume, which becomes the image"`
	Volumes  []Device          `yaml:"volumes" json:"volumes,omitempty" jsonschema_description:"more volumes for the time of the build; they are not part of the image"`
	SSH      SSH               `yaml:"ssh" json:"ssh,omitempty" jsonschema_description:"how the machine is logged in to"`
	AMI      AMI               `yaml:"ami" json:"ami,omitempty" jsonschema_description:"what is registered"`
	Tags     map[string]string `yaml:"tags" json:"tags,omitempty" jsonschema_description:"more tags of all that is made for the build"`
	Shutdown time.Duration     `yaml:"shutdown_timeout" json:"shutdown_timeout,omitempty" jsonschema_description:"longest clean shutdown; default 3m, and more than that EC2 does not give a guest that it stops"`

	Keyed *Config `yaml:"-" json:"-"` // as it enters cache keys, sensitive values masked; nil: as it is
}

// Source names the base: exactly one of ami, filter and image.
type Source struct {
	AMI    string     `yaml:"ami" json:"ami,omitempty" jsonschema_description:"id of an AMI"`
	Filter *AMIFilter `yaml:"filter" json:"filter,omitempty" jsonschema_description:"the AMI that these describe"`
	Image  string     `yaml:"image" json:"image,omitempty" jsonschema_description:"an image of the store that has an AMI in this region, name:version or name:tag"`
}

// AMIFilter describes an AMI.
type AMIFilter struct {
	Owners []string          `yaml:"owners" json:"owners" rebake:"required" jsonschema:"required" jsonschema_description:"whose AMIs: account ids, self, amazon, aws-marketplace; anybody can give an AMI any name"`
	Name   string            `yaml:"name" json:"name,omitempty" jsonschema_description:"name of the AMI; * and ? stand for others"`
	Arch   string            `yaml:"architecture" json:"architecture,omitempty" jsonschema:"enum=amd64,enum=arm64" jsonschema_description:"architecture of the AMI"`
	Filter map[string]string `yaml:"filters" json:"filters,omitempty" jsonschema_description:"more filters of DescribeImages, as in tag:channel: stable"`
	Newest bool              `yaml:"newest" json:"newest,omitempty" jsonschema_description:"take the newest of several; default: several are an error"`
}

// Types are instance types, the preferred first.
type Types struct {
	AnyOf []string `yaml:"any_of" json:"any_of" rebake:"shorthand" jsonschema_description:"instance types, the preferred first"`
}

// Spot asks for a spot instance.
type Spot struct {
	Use      bool   `yaml:"use" json:"use,omitempty" rebake:"shorthand" jsonschema_description:"a spot instance"`
	MaxPrice string `yaml:"max_price" json:"max_price,omitempty" jsonschema_description:"most that an hour may cost, in dollars; default: the price on demand"`
	OnDemand bool   `yaml:"on_demand" json:"on_demand,omitempty" jsonschema_description:"where there is no spot capacity of any type, take an instance on demand"`
}

// Network is where the instance stands.
type Network struct {
	VPC     Pick   `yaml:"vpc" json:"vpc,omitempty" jsonschema_description:"id or filter of the VPC; default: that of the subnet, else the default VPC"`
	Subnet  Pick   `yaml:"subnet" json:"subnet,omitempty" jsonschema_description:"id or filter of the subnet; of several that a filter finds the one with most free addresses is tried first"`
	Groups  Groups `yaml:"security_groups" json:"security_groups,omitempty" jsonschema_description:"ids or filter of security groups; default: one is made for the build, for SSH alone, and removed"`
	Address string `yaml:"address" json:"address,omitempty" jsonschema:"enum=public,enum=private,enum=ipv6" jsonschema_description:"which address SSH goes to: public (default), private (default with a bastion or SSM), ipv6"`
	From    Texts  `yaml:"allow_from" json:"allow_from,omitempty" jsonschema_description:"networks that the security group made for the build lets in for SSH; default: everywhere for a public address, private networks for a private one, nothing with SSM"`
}

// Pick names one thing by its id or by filters of its Describe call.
type Pick struct {
	ID     string            `yaml:"id" json:"id,omitempty" rebake:"shorthand" jsonschema_description:"its id"`
	Filter map[string]string `yaml:"filter" json:"filter,omitempty" jsonschema_description:"filters of the API's Describe call, as in tag:Name: build"`
}

// Groups names security groups.
type Groups struct {
	IDs    []string          `yaml:"ids" json:"ids,omitempty" rebake:"shorthand" jsonschema_description:"their ids"`
	Filter map[string]string `yaml:"filter" json:"filter,omitempty" jsonschema_description:"filters of DescribeSecurityGroups; all that they find are used"`
}

// Texts is one text or a list of them.
type Texts struct {
	List []string `yaml:"list" json:"list" rebake:"shorthand" jsonschema_description:"the texts"`
}

// Metadata is the instance metadata service of the build's machine.
type Metadata struct {
	Tokens   string `yaml:"tokens" json:"tokens,omitempty" jsonschema:"enum=required,enum=optional" jsonschema_description:"required (default): IMDSv2 alone, of the AMI's instances too"`
	HopLimit int    `yaml:"hop_limit" json:"hop_limit,omitempty" jsonschema_description:"network hops that an answer may travel; default: the account's"`
	Tags     bool   `yaml:"instance_tags" json:"instance_tags,omitempty" jsonschema_description:"let the machine read its tags"`
}

// Volume is an EBS volume.
type Volume struct {
	Size       template.Size `yaml:"size" json:"size,omitempty" jsonschema_description:"size, whole gigabytes as in 20G; default: that of the source"`
	Type       string        `yaml:"type" json:"type,omitempty" jsonschema_description:"volume type; default gp3"`
	IOPS       int           `yaml:"iops" json:"iops,omitempty" jsonschema_description:"operations each second"`
	Throughput int           `yaml:"throughput" json:"throughput,omitempty" jsonschema_description:"MiB each second, of gp3"`
	KMSKey     string        `yaml:"kms_key" json:"kms_key,omitempty" jsonschema_description:"ARN, id or alias of the key that encrypts it; default: as the account and the source have it"`
	Encrypted  bool          `yaml:"encrypted" json:"encrypted,omitempty" jsonschema_description:"encrypt it, with the account's default key where no kms_key is given"`
}

// Device is a further volume.
type Device struct {
	Device string `yaml:"device" json:"device" rebake:"required" jsonschema:"required" jsonschema_description:"as the instance names it, as in /dev/sdf"`
	Volume `yaml:",inline"`
}

// SSH is the ssh block.
type SSH struct {
	User    string        `yaml:"user" json:"user,omitempty" jsonschema_description:"account to log in to; it gets sudo; default: the image's with source.image"`
	Timeout time.Duration `yaml:"timeout" json:"timeout,omitempty" jsonschema_description:"for the machine to accept SSH once it runs; default 5m"`
	Host    string        `yaml:"host" json:"host,omitempty" jsonschema_description:"instead of the instance's address: a tunnel's end, say"`
	Port    int           `yaml:"port" json:"port,omitempty" jsonschema_description:"default 22"`
	Bastion *Bastion      `yaml:"bastion" json:"bastion,omitempty" jsonschema_description:"a machine that SSH goes through"`
	SSM     bool          `yaml:"ssm" json:"ssm,omitempty" jsonschema_description:"reach SSH by Session Manager's port forwarding: needs the aws program with its session-manager-plugin here, and an instance_profile that lets the machine's agent register"`
}

// Bastion is a machine that SSH goes through.
type Bastion struct {
	Host    string `yaml:"host" json:"host" rebake:"required" jsonschema:"required" jsonschema_description:"its name or address"`
	Port    int    `yaml:"port" json:"port,omitempty" jsonschema_description:"default 22"`
	User    string `yaml:"user" json:"user" rebake:"required" jsonschema:"required" jsonschema_description:"account on it"`
	Key     string `yaml:"key" json:"key" rebake:"required,path" jsonschema:"required" jsonschema_description:"file of the private key, without a passphrase"`
	HostKey string `yaml:"host_key" json:"host_key" rebake:"required" jsonschema:"required" jsonschema_description:"its public host key, as ssh-keyscan prints it without the name: ssh-ed25519 AAAA…"`
}

// AMI is what is registered.
type AMI struct {
	Name        string            `yaml:"name" json:"name,omitempty" jsonschema_description:"name of the AMI, which must be free; {name}, {version} and {digest} stand for the image's; default rebake/NAME/VERSION/DIGEST"`
	Description string            `yaml:"description" json:"description,omitempty" jsonschema_description:"default rebake NAME:VERSION"`
	BootMode    string            `yaml:"boot_mode" json:"boot_mode,omitempty" jsonschema:"enum=legacy-bios,enum=uefi,enum=uefi-preferred" jsonschema_description:"default: the source's"`
	ENA         *bool             `yaml:"ena" json:"ena,omitempty" jsonschema_description:"enhanced networking; default true"`
	VolumeType  string            `yaml:"volume_type" json:"volume_type,omitempty" jsonschema_description:"of the root volume of its instances; default gp3"`
	Tags        map[string]string `yaml:"tags" json:"tags,omitempty" jsonschema_description:"more tags of the AMI and its snapshots"`
	CopyTo      []Copy            `yaml:"copy_to" json:"copy_to,omitempty" jsonschema_description:"regions that get a copy"`
	Share       Share             `yaml:"share" json:"share,omitempty" jsonschema_description:"who else may launch it"`
	Deprecate   time.Duration     `yaml:"deprecate_after" json:"deprecate_after,omitempty" jsonschema_description:"when it is no longer shown to others, from its registration; default never"`
	Protect     bool              `yaml:"protect" json:"protect,omitempty" jsonschema_description:"refuse deregistration until the protection is taken away"`
}

// Copy is a region that gets a copy.
type Copy struct {
	Region string `yaml:"region" json:"region" rebake:"required,shorthand" jsonschema:"required" jsonschema_description:"the region"`
	KMSKey string `yaml:"kms_key" json:"kms_key,omitempty" jsonschema_description:"key there that encrypts the copy"`
}

// Share is who else may launch the AMI.
type Share struct {
	Users []string `yaml:"users" json:"users,omitempty" jsonschema_description:"account ids"`
	Orgs  []string `yaml:"organizations" json:"organizations,omitempty" jsonschema_description:"ARNs of organizations"`
	OUs   []string `yaml:"organizational_units" json:"organizational_units,omitempty" jsonschema_description:"ARNs of organizational units"`
}

func (s Share) empty() bool { return len(s.Users)+len(s.Orgs)+len(s.OUs) == 0 }

// check says what is wrong with a configuration, without asking anybody.
func (c *Config) check() error {
	n := 0
	for _, given := range []bool{c.Source.AMI != "", c.Source.Filter != nil, c.Source.Image != ""} {
		if given {
			n++
		}
	}
	switch {
	case n != 1:
		return errors.New("source: give exactly one of ami, filter and image")
	case c.Source.Filter != nil && len(c.Source.Filter.Owners) == 0:
		return errors.New("source.filter.owners is empty: anybody can give an AMI any name, so say whose it must be (self, amazon, an account id)")
	case c.Source.Image == "" && c.SSH.User == "":
		return errors.New("ssh.user is missing: whom to log in as (ubuntu, ec2-user, admin for Debian, root where the AMI lets it in)")
	case len(c.Types.AnyOf) == 0:
		return errors.New("instance_type is empty")
	case c.SSH.SSM && c.SSH.Bastion != nil:
		return errors.New("ssh: give bastion or ssm, not both")
	case c.SSH.SSM && c.Profile == "":
		return errors.New("ssh.ssm needs an instance_profile with AmazonSSMManagedInstanceCore: without it the machine's agent cannot register")
	case c.SSH.Port < 0 || c.SSH.Port > 65535:
		return fmt.Errorf("ssh.port: %d is no port", c.SSH.Port)
	case len(c.UserData) > maxUserData:
		return fmt.Errorf("user_data has %d bytes; with rebake's own there is room for %d in the 16 KiB of EC2: let it fetch the rest", len(c.UserData), maxUserData)
	}
	for name, pick := range map[string]Pick{"vpc": c.Network.VPC, "subnet": c.Network.Subnet} {
		if pick.ID != "" && len(pick.Filter) > 0 {
			return fmt.Errorf("network.%s: give id or filter, not both", name)
		}
	}
	for _, cidr := range c.Network.From.List {
		if _, _, err := net.ParseCIDR(cidr); err != nil {
			return fmt.Errorf("network.allow_from: %q is no network such as 203.0.113.0/24", cidr)
		}
	}
	for _, v := range append([]Device{{Device: "root", Volume: c.Root}}, c.Volumes...) {
		if v.Size%(1<<30) != 0 {
			return fmt.Errorf("%s: EBS has whole gigabytes, not %s", v.Device, v.Size)
		}
	}
	for _, tags := range []map[string]string{c.Tags, c.AMI.Tags} {
		for k := range tags {
			if k == "" || strings.HasPrefix(k, "aws:") || strings.HasPrefix(k, "rebake:") {
				return fmt.Errorf("tag %q is not yours to give", k)
			}
		}
	}
	if b := c.SSH.Bastion; b != nil {
		if _, err := ssh.ParseAuthorized(b.HostKey); err != nil {
			return fmt.Errorf("ssh.bastion.host_key: %q is no public key such as ssh-ed25519 AAAA…: %w", b.HostKey, err)
		}
	}
	var regions []string
	for _, to := range c.AMI.CopyTo {
		if slices.Contains(regions, to.Region) || to.Region == c.Region {
			return fmt.Errorf("ami.copy_to: %s is there already", to.Region)
		}
		regions = append(regions, to.Region)
	}
	return nil
}
