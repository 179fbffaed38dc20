package template

import "reflect"

// StepDescriptions are the descriptions of the options of every step.
func StepDescriptions() []string {
	var out []string
	for f := range reflect.TypeFor[stepOptions]().Fields() {
		out = append(out, f.Tag.Get("jsonschema_description"))
	}
	return out
}

// TestKinds is set by the external tests to the types of the backends
// themselves, which this package cannot import.
var TestKinds func() Kinds

func testKinds() Kinds { return TestKinds() }
