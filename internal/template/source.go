package template

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// Bounds on what is read, so that a hostile file costs little.
const (
	maxFile   = 1 << 20 // bytes
	maxDepth  = 64      // of mappings and lists in each other
	maxGuess  = 1000    // the same, as guessed before the YAML parser runs
	maxNodes  = 100_000 // values after aliases were expanded
	maxScalar = 1 << 20 // bytes of one evaluated value
	maxTotal  = 8 << 20 // bytes of all evaluated values
)

// source is a file that was read, for messages.
type source struct {
	name    string
	data    []byte
	lines   []string
	private bool         // lines hold values that may not be shown (a variable file)
	hidden  map[int]bool // lines that hold the value of a sensitive variable
}

func (s *source) errorf(line, column int, hint, format string, a ...any) *Error {
	err := fmt.Errorf(format, a...)
	e := &Error{File: s.name, Line: line, Column: column, Msg: err.Error(), Hint: hint, err: errors.Unwrap(err)}
	if line > 0 && line <= len(s.lines) && !s.private && !s.hidden[line] {
		e.Source = s.lines[line-1]
	}
	return e
}

// hide keeps the lines of a value out of messages.
func (s *source) hide(n *node) {
	if s.hidden == nil {
		s.hidden = map[int]bool{}
	}
	for i := 0; i <= strings.Count(n.text, "\n")+1; i++ {
		s.hidden[n.line+i] = n.block || i == 0 || s.hidden[n.line+i]
	}
	for _, item := range n.items {
		s.hide(item)
	}
}

// readSource reads a file within the bounds.
func readSource(path string) (*source, error) {
	s := &source{name: path}
	f, err := os.Open(path)
	if err != nil {
		return nil, s.errorf(0, 0, "", "cannot read it: %w", pathless(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, s.errorf(0, 0, "", "cannot read it: %w", pathless(err))
	}
	if info.IsDir() {
		return nil, s.errorf(0, 0, "name the YAML file in it", "it is a directory")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, s.errorf(0, 0, "", "cannot read it: %w", pathless(err))
	}
	return newSource(path, data)
}

// pathless drops the path that the message names already.
func pathless(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// newSource checks what can be checked without a YAML parser.
func newSource(name string, data []byte) (*source, error) {
	s := &source{name: name, data: data}
	if len(data) > maxFile {
		return nil, s.errorf(0, 0, "put large content in a file beside it and use a `file` step with source:", "it is larger than %d KiB", maxFile>>10)
	}
	s.lines = strings.Split(string(data), "\n")
	if i := bytes.IndexByte(data, 0); i >= 0 {
		line, column := position(data, i)
		return nil, s.errorf(line, column, "a template is UTF-8 text", "it holds a NUL byte")
	}
	if !utf8.Valid(data) {
		i := 0
		for i < len(data) {
			r, n := utf8.DecodeRune(data[i:])
			if r == utf8.RuneError && n <= 1 {
				break
			}
			i += n
		}
		line, column := position(data, i)
		return nil, s.errorf(line, column, "save the file as UTF-8", "it is not valid UTF-8")
	}
	return s, nil
}

func position(data []byte, offset int) (line, column int) {
	before := data[:offset]
	return 1 + bytes.Count(before, []byte("\n")), 1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:])
}

type kind int

const (
	scalarNode kind = iota
	mapNode
	listNode
)

func (k kind) String() string { return [...]string{"a single value", "a mapping", "a list"}[k] }

// node is a YAML value with its place, aliases expanded, bounded in number and depth.
type node struct {
	kind         kind
	line, column int
	entries      []entry // mapNode
	items        []*node // listNode
	value        any     // scalarNode: nil, bool, int64, float64 or string
	text         string  // scalarNode: as written
	block        bool    // literal or folded: its text starts on a later line
	computed     bool    // the value came out of an expression
	taint        []string
	canon        any // of a tainted scalar: the value with var:NAME for what is sensitive
}

type entry struct {
	key          string
	line, column int
	value        *node
}

func (n *node) get(key string) *entry {
	for i := range n.entries {
		if n.entries[i].key == key {
			return &n.entries[i]
		}
	}
	return nil
}

// parse turns the file into nodes; an empty file is nil.
func (s *source) parse() (*node, error) {
	if err := s.checkDepth(); err != nil {
		return nil, err
	}
	dec := yaml.NewDecoder(bytes.NewReader(s.data))
	doc, err := s.decode(dec)
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	second, err := s.decode(dec)
	if err == nil {
		return nil, s.errorf(second.Line, 1, "keep one template in a file", "it holds a second YAML document")
	}
	if !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	c := converter{s: s}
	return c.convert(doc.Content[0], 0)
}

var (
	yamlLine      = regexp.MustCompile(`^yaml: line (\d+): (.*)`)
	parserMsg     = regexp.MustCompile(`^did not find expected (<document start>|node content|'-' indicator|key|',' or)`)
	unknownAnchor = regexp.MustCompile(`^unknown anchor '(.+)' referenced`)
)

func (s *source) decode(dec *yaml.Decoder) (doc *yaml.Node, err error) {
	defer func() {
		if r := recover(); r != nil { // a bug of the parser must not be a crash of ours
			err = s.errorf(0, 0, "", "it is not YAML that can be read: %v", r)
		}
	}()
	doc = new(yaml.Node)
	err = dec.Decode(doc)
	if err == nil || errors.Is(err, io.EOF) {
		return doc, err
	}
	line, msg := 0, strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		line, _ = strconv.Atoi(m[1])
		msg = m[2]
		if parserMsg.MatchString(msg) {
			line++ // the parser of yaml.v3 counts from 0, its scanner from 1
		}
	}
	if m := unknownAnchor.FindStringSubmatch(msg); m != nil {
		for i, text := range s.lines {
			if at := strings.Index(text, "*"+m[1]); at >= 0 {
				return nil, s.errorf(i+1, 1+utf8.RuneCountInString(text[:at]), "define it before by &"+m[1], "alias *%s has no anchor", m[1])
			}
		}
	}
	if line == 0 && len(s.lines) > 0 {
		line = 1
	}
	line = min(line, len(s.lines))
	column, hint := 1, ""
	if line > 0 {
		text := s.lines[line-1]
		body := strings.TrimLeft(text, " \t")
		column = 1 + utf8.RuneCountInString(text) - utf8.RuneCountInString(body)
		switch {
		case strings.Contains(text[:len(text)-len(body)], "\t"):
			hint = "YAML is indented by spaces, not by tabs"
		case strings.Contains(body, "${{"):
			hint = "write an expression in quotes within [ ] or { }, and where it holds a colon and a space"
		case strings.HasPrefix(msg, "mapping values"):
			hint = "write a text in quotes where it holds a colon and a space"
		}
	}
	return nil, s.errorf(line, column, hint, "it is not YAML: %s", msg)
}

// checkDepth refuses deep nesting before the YAML parser, which recurses, sees
// it. It counts brackets outside quotes and comments on the lines that are not
// part of a block scalar, and dashes in a row. That is a guess at what YAML will
// make of them, so the bound is generous; convert has the exact and tighter one.
func (s *source) checkDepth() error {
	var (
		depth  int
		quote  byte
		scalar = -1 // indentation of the line that opened a block scalar
	)
	for n, line := range s.lines {
		body := strings.TrimLeft(line, " ")
		indent := len(line) - len(body)
		if quote == 0 && scalar >= 0 {
			if body == "" || indent > scalar {
				continue
			}
			scalar = -1
		}
		dashes := 0
		for rest := body; quote == 0 && (strings.HasPrefix(rest, "- ") || strings.HasPrefix(rest, "? ")); dashes++ {
			rest = strings.TrimLeft(rest[2:], " ")
			if dashes > maxGuess {
				return s.errorf(n+1, 1, "", "it is nested deeper than %d levels", maxGuess)
			}
		}
		plain := byte(0) // first character of the unquoted word at depth 0 that i is in
		for i := 0; i < len(body); i++ {
			c, last := body[i], i+1 == len(body)
			starts := plain == 0 && (i == 0 || strings.IndexByte(" \t[]{},:", body[i-1]) >= 0)
			switch {
			case plain != 0: // up to a colon and a space; an anchor or tag up to a space
				if (c == ':' && (last || body[i+1] == ' ')) || (c == ' ' && (plain == '&' || plain == '!')) {
					plain = 0
				} else if c == '#' && body[i-1] == ' ' {
					i = len(body)
				}
			case quote == '"' && c == '\\':
				i++
			case quote != 0:
				if c == quote {
					quote = 0
				}
			case (c == '"' || c == '\'') && starts:
				quote = c
			case c == '#' && (i == 0 || body[i-1] == ' '):
				i = len(body)
			case (c == '[' || c == '{') && (starts || depth > 0):
				depth++
				if depth > maxGuess {
					return s.errorf(n+1, indent+i+1, "", "it is nested deeper than %d levels", maxGuess)
				}
			case (c == ']' || c == '}') && depth > 0:
				depth--
			case depth == 0 && c != ' ' && c != '\t' && c != '\r' && !(strings.IndexByte("-?:", c) >= 0 && (last || body[i+1] == ' ')):
				plain = c
			}
		}
		if quote == 0 && depth == 0 && opensScalar(body) {
			scalar = indent
		}
	}
	return nil
}

var blockHeader = regexp.MustCompile(`(^|[\s:-])[|>][0-9+-]{0,2}\s*(#.*)?$`)

func opensScalar(line string) bool {
	return strings.ContainsAny(line, "|>") && len(line) < 4096 && blockHeader.MatchString(line)
}

type converter struct {
	s     *source
	nodes int
	open  []*yaml.Node // anchors being expanded
}

func (c *converter) convert(y *yaml.Node, depth int) (*node, error) {
	c.nodes++
	if c.nodes > maxNodes {
		return nil, c.s.errorf(y.Line, y.Column, "aliases (*name) count for each use", "it holds more than %d values", maxNodes)
	}
	if depth > maxDepth {
		return nil, c.s.errorf(y.Line, y.Column, "", "it is nested deeper than %d levels", maxDepth)
	}
	n := &node{line: y.Line, column: y.Column}
	switch y.Kind {
	case yaml.AliasNode:
		for _, o := range c.open {
			if o == y.Alias {
				return nil, c.s.errorf(y.Line, y.Column, "", "alias *%s contains itself", y.Value)
			}
		}
		c.open = append(c.open, y.Alias)
		out, err := c.convert(y.Alias, depth+1)
		c.open = c.open[:len(c.open)-1]
		return out, err
	case yaml.ScalarNode:
		return n, c.scalar(n, y)
	case yaml.SequenceNode:
		n.kind = listNode
		if y.Tag != "" && y.ShortTag() != "!!seq" {
			return nil, c.s.errorf(y.Line, y.Column, "", "tag %s is not known here", y.Tag)
		}
		for _, item := range y.Content {
			v, err := c.convert(item, depth+1)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, v)
		}
		return n, nil
	case yaml.MappingNode:
		n.kind = mapNode
		if y.Tag != "" && y.ShortTag() != "!!map" {
			return nil, c.s.errorf(y.Line, y.Column, "", "tag %s is not known here", y.Tag)
		}
		return n, c.mapping(n, y, depth)
	}
	return nil, c.s.errorf(y.Line, y.Column, "", "this YAML is not supported")
}

func (c *converter) mapping(n *node, y *yaml.Node, depth int) error {
	seen := make(map[string]int, len(y.Content)/2)
	for i := 0; i+1 < len(y.Content); i += 2 {
		k := y.Content[i]
		if k.Kind != yaml.ScalarNode {
			return c.s.errorf(k.Line, k.Column, "", "a key must be a single word")
		}
		if k.ShortTag() == "!!merge" {
			return c.s.errorf(k.Line, k.Column, "use an alias for the whole value: key: *name", "merge keys (<<) are not supported")
		}
		if first, ok := seen[k.Value]; ok {
			return c.s.errorf(k.Line, k.Column, "keep one of them", "key %q is already set in line %d", k.Value, first)
		}
		if strings.Contains(k.Value, "${{") {
			return c.s.errorf(k.Line, k.Column, "", "an expression cannot be a key")
		}
		seen[k.Value] = k.Line
		v, err := c.convert(y.Content[i+1], depth+1)
		if err != nil {
			return err
		}
		n.entries = append(n.entries, entry{key: k.Value, line: k.Line, column: k.Column, value: v})
	}
	return nil
}

func (c *converter) scalar(n *node, y *yaml.Node) error {
	n.text = y.Value
	n.block = y.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0
	switch tag := y.ShortTag(); tag {
	case "!!str", "!!timestamp", "!!merge":
		n.value = y.Value
	case "!!null":
	case "!!bool", "!!int", "!!float":
		var v any
		if err := y.Decode(&v); err != nil {
			return c.s.errorf(y.Line, y.Column, "", "%q is not %s", y.Value, strings.TrimPrefix(tag, "!!"))
		}
		switch v := v.(type) {
		case bool:
			n.value = v
		case int:
			n.value = int64(v)
		case int64:
			n.value = v
		case float64:
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return c.s.errorf(y.Line, y.Column, "", "%s is not a number that can be used", y.Value)
			}
			n.value = v
		default:
			return c.s.errorf(y.Line, y.Column, "", "number %s is too large", y.Value)
		}
	default:
		return c.s.errorf(y.Line, y.Column, "", "tag %s is not known here", y.Tag)
	}
	return nil
}
