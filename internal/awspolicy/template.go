package awspolicy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/rebake/rebake/internal/template"
)

// For is what a template needs. Blocks are read by their keys alone.
func For(t *template.Template) (Need, error) {
	var n Need
	for _, b := range t.Builds {
		if b.Kind != "amazon" {
			continue
		}
		m, err := keys(b.Block)
		if err != nil {
			return n, err
		}
		n.build("build."+b.Name, m)
	}
	if t.Fleet != nil {
		if err := n.fleet(t); err != nil {
			return n, err
		}
	}
	if t.Retention != nil && t.Retention.AMI != nil {
		n.Add(Retention, "retention.ami")
	}
	slices.Sort(n.KeyARNs)
	n.KeyARNs = slices.Compact(n.KeyARNs)
	return n, nil
}

func keys(b template.Block) (map[string]any, error) {
	raw, err := b.Canonical()
	if err != nil {
		return nil, err
	}
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("read a block: %w", err)
	}
	return m, nil
}

// at is what stands at a path such as ami.copy_to, or nil.
func at(m map[string]any, path string) any {
	var v any = m
	for _, k := range strings.Split(path, ".") {
		into, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = into[k]
	}
	if v == false || v == "" {
		return nil
	}
	return v
}

func (n *Need) build(where string, m map[string]any) {
	n.Add(Bake, where)
	n.common(where, m)
	for path, f := range map[string]Feature{"ssh.ssm": SSM, "instance_profile": Profile, "ami.copy_to": Copy, "ami.share": Share, "ami.deprecate_after": Deprecate, "ami.protect": Protect} {
		if at(m, path) != nil {
			n.Add(f, where+"."+path)
		}
	}
	if at(m, "network.security_groups") == nil {
		n.Add(Group, where+", which names no network.security_groups")
	}
}

// common is what any block may say: its region and its keys.
func (n *Need) common(where string, m map[string]any) {
	if r, ok := m["region"].(string); ok {
		n.Region, n.Partition = cmp.Or(n.Region, r), PartitionOf(r)
	}
	n.encryption(where, m)
}

// encryption finds keys wherever they stand.
func (n *Need) encryption(where string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, inner := range v {
			key, text := inner.(string)
			switch {
			case k == "kms_key" && text && key != "":
				n.Add(Keys, where+": kms_key")
				if strings.HasPrefix(key, "arn:") && strings.Contains(key, ":key/") {
					n.KeyARNs = append(n.KeyARNs, key)
				}
			case k == "encrypted" && inner == true:
				n.Add(Keys, where+": encrypted")
			}
			n.encryption(where, inner)
		}
	case []any:
		for _, inner := range v {
			n.encryption(where, inner)
		}
	}
}

func (n *Need) fleet(t *template.Template) error {
	pool, err := keys(t.Fleet.Pool)
	if err != nil {
		return err
	}
	if t.Fleet.PoolKind == "asg" {
		if name, ok := at(pool, "adopt").(string); ok && t.Fleet.Deploy.Strategy == "refresh" {
			n.Add(Refresh, "fleet.pool.asg.adopt with strategy: refresh")
			n.Adopted = append(n.Adopted, strings.TrimSuffix(groups, "*")+name)
		} else {
			n.Add(Pool, "fleet.pool.asg")
		}
		n.common("fleet.pool.asg", pool)
		if at(pool, "instance.instance_profile") != nil || at(pool, "adopt") != nil || at(pool, "launch_template") != nil {
			n.Add(Profile, "fleet.pool.asg: an instance profile")
		}
		if at(pool, "publish") != nil {
			n.Add(Publish, "fleet.pool.asg.publish")
		}
	}
	n.InBucket(t.Fleet.State)
	for _, g := range t.Fleet.Deploy.Gates {
		if g.Alarm != nil {
			n.Add(Gates, "fleet.deploy.gates: "+g.Name)
		}
	}
	if t.Fleet.RouterKind == "" {
		return nil
	}
	router, err := keys(t.Fleet.Router)
	if err != nil {
		return err
	}
	if t.Fleet.RouterKind == "alb" {
		n.Add(Router, "fleet.router.alb")
		n.Add(Gates, "fleet.router.alb: metrics by target group")
		n.common("fleet.router.alb", router)
		for _, path := range []string{"rule", "target_groups.blue", "target_groups.green"} {
			if arn, ok := at(router, path).(string); ok {
				n.Add(Adopted, "fleet.router.alb."+path)
				n.Adopted = append(n.Adopted, arn)
			}
		}
	}
	return nil
}

// InBucket wants state in s3://bucket/prefix.
func (n *Need) InBucket(address string) {
	rest, ok := strings.CutPrefix(address, "s3://")
	if !ok {
		return
	}
	n.Bucket, n.Prefix, _ = strings.Cut(rest, "/")
	n.Add(State, "state: "+address)
}
