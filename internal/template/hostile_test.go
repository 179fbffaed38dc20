package template

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestHostileInputIsRefusedFast(t *testing.T) {
	bomb := "a: &a [x, x, x, x, x, x, x, x, x]\n"
	for c := 'b'; c <= 'z'; c++ {
		bomb += string(c) + ": &" + string(c) + " [" + strings.Repeat("*"+string(c-1)+", ", 8) + "*" + string(c-1) + "]\n"
	}
	doubling := partHead + "variables:\n  v0: xxxxxxxxxxxxxxxx\n"
	for i := 1; i < 60; i++ {
		v := func(n int) string { return "v" + string(rune('0'+n/10)) + string(rune('0'+n%10)) }
		if i == 1 {
			doubling += "  v00: xxxxxxxxxxxxxxxx\n"
		}
		doubling += "  " + v(i) + ": '${{ var." + v(i-1) + " }}${{ var." + v(i-1) + " }}'\n"
	}
	stairs := ""
	for i := range 1200 {
		stairs += strings.Repeat(" ", i) + "a:\n"
	}
	for _, c := range []struct{ name, text, want string }{
		{"10 MB of brackets", strings.Repeat("[", 10<<20), "larger than"},
		{"1 MB of brackets", "a: " + strings.Repeat("[", 1000_000), "nested deeper"},
		{"1 MB of braces", "a: " + strings.Repeat("{a: ", 250_000), "nested deeper"},
		{"brackets on many lines", strings.Repeat("[\n", 500_000), "nested deeper"},
		{"dashes", strings.Repeat("- ", 500_000), "nested deeper"},
		{"question marks", strings.Repeat("? ", 500_000), "nested deeper"},
		{"stairs", stairs, "nested deeper"},
		{"brackets after a fake block scalar", "a: 'b |'\nc: " + strings.Repeat("[", 900_000), ""},
		{"brackets in a quote that is none", "a: it 's\nc: " + strings.Repeat("[", 900_000), ""},
		{"alias bomb", bomb, "more than 100000 values"},
		{"alias of itself", "a: &a [*a]\n", "alias *a contains itself"},
		{"variables that double", doubling, "larger than 64 KiB"},
		{"NUL", "name: a\x00b\n", "t.yaml:1:8: it holds a NUL byte"},
		{"not UTF-8", "name: a\nb: \xff\xfe\n", "t.yaml:2:4: it is not valid UTF-8"},
		{"many keys", "a: {" + strings.Repeat("k: 1, ", 150_000) + "}\n", ""},
		{"many comments", strings.Repeat("#\n", 500_000), "empty"},
		{"many anchors", strings.Repeat("- &a b\n", 140_000), "more than"},
		{"long plain text", "a: " + strings.Repeat("x ", 500_000), "unknown key"},
		{"many quotes", "a: " + strings.Repeat(`"`, 1000_000), ""},
		{"long expression", partHead + "labels: {a: '${{ " + strings.Repeat("1+", 5000) + "1 }}'}\n", "longer than"},
		{"deep expression", partHead + "labels: {a: '${{ " + strings.Repeat("(", 900) + " }}'}\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			start := time.Now()
			_, err := loadText(t, c.text, Options{})
			took := time.Since(start)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v", err)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %.300s, want %q", err, c.want)
			}
			if len(err.Error()) > 2000 {
				t.Errorf("the message has %d bytes", len(err.Error()))
			}
			if took > slower*3*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

func TestNestingInTextIsNotNesting(t *testing.T) {
	deep := strings.Repeat("{[(", 2000)
	mustLoad(t, partHead+"provision:\n  - shell:\n      inline:\n        - |\n          "+deep+"\n        - '"+deep+"'\n        - \""+deep+"\"\n        - x"+deep+"\n    # "+deep+"\n", Options{})
}

func FuzzLoad(f *testing.F) {
	for _, text := range valid {
		f.Add(text)
	}
	for _, text := range examples(f) {
		f.Add(text)
	}
	files, err := filepath.Glob("../../templates/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	for _, text := range []string{
		"", "a: &a [*a]\n", "[[[[", "{{{{", "- - - -", "? ? ?", "a: !!binary x", "<<: *a", "name: ${{", "name: '${{ }}'",
		partHead + "labels: {a: '${{ var.x }}'}\nvariables: {x: '${{ var.x }}'}\n",
		partHead + "variables: {x: {sensitive: true, default: abcdef}}\nprovision: [{shell: {env: {a: '${{ var.x }}'}}}]\n",
		"name: \x00", "\xff", "---\n---\n", "%YAML 1.1\n---\na: b\n", "a: |\n  b\n c", "a: .nan\n", "a: 0x1F\nb: 1_000\nc: 1e400\n",
	} {
		f.Add(text)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		s, err := newSource("t.yaml", []byte(text))
		var tpl *Template
		if err == nil {
			tpl, err = load(s, dir, Options{Kinds: testKinds(), Now: fixed, Scope: map[string]any{"git": map[string]any{}}})
		}
		if err != nil {
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("not an *Error: %v", err)
			}
			if msg := err.Error(); msg == "" || !utf8.ValidString(msg) {
				t.Fatalf("message %q", msg)
			}
			return
		}
		for _, st := range append(tpl.Steps, tpl.Tests...) {
			b, err := st.Block.Canonical()
			if err != nil {
				t.Fatal(err)
			}
			for _, sec := range tpl.Secrets {
				// Written once it is the variable's own default, nothing that may show.
				if len(sec) > 8 && strings.Count(text, sec) == 1 && strings.Contains(string(b), sec) {
					t.Fatalf("secret %q in %s", sec, b)
				}
			}
			st.Block.Errorf("env.a", "x")
		}
	})
}

func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		if _, err := Load("../../templates/web.yaml", Options{Kinds: testKinds()}); err != nil {
			b.Fatal(err)
		}
	}
}
