package awsfake

import (
	"encoding/base64"
	"fmt"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	asgtypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// region is what there is in one region.
type region struct {
	cloud *Cloud
	name  string
	tags  map[string][]ec2types.Tag // by id, of EC2
	born  map[string]time.Time      // when an id was made
	// tokens are client tokens that were used, by action and token.
	tokens map[string]usedToken

	vpc       string
	subnets   table[*ec2types.Subnet]
	groups    table[*ec2types.SecurityGroup]
	keys      table[*ec2types.KeyPairInfo]
	instances table[*instance]
	volumes   table[*ec2types.Volume]
	snapshots table[*snapshot]
	images    table[*image]
	templates table[*launchTemplate]
	spots     table[*ec2types.SpotInstanceRequest]

	balancers    table[*balancer]
	targetGroups table[*targetGroup]
	listeners    table[*listener]
	rules        table[*rule]
	elbTags      map[string]map[string]string

	asgs    table[*group]
	configs table[*asgtypes.LaunchConfiguration]

	alarms  table[*alarm]
	metrics []sample
	params  map[string]string
}

func newRegion(c *Cloud, name string) *region {
	r := &region{cloud: c, name: name, tags: map[string][]ec2types.Tag{}, born: map[string]time.Time{}, tokens: map[string]usedToken{},
		elbTags: map[string]map[string]string{}, params: map[string]string{}}
	r.vpc = c.id("vpc")
	for i, zone := range r.zones() {
		r.subnets.put(c.id("subnet"), &ec2types.Subnet{VpcId: &r.vpc, AvailabilityZone: aws.String(zone), AvailabilityZoneId: aws.String(zoneID(zone)),
			CidrBlock: aws.String(fmt.Sprintf("172.31.%d.0/20", 16*i)), DefaultForAz: aws.Bool(true), MapPublicIpOnLaunch: aws.Bool(true),
			State: ec2types.SubnetStateAvailable, OwnerId: aws.String(Account), AvailableIpAddressCount: aws.Int32(4091)})
	}
	for id, s := range r.subnets.byID {
		s.SubnetId = aws.String(id)
		s.SubnetArn = aws.String(r.arn("ec2", "subnet/"+id))
	}
	r.addGroup("default", "default VPC security group", r.vpc)
	return r
}

func (r *region) zones() []string { return []string{r.name + "a", r.name + "b", r.name + "c"} }

// zoneID is as "euc1-az2" of "eu-central-1b".
func zoneID(zone string) string {
	p := strings.Split(zone, "-")
	last := p[len(p)-1]
	return p[0] + p[1][:1] + last[:len(last)-1] + "-az" + strconv.Itoa(int(last[len(last)-1]-'a')+1)
}

func (r *region) arn(service, resource string) string {
	return "arn:aws:" + service + ":" + r.name + ":" + Account + ":" + resource
}

// seen tells whether an id is known to those who ask for it by now.
func (r *region) seen(id string) bool {
	t, ok := r.born[id]
	return !ok || r.cloud.Lag == 0 || time.Since(t) >= r.cloud.wall(r.cloud.Lag)
}

// new notes the birth of an id and its tags, and is the id.
func (r *region) new(id string, kind ec2types.ResourceType, specs []ec2types.TagSpecification) string {
	if r.cloud.Lag > 0 {
		r.born[id] = time.Now()
	}
	for _, s := range specs {
		if s.ResourceType == kind {
			r.tag(id, s.Tags)
		}
	}
	return id
}

func (r *region) tag(id string, tags []ec2types.Tag) {
	for _, t := range tags {
		at := slices.IndexFunc(r.tags[id], func(h ec2types.Tag) bool { return *h.Key == *t.Key })
		if at < 0 {
			r.tags[id] = append(r.tags[id], ec2types.Tag{Key: t.Key, Value: aws.String(aws.ToString(t.Value))})
			continue
		}
		// The list is shared with what was answered: another one, not this one changed.
		r.tags[id] = slices.Clone(r.tags[id])
		r.tags[id][at].Value = aws.String(aws.ToString(t.Value))
	}
}

// usedToken is what a client token was used for.
type usedToken struct {
	in  string
	out any
}

// once does f at most once for a client token: what it made is answered again, and
// other words with the same token are refused with the code.
func once[O any](r *region, action string, token *string, in any, mismatch string, f func() (O, error)) (O, error) {
	var none O
	if aws.ToString(token) == "" {
		return f()
	}
	key, words := action+" "+*token, fmt.Sprintf("%+v", toTree(reflect.ValueOf(in)))
	if t, ok := r.tokens[key]; ok {
		if t.in != words {
			return none, refuse(mismatch, "The client token %s was used with other parameters", *token)
		}
		return t.out.(O), nil
	}
	out, err := f()
	if err == nil {
		r.tokens[key] = usedToken{in: words, out: out}
	}
	return out, err
}

// table is a map that knows the order of what was put into it.
type table[T any] struct {
	byID  map[string]T
	order []string
}

func (t *table[T]) put(id string, v T) {
	if t.byID == nil {
		t.byID = map[string]T{}
	}
	if _, ok := t.byID[id]; !ok {
		t.order = append(t.order, id)
	}
	t.byID[id] = v
}

func (t *table[T]) get(id string) (T, bool) { v, ok := t.byID[id]; return v, ok }

func (t *table[T]) del(id string) {
	if _, ok := t.byID[id]; ok {
		delete(t.byID, id)
		t.order = slices.DeleteFunc(t.order, func(o string) bool { return o == id })
	}
}

func (t *table[T]) all() []T {
	out := make([]T, 0, len(t.order))
	for _, id := range t.order {
		out = append(out, t.byID[id])
	}
	return out
}

// page is the part of a list that a caller asked for and the token of the next.
func page[T any](list []T, size *int32, token *string, most int) ([]T, *string, error) {
	from, n := 0, most
	if aws.ToString(token) != "" {
		raw, err := base64.StdEncoding.DecodeString(*token)
		if err == nil {
			from, err = strconv.Atoi(string(raw))
		}
		if err != nil {
			return nil, nil, refuse("InvalidNextToken", "The token %s is not one", *token)
		}
	}
	if size != nil && *size > 0 {
		n = min(int(*size), most)
	}
	list = list[min(from, len(list)):]
	if len(list) <= n {
		return list, nil, nil
	}
	return list[:n], aws.String(base64.StdEncoding.EncodeToString([]byte(strconv.Itoa(from + n)))), nil
}

// matches tells whether a value fits one of the patterns, with * and ? as EC2 has them.
func matches(patterns []string, value string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if !strings.ContainsAny(p, "*?") {
			return p == value
		}
		// A slash and a bracket are nothing special in a filter.
		ok, _ := path.Match(strings.NewReplacer("/", "\x00", "[", `\[`).Replace(p), strings.ReplaceAll(value, "/", "\x00"))
		return ok
	})
}

// fits tells whether a resource passes filters. fields are those besides tags.
func (r *region) fits(id string, filters []ec2types.Filter, fields map[string][]string) (bool, error) {
	for _, f := range filters {
		name := aws.ToString(f.Name)
		var have []string
		if key, ok := strings.CutPrefix(name, "tag:"); ok {
			for _, t := range r.tags[id] {
				if *t.Key == key {
					have = []string{*t.Value}
				}
			}
		} else if name == "tag-key" {
			for _, t := range r.tags[id] {
				have = append(have, *t.Key)
			}
		} else if have, ok = fields[name]; !ok {
			return false, refuse("InvalidParameterValue", "The filter '%s' is invalid", name)
		}
		if !slices.ContainsFunc(have, func(v string) bool { return matches(f.Values, v) }) {
			return false, nil
		}
	}
	return true, nil
}

// copyAs copies fields of the same name from one of the SDK's structs to another,
// however deep. What is nil or "" in src stays as it is in dst.
func copyAs(dst, src any) {
	copyValue(reflect.ValueOf(dst).Elem(), reflect.ValueOf(src).Elem())
}

func copyValue(dst, src reflect.Value) {
	if isNone(src) {
		return
	}
	switch {
	case src.Type() == dst.Type() && (src.Kind() != reflect.Struct || src.Type() == timeType):
		dst.Set(src)
	case src.Kind() == reflect.Pointer && dst.Kind() == reflect.Pointer:
		to := reflect.New(dst.Type().Elem())
		copyValue(to.Elem(), src.Elem())
		dst.Set(to)
	case src.Kind() == reflect.Pointer:
		copyValue(dst, src.Elem())
	case dst.Kind() == reflect.Pointer:
		to := reflect.New(dst.Type().Elem())
		copyValue(to.Elem(), src)
		dst.Set(to)
	case src.Kind() == reflect.Struct && dst.Kind() == reflect.Struct:
		for i := range src.NumField() {
			f := src.Type().Field(i)
			if to := dst.FieldByName(f.Name); f.IsExported() && f.Name != "ResultMetadata" && to.IsValid() && to.CanSet() {
				copyValue(to, src.Field(i))
			}
		}
	case src.Kind() == reflect.Slice && dst.Kind() == reflect.Slice:
		to := reflect.MakeSlice(dst.Type(), src.Len(), src.Len())
		for i := range src.Len() {
			copyValue(to.Index(i), src.Index(i))
		}
		dst.Set(to)
	case src.Type().ConvertibleTo(dst.Type()) && src.Kind() == dst.Kind():
		dst.Set(src.Convert(dst.Type()))
	}
}

func one(s *string) []string { return []string{aws.ToString(s)} }
