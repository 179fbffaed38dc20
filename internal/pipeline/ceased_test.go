package pipeline

import (
	"errors"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/internal/retain"
)

func TestImagesThatAreNotKeptAndHowTheirAMIsGo(t *testing.T) {
	s := newShelf(t)
	soon := retain.Age(time.Hour)
	withLadder := newest
	withLadder.Rules = &retain.Rules{KeepLast: 1, KeepPrevious: 1, AMI: &retain.Ladder{Delete: &soon}}
	old, older, last := s.put(48*time.Hour), s.put(72*time.Hour), s.put(0)
	at := time.Now().UTC().Truncate(time.Second).Add(-time.Hour)
	if err := s.env.Store.(*oci.Store).Retire(t.Context(), older, "by hand", at); err != nil {
		t.Fatal(err)
	}
	plan, err := PlanRetention(t.Context(), s.env, withLadder)
	if err != nil {
		t.Fatal(err)
	}
	ceased, err := CeasedImages(t.Context(), s.env, withLadder, plan)
	if err != nil || len(ceased) != 2 || ceased[0].Image.Digest != old.Digest || time.Since(ceased[0].At) > time.Minute ||
		ceased[1].Image.Digest != older.Digest || !ceased[1].At.Equal(at) || ceased[0].Ladder != withLadder.Rules.AMI || ceased[1].Ladder != withLadder.Rules.AMI {
		t.Errorf("%+v, %v", ceased, err)
	}
	for _, img := range []artifact.Image{old, last} { // none of the name is left
		if err := s.env.Store.(*oci.Store).Retire(t.Context(), img, "by hand", at); err != nil {
			t.Fatal(err)
		}
	}
	if ceased, err = CeasedImages(t.Context(), s.env, withLadder, Retained{}); err != nil || len(ceased) != 3 || ceased[0].Ladder != withLadder.Rules.AMI {
		t.Errorf("%+v, %v", ceased, err)
	}
	if ceased, err = CeasedImages(t.Context(), s.env, Retention{Name: "db"}, Retained{}); err != nil || len(ceased) > 0 {
		t.Errorf("of another name: %+v, %v", ceased, err)
	}
}

func TestWhatIsNeededAgainIsNotRemovedElsewhere(t *testing.T) {
	s := newShelf(t)
	img, other := s.put(time.Hour), s.put(0)
	ran := 0
	run := func(img artifact.Image, ceased bool) error {
		return Unneeded(t.Context(), s.env, img, ceased, func() error { ran++; return nil })
	}
	if err := run(img, false); err != nil || ran != 1 {
		t.Errorf("%v, ran %d times", err, ran)
	}
	if err := run(img, true); !errors.Is(err, artifact.ErrInUse) || ran != 1 { // as one that was pulled again
		t.Errorf("%v, ran %d times", err, ran)
	}
	if err := s.env.Store.(*oci.Store).Retire(t.Context(), img, "by hand", time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := run(img, true); err != nil || ran != 2 {
		t.Errorf("%v, ran %d times", err, ran)
	}
	if err := deployTo(t.Context(), s.fleet("web"), other); err != nil {
		t.Fatal(err)
	}
	used := (*UsedError)(nil)
	if err := run(other, false); !errors.As(err, &used) || used.Fleet != "web" || ran != 2 {
		t.Errorf("%v, ran %d times", err, ran)
	}
	held, err := s.env.lockImages(t.Context(), true) // a deployment begins
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- run(img, true) }()
	select {
	case err := <-done:
		t.Errorf("it did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || ran != 3 {
		t.Errorf("%v, ran %d times", err, ran)
	}
	s.env.Store = unreachable{}
	if err := run(img, true); err == nil || ran != 3 {
		t.Errorf("a store that cannot be asked: %v, ran %d times", err, ran)
	}
}
