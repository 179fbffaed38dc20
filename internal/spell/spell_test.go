package spell_test

import (
	"strings"
	"testing"

	"github.com/rebake/rebake/internal/spell"
)

func TestNearest(t *testing.T) {
	valid := []string{"build", "deploy", "images", "plan", "größe", "up"}
	for word, want := range map[string]string{
		"biuld": "build", "Deploy": "deploy", "image": "images", "pln": "plan", "grösse": "größe",
		"terraform": "", "": "", "xy": "", "u": "", strings.Repeat("a", 1000): "",
	} {
		if got := spell.Nearest(word, valid); got != want {
			t.Errorf("%.20q: %q, want %q", word, got, want)
		}
	}
	if got := spell.Nearest("bat", []string{"cat", "bad"}); got != "bad" {
		t.Errorf("of two as near: %q", got)
	}
}
