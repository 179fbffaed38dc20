package s3

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/rebake/rebake/fleet"
)

// lease is leases/NAME.json: who may write. Each write of it is a conditional
// one, and has another nonce, so that its etag tells whether its holder lives.
type lease struct {
	Epoch  int            `json:"epoch"` // how often it was taken
	Life   int            `json:"life"`  // of the fleet
	Gone   bool           `json:"gone,omitempty"`
	Free   bool           `json:"free,omitempty"`
	Holder fleet.Operator `json:"holder"`
	For    float64        `json:"for_seconds"` // without a renewal
	Nonce  string         `json:"nonce"`

	etag string
	age  time.Duration
}

// live is the fleet's life, 0 for one that was destroyed.
func (l lease) live() int {
	if l.Gone {
		return 0
	}
	return l.Life
}

func (l lease) length() time.Duration { return time.Duration(l.For * float64(time.Second)) }

// How soon a lease is renewed for the first time, and looked at again; the time
// between looks doubles.
const (
	soon   = 100 * time.Millisecond
	seldom = 500 * time.Millisecond
)

// lease reads it; nil: nobody ever took it.
func (b *books) lease(ctx context.Context) (*lease, error) {
	o, err := b.h.get(ctx, b.leaseKey())
	if o == nil || err != nil {
		return nil, err
	}
	l := lease{etag: o.etag, age: o.age}
	if err := json.Unmarshal(o.body, &l); err != nil || l.Epoch < 1 || l.Life < 1 {
		return nil, fmt.Errorf("%s is no lease: %w", b.h.where(b.leaseKey()), errors.Join(err, errors.New("remove it if nobody deploys")))
	}
	return &l, nil
}

// write puts the lease where the one with its etag is, or none for "".
func (b *books) write(ctx context.Context, l *lease) error {
	l.Nonce = newNonce()
	body, err := json.Marshal(l)
	if err != nil {
		return err
	}
	etag, err := b.h.put(ctx, b.leaseKey(), l.etag, l.Nonce, append(body, '\n'))
	if err == nil {
		l.etag = etag
	}
	return err
}

// Take takes the lease if it is free. If somebody holds it, that it is renewed is
// the proof that he lives: ErrLocked. He is dead once it was not for its whole
// length by this process's own clock, which is the same in all of it; or at once,
// if by the server's clock alone that was twice as long ago.
func (b *books) Take(ctx context.Context) (fleet.Desk, error) {
	if err := b.h.prove(ctx); err != nil {
		return nil, err
	}
	var seen *lease // that we watch
	var since time.Time
	look := soon / 2
	beaten := false // another took it under our eyes: he lives
	for {
		is, err := b.lease(ctx)
		if err != nil {
			return nil, err
		}
		next := lease{Epoch: 1, Life: 1}
		switch {
		case is == nil:
			if next.Life, err = b.highest(ctx); err != nil {
				return nil, err
			}
			next.Life = max(1, next.Life)
		case is.Free, seen != nil && seen.etag == is.etag && time.Since(since) >= is.length(), seen == nil && !beaten && is.age > 2*is.length()+2*time.Second:
			next = *is
			next.Epoch++
		case beaten || seen != nil && seen.etag != is.etag:
			return nil, fmt.Errorf("%w: %s", fleet.ErrLocked, is.Holder)
		default:
			if seen == nil {
				seen, since = is, time.Now()
				b.h.tell(ctx, fmt.Sprintf("a sign of life of whoever holds fleet %s (%s on %s, process %d), at most %s", b.name, is.Holder.User, is.Holder.Host, is.Holder.PID, is.length()))
			}
			if err := pause(ctx, min(look, is.length()/10)); err != nil {
				return nil, err
			}
			look = min(2*look, seldom)
			continue
		}
		next.Free, next.Holder, next.For = false, fleet.Me(), b.h.lease.Seconds()
		if next.Gone { // a new one of that name
			next.Gone, next.Life = false, next.Life+1
		}
		sent := time.Now()
		err = b.write(ctx, &next)
		if errors.Is(err, errTaken) {
			beaten = true
			continue
		}
		if err != nil {
			return nil, err
		}
		return newDesk(b, next, sent), nil
	}
}
