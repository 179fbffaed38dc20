//go:build e2e

package awsfleet_test

import (
	"errors"
	"testing"

	"github.com/rebake/rebake/fleet"
)

// From nothing to a fleet, then by steps to the next image, back at once, forward
// again, to the end, to a bad image that is refused, and away: under load that
// nothing may send twice, without one failed request.
func TestASwapUnderLoad(t *testing.T) {
	w := newWorld(t, true, "1", "2", "3")
	ctx := t.Context()
	res, err := w.d.Deploy(ctx, w.request("1", 2))
	if err != nil || res.State != fleet.Done {
		t.Fatalf("%s: %v", res.State, err)
	}
	w.serves("1", 1)
	stop := w.clients(4)
	if res, err = w.d.Deploy(ctx, w.request("2", 2)); err != nil || res.State != fleet.Baking {
		t.Fatalf("%s: %v", res.State, err)
	}
	w.serves("2", 2)
	if res, err = w.d.Rollback(ctx, "by hand"); err != nil || res.State != fleet.RolledBack {
		t.Fatalf("%s: %v", res.State, err)
	}
	w.serves("1", 1)
	req := w.request("2", 3)
	req.Wait, req.Policy.KeepOld = true, 50*ms
	if res, err = w.d.Deploy(ctx, req); err != nil || res.State != fleet.Done {
		t.Fatalf("%s: %v", res.State, err)
	}
	w.serves("2", 1)
	w.breaks("3", 500)
	bad := w.request("3", 3)
	bad.Policy.Refuse = 300 * ms
	if res, err = w.d.Deploy(ctx, bad); !errors.Is(err, fleet.ErrRolledBack) {
		t.Fatalf("a bad image: %s: %v", res.State, err)
	}
	w.serves("2", 1)
	sent, failed, by := stop()
	if failed != 0 || len(by) != 2 || sent < 100 {
		t.Errorf("%d of %d requests failed; by AMI: %v", failed, sent, by)
	}
	for name, tr := range w.cloud.Traffic("eu-central-1") {
		if tr.Unasked != 0 {
			t.Errorf("%s: %d requests went to targets that were not healthy", name, tr.Unasked)
		}
	}
	t.Logf("%d requests, none failed; reason of the refusal: %s", sent, res.Reason)
	w.destroyed()
}
