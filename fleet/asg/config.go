package asg

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/template"
)

// Config is the pool.asg block of a template. User data is fleet.user_data, the
// number of instances fleet.size.
type Config struct {
	Region string `yaml:"region,omitempty" json:"region,omitempty" jsonschema_description:"AWS region; default the environment's (AWS_REGION, profile)"`
	Adopt  string `yaml:"adopt,omitempty" json:"adopt,omitempty" jsonschema_description:"an Auto Scaling group that somebody else made: its launch template, subnets, hooks, policies and scheduled actions are copied, it is not changed"`

	LaunchTemplate string   `yaml:"launch_template,omitempty" json:"launch_template,omitempty" jsonschema_description:"NAME:VERSION of a launch template whose settings are copied; VERSION is a number"`
	Instance       Instance `yaml:"instance,omitempty" json:"instance,omitempty" jsonschema_description:"what each instance is; goes before what is copied"`

	Subnets  []string          `yaml:"subnets,omitempty" json:"subnets,omitempty" jsonschema_description:"ids of the subnets to launch in; default those of adopt"`
	Capacity Capacity          `yaml:"capacity,omitempty" json:"capacity,omitempty" jsonschema_description:"between which sizes the group may scale by itself"`
	Health   Health            `yaml:"health,omitempty" json:"health,omitempty" jsonschema_description:"when the group itself replaces an instance"`
	Tags     map[string]string `yaml:"tags,omitempty" json:"tags,omitempty" jsonschema_description:"more tags of groups, instances and volumes"`
	Publish  bool              `yaml:"publish,omitempty" json:"publish,omitempty" jsonschema_description:"make the image's AMI when a deployment begins, if there is none (false: rebake ami publish does)"`

	Launch template.Duration `yaml:"launch_timeout,omitempty" json:"launch_timeout,omitempty" jsonschema_description:"longest time until all instances are in service in their group; default 10m"`
}

// Instance is what goes into the launch template.
type Instance struct {
	Types           []string `yaml:"types,omitempty" json:"types,omitempty" jsonschema_description:"instance types, the most wanted first"`
	SecurityGroups  []string `yaml:"security_groups,omitempty" json:"security_groups,omitempty" jsonschema_description:"ids of security groups"`
	InstanceProfile string   `yaml:"instance_profile,omitempty" json:"instance_profile,omitempty" jsonschema_description:"name or ARN of the instances' profile"`
	KeyName         string   `yaml:"key_name,omitempty" json:"key_name,omitempty" jsonschema_description:"EC2 key pair for a login by hand"`
	HopLimit        int      `yaml:"metadata_hop_limit,omitempty" json:"metadata_hop_limit,omitempty" jsonschema_description:"hops of an answer of the metadata service, which wants IMDSv2 in any case; default 1"`
	Address         string   `yaml:"address,omitempty" json:"address,omitempty" jsonschema:"enum=private,enum=public,enum=ipv6" jsonschema_description:"the address that gates speak to and status shows (private)"`
	Volume          Volume   `yaml:"volume,omitempty" json:"volume,omitempty" jsonschema_description:"the root volume; default as the AMI has it"`
}

// Volume is the root volume of an instance.
type Volume struct {
	Size       template.Size `yaml:"size,omitempty" json:"size,omitempty" jsonschema_description:"at least the image's"`
	Type       string        `yaml:"type,omitempty" json:"type,omitempty" jsonschema_description:"gp3, io2, …"`
	IOPS       int           `yaml:"iops,omitempty" json:"iops,omitempty" jsonschema_description:"of gp3, io1 and io2"`
	Throughput int           `yaml:"throughput,omitempty" json:"throughput,omitempty" jsonschema_description:"MiB/s, of gp3"`
	KMSKey     string        `yaml:"kms_key,omitempty" json:"kms_key,omitempty" jsonschema_description:"key that it is encrypted with"`
}

// Capacity bounds what scales a group besides rebake.
type Capacity struct {
	Min int `yaml:"min,omitempty" json:"min,omitempty" jsonschema_description:"fewest instances once a deployment is over; default fleet.size"`
	Max int `yaml:"max,omitempty" json:"max,omitempty" jsonschema_description:"most instances; default fleet.size"`
}

// Health is the Auto Scaling group's own judgement.
type Health struct {
	Check  string            `yaml:"check,omitempty" json:"check,omitempty" jsonschema:"enum=ec2,enum=elb" jsonschema_description:"whose checks it goes by once a deployment is over: EC2's or also the load balancer's (elb)"`
	Grace  template.Duration `yaml:"grace,omitempty" json:"grace,omitempty" jsonschema_description:"time after a launch in which it does not judge; default 5m"`
	Warmup template.Duration `yaml:"warmup,omitempty" json:"warmup,omitempty" jsonschema_description:"time until an instance's metrics count for scaling; default as AWS has it"`
}

func (c Config) complete() (Config, error) {
	c.Instance.Address = orElse(c.Instance.Address, "private")
	c.Health.Check = orElse(c.Health.Check, "elb")
	c.Health.Grace = orElse(c.Health.Grace, template.Duration(5*time.Minute))
	c.Launch = orElse(c.Launch, template.Duration(10*time.Minute))
	name, version, pinned := strings.Cut(c.LaunchTemplate, ":")
	switch {
	case c.LaunchTemplate != "" && (!pinned || name == "" || strings.Trim(version, "0123456789") != "" || version == ""):
		return c, fmt.Errorf("pool.asg.launch_template: %q is not NAME:VERSION with a number for the version: $Latest and $Default change under a deployment", c.LaunchTemplate)
	case len(c.Subnets) == 0 && c.Adopt == "":
		return c, errors.New("pool.asg.subnets: which ones? (or adopt: GROUP copies those of a group)")
	case len(c.Instance.Types) == 0 && c.LaunchTemplate == "" && c.Adopt == "":
		return c, errors.New("pool.asg.instance.types: which ones? (or launch_template: NAME:VERSION, or adopt: GROUP)")
	case c.Capacity.Min < 0 || c.Capacity.Max < 0 || c.Capacity.Max > 0 && c.Capacity.Min > c.Capacity.Max:
		return c, fmt.Errorf("pool.asg.capacity: min %d and max %d are not in order", c.Capacity.Min, c.Capacity.Max)
	case c.Instance.HopLimit < 0 || c.Instance.HopLimit > 64:
		return c, fmt.Errorf("pool.asg.instance.metadata_hop_limit: %d is not between 1 and 64", c.Instance.HopLimit)
	}
	for k := range c.Tags {
		if strings.HasPrefix(k, "rebake:") || strings.HasPrefix(k, "aws:") {
			return c, fmt.Errorf("pool.asg.tags: %s is not yours to set", k)
		}
	}
	return c, nil
}

// Suits says what of a policy cannot be kept. It calls nobody.
func (p *Pool) Suits(pol fleet.Policy, size int) error {
	if m := p.cfg.Capacity.Max; m > 0 && m < size {
		return fmt.Errorf("pool.asg.capacity.max: %d is less than fleet.size, %d", m, size)
	}
	for _, g := range pol.Gates {
		if g.Test {
			return fmt.Errorf("deploy.gates[%s]: the pool asg has no way to log in to an instance: take an http or a command gate", g.Name)
		}
	}
	return nil
}

// Fit implements fleet.Fitter: machines of a cloud take their time.
func (p *Pool) Fit(_ context.Context, pol fleet.Policy, size int) (fleet.Policy, error) {
	pol.Launch = time.Duration(p.cfg.Launch)
	return pol, p.Suits(pol, size)
}

// Notes implements fleet.Noter: what whoever else manages the same things must leave alone.
func (p *Pool) Notes() []string {
	notes := []string{fmt.Sprintf("Auto Scaling groups and launch templates rebake-%s-SLOT-DEPLOYMENT are made and removed by rebake: nothing else may manage them", p.name)}
	if p.cfg.Adopt != "" {
		notes = append(notes, fmt.Sprintf("group %s is copied from and not changed: once rebake's serve, set its desired_capacity and min_size to 0 (in Terraform with ignore_changes on them until then)", p.cfg.Adopt))
	}
	return notes
}
