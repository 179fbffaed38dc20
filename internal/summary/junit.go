package summary

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/ui"
)

// The document that Ant's JUnit task writes, which Jenkins, GitLab and the GitHub
// actions read. Elements and attributes are in the order of its schema.
type (
	xmlSuites struct {
		XMLName xml.Name   `xml:"testsuites"`
		Suites  []xmlSuite `xml:"testsuite"`
	}
	xmlSuite struct {
		Name       string        `xml:"name,attr"`
		Timestamp  string        `xml:"timestamp,attr"` // UTC, without a zone, as the schema wants it
		Hostname   string        `xml:"hostname,attr"`
		Tests      int           `xml:"tests,attr"`
		Failures   int           `xml:"failures,attr"`
		Errors     int           `xml:"errors,attr"`
		Skipped    int           `xml:"skipped,attr"`
		Time       string        `xml:"time,attr"`
		Package    string        `xml:"package,attr"`
		ID         int           `xml:"id,attr"`
		Properties xmlProperties `xml:"properties"`
		Cases      []xmlCase     `xml:"testcase"`
		Out        string        `xml:"system-out"`
		Err        string        `xml:"system-err"`
	}
	xmlProperties struct {
		List []xmlProperty `xml:"property"`
	}
	xmlProperty struct {
		Name  string `xml:"name,attr"`
		Value string `xml:"value,attr"`
	}
	xmlCase struct {
		Name    string      `xml:"name,attr"`
		Class   string      `xml:"classname,attr"`
		Time    string      `xml:"time,attr"`
		Failure *xmlTrouble `xml:"failure"`
		Error   *xmlTrouble `xml:"error"`
		Skipped *xmlSkipped `xml:"skipped"`
		seconds float64
	}
	xmlTrouble struct {
		Message string `xml:"message,attr"`
		Type    string `xml:"type,attr"`
		Text    string `xml:",chardata"`
	}
	xmlSkipped struct {
		Message string `xml:"message,attr"`
	}
)

// JUnit is the summary as JUnit XML: a suite for each build, with the build itself
// and its tests, and one for the fleet, with the deployment and its gates. What
// failed outside of them is a case of its own, so that a failed run never looks
// like a good one. Characters that XML cannot hold are left out.
func JUnit(s Summary) ([]byte, error) {
	var doc xmlSuites
	add := func(name, pkg string, cases []xmlCase, properties ...xmlProperty) {
		suite := xmlSuite{
			Name: token(name), Timestamp: s.Began.UTC().Format("2006-01-02T15:04:05"), Hostname: orElse(token(s.Host), "localhost"),
			Package: token(pkg), ID: len(doc.Suites), Properties: xmlProperties{properties}, Cases: cases, Tests: len(cases),
		}
		total := 0.0
		for i := range cases {
			c := &cases[i]
			c.Class, c.Time = suite.Package, fmt.Sprintf("%.3f", c.seconds)
			total += c.seconds
			switch {
			case c.Failure != nil:
				suite.Failures++
			case c.Error != nil:
				suite.Errors++
			case c.Skipped != nil:
				suite.Skipped++
			}
		}
		suite.Time = fmt.Sprintf("%.3f", total)
		doc.Suites = append(doc.Suites, suite)
	}
	explained := s.Error == ""
	for _, b := range s.Builds {
		explained = explained || b.Outcome == event.Failed
		add(b.Image+" "+b.Build.Build, "rebake."+b.Image+"."+b.Build.Build, b.cases(),
			xmlProperty{"image", legal(b.name())}, xmlProperty{"digest", legal(b.Digest)}, xmlProperty{"outcome", legal(b.Outcome)})
	}
	if d := s.Deployment; d != nil {
		cases := d.cases()
		for _, c := range cases {
			explained = explained || c.Failure != nil || c.Error != nil
		}
		add("fleet "+d.Fleet, "rebake.fleet."+d.Fleet, cases, xmlProperty{"image", legal(d.Image)}, xmlProperty{"verdict", legal(d.Verdict)})
	}
	if !explained || len(doc.Suites) == 0 {
		one := xmlCase{Name: "run"}
		if s.Error != "" {
			one.Error = trouble(s.Outcome, s.Error)
		}
		add(title(s), "rebake", []xmlCase{one})
	}
	var out bytes.Buffer
	out.WriteString(xml.Header)
	enc := xml.NewEncoder(&out)
	enc.Indent("", "  ")
	if err := enc.Encode(doc); err != nil {
		return nil, err
	}
	out.WriteString("\n")
	return out.Bytes(), nil
}

// cases are the build and its tests.
func (b Build) cases() []xmlCase {
	is := xmlCase{Name: "build", seconds: b.Seconds}
	switch b.Outcome {
	case event.Failed:
		is.Error = trouble("build", b.Error)
	case event.Skipped:
		is.Skipped = &xmlSkipped{legal(b.Error)}
	case event.Unchanged:
		is.Skipped = &xmlSkipped{legal("nothing changed: " + strings.Join(b.Why, "; "))}
	}
	out := []xmlCase{is}
	for _, t := range b.Tests {
		one := xmlCase{Name: token(t.Test), seconds: t.Seconds}
		if !t.Passed {
			one.Failure = trouble("test", t.Message)
		}
		out = append(out, one)
	}
	return out
}

// cases are the deployment and its gates.
func (d Deployment) cases() []xmlCase {
	is := xmlCase{Name: "deployment", seconds: d.Moved}
	switch d.Verdict {
	case "promoted":
	case "unchanged", "paused":
		is.Skipped = &xmlSkipped{legal(d.Verdict)}
	default:
		is.Failure = trouble(d.Verdict, orElse(d.Reason, d.Verdict))
	}
	out := []xmlCase{is}
	for _, g := range d.Gates {
		one := xmlCase{Name: token("gate " + g.Gate + " " + g.At)}
		switch g.Verdict {
		case "fail":
			one.Failure = trouble("gate", g.Detail)
		case "error":
			one.Error = trouble("gate", g.Detail)
		case "inconclusive":
			one.Skipped = &xmlSkipped{legal("inconclusive: " + g.Detail)}
		}
		out = append(out, one)
	}
	return out
}

func trouble(kind, text string) *xmlTrouble {
	return &xmlTrouble{Message: legal(firstLine(text)), Type: legal(kind), Text: legal(text)}
}

// legal is text without what drives a terminal and what XML cannot hold; lines
// stay lines.
func legal(s string) string {
	all := strings.Split(s, "\n")
	for i, l := range all {
		all[i] = ui.Clean(l)
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == utf8.RuneError, r == 0xFFFE, r == 0xFFFF:
			return '?'
		case r >= 0x20 || r == '\n' || r == '\t':
			return r
		}
		return -1
	}, strings.Join(all, "\n"))
}

// token is a name of the schema: one line, without space around it or twice in it.
func token(s string) string {
	return strings.Join(strings.Fields(legal(strings.ReplaceAll(s, "\n", " "))), " ")
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
