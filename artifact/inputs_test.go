package artifact_test

import (
	"testing"

	"github.com/rebake/rebake/artifact"
)

func inputs(pairs ...string) (in artifact.Inputs) {
	for i := 0; i < len(pairs); i += 2 {
		in.Add(pairs[i], pairs[i+1])
	}
	return in
}

func TestInputsDifference(t *testing.T) {
	for name, c := range map[string]struct {
		old, now      artifact.Inputs
		at, was, now2 string
	}{
		"none":                  {inputs("a", "1"), inputs("a", "1"), "", "", ""},
		"nothing before":        {"", inputs("a", "1"), "a", "", "1"},
		"nothing now":           {inputs("a", "1"), "", "a", "1", ""},
		"a value":               {inputs("a", "1", "b", "2"), inputs("a", "1", "b", "3"), "b", "2", "3"},
		"the first of two":      {inputs("a", "1", "b", "2"), inputs("a", "0", "b", "3"), "a", "1", "0"},
		"one more at the end":   {inputs("a", "1"), inputs("a", "1", "b", "3"), "b", "", "3"},
		"one less at the end":   {inputs("a", "1", "b", "3"), inputs("a", "1"), "b", "3", ""},
		"one more between":      {inputs("a", "1", "c", "3"), inputs("a", "1", "b", "2", "c", "3"), "b", "", "2"},
		"one less between":      {inputs("a", "1", "b", "2", "c", "3"), inputs("a", "1", "c", "3"), "b", "2", ""},
		"lines and quotes":      {inputs("s", "echo \"a\"\nb"), inputs("s", "echo \"a\"\nc"), "s", "echo \"a\"\nb", "echo \"a\"\nc"},
		"what is no input text": {artifact.Inputs("junk"), inputs("a", "1"), "a", "", "1"},
	} {
		t.Run(name, func(t *testing.T) {
			at, was, is := c.now.Difference(c.old)
			if at != c.at || was != c.was || is != c.now2 {
				t.Errorf("got %q %q %q", at, was, is)
			}
			if (at == "") != (c.old.Digest() == c.now.Digest()) {
				t.Error("the digests say otherwise")
			}
		})
	}
}
