package template

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rebake/rebake/internal/retain"
)

func TestRetention(t *testing.T) {
	const day = retain.Age(24 * time.Hour)
	for text, want := range map[string]*retain.Rules{
		"":                                       nil,
		"retention: {keep_last: 7}":              {KeepLast: 7, MinAge: day, KeepPrevious: 1},
		"retention: {max_age: 30d, min_age: 0s}": {MaxAge: 30 * day, KeepPrevious: 1},
		"retention: {max_age: 36h, min_age: 90m}": {MaxAge: 3 * day / 2, MinAge: day / 16, KeepPrevious: 1},
		"retention: {max_age: 30d, keep_last: 1, keep_tags: [stable, 'release-*'], keep_previous: 3, keep_parents: true}": {
			KeepLast: 1, MaxAge: 30 * day, MinAge: day, KeepTags: []string{"stable", "release-*"}, KeepPrevious: 3, KeepParents: true},
	} {
		tpl, err := loadText(t, partHead+text+"\n", Options{})
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if d := cmp.Diff(want, tpl.Retention); d != "" {
			t.Errorf("%s: %s", text, d)
		}
	}
	for text, want := range map[string]string{
		"retention: {}":                                ":3:1: retention needs keep_last or max_age, or nothing is ever removed",
		"retention: {keep_tags: [a]}":                  "retention needs keep_last or max_age",
		"retention: {keep_last: 0}":                    ":3:13: keep_last must be at least 1",
		"retention: {max_age: 0d}":                     ":3:13: max_age must be more than nothing",
		"retention: {max_age: 1w}":                     `max_age: "1w" is no age such as 30d or 12h`,
		"retention: {max_age: 12h}":                    ":3:13: max_age 12h is less than min_age 1d",
		"retention: {keep_last: 1, keep_previous: 0}":  ":3:27: keep_previous must be at least 1",
		"retention: {keep_last: 1, keep_tags: []}":     ":3:27: keep_tags names no tag",
		"retention: {keep_last: 1, keep_tags: ['a[']}": `keep_tags: "a[" is no pattern`,
		"retention: {keep_lats: 1}":                    `did you mean "keep_last"`,
		"retention: 7":                                 `"retention" must be a mapping`,
		"retention: {keep_last: 1.5}":                  "whole number",
	} {
		_, err := loadText(t, partHead+text+"\n", Options{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v\nwant %q", text, err, want)
		}
	}
}
