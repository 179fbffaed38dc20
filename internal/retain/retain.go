// Package retain decides which images stay and which go. Plan is a pure function
// over what the store has, the rules, what is in use, and the time; it says why, of
// each image. It knows no store and no fleet: whoever asks it gathers the facts, and
// must not ask if one of them cannot be had.
package retain

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
)

// What rules say that say nothing else.
const (
	DefaultMinAge   = Age(24 * time.Hour)
	DefaultPrevious = 1
)

// Rules say which images of a name stay. An image goes if nothing keeps it: each
// of the fields can only keep. Without KeepLast and MaxAge nothing goes.
type Rules struct {
	KeepLast     int      `json:"keep_last,omitempty"`    // the newest so many; 0: it does not keep
	MaxAge       Age      `json:"max_age,omitempty"`      // those that are younger; 0: it does not keep
	MinAge       Age      `json:"min_age"`                // those that are younger, whatever else is said
	KeepTags     []string `json:"keep_tags,omitempty"`    // those with a tag that matches; nil: with any tag. latest always
	KeepPrevious int      `json:"keep_previous"`          // so many images before the current one of each fleet
	KeepParents  bool     `json:"keep_parents,omitempty"` // what a kept image was made from
	AMI          *Ladder  `json:"ami,omitempty"`          // by which AMIs of removed images go; nil: they stay
}

// Default are rules by which nothing goes.
func Default() Rules { return Rules{MinAge: DefaultMinAge, KeepPrevious: DefaultPrevious} }

// Empty says that nothing goes by the rules.
func (r Rules) Empty() bool { return r.KeepLast == 0 && r.MaxAge == 0 }

// Check says which rule makes no sense, or nil.
func (r Rules) Check() error {
	switch {
	case r.KeepLast < 0:
		return errors.New("keep_last cannot be below zero")
	case r.KeepPrevious < 1:
		return errors.New("keep_previous must be at least 1: a fleet can always go back to the image before")
	case r.MinAge < 0 || r.MaxAge < 0:
		return errors.New("an age cannot be below zero")
	case r.MaxAge > 0 && r.MaxAge < r.MinAge:
		return fmt.Errorf("max_age %s is less than min_age %s, so min_age alone would count", r.MaxAge, r.MinAge)
	case r.KeepTags != nil && len(r.KeepTags) == 0:
		return errors.New("keep_tags names no tag: without it every tag keeps its image, with [latest] only that one does")
	}
	for _, p := range r.KeepTags {
		if _, err := path.Match(p, ""); err != nil || p == "" {
			return fmt.Errorf("keep_tags: %q is no pattern such as stable or release-*", p)
		}
	}
	if r.AMI != nil {
		return r.AMI.Check()
	}
	return nil
}

// Use is why an image, or all of a content, must stay.
type Use struct {
	Image   artifact.Digest `json:"image,omitempty"`
	Content artifact.Digest `json:"content,omitempty"` // if Image is ""
	Why     string          `json:"why"`               // in a few words: "fleet web runs it"
}

func (u Use) of(img artifact.Image) bool {
	return u.Image != "" && u.Image == img.Digest || u.Image == "" && u.Content == img.Content
}

// Decision is what becomes of an image.
type Decision struct {
	Image  artifact.Image
	Remove bool
	Why    string // one line
}

// Plan decides about each image: by name, the newest first. rules are by name;
// images of a name without any stay.
func Plan(images []artifact.Image, rules map[string]Rules, uses []Use, now time.Time) []Decision {
	images = slices.Clone(images)
	slices.SortStableFunc(images, func(a, b artifact.Image) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), artifact.NewestFirst(a, b))
	})
	out := make([]Decision, 0, len(images))
	place := 0
	for i, img := range images {
		if place++; i == 0 || images[i-1].Name != img.Name {
			place = 1
		}
		r, ok := rules[img.Name]
		if !ok {
			r = Default()
		}
		d := Decision{Image: img, Why: used(img, uses)}
		if d.Why == "" {
			d.Why = r.keeps(img, place, now)
		}
		if d.Why == "" {
			d.Remove, d.Why = true, r.removes(img, place, now)
		}
		out = append(out, d)
	}
	keepParents(out, rules)
	return out
}

func used(img artifact.Image, uses []Use) string {
	for _, u := range uses {
		if u.of(img) {
			return u.Why
		}
	}
	return ""
}

// keeps says what keeps an image, the place-th newest of its name, or "".
func (r Rules) keeps(img artifact.Image, place int, now time.Time) string {
	age := now.Sub(img.Created)
	tags := r.protecting(img.Tags)
	switch {
	case len(tags) == 1:
		return "tag " + tags[0] + " points at it"
	case len(tags) > 1:
		return "tags " + strings.Join(tags, ", ") + " point at it"
	case age < time.Duration(r.MinAge):
		return fmt.Sprintf("%s, younger than min_age %s", old(age), r.MinAge)
	case r.Empty():
		return "no rule removes it"
	case place <= r.KeepLast:
		return fmt.Sprintf("%s newest, within keep_last %d", ordinal(place), r.KeepLast)
	case r.MaxAge > 0 && age < time.Duration(r.MaxAge):
		return fmt.Sprintf("%s, younger than max_age %s", old(age), r.MaxAge)
	}
	return ""
}

// removes says why an image goes that nothing keeps.
func (r Rules) removes(img artifact.Image, place int, now time.Time) string {
	var why []string
	if r.KeepLast > 0 {
		why = append(why, fmt.Sprintf("%s newest, beyond keep_last %d", ordinal(place), r.KeepLast))
	}
	if r.MaxAge > 0 {
		why = append(why, fmt.Sprintf("%s, over max_age %s", old(now.Sub(img.Created)), r.MaxAge))
	}
	return strings.Join(why, "; ")
}

// protecting are those of the tags that keep their image.
func (r Rules) protecting(tags []string) []string {
	if r.KeepTags == nil {
		return tags
	}
	var out []string
	for _, t := range tags {
		if t == artifact.Latest || slices.ContainsFunc(r.KeepTags, func(p string) bool { ok, _ := path.Match(p, t); return ok }) {
			out = append(out, t)
		}
	}
	return out
}

// keepParents keeps what kept images were made from, all the way up, where the
// rules of the youngest of the line say so.
func keepParents(all []Decision, rules map[string]Rules) {
	at := map[artifact.Digest]int{}
	for i, d := range all {
		at[d.Image.Digest] = i
	}
	for _, d := range all {
		if d.Remove || !rules[d.Image.Name].KeepParents {
			continue
		}
		child := d.Image
		for range all { // a line that is longer goes in circles
			i, ok := at[child.Lineage.ParentDigest]
			if !ok {
				break
			}
			if p := &all[i]; p.Remove {
				p.Remove, p.Why = false, fmt.Sprintf("%s:%s was made from it, and is kept", child.Name, child.Version)
			}
			child = all[i].Image
		}
	}
}

// Age is a time that may be given in days.
type Age time.Duration

// UnmarshalText reads 30d, or a duration such as 12h or 0s.
func (a *Age) UnmarshalText(b []byte) error {
	text := strings.TrimSpace(string(b))
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			*a = Age(time.Duration(n) * 24 * time.Hour)
			return nil
		}
	} else if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		*a = Age(d)
		return nil
	}
	return fmt.Errorf("%q is no age such as 30d or 12h", b)
}

// MarshalText writes what UnmarshalText reads.
func (a Age) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

func (a Age) String() string {
	const day = 24 * time.Hour
	d := time.Duration(a)
	if d >= day && d%day == 0 {
		return strconv.Itoa(int(d/day)) + "d"
	}
	s := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if cut, ok := strings.CutSuffix(s, zero); ok {
			s = cut + zero[:1]
		}
	}
	return s
}

// old says how old something is, roughly.
func old(age time.Duration) string {
	switch {
	case age >= 48*time.Hour:
		return fmt.Sprintf("%d days old", age/(24*time.Hour))
	case age >= 2*time.Hour:
		return fmt.Sprintf("%d hours old", age/time.Hour)
	case age >= 2*time.Minute:
		return fmt.Sprintf("%d minutes old", age/time.Minute)
	case age < 0:
		return "made in the future"
	}
	return "just made"
}

func ordinal(n int) string {
	end := "th"
	if n%100 < 11 || n%100 > 13 {
		switch n % 10 {
		case 1:
			end = "st"
		case 2:
			end = "nd"
		case 3:
			end = "rd"
		}
	}
	return strconv.Itoa(n) + end
}
