package fault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rebake/rebake/fleet"
)

// HAProxy is killed while both images have traffic: it comes back as it was,
// and the deployment goes on. What fails meanwhile is told.
func TestHAProxyIsKilledInASwap(t *testing.T) {
	r := newRig(t)
	var split map[fleet.Slot]int
	done := r.when(func() {
		pid := r.routerPID()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if st, err := r.d.Router.Status(t.Context()); err == nil && st.Up && r.routerPID() != pid {
				split = st.Weights
				return
			}
		}
	})
	var res fleet.Result
	var err error
	got := r.under(func() { res, err = r.deploy("2", 1500*time.Millisecond) })
	<-done
	if err != nil || res.State != fleet.Baking {
		t.Fatalf("%s: %v", res.State, err)
	}
	if split[fleet.Blue] != 500 || split[fleet.Green] != 500 {
		t.Errorf("it came back with %v, want the 500 to 500 that it had", split)
	}
	if got.Failed == 0 || got.Failed > got.Sent/2 {
		t.Errorf("%d of %d requests failed while the router was down: want some, and not most", got.Failed, got.Sent)
	}
	t.Logf("%d of %d requests failed while HAProxy was down", got.Failed, got.Sent)
	r.serves("2")
}

// HAProxy runs and cannot be told anything: traffic goes on as it is, and after a
// while the deployment stops for a person, who is told what to do.
func TestHAProxysSocketIsGoneInASwap(t *testing.T) {
	r := newRig(t)
	done := r.when(func() {
		if err := os.Remove(r.sock); err != nil {
			t.Error(err)
		}
	})
	began := time.Now() // a clock that runs 24 times as fast: 30 s are waited for
	r.grace = 24 * time.Second
	r.d.Now = func() time.Time { return began.Add(24 * time.Since(began)) }
	var res fleet.Result
	var err error
	got := r.under(func() { res, err = r.deploy("2", 15*time.Second) })
	<-done
	if !errors.Is(err, fleet.ErrBlocked) || !strings.Contains(err.Error(), "its socket "+r.sock+" is gone: it cannot be controlled; end that process and try again") {
		t.Fatalf("%s: %v", res.State, err)
	}
	if got.Failed > 0 || got.ByVersion["1"] == 0 || got.ByVersion["2"] == 0 {
		t.Errorf("%d of %d requests failed, answers %v", got.Failed, got.Sent, got.ByVersion)
	}
	must(t, syscall.Kill(r.routerPID(), syscall.SIGTERM)) // as it says
	if res, err = r.d.Resume(t.Context(), false); err != nil || res.State != fleet.Baking {
		t.Fatalf("resume: %s: %v", res.State, err)
	}
	r.serves("2")
}

// Somebody moves traffic by hand: nothing is written over it, both splits are named.
func TestSomebodyEditsHAProxysWeights(t *testing.T) {
	r := newRig(t)
	done := r.when(func() { r.by("set map fleet.map green 900") })
	var res fleet.Result
	var err error
	got := r.under(func() { res, err = r.deploy("2", 2*time.Second) })
	<-done
	if !errors.Is(err, fleet.ErrBlocked) || !strings.Contains(res.Reason, "blue 100, green 900 and this deployment left them at blue 500, green 500: somebody else changed them") {
		t.Fatalf("%s: %v", res.State, err)
	}
	if st := r.status(); got.Failed > 0 || st.Weights[fleet.Green] != 900 {
		t.Errorf("%d of %d requests failed, weights %v", got.Failed, got.Sent, st.Weights)
	}
	got = r.under(func() { res, err = r.d.Abort(t.Context(), "by hand") })
	if err != nil || res.State != fleet.RolledBack || got.Failed > 0 {
		t.Errorf("abort: %s: %v; %d requests failed", res.State, err, got.Failed)
	}
	r.serves("1")
}

// The new image answers for twenty requests, then with 500: it is refused, and as
// many requests fail as came until the router's checks saw it.
func TestAnImageThatAnswers500AfterSomeRequests(t *testing.T) {
	r := newRig(t)
	var res fleet.Result
	var err error
	got := r.under(func() { res, err = r.deploy("tired", 5*time.Second) })
	if !errors.Is(err, fleet.ErrRolledBack) || !strings.Contains(res.Reason, "L7STS/500") {
		t.Fatalf("%s: %v", res.State, err)
	}
	if got.Failed == 0 || got.Failed > got.Sent/2 {
		t.Errorf("%d of %d requests failed: want some, and not most", got.Failed, got.Sent)
	}
	t.Logf("%d of %d requests failed until it was seen", got.Failed, got.Sent)
	r.serves("1")
}

// A member dies at once, with POSTs in flight. The ones that it had are lost and
// counted; none is sent to another, which would do what it asks for twice.
func TestADeathLosesWhatWasInFlightAndReplaysNothing(t *testing.T) {
	r := newRig(t)
	var sent, failed, next atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	const clients = 24
	tr := &http.Transport{MaxIdleConnsPerHost: clients}
	defer tr.CloseIdleConnections()
	for range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				req, err := http.NewRequest(http.MethodPost, "http://"+r.addr+"/slow", struct{ *strings.Reader }{strings.NewReader("pay")})
				if err != nil {
					t.Error(err)
					return
				}
				req.ContentLength = 3
				req.Header.Set("X-Id", fmt.Sprint(next.Add(1)))
				sent.Add(1)
				res, err := tr.RoundTrip(req) // no GetBody: Go does not send it again either
				if err == nil {
					res.Body.Close()
				}
				if err != nil || res.StatusCode != http.StatusOK {
					failed.Add(1)
				}
			}
		})
	}
	time.Sleep(700 * time.Millisecond)
	victim := r.instances(fleet.Blue)[0]
	inFlight := 0
	for _, m := range r.status().Members[fleet.Blue] {
		if m.ID == victim {
			inFlight = m.InFlight
		}
	}
	must(t, r.pool.Kill(victim))
	time.Sleep(700 * time.Millisecond) // the other one serves all
	after := failed.Load()
	time.Sleep(400 * time.Millisecond)
	if more := failed.Load() - after; more > 0 {
		t.Errorf("%d requests failed long after the death", more)
	}
	stop()
	wg.Wait()
	if after == 0 || inFlight == 0 || after > clients {
		t.Errorf("%d of %d requests failed, %d were in flight there: want those, and no more than %d", after, sent.Load(), inFlight, clients)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	twice := 0
	for _, n := range r.seen {
		if n > 1 {
			twice++
		}
	}
	if twice > 0 {
		t.Errorf("%d requests arrived twice", twice)
	}
	t.Logf("%d requests, %d in flight at the one that died, %d failed, %d arrived twice", sent.Load(), inFlight, failed.Load(), twice)
}

// A machine of the new image dies under traffic: the old one serves alone.
func TestANewInstanceDiesInASwap(t *testing.T) {
	r := newRig(t)
	done := r.when(func() {
		if err := r.pool.Kill(r.instances(fleet.Green)[0]); err != nil {
			t.Error(err)
		}
	})
	var res fleet.Result
	var err error
	got := r.under(func() { res, err = r.deploy("2", 3*time.Second) })
	<-done
	if !errors.Is(err, fleet.ErrRolledBack) || !strings.Contains(res.Reason, "died") {
		t.Fatalf("%s: %v", res.State, err)
	}
	if got.Failed > 4 { // four clients: at most what each had in flight
		t.Errorf("%d of %d requests failed", got.Failed, got.Sent)
	}
	t.Logf("%d of %d requests failed", got.Failed, got.Sent)
	r.serves("1")
}
