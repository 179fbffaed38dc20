package template

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"
)

func compiledSchema(t testing.TB) (*jsonschema.Schema, any) {
	t.Helper()
	raw, err := Schema(testKinds())
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("rebake.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("rebake.json")
	if err != nil {
		t.Fatalf("%v\n%s", err, raw)
	}
	return s, doc
}

// schemaKeys lists all property names of the schema.
func schemaKeys(t testing.TB) []string {
	_, doc := compiledSchema(t)
	found := map[string]bool{}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if props, ok := v["properties"].(map[string]any); ok {
				for k := range props {
					found[k] = true
				}
			}
			for _, e := range v {
				walk(e)
			}
		case []any:
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(doc)
	return keys(found)
}

func asJSON(t testing.TB, text string) any {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestSchemaAcceptsWhatLoadAccepts(t *testing.T) {
	s, _ := compiledSchema(t)
	all := examples(t)
	for _, f := range shipped(t) {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(f)] = string(text)
	}
	for name, text := range valid {
		all[name] = text
	}
	for name, text := range all {
		if err := s.Validate(asJSON(t, text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSchemaRefuses(t *testing.T) {
	s, _ := compiledSchema(t)
	for name, text := range map[string]string{
		"an unknown key at the top":      partHead + "buidl: {}\n",
		"an unknown key of a builder":    "name: a\nbuild: {qemu: {from: {debian: x}, memry: 1G}}\n",
		"a missing required key":         "name: a\nbuild: {qemu: {memory: 1G}}\n",
		"no build":                       "name: a\n",
		"an unknown provisioner":         partHead + "provision: [{shel: {inline: [a]}}]\n",
		"two kinds in a step":            partHead + "provision: [{shell: {inline: [a]}, file: {destination: /a}}]\n",
		"an unknown key of a step":       partHead + "provision: [{shell: {inlin: [a]}}]\n",
		"a duration without unit":        partHead + "provision: [{shell: {inline: [a], timeout: 5}}]\n",
		"a value that is not in an enum": partHead + "provision: [{file: {destination: /a, direction: sideways}}]\n",
		"a fleet without health":         partHead + "fleet: {pool: qemu, router: {haproxy: {listen: a}}}\n",
		"an unknown type of a variable":  partHead + "variables: {a: {type: map}}\n",
		"a build of an unknown kind":     "name: a\nbuild: {big: {kind: qemo, from: {debian: x}}}\n",
	} {
		if err := s.Validate(asJSON(t, text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := loadText(t, text, Options{}); err == nil {
			t.Errorf("%s: accepted by Load", name)
		}
	}
}
