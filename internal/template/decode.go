package template

import (
	"encoding"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"
)

var (
	durationType = reflect.TypeFor[time.Duration]()
	countType    = reflect.TypeFor[Count]()
	blockType    = reflect.TypeFor[Block]()
)

// field is a struct field as the template sees it.
type field struct {
	key                               string
	index                             []int
	typ                               reflect.Type
	required, secret, shorthand, path bool
	enum                              []string
}

// fields lists the keys of a struct type in order.
func fields(t reflect.Type) []field {
	var out []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name == "-" {
			continue
		}
		if f.Type.Kind() == reflect.Struct && (opts == "inline" || f.Anonymous && name == "") {
			for _, in := range fields(f.Type) {
				in.index = append([]int{i}, in.index...)
				out = append(out, in)
			}
			continue
		}
		if !f.IsExported() {
			continue
		}
		if name == "" {
			name = strings.ToLower(f.Name)
		}
		o := field{key: name, index: []int{i}, typ: f.Type}
		for _, w := range strings.Split(f.Tag.Get("rebake"), ",") {
			o.required = o.required || w == "required"
			o.secret = o.secret || w == "secret"
			o.shorthand = o.shorthand || w == "shorthand"
			o.path = o.path || w == "path"
		}
		for _, w := range strings.Split(f.Tag.Get("jsonschema"), ",") {
			o.required = o.required || w == "required"
			if v, ok := strings.CutPrefix(w, "enum="); ok {
				o.enum = append(o.enum, v)
			}
		}
		out = append(out, o)
	}
	return out
}

// hasKey tells whether the struct behind pointer p has a key.
func hasKey(p any, key string) bool {
	t := reflect.TypeOf(p)
	if t == nil || t.Kind() != reflect.Pointer || t.Elem().Kind() != reflect.Struct {
		return false
	}
	for _, f := range fields(t.Elem()) {
		if f.key == key {
			return true
		}
	}
	return false
}

type decoder struct {
	s     *source
	dir   string
	extra []string // keys that are valid beside the struct's, for hints
}

// decodeWith decodes; extra keys were taken out of the block before, they are
// only named in hints.
func (b Block) decodeWith(into any, extra []string) error {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return fmt.Errorf("cannot decode into %T: not a pointer", into)
	}
	n := b.n
	if n == nil || n.kind == scalarNode && n.value == nil {
		n = &node{kind: mapNode, line: b.line, column: b.column}
	}
	src := b.src
	if src == nil {
		src = &source{}
	}
	d := decoder{s: src, dir: b.dir, extra: extra}
	if err := d.decode(n, v.Elem(), field{}, b.kind); err != nil {
		return err
	}
	if c, ok := into.(interface{ Validate() error }); ok {
		if err := c.Validate(); err != nil {
			return b.Errorf("", "%w", err)
		}
	}
	return nil
}

func (d *decoder) fail(n *node, hint, format string, a ...any) error {
	return d.s.errorf(n.line, n.column, hint, format, a...)
}

// decode puts n into v, the value of the field f named name.
func (d *decoder) decode(n *node, v reflect.Value, f field, name string) error {
	if v.Type() == blockType {
		v.Set(reflect.ValueOf(Block{n: n, src: d.s, dir: d.dir, line: n.line, column: n.column}))
		return nil
	}
	if v.Kind() == reflect.Pointer {
		p := reflect.New(v.Type().Elem())
		v.Set(p)
		return d.decode(n, p.Elem(), f, name)
	}
	if n.kind == scalarNode && n.value == nil && v.Kind() != reflect.Interface {
		return d.fail(n, "give it a value or remove the key", "%s has no value", quoted(name))
	}
	if len(n.taint) > 0 && !f.secret {
		return d.fail(n, "sensitive values may be used in a step's env and in content of a file",
			"variable %q is sensitive, and %s may be shown or logged", strings.Join(n.taint, ", "), quoted(name))
	}
	if v.Type() == durationType {
		s, ok := n.value.(string)
		if !ok {
			return d.mismatch(n, name, "a duration", `write it with its unit, such as 10s, 5m or 1h30m`)
		}
		dur, err := parseDuration(s)
		if err != nil {
			return d.fail(n, "", "%s: %w", name, err)
		}
		v.SetInt(int64(dur))
		return nil
	}
	if t, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok && v.Kind() != reflect.Struct || ok && n.kind == scalarNode {
		s, isText := n.value.(string)
		if v.Type() == countType && n.kind == scalarNode {
			s, isText = n.text, true
		}
		if n.kind != scalarNode || !isText {
			return d.mismatch(n, name, "a text", "")
		}
		if err := t.UnmarshalText([]byte(s)); err != nil {
			if len(n.taint) > 0 {
				return d.fail(n, "", "the value of %s is not valid", quoted(name))
			}
			return d.fail(n, "", "%s: %w", name, err)
		}
		return nil
	}
	switch v.Kind() {
	case reflect.Struct:
		return d.decodeStruct(n, v, f, name)
	case reflect.Map:
		return d.decodeMap(n, v, f, name)
	case reflect.Slice:
		return d.decodeSlice(n, v, f, name)
	case reflect.Interface:
		if v.NumMethod() == 0 {
			if p := plainValue(n, false); p != nil {
				v.Set(reflect.ValueOf(p))
			}
			return nil
		}
	}
	return d.decodeScalar(n, v, f, name)
}

func (d *decoder) decodeStruct(n *node, v reflect.Value, f field, name string) error {
	all := fields(v.Type())
	if n.kind != mapNode {
		for _, o := range all {
			if o.shorthand {
				o.secret = o.secret || f.secret
				if o.typ.Kind() == reflect.Slice && n.kind == scalarNode {
					n = &node{kind: listNode, line: n.line, column: n.column, items: []*node{n}}
				}
				return d.decode(n, v.FieldByIndex(o.index), o, o.key)
			}
		}
		return d.mismatch(n, name, "a mapping", "its keys: "+strings.Join(names(all), ", "))
	}
	extra := d.extra
	d.extra = nil
	byKey := make(map[string]field, len(all))
	for _, o := range all {
		byKey[o.key] = o
	}
	for _, e := range n.entries {
		o, ok := byKey[e.key]
		if !ok {
			in := ""
			if name != "" {
				in = " in " + quoted(name)
			}
			return d.s.errorf(e.line, e.column, choices("keys", e.key, append(names(all), extra...)), "unknown key %q%s", e.key, in)
		}
		o.secret = o.secret || f.secret
		if err := d.decode(e.value, v.FieldByIndex(o.index), o, o.key); err != nil {
			return err
		}
	}
	for _, o := range all {
		if o.required && n.get(o.key) == nil {
			at := "key"
			if name != "" {
				at = quoted(name) + " needs key"
			} else {
				at = "missing " + at
			}
			return d.fail(n, "", "%s %q", at, o.key)
		}
	}
	return nil
}

func (d *decoder) decodeMap(n *node, v reflect.Value, f field, name string) error {
	if n.kind != mapNode {
		return d.mismatch(n, name, "a mapping", "")
	}
	if v.Type().Key().Kind() != reflect.String {
		return d.fail(n, "", "%s cannot be decoded", quoted(name))
	}
	out := reflect.MakeMapWithSize(v.Type(), len(n.entries))
	for _, e := range n.entries {
		item := reflect.New(v.Type().Elem()).Elem()
		if err := d.decode(e.value, item, f, e.key); err != nil {
			return err
		}
		out.SetMapIndex(reflect.ValueOf(e.key).Convert(v.Type().Key()), item)
	}
	v.Set(out)
	return nil
}

func (d *decoder) decodeSlice(n *node, v reflect.Value, f field, name string) error {
	if n.kind != listNode {
		hint := "write a list: [" + n.text + "]"
		if n.kind == mapNode || len(n.text) > 30 || n.block {
			hint = "start each item with a dash"
		}
		return d.mismatch(n, name, "a list", hint)
	}
	out := reflect.MakeSlice(v.Type(), len(n.items), len(n.items))
	for i, item := range n.items {
		if err := d.decode(item, out.Index(i), f, fmt.Sprintf("%s[%d]", name, i)); err != nil {
			return err
		}
	}
	v.Set(out)
	return nil
}

func (d *decoder) decodeScalar(n *node, v reflect.Value, f field, name string) error {
	switch v.Kind() {
	case reflect.String:
		s, ok := n.value.(string)
		if n.computed && n.kind == scalarNode {
			s, ok = n.text, true
		}
		if !ok {
			hint := ""
			if n.kind == scalarNode {
				hint = fmt.Sprintf("write it in quotes: %q", n.text)
			}
			return d.mismatch(n, name, "a text", hint)
		}
		if len(f.enum) > 0 && !contains(f.enum, s) {
			return d.fail(n, choices("values", s, f.enum), "%s cannot be %q", quoted(name), s)
		}
		if f.path && s != "" && !strings.ContainsAny(s, "*?[") {
			if err := d.exists(n, name, s); err != nil {
				return err
			}
		}
		v.SetString(s)
	case reflect.Bool:
		b, ok := n.value.(bool)
		if !ok {
			return d.mismatch(n, name, "true or false", "")
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		i, ok := n.value.(int64)
		if !ok {
			return d.mismatch(n, name, "a whole number", "")
		}
		if v.OverflowInt(i) {
			return d.fail(n, "", "%s is too large", quoted(name))
		}
		v.SetInt(i)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		i, ok := n.value.(int64)
		if !ok {
			return d.mismatch(n, name, "a whole number", "")
		}
		if i < 0 || v.OverflowUint(uint64(i)) {
			return d.fail(n, "", "%s is out of range", quoted(name))
		}
		v.SetUint(uint64(i))
	case reflect.Float32, reflect.Float64:
		switch x := n.value.(type) {
		case int64:
			v.SetFloat(float64(x))
		case float64:
			if v.OverflowFloat(x) || math.IsNaN(x) {
				return d.fail(n, "", "%s is too large", quoted(name))
			}
			v.SetFloat(x)
		default:
			return d.mismatch(n, name, "a number", "")
		}
	default:
		return d.fail(n, "", "%s cannot be decoded into %s", quoted(name), v.Type())
	}
	return nil
}

func (d *decoder) exists(n *node, name, path string) error {
	full := path
	if !filepath.IsAbs(full) {
		full = filepath.Join(d.dir, full)
	}
	if _, err := os.Stat(full); err != nil {
		return d.fail(n, "paths start at the template's directory", "%s: %s: %w", name, path, pathless(err))
	}
	return nil
}

// mismatch says what was expected and what is there, never a sensitive value.
func (d *decoder) mismatch(n *node, name, want, hint string) error {
	got := n.kind.String()
	if n.kind == scalarNode {
		switch n.value.(type) {
		case nil:
			got = "nothing"
		case string:
			got = "a text"
		case bool:
			got = "true or false"
		case int64, float64:
			got = "a number"
		}
	}
	if len(n.taint) > 0 {
		hint = ""
	}
	return d.fail(n, hint, "%s must be %s, not %s", quoted(name), want, got)
}

func quoted(name string) string {
	if name == "" {
		return "the template"
	}
	return fmt.Sprintf("%q", name)
}

func names(all []field) []string {
	var out []string
	for _, f := range all {
		out = append(out, f.key)
	}
	return out
}
