package awsfake

import (
	_ "embed"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed ec2names.txt
var ec2names string

// naming is how a protocol calls a field of one of the SDK's structs.
type naming struct {
	member string // what list elements are called in a response
	in     func(typ, field string) string
	out    func(typ, field string) string
	flat   bool // lists of a request are Name.1, not Name.member.1
}

func same(_, field string) string { return field }

var (
	queryNames = naming{member: "member", in: same, out: same}
	ec2Names   = ec2Naming()
)

func ec2Naming() naming {
	in, out := map[string]string{}, map[string]string{}
	for line := range strings.Lines(ec2names) {
		f := strings.Fields(line)
		if f[0] == ">" {
			in[f[1]] = f[2]
		} else {
			out[f[1]] = f[2]
		}
	}
	get := func(m map[string]string, otherwise func(string) string) func(typ, field string) string {
		return func(typ, field string) string {
			if n := m[typ+"."+field]; n != "" {
				return n
			}
			return otherwise(field)
		}
	}
	return naming{member: "item", flat: true, in: get(in, func(f string) string { return f }),
		out: get(out, func(f string) string { return strings.ToLower(f[:1]) + f[1:] })}
}

// A node is a part of a query request: Tag.1.Key=a is a node in a node in a node.
type node struct {
	value string
	set   bool
	kids  map[string]*node
}

func formTree(form url.Values) *node {
	root := &node{}
	for k, vs := range form {
		n := root
		for part := range strings.SplitSeq(k, ".") {
			if n.kids == nil {
				n.kids = map[string]*node{}
			}
			if n.kids[part] == nil {
				n.kids[part] = &node{}
			}
			n = n.kids[part]
		}
		n.value, n.set = vs[0], true
	}
	return root
}

// elements are the kids with numbers, in order.
func (n *node) elements() []*node {
	var at []int
	for k := range n.kids {
		if i, err := strconv.Atoi(k); err == nil {
			at = append(at, i)
		}
	}
	slices.Sort(at)
	var out []*node
	for _, i := range at {
		out = append(out, n.kids[strconv.Itoa(i)])
	}
	return out
}

var timeType = reflect.TypeFor[time.Time]()

// fromQuery fills v, one of the SDK's structs, from a request.
func fromQuery(n *node, v reflect.Value, names naming) error {
	switch {
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return fromQuery(n, v.Elem(), names)
	case v.Type() == timeType:
		t, err := time.Parse(time.RFC3339Nano, n.value)
		if err != nil {
			return refuse("InvalidParameterValue", "%s is not a time", n.value)
		}
		v.Set(reflect.ValueOf(t))
		return nil
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if !f.IsExported() || f.Name == "ResultMetadata" {
				continue
			}
			kid := n.kids[names.in(v.Type().Name(), f.Name)]
			if kid == nil {
				continue
			}
			if err := fromQuery(kid, v.Field(i), names); err != nil {
				return err
			}
		}
		return nil
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8:
		b, err := base64.StdEncoding.DecodeString(n.value)
		if err != nil {
			return refuse("InvalidParameterValue", "not base64: %s", n.value)
		}
		v.SetBytes(b)
		return nil
	case v.Kind() == reflect.Slice:
		if m := n.kids["member"]; m != nil && !names.flat {
			n = m
		}
		list := n.elements()
		v.Set(reflect.MakeSlice(v.Type(), len(list), len(list)))
		for i, e := range list {
			if err := fromQuery(e, v.Index(i), names); err != nil {
				return err
			}
		}
		return nil
	}
	return setScalar(v, n.value)
}

func setScalar(v reflect.Value, s string) error {
	var err error
	switch v.Kind() {
	case reflect.String:
		v.SetString(s)
	case reflect.Bool:
		var b bool
		b, err = strconv.ParseBool(s)
		v.SetBool(b)
	case reflect.Int32, reflect.Int64, reflect.Int:
		var i int64
		i, err = strconv.ParseInt(s, 10, 64)
		v.SetInt(i)
	case reflect.Float64, reflect.Float32:
		var f float64
		f, err = strconv.ParseFloat(s, 64)
		v.SetFloat(f)
	default:
		return fmt.Errorf("awsfake: cannot read a %s", v.Type())
	}
	if err != nil {
		return refuse("InvalidParameterValue", "%s is not a %s", s, v.Kind())
	}
	return nil
}

// toXML writes the fields of one of the SDK's structs as elements.
func toXML(b *strings.Builder, v reflect.Value, names naming) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() || f.Name == "ResultMetadata" || isNone(v.Field(i)) {
			continue
		}
		writeXML(b, names.out(v.Type().Name(), f.Name), v.Field(i), names)
	}
}

func isNone(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Interface:
		return v.IsNil()
	case reflect.String:
		return v.Len() == 0
	}
	return false
}

func writeXML(b *strings.Builder, name string, v reflect.Value, names naming) {
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	b.WriteString("<" + name + ">")
	switch {
	case v.Type() == timeType:
		b.WriteString(v.Interface().(time.Time).UTC().Format("2006-01-02T15:04:05.000Z"))
	case v.Kind() == reflect.Struct:
		toXML(b, v, names)
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8:
		b.WriteString(base64.StdEncoding.EncodeToString(v.Bytes()))
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			writeXML(b, names.member, v.Index(i), names)
		}
	default:
		_ = xml.EscapeText(b, []byte(fmt.Sprint(v.Interface())))
	}
	b.WriteString("</" + name + ">")
}
