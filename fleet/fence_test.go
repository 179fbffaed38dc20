package fleet

import (
	"errors"
	"path/filepath"
	"testing"
)

// Of two operators who both think that the fleet is theirs, the later one works.
func TestWhoeverIsFencedOutChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "epoch")
	var first, second, none Fence
	if err := errors.Join(first.Raise(path, 3), first.Check(path), second.Raise(path, 4), second.Check(path)); err != nil {
		t.Fatal(err)
	}
	if err := first.Check(path); !errors.Is(err, ErrStale) {
		t.Errorf("the first: %v", err)
	}
	if err := first.Raise(path, 3); !errors.Is(err, ErrStale) {
		t.Errorf("the first again: %v", err)
	}
	if err := none.Check(path); err != nil {
		t.Errorf("one that has no epoch: %v", err)
	}
	if err := errors.Join(second.Check(path), first.Raise(path, 5), first.Check(path)); err != nil {
		t.Error(err)
	}
	if err := second.Check(path); !errors.Is(err, ErrStale) {
		t.Errorf("the second: %v", err)
	}
}
