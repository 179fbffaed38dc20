package template

import (
	"encoding"
	"encoding/json"
	"reflect"

	"github.com/invopop/jsonschema"
	orderedmap "github.com/pb33f/ordered-map/v2"
)

const (
	shareRegexp      = `^[0-9]+(\.[0-9]+)?%$`
	durationRegexp   = `^([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+$|^0$`
	expressionRegexp = `\$\{\{`
)

var (
	sizeType = reflect.TypeFor[Size]()
	textType = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// Schema is the JSON Schema (2020-12) of the template language with these
// backends, made from the types that Load decodes into.
func Schema(k Kinds) ([]byte, error) {
	defs := jsonschema.Definitions{}
	doc := reflectType(reflect.TypeFor[document]())
	doc.Version = jsonschema.Version
	doc.Title = "rebake template"
	doc.Definitions = defs

	replace(doc, "variables", variablesSchema())
	replace(doc, "build", buildSchema(defs, k.Builders))
	for _, s := range []struct {
		key, def string
		kinds    map[string]func() any
	}{{"provision", "provisioner", k.Provisioners}, {"test", "check", k.Checks}} {
		replace(doc, s.key, &jsonschema.Schema{Type: "array", Items: oneKey(defs, s.def, s.kinds, true)})
	}
	fleet, _ := doc.Properties.Get("fleet")
	for _, s := range []struct {
		key   string
		kinds map[string]func() any
	}{{"pool", k.Pools}, {"router", k.Routers}} {
		name := &jsonschema.Schema{Type: "string"}
		for _, n := range keys(s.kinds) {
			name.Enum = append(name.Enum, n)
		}
		replace(fleet, s.key, &jsonschema.Schema{AnyOf: []*jsonschema.Schema{oneKey(defs, s.key, s.kinds, false), name}})
	}
	return json.MarshalIndent(doc, "", "  ")
}

// replace gives a property another schema, keeping its description.
func replace(s *jsonschema.Schema, key string, with *jsonschema.Schema) {
	if old, ok := s.Properties.Get(key); ok {
		with.Description = old.Description
	}
	s.Properties.Set(key, with)
}

func object() *jsonschema.Schema {
	return &jsonschema.Schema{Type: "object", Properties: orderedmap.New[string, *jsonschema.Schema](), AdditionalProperties: jsonschema.FalseSchema}
}

// oneKey is a mapping of one key out of the kinds.
func oneKey(defs jsonschema.Definitions, seam string, kinds map[string]func() any, step bool) *jsonschema.Schema {
	one := uint64(1)
	out := object()
	out.MinProperties, out.MaxProperties = &one, &one
	for _, name := range keys(kinds) {
		t := reflect.TypeOf(kinds[name]()).Elem()
		def := reflectType(t)
		if step {
			addStepOptions(def)
		}
		if len(def.Required) == 0 {
			def = &jsonschema.Schema{AnyOf: []*jsonschema.Schema{def, {Type: "null"}}}
		}
		defs[seam+"."+name] = def
		out.Properties.Set(name, &jsonschema.Schema{Ref: "#/$defs/" + seam + "." + name})
	}
	return out
}

// addStepOptions puts the options of every step into the object of a kind.
func addStepOptions(def *jsonschema.Schema) {
	target := def
	for _, alt := range def.AnyOf {
		if alt.Type == "object" {
			target = alt
		}
	}
	opts := reflectType(reflect.TypeFor[stepOptions]())
	for p := opts.Properties.Oldest(); p != nil; p = p.Next() {
		if _, own := target.Properties.Get(p.Key); !own {
			target.Properties.Set(p.Key, p.Value)
		}
	}
}

// buildSchema is a mapping of builds: a kind under its own name, or any name with kind:.
func buildSchema(defs jsonschema.Definitions, kinds map[string]func() any) *jsonschema.Schema {
	one := uint64(1)
	out := object()
	out.MinProperties = &one
	named := &jsonschema.Schema{}
	for _, name := range keys(kinds) {
		def := reflectType(reflect.TypeOf(kinds[name]()).Elem())
		def.Properties.Set("kind", &jsonschema.Schema{Const: name, Description: "the builder, where the key is another name"})
		defs["builder."+name] = def
		ref := "#/$defs/builder." + name
		out.Properties.Set(name, &jsonschema.Schema{Ref: ref})
		named.AnyOf = append(named.AnyOf, &jsonschema.Schema{Ref: ref, Required: []string{"kind"}})
	}
	if len(named.AnyOf) > 0 {
		out.AdditionalProperties = named
	}
	return out
}

func variablesSchema() *jsonschema.Schema {
	return &jsonschema.Schema{
		Type:          "object",
		PropertyNames: &jsonschema.Schema{Pattern: identifier.String()},
		AdditionalProperties: &jsonschema.Schema{AnyOf: []*jsonschema.Schema{
			reflectType(reflect.TypeFor[variableSpec]()),
			{Type: "string"}, {Type: "number"}, {Type: "boolean"}, {Type: "array"}, {Type: "null"},
		}},
	}
}

// reflectType is the schema of a Go type as the decoder reads it.
func reflectType(t reflect.Type) *jsonschema.Schema {
	r := jsonschema.Reflector{
		Anonymous: true, DoNotReference: true, FieldNameTag: "yaml", RequiredFromJSONSchemaTags: true,
		Mapper: func(t reflect.Type) *jsonschema.Schema {
			switch {
			case t == durationType || t == reflect.TypeFor[Duration]():
				return &jsonschema.Schema{Type: "string", Pattern: durationRegexp}
			case t == sizeType:
				return &jsonschema.Schema{Type: "string", Pattern: sizePattern.String()}
			case t == reflect.TypeFor[Share]():
				return &jsonschema.Schema{Type: "string", Pattern: shareRegexp}
			case t == countType:
				return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{{Type: "integer"}, {Type: "string", Pattern: shareRegexp}}}
			case t == blockType:
				return &jsonschema.Schema{}
			case t.Kind() != reflect.Struct && reflect.PointerTo(t).Implements(textType):
				return &jsonschema.Schema{Type: "string"}
			}
			return nil
		},
	}
	s := r.ReflectFromType(t)
	s.Version = ""
	return adapt(s, t)
}

// adapt brings a reflected schema to what the decoder accepts: required keys,
// shorthands, and an expression in the place of any value that is not a text.
func adapt(s *jsonschema.Schema, t reflect.Type) *jsonschema.Schema {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == blockType || t.Kind() == reflect.Interface:
		return s
	case s.Type == "object" && t.Kind() == reflect.Struct:
		return adaptStruct(s, t)
	case s.Type == "object" && t.Kind() == reflect.Map:
		if s.AdditionalProperties != nil {
			s.AdditionalProperties = adapt(s.AdditionalProperties, t.Elem())
		}
		return s
	case s.Type == "array" && t.Kind() == reflect.Slice:
		s.Items = adapt(s.Items, t.Elem())
	case s.Type == "string" && s.Pattern == "" && len(s.Enum) == 0:
		return s
	}
	out := &jsonschema.Schema{Description: s.Description, Default: s.Default}
	s.Description, s.Default = "", nil
	out.AnyOf = []*jsonschema.Schema{s, {Type: "string", Pattern: expressionRegexp}}
	return out
}

func adaptStruct(s *jsonschema.Schema, t reflect.Type) *jsonschema.Schema {
	s.Required = nil
	var short *field
	all := fields(t)
	for i, f := range all {
		p, ok := s.Properties.Get(f.key)
		if !ok {
			continue
		}
		p = adapt(p, f.typ)
		s.Properties.Set(f.key, p)
		if f.required {
			s.Required = append(s.Required, f.key)
		}
		if f.shorthand {
			short = &all[i]
		}
	}
	if short == nil {
		return s
	}
	value, _ := s.Properties.Get(short.key)
	copied := *value
	copied.Description = ""
	out := &jsonschema.Schema{Description: s.Description, AnyOf: []*jsonschema.Schema{s, &copied}}
	s.Description = ""
	if short.typ.Kind() == reflect.Slice {
		out.AnyOf = append(out.AnyOf, &jsonschema.Schema{Type: "string"})
	}
	return out
}
