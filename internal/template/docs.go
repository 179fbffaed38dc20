package template

import (
	"embed"
	"fmt"
)

//go:embed docs/*.md
var docs embed.FS

// Sections lists the sections of the reference in reading order.
func Sections() []string {
	return []string{"template", "variables", "build", "provision", "test", "seal", "fleet", "deploy"}
}

// Docs is the text of a section of the reference, in Markdown. Its examples are
// checked by this package's tests: a ```yaml block is a whole template, a
// ```yaml part block stands in one that has a name and a build.
func Docs(section string) (string, error) {
	if !contains(Sections(), section) {
		return "", fmt.Errorf("there is no section %q", section)
	}
	b, err := docs.ReadFile("docs/" + section + ".md")
	return string(b), err
}
