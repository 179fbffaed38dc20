//go:build e2e

package awsfleet_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/rebake/rebake/fleet"
)

type crash struct{}

// crashing runs f and says whether it was killed at a record of the journal.
func crashing(f func() error) (err error, killed bool) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(crash); !ok {
				panic(p)
			}
			killed = true
		}
	}()
	return f(), false
}

// A deployment is killed at each record of its journal, one after the other, under
// load; whoever resumes brings it to its end, no request fails, and nothing but the
// group that serves has the fleet's tag.
func TestKilledAtARecord(t *testing.T) {
	w := newWorld(t, true, "1", "2")
	ctx := t.Context()
	request := func(version string) fleet.Request {
		req := w.request(version, 2)
		req.Wait, req.Policy.KeepOld = true, 10*ms
		req.Policy.Steps = []fleet.Step{{Permille: 500, Hold: 10 * ms}, {Permille: 1000, Hold: 10 * ms}}
		return req
	}
	if _, err := w.d.Deploy(ctx, request("1")); err != nil {
		t.Fatal(err)
	}
	stop := w.clients(2)
	version, tried := "1", 0
	for at := 1; !t.Failed(); at++ {
		version = map[string]string{"1": "2", "2": "1"}[version]
		var records []string
		w.d = w.deployer()
		w.d.Recorded = func(kind, what string) {
			if records = append(records, kind+" "+what); len(records) == at {
				panic(crash{})
			}
		}
		_, killed := crashing(func() error { _, err := w.d.Deploy(ctx, request(version)); return err })
		if !killed {
			break
		}
		tried++
		w.d = w.deployer()
		res, err := w.d.Resume(ctx, true)
		if errors.Is(err, fleet.ErrNothing) { // before the plan: nothing was begun
			res, err = w.d.Deploy(ctx, request(version))
		}
		if err != nil || res.State != fleet.Done {
			t.Errorf("killed at record %d, %s: %s, %v", at, records[len(records)-1], res.State, err)
		}
		w.serves(version, 1)
		if left := w.Left(t, "web"); len(left) != 7 {
			t.Errorf("killed at record %d, %s: there are %d things with the fleet's tag, not two instances, a template, a group, two target groups and a rule:\n%s",
				at, records[len(records)-1], len(left), strings.Join(left, "\n"))
		}
	}
	sent, failed, _ := stop()
	if failed != 0 {
		t.Errorf("%d of %d requests failed", failed, sent)
	}
	if tried < 20 {
		t.Errorf("only %d records were tried", tried)
	}
	t.Logf("killed at %d records; %d requests, %d failed", tried, sent, failed)
	w.destroyed()
}
