package retain

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rebake/rebake/artifact"
)

var now = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

func image(name string, n int, age time.Duration, tags ...string) artifact.Image {
	return artifact.Image{Name: name, Version: fmt.Sprint(n), Created: now.Add(-age), Tags: tags,
		Digest: artifact.Digest(fmt.Sprintf("%s-%d", name, n)), Content: artifact.Digest(fmt.Sprintf("content of %s-%d", name, n))}
}

func TestReasons(t *testing.T) {
	child := image("web", 9, day)
	child.Lineage.ParentDigest = "base-1"
	young := Rules{MinAge: DefaultMinAge, KeepPrevious: 1}
	for name, tt := range map[string]struct {
		images []artifact.Image
		rules  map[string]Rules
		uses   []Use
		want   []string
	}{
		"newest": {
			[]artifact.Image{image("web", 1, 9*day), image("web", 2, 8*day), image("web", 3, 7*day)}, map[string]Rules{"web": {KeepLast: 2}}, nil,
			[]string{"keep 3: 1st newest, within keep_last 2", "keep 2: 2nd newest, within keep_last 2", "remove 1: 3rd newest, beyond keep_last 2"},
		},
		"age": {
			[]artifact.Image{image("web", 1, 20*day), image("web", 2, 5*day)}, map[string]Rules{"web": {MaxAge: Age(14 * day)}}, nil,
			[]string{"keep 2: 5 days old, younger than max_age 14d", "remove 1: 20 days old, over max_age 14d"},
		},
		"exactly as old": {
			[]artifact.Image{image("web", 1, 14*day), image("web", 2, day)}, map[string]Rules{"web": {MaxAge: Age(14 * day), MinAge: Age(day)}}, nil,
			[]string{"keep 2: 24 hours old, younger than max_age 14d", "remove 1: 14 days old, over max_age 14d"},
		},
		"both": {
			[]artifact.Image{image("web", 1, 20*day), image("web", 2, 19*day), image("web", 3, 3*day), image("web", 4, 2*day)},
			map[string]Rules{"web": {KeepLast: 1, MaxAge: Age(14 * day)}}, nil,
			[]string{"keep 4: 1st newest, within keep_last 1", "keep 3: 3 days old, younger than max_age 14d",
				"remove 2: 3rd newest, beyond keep_last 1; 19 days old, over max_age 14d", "remove 1: 4th newest, beyond keep_last 1; 20 days old, over max_age 14d"},
		},
		"too young": {
			[]artifact.Image{image("web", 1, time.Hour), image("web", 2, 0), image("web", 3, -time.Hour)}, map[string]Rules{"web": {KeepLast: 1, MinAge: DefaultMinAge}}, nil,
			[]string{"keep 3: made in the future, younger than min_age 1d", "keep 2: just made, younger than min_age 1d", "keep 1: 60 minutes old, younger than min_age 1d"},
		},
		"tags": {
			[]artifact.Image{image("web", 1, 9*day, "stable"), image("web", 2, 8*day, "a", "b"), image("web", 3, 7*day)}, map[string]Rules{"web": {KeepLast: 1}}, nil,
			[]string{"keep 3: 1st newest, within keep_last 1", "keep 2: tags a, b point at it", "keep 1: tag stable points at it"},
		},
		"tags that match": {
			[]artifact.Image{image("web", 1, 9*day, "release-1", "x"), image("web", 2, 8*day, "x"), image("web", 3, 7*day, "latest")},
			map[string]Rules{"web": {MaxAge: Age(day), KeepTags: []string{"release-*"}}}, nil,
			[]string{"keep 3: tag latest points at it", "remove 2: 8 days old, over max_age 1d", "keep 1: tag release-1 points at it"},
		},
		"use": {
			[]artifact.Image{image("web", 1, 9*day), image("web", 2, 8*day), image("web", 3, 7*day)}, map[string]Rules{"web": {KeepLast: 1}},
			[]Use{{Image: "web-1", Why: "fleet web runs it"}, {Content: "content of web-2", Why: "a build is on it"}},
			[]string{"keep 3: 1st newest, within keep_last 1", "keep 2: a build is on it", "keep 1: fleet web runs it"},
		},
		"no rules": {
			[]artifact.Image{image("db", 1, 900*day), image("web", 1, 900*day)}, map[string]Rules{"web": young}, nil,
			[]string{"keep 1: no rule removes it", "keep 1: no rule removes it"},
		},
		"parents": {
			[]artifact.Image{image("base", 1, 99*day), image("base", 2, 98*day), child},
			map[string]Rules{"web": {KeepLast: 1, KeepParents: true}, "base": {MaxAge: Age(day)}}, nil,
			[]string{"remove 2: 98 days old, over max_age 1d", "keep 1: web:9 was made from it, and is kept", "keep 9: 1st newest, within keep_last 1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, d := range Plan(tt.images, tt.rules, tt.uses, now) {
				got = append(got, map[bool]string{false: "keep ", true: "remove "}[d.Remove]+d.Image.Version+": "+d.Why)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// world is a random store with random rules and uses.
type world struct {
	images []artifact.Image
	rules  map[string]Rules
	uses   []Use
}

func random(r *rand.Rand) world {
	w := world{rules: map[string]Rules{}}
	for _, name := range []string{"base", "db", "web"} {
		if r.IntN(5) > 0 {
			w.rules[name] = Rules{KeepLast: r.IntN(4), MaxAge: Age(time.Duration(r.IntN(3)*r.IntN(30)) * day), MinAge: Age(time.Duration(r.IntN(3)) * day), KeepParents: r.IntN(2) == 0,
				KeepTags: [][]string{nil, {"stable"}, {"release-*", "x"}}[r.IntN(3)]}
		}
		for n := range r.IntN(8) {
			img := image(name, n, time.Duration(r.IntN(40*24)-10)*time.Hour)
			for _, tag := range []string{"latest", "stable", "release-1", "x"} {
				if r.IntN(8) == 0 {
					img.Tags = append(img.Tags, tag)
				}
			}
			if len(w.images) > 0 && r.IntN(3) > 0 {
				img.Lineage.ParentDigest = w.images[r.IntN(len(w.images))].Digest
			}
			w.images = append(w.images, img)
		}
	}
	if len(w.images) > 1 && r.IntN(4) == 0 { // a line in a circle, as a hostile image may claim
		w.images[0].Lineage.ParentDigest, w.images[1].Lineage.ParentDigest = w.images[1].Digest, w.images[0].Digest
	}
	for _, img := range w.images {
		switch r.IntN(10) {
		case 0:
			w.uses = append(w.uses, Use{Image: img.Digest, Why: "fleet x runs it"})
		case 1:
			w.uses = append(w.uses, Use{Content: img.Content, Why: "a build is on it"})
		}
	}
	return w
}

func removed(plan []Decision) map[artifact.Digest]bool {
	out := map[artifact.Digest]bool{}
	for _, d := range plan {
		if d.Remove {
			out[d.Image.Digest] = true
		}
	}
	return out
}

// whyNot is what forbids that an image goes, said another way than Plan says it.
func whyNot(w world, img artifact.Image, gone map[artifact.Digest]bool) string {
	r, ok := w.rules[img.Name]
	if !ok || r.KeepLast == 0 && r.MaxAge == 0 {
		return "its name has no rule that removes"
	}
	newer := 0
	for _, other := range w.images {
		if other.Name == img.Name && artifact.NewestFirst(other, img) < 0 {
			newer++
		}
		if other.Lineage.ParentDigest == img.Digest && !gone[other.Digest] && w.rules[other.Name].KeepParents {
			return "a child of it is kept, whose rules keep parents"
		}
	}
	if newer < r.KeepLast {
		return "it is one of the newest"
	}
	age := now.Sub(img.Created)
	if age < time.Duration(r.MinAge) || age < time.Duration(r.MaxAge) {
		return "it is too young"
	}
	for _, u := range w.uses {
		if u.Image == img.Digest || u.Content == img.Content {
			return "it is in use"
		}
	}
	for _, t := range img.Tags {
		if t == "latest" || r.KeepTags == nil {
			return "a tag points at it"
		}
		for _, p := range r.KeepTags {
			if ok, err := path.Match(p, t); err != nil || ok {
				return "a tag points at it that is kept"
			}
		}
	}
	return ""
}

func TestNothingGoesThatAnythingKeeps(t *testing.T) {
	all, some := 0, 0
	for seed := range uint64(6_000) {
		r := rand.New(rand.NewPCG(seed, 7))
		w := random(r)
		plan := Plan(w.images, w.rules, w.uses, now)
		gone := removed(plan)
		all, some = all+len(plan), some+len(gone)
		if len(plan) != len(w.images) {
			t.Fatalf("seed %d: %d decisions about %d images", seed, len(plan), len(w.images))
		}
		var left []artifact.Image
		for _, d := range plan {
			if d.Why == "" || strings.ContainsAny(d.Why, "\n") {
				t.Fatalf("seed %d: %s:%s has the reason %q", seed, d.Image.Name, d.Image.Version, d.Why)
			}
			why := whyNot(w, d.Image, gone)
			if d.Remove && why != "" {
				t.Fatalf("seed %d: %s:%s goes (%s), though %s", seed, d.Image.Name, d.Image.Version, d.Why, why)
			}
			// The other way round only without the lines of parents: there a kept one may be an ancestor's ancestor.
			if !d.Remove && why == "" && !strings.Contains(d.Why, "was made from it") {
				t.Fatalf("seed %d: %s:%s stays (%s), though nothing keeps it", seed, d.Image.Name, d.Image.Version, d.Why)
			}
			if !d.Remove {
				left = append(left, d.Image)
			}
		}
		// Carried out, it is done: the same moment finds nothing more.
		if again := removed(Plan(left, w.rules, w.uses, now)); len(again) > 0 {
			t.Fatalf("seed %d: a second plan removes %v", seed, again)
		}
		// Carried out half, the rest goes later.
		half := slices.DeleteFunc(slices.Clone(w.images), func(i artifact.Image) bool { return gone[i.Digest] && r.IntN(2) == 0 })
		for d := range removed(Plan(half, w.rules, w.uses, now)) {
			if !gone[d] {
				t.Fatalf("seed %d: after half of it %s goes too", seed, d)
			}
		}
		// One more use never makes another image go.
		if len(w.images) > 0 {
			more := append(slices.Clone(w.uses), Use{Image: w.images[r.IntN(len(w.images))].Digest, Why: "x"})
			for d := range removed(Plan(w.images, w.rules, more, now)) {
				if !gone[d] {
					t.Fatalf("seed %d: with one more use %s goes", seed, d)
				}
			}
		}
	}
	if some < all/20 || some > all/2 {
		t.Errorf("%d of %d go: the worlds prove little", some, all)
	}
}

func TestRulesThatMakeNoSense(t *testing.T) {
	good := Default()
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for want, edit := range map[string]func(*Rules){
		"keep_last":                            func(r *Rules) { r.KeepLast = -1 },
		"keep_previous must be at least 1":     func(r *Rules) { r.KeepPrevious = 0 },
		"below zero":                           func(r *Rules) { r.MinAge = -1 },
		"max_age 1h is less than min_age 1d":   func(r *Rules) { r.MaxAge = Age(time.Hour) },
		"names no tag":                         func(r *Rules) { r.KeepTags = []string{} },
		`"[" is no pattern such as stable or`:  func(r *Rules) { r.KeepTags = []string{"["} },
		`"" is no pattern such as stable or r`: func(r *Rules) { r.KeepTags = []string{""} },
	} {
		r := Default()
		edit(&r)
		if err := r.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v; want %q", r, err, want)
		}
	}
}

func TestAges(t *testing.T) {
	for text, want := range map[string]string{"30d": "30d", "24h": "1d", "36h": "36h", "90m": "1h30m", "0s": "0s", "0d": "0s", "10s": "10s", "1h0m1s": "1h0m1s", "20m": "20m"} {
		var a, b Age
		if err := a.UnmarshalText([]byte(text)); err != nil || a.String() != want {
			t.Errorf("%s is %s, %v; want %s", text, a, err, want)
		}
		raw, err := json.Marshal(a)
		if err == nil {
			err = json.Unmarshal(raw, &b)
		}
		if err != nil || a != b {
			t.Errorf("%s comes back as %s, %v", raw, b, err)
		}
	}
	for _, text := range []string{"", "d", "-1d", "1.5d", "-1h", "30", "99999d", "1w"} {
		var a Age
		if err := a.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is %s", text, a)
		}
	}
}
