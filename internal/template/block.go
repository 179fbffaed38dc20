package template

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// Block is a part of a template that a backend decodes itself. Its variables
// are set and its expressions evaluated. The zero Block is an empty mapping.
type Block struct {
	n            *node
	src          *source
	dir, kind    string
	line, column int // of the key that the block belongs to
}

// Kind is the backend that the block is for: qemu, shell, …
func (b Block) Kind() string { return b.kind }

// Dir is where the block's relative paths start: the template's directory.
func (b Block) Dir() string { return b.dir }

// Decode fills into, a pointer, strictly: an unknown key, a wrong type or a
// missing required key is an *Error. Struct tags: `yaml:"key"` (also ",inline"),
// `rebake:"required"` (or jsonschema:"required"), `rebake:"secret"` (may hold a sensitive value),
// `rebake:"shorthand"` (takes the value of a block that is not a mapping),
// `rebake:"path"` (a local file or directory that must exist) and
// `jsonschema:"enum=a,enum=b"`. Types that implement encoding.TextUnmarshaler
// read a text; a pointer with `Validate() error` is asked last.
func (b Block) Decode(into any) error { return b.decodeWith(into, nil) }

// Errorf makes an error at a key of the block; "" is the block itself, dots
// descend ("from.url", "inline.2"). The format may wrap a cause with %w.
func (b Block) Errorf(key, format string, a ...any) error {
	if b.src == nil {
		err := fmt.Errorf(format, a...)
		return &Error{Msg: err.Error(), err: err}
	}
	line, column := b.line, b.column
	if key != "" {
		at := b.n
		for _, part := range strings.Split(key, ".") {
			var next *node
			if at != nil && at.kind == mapNode {
				if e := at.get(part); e != nil {
					line, column, next = e.line, e.column, e.value
				}
			}
			var i int
			if _, err := fmt.Sscanf(part, "%d", &i); err == nil && at != nil && at.kind == listNode && i >= 0 && i < len(at.items) {
				next = at.items[i]
				line, column = next.line, next.column
			}
			if next == nil {
				break
			}
			at = next
		}
	}
	return b.src.errorf(line, column, "", format, a...)
}

// Canonical is the evaluated block as JSON with sorted keys, for cache keys: a
// sensitive value is there as var:NAME, so that changing it changes no key.
func (b Block) Canonical() ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(plainValue(b.n, true)); err != nil {
		return nil, err
	}
	return bytes.TrimRight(out.Bytes(), "\n"), nil
}

// Masked is the block with var:NAME in the place of sensitive values: what a
// backend decodes from it may enter a cache key.
func (b Block) Masked() Block {
	if b.n != nil {
		b.n = masked(b.n)
	}
	return b
}

func masked(n *node) *node {
	out := *n
	out.entries, out.items = nil, nil
	for _, e := range n.entries {
		e.value = masked(e.value)
		out.entries = append(out.entries, e)
	}
	for _, item := range n.items {
		out.items = append(out.items, masked(item))
	}
	if len(n.taint) > 0 && n.kind == scalarNode {
		out.value, out.text, out.taint = n.canon, text(n.canon), nil
	}
	return &out
}

// plainValue is a node as Go values.
func plainValue(n *node, masked bool) any {
	if n == nil {
		return map[string]any{}
	}
	switch n.kind {
	case mapNode:
		out := make(map[string]any, len(n.entries))
		for _, e := range n.entries {
			out[e.key] = plainValue(e.value, masked)
		}
		return out
	case listNode:
		out := make([]any, 0, len(n.items))
		for _, item := range n.items {
			out = append(out, plainValue(item, masked))
		}
		return out
	}
	if masked && len(n.taint) > 0 {
		return n.canon
	}
	return n.value
}
