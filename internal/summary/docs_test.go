package summary

import (
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/inventory"
)

// keys are the names under which the fields of a type are marshalled, and those of
// what is in them.
func keys(t reflect.Type, into map[string]bool) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		keys(t.Elem(), into)
	case reflect.Struct:
		if t == reflect.TypeFor[time.Time]() || t == reflect.TypeFor[inventory.Summary]() {
			return
		}
		for i := range t.NumField() {
			f := t.Field(i)
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
				into[name] = true
			}
			keys(f.Type, into)
		}
	}
}

func TestTheDocumentsNameEveryField(t *testing.T) {
	for page, types := range map[string][]reflect.Type{
		"nightly.md": {reflect.TypeFor[Summary]()},
		"events.md":  {reflect.TypeFor[event.Report](), reflect.TypeFor[event.Event]()},
	} {
		raw, err := os.ReadFile("../../docs/" + page)
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]bool{}
		for _, typ := range types {
			keys(typ, all)
		}
		if len(all) < 15 {
			t.Fatalf("%s: %v", page, all)
		}
		for k := range all {
			if !strings.Contains(string(raw), "`"+k+"`") {
				t.Errorf("docs/%s does not name %s", page, k)
			}
		}
	}
}
