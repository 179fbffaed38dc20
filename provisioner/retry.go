package provisioner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rebake/rebake/internal/event"
)

// WithOptions wraps a step in the options that all kinds share: pause once
// before it, timeout for each try (0: none), retries after a failed one. Each
// try has a context of its own, so that one which timed out does not end the
// next; the wait between two grows from 1 s to 30 s. The last error is returned.
func WithOptions(p Provisioner, pause, timeout time.Duration, retries int) Provisioner {
	if pause <= 0 && timeout <= 0 && retries <= 0 {
		return p
	}
	return &optioned{p, pause, timeout, retries}
}

type optioned struct {
	Provisioner
	pause, timeout time.Duration
	retries        int
}

func (o *optioned) Provision(ctx context.Context, g Guest) error {
	if o.pause > 0 {
		event.Waiting(ctx, "%s, as pause_before says", o.pause)
		if err := Sleep(ctx, o.pause); err != nil {
			return err
		}
	}
	backoff := time.Second
	for try := 0; ; try++ {
		err := o.once(ctx, g)
		if err == nil || ctx.Err() != nil || try >= o.retries {
			return err
		}
		event.Warnf(ctx, "try %d of %d failed: %v; again in %s", try+1, o.retries+1, err, backoff)
		if err := Sleep(ctx, backoff); err != nil {
			return err
		}
		backoff = min(backoff*2, 30*time.Second)
		if errors.Is(err, ErrDisconnected) {
			if rerr := g.Reconnect(ctx); rerr != nil {
				return errors.Join(err, rerr)
			}
		}
	}
}

func (o *optioned) once(ctx context.Context, g Guest) error {
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("did not end within %s (timeout)", o.timeout))
		defer cancel()
	}
	return o.Provisioner.Provision(ctx, g)
}

// Sleep waits for d, or for ctx, whose cause it then returns.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
