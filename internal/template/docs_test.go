package template

import (
	"regexp"
	"strings"
	"testing"
)

var example = regexp.MustCompile("(?ms)^```yaml( part)?\n(.*?)^```$")

const partHead = "name: example\nbuild: {qemu: {from: {debian: bookworm}}}\n"

// examples are all YAML blocks of the reference as whole templates.
func examples(t testing.TB) map[string]string {
	out := map[string]string{}
	for _, s := range Sections() {
		text, err := Docs(s)
		if err != nil {
			t.Fatal(err)
		}
		found := example.FindAllStringSubmatch(text, -1)
		if len(found) == 0 || len(found) != strings.Count(text, "\n```yaml") {
			t.Errorf("section %s: %d examples found of %d", s, len(found), strings.Count(text, "\n```yaml"))
		}
		for i, m := range found {
			if m[1] != "" {
				m[2] = partHead + m[2]
			}
			out[s+"/"+string(rune('1'+i))] = m[2]
		}
	}
	return out
}

func TestEveryExampleOfTheReferenceIsValid(t *testing.T) {
	for name, text := range examples(t) {
		if _, err := loadText(t, text, Options{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTheReferenceNamesEveryKey keeps the reference and the types together.
func TestTheReferenceNamesEveryKey(t *testing.T) {
	all := ""
	for _, s := range Sections() {
		text, err := Docs(s)
		if err != nil {
			t.Fatal(err)
		}
		all += text
	}
	for _, key := range schemaKeys(t) {
		if !regexp.MustCompile(`\b` + regexp.QuoteMeta(key) + `\b`).MatchString(all) {
			t.Errorf("key %q is not in the reference", key)
		}
	}
}

func TestUnknownSection(t *testing.T) {
	if _, err := Docs("nonsense"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("got %v", err)
	}
}
