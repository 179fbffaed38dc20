package template

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var fixed = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// loadText loads a text as t.yaml of an empty directory.
func loadText(t testing.TB, text string, o Options) (*Template, error) {
	t.Helper()
	o.Kinds = testKinds()
	if o.Now.IsZero() {
		o.Now = fixed
	}
	s, err := newSource("t.yaml", []byte(text))
	if err != nil {
		return nil, err
	}
	return load(s, t.TempDir(), o)
}

func mustLoad(t testing.TB, text string, o Options) *Template {
	t.Helper()
	tpl, err := loadText(t, text, o)
	if err != nil {
		t.Fatalf("%v\nof\n%s", err, text)
	}
	return tpl
}

func shipped(t testing.TB) []string {
	files, err := filepath.Glob("../../templates/*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d templates, %v", len(files), err)
	}
	return files
}

func TestShippedTemplatesLoadFast(t *testing.T) {
	o := Options{Kinds: testKinds(), Vars: nil}
	for _, f := range shipped(t) {
		o.Vars = nil
		if strings.HasSuffix(f, "from-url.yaml") {
			o.Vars = []string{"url=file:base.qcow2", "checksum=sha256:" + strings.Repeat("0", 64)}
		}
		best := time.Hour
		for range 5 {
			start := time.Now()
			if _, err := Load(f, o); err != nil {
				t.Fatal(err)
			}
			best = min(best, time.Since(start))
		}
		if best > slower*10*time.Millisecond {
			t.Errorf("%s took %s", f, best)
		}
	}
}

func TestMinimalTemplateIsShort(t *testing.T) {
	b, err := os.ReadFile("../../templates/minimal.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), "\n"); n > 25 {
		t.Errorf("%d lines", n)
	}
}

// valid are templates that use less usual forms.
var valid = map[string]string{
	"shorthands": partHead + `
provision:
  - shell: echo hello
  - shell: [echo hello, echo world]
test:
  - service: nginx
  - package: nginx-light
fleet:
  pool: qemu
  router: {haproxy: {listen: "a:1"}}
  health: {tcp: 22}
`,
	"expressions of every type": `
name: a
variables: {n: 2, yes: true, list: {default: [a, b]}, d: 5m}
build:
  qemu:
    from: {debian: bookworm}
    cpus: ${{ var.n + 1 }}
    disk: ${{ var.n }}G
    shutdown_timeout: ${{ var.d }}
provision:
  - shell: {inline: "${{ var.list }}", sudo: "${{ var.yes }}", env: {N: "${{ var.n }}"}}
`,
	"anchors": `
name: a
build:
  qemu: &base {from: {debian: bookworm}, memory: 1G}
  other: {kind: qemu, from: {debian: &suite trixie}}
  third: {kind: qemu, from: {debian: *suite}}
`,
	"variables of all forms": partHead + `
variables:
  a: text
  b: 3
  c: [x, y]
  d: {type: bool, default: false}
  e: {type: number, default: 1.5, allowed: [1.5, 2]}
`,
	"an empty pool": partHead + `
fleet:
  pool: {qemu: }
  router: {haproxy: {listen: "a:1"}}
  health: {http: {port: 80}}
`,
}

func TestValidForms(t *testing.T) {
	for name, text := range valid {
		t.Run(name, func(t *testing.T) { mustLoad(t, text, Options{}) })
	}
}

func TestStepCache(t *testing.T) {
	const head = "name: a\nbuild: {qemu: {from: {debian: bookworm}}}\n"
	tpl := mustLoad(t, head+`provision:
  - shell: {inline: [a], cache: false}
  - shell: {inline: [a], cache: {max_age: 0s, refresh: "date +%F"}, inputs: ["*.conf", dir/]}
  - file: {content: x, destination: /x}
`, Options{})
	if c := tpl.Steps[0].Cache; !c.Never {
		t.Errorf("cache: false is %+v", c)
	}
	c := tpl.Steps[1].Cache
	if c.Never || c.MaxAge == nil || *c.MaxAge != 0 || c.Refresh != "date +%F" || len(tpl.Steps[1].Inputs) != 2 {
		t.Errorf("got %+v %q", c, tpl.Steps[1].Inputs)
	}
	if c := tpl.Steps[2].Cache; c.Never || c.MaxAge != nil || c.Refresh != "" {
		t.Errorf("no cache: is %+v", c)
	}
	for text, want := range map[string]string{
		"provision: [{shell: {inline: [a], cache: {use: false, max_age: 1h}}}]": "never cached",
		"test: [{service: {name: nginx, cache: false}}]":                        "a check always runs",
		"test: [{service: {name: nginx, inputs: [a]}}]":                         "a check always runs",
		"provision: [{shell: {inline: [a], cache: {max_age: -1h}}}]":            "max_age",
		"provision: [{shell: {inline: [a], cache: {maxage: 1h}}}]":              "max_age",
	} {
		if _, err := loadText(t, head+text+"\n", Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

func TestLoadFillsTheTemplate(t *testing.T) {
	tpl := mustLoad(t, `
name: shop/web
version: "1.10"
labels: {team: shop}
tags: [nightly]
build:
  qemu: {from: {debian: bookworm}, disk: 2G}
  big: {kind: qemu, from: {debian: trixie}, cpus: 2}
provision:
  - shell: {inline: [a], name: first, only: [big], pause_before: 1s, timeout: 5m, max_retries: 2}
  - file: {content: x, destination: /x, except: [big]}
test:
  - service: {name: nginx}
  - http: {port: 80, within: 9s}
seal: {skip: [logs]}
fleet:
  size: 3
  pool: {qemu: {memory: 256M}}
  router: {haproxy: {listen: "127.0.0.1:1"}}
  health: {http: {port: 80}, within: 8m, commands: [true-ish]}
  deploy: {steps: [{weight: 5, hold: 1s}, {weight: 100}], keep_old: 0s}
`, Options{})
	type step struct {
		Name, Kind   string
		Only, Except []string
		Pause, Limit time.Duration
		Retries      int
	}
	flat := func(list []Step) (out []step) {
		for _, s := range list {
			out = append(out, step{s.Name, s.Kind, s.Only, s.Except, s.PauseBefore, s.Timeout, s.MaxRetries})
		}
		return out
	}
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"name", tpl.Name + " " + tpl.Version, "shop/web 1.10"},
		{"labels", tpl.Labels, map[string]string{"team": "shop"}},
		{"tags", tpl.Tags, []string{"nightly"}},
		{"seal", tpl.Seal.Skip, []string{"logs"}},
		{"steps", flat(tpl.Steps), []step{
			{"first", "shell", []string{"big"}, nil, time.Second, 5 * time.Minute, 2},
			{"file-2", "file", nil, []string{"big"}, 0, 0, 0}}},
		{"tests", flat(tpl.Tests), []step{{Name: "service nginx", Kind: "service"}, {Name: "http-2", Kind: "http"}}},
		{"fleet", tpl.Fleet.Name + " " + tpl.Fleet.PoolKind + " " + tpl.Fleet.RouterKind, "shop-web qemu haproxy"},
		{"health", tpl.Fleet.Health, Health{Type: "http", Port: 80, Path: "/", Status: 200, Interval: time.Second, Timeout: 3 * time.Second, Rise: 2, Fall: 3, Within: 8 * time.Minute, Commands: []string{"true-ish"}}},
		{"deploy", tpl.Fleet.Deploy, Deploy{Strategy: "blue-green", MinHealthy: 50, OnInconclusive: "fail", Steps: []Weight{{Percent: 5, Hold: time.Second}, {Percent: 100}}, KeepOld: 0, Drain: 30 * time.Second, OnFailure: "rollback"}},
	} {
		if d := cmp.Diff(c.want, c.got); d != "" {
			t.Errorf("%s: %s", c.what, d)
		}
	}
	if len(tpl.Builds) != 2 || tpl.Builds[1].Name != "big" || tpl.Builds[1].Kind != "qemu" {
		t.Errorf("builds: %+v", tpl.Builds)
	}
	var q qemuBuild
	if err := tpl.Builds[0].Block.Decode(&q); err != nil || q.Disk != 2<<30 || q.From.Debian != "bookworm" {
		t.Errorf("%+v, %v", q, err)
	}
	var sh shellStep
	if err := tpl.Steps[0].Block.Decode(&sh); err != nil || cmp.Diff(sh.Inline, []string{"a"}) != "" {
		t.Errorf("%+v, %v", sh, err)
	}
}

func TestErrorsSayWhereWhatAndWhatNext(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", "name: a\nbuild:\n  qemu:\n    from: {debian: x}\n    memry: 1G\n", `t.yaml:5:5: unknown key "memry" in "qemu"
    5 |     memry: 1G
      |     ^
  hint: did you mean "memory"?`},
		{"unknown key at the top", partHead + "provison: []\n", `t.yaml:3:1: unknown key "provison"
    3 | provison: []
      | ^
  hint: did you mean "provision"?`},
		{"shared option misspelt", partHead + "provision:\n  - shell: {inline: [a], timeot: 3s}\n", `did you mean "timeout"?`},
		{"wrong type", partHead + "provision:\n  - shell: {inline: [a], valid_exit_codes: [1, two]}\n", `t.yaml:4:48: "valid_exit_codes[1]" must be a whole number, not a text`},
		{"number for a text", "name: a\nversion: 1.10\nbuild: {qemu: {from: {debian: x}}}\n", `hint: write it in quotes: "1.10"`},
		{"list missing", partHead + "tags: nightly\n", `hint: write a list: [nightly]`},
		{"required key", partHead + "provision:\n  - file: {content: a}\n", `t.yaml:4:11: "file" needs key "destination"`},
		{"required key at the top", "name: a\n", `t.yaml:1:1: missing key "build"`},
		{"duration", partHead + "provision:\n  - shell: {inline: [a], timeout: 10}\n", `"timeout" must be a duration, not a number`},
		{"negative duration", partHead + "provision:\n  - shell: {inline: [a], timeout: -1s}\n", `timeout: "-1s" is not a duration such as`},
		{"size", "name: a\nbuild: {qemu: {from: {debian: x}, disk: 2 gigs}}\n", `disk: "2 gigs" is not a size such as 512M or 2G`},
		{"enum", partHead + "provision:\n  - file: {destination: /a, direction: uplod}\n", `did you mean "upload"?`},
		{"unknown builder", "name: a\nbuild: {qmu: {from: {debian: x}}}\n", `unknown builder "qmu"`},
		{"unknown kind:", "name: a\nbuild:\n  big:\n    kind: qmu\n    from: {}\n", `t.yaml:4:11: unknown builder "qmu"`},
		{"unknown provisioner", partHead + "provision:\n  - shel: {inline: [a]}\n", `t.yaml:4:5: unknown provisioner "shel"`},
		{"option beside the kind", partHead + "provision:\n  - shell: {inline: [a]}\n    timeout: 3s\n", `hint: write timeout inside the step`},
		{"step is a text", partHead + "provision: [shell]\n", `must be a mapping of its kind`},
		{"only an unknown build", partHead + "provision:\n  - shell: {inline: [a], only: [qem]}\n", `did you mean "qemu"?`},
		{"duplicate key", "name: a\nname: b\n", `t.yaml:2:1: key "name" is already set in line 1`},
		{"no value", "name:\nbuild: {qemu: {from: {debian: x}}}\n", `"name" has no value`},
		{"bad name", "name: Web\nbuild: {qemu: {from: {debian: x}}}\n", `t.yaml:1:7: "Web" cannot be a name`},
		{"bad tag", partHead + "tags: [ok, 'not ok']\n", `t.yaml:3:12: "not ok" cannot be a tag`},
		{"empty", "# nothing\n", "t.yaml: the template is empty"},
		{"a list", "- a\n", "a template must be a mapping, not a list"},
		{"two documents", partHead + "---\nname: b\n", "second YAML document"},
		{"tab", "name: a\nbuild:\n\tqemu: {}\n", "by spaces, not by tabs"},
		{"unquoted expression in flow", partHead + "labels: {a: ${{ now }}}\n", "t.yaml:3:1: it is not YAML"},
		{"merge key", "name: a\nbuild:\n  qemu: &b {from: {debian: x}}\n  two:\n    <<: *b\n    kind: qemu\n", "merge keys (<<) are not supported"},
		{"unknown anchor", partHead + "tags: *none\n", "t.yaml:3:7: alias *none has no anchor"},
		{"tag", "name: !!binary YQ==\n", "tag !!binary is not known"},
		{"weights fall", fleetHead + "  deploy: {steps: [{weight: 50}, {weight: 20}]}\n", "weights must rise"},
		{"surge of blue-green", fleetHead + "  deploy: {max_surge: 1}\n", "max_surge is for strategy: rolling"},
		{"rolling without room", fleetHead + "  deploy: {strategy: rolling, max_surge: 0}\n", "nothing could be replaced"},
		{"rolling below min_healthy", fleetHead + "  size: 2\n  deploy: {strategy: rolling, max_unavailable: 2}\n", "one of them must give way"},
		{"rolling in steps", fleetHead + "  deploy: {strategy: rolling, steps: [{weight: 10}, {weight: 100}]}\n", "one step of weight 100"},
		{"pause_for without pause", fleetHead + "  deploy: {steps: [{weight: 100, pause_for: 1h}]}\n", "add pause: true"},
		{"no gate", fleetHead + "  deploy: {gates: [{name: x}]}\n", "this one has 0 of them"},
		{"two gates in one", fleetHead + "  deploy: {gates: [{latency: {max: 1s}, error_rate: {max: 1%}}]}\n", "this one has 2 of them"},
		{"gates of one name", fleetHead + "  deploy: {gates: [{latency: {max: 1s}}, {latency: {max: 2s}}]}\n", "two gates are named \"latency\""},
		{"a share that is none", fleetHead + "  deploy: {gates: [{error_rate: {max: 0.01}}]}\n", "max"},
		{"test gate without tests", fleetHead + "  deploy: {gates: [{test: true}]}\n", "there is none"},
		{"canary without steps", fleetHead + "  deploy: {steps: [{weight: 100}], gates: [{canary: {metric: errors}}]}\n", "give steps one below 100"},
		{"canary of nothing", fleetHead + "  deploy: {gates: [{canary: {metric: cpu}}]}\n", "metric"},
		{"hook of both kinds", fleetHead + "  deploy: {hooks: [{url: \"http://x\", command: [x]}]}\n", "a command or a url"},
		{"freeze without an end", fleetHead + "  deploy: {freeze: [{from: \"10:00\"}]}\n", "needs key \"to\""},
		{"weights end early", fleetHead + "  deploy: {steps: [{weight: 50}]}\n", "last step must have weight 100, not 50"},
		{"two healths", partHead + "fleet:\n  pool: qemu\n  router: {haproxy: {listen: a}}\n  health: {tcp: 1, http: {port: 1}}\n", "not by both"},
		{"port", partHead + "fleet:\n  pool: qemu\n  router: {haproxy: {listen: a}}\n  health:\n    http:\n      port: 70000\n", "t.yaml:8:7: port must be between"},
		{"no router", partHead + "fleet:\n  pool: qemu\n  health: {tcp: 1}\n", "needs key \"router\""},
		{"a router in a refresh", fleetHead + "  deploy: {strategy: refresh}\n", "leave router out"},
		{"parts of a rolling one in a refresh", partHead + "fleet:\n  pool: qemu\n  health: {tcp: 1}\n  deploy: {strategy: refresh, max_unavailable: 1}\n", "max_unavailable is for strategy: rolling"},
		{"zero size", fleetHead + "  size: 0\n", "size must be between"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := loadText(t, c.text, Options{})
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v", err)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got\n%s\nwant\n%s", err, c.want)
			}
		})
	}
}

const fleetHead = partHead + "fleet:\n  pool: qemu\n  router: {haproxy: {listen: a}}\n  health: {tcp: 1}\n"

// A refresh has no router, and its bounds are shares of whatever size the group has.
func TestARefreshHasBoundsOfItsOwn(t *testing.T) {
	const head = partHead + "fleet:\n  pool: qemu\n  health: {tcp: 1}\n  size: 4\n  deploy: {strategy: refresh"
	for more, want := range map[string]int{"": 10, ", max_surge: 1": 25, ", max_surge: 40%": 40} {
		tpl, err := loadText(t, head+more+"}\n", Options{})
		if err != nil {
			t.Fatal(err)
		}
		d := tpl.Fleet.Deploy
		if d.MaxSurge != want || d.MinHealthy != 100 || len(d.Steps) != 1 || tpl.Fleet.RouterKind != "" {
			t.Errorf("%q: %+v, router %q", more, d, tpl.Fleet.RouterKind)
		}
	}
}

func TestMissingFile(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "no.yaml"), Options{})
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "no.yaml: cannot read it: no such file") {
		t.Errorf("got %v", err)
	}
	if _, err := Load(t.TempDir(), Options{}); !errors.As(err, &e) {
		t.Errorf("got %v", err)
	}
}

func TestApplies(t *testing.T) {
	for _, c := range []struct {
		name         string
		only, except []string
		want         bool
	}{{"neither", nil, nil, true}, {"only it", []string{"a"}, nil, true}, {"only another", []string{"b"}, nil, false},
		{"except it", nil, []string{"a"}, false}, {"both", []string{"a"}, []string{"a"}, false}} {
		if got := (Step{Only: c.only, Except: c.except}).Applies("a"); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
