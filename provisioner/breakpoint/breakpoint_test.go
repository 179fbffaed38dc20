package breakpoint_test

import (
	"testing"

	"github.com/rebake/rebake/provisioner/breakpoint"
	"github.com/rebake/rebake/test/fake"
)

func TestBreakpoint(t *testing.T) {
	for name, tt := range map[string]struct {
		cfg  breakpoint.Config
		note string
	}{
		"with a note":    {breakpoint.Config{Note: "look"}, "look"},
		"without a note": {breakpoint.Config{}, "a breakpoint"},
		"disabled":       {breakpoint.Config{Note: "look", Disable: true}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := breakpoint.New(tt.cfg)
			note := ""
			if b, ok := p.(interface{ Breakpoint() string }); ok {
				note = b.Breakpoint()
			}
			if note != tt.note {
				t.Errorf("the person is told %q, want %q", note, tt.note)
			}
			if in, ok, err := p.Key(t.Context()); in != "" || !ok || err != nil {
				t.Errorf("key %q, %v, %v", in, ok, err)
			}
			g := &fake.Guest{}
			if err := p.Provision(t.Context(), g); err != nil || len(g.Commands()) > 0 {
				t.Errorf("%v; it ran %v", err, g.Commands())
			}
		})
	}
}
