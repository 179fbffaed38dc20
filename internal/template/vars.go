package template

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

const maxVariable = 64 << 10 // bytes of one variable's value

// variableSpec is one entry of variables:.
type variableSpec struct {
	Type        string `yaml:"type" jsonschema:"enum=string,enum=number,enum=bool,enum=list" jsonschema_description:"type of the value; that of the default where it is not given, else string"`
	Default     any    `yaml:"default" jsonschema_description:"value where none is given; without it a value is required"`
	Description string `yaml:"description" jsonschema_description:"what it is for"`
	Sensitive   bool   `yaml:"sensitive" jsonschema_description:"never shown, never logged, usable in env and content only"`
	Allowed     []any  `yaml:"allowed" jsonschema_description:"the only values that it may have"`
	Pattern     string `yaml:"pattern" jsonschema_description:"regular expression (RE2) that the whole value matches"`
}

type variable struct {
	variableSpec
	name         string
	line, column int
	def          *node // default:, nil: none
	pattern      *regexp.Regexp

	given  bool
	tagged bool // its default was made from git.tag
	value  any
	taint  []string
	canon  any
	state  int // 0 not evaluated, 1 being evaluated, 2 done
}

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)

// loader reads one template.
type loader struct {
	s     *source
	scope *scope
	eval  evaluator
	chain []string // variables being evaluated, for the message of a cycle

	tagged bool // version: was made from git.tag
}

func (l *loader) fail(line, column int, hint, format string, a ...any) error {
	return l.s.errorf(line, column, hint, format, a...)
}

// declare reads variables:.
func (l *loader) declare(n *node) error {
	if n.kind != mapNode {
		return l.fail(n.line, n.column, "variables: {release: {default: dev}}", "\"variables\" must be a mapping")
	}
	for _, e := range n.entries {
		if !identifier.MatchString(e.key) {
			return l.fail(e.line, e.column, "letters, digits and _", "%q cannot name a variable", e.key)
		}
		v := &variable{name: e.key, line: e.line, column: e.column}
		switch {
		case e.value.kind == mapNode:
			b := Block{n: e.value, src: l.s, kind: e.key, line: e.line, column: e.column}
			// A default of null is no default; it would fail to decode.
			if d := e.value.get("default"); d != nil && !(d.value.kind == scalarNode && d.value.value == nil) {
				v.def = d.value
			}
			if sens := e.value.get("sensitive"); sens != nil && sens.value.value != false && v.def != nil {
				l.s.hide(v.def)
			}
			if err := b.Decode(&v.variableSpec); err != nil {
				return err
			}
		case e.value.kind == scalarNode && e.value.value == nil: // release: (no default)
		default:
			v.def = e.value
		}
		if v.def != nil && v.def.kind == mapNode {
			return l.fail(v.def.line, v.def.column, "types are string, number, bool and list", "a variable cannot be a mapping")
		}
		if v.Pattern != "" {
			re, err := regexp.Compile(`^(?:` + v.Pattern + `)$`)
			if err != nil {
				at := e.value.get("pattern").value
				return l.fail(at.line, at.column, "", "pattern is not a regular expression: %w", err)
			}
			v.pattern = re
		}
		l.scope.vars[e.key] = v
	}
	return nil
}

// give sets variables from outside, weakest source first.
func (l *loader) give(o Options) error {
	for _, name := range keys(l.scope.vars) {
		if text, ok := l.scope.environ["REBAKE_VAR_"+name]; ok {
			if err := l.set(l.scope.vars[name], text, "REBAKE_VAR_"+name); err != nil {
				return err
			}
		}
	}
	for _, path := range o.VarFiles {
		if err := l.giveFile(path); err != nil {
			return err
		}
	}
	for _, arg := range o.Vars {
		name, text, ok := strings.Cut(arg, "=")
		if !ok {
			return &Error{Msg: fmt.Sprintf("--var %s has no value", name), Hint: "write --var NAME=VALUE"}
		}
		v := l.scope.vars[name]
		if v == nil {
			return l.undeclared(name, "--var")
		}
		if err := l.set(v, text, "--var"); err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) undeclared(name, origin string) *Error {
	hint := choices("variables", name, keys(l.scope.vars))
	if hint == "" {
		hint = "declare it under variables:"
	}
	return &Error{File: l.s.name, Msg: fmt.Sprintf("%s sets variable %q, which the template does not declare", origin, name), Hint: hint}
}

func (l *loader) giveFile(path string) error {
	s, err := readSource(path)
	if err != nil {
		return err
	}
	s.private = true
	n, err := s.parse()
	if err != nil || n == nil {
		return err
	}
	if n.kind != mapNode {
		return s.errorf(n.line, n.column, "name: value, one a line", "a variable file must be a mapping")
	}
	for _, e := range n.entries {
		v := l.scope.vars[e.key]
		if v == nil {
			err := l.undeclared(e.key, "the file")
			return s.errorf(e.line, e.column, err.Hint, "variable %q is not declared in %s", e.key, l.s.name)
		}
		value := plainValue(e.value, false)
		if value == nil {
			return s.errorf(e.value.line, e.value.column, "", "variable %q has no value", e.key)
		}
		if got := typeOf(value); got != v.kind() && !v.open() {
			hint := ""
			if v.kind() == "string" && e.value.kind == scalarNode {
				hint = "write it in quotes"
			}
			return s.errorf(e.value.line, e.value.column, hint, "variable %q is a %s, not a %s", e.key, v.kind(), got)
		}
		if err := v.check(value); err != nil {
			return s.errorf(e.value.line, e.value.column, "", "%w", err)
		}
		v.given, v.value = true, value
	}
	return nil
}

// kind is the declared type, or that of a default that says it.
func (v *variable) kind() string {
	if v.Type != "" {
		return v.Type
	}
	if v.def != nil {
		return typeOf(plainValue(v.def, false))
	}
	return "string"
}

// open tells that only the evaluated default will say the type.
func (v *variable) open() bool {
	return v.Type == "" && v.def != nil && strings.Contains(v.def.text, "${{")
}

func typeOf(value any) string {
	switch value.(type) {
	case bool:
		return "bool"
	case int64, float64:
		return "number"
	case []any:
		return "list"
	}
	return "string"
}

// set takes a value that came as text.
func (l *loader) set(v *variable, text, origin string) error {
	bad := func(hint string) error {
		return l.fail(v.line, v.column, hint, "%s: variable %q is a %s, and the value is not", origin, v.name, v.kind())
	}
	var value any = text
	switch v.kind() {
	case "number":
		if i, err := strconv.ParseInt(text, 10, 64); err == nil {
			value = i
		} else if f, err := strconv.ParseFloat(text, 64); err == nil && f-f == 0 {
			value = f
		} else {
			return bad("")
		}
	case "bool":
		switch text {
		case "true":
			value = true
		case "false":
			value = false
		default:
			return bad("true or false")
		}
	case "list":
		list := []any{}
		if strings.HasPrefix(strings.TrimSpace(text), "[") {
			s, err := newSource(origin, []byte(text))
			if err != nil {
				return bad("a,b,c or [a, b, c]")
			}
			s.private = true
			n, err := s.parse()
			if err != nil || n == nil || n.kind != listNode {
				return bad("a,b,c or [a, b, c]")
			}
			list = plainValue(n, false).([]any)
		} else if text != "" {
			for _, item := range strings.Split(text, ",") {
				list = append(list, strings.TrimSpace(item))
			}
		}
		value = list
	}
	if err := v.check(value); err != nil {
		return l.fail(v.line, v.column, "", "%s: %w", origin, err)
	}
	v.given, v.value = true, value
	return nil
}

// check holds a value against type, allowed and pattern.
func (v *variable) check(value any) error {
	if v.Type != "" && typeOf(value) != v.Type || typeOf(value) == "string" && !isString(value) {
		return fmt.Errorf("variable %q must be a %s", v.name, v.kind())
	}
	size := 0
	items, isList := value.([]any)
	if !isList {
		items = []any{value}
	}
	for _, item := range items {
		switch item.(type) {
		case string, bool, int64, float64:
		default:
			return fmt.Errorf("variable %q: items must be plain values", v.name)
		}
		t := text(item)
		size += len(t)
		shown := " " + strconv.Quote(t)
		if v.Sensitive || len(t) > 60 {
			shown = ""
		}
		if len(v.Allowed) > 0 {
			ok := false
			var allowed []string
			for _, a := range v.Allowed {
				ok = ok || text(a) == t
				allowed = append(allowed, text(a))
			}
			if !ok {
				return fmt.Errorf("variable %q may not be%s; allowed: %s", v.name, orSo(shown, " that"), strings.Join(allowed, ", "))
			}
		}
		if v.pattern != nil && !v.pattern.MatchString(t) {
			return fmt.Errorf("variable %q: the value%s does not match pattern %s", v.name, shown, v.Pattern)
		}
	}
	if size > maxVariable {
		return fmt.Errorf("variable %q is larger than %d KiB", v.name, maxVariable>>10)
	}
	return nil
}

func orSo(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func isString(v any) bool { _, ok := v.(string); return ok }

// resolve evaluates a variable once.
func (l *loader) resolve(v *variable) error {
	switch v.state {
	case 2:
		return nil
	case 1:
		return l.fail(v.line, v.column, "give one of them a value that does not refer to the others",
			"variables refer to each other in a circle: %s", strings.Join(append(l.chain[index(l.chain, v.name):], v.name), " → "))
	}
	v.state = 1
	l.chain = append(l.chain, v.name)
	defer func() { l.chain = l.chain[:len(l.chain)-1] }()
	if !v.given {
		if v.def == nil {
			what := ""
			if v.Description != "" {
				what = " (" + v.Description + ")"
			}
			return l.fail(v.line, v.column, fmt.Sprintf("give it by --var %s=VALUE, in a --var-file, or as REBAKE_VAR_%s", v.name, v.name),
				"variable %q%s has no value", v.name, what)
		}
		before := l.scope.tagged
		l.scope.tagged = false
		err := l.eval.eval(v.def)
		v.tagged, l.scope.tagged = l.scope.tagged, before
		if err != nil {
			return err
		}
		v.value = plainValue(v.def, false)
		if v.Type == "string" && v.def.computed {
			v.value = text(v.value)
		}
		if err := v.check(v.value); err != nil {
			return l.fail(v.def.line, v.def.column, "", "%w", err)
		}
		v.taint, v.canon = taintOf(v.def), plainValue(v.def, true)
	}
	if _, is := v.value.(bool); is && v.Sensitive {
		return l.fail(v.line, v.column, "remove sensitive: from it", "variable %q: a bool cannot be sensitive: there are but two values to guess, and every true in the output would be redacted", v.name)
	}
	if v.Sensitive {
		v.taint, v.canon = []string{v.name}, "var:"+v.name
		l.scope.hide(v.value, 1)
	}
	v.state = 2
	return nil
}

func taintOf(n *node) []string {
	all := map[string]bool{}
	for _, t := range n.taint {
		all[t] = true
	}
	for _, item := range n.items {
		for _, t := range taintOf(item) {
			all[t] = true
		}
	}
	if len(all) == 0 {
		return nil
	}
	return keys(all)
}

func index(list []string, s string) int {
	for i, v := range list {
		if v == s {
			return i
		}
	}
	return 0
}

// environ turns NAME=value lines into a map.
func environ(lines []string) map[string]string {
	out := make(map[string]string, len(lines))
	for _, l := range lines {
		if name, value, ok := strings.Cut(l, "="); ok {
			out[name] = value
		}
	}
	return out
}
