// Package awspolicy says what rebake must be allowed to do in AWS: a table from
// features to the calls that they make, the least policy that a template needs, and
// what to call each permission by. It is data: it speaks to nobody.
//
// A test reads the source of what calls AWS and holds the table to it.
package awspolicy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Feature is something that rebake does in AWS.
type Feature string

// Features, each with the part of a template or the command that needs it.
const (
	Publish   Feature = "publish"   // rebake ami publish, pool.asg.publish
	Copy      Feature = "copy"      // --copy-to, build.amazon.ami.copy_to
	Share     Feature = "share"     // --share, build.amazon.ami.share
	Deprecate Feature = "deprecate" // --deprecate-after
	Protect   Feature = "protect"   // --protect
	Keys      Feature = "kms"       // whatever names a key
	Bake      Feature = "bake"      // build.amazon
	Group     Feature = "group"     // a security group for the build alone
	SSM       Feature = "ssm"       // build.amazon.ssh.ssm
	Profile   Feature = "profile"   // an instance profile
	Pool      Feature = "pool"      // fleet.pool.asg
	Refresh   Feature = "refresh"   // fleet.pool.asg.adopt with deploy.strategy: refresh
	Router    Feature = "router"    // fleet.router.alb
	Adopted   Feature = "adopted"   // fleet.router.alb.rule or target_groups that somebody else made
	Gates     Feature = "gates"     // alarms and metrics as gates
	State     Feature = "state"     // state: s3://…
	Retention Feature = "retention" // retention: {ami: …}, rebake ami rm, restore, ls --check
)

// Features lists all of them in the order of the table.
func Features() []Feature {
	return []Feature{Publish, Copy, Share, Deprecate, Protect, Keys, Bake, Group, SSM, Profile, Pool, Refresh, Router, Adopted, Gates, State, Retention}
}

// Grant is one permission: what may be called, on what, and when.
type Grant struct {
	Sid       string
	Calls     []string  // operations as SDKs call them, with the service: ec2:DescribeImages
	Also      []string  // actions that AWS wants besides, for which there is no call
	Resources []string  // ARNs with PARTITION, BUCKET or PREFIX in them, or KEYS, ADOPTED; nil: all
	When      Condition // nil: always
}

// Condition is a condition block: operator, key, values.
type Condition map[string]map[string][]string

// Of returns what a feature needs.
func Of(f Feature) []Grant { return table[f] }

// actionOf are the calls whose permission is called otherwise.
var actionOf = map[string]string{
	"s3:HeadObject": "s3:GetObject", "s3:ListObjectsV2": "s3:ListBucket", "s3:HeadBucket": "s3:ListBucket", "s3:DeleteObjects": "s3:DeleteObject",
}

// Actions are the permissions of a grant.
func (g Grant) Actions() []string {
	var out []string
	for _, c := range g.Calls {
		out = append(out, cmp.Or(actionOf[c], c))
	}
	out = append(out, g.Also...)
	slices.Sort(out)
	return slices.Compact(out)
}

// Need is what a template, or a person, wants to do.
type Need struct {
	Features  map[Feature]string // and what of the template asks for it
	Region    string             // that a block names; "": the environment's
	Partition string             // "": aws
	Bucket    string             // of State, with its Prefix
	Prefix    string
	KeyARNs   []string // of Keys; none: any key, if a service uses it
	Adopted   []string // ARNs, of Adopted and Refresh
}

// Add wants a feature.
func (n *Need) Add(f Feature, why string) {
	if n.Features == nil {
		n.Features = map[Feature]string{}
	}
	if _, ok := n.Features[f]; !ok {
		n.Features[f] = why
	}
}

// List is what is wanted, in the order of the table.
func (n Need) List() (out []Feature) {
	for _, f := range Features() {
		if _, ok := n.Features[f]; ok {
			out = append(out, f)
		}
	}
	return out
}

// Actions are all permissions that are needed, sorted.
func (n Need) Actions() []string {
	all := map[string]bool{}
	for _, f := range n.List() {
		for _, g := range table[f] {
			for _, a := range g.Actions() {
				all[a] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// PartitionOf is the partition of a region.
func PartitionOf(region string) string {
	switch {
	case strings.HasPrefix(region, "cn-"):
		return "aws-cn"
	case strings.HasPrefix(region, "us-gov-"):
		return "aws-us-gov"
	}
	return "aws"
}

// Policy is an IAM policy document.
type Policy struct {
	Version   string
	Statement []Statement
}

// Statement is a statement of it.
type Statement struct {
	Sid       string
	Effect    string
	Action    []string
	Resource  []string
	Condition Condition `json:",omitempty"`
}

// Policy is the least that allows what is needed. Grants of several features on the
// same things are one statement.
func (n Need) Policy() Policy {
	p := Policy{Version: "2012-10-17", Statement: []Statement{}}
	at := map[string]int{}
	sids := map[string]bool{}
	for _, f := range n.List() {
		for _, g := range table[f] {
			s := Statement{Sid: g.Sid, Effect: "Allow", Action: g.Actions(), Resource: n.resources(g), Condition: n.when(g.When)}
			key, err := json.Marshal([]any{s.Resource, s.Condition})
			if err != nil {
				panic(err) // texts
			}
			if i, ok := at[string(key)]; ok {
				all := append(p.Statement[i].Action, s.Action...)
				slices.Sort(all)
				p.Statement[i].Action = slices.Compact(all)
				continue
			}
			for k := 2; sids[s.Sid]; k++ {
				s.Sid = fmt.Sprintf("%s%d", g.Sid, k)
			}
			at[string(key)], sids[s.Sid] = len(p.Statement), true
			p.Statement = append(p.Statement, s)
		}
	}
	return p
}

// Below is what the keys of the state begin with: Prefix with / at its end, or "".
func (n Need) Below() string {
	if p := strings.Trim(n.Prefix, "/"); p != "" {
		return p + "/"
	}
	return ""
}

// named puts the names of this need into texts.
func (n Need) named(texts []string) []string {
	r := strings.NewReplacer("PARTITION", cmp.Or(n.Partition, "aws"), "BUCKET", cmp.Or(n.Bucket, "*"), "PREFIX", n.Below())
	var out []string
	for _, t := range texts {
		out = append(out, r.Replace(t))
	}
	return out
}

func (n Need) when(c Condition) Condition {
	if c == nil {
		return nil
	}
	out := Condition{}
	for op, keys := range c {
		out[op] = map[string][]string{}
		for k, values := range keys {
			out[op][k] = n.named(values)
		}
	}
	return out
}

// resources are a grant's with names in them.
func (n Need) resources(g Grant) []string {
	if len(g.Resources) == 0 {
		return []string{"*"}
	}
	var out []string
	for _, r := range g.Resources {
		if of, ok := map[string][]string{"KEYS": n.KeyARNs, "ADOPTED": n.Adopted}[r]; ok {
			if len(of) == 0 {
				return []string{"*"}
			}
			out = append(out, of...)
			continue
		}
		out = append(out, n.named([]string{r})...)
	}
	return out
}

// How many characters a policy may have, white space not counted: a managed one, and
// one that is a role's own.
const (
	MaxManaged = 6144
	MaxInline  = 10240
)

// Size is how many characters of it count.
func (p Policy) Size() int {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // texts
	}
	return len(b)
}

// Who are the wanted features that need an action.
func (n Need) Who(action string) (out []Feature) {
	for _, f := range n.List() {
		if slices.ContainsFunc(table[f], func(g Grant) bool { return slices.Contains(g.Actions(), action) }) {
			out = append(out, f)
		}
	}
	return out
}

// Only is the part of a policy that is about some actions.
func (p Policy) Only(want func(action string) bool) Policy {
	out := Policy{Version: p.Version, Statement: []Statement{}}
	for _, s := range p.Statement {
		s.Action = slices.DeleteFunc(slices.Clone(s.Action), func(a string) bool { return !want(a) })
		if len(s.Action) > 0 {
			out.Statement = append(out.Statement, s)
		}
	}
	return out
}
