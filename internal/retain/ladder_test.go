package retain

import (
	"testing"
	"time"
)

func days(n int) *Age { a := Age(time.Duration(n) * 24 * time.Hour); return &a }

func TestTheLadderIsTakenRungByRung(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	before := func(n int) time.Time { return now.Add(-time.Duration(n) * 24 * time.Hour) }
	all := Ladder{Deprecate: days(30), Disable: days(60), Delete: days(90), MinAge: *days(1)}
	taken := func(at ...int) map[Rung]time.Time {
		out := map[Rung]time.Time{}
		for i, n := range at {
			if n >= 0 {
				out[[]Rung{Deprecate, Disable, Delete}[i]] = before(n)
			}
		}
		return out
	}
	for name, c := range map[string]struct {
		l             Ladder
		removed, made int // days ago
		taken         map[Rung]time.Time
		want          Rung
		why           string
	}{
		"kept a while":                      {all, 29, 300, nil, "", "removed 29 days ago; deprecate after 30d"},
		"first":                             {all, 30, 300, nil, Deprecate, "removed 30 days ago, over ami.deprecate 30d"},
		"second is not due":                 {all, 59, 300, taken(29), "", "removed 59 days ago; disable after 60d"},
		"second":                            {all, 60, 300, taken(30), Disable, "removed 60 days ago, over ami.disable 60d"},
		"third":                             {all, 91, 300, taken(60, 30), Delete, "removed 91 days ago, over ami.delete 90d"},
		"nobody pruned for a year":          {all, 365, 400, nil, Deprecate, "removed 365 days ago, over ami.deprecate 30d"},
		"a year late, the next day":         {all, 366, 400, taken(1), "", "deprecated 24 hours ago; disable 30d after that"},
		"a year late, disabled since a day": {all, 396, 400, taken(31, 1), "", "disabled 24 hours ago; delete 30d after that"},
		"young, though removed":             {Ladder{Delete: days(0), MinAge: *days(2)}, 1, 1, nil, "", "its AMI is 24 hours old, younger than ami.min_age 2d"},
		"at once":                           {Ladder{Delete: days(0)}, 0, 0, nil, Delete, "removed just now, over ami.delete 0s"},
		"one rung alone":                    {Ladder{Delete: days(7)}, 8, 10, nil, Delete, "removed 8 days ago, over ami.delete 7d"},
		"the end of a short one":            {Ladder{Deprecate: days(7)}, 80, 90, taken(70), "", "deprecated, and ami: has no further step"},
		"no time between two":               {Ladder{Disable: days(7), Delete: days(7)}, 8, 10, taken(-1, 0), Delete, "removed 8 days ago, over ami.delete 7d"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := c.l.Check(); err != nil {
				t.Fatal(err)
			}
			got, why := c.l.Next(before(c.removed), before(c.made), c.taken, now)
			if got != c.want || why != c.why {
				t.Errorf("%q: %s\nwant %q: %s", got, why, c.want, c.why)
			}
		})
	}
	for want, l := range map[string]Ladder{
		"ami needs deprecate, disable or delete: for example {deprecate: 30d, disable: 60d, delete: 90d}": {MinAge: *days(1)},
		"ami: delete 1d comes before disable 2d":                                                          {Disable: days(2), Delete: days(1)},
		"ami: an age cannot be below zero":                                                                {Disable: days(-2)},
	} {
		if err := l.Check(); err == nil || err.Error() != want {
			t.Errorf("%+v: %v, want %s", l, err, want)
		}
	}
	if err := (Rules{KeepPrevious: 1, AMI: &Ladder{}}).Check(); err == nil {
		t.Error("rules with an empty ladder pass")
	}
}
