// Package cache bounds what rebake keeps to save time: bases, materialised
// disks, checkpoints. Everything in it can be made again.
package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Entry is one thing in the cache.
type Entry struct {
	ID    string    `json:"id"`   // unique; what the others' Needs name
	Kind  string    `json:"kind"` // base, disk, checkpoint
	What  string    `json:"what"` // for people
	Size  int64     `json:"size"` // bytes that it occupies
	Used  time.Time `json:"used"` // last
	Needs []string  `json:"needs,omitempty"`
	InUse string    `json:"in_use,omitempty"` // by whom; "" if by nobody
	// Remove deletes it, or returns ErrInUse if somebody took it meanwhile.
	Remove func(context.Context) error `json:"-"`
}

// ErrInUse is returned by Remove.
var ErrInUse = errors.New("in use")

// Size is what all entries occupy.
func Size(entries []Entry) (n int64) {
	for _, e := range entries {
		n += e.Size
	}
	return n
}

// Prune removes the entries that were not used for the longest time until all
// occupy at most limit bytes. It keeps what is in use, and what an entry that
// stays needs; an entry counts as used when one that needs it was. It goes on
// after an error.
func Prune(ctx context.Context, entries []Entry, limit int64) (gone []Entry, err error) {
	left := slices.Clone(entries)
	total := Size(left)
	var errs []error
	for total > limit && ctx.Err() == nil {
		i := oldest(left)
		if i < 0 {
			break
		}
		e := left[i]
		switch rerr := e.Remove(ctx); {
		case errors.Is(rerr, ErrInUse):
			left[i].InUse = "another rebake"
			continue
		case rerr != nil:
			errs = append(errs, fmt.Errorf("remove %s %s: %w", e.Kind, e.What, rerr))
			left[i].InUse = "not removable"
			continue
		}
		gone = append(gone, e)
		total -= e.Size
		left = slices.Delete(left, i, i+1)
	}
	return gone, errors.Join(errs...)
}

// oldest is the index of the entry to go next, or -1.
func oldest(entries []Entry) int {
	needed := map[string]bool{}
	for _, e := range entries {
		for _, n := range e.Needs {
			needed[n] = true
		}
	}
	best := -1
	for i, e := range entries {
		if needed[e.ID] || e.InUse != "" {
			continue
		}
		if best < 0 || e.Used.Before(entries[best].Used) || e.Used.Equal(entries[best].Used) && strings.Compare(e.ID, entries[best].ID) < 0 {
			best = i
		}
	}
	return best
}

// Sort puts the last used first.
func Sort(entries []Entry) {
	slices.SortFunc(entries, func(a, b Entry) int {
		if c := b.Used.Compare(a.Used); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
}
