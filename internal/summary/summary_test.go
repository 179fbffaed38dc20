package summary

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/inventory"
)

var update = flag.Bool("update", false, "write testdata anew")

// at is the time of everything here.
var at = time.Date(2026, 11, 28, 2, 30, 0, 0, time.UTC)

// hostile is what a guest could say to whoever reads a summary.
const hostile = "a | b `c` <script>alert(1)</script> [x](http://evil.example) | \x1b[31mred\x1b[0m\u202e @all\n# big\n1. no\n</pre>"

// night is a run in which all went well.
func night() Summary {
	digest := "sha256:" + strings.Repeat("ab", 32)
	until := at.Add(20 * time.Minute)
	return Summary{
		Version: Form, Rebake: "1.2.0", Command: "up", Templates: []string{"web.yaml"}, Host: "deploy1", Began: at, Seconds: 361.4, Outcome: "deployed", Changed: true,
		Builds: []Build{{
			Build: event.Build{Image: "web", Build: "qemu", Outcome: event.Baked, Version: "20261128.1", Digest: digest, From: "debian:bookworm",
				FromDigest: digest, Tags: []string{"latest", "nightly"}, Stored: 12 << 20, Seconds: 241.5,
				Why: []string{`"upgrade": its refresh command prints something else: Inst openssl [3.0.11] (3.0.15)`}, Log: "/var/lib/rebake/logs/web-01.log"},
			Steps: []event.Step{
				{Step: "install nginx", Outcome: event.Cached, Ran: at.Add(-72 * time.Hour)},
				{Step: "upgrade", Outcome: event.Ran, Seconds: 31.25, Why: "its refresh command prints something else: Inst openssl [3.0.11] (3.0.15)"},
			},
			Tests:  []event.Test{{Test: "service nginx", Passed: true, Seconds: 0.2}, {Test: "http 80 /", Passed: true, Seconds: 1.5}},
			Before: "web:20261127.1",
			Packages: &inventory.Summary{Text: "packages: 2 up, 1 added", Counts: map[string]map[string]int{"packages": {"up": 2, "added": 1}}, Packages: []inventory.Change{
				{Name: "libssl3", What: "up", From: "3.0.11-1~deb12u2", To: "3.0.15-1~deb12u1"}, {Name: "openssl", What: "up", From: "3.0.11-1~deb12u2", To: "3.0.15-1~deb12u1"}, {Name: "tzdata", What: "added", To: "2026a"}}},
		}},
		Deployment: &Deployment{Fleet: "web", ID: "01K3QF4S8H2Z5V7X9B1C3D5E7G", Image: "web:20261128.1", Digest: digest, Before: "web:20261127.1", Serving: "web:20261128.1",
			Verdict: "promoted", Instances: 3, Moved: 20.5, Writes: 3, Idle: 21, Answers: &Answers{1234, 0}, KeptUntil: &until,
			Gates: []Gate{{"error_rate", "at 10 %", "pass", "0 of 240 answers were 5xx (0 % ≤ 1 %)"}}},
		Pruned: []Pruned{{"web:20261101.1", "older than max_age 14d"}},
	}
}

// refused is a run whose image was not good, with a guest that means ill.
func refused() Summary {
	return Summary{
		Version: Form, Rebake: "1.2.0", Command: "up", Templates: []string{"a|b.yaml"}, Host: "deploy1", Began: at, Seconds: 95, Outcome: "rolled back", Changed: true, Exit: 3,
		Error: "deployment was rolled back: " + hostile,
		Builds: []Build{
			{Build: event.Build{Image: "web", Build: "qemu", Outcome: event.Failed, Seconds: 12, Error: "the sealed image failed its tests; nothing was stored:\n  answers: " + hostile},
				Steps: []event.Step{{Step: hostile, Outcome: event.Failed, Seconds: 1, Error: hostile}},
				Tests: []event.Test{{Test: hostile, Seconds: 0.5, Message: hostile + "\x00\ufffe\xff"}}},
			{Build: event.Build{Image: "db", Build: "qemu", Outcome: event.Skipped, Error: "its base web failed"}, Steps: []event.Step{}, Tests: []event.Test{}},
			{Build: event.Build{Image: "cache", Build: "qemu", Outcome: event.Unchanged, Version: "1.0.0", Why: []string{"looked at the base"}}, Steps: []event.Step{}, Tests: []event.Test{}},
		},
		Deployment: &Deployment{Fleet: "web", ID: "01", Image: "web:2", Digest: "sha256:00", Before: "web:1", Serving: "web:1", Verdict: "rolled back", Reason: hostile, Instances: 2, Cut: 1,
			Gates: []Gate{{"http", "before traffic", "pass", ""}, {"latency", "at 50 %", "inconclusive", "3 of 20 answers"}, {"smoke", "at 50 %", "fail", hostile}, {"canary", "at 50 %", "error", hostile}}},
		Warnings: []string{hostile, "1. " + hostile},
	}
}

func runs() map[string]Summary {
	return map[string]Summary{
		"night": night(), "refused": refused(),
		"healed": {Version: Form, Rebake: "1.2.0", Command: "up", Templates: []string{"web.yaml"}, Host: "deploy1", Began: at, Seconds: 4, Outcome: "healed", Changed: true, Healed: []string{"web-blue-1", "web-blue-3"},
			Builds:     []Build{{Build: event.Build{Image: "web", Build: "qemu", Outcome: event.Unchanged, Version: "20261127.1", Why: []string{"looked at the base debian:bookworm, 4 steps with 3 local files, the seal and 6 tests"}}}},
			Deployment: &Deployment{Fleet: "web", ID: "01", Image: "web:20261127.1", Digest: "sha256:00", Serving: "web:20261127.1", Verdict: "unchanged", Instances: 3}},
		"invalid": {Version: Form, Command: "build", Templates: []string{"web.yaml"}, Began: at, Outcome: "failed", Exit: 2, Error: "web.yaml:3:1: unknown key \"provison\""},
	}
}

func TestWhatIsWritten(t *testing.T) {
	for name, s := range runs() {
		forms := map[string][]byte{"txt": []byte(Text(s)), "md": []byte(Markdown(s))}
		var err error
		if forms["json"], err = JSON(s); err != nil {
			t.Fatal(err)
		}
		if forms["xml"], err = JUnit(s); err != nil {
			t.Fatal(err)
		}
		for ext, got := range forms {
			path := filepath.Join("testdata", name+"."+ext)
			if *update {
				if err := os.WriteFile(path, got, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Errorf("%s (-update writes it anew): %s", path, d)
			}
		}
	}
}

func TestJSONIsReadBackAsItWas(t *testing.T) {
	text, err := JSON(night())
	if err != nil {
		t.Fatal(err)
	}
	var got Summary
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(night(), got); d != "" {
		t.Error(d)
	}
}

func TestTheCollectorKeepsTheLastOfEach(t *testing.T) {
	var c Collector
	tell := func(r event.Report) { c.Sink(event.Event{Kind: event.Reported, Report: &r}) }
	tell(event.Report{Step: &event.Step{Image: "web", Build: "qemu", Step: "a", Outcome: event.Cached}})
	tell(event.Report{Step: &event.Step{Image: "web", Build: "qemu", Step: "b", Outcome: event.Failed}})
	tell(event.Report{Step: &event.Step{Image: "web", Build: "qemu", Step: "b", Outcome: event.Ran, Seconds: 2}}) // tried again
	tell(event.Report{Test: &event.Test{Image: "web", Build: "qemu", Test: "t"}})
	tell(event.Report{Step: &event.Step{Image: "base", Build: "qemu", Step: "a", Outcome: event.Ran}})
	for range 2 {
		c.Sink(event.Event{Kind: event.Warning, Text: "twice"})
	}
	c.Sink(event.Event{Kind: event.Output, Text: "not kept"})
	if s := c.Summary(); s.Builds[1].Outcome != event.Failed {
		t.Errorf("a build of which no end was told: %+v", s.Builds[1])
	}
	tell(event.Report{Build: &event.Build{Image: "web", Build: "qemu", Outcome: event.Baked}})
	s := c.Summary()
	if len(s.Builds) != 2 || s.Builds[0].Image != "base" || len(s.Warnings) != 1 {
		t.Fatalf("%+v", s)
	}
	web := s.Builds[1]
	want := []event.Step{{Step: "a", Outcome: event.Cached}, {Step: "b", Outcome: event.Ran, Seconds: 2}}
	if web.Outcome != event.Baked || cmp.Diff(want, web.Steps) != "" || len(web.Tests) != 1 {
		t.Errorf("%+v", web)
	}
}

func TestTheCollectorIsUsedByManyAtOnce(t *testing.T) {
	var c Collector
	var all sync.WaitGroup
	for _, name := range []string{"a", "b", "c", "d"} {
		all.Go(func() {
			for range 100 {
				c.Sink(event.Event{Report: &event.Report{Step: &event.Step{Image: name, Step: "s"}}})
				_ = c.Summary()
			}
		})
	}
	all.Wait()
	if s := c.Summary(); len(s.Builds) != 4 {
		t.Errorf("%+v", s.Builds)
	}
}

// Every text goes through Map, so that no field that is added is told with its secrets.
func TestMapReachesEveryText(t *testing.T) {
	for name, s := range runs() {
		before := texts(reflect.ValueOf(s))
		Map(&s, func(string) string { return "‹›" })
		raw, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range before {
			if len(text) > 3 && strings.Contains(string(raw), `:"`+text+`"`) {
				t.Errorf("%s: %q was not reached", name, text)
			}
		}
	}
}

// texts are all strings of a value that marshal as one.
func texts(v reflect.Value) (out []string) {
	switch v.Kind() {
	case reflect.String:
		return []string{v.String()}
	case reflect.Pointer:
		if !v.IsNil() {
			return texts(v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			out = append(out, texts(v.Index(i))...)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return nil
		}
		for i := range v.NumField() {
			out = append(out, texts(v.Field(i))...)
		}
	}
	return out
}
