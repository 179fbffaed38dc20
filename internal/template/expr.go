package template

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/parser"
)

const maxExpr = 2048 // bytes of one expression

// scope is what expressions see.
type scope struct {
	vars    map[string]*variable
	env     map[string]bool   // declared by env:
	environ map[string]string // of the process
	dir     string            // for git
	now     time.Time
	name    string         // of the template, "" before it is known
	extra   map[string]any // Options.Scope
	git     map[string]any // read on first use
	total   int            // bytes that evaluation produced
	secrets map[string]bool
	tagged  bool                    // git.tag was used since this was last cleared
	resolve func(v *variable) error // evaluates a variable that is not ready
}

// result of an expression.
type result struct {
	value any
	taint []string // sensitive variables that it was made from
	canon any      // the value with var:NAME in their place
}

var gitFields = []string{"commit", "short", "tag", "dirty"}

// uses is what an expression refers to.
type uses struct {
	vars, env, git []string
	err            error
	loops          int
}

type walker struct {
	u       *uses
	members map[ast.Node]string // identifier node: the member taken of it
}

func (w *walker) Visit(n *ast.Node) {
	switch x := (*n).(type) {
	case *ast.MemberNode:
		if id, ok := x.Node.(*ast.IdentifierNode); ok {
			if p, ok := x.Property.(*ast.StringNode); ok {
				w.members[id] = p.Value
			}
		}
	case *ast.PredicateNode:
		w.u.loops++
	}
}

type identifiers struct {
	u       *uses
	members map[ast.Node]string
}

func (w *identifiers) Visit(n *ast.Node) {
	id, ok := (*n).(*ast.IdentifierNode)
	if !ok {
		return
	}
	member, has := w.members[id]
	switch id.Value {

	case "$env":
		w.u.err = errors.New("$env is not available")
	case "var", "env", "git":
		if !has {
			w.u.err = fmt.Errorf("write %s.NAME", id.Value)
			return
		}
		switch id.Value {
		case "var":
			w.u.vars = append(w.u.vars, member)
		case "env":
			w.u.env = append(w.u.env, member)
		case "git":
			w.u.git = append(w.u.git, member)
		}
	}
}

// hinted is an error with what to do about it.
type hinted struct {
	error
	hint string
}

func analyse(src string) (uses, error) {
	var u uses
	if len(src) > maxExpr {
		return u, fmt.Errorf("the expression is longer than %d bytes", maxExpr)
	}
	tree, err := parser.Parse(src)
	if err != nil {
		return u, plain(err)
	}
	members := map[ast.Node]string{}
	ast.Walk(&tree.Node, &walker{&u, members})
	ast.Walk(&tree.Node, &identifiers{&u, members})
	if u.err == nil && u.loops > 1 {
		u.err = errors.New("only one of map, filter, all, any and the like may be used in an expression")
	}
	return u, u.err
}

// plain drops the snippet that expr adds to its errors.
func plain(err error) error {
	var fe *file.Error
	if errors.As(err, &fe) {
		return errors.New(fe.Message)
	}
	return errors.New(strings.SplitN(err.Error(), "\n", 2)[0])
}

// eval evaluates one expression.
func (s *scope) eval(src string) (res result, err error) {
	defer func() {
		if r := recover(); r != nil { // a bug of the evaluator must not be a crash of ours
			err = fmt.Errorf("cannot be evaluated: %v", r)
		}
	}()
	u, err := analyse(src)
	if err != nil {
		return res, err
	}
	env, masked := map[string]any{}, map[string]any{}
	for k, v := range s.extra {
		env[k] = v
	}
	env["now"] = s.now
	if s.name != "" {
		env["name"] = s.name
	}
	for k, v := range env {
		masked[k] = v
	}
	vars, maskedVars := map[string]any{}, map[string]any{}
	taint := map[string]bool{}
	for _, name := range u.vars {
		v, ok := s.vars[name]
		if !ok {
			return res, hinted{fmt.Errorf("variable %q is not declared", name), choices("variables", name, keys(s.vars))}
		}
		if err := s.resolve(v); err != nil {
			return res, err
		}
		s.tagged = s.tagged || v.tagged
		vars[name], maskedVars[name] = v.value, v.value
		if len(v.taint) > 0 {
			maskedVars[name] = v.canon
			for _, t := range v.taint {
				taint[t] = true
			}
		}
	}
	env["var"], masked["var"] = vars, maskedVars
	environ := map[string]any{}
	for _, name := range u.env {
		if !s.env[name] {
			return res, hinted{fmt.Errorf("environment variable %q is not declared", name), fmt.Sprintf("declare it at the top of the template: env: [%s]", name)}
		}
		if v, ok := s.environ[name]; ok {
			environ[name] = v
		} else {
			environ[name] = nil
		}
	}
	env["env"], masked["env"] = environ, environ
	s.tagged = s.tagged || contains(u.git, "tag")
	if _, given := s.extra["git"]; len(u.git) > 0 && !given {
		for _, f := range u.git {
			if !contains(gitFields, f) {
				return res, hinted{fmt.Errorf("git has no %q", f), choices("fields", f, gitFields)}
			}
		}
		if s.git == nil {
			if s.git, err = readGit(s.dir); err != nil {
				return res, err
			}
		}
		env["git"], masked["git"] = s.git, s.git
	} else if !given {
		env["git"], masked["git"] = map[string]any{}, map[string]any{}
	}
	if res.value, err = run(src, env); err != nil {
		if len(taint) > 0 { // the evaluator's message may quote the value
			err = errors.New("cannot be evaluated; the reason is not shown because a sensitive variable is in it")
		}
		return res, err
	}
	if res.value, err = s.tidy(res.value, 0); err != nil {
		return res, err
	}
	if res.value == nil && len(u.env) > 0 {
		return res, hinted{fmt.Errorf("environment variable %s is not set", strings.Join(u.env, ", ")), fmt.Sprintf("set it, or give a fallback: ${{ env.%s ?? \"…\" }}", u.env[0])}
	}
	if len(taint) == 0 {
		res.canon = res.value
		return res, nil
	}
	res.taint = keys(taint)
	s.hide(res.value, 4)
	if canon, err := run(src, masked); err == nil {
		if canon, err = s.tidy(canon, 0); err == nil {
			res.canon = canon
			return res, nil
		}
	}
	res.canon = "var:" + strings.Join(res.taint, ",") + " " + src
	return res, nil
}

func run(src string, env map[string]any) (any, error) {
	program, err := expr.Compile(src, expr.Env(env), expr.DisableBuiltin("now"))
	if err != nil {
		return nil, plain(err)
	}
	v, err := expr.Run(program, env)
	if err != nil {
		return nil, plain(err)
	}
	return v, nil
}

// hide adds the texts of a sensitive value to what the redactor must know;
// derived texts shorter than shortest would redact too much.
func (s *scope) hide(v any, shortest int) {
	switch v := v.(type) {
	case string:
		if len(v) >= shortest {
			s.secrets[v] = true
		}
	case int64, float64:
		if t := text(v); len(t) >= shortest {
			s.secrets[t] = true
		}
	case []any:
		for _, e := range v {
			s.hide(e, shortest)
		}
	}
}

// tidy brings an expression's value to nil, bool, int64, float64, string,
// []any and map[string]any, and bounds its size.
func (s *scope) tidy(v any, depth int) (any, error) {
	if depth > maxDepth {
		return nil, errors.New("its value is nested too deeply")
	}
	s.total++
	switch x := v.(type) {
	case nil, bool, int64:
	case int:
		return int64(x), nil
	case string:
		if !utf8.ValidString(x) || strings.IndexByte(x, 0) >= 0 {
			return nil, errors.New("its value is not text")
		}
		s.total += len(x)
	case float64:
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return nil, errors.New("its value is not a number that can be used")
		}
	case time.Time:
		return x.Format(time.RFC3339), nil
	case time.Duration:
		return x.String(), nil
	case json.Number:
		return x.String(), nil
	default:
		return s.tidyReflect(reflect.ValueOf(v), depth)
	}
	if s.total > maxTotal {
		return nil, fmt.Errorf("the values of the expressions add up to more than %d MiB", maxTotal>>20)
	}
	return v, nil
}

func (s *scope) tidyReflect(r reflect.Value, depth int) (any, error) {
	switch r.Kind() {
	case reflect.Slice, reflect.Array:
		out := make([]any, 0, min(r.Len(), maxNodes))
		for i := range r.Len() {
			e, err := s.tidy(r.Index(i).Interface(), depth+1)
			if err != nil {
				return nil, err
			}
			out = append(out, e)
			if s.total > maxTotal {
				return nil, errors.New("its value is too large")
			}
		}
		return out, nil
	case reflect.Map:
		out := map[string]any{}
		for _, k := range r.MapKeys() {
			e, err := s.tidy(r.MapIndex(k).Interface(), depth+1)
			if err != nil {
				return nil, err
			}
			out[fmt.Sprint(k.Interface())] = e
		}
		return out, nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return r.Int(), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return int64(r.Uint()), nil
	case reflect.Bool:
		return r.Bool(), nil
	case reflect.String:
		return r.String(), nil
	}
	return nil, fmt.Errorf("its value, a %s, cannot be used here", r.Kind())
}

// text is how a value looks inside a string.
func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case nil:
		return ""
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}

// piece is a part of a text: literal, or the source of an expression.
type piece struct {
	text string
	expr bool
}

// split cuts a text at its expressions; $${{ stands for ${{ itself.
func split(s string) ([]piece, error) {
	var (
		out []piece
		lit strings.Builder
	)
	for {
		i := strings.Index(s, "${{")
		if i < 0 {
			lit.WriteString(s)
			break
		}
		if i > 0 && s[i-1] == '$' {
			lit.WriteString(s[:i-1] + "${{")
			s = s[i+3:]
			continue
		}
		lit.WriteString(s[:i])
		end := closing(s[i+3:])
		if end < 0 {
			return nil, hinted{errors.New("the expression has no end"), "end it by }}, or write $${{ for the characters ${{"}
		}
		if lit.Len() > 0 {
			out = append(out, piece{text: lit.String()})
			lit.Reset()
		}
		out = append(out, piece{text: strings.TrimSpace(s[i+3 : i+3+end]), expr: true})
		s = s[i+3+end+2:]
	}
	if lit.Len() > 0 || len(out) == 0 {
		out = append(out, piece{text: lit.String()})
	}
	return out, nil
}

// closing finds the }} that ends an expression, or -1.
func closing(s string) int {
	var quote byte
	depth := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote != 0 && quote != '`' && c == '\\':
			i++
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'' || c == '`':
			quote = c
		case c == '{':
			depth++
		case c == '}' && depth > 0:
			depth--
		case c == '}' && i+1 < len(s) && s[i+1] == '}':
			return i
		}
	}
	return -1
}

func keys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}
