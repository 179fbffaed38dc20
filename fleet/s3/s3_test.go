package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/s3"
	"github.com/rebake/rebake/internal/journal"
	"github.com/rebake/rebake/test/bucket"
	"github.com/rebake/rebake/test/conformance"
	"github.com/rebake/rebake/test/fake"
)

const address = "s3://" + bucket.Name + "/team"

// open is an operator's home, with a lease of 30 s.
func open(t *testing.T, srv *bucket.Server, fault func(string) bucket.Fault) *s3.Home {
	t.Helper()
	h, err := s3.Open(t.Context(), address, s3.Options{Client: srv.Client(fault)})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestHome(t *testing.T) {
	conformance.Home(t, func(t *testing.T) (fleet.Home, conformance.HomeOptions) {
		srv := &bucket.Server{Page: 7}
		other := func(t *testing.T) fleet.Home {
			h, err := s3.Open(t.Context(), address, s3.Options{Client: srv.Client(nil), Lease: 2 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		return other(t), conformance.HomeOptions{
			Other: other,
			Damage: func(t *testing.T, name string) {
				for key, text := range srv.Objects() {
					if strings.Contains(key, "/"+name+"/") && strings.Contains(text, `{"n":2}`) {
						srv.Set(key, bytes.Replace([]byte(text), []byte(`{"n":2}`), []byte(`{"n":7}`), 1))
						return
					}
				}
				t.Fatal("no record to damage")
			},
			Lose: func(_ *testing.T, name string) { srv.Set("team/fleets/"+name+".json", nil) },
		}
	})
}

// 16 operators race for a fleet, 200 times.
func TestOneOfManyWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &bucket.Server{}
		var homes []fleet.Home
		for range 16 {
			homes = append(homes, open(t, srv, nil))
		}
		for round := range 200 {
			won := make(chan fleet.Desk, 16)
			var wg sync.WaitGroup
			for _, h := range homes {
				wg.Go(func() {
					d, err := h.Books("web").Take(t.Context())
					if err == nil {
						won <- d
					} else if !errors.Is(err, fleet.ErrLocked) {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if len(won) != 1 {
				t.Fatalf("round %d: %d won", round, len(won))
			}
			if err := (<-won).Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func take(t *testing.T, h fleet.Home) fleet.Desk {
	t.Helper()
	d, err := h.Books("web").Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

func note(t *testing.T, d fleet.Desk, n int) {
	t.Helper()
	if _, err := d.Append(t.Context(), "note", n); err != nil {
		t.Fatal(err)
	}
}

// The holder is cut off from the bucket, as by SIGKILL. It is followed when its
// lease was not renewed for its whole length, and no sooner; and at once if the
// server says that this was long ago.
func TestADeadHolderIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &bucket.Server{}
		var dead atomic.Bool
		first := take(t, open(t, srv, func(string) bucket.Fault {
			if dead.Load() {
				return bucket.Cut
			}
			return bucket.None
		}))
		note(t, first, 1)
		time.Sleep(time.Minute) // it is renewed
		_, err := open(t, srv, nil).Books("web").Take(t.Context())
		if !errors.Is(err, fleet.ErrLocked) {
			t.Fatal(err)
		}
		time.Sleep(11 * time.Second)
		dead.Store(true)
		began := time.Now()
		second := take(t, open(t, srv, nil))
		if took := time.Since(began); took < 20*time.Second || took > 34*time.Second {
			t.Errorf("followed after %s", took)
		}
		select {
		case <-first.(fleet.Lease).Lost():
		default:
			t.Error("the dead one was not told before")
		}
		note(t, second, 2)
		if _, err := first.Append(t.Context(), "note", 3); !errors.Is(err, fleet.ErrStale) {
			t.Error(err)
		}
		if err := second.Release(t.Context()); err != nil {
			t.Error(err)
		}
		dead.Store(false)
		if err := first.Release(t.Context()); err != nil {
			t.Error(err)
		}

		dead.Store(false)
		third := take(t, open(t, srv, func(string) bucket.Fault {
			if dead.Load() {
				return bucket.Cut
			}
			return bucket.None
		}))
		dead.Store(true)
		time.Sleep(3 * time.Minute)
		began = time.Now()
		fourth := take(t, open(t, srv, nil))
		if took := time.Since(began); took > time.Second {
			t.Errorf("followed after %s, and it was long dead", took)
		}
		_, _ = third.Release(t.Context()), fourth.Release(t.Context())
	})
}

// A holder that hears nothing for a while renews its lease before it writes on,
// if nobody took it; the session's context ends as soon as it may be another's.
func TestAHolderThatCannotRenewStopsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &bucket.Server{}
		var down atomic.Bool
		fault := func(call string) bucket.Fault {
			if down.Load() && strings.Contains(call, "leases/") {
				return bucket.Fails
			}
			return bucket.None
		}
		d := take(t, open(t, srv, fault))
		down.Store(true)
		time.Sleep(14 * time.Second) // one renewal fails, and is tried again
		down.Store(false)
		time.Sleep(time.Minute)
		note(t, d, 1)
		down.Store(true)
		began := time.Now()
		<-d.(fleet.Lease).Lost()
		if took := time.Since(began); took > 26*time.Second || took < 5*time.Second {
			t.Errorf("it stopped after %s", took)
		}
		if _, err := d.Append(t.Context(), "note", 2); !errors.Is(err, fleet.ErrStale) {
			t.Error(err)
		}
		if err := d.Save(t.Context(), fleet.Config{Name: "web"}); !errors.Is(err, fleet.ErrStale) {
			t.Error(err)
		}
		if err := d.Remove(t.Context()); !errors.Is(err, fleet.ErrStale) {
			t.Error(err)
		}
		_ = d.Release(t.Context())
	})
}

// A session that lost its lease ends with ErrStale, whatever it was waiting for.
func TestASessionThatLostItsLeaseEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &bucket.Server{}
		var down atomic.Bool
		d := deployer(open(t, srv, func(call string) bucket.Fault {
			if down.Load() && strings.Contains(call, "leases/") {
				return bucket.Cut
			}
			return bucket.None
		}), newParts())
		d.Gate = func(ctx context.Context, _ fleet.Instance) error {
			down.Store(true)
			<-ctx.Done()
			return context.Cause(ctx)
		}
		if _, err := d.Deploy(t.Context(), request("1")); !errors.Is(err, fleet.ErrStale) {
			t.Errorf("%v", err)
		}
	})
}

// Whoever holds the lease no more cannot add a word, even if he believes that he
// does: the record is there already.
func TestTheJournalItselfRefusesAStaleWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &bucket.Server{}
		first := take(t, open(t, srv, nil))
		note(t, first, 1)
		for key := range srv.Objects() { // as if its lease had never been
			if strings.Contains(key, "leases/") {
				srv.Set(key, nil)
			}
		}
		second := take(t, open(t, srv, nil))
		note(t, second, 2)
		if _, err := first.Append(t.Context(), "note", 3); !errors.Is(err, journal.ErrTaken) || !errors.Is(err, fleet.ErrStale) {
			t.Errorf("%v", err)
		}
		if _, err := first.Append(t.Context(), "note", 3); !errors.Is(err, fleet.ErrStale) {
			t.Errorf("%v", err)
		}
		note(t, second, 4)
		recs, err := open(t, srv, nil).Books("web").Records(t.Context())
		if err != nil || len(recs) != 3 || string(recs[1].Data) != "2" {
			t.Errorf("%v, %v", recs, err)
		}
		_, _ = first.Release(t.Context()), second.Release(t.Context())
	})
}

// parts are what a fleet runs on, whoever operates it.
type parts struct {
	pool   *fake.Pool
	router *fake.Router
}

func newParts() parts {
	p := parts{pool: &fake.Pool{}}
	p.router = &fake.Router{Check: p.pool.Check, Rise: 1}
	return p
}

func deployer(h fleet.Home, p parts) *fleet.Deployer {
	return &fleet.Deployer{Books: h.Books("web"), Config: fleet.Config{Name: "web", Size: 2}, Pool: p.pool, Router: p.router, Poll: 100 * time.Millisecond}
}

func request(version string) fleet.Request {
	return fleet.Request{Wait: true, Spec: fleet.Spec{Image: artifact.Image{Name: "web", Version: version, Digest: artifact.Digest("sha256:" + version)}, Size: 2, Ports: []int{80}},
		Policy: fleet.Policy{Port: 80, Steps: []fleet.Step{{Permille: 500, Hold: time.Second}, {Permille: 1000}}}}
}

// each plays a deployment for every call that it makes: f decides what becomes of
// call n, and check looks at what is left.
func each(t *testing.T, become func(n, call int) bucket.Fault, check func(t *testing.T, srv *bucket.Server, p parts, n int, err error)) (calls int) {
	t.Helper()
	for n := 1; !t.Failed(); n++ {
		over := false
		synctest.Test(t, func(t *testing.T) {
			srv, p := &bucket.Server{}, newParts()
			if _, err := deployer(open(t, srv, nil), p).Deploy(t.Context(), request("1")); err != nil {
				t.Fatal(err)
			}
			var made atomic.Int64
			d := deployer(open(t, srv, func(string) bucket.Fault { return become(n, int(made.Add(1))) }), p)
			_, err := d.Deploy(t.Context(), request("2"))
			if over = int(made.Load()) < n; over {
				calls = int(made.Load())
			}
			check(t, srv, p, n, err)
		})
		if over {
			break
		}
	}
	return calls
}

// The operator dies between any two calls, before the next one is done or just
// after it: somebody else goes on with what he began, or finds it done.
func TestTheNextOperatorGoesOnAfterAKillAtAnyCall(t *testing.T) {
	for name, last := range map[string]bucket.Fault{"before": bucket.Cut, "after": bucket.Lost} {
		t.Run(name, func(t *testing.T) {
			calls := each(t, func(n, call int) bucket.Fault {
				switch {
				case call < n:
					return bucket.None
				case call == n:
					return last
				}
				return bucket.Cut
			}, func(t *testing.T, srv *bucket.Server, p parts, n int, _ error) {
				d := deployer(open(t, srv, nil), p)
				_, err := d.Resume(t.Context(), true)
				if err != nil && !errors.Is(err, fleet.ErrNothing) {
					t.Errorf("call %d: resume: %v", n, err)
				}
				res, err := d.Deploy(t.Context(), request("2"))
				if err != nil || res.State != fleet.Done || res.Serving.Spec.Image.Version != "2" {
					t.Errorf("call %d: %s %v", n, res.State, err)
				}
				sound(t, d, p, n)
			})
			if calls < 30 {
				t.Errorf("a deployment makes only %d calls", calls)
			}
			t.Logf("killed at each of %d calls", calls)
		})
	}
}

// Of any call the answer is lost, or it is not done and said so: the deployment
// gets through.
func TestEachCallMayGoWrong(t *testing.T) {
	kinds := []bucket.Fault{bucket.Cut, bucket.Fails, bucket.Busy}
	for name, as := range map[string]func(n int) bucket.Fault{
		"its answer is lost": func(int) bucket.Fault { return bucket.Lost }, "not done": func(n int) bucket.Fault { return kinds[n%3] },
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(n, call int) bucket.Fault {
				if n == call {
					return as(n)
				}
				return bucket.None
			}, func(t *testing.T, srv *bucket.Server, p parts, n int, err error) {
				if err != nil {
					t.Errorf("call %d: %v", n, err)
				}
				sound(t, deployer(open(t, srv, nil), p), p, n)
			})
		})
	}
}

// sound looks that the fleet runs version 2 and nothing else is left.
func sound(t *testing.T, d *fleet.Deployer, p parts, n int) {
	t.Helper()
	st, err := d.Status(t.Context())
	if err != nil || st.Current == nil || st.Current.Spec.Image.Version != "2" || len(st.Groups) != 1 || st.Unfinished != nil {
		t.Errorf("call %d: %+v, %v", n, st, err)
	}
	for _, v := range p.router.Violations {
		t.Errorf("call %d: router: %s", n, v)
	}
}

// A kill anywhere in the end of a fleet: it is destroyed by whoever tries again.
func TestAFleetsEndCanBeCutOff(t *testing.T) {
	for n := 1; n < 60; n++ {
		synctest.Test(t, func(t *testing.T) {
			srv, p := &bucket.Server{Page: 5}, newParts()
			if _, err := deployer(open(t, srv, nil), p).Deploy(t.Context(), request("1")); err != nil {
				t.Fatal(err)
			}
			var made atomic.Int64
			h := open(t, srv, func(string) bucket.Fault {
				if made.Add(1) >= int64(n) {
					return bucket.Cut
				}
				return bucket.None
			})
			_ = deployer(h, p).Destroy(t.Context())
			h = open(t, srv, nil)
			if _, err := h.Books("web").Records(t.Context()); err != nil {
				t.Errorf("cut at call %d: %v", n, err)
			}
			if err := deployer(h, p).Destroy(t.Context()); err != nil {
				t.Errorf("cut at call %d: %v", n, err)
			}
			for k := range srv.Objects() {
				if strings.Contains(k, "fleets/") {
					t.Errorf("cut at call %d: left %s", n, k)
				}
			}
		})
	}
}

// What a stale operator writes after the fleet's end is of a life that nobody reads.
func TestAStaleWriterAfterTheFleetsEnd(t *testing.T) {
	srv, p := &bucket.Server{}, newParts()
	synctest.Test(t, func(t *testing.T) {
		if _, err := deployer(open(t, srv, nil), p).Deploy(t.Context(), request("1")); err != nil {
			t.Fatal(err)
		}
		old := slices.Sorted(maps.Keys(srv.Objects()))
		if err := deployer(open(t, srv, nil), p).Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, k := range old {
			if strings.Contains(k, "00000007.json") {
				srv.Set(k, []byte("late\n"))
			}
		}
		h := open(t, srv, nil)
		if lost, err := h.Orphans(t.Context()); err != nil || len(lost) != 0 {
			t.Error(lost, err)
		}
		if _, err := deployer(h, p).Deploy(t.Context(), request("2")); err != nil {
			t.Error(err)
		}
		sound(t, deployer(h, p), p, 0)
	})
}

func TestAServerThatCannotKeepOperatorsApartIsRefused(t *testing.T) {
	srv := &bucket.Server{Blind: true}
	_, err := open(t, srv, nil).Books("web").Take(t.Context())
	if err == nil || !strings.Contains(err.Error(), "does not honour conditional writes") {
		t.Error(err)
	}
	for k := range srv.Objects() {
		if strings.Contains(k, "leases/") {
			t.Errorf("it wrote %s", k)
		}
	}
}

func TestWhatIsWrongIsSaid(t *testing.T) {
	away, err := s3.Open(t.Context(), "s3://elsewhere", s3.Options{Client: new(bucket.Server).Client(nil)})
	if err != nil {
		t.Fatal(err)
	}
	for want, h := range map[string]fleet.Home{
		"there is no bucket elsewhere: make it":                       away,
		"needed are s3:ListBucket on bucket states, and s3:GetObject": open(t, &bucket.Server{Denied: true}, nil),
	} {
		_, errNames := h.Names(t.Context())
		_, errConfig := h.Books("web").Config(t.Context())
		_, errTake := h.Books("web").Take(t.Context())
		for _, err := range []error{errNames, errConfig, errTake} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("want %q, got: %v", want, err)
			}
		}
	}
	for _, bad := range []string{"s3:", "s3:///x", "https://b/x", "s3://b/x?y", "b"} {
		if _, err := s3.Open(t.Context(), bad, s3.Options{Client: new(bucket.Server).Client(nil)}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// A history of 2,000 records is read in a few calls.
func TestALongHistoryIsReadFromPacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &bucket.Server{}
		for range 20 {
			d := take(t, open(t, srv, nil))
			for n := range 100 {
				note(t, d, n)
			}
			if err := d.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		before := len(srv.Calls())
		recs, err := open(t, srv, nil).Books("web").Records(t.Context())
		calls := len(srv.Calls()) - before
		if err != nil || len(recs) != 2000 || calls > 3+2000/128+128 {
			t.Errorf("%d records in %d calls: %v", len(recs), calls, err)
		}
		t.Logf("%d records in %d calls", len(recs), calls)
		for k := range srv.Objects() { // a pack that is lost or damaged can be removed
			if strings.Contains(k, "/packs/") {
				srv.Set(k, []byte("damaged\n"))
			}
		}
		if _, err := open(t, srv, nil).Books("web").Records(t.Context()); !errors.Is(err, journal.ErrCorrupt) || !strings.Contains(err.Error(), "it may be removed") {
			t.Error(err)
		}
		for k := range srv.Objects() {
			if strings.Contains(k, "/packs/") {
				srv.Set(k, nil)
			}
		}
		if recs, err := open(t, srv, nil).Books("web").Records(t.Context()); err != nil || len(recs) != 2000 {
			t.Error(len(recs), err)
		}
	})
}

// A record that somebody took out is missed.
func TestAMissingRecordIsCorrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, seq := range []int{1, 3} {
			srv := &bucket.Server{}
			d := take(t, open(t, srv, nil))
			for n := range 5 {
				note(t, d, n)
			}
			_ = d.Release(t.Context())
			srv.Set(fmt.Sprintf("team/fleets/web/1/journal/%08d.json", seq), nil)
			if _, err := open(t, srv, nil).Books("web").Records(t.Context()); !errors.Is(err, journal.ErrCorrupt) {
				t.Errorf("without record %d: %v", seq, err)
			}
		}
	})
}
