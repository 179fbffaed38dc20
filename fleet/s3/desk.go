package s3

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/journal"
)

// desk is where the holder of a lease writes.
type desk struct {
	b    *books
	life int           // of the fleet
	long time.Duration // the lease, without a renewal
	lost chan struct{} // closed when the lease is lost
	quit chan struct{} // closed by Release
	done chan struct{} // closed when nobody renews any more

	mu      chan struct{} // has one in it while what renewals change is in use: a mutex that a synctest bubble can wait for
	l       lease
	renewed time.Time // when the last renewal that worked was sent
	gone    bool      // lost is closed

	etag  string // of the Config; "": none
	last  journal.Record
	loose [][]byte // lines of records up to last that are in no pack
	doubt *draft   // a record of which nobody knows whether it is there
}

// draft is a record that is to be written.
type draft struct {
	rec   journal.Record
	line  []byte
	nonce string
}

func newDesk(b *books, l lease, sent time.Time) *desk {
	d := &desk{b: b, life: l.Life, long: l.length(), l: l, renewed: sent, lost: make(chan struct{}), quit: make(chan struct{}), done: make(chan struct{}), mu: make(chan struct{}, 1)}
	go d.keep()
	return d
}

// Lost is closed a sixth of the lease's length before another may take it.
func (d *desk) Lost() <-chan struct{} { return d.lost }

// limit is how old the last renewal may be.
func (d *desk) limit() time.Duration { return d.long * 5 / 6 }

// keep renews the lease each third of its length, and first soon: who asked for
// it at the same moment sees at once that somebody lives.
func (d *desk) keep() {
	defer close(d.done)
	every := d.long / 3
	next := min(soon, every)
	for {
		t := time.NewTimer(next)
		select {
		case <-d.quit:
			t.Stop()
			return
		case <-d.lost:
			t.Stop()
			return
		case <-t.C:
		}
		next = every
		if err := d.renew(context.Background()); errors.Is(err, fleet.ErrStale) {
			return
		} else if err != nil {
			next = every / 4
		}
	}
}

// renew writes the lease anew: proof that nobody took it over. ErrStale, and it
// is lost, if somebody did or if it is too late for another try.
func (d *desk) renew(ctx context.Context) error {
	d.mu <- struct{}{}
	defer func() { <-d.mu }()
	if d.gone {
		return d.stale(nil)
	}
	ctx, cancel := context.WithTimeout(ctx, d.long/4)
	defer cancel()
	sent := time.Now()
	next := d.l
	err := d.b.write(ctx, &next)
	if err == nil {
		d.l, d.renewed = next, sent
		return nil
	}
	if errors.Is(err, errTaken) || elapsed(d.renewed)+d.long/4 >= d.limit() {
		return d.stale(err)
	}
	return err
}

// stale loses the lease.
func (d *desk) stale(err error) error {
	if !d.gone {
		d.gone = true
		close(d.lost)
	}
	if err == nil || errors.Is(err, errTaken) {
		return fmt.Errorf("%w: the lease of fleet %s was taken over", fleet.ErrStale, d.b.name)
	}
	return fmt.Errorf("%w, or may: the lease of fleet %s could not be renewed: %w", fleet.ErrStale, d.b.name, err)
}

// ours sees that the lease is held still. After a time in which nobody renewed it
// (a stopped process, a computer that slept) only a renewal tells.
func (d *desk) ours(ctx context.Context) error {
	d.mu <- struct{}{}
	gone, late := d.gone, elapsed(d.renewed) >= d.limit()
	<-d.mu
	if gone {
		return d.stale(nil)
	}
	if late {
		return d.renew(ctx)
	}
	return nil
}

// elapsed is the time since then, by the clock that runs on while a process is
// stopped or by the one that does so while the computer sleeps.
func elapsed(since time.Time) time.Duration {
	return max(time.Since(since), time.Now().Round(0).Sub(since.Round(0)))
}

// whole is a context for a write that is to be done whatever becomes of ctx, as
// long as the lease is held.
func (d *desk) whole(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		select {
		case <-d.lost:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// guarded does a write between two looks at the lease.
func (d *desk) guarded(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := d.whole(ctx)
	defer cancel()
	if err := d.ours(ctx); err != nil {
		return err
	}
	err := f(ctx)
	if lerr := d.ours(ctx); lerr != nil {
		return errors.Join(lerr, err)
	}
	return err
}

// Open reads the journal.
func (d *desk) Open(ctx context.Context) ([]journal.Record, error) {
	recs, loose, err := d.b.read(ctx, d.life)
	if err != nil {
		return nil, err
	}
	if d.loose = loose; len(recs) > 0 {
		d.last = recs[len(recs)-1]
	}
	is, err := d.b.h.get(ctx, d.b.configKey())
	if is != nil {
		d.etag = is.etag
	}
	return recs, err
}

// Append makes the object of the next record, which must not be there. A record
// that was left in doubt is made first: it is the same one, whether it was or not.
func (d *desk) Append(ctx context.Context, kind string, data any) (journal.Record, error) {
	if d.doubt != nil {
		if err := d.settle(ctx); err != nil {
			return journal.Record{}, err
		}
	}
	rec, line, err := journal.Next(d.last, time.Now(), kind, data)
	if err != nil {
		return rec, err
	}
	d.doubt = &draft{rec, line, newNonce()}
	if err := d.settle(ctx); err != nil {
		return journal.Record{}, fmt.Errorf("append %s to the journal: %w", kind, err)
	}
	return rec, nil
}

func (d *desk) settle(ctx context.Context) error {
	return d.guarded(ctx, func(ctx context.Context) error {
		_, err := d.b.h.put(ctx, d.b.recordKey(d.life, d.doubt.rec.Seq), "", d.doubt.nonce, d.doubt.line)
		if errors.Is(err, errTaken) {
			d.mu <- struct{}{}
			defer func() { <-d.mu }()
			return fmt.Errorf("%w: %w", d.stale(nil), journal.ErrTaken)
		}
		if err == nil {
			d.last, d.loose, d.doubt = d.doubt.rec, append(d.loose, d.doubt.line), nil
		}
		return err
	})
}

// Save writes the Config over the one that Open saw.
func (d *desk) Save(ctx context.Context, c fleet.Config) error {
	nonce := newNonce()
	body, err := json.MarshalIndent(config{nonce, c}, "", "  ")
	if err != nil {
		return fmt.Errorf("write the fleet's record: %w", err)
	}
	return d.guarded(ctx, func(ctx context.Context) error {
		etag, err := d.b.h.put(ctx, d.b.configKey(), d.etag, nonce, append(body, '\n'))
		if errors.Is(err, errTaken) {
			return fmt.Errorf("%w: the fleet's record is not as it was: %w", fleet.ErrStale, err)
		}
		if err == nil {
			d.etag = etag
		}
		return err
	})
}

// Remove says in the lease that the fleet is gone, and then removes its objects:
// what a stale operator writes from then on is of a life that nobody reads.
func (d *desk) Remove(ctx context.Context) error {
	return d.guarded(ctx, func(ctx context.Context) error {
		d.mu <- struct{}{}
		d.l.Gone = true
		<-d.mu
		if err := d.renew(ctx); err != nil {
			return err
		}
		if err := d.b.sweep(ctx, d.life); err != nil {
			return err
		}
		if err := d.ours(ctx); err != nil {
			return err
		}
		return d.b.h.remove(ctx, []string{d.b.configKey()})
	})
}

// Release lets the next operator in at once. If that cannot be said, he waits for
// the lease's end.
func (d *desk) Release(ctx context.Context) error {
	close(d.quit)
	<-d.done
	if d.gone {
		return nil // who lost it was told
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.long)
	defer cancel()
	if !d.l.Gone {
		if err := d.b.pack(ctx, d.life, d.last.Seq, d.loose); err != nil {
			event.Infof(ctx, "the journal of fleet %s was not packed: %v", d.b.name, err)
		}
	}
	next := d.l
	next.Free = true
	if err := d.b.write(ctx, &next); err != nil && !errors.Is(err, errTaken) {
		event.Warnf(ctx, "the lease of fleet %s was not given back and ends in %s: %v", d.b.name, d.long, err)
	}
	return nil
}
