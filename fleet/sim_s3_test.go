package fleet_test

import (
	"context"
	"reflect"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/s3"
	"github.com/rebake/rebake/internal/journal"
	"github.com/rebake/rebake/test/bucket"
)

// TestSimulatorInABucket plays some of the simulator's runs with the books in a
// bucket: each session is another operator, and one that is killed at a record does not give its
// lease back.
func TestSimulatorInABucket(t *testing.T) {
	for seed := uint64(1); seed <= 60 && !t.Failed(); seed++ {
		synctest.Test(t, func(t *testing.T) {
			srv := &bucket.Server{}
			w := simulate(t, seed, false, func(w *world) { w.d.Books = &shared{w: w, srv: srv} })
			h, err := w.d.History(t.Context())
			if err != nil || len(h) != len(w.past.History) || !reflect.DeepEqual(h.Current().Group, w.past.History.Current().Group) {
				t.Errorf("seed %d: the bucket says otherwise: %d deployments, %v", seed, len(h), err)
			}
		})
	}
}

// shared are books in a bucket, of which the world is told.
type shared struct {
	w   *world
	srv *bucket.Server
}

func (s *shared) open(fault func(string) bucket.Fault) (fleet.Books, error) {
	h, err := s3.Open(context.Background(), "s3://"+bucket.Name+"/sim", s3.Options{Client: s.srv.Client(fault)})
	if err != nil {
		return nil, err
	}
	return h.Books("web"), nil
}

func (s *shared) Config(ctx context.Context) (fleet.Config, error) {
	b, err := s.open(nil)
	if err != nil {
		return fleet.Config{}, err
	}
	return b.Config(ctx)
}

func (s *shared) Records(ctx context.Context) ([]journal.Record, error) {
	b, err := s.open(nil)
	if err != nil {
		return nil, err
	}
	return b.Records(ctx)
}

func (s *shared) Take(ctx context.Context) (fleet.Desk, error) {
	d := &sharedDesk{w: s.w}
	b, err := s.open(func(string) bucket.Fault {
		if d.dead.Load() {
			return bucket.Cut
		}
		return bucket.None
	})
	if err == nil {
		d.Desk, err = b.Take(ctx)
	}
	return d, err
}

type sharedDesk struct {
	fleet.Desk
	w    *world
	dead atomic.Bool
}

func (d *sharedDesk) Append(ctx context.Context, kind string, data any) (rec journal.Record, err error) {
	if rec, err = d.Desk.Append(ctx, kind, data); err != nil {
		return rec, err
	}
	d.dead.Store(true) // unless the world lets it live
	_, err = d.w.append(kind, data)
	d.dead.Store(false)
	return rec, err
}
