package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/test/fake"
)

// refuse is an Admit that refuses one image from its nth question on.
func refuse(version string, from int) fleet.Admit {
	asked := 0
	return func(_ context.Context, img artifact.Image) error {
		if img.Version != version {
			return nil
		}
		if asked++; asked < from {
			return nil
		}
		return fmt.Errorf("%w: web:%s may not run here\n  unsigned: it carries no signature", fleet.ErrRefused, version)
	}
}

func TestARefusedImageBeginsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.d.Admit = refuse("2", 1)
		if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
			t.Fatal(err)
		}
		n := len(w.recs)
		if _, err := w.d.Deploy(t.Context(), request("2")); !errors.Is(err, fleet.ErrRefused) || !strings.Contains(err.Error(), "unsigned") {
			t.Fatal(err)
		}
		if len(w.recs) != n {
			t.Error("what was refused is in the journal")
		}
		w.sound("1")
		req := request("2")
		req.Override = "a hole in TLS"
		res, err := w.d.Deploy(t.Context(), req)
		if err != nil || res.Override != "a hole in TLS" {
			t.Fatal(res.Override, err)
		}
		w.sound("2")
	})
}

// An image that is refused only when its instances run, because it was revoked or
// its disk was changed meanwhile, never gets a request.
func TestAnImageIsAskedAgainBeforeTraffic(t *testing.T) {
	for _, from := range []int{2, 3} { // at the launch; before traffic
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, nil)
			if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
				t.Fatal(err)
			}
			w.d.Admit = refuse("2", from)
			stop := w.traffic()
			res, err := w.d.Deploy(t.Context(), request("2"))
			if !errors.Is(err, fleet.ErrRolledBack) || !strings.Contains(res.Reason, "unsigned: it carries no signature") || strings.Contains(res.Reason, "\n") {
				t.Fatalf("question %d: %v, reason %q", from, err, res.Reason)
			}
			if len(res.Weights) != 0 || res.Touched {
				t.Errorf("question %d: it had traffic: %v", from, res.Weights)
			}
			if _, failed := stop(); failed != 0 {
				t.Errorf("%d requests failed", failed)
			}
			w.sound("1")
		})
	}
}

func TestRollbackAsksOfTheImageBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		for _, v := range []string{"1", "2"} {
			if _, err := w.d.Deploy(t.Context(), request(v)); err != nil {
				t.Fatal(err)
			}
		}
		w.d.Admit = refuse("1", 1)
		if _, err := w.d.Rollback(t.Context(), "by hand"); !errors.Is(err, fleet.ErrRefused) {
			t.Fatal("while the old slot is kept:", err)
		}
		w.sound("2")
		if err := w.d.Tend(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if _, err := w.d.Rollback(t.Context(), "by hand"); !errors.Is(err, fleet.ErrRefused) {
			t.Fatal("once it is gone:", err)
		}
		res, err := w.d.GoBack(t.Context(), fleet.Back{Reason: "by hand", Override: "2 loses orders"})
		if err != nil || res.New.Spec.Image.Version != "1" || res.Override != "2 loses orders" {
			t.Fatal(res.New.Spec.Image.Version, res.Override, err)
		}
		w.sound("1")
	})
}

// The way back from a deployment that fails, or is aborted, asks nobody.
func TestTheWayBackIsNotAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, map[artifact.Digest]fake.Behaviour{"sha256:bad": {Never: true}})
		if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
			t.Fatal(err)
		}
		w.d.Admit = refuse("1", 1)
		if _, err := w.d.Deploy(t.Context(), request("bad")); !errors.Is(err, fleet.ErrRolledBack) {
			t.Fatal(err)
		}
		w.sound("1")
	})
}

// What cannot be told refuses too.
func TestWhatCannotBeToldRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.d.Admit = func(context.Context, artifact.Image) error { return errors.New("the disk is on fire") }
		if _, err := w.d.Deploy(t.Context(), request("1")); !errors.Is(err, fleet.ErrRefused) || !strings.Contains(err.Error(), "on fire") {
			t.Fatal(err)
		}
		w.sound("")
	})
}
