package alb

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	"github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/template"
)

// Config is the router.alb block of a template.
type Config struct {
	Region   string `yaml:"region,omitempty" json:"region,omitempty" jsonschema_description:"AWS region; default the environment's"`
	Listener string `yaml:"listener,omitempty" json:"listener,omitempty" jsonschema_description:"ARN of the listener in which rebake makes a rule"`
	Rule     string `yaml:"rule,omitempty" json:"rule,omitempty" jsonschema_description:"ARN of a rule that somebody else made, instead: rebake changes the weights of its forward action alone"`

	Priority int      `yaml:"priority,omitempty" json:"priority,omitempty" jsonschema_description:"of the rule that rebake makes"`
	Hosts    []string `yaml:"hosts,omitempty" json:"hosts,omitempty" jsonschema_description:"its condition: names of hosts"`
	Paths    []string `yaml:"paths,omitempty" json:"paths,omitempty" jsonschema_description:"its condition: patterns of paths; default /* without hosts"`

	TargetGroups TargetGroups `yaml:"target_groups,omitempty" json:"target_groups,omitempty" jsonschema_description:"two target groups that somebody else made; default rebake makes them by fleet.health"`

	Delay      template.Duration `yaml:"deregistration_delay,omitempty" json:"deregistration_delay,omitempty" jsonschema_description:"of the target groups that rebake makes: how long requests of a leaving instance may take; default 30s"`
	Stickiness template.Duration `yaml:"stickiness,omitempty" json:"stickiness,omitempty" jsonschema_description:"how long a client stays with the slot that answered it first, weights or not; the rule's own where it is not given"`
	Preview    Preview           `yaml:"preview,omitempty" json:"preview,omitempty" jsonschema_description:"a way to one slot, whatever the weights are"`
}

// TargetGroups are those of the slots.
type TargetGroups struct {
	Blue  string `yaml:"blue,omitempty" json:"blue,omitempty" jsonschema_description:"ARN"`
	Green string `yaml:"green,omitempty" json:"green,omitempty" jsonschema_description:"ARN"`
}

// Preview makes two rules: a request with the header HEADER: blue, or green, goes to that slot.
type Preview struct {
	Header   string `yaml:"header,omitempty" json:"header,omitempty" jsonschema_description:"its name; its value is blue or green"`
	Priority int    `yaml:"priority,omitempty" json:"priority,omitempty" jsonschema_description:"of the first of its two rules, before the fleet's own"`
}

var (
	ruleRE     = regexp.MustCompile(`^arn:[^:]+:elasticloadbalancing:[^:]*:[^:]*:listener-rule/(app/[^/]+/[^/]+)/[^/]+/[^/]+$`)
	listenerRE = regexp.MustCompile(`^arn:[^:]+:elasticloadbalancing:[^:]*:[^:]*:listener/(app/[^/]+/[^/]+)/[^/]+$`)
	groupRE    = regexp.MustCompile(`^arn:[^:]+:elasticloadbalancing:[^:]*:[^:]*:(targetgroup/[^/]+/[^/]+)$`)
)

func (c Config) complete() (Config, error) {
	tg := c.TargetGroups
	switch {
	case (c.Listener == "") == (c.Rule == ""):
		return c, errors.New("router.alb: give listener, in which rebake makes a rule, or rule, one that is there")
	case c.Listener != "" && !listenerRE.MatchString(c.Listener):
		return c, fmt.Errorf("router.alb.listener: %q is not the ARN of an application load balancer's listener", c.Listener)
	case c.Rule != "" && !ruleRE.MatchString(c.Rule):
		return c, fmt.Errorf("router.alb.rule: %q is not the ARN of an application load balancer's rule (the default action of a listener is none: make a rule for /*)", c.Rule)
	case c.Listener != "" && (c.Priority < 1 || c.Priority > 50000):
		return c, fmt.Errorf("router.alb.priority: %d is not between 1 and 50000", c.Priority)
	case c.Rule != "" && (c.Priority != 0 || len(c.Hosts)+len(c.Paths) > 0):
		return c, errors.New("router.alb: priority, hosts and paths are of a rule that rebake makes, and this one is there")
	case (tg.Blue == "") != (tg.Green == "") || tg.Blue != "" && tg.Blue == tg.Green:
		return c, errors.New("router.alb.target_groups: give blue and green, two of them, or none")
	case tg.Blue != "" && (!groupRE.MatchString(tg.Blue) || !groupRE.MatchString(tg.Green)):
		return c, fmt.Errorf("router.alb.target_groups: %q and %q must be ARNs of target groups", tg.Blue, tg.Green)
	case tg.Blue != "" && c.Delay != 0:
		return c, errors.New("router.alb.deregistration_delay: it is an attribute of the target groups that are given, which are not changed")
	case c.Delay%template.Duration(time.Second) != 0 || time.Duration(c.Delay) > time.Hour:
		return c, fmt.Errorf("router.alb.deregistration_delay: %s is not a number of seconds up to 3600", c.Delay)
	case c.Stickiness != 0 && (time.Duration(c.Stickiness) < time.Second || time.Duration(c.Stickiness) > 168*time.Hour):
		return c, fmt.Errorf("router.alb.stickiness: %s is not between 1s and 168h", c.Stickiness)
	case (c.Preview.Header == "") != (c.Preview.Priority == 0):
		return c, errors.New("router.alb.preview: give header and priority")
	case c.Preview.Header != "" && c.Rule != "":
		return c, fmt.Errorf("router.alb.preview: it is made beside a rule that rebake makes; beside %s make it yourself", c.Rule)
	case c.Preview.Priority < 0 || c.Preview.Priority > 49999 || c.Listener != "" && c.Preview.Priority > 0 && c.Preview.Priority+1 >= c.Priority:
		return c, fmt.Errorf("router.alb.preview.priority: %d and the one after it must come before that of the rule, %d", c.Preview.Priority, c.Priority)
	}
	if c.Delay == 0 {
		c.Delay = template.Duration(30 * time.Second)
	}
	if len(c.Hosts)+len(c.Paths) == 0 {
		c.Paths = []string{"/*"}
	}
	return c, nil
}

// made says that rebake makes, and removes, the target groups.
func (c Config) made() bool { return c.TargetGroups.Blue == "" }

// balancer is the load balancer as its metrics name it.
func (c Config) balancer() string {
	if m := ruleRE.FindStringSubmatch(c.Rule); m != nil {
		return m[1]
	}
	if m := listenerRE.FindStringSubmatch(c.Listener); m != nil {
		return m[1]
	}
	return ""
}

// groupName is at most 32 characters, as ELB asks.
func (r *Router) groupName(s fleet.Slot) string {
	name := "rebake-" + r.name + "-" + string(s)
	if len(name) > 32 || strings.ContainsAny(name, "_.") {
		h := sha256.Sum256([]byte(r.name))
		name = "rebake-" + hex.EncodeToString(h[:])[:16] + "-" + string(s)
	}
	return name
}

// Suits says what of a policy cannot be kept: gates that are judged from counters
// need holds in which CloudWatch tells any. It calls nobody.
func (r *Router) Suits(p fleet.Policy, _ int) error {
	const least = 2 * period
	for _, g := range p.Gates {
		if g.ErrorRate == nil && g.Latency == nil && g.Canary == nil {
			continue
		}
		for _, s := range p.Steps {
			if s.Hold < least && (g.Canary == nil || s.Permille < 1000) {
				return fmt.Errorf("deploy.steps: hold %s at %d%% is too short for gate %s: behind an ALB requests are counted by CloudWatch, by the minute and minutes late; hold at least %s",
					s.Hold, s.Permille/10, g.Name, least)
			}
		}
	}
	return nil
}

// Fit implements fleet.Fitter. A drain lasts as long as the target groups' delay, and
// while clients stick to the old slot it stays.
func (r *Router) Fit(ctx context.Context, p fleet.Policy, size int) (fleet.Policy, error) {
	if err := r.Suits(p, size); err != nil {
		return p, err
	}
	if err := r.connect(ctx); err != nil {
		return p, err
	}
	delay, err := r.delay(ctx)
	if err != nil {
		return p, err
	}
	sticky := time.Duration(r.cfg.Stickiness)
	if r.cfg.Rule != "" && sticky == 0 {
		err := r.locked(ctx, func() error {
			rule, err := r.live(ctx)
			if _, f := forward(rule); f != nil && f.TargetGroupStickinessConfig != nil && aws.ToBool(f.TargetGroupStickinessConfig.Enabled) {
				sticky = time.Duration(aws.ToInt32(f.TargetGroupStickinessConfig.DurationSeconds)) * time.Second
			}
			return err
		})
		if err != nil {
			return p, err
		}
	}
	p.Drain = max(p.Drain, delay+30*time.Second) // what has drained is shown as draining until then
	if sticky > 0 && p.Strategy != fleet.Rolling {
		p.KeepOld = max(p.KeepOld, sticky)
	}
	return p, nil
}

// delay is the longest deregistration delay of the two target groups.
func (r *Router) delay(ctx context.Context) (longest time.Duration, err error) {
	if r.cfg.made() {
		return time.Duration(r.cfg.Delay), nil
	}
	for _, arn := range []string{r.cfg.TargetGroups.Blue, r.cfg.TargetGroups.Green} {
		out, err := r.elb.DescribeTargetGroupAttributes(ctx, &elb.DescribeTargetGroupAttributesInput{TargetGroupArn: aws.String(arn)})
		if err != nil {
			return 0, fmt.Errorf("read the attributes of %s: %w", arn, err)
		}
		for _, a := range out.Attributes {
			if aws.ToString(a.Key) == "deregistration_delay.timeout_seconds" {
				d, err := time.ParseDuration(aws.ToString(a.Value) + "s")
				if err != nil {
					return 0, fmt.Errorf("%s has a deregistration delay of %q", arn, aws.ToString(a.Value))
				}
				longest = max(longest, d)
			}
		}
	}
	return longest, nil
}

// Notes implements fleet.Noter.
func (r *Router) Notes() []string {
	if r.cfg.Rule == "" {
		return []string{fmt.Sprintf("the rule of priority %d in the listener, and what it forwards to, is rebake's: nothing else may manage it", r.cfg.Priority)}
	}
	notes := []string{"the rule was made by somebody else: let Terraform ignore it (lifecycle { ignore_changes = [action] } on the aws_lb_listener_rule), and update no CloudFormation stack that has its Actions, while rebake moves its weights"}
	if !r.cfg.made() {
		notes = append(notes, "the target groups were made by somebody else: their members are rebake's, no aws_lb_target_group_attachment and no other group may add any")
	}
	return notes
}

// conditions are those of the rule that rebake makes.
func (c Config) conditions() (all []types.RuleCondition) {
	if len(c.Hosts) > 0 {
		all = append(all, types.RuleCondition{Field: aws.String("host-header"), HostHeaderConfig: &types.HostHeaderConditionConfig{Values: c.Hosts}})
	}
	if len(c.Paths) > 0 {
		all = append(all, types.RuleCondition{Field: aws.String("path-pattern"), PathPatternConfig: &types.PathPatternConditionConfig{Values: c.Paths}})
	}
	return all
}
