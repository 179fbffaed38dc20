package template

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// evaluator replaces the expressions in nodes.
type evaluator struct {
	s     *source
	scope *scope
}

// eval evaluates a tree in place.
func (e *evaluator) eval(n *node) error {
	switch n.kind {
	case mapNode:
		for _, en := range n.entries {
			if err := e.eval(en.value); err != nil {
				return err
			}
		}
		return nil
	case listNode:
		for _, item := range n.items {
			if err := e.eval(item); err != nil {
				return err
			}
		}
		return nil
	}
	str, ok := n.value.(string)
	if !ok || !strings.Contains(str, "${{") {
		return nil
	}
	pieces, err := split(str)
	if err != nil {
		return e.fail(n, "", err)
	}
	if len(pieces) == 1 {
		if !pieces[0].expr {
			n.value, n.text = pieces[0].text, pieces[0].text
			return nil
		}
		res, err := e.scope.eval(pieces[0].text)
		if err != nil {
			return e.fail(n, pieces[0].text, err)
		}
		*n = *fromValue(n, res.value, res.canon, res.taint)
		return nil
	}
	return e.interpolate(n, pieces)
}

func (e *evaluator) interpolate(n *node, pieces []piece) error {
	var out, canon strings.Builder
	taint := map[string]bool{}
	for _, p := range pieces {
		value, masked := p.text, p.text
		if p.expr {
			res, err := e.scope.eval(p.text)
			if err == nil && res.value == nil {
				err = hinted{errors.New("the expression has no value"), `give a fallback: ${{ … ?? "…" }}`}
			}
			if err != nil {
				return e.fail(n, p.text, err)
			}
			value, masked = text(res.value), text(res.canon)
			for _, t := range res.taint {
				taint[t] = true
			}
		}
		out.WriteString(value)
		canon.WriteString(masked)
		if out.Len() > maxScalar {
			return e.fail(n, "", fmt.Errorf("the value is longer than %d KiB", maxScalar>>10))
		}
	}
	e.scope.total += out.Len()
	if e.scope.total > maxTotal {
		return e.fail(n, "", fmt.Errorf("the values of the expressions add up to more than %d MiB", maxTotal>>20))
	}
	n.value, n.text, n.computed = out.String(), out.String(), true
	if len(taint) > 0 {
		n.taint, n.canon = keys(taint), canon.String()
	}
	return nil
}

// fail places an error at the expression src within the node.
func (e *evaluator) fail(n *node, src string, err error) error {
	var done *Error
	if errors.As(err, &done) {
		return done
	}
	hint := ""
	var h hinted
	if errors.As(err, &h) {
		hint = h.hint
	}
	line, column := e.find(n, src)
	if src != "" && len(src) <= 60 {
		return e.s.errorf(line, column, hint, "${{ %s }}: %w", src, err)
	}
	return e.s.errorf(line, column, hint, "%w", err)
}

// find is where src stands at or after the start of n.
func (e *evaluator) find(n *node, src string) (line, column int) {
	if src == "" {
		return n.line, n.column
	}
	last := n.line
	if n.block {
		last += strings.Count(n.text, "\n") + 1
	}
	for l := n.line; l <= last && l <= len(e.s.lines); l++ {
		text, from := e.s.lines[l-1], 0
		if l == n.line {
			from = byteOffset(text, n.column-1)
		}
		if i := strings.Index(text[from:], src); i >= 0 {
			return l, 1 + utf8.RuneCountInString(text[:from+i])
		}
	}
	return n.line, n.column
}

func byteOffset(s string, runes int) int {
	for i := range s {
		if runes <= 0 {
			return i
		}
		runes--
	}
	return len(s)
}

// fromValue makes the node of an expression's value in the place of n.
func fromValue(n *node, v, canon any, taint []string) *node {
	out := &node{line: n.line, column: n.column, computed: true, taint: taint}
	switch v := v.(type) {
	case []any:
		out.kind = listNode
		masks, _ := canon.([]any)
		for i, item := range v {
			mask := canon
			if i < len(masks) {
				mask = masks[i]
			}
			out.items = append(out.items, fromValue(n, item, mask, taint))
		}
	case map[string]any:
		out.kind = mapNode
		masks, _ := canon.(map[string]any)
		for _, k := range keys(v) {
			mask, ok := masks[k]
			if !ok {
				mask = canon
			}
			out.entries = append(out.entries, entry{key: k, line: n.line, column: n.column, value: fromValue(n, v[k], mask, taint)})
		}
	default:
		out.value, out.text, out.canon = v, text(v), canon
	}
	return out
}
