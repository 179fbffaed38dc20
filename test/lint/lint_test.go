package lint

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

const (
	module = "github.com/rebake/rebake/"
	root   = "../.."
	linter = root + "/.cache/bin/golangci-lint"
)

// imports break the rule of depguard that is named, one by one.
var imports = []struct{ rule, layer, pkg, reason string }{
	{"cmd", "builder/qemu", module + "cmd/words", "nothing imports it"},
	{"pipeline", "provisioner", module + "internal/pipeline", "imports run one way"},
	{"pipeline", "fleet/haproxy", module + "internal/pipeline", "imports run one way"},
	{"pipeline", "internal/ssh", module + "internal/pipeline", "imports run one way"},
	{"builder", "builder", module + "fleet", "never import each other"},
	{"builder", "builder/qemu", module + "provisioner", "builders return an Endpoint"},
	{"provisioner", "provisioner/shell", module + "fleet/haproxy", "never import each other"},
	{"provisioner", "provisioner/shell", module + "builder", "a provisioner gets a Guest and nothing else"},
	{"fleet", "fleet", module + "builder/qemu", "never import each other"},
	{"fleet", "fleet/haproxy", module + "provisioner", "never import each other"},
	{"artifact", "artifact", module + "builder", "artifact is the bottom"},
	{"artifact", "artifact/oci", module + "provisioner", "artifact is the bottom"},
	{"artifact", "artifact/oci", module + "fleet", "artifact is the bottom"},
	{"artifact", "artifact", module + "internal/ssh", "artifact is the bottom"},
	{"terminal", "cmd/rebake", "golang.org/x/term", "only internal/ui draws on a terminal"},
	{"terminal", "internal/ssh", "golang.org/x/term", "only internal/ui draws on a terminal"},
	{"sdk", "builder/qemu", "github.com/hashicorp/packer-plugin-sdk/packer", "drag in up to 117 modules"},
	{"cloud", "fleet", "github.com/aws/aws-sdk-go-v2/ec2", "only artifact/ami, builder/amazon"},
	{"tests", "internal/pipeline", module + "test/fake", "are for tests"},
	{"tests", "cmd/rebake", module + "test/fake", "are for tests"},
}

// calls break the pattern of forbidigo that is named.
var calls = []struct{ pattern, layer, call, reason string }{
	{`^fmt\.Print.*$`, "builder/qemu", `fmt.Println("x")`, "work tells through internal/event"},
	{`^fmt\.Print.*$`, "cmd/rebake", `fmt.Printf("x")`, "work tells through internal/event"},
	{`^fmt\.Print.*$`, "internal/ui", `fmt.Print("x")`, "work tells through internal/event"},
	{`^os\.Exit$`, "internal/pipeline", `os.Exit(1)`, "only cmd/rebake/main.go decides the exit status"},
	{`^os\.Exit$`, "cmd/rebake", `os.Exit(1)`, "only cmd/rebake/main.go decides the exit status"},
	{`^log\.(Print|Fatal|Panic).*$`, "fleet", `log.Fatalf("x")`, "use internal/event"},
	{`^log\.(Print|Fatal|Panic).*$`, "cmd/rebake", `log.Println("x")`, "use internal/event"},
}

// allowed is what the rules let pass.
var allowed = map[string]string{
	"builder/qemu/fine_test.go":  "package qemu\n\nimport (\n\t_ \"" + module + "fleet\"\n\t_ \"" + module + "test/fake\"\n)\n",
	"builder/qemu/fine.go":       "package qemu\n\nimport _ \"" + module + "internal/ssh\"\n",
	"internal/ui/fine.go":        "package ui\n\nimport _ \"golang.org/x/term\"\n",
	"internal/ssh/fine.go":       "package ssh\n\nimport _ \"github.com/hashicorp/packer-plugin-sdk/packer\"\n",
	"internal/pipeline/fine.go":  "package pipeline\n\nimport (\n\t_ \"" + module + "builder\"\n\t_ \"" + module + "fleet\"\n\t_ \"" + module + "provisioner\"\n)\n",
	"cmd/rebake/fine.go":         "package main\n\nimport _ \"" + module + "internal/pipeline\"\n",
	"cmd/rebake/ssh.go":          "package main\n\nimport _ \"golang.org/x/term\"\n",
	"cmd/rebake/main.go":         "package main\n\nimport \"os\"\n\nfunc main() { os.Exit(0) }\n",
	"test/demo/main.go":          "package main\n\nimport (\n\t\"fmt\"\n\t\"os\"\n\n\t_ \"" + module + "test/fake\"\n)\n\nfunc main() { fmt.Println(\"x\"); os.Exit(0) }\n",
	"test/fake/fake.go":          "package fake\n",
	"cmd/words/words.go":         "package words\n",
	"builder/builder.go":         "package builder\n",
	"provisioner/provisioner.go": "package provisioner\n",
	"provisioner/shell/shell.go": "package shell\n",
	"fleet/fleet.go":             "package fleet\n",
	"fleet/haproxy/haproxy.go":   "package haproxy\n",
	"artifact/artifact.go":       "package artifact\n",
	"artifact/oci/oci.go":        "package oci\n",
	"stub/term/term.go":          "package term\n",
	"stub/term/go.mod":           "module golang.org/x/term\n",
	"stub/sdk/packer/packer.go":  "package packer\n",
	"stub/sdk/go.mod":            "module github.com/hashicorp/packer-plugin-sdk\n",
	"stub/aws/ec2/ec2.go":        "package ec2\n",
	"stub/aws/go.mod":            "module github.com/aws/aws-sdk-go-v2\n",
	"go.mod":                     goMod,
}

const goMod = `module github.com/rebake/rebake

go 1.26

require (
	github.com/aws/aws-sdk-go-v2 v1.0.0
	github.com/hashicorp/packer-plugin-sdk v0.6.10
	golang.org/x/term v0.1.0
)

replace (
	github.com/aws/aws-sdk-go-v2 => ./stub/aws
	github.com/hashicorp/packer-plugin-sdk => ./stub/sdk
	golang.org/x/term => ./stub/term
)
`

// issue is what golangci-lint reports.
type issue struct {
	FromLinter, Text string
	Pos              struct{ Filename string }
}

func TestEachLayerRuleCatchesItsViolationAndNothingElse(t *testing.T) {
	// A checkout may lie anywhere: folders above it are not layers.
	dir := filepath.Join(t.TempDir(), "test", "internal", "ui", "builder", "fleet", "artifact", "provisioner")
	files := maps.Clone(allowed)
	var want []string
	for i, v := range imports {
		name := fmt.Sprintf("%s/bad/import%d/import%d.go", v.layer, i, i) // a package each: no import cycles
		files[name] = fmt.Sprintf("package bad\n\nimport _ %q\n", v.pkg)
		want = append(want, fmt.Sprintf("%s depguard list %s", name, v.rule))
	}
	for i, v := range calls {
		name := fmt.Sprintf("%s/bad/call%d/call%d.go", v.layer, i, i)
		pkg, _, _ := strings.Cut(v.call, ".")
		files[name] = fmt.Sprintf("package bad\n\nimport %q\n\nfunc Call() { %s }\n", pkg, v.call)
		want = append(want, fmt.Sprintf("%s forbidigo", name))
	}
	config, err := os.ReadFile(root + "/.golangci.yml")
	if err != nil {
		t.Fatal(err)
	}
	files[".golangci.yml"] = string(config)
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	list := regexp.MustCompile(`from list '(.*?)': (.*)`)
	var got []string
	for _, i := range lint(t, dir) {
		name := filepath.ToSlash(i.Pos.Filename)
		what := name + " " + i.FromLinter
		if m := list.FindStringSubmatch(i.Text); m != nil {
			what += " list " + m[1]
		}
		got = append(got, what)
		if reason := reasonFor(name); reason == "" || !strings.Contains(i.Text, reason) {
			t.Errorf("%s: the reason %q is not in: %s", name, reason, i.Text)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("wanted (-), reported (+):\n%s", d)
	}
}

func reasonFor(name string) string {
	base := filepath.Base(name)
	var i int
	if _, err := fmt.Sscanf(base, "import%d.go", &i); err == nil {
		return imports[i].reason
	}
	if _, err := fmt.Sscanf(base, "call%d.go", &i); err == nil {
		return calls[i].reason
	}
	return ""
}

// lint runs golangci-lint with the rules alone, on a module in dir.
func lint(t *testing.T, dir string) []issue {
	t.Helper()
	bin, err := filepath.Abs(linter)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("%v: run `make lint`, which builds it", err)
	}
	cmd := exec.Command(bin, "run", "--enable-only", "depguard,forbidigo", "--max-issues-per-linter", "0", "--max-same-issues", "0",
		"--allow-parallel-runners", "--show-stats=false", "--output.json.path", "stdout", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOWORK=off", "GOLANGCI_LINT_CACHE="+t.TempDir())
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	var report struct {
		Issues []issue
		Report struct{ Error string }
	}
	line, _, _ := strings.Cut(string(out), "\n")
	if err := json.Unmarshal([]byte(line), &report); err != nil || report.Report.Error != "" {
		t.Fatalf("%v %s\n%s\n%s", err, report.Report.Error, out, stderr.String())
	}
	return report.Issues
}

// TestNoRuleIsUntested holds the tables of this file against the rules.
func TestNoRuleIsUntested(t *testing.T) {
	raw, err := os.ReadFile(root + "/.golangci.yml")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Linters struct {
			Enable   []string
			Settings struct {
				Forbidigo struct {
					Forbid []struct{ Pattern, Msg string }
				}
				Depguard struct {
					Rules map[string]struct {
						Deny []struct{ Pkg, Desc string }
					}
				}
			}
		}
	}
	if err := yaml.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"depguard", "forbidigo"} {
		if !slices.Contains(config.Linters.Enable, name) {
			t.Errorf("%s is not enabled", name)
		}
	}
	var rules, tested []string
	for name, r := range config.Linters.Settings.Depguard.Rules {
		for _, d := range r.Deny {
			rules = append(rules, name+": "+d.Pkg)
			if len(d.Desc) < 20 {
				t.Errorf("rule %s says of %s no reason", name, d.Pkg)
			}
			for _, v := range imports {
				if v.rule == name && strings.HasPrefix(v.pkg+"/", d.Pkg+"/") {
					tested = append(tested, name+": "+d.Pkg)
				}
			}
		}
	}
	for _, p := range config.Linters.Settings.Forbidigo.Forbid {
		rules = append(rules, p.Pattern)
		if p.Msg == "" {
			t.Errorf("pattern %s says no reason", p.Pattern)
		}
	}
	for _, v := range calls {
		tested = append(tested, v.pattern)
	}
	slices.Sort(rules)
	slices.Sort(tested)
	if d := cmp.Diff(rules, slices.Compact(tested)); d != "" {
		t.Errorf("rules (-), tested (+):\n%s", d)
	}
}
