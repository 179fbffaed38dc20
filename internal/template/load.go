package template

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/registry"
)

var (
	namePattern  = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*$`)
	tagPattern   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}$`)
	wordPattern  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
	statePattern = regexp.MustCompile(`^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._-]+)*/?$`)
	fleetPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,39}$`)
)

// Load reads a template, sets its variables, evaluates its expressions and
// checks every block against its backend's type. What is wrong with the input
// is always an *Error. It reads files and may run git; it changes nothing.
func Load(path string, o Options) (*Template, error) {
	s, err := readSource(path)
	if err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, s.errorf(0, 0, "", "cannot find its directory: %w", err)
	}
	return load(s, filepath.Dir(abs), o)
}

func load(s *source, dir string, o Options) (*Template, error) {
	root, err := s.parse()
	if err != nil {
		return nil, err
	}
	if root == nil {
		return nil, s.errorf(0, 0, "`rebake init minimal` writes one to start from", "the template is empty")
	}
	if root.kind != mapNode {
		return nil, s.errorf(root.line, root.column, "it starts with keys such as name: and build:", "a template must be a mapping, not %s", root.kind)
	}
	l, err := newLoader(s, dir, o)
	if err != nil {
		return nil, err
	}
	if err := l.evaluate(root, o); err != nil {
		return nil, err
	}
	var doc document
	if err := (Block{n: root, src: s, dir: dir, line: 1, column: 1}).Decode(&doc); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(s.data)
	t := &Template{
		Path: s.name, Dir: dir, Digest: artifact.Digest("sha256:" + hex.EncodeToString(sum[:])),
		Name: doc.Name, Version: doc.Version, Tags: doc.Tags, Labels: doc.Labels,
		Seal: Seal(doc.Seal), Secrets: keys(l.scope.secrets),
	}
	t.Sign, t.Store, t.Tagged = doc.Sign.Key, doc.Store, l.tagged
	t.Variables, t.Sensitive = l.shown()
	if err := l.words(root, doc); err != nil {
		return nil, err
	}
	if e := root.get("retention"); e != nil {
		if t.Retention, err = doc.Retention.read(Block{n: e.value, src: s, line: e.line, column: e.column}); err != nil {
			return nil, err
		}
	}
	if o.Version != "" {
		if err := l.version(t, o.Version); err != nil {
			return nil, err
		}
	}
	if t.Builds, err = l.builds(doc.Build, o.Kinds.Builders); err != nil {
		return nil, err
	}
	if t.Steps, err = l.steps(doc.Provision, "provision", o.Kinds.Provisioners, t.Builds); err != nil {
		return nil, err
	}
	if t.Tests, err = l.steps(doc.Test, "test", o.Kinds.Checks, t.Builds); err != nil {
		return nil, err
	}
	if doc.Fleet != nil {
		if t.Fleet, err = l.fleet(root.get("fleet"), doc, o.Kinds); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func newLoader(s *source, dir string, o Options) (*loader, error) {
	now := o.Now
	if now.IsZero() {
		now = time.Now()
	}
	sc := &scope{vars: map[string]*variable{}, env: map[string]bool{}, environ: environ(o.Environ), dir: dir,
		now: now, extra: o.Scope, secrets: map[string]bool{}}
	l := &loader{s: s, scope: sc, eval: evaluator{s: s, scope: sc}}
	sc.resolve = l.resolve
	return l, nil
}

// evaluate sets the variables and evaluates the whole tree: first what env and
// variables declare, then the name, then the rest.
func (l *loader) evaluate(root *node, o Options) error {
	if e := root.get("env"); e != nil {
		var names struct {
			Env []string `yaml:"env"`
		}
		b := Block{n: &node{kind: mapNode, entries: []entry{*e}}, src: l.s}
		if err := b.Decode(&names); err != nil {
			return err
		}
		for _, n := range names.Env {
			l.scope.env[n] = true
		}
	}
	if e := root.get("variables"); e != nil && !(e.value.kind == scalarNode && e.value.value == nil) {
		if err := l.declare(e.value); err != nil {
			return err
		}
	}
	if err := l.give(o); err != nil {
		return err
	}
	if e := root.get("variables"); e != nil {
		for _, d := range e.value.entries {
			if err := l.resolve(l.scope.vars[d.key]); err != nil {
				return err
			}
		}
	}
	if e := root.get("name"); e != nil {
		if err := l.eval.eval(e.value); err != nil {
			return err
		}
		if len(e.value.taint) == 0 {
			l.scope.name = text(plainValue(e.value, false))
		}
	}
	for _, e := range root.entries {
		if e.key == "variables" || e.key == "env" || e.key == "name" {
			continue
		}
		l.scope.tagged = false
		if err := l.eval.eval(e.value); err != nil {
			return err
		}
		if e.key == "version" {
			l.tagged = l.scope.tagged
		}
	}
	return nil
}

// version evaluates what --version gives.
func (l *loader) version(t *Template, text string) error {
	n := &node{kind: scalarNode, value: text, text: text, line: 1, column: 1}
	l.scope.tagged = false
	at := &Error{}
	switch err := l.eval.eval(n); {
	case errors.As(err, &at):
		return &Error{Msg: "--version: " + at.Msg, Hint: at.Hint}
	case err != nil:
		return err
	}
	t.Version, t.Tagged = n.text, l.scope.tagged
	switch {
	case len(n.taint) > 0:
		return &Error{Msg: "--version: a sensitive variable cannot be in a version"}
	case n.kind != scalarNode || t.Version != "" && !tagPattern.MatchString(t.Version):
		return &Error{Msg: fmt.Sprintf("--version: %.150q cannot be a version", t.Version), Hint: "letters, digits, and . _ + - after the first"}
	}
	return nil
}

// words checks the names that leave the template.
func (l *loader) words(root *node, doc document) error {
	bad := func(n *node, what, value, hint string) error {
		return l.fail(n.line, n.column, hint, "%q cannot be %s", value, what)
	}
	if n := root.get("name").value; len(doc.Name) > 128 || !namePattern.MatchString(doc.Name) {
		return bad(n, "a name", doc.Name, "lower-case letters, digits, and . _ - between them; / between parts")
	}
	if doc.Version != "" && !tagPattern.MatchString(doc.Version) {
		return bad(root.get("version").value, "a version", doc.Version, "letters, digits, and . _ + - after the first")
	}
	if doc.Store != "" {
		if a, err := registry.Parse(doc.Store); err != nil || a.Tag != "" || a.Dig != "" {
			return bad(root.get("store").value, "a store", doc.Store, "a place in a registry, as oci://registry.example.com/team")
		}
	}
	if e := doc.Seal.Inventory; e != "" && !slices.Contains([]string{"files", "packages", "contents", "off"}, e) {
		return bad(root.get("seal").value.get("inventory").value, "an inventory", e, "one of files, packages, contents, off")
	}
	for i, t := range doc.Tags {
		if !tagPattern.MatchString(t) {
			return bad(root.get("tags").value.items[i], "a tag", t, "letters, digits, and . _ + - after the first")
		}
	}
	return nil
}

// builds reads build:, in file order.
func (l *loader) builds(b Block, kinds map[string]func() any) ([]Build, error) {
	if b.n.kind != mapNode || len(b.n.entries) == 0 {
		return nil, l.fail(b.line, b.column, "build: {qemu: {from: {debian: bookworm}}}", "\"build\" must be a mapping of builders")
	}
	var out []Build
	for _, e := range b.n.entries {
		if !wordPattern.MatchString(e.key) {
			return nil, l.fail(e.line, e.column, "letters, digits, and . _ - after the first", "%q cannot name a build", e.key)
		}
		kind, at, body := e.key, e, e.value
		if k := body.get("kind"); body.kind == mapNode && k != nil {
			name, ok := k.value.value.(string)
			if !ok || len(k.value.taint) > 0 {
				return nil, l.fail(k.value.line, k.value.column, "", "\"kind\" must be a text")
			}
			kind, at = name, entry{key: name, line: k.value.line, column: k.value.column}
			body = without(body, "kind")
		}
		blk := Block{n: body, src: l.s, dir: l.scope.dir, kind: kind, line: e.line, column: e.column}
		if err := l.check(blk, at, "builder", kinds, "kind"); err != nil {
			return nil, err
		}
		out = append(out, Build{Name: e.key, Kind: kind, Block: blk})
	}
	return out, nil
}

// check decodes a block once into its backend's type.
func (l *loader) check(b Block, at entry, what string, kinds map[string]func() any, extra ...string) error {
	construct, ok := kinds[b.kind]
	if !ok {
		return l.fail(at.line, at.column, choices(what+"s", b.kind, keys(kinds)), "unknown %s %q", what, b.kind)
	}
	return b.decodeWith(construct(), extra)
}

// without is a mapping less some keys.
func without(n *node, drop ...string) *node {
	out := *n
	out.entries = nil
	for _, e := range n.entries {
		if !contains(drop, e.key) {
			out.entries = append(out.entries, e)
		}
	}
	return &out
}

var stepKeys = []string{"name", "only", "except", "pause_before", "timeout", "max_retries", "cache", "inputs"}

// steps reads provision: or test:. A step is a mapping of one key, its kind;
// the options that all kinds share stand beside the keys of the kind.
func (l *loader) steps(list []Block, section string, kinds map[string]func() any, builds []Build) ([]Step, error) {
	what := map[string]string{"provision": "provisioner", "test": "check"}[section]
	var out []Step
	for i, item := range list {
		n := item.n
		if n.kind != mapNode || len(n.entries) == 0 {
			return nil, l.fail(n.line, n.column, what+"s: "+strings.Join(keys(kinds), ", "), "a step of %q must be a mapping of its kind, not %s", section, n.kind)
		}
		e := n.entries[0]
		if len(n.entries) > 1 {
			extra := n.entries[1]
			hint := "start each step with a dash"
			if contains(stepKeys, extra.key) || contains(stepKeys, e.key) || e.value.kind == scalarNode && e.value.value == nil {
				hint = fmt.Sprintf("write %s inside the step: indent it below the kind, or {…, %s: …}", extra.key, extra.key)
			}
			return nil, l.fail(extra.line, extra.column, hint, "a step has one key, its kind; this is another, %q", extra.key)
		}
		s, err := l.step(e, what, kinds, i)
		if err != nil {
			return nil, err
		}
		for _, list := range [][]string{s.Only, s.Except} {
			for _, name := range list {
				if !hasBuild(builds, name) {
					var valid []string
					for _, b := range builds {
						valid = append(valid, b.Name)
					}
					return nil, l.fail(e.line, e.column, choices("builds", name, valid), "step %q names build %q, which is not in the template", s.Name, name)
				}
			}
		}
		out = append(out, s)
	}
	return out, nil
}

func (l *loader) step(e entry, what string, kinds map[string]func() any, i int) (Step, error) {
	s := Step{Kind: e.key, Name: fmt.Sprintf("%s-%d", e.key, i+1)}
	body, shared := e.value, Block{}
	var into any
	if construct, ok := kinds[e.key]; ok {
		into = construct()
	}
	if body.kind == mapNode {
		opts := &node{kind: mapNode, line: body.line, column: body.column}
		var drop []string
		for _, k := range stepKeys {
			if o := body.get(k); o != nil && !(k == "name" && hasKey(into, "name")) {
				opts.entries = append(opts.entries, *o)
				if !hasKey(into, k) { // a kind with a key of this name sees it too
					drop = append(drop, k)
				}
			}
		}
		shared = Block{n: opts, src: l.s, dir: l.scope.dir, kind: e.key, line: e.line, column: e.column}
		body = without(body, drop...)
	}
	s.Block = Block{n: body, src: l.s, dir: l.scope.dir, kind: e.key, line: e.line, column: e.column}
	if err := l.check(s.Block, e, what, kinds, stepKeys...); err != nil {
		return s, err
	}
	var o stepOptions
	if shared.n != nil {
		if err := shared.Decode(&o); err != nil {
			return s, err
		}
	}
	if o.MaxRetries < 0 || o.MaxRetries > 100 {
		return s, shared.Errorf("max_retries", "max_retries must be between 0 and 100")
	}
	if o.Name != "" {
		s.Name = o.Name
	} else if v := body.get("name"); body.kind == mapNode && v != nil && hasKey(into, "name") && len(v.value.taint) == 0 {
		s.Name = e.key + " " + v.value.text
	}
	s.Only, s.Except, s.PauseBefore, s.Timeout, s.MaxRetries = o.Only, o.Except, o.PauseBefore, o.Timeout, o.MaxRetries
	if what != "provisioner" && (o.Cache != nil || len(o.Inputs) > 0) {
		return s, shared.Errorf("", "cache and inputs are for steps of provision: a check always runs")
	}
	s.Inputs = o.Inputs
	if c := o.Cache; c != nil {
		s.Cache = Cache{Never: c.Use != nil && !*c.Use, MaxAge: c.MaxAge, Refresh: c.Refresh}
		if s.Cache.Never && (c.MaxAge != nil || c.Refresh != "") {
			return s, shared.Errorf("cache", "a step that is never cached has no max_age and no refresh")
		}
	}
	return s, nil
}

func hasBuild(builds []Build, name string) bool {
	for _, b := range builds {
		if b.Name == name {
			return true
		}
	}
	return false
}
