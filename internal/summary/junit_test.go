package summary

import (
	"bytes"
	"encoding/xml"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/rebake/rebake/internal/event"
)

// node is any XML element.
type node struct {
	XMLName  xml.Name
	Attrs    []xml.Attr `xml:",any,attr"`
	Children []node     `xml:",any"`
	Text     string     `xml:",chardata"`
}

func (n node) attr(name string) (string, bool) {
	for _, a := range n.Attrs {
		if a.Name.Local == name {
			return a.Value, true
		}
	}
	return "", false
}

func (n node) names() (out []string) {
	for _, c := range n.Children {
		out = append(out, c.XMLName.Local)
	}
	return out
}

// What Ant's schema for JUnit's XML asks of the elements that are written here:
// their attributes and the form of each.
var schema = map[string]map[string]*regexp.Regexp{
	"testsuites": {},
	"testsuite": {"name": someToken, "timestamp": regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d$`), "hostname": someToken, "tests": number, "failures": number,
		"errors": number, "skipped": number, "time": decimal, "package": aToken, "id": number},
	"properties": {}, "property": {"name": someToken, "value": anything},
	"testcase": {"name": aToken, "classname": aToken, "time": decimal},
	"failure":  {"message": anything, "type": anything}, "error": {"message": anything, "type": anything},
	"skipped": {"message": anything}, "system-out": {}, "system-err": {},
}

var (
	anything  = regexp.MustCompile(`(?s)^.*$`)
	number    = regexp.MustCompile(`^\d+$`)
	decimal   = regexp.MustCompile(`^\d+\.\d{3}$`)
	aToken    = regexp.MustCompile(`^(\S+( \S+)*)?$`)
	someToken = regexp.MustCompile(`^\S+( \S+)*$`)
)

// conform holds an element to the schema.
func conform(t *testing.T, n node) {
	t.Helper()
	name := n.XMLName.Local
	want, ok := schema[name]
	if !ok {
		t.Fatalf("element %s", name)
	}
	for _, a := range n.Attrs {
		if form := want[a.Name.Local]; form == nil || !form.MatchString(a.Value) {
			t.Errorf("%s: attribute %s=%q", name, a.Name.Local, a.Value)
		}
	}
	if len(n.Attrs) != len(want) {
		t.Errorf("%s has %d attributes of %d", name, len(n.Attrs), len(want))
	}
	kids := n.names()
	switch name {
	case "testsuites":
		if slices.ContainsFunc(kids, func(k string) bool { return k != "testsuite" }) {
			t.Errorf("%s holds %v", name, kids)
		}
	case "testsuite":
		if len(kids) < 3 || kids[0] != "properties" || kids[len(kids)-2] != "system-out" || kids[len(kids)-1] != "system-err" ||
			slices.ContainsFunc(kids[1:len(kids)-2], func(k string) bool { return k != "testcase" }) {
			t.Errorf("%s holds %v", name, kids)
		}
	case "testcase":
		if len(kids) > 1 || len(kids) == 1 && !slices.Contains([]string{"failure", "error", "skipped"}, kids[0]) {
			t.Errorf("%s holds %v", name, kids)
		}
	}
	for _, c := range n.Children {
		conform(t, c)
	}
}

func parse(t *testing.T, raw []byte) node {
	t.Helper()
	var doc node
	dec := xml.NewDecoder(bytes.NewReader(bytes.TrimSpace(raw)))
	if err := dec.Decode(&doc); err != nil {
		t.Fatalf("%v in %s", err, raw)
	}
	if _, err := dec.Token(); err != io.EOF {
		t.Fatalf("something follows the document: %v", err)
	}
	return doc
}

func TestJUnitIsAsAntsSchemaWantsIt(t *testing.T) {
	for name, s := range runs() {
		raw, err := JUnit(s)
		if err != nil {
			t.Fatal(err)
		}
		doc := parse(t, raw)
		conform(t, doc)
		bad := 0
		for i, suite := range doc.Children {
			count := map[string]int{}
			for _, c := range suite.Children {
				if c.XMLName.Local == "testcase" {
					count["tests"]++
					for _, k := range c.names() {
						count[map[string]string{"failure": "failures", "error": "errors", "skipped": "skipped"}[k]]++
					}
				}
			}
			count["id"] = i
			for _, a := range []string{"id", "tests", "failures", "errors", "skipped"} {
				if got, _ := suite.attr(a); got != strconv.Itoa(count[a]) {
					t.Errorf("%s: suite %d says %s=%s, has %d", name, i, a, got, count[a])
				}
			}
			bad += count["failures"] + count["errors"]
		}
		if (bad > 0) != (s.Exit != 0) {
			t.Errorf("%s: exit status %d, and %d failed cases", name, s.Exit, bad)
		}
	}
}

func TestARunThatFailedOutsideOfBuildsFails(t *testing.T) {
	s := night()
	s.Exit, s.Error, s.Outcome = 5, "fleet is locked by another operator", "failed"
	raw, err := JUnit(s)
	if err != nil || strings.Count(string(raw), "<error ") != 1 || !strings.Contains(string(raw), "locked by another operator") {
		t.Errorf("%s, %v", raw, err)
	}
}

func FuzzJUnitIsValidWhateverIsSaid(f *testing.F) {
	f.Add(hostile)
	f.Add("\x00\x01\x0b\x1b[0m\ufffe\uffff\xff\xed\xa0\x80]]>&<\"'")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		s := refused()
		Map(&s, func(string) string { return text })
		s.Builds[0].Tests = []event.Test{{Test: text, Message: text}}
		raw, err := JUnit(s)
		if err != nil {
			t.Fatal(err)
		}
		if !utf8.Valid(raw) || bytes.ContainsRune(raw, 0x1b) {
			t.Fatalf("%q", raw)
		}
		parse(t, raw)
	})
}
