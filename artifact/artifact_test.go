package artifact

import (
	"testing"
	"time"
)

func TestParseRef(t *testing.T) {
	for in, want := range map[string]string{
		"web": "web:latest", "web:1.4.0": "web:1.4.0", "team/web:nightly": "team/web:nightly",
		"web@sha256:0123456789ab": "web@sha256:0123456789ab",
		"":                        "", "Web": "", "web:": "", "web:a b": "", "../web": "", "web@sha256:01": "", "web:1@sha256:0123456789ab": "", "a//b": "",
	} {
		r, err := ParseRef(in)
		if want == "" {
			if err == nil {
				t.Errorf("%q was read as %s", in, r)
			}
			continue
		}
		if err != nil || r.String() != want {
			t.Errorf("%q is %s, %v; want %s", in, r, err, want)
		}
	}
}

func TestNextSerialGoesOnAfterTheHighest(t *testing.T) {
	now := time.Date(2026, 11, 24, 1, 0, 0, 0, time.UTC)
	if got := NextSerial([]string{"20261124.9", "20261124.10", "20261123.99", "1.0"}, now); got != "20261124.11" {
		t.Error(got)
	}
}

func FuzzParseRef(f *testing.F) {
	f.Add("web:1.4.0")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil {
			return
		}
		if again, err := ParseRef(r.String()); err != nil || again != r {
			t.Errorf("%q reads as %v, then as %v, %v", s, r, again, err)
		}
	})
}
