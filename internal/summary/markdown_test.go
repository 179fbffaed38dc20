package summary

import (
	"bytes"
	"html"
	"regexp"
	"strings"
	"testing"

	"github.com/rebake/rebake/internal/ui"
	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/extension"
	gmhtml "github.com/yuin/goldmark/renderer/html"
)

// rendered is what a reader of GitHub's Markdown makes of it, HTML let through.
func rendered(t *testing.T, text string) string {
	t.Helper()
	var out bytes.Buffer
	gm := goldmark.New(goldmark.WithExtensions(extension.GFM), goldmark.WithRendererOptions(gmhtml.WithUnsafe()))
	if err := gm.Convert([]byte(text), &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

var tag = regexp.MustCompile(`</?([a-z0-9]+)[^>]*>`)

// tags counts the elements of a page.
func tags(page string) map[string]int {
	n := map[string]int{}
	for _, m := range tag.FindAllStringSubmatch(page, -1) {
		n[m[1]]++
	}
	return n
}

// The hostile text and a harmless one make the same page, but for the text.
func TestWhatAGuestSaysIsTextInMarkdown(t *testing.T) {
	bad := refused()
	good := refused()
	Map(&good, func(s string) string {
		s = strings.ReplaceAll(strings.ReplaceAll(s, hostile, "harmless"), "a|b", "ab")
		return s
	})
	was, is := tags(rendered(t, Markdown(good))), tags(rendered(t, Markdown(bad)))
	for _, counts := range []map[string]int{was, is} {
		if counts["table"] == 0 || counts["a"] != 0 || counts["script"] != 0 || counts["em"] != 0 || counts["code"] != 0 || counts["ol"] != 0 || counts["img"] != 0 {
			t.Errorf("%v", counts)
		}
	}
	for name, n := range is {
		if was[name] != n {
			t.Errorf("%d of <%s>, and %d where the text is harmless", n, name, was[name])
		}
	}
	page := rendered(t, Markdown(bad))
	for _, want := range []string{"[x](http://evil.example) | red @all # big 1. no", "a|b.yaml"} {
		if !strings.Contains(html.UnescapeString(tag.ReplaceAllString(page, "")), want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
}

var cell = regexp.MustCompile(`(?s)<tbody>\s*<tr>\s*<td>(.*?)</td>\s*</tr>\s*</tbody>`)

func FuzzACellIsItsText(f *testing.F) {
	for _, s := range []string{hostile, "", `\`, `\|`, "1. a", "- a", "+ a", "# a", "a\nb", "`|`", "<!--", "&lt;", "http://a.b", "www.a.bc", "a@b.cd", "~~a~~", "**a**", "_a_", "![a](b)", "---", "===", "$a$", "[ ] a", "a  b", " a "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want := strings.Join(strings.Fields(ui.Clean(strings.ReplaceAll(s, "\n", " "))), " ")
		m := cell.FindStringSubmatch(rendered(t, table([]string{"head"}, [][]string{{s}})))
		if m == nil {
			t.Fatalf("no cell in %q", rendered(t, table([]string{"head"}, [][]string{{s}})))
		}
		if got := html.UnescapeString(m[1]); got != want || strings.Contains(m[1], "<") {
			t.Fatalf("%q became %q, want %q", s, m[1], want)
		}
	})
}
