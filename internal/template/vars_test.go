package template

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// showing is a template whose label "out" is an expression.
func showing(expr, vars string) string {
	return partHead + "labels: {out: '${{ " + strings.ReplaceAll(expr, "'", "''") + " }}'}\n" + vars
}

func varFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vars.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLaterSourcesOfAVariableWin(t *testing.T) {
	text := showing("var.a", "variables: {a: default}\n")
	o := Options{}
	steps := []struct {
		want string
		add  func()
	}{
		{"default", func() {}},
		{"environ", func() { o.Environ = []string{"REBAKE_VAR_a=environ", "REBAKE_VAR_other=x"} }},
		{"file", func() { o.VarFiles = []string{varFile(t, "a: file\n")} }},
		{"file 2", func() { o.VarFiles = append(o.VarFiles, varFile(t, `{"a": "file 2"}`)) }},
		{"x=1,2", func() { o.Vars = []string{"a=x=1,2"} }},
		{"last", func() { o.Vars = append(o.Vars, "a=last") }},
	}
	for _, s := range steps {
		s.add()
		if got := mustLoad(t, text, o).Labels["out"]; got != s.want {
			t.Errorf("got %q, want %q", got, s.want)
		}
	}
}

func TestExpressions(t *testing.T) {
	vars := "env: [SET, UNSET]\nvariables: {n: 2, f: 1.5, yes: true, l: {default: [a, b]}, s: x, twice: '${{ var.s }}${{ var.s }}', deep: '${{ var.twice }}!'}\n"
	o := Options{Environ: []string{"SET=value", "SECRET=no"}}
	for expr, want := range map[string]string{
		"var.n + 1": "3", "var.f": "1.5", "var.yes": "true", "var.yes ? 'a' : 'b'": "a",
		"join(var.l, '-')": "a-b", "var.twice": "xx", "var.deep": "xx!", "env.SET": "value",
		"env.UNSET ?? 'none'": "none", "name": "example", "now.Format('20060102')": "20260304",
		"now": "2026-03-04T05:06:07Z", "{'a': {'b': 'c'}}.a.b": "c", `"}}"`: "}}",
	} {
		if got := mustLoad(t, showing(expr, vars), o).Labels["out"]; got != want {
			t.Errorf("%s: got %q, want %q", expr, got, want)
		}
	}
	tpl := mustLoad(t, partHead+"variables: {v: x}\nlabels: {a: 'b ${{ var.v }} c', b: '$${{ var.v }} ${{ var.v }}', c: '${HOME} $v'}\n", Options{})
	if d := cmp.Diff(map[string]string{"a": "b x c", "b": "${{ var.v }} x", "c": "${HOME} $v"}, tpl.Labels); d != "" {
		t.Error(d)
	}
}

func TestErrorsOfVariablesAndExpressions(t *testing.T) {
	vars := "env: [UNSET]\nvariables: {release: dev, count: 3}\n"
	for _, c := range []struct {
		name, text string
		o          Options
		want       string
	}{
		{"undeclared --var", showing("1", vars), Options{Vars: []string{"relaese=1"}}, `did you mean "release"?`},
		{"undeclared in a file", showing("1", vars), Options{VarFiles: []string{varFile(t, "relaese: x\n")}}, `:1:1: variable "relaese" is not declared`},
		{"--var without value", showing("1", vars), Options{Vars: []string{"release"}}, "write --var NAME=VALUE"},
		{"no value", showing("1", "variables:\n  key: {description: the key}\n"), Options{}, `t.yaml:5:3: variable "key" (the key) has no value`},
		{"no value, hint", showing("1", "variables: {key: }\n"), Options{}, "--var key=VALUE"},
		{"wrong type", showing("1", vars), Options{Vars: []string{"count=many"}}, `--var: variable "count" is a number, and the value is not`},
		{"wrong type in a file", showing("1", vars), Options{VarFiles: []string{varFile(t, "release: 1.10\n")}}, "write it in quotes"},
		{"default of the wrong type", showing("1", "variables: {a: {type: bool, default: 'yes'}}\n"), Options{}, `variable "a" must be a bool`},
		{"not allowed", showing("1", "variables: {a: {default: x, allowed: [x, y]}}\n"), Options{Vars: []string{"a=z"}}, `may not be "z"; allowed: x, y`},
		{"pattern holds the whole", showing("1", "variables: {a: {default: '12', pattern: '[0-9]+'}}\n"), Options{Vars: []string{"a=12x"}}, "does not match pattern"},
		{"bad pattern", showing("1", "variables: {a: {default: x, pattern: '('}}\n"), Options{}, "not a regular expression"},
		{"cycle", showing("1", "variables: {a: '${{ var.b }}', b: '${{ var.c }}', c: '${{ var.a }}'}\n"), Options{}, "circle: a → b → c → a"},
		{"self", showing("1", "variables: {a: '${{ var.a }}'}\n"), Options{}, "circle: a → a"},
		{"undeclared variable", showing("var.relase", vars), Options{}, `t.yaml:3:20: ${{ var.relase }}: variable "relase" is not declared`},
		{"undeclared environment", showing("env.HOME", vars), Options{Environ: []string{"HOME=/"}}, "env: [HOME]"},
		{"unset environment", showing("env.UNSET", vars), Options{}, "environment variable UNSET is not set"},
		{"unknown name", showing("foo", vars), Options{}, "unknown name foo"},
		{"syntax", showing("1 +", vars), Options{}, "unexpected token"},
		{"no end", partHead + "labels: {a: '${{ 1 '}\n", Options{}, "has no end"},
		{"all variables at once", showing("toJSON(var)", vars), Options{}, "write var.NAME"},
		{"all by $env", showing("toJSON($env)", vars), Options{}, "$env is not available"},
		{"nested loops", showing("all(1..9, all(1..9, true))", vars), Options{}, "only one of map"},
		{"a huge range", showing("len(1..100000000)", vars), Options{}, "memory budget"},
		{"a field of git", showing("git.comit", vars), Options{}, `did you mean "commit"?`},
		{"no repository", showing("git.commit", vars), Options{}, "not in a git repository"},
		{"key", partHead + "labels: {'${{ 1 }}': a}\n", Options{}, "an expression cannot be a key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := loadText(t, c.text, c.o)
			var e *Error
			if !errors.As(err, &e) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got\n%v\nwant\n%s", err, c.want)
			}
		})
	}
}

func TestGitIsReadFromTheTemplatesDirectory(t *testing.T) {
	dir := t.TempDir()
	git := func(args ...string) string {
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.org"}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	path := filepath.Join(dir, "a.yaml")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text := partHead + "labels: {c: '${{ git.commit }}', t: '${{ git.tag }}', d: '${{ git.dirty }}'}\n"
	write(text)
	git("init", "-q")
	git("add", ".")
	git("commit", "-q", "-m", "x")
	git("tag", "v1")
	commit := git("rev-parse", "HEAD")
	for _, want := range []map[string]string{{"c": commit, "t": "v1", "d": "false"}, {"c": commit, "t": "v1", "d": "true"}} {
		tpl, err := Load(path, Options{Kinds: testKinds()})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, tpl.Labels); d != "" {
			t.Error(d)
		}
		write(text + "# changed\n")
	}
}

const secret = "hunter2hunter2"

func TestSensitiveValuesAreRefusedWhereTheyWouldShow(t *testing.T) {
	vars := "variables:\n  token: {sensitive: true}\n  derived: 'Bearer ${{ var.token }}'\n"
	for name, text := range map[string]string{
		"name":        "name: '${{ var.token }}'\nbuild: {qemu: {from: {debian: x}}}\n",
		"version":     partHead + "version: '${{ var.token }}'\n",
		"tag":         partHead + "tags: ['a${{ var.token }}']\n",
		"label":       partHead + "labels: {a: '${{ var.token }}'}\n",
		"derived":     partHead + "labels: {a: '${{ var.derived }}'}\n",
		"a part":      partHead + "labels: {a: '${{ upper(var.token)[:3] }}'}\n",
		"a test of":   partHead + "labels: {a: \"${{ var.token == 'a' }}\"}\n",
		"inline":      partHead + "provision: [{shell: {inline: ['echo ${{ var.token }}']}}]\n",
		"step name":   partHead + "provision: [{shell: {inline: [a], name: '${{ var.token }}'}}]\n",
		"destination": partHead + "provision: [{file: {content: a, destination: '/${{ var.token }}'}}]\n",
		"whole list":  partHead + "provision: [{shell: {inline: '${{ [var.token] }}'}}]\n",
		"check":       partHead + "test: [{http: {port: 80, contains: '${{ var.token }}'}}]\n",
		"service":     partHead + "test: [{service: {name: '${{ var.token }}'}}]\n",
		"user data":   fleetHead + "  user_data: '${{ var.token }}'\n",
		"fleet name":  fleetHead + "  name: '${{ var.token }}'\n",
		"pool":        partHead + "fleet: {pool: '${{ var.token }}', router: {haproxy: {listen: a}}, health: {tcp: 1}}\n",
		"build kind":  "name: a\nbuild: {qemu: {kind: '${{ var.token }}', from: {debian: x}}}\n",
		"seal":        partHead + "seal: {skip: ['${{ var.token }}']}\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := loadText(t, text+vars, Options{Vars: []string{"token=" + secret}})
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(strings.ToLower(err.Error()), secret[:5]) {
				t.Errorf("the value is in the message: %v", err)
			}
		})
	}
}

func TestSensitiveValuesReachSecretFieldsAndTheRedactor(t *testing.T) {
	text := partHead + `
variables:
  token: {sensitive: true}
  pin: {sensitive: true, type: number, default: 123456}
  derived: "Bearer ${{ var.token }}"
provision:
  - shell: {inline: [a], env: {T: "${{ var.token }}", D: "${{ var.derived }}", U: "${{ upper(var.token) }}", P: "${{ var.pin + 1 }}"}}
  - file: {content: "key ${{ var.token }}\n", destination: /a}
`
	tpl := mustLoad(t, text, Options{Vars: []string{"token=" + secret}})
	var sh shellStep
	if err := tpl.Steps[0].Block.Decode(&sh); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"T": secret, "D": "Bearer " + secret, "U": strings.ToUpper(secret), "P": "123457"}
	if d := cmp.Diff(want, sh.Env); d != "" {
		t.Error(d)
	}
	for _, s := range []string{secret, strings.ToUpper(secret), "Bearer " + secret, "123456", "123457"} {
		if !contains(tpl.Secrets, s) {
			t.Errorf("the redactor is not told %q", s)
		}
	}

	canonical := func(token string) string {
		tpl := mustLoad(t, text, Options{Vars: []string{"token=" + token}})
		var out string
		for _, s := range tpl.Steps {
			b, err := s.Block.Canonical()
			if err != nil {
				t.Fatal(err)
			}
			out += string(b) + "\n"
		}
		return out
	}
	got := canonical(secret)
	if want := `{"env":{"D":"Bearer var:token","P":"var:pin var.pin + 1","T":"var:token","U":"VAR:TOKEN"},"inline":["a"]}
{"content":"key var:token\n","destination":"/a"}
`; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if got != canonical("another value") {
		t.Error("another value gives another cache key")
	}
	var masked fileStep
	if err := tpl.Steps[1].Block.Masked().Decode(&masked); err != nil || masked.Content != "key var:token\n" {
		t.Errorf("%+v, %v", masked, err)
	}
}

func TestABoolCannotBeSensitive(t *testing.T) {
	for name, decl := range map[string]string{"default": "{sensitive: true, default: true}", "type": "{sensitive: true, type: bool}"} {
		_, err := loadText(t, partHead+"variables:\n  t: "+decl+"\n", Options{Environ: []string{"REBAKE_VAR_t=false"}})
		if err == nil || !strings.Contains(err.Error(), "t.yaml:4:3: variable \"t\": a bool cannot be sensitive") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMessagesHideSensitiveValues(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		o    Options
	}{
		"default, unknown key beside it": {partHead + "variables:\n  t: {sensitive: true, default: " + secret + ", patern: x}\n", Options{}},
		"default, pattern":               {partHead + "variables:\n  t: {sensitive: true, default: " + secret + ", pattern: '[0-9]+'}\n", Options{}},
		"given, allowed":                 {partHead + "variables:\n  t: {sensitive: true, allowed: [a, b]}\n", Options{Vars: []string{"t=" + secret}}},
		"file, undeclared":               {partHead + "variables:\n  t: x\n", Options{VarFiles: []string{varFile(t, "u: "+secret+"\n")}}},
		"file, broken":                   {partHead + "variables:\n  t: x\n", Options{VarFiles: []string{varFile(t, "t: {"+secret+"\n")}}},
		"expression fails":               {partHead + "variables:\n  t: {sensitive: true}\nlabels: {a: '${{ int(var.t) }}'}\n", Options{Vars: []string{"t=" + secret}}},
	} {
		_, err := loadText(t, c.text, c.o)
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
