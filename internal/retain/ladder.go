package retain

import (
	"cmp"
	"errors"
	"fmt"
	"time"
)

// Rung is a step by which a published image (an AMI) goes, each harder to undo
// than the one before. The zero Rung is none.
type Rung string

// The rungs in their order.
const (
	Deprecate Rung = "deprecate" // others are no longer shown it; it can be launched
	Disable   Rung = "disable"   // it can not be launched; it can be enabled again
	Delete    Rung = "delete"    // it is gone with its snapshots
)

// Ladder says when the AMIs of an image go that is no longer kept. Ages count from
// when the image was removed. A nil age leaves its rung out.
type Ladder struct {
	Deprecate *Age `json:"deprecate,omitempty"`
	Disable   *Age `json:"disable,omitempty"`
	Delete    *Age `json:"delete,omitempty"`
	MinAge    Age  `json:"min_age"`          // AMIs that were made less long ago stay as they are
	Shared    bool `json:"shared,omitempty"` // disable and delete also what other accounts may launch
}

type rungAge struct {
	rung Rung
	age  time.Duration
}

func (l Ladder) rungs() (out []rungAge) {
	for _, r := range []struct {
		rung Rung
		age  *Age
	}{{Deprecate, l.Deprecate}, {Disable, l.Disable}, {Delete, l.Delete}} {
		if r.age != nil {
			out = append(out, rungAge{r.rung, time.Duration(*r.age)})
		}
	}
	return out
}

// Check says what makes no sense, or nil.
func (l Ladder) Check() error {
	rungs := l.rungs()
	if len(rungs) == 0 {
		return errors.New("ami needs deprecate, disable or delete: for example {deprecate: 30d, disable: 60d, delete: 90d}")
	}
	for i, r := range rungs {
		if r.age < 0 || l.MinAge < 0 {
			return errors.New("ami: an age cannot be below zero")
		}
		if i > 0 && r.age < rungs[i-1].age {
			return fmt.Errorf("ami: %s %s comes before %s %s", r.rung, Age(r.age), rungs[i-1].rung, Age(rungs[i-1].age))
		}
	}
	return nil
}

// Next is the rung that an image's AMIs are due for, or none, and why. removed is
// when the image ceased to be kept, made when the youngest of its AMIs was made;
// taken says when a rung was taken by all of them. The time between two rungs is
// always given: what nobody pruned for a year is first disabled, and deleted by a
// later run.
func (l Ladder) Next(removed, made time.Time, taken map[Rung]time.Time, now time.Time) (Rung, string) {
	age := now.Sub(removed)
	if young := now.Sub(made); young < time.Duration(l.MinAge) {
		return "", fmt.Sprintf("its AMI is %s, younger than ami.min_age %s", old(young), l.MinAge)
	}
	var before rungAge
	for _, r := range l.rungs() {
		if _, ok := taken[r.rung]; ok {
			before = r
			continue
		}
		if age < r.age {
			return "", fmt.Sprintf("removed %s; %s after %s", ago(age), r.rung, Age(r.age))
		}
		if gap := r.age - before.age; before.rung != "" && now.Sub(taken[before.rung]) < gap {
			return "", fmt.Sprintf("%sd %s; %s %s after that", before.rung, ago(now.Sub(taken[before.rung])), r.rung, Age(gap))
		}
		return r.rung, fmt.Sprintf("removed %s, over ami.%s %s", ago(age), r.rung, Age(r.age))
	}
	return "", fmt.Sprintf("%s, and ami: has no further step", cmp.Or(past(before.rung), "kept"))
}

func past(r Rung) string {
	switch r {
	case Deprecate, Disable, Delete:
		return string(r) + "d"
	}
	return ""
}

// ago says how long ago something was, roughly.
func ago(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days ago", d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours ago", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes ago", d/time.Minute)
	}
	return "just now"
}
