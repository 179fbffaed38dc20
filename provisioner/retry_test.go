package provisioner_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/provisioner"
	"github.com/rebake/rebake/test/fake"
)

type step func(ctx context.Context, try int) error

type counted struct {
	f     step
	tries int
}

func (c *counted) Key(context.Context) (artifact.Inputs, bool, error) { return "sha256:k", true, nil }
func (c *counted) Provision(ctx context.Context, _ provisioner.Guest) error {
	c.tries++
	return c.f(ctx, c.tries)
}

func TestWithOptions(t *testing.T) {
	broken := errors.New("broken")
	hang := func(ctx context.Context, _ int) error { <-ctx.Done(); return context.Cause(ctx) }
	for name, c := range map[string]struct {
		step           step
		pause, timeout time.Duration
		retries        int
		want           string // part of the error, "" is success
		tries          int
		took           time.Duration
		reconnects     int
	}{
		"nothing asked for":              {step: func(context.Context, int) error { return nil }, tries: 1},
		"pause comes first, once":        {step: func(_ context.Context, n int) error { return map[bool]error{true: broken}[n < 2] }, pause: time.Minute, retries: 1, tries: 2, took: 61 * time.Second},
		"timeout names the setting":      {step: hang, timeout: time.Minute, want: "within 1m0s (timeout)", tries: 1, took: time.Minute},
		"pause does not eat the timeout": {step: func(ctx context.Context, _ int) error { return ctx.Err() }, pause: time.Hour, timeout: time.Second, tries: 1, took: time.Hour},
		"a retry gets a fresh context": {step: func(ctx context.Context, n int) error {
			if n == 1 {
				return hang(ctx, n)
			}
			return ctx.Err()
		}, timeout: time.Second, retries: 2, tries: 2, took: 2 * time.Second},
		"the last error is returned": {step: func(_ context.Context, n int) error {
			return errors.New([]string{"", "first", "second", "third"}[n])
		}, retries: 2, want: "third", tries: 3, took: 3 * time.Second},
		"a lost guest is dialled again": {step: func(_ context.Context, n int) error {
			return map[bool]error{true: provisioner.ErrDisconnected}[n == 1]
		}, retries: 1, tries: 2, took: time.Second, reconnects: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, g := &counted{f: c.step}, &fake.Guest{}
				began := time.Now()
				err := provisioner.WithOptions(s, c.pause, c.timeout, c.retries).Provision(t.Context(), g)
				if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
					t.Errorf("got %v, want %q", err, c.want)
				}
				if s.tries != c.tries || time.Since(began) != c.took || g.Reconnects() != c.reconnects {
					t.Errorf("%d tries in %s with %d reconnects; want %d, %s, %d", s.tries, time.Since(began), g.Reconnects(), c.tries, c.took, c.reconnects)
				}
			})
		})
	}
}

func TestWithOptionsStopsWhenToldTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cause := errors.New("stop")
		ctx, cancel := context.WithCancelCause(t.Context())
		s := &counted{f: func(context.Context, int) error { cancel(cause); return cause }}
		if err := provisioner.WithOptions(s, 0, 0, 9).Provision(ctx, &fake.Guest{}); !errors.Is(err, cause) || s.tries != 1 {
			t.Errorf("%v after %d tries", err, s.tries)
		}
	})
}
