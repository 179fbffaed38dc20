package cache_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/internal/cache"
)

func entry(id string, size int64, used int, needs ...string) cache.Entry {
	return cache.Entry{ID: id, Kind: "t", What: id, Size: size, Used: time.Unix(int64(used), 0), Needs: needs,
		Remove: func(context.Context) error { return nil }}
}

func TestPrune(t *testing.T) {
	used := entry("used", 10, 1)
	used.InUse = "a build"
	taken := entry("taken", 10, 1)
	taken.Remove = func(context.Context) error { return cache.ErrInUse }
	stuck := entry("stuck", 10, 1)
	stuck.Remove = func(context.Context) error { return errors.New("no way") }
	for name, c := range map[string]struct {
		entries []cache.Entry
		limit   int64
		want    string
		fails   bool
	}{
		"all fits":                        {[]cache.Entry{entry("a", 5, 1), entry("b", 5, 2)}, 10, "", false},
		"the oldest goes":                 {[]cache.Entry{entry("new", 5, 9), entry("old", 5, 1), entry("mid", 5, 5)}, 10, "old", false},
		"until it fits":                   {[]cache.Entry{entry("new", 5, 9), entry("old", 5, 1), entry("mid", 5, 5)}, 6, "old mid", false},
		"nothing that is in use":          {[]cache.Entry{used, entry("b", 5, 2)}, 0, "b", false},
		"nothing that is taken meanwhile": {[]cache.Entry{taken, entry("b", 5, 2)}, 0, "b", false},
		"what fails is said, once":        {[]cache.Entry{stuck, entry("b", 5, 2)}, 0, "b", true},
		"what is needed goes after":       {[]cache.Entry{entry("base", 5, 1), entry("top", 5, 9, "base", "mid"), entry("mid", 5, 5, "base")}, 0, "top mid base", false},
		"what is needed stays":            {[]cache.Entry{entry("base", 5, 1), entry("top", 5, 9, "base"), entry("other", 5, 3)}, 10, "other", false},
	} {
		t.Run(name, func(t *testing.T) {
			gone, err := cache.Prune(t.Context(), c.entries, c.limit)
			var ids []string
			for _, e := range gone {
				ids = append(ids, e.ID)
			}
			if got := strings.Join(ids, " "); got != c.want || (err != nil) != c.fails {
				t.Errorf("removed %q, %v; want %q", got, err, c.want)
			}
		})
	}
}
