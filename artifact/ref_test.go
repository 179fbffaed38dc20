package artifact_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
)

func TestParseRef(t *testing.T) {
	hexa := strings.Repeat("0123456789abcdef", 4)
	for name, c := range map[string]struct {
		in   string
		want artifact.Ref
	}{
		"a name is its latest": {"web", artifact.Ref{Name: "web", Tag: "latest"}},
		"version":              {"web:1.4.0", artifact.Ref{Name: "web", Tag: "1.4.0"}},
		"version with build":   {"web:1.4.0-rc.1+b5", artifact.Ref{Name: "web", Tag: "1.4.0-rc.1+b5"}},
		"tag in capitals":      {"web:Stable_1", artifact.Ref{Name: "web", Tag: "Stable_1"}},
		"parts":                {"team/web-1/x.y:t", artifact.Ref{Name: "team/web-1/x.y", Tag: "t"}},
		"digest":               {"web@sha256:" + hexa, artifact.Ref{Name: "web", Digest: artifact.Digest("sha256:" + hexa)}},
		"short digest":         {"web@0123456789ab", artifact.Ref{Name: "web", Digest: "sha256:0123456789ab"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := artifact.ParseRef(c.in)
			if err != nil || got != c.want {
				t.Errorf("%+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}

func TestParseRefRefuses(t *testing.T) {
	for in, says := range map[string]string{
		"":                                      "name is missing",
		":1":                                    "name is missing",
		"@sha256:0123456789ab":                  "name is missing",
		"Web":                                   "lower-case",
		"web/":                                  "lower-case",
		"/web":                                  "lower-case",
		"../web":                                "lower-case",
		"a//b":                                  "lower-case",
		"we b":                                  "lower-case",
		"web\x00":                               "lower-case",
		"-web":                                  "lower-case",
		"web:":                                  "no version or tag",
		"web:a:b":                               "no version or tag",
		"web:.x":                                "no version or tag",
		"web:a/b":                               "no version or tag",
		"web:1@sha256:0123456789a":              "not both",
		"web@sha256:0123456789a":                "12 to 64",
		"web@sha256:0123456789AB":               "lower-case hex",
		"web@md5:0123456789abc":                 "a digest is sha256",
		"web@":                                  "a digest is sha256",
		"web@sha256:" + strings.Repeat("0", 65): "12 to 64",
		strings.Repeat("w", 129):                "longer than 128",
		"web:" + strings.Repeat("1", 129):       "at most 128",
	} {
		r, err := artifact.ParseRef(in)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.40q is %+v, %v; want an error that says %q", in, r, err, says)
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Errorf("%.40q: an error of %d bytes", in, len(err.Error()))
		}
	}
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"web", "web:1", "a/b@sha256:0123456789ab", "web@0123456789abc", "web:1@x", ":", "@", "A", "..", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := artifact.ParseRef(s)
		if err != nil {
			if r != (artifact.Ref{}) {
				t.Errorf("%q is refused, and is %+v", s, r)
			}
			return
		}
		again, err := artifact.ParseRef(r.String())
		if err != nil || again != r {
			t.Errorf("%q is %+v, whose text %q is %+v, %v", s, r, r.String(), again, err)
		}
		if strings.Contains(r.Name, "..") && strings.Contains(r.Name, "/../") || strings.ContainsAny(r.String(), " \x00\\\n\"") {
			t.Errorf("%q lets through %q", s, r.String())
		}
	})
}

func TestDigestValidate(t *testing.T) {
	good := artifact.Digest("sha256:" + strings.Repeat("0123456789abcdef", 4))
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for _, bad := range []artifact.Digest{"", "sha256:", good[:70], good + "0", artifact.Digest(good.Hex()), "sha512:" + good[7:],
		artifact.Digest(strings.ToUpper(string(good))), "sha256:" + good[7:69] + "/x", "sha256:" + good[7:69] + ".."} {
		if bad.Validate() == nil {
			t.Errorf("%q is valid", bad)
		}
	}
}

func TestNextSerial(t *testing.T) {
	now := time.Date(2026, 11, 24, 23, 30, 0, 0, time.FixedZone("", -3600)) // the 25th in UTC
	for name, c := range map[string]struct {
		have []string
		want string
	}{
		"first of all":              {nil, "20261125.1"},
		"first of the day":          {[]string{"20261124.7"}, "20261125.1"},
		"after the highest":         {[]string{"20261125.9", "20261125.10", "20261125.2"}, "20261125.11"},
		"others are no serials":     {[]string{"1.2.3", "20261125", "20261125.x", "20261125.-4", "latest"}, "20261125.1"},
		"a number too large for us": {[]string{"20261125.99999999999999999999"}, "20261125.1"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := artifact.NextSerial(c.have, now); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

func TestCompareVersions(t *testing.T) {
	order := []string{"", "0.9", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-rc2", "1.0.0-rc10", "1.0.0", "1.0.0+b1", "1.0.0+b2", "1.0.1", "1.9.0", "1.10.0", "2.0.0",
		"20261124.2", "20261124.10", "20261125.1", "99999999999999999999999.1", "a", "b"}
	for i, a := range order {
		for j, b := range order {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := artifact.CompareVersions(a, b); got != want {
				t.Errorf("%q to %q is %d, want %d", a, b, got, want)
			}
		}
	}
	mixed := slices.Clone(order)
	slices.Reverse(mixed)
	slices.SortFunc(mixed, artifact.CompareVersions)
	if !slices.Equal(mixed, order) {
		t.Errorf("sorted: %q", mixed)
	}
}
