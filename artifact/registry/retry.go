package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/rebake/rebake/artifact"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

const (
	longestPause = 30 * time.Second
	longestAfter = 5 * time.Minute // of a server's Retry-After that is respected
)

// busy is a transport that makes errors of the answers that pass, and ends those
// of which no byte comes for a while.
type busy struct {
	next  http.RoundTripper
	stall time.Duration
}

type busyError struct {
	status int
	after  time.Duration
}

func (e *busyError) Error() string {
	return fmt.Sprintf("the registry answered %d %s", e.status, http.StatusText(e.status))
}

func (b busy) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	resp, err := b.next.RoundTrip(r.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = &answer{resp.Body, ctx, cancel, time.AfterFunc(b.stall, func() { cancel(fmt.Errorf("no byte for %s", b.stall)) }), b.stall}
	if resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusRequestTimeout || resp.StatusCode == http.StatusNotImplemented {
		return resp, nil
	}
	resp.Body.Close()
	e := &busyError{status: resp.StatusCode}
	if text := resp.Header.Get("Retry-After"); text != "" {
		if n, err := strconv.Atoi(text); err == nil && n > 0 {
			e.after = time.Duration(min(n, 1<<20)) * time.Second
		} else if at, err := http.ParseTime(text); err == nil {
			e.after = time.Until(at)
		}
	}
	return nil, e
}

// answer is a body that ends when no byte comes for a while.
type answer struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	t      *time.Timer
	stall  time.Duration
}

func (a *answer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if n > 0 {
		a.t.Reset(a.stall)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = caused(a.ctx, err)
	}
	return n, err
}

func (a *answer) Close() error {
	a.t.Stop()
	err := a.ReadCloser.Close()
	a.cancel(nil)
	return err
}

// localError marks an error of this side, which trying again does not mend.
type localError struct{ error }

func (e localError) Unwrap() error { return e.error }

// passes tells whether an error may go away by itself.
func passes(err error) bool {
	var resp *errcode.ErrorResponse
	var here localError
	var path *fs.PathError
	switch {
	case errors.As(err, &resp), errors.As(err, &here), errors.As(err, &path), errors.Is(err, errdef.ErrNotFound),
		errors.Is(err, artifact.ErrCorrupt), errors.Is(err, http.ErrSchemeMismatch), errors.Is(err, errdef.ErrUnsupported), errors.Is(err, errdef.ErrTooManyPages):
		return false
	}
	return true
}

// dialTries is how often a host is called that nobody answers at.
const dialTries = 3

func dials(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// unreachable tells whether an error is of the way to a registry, not of its answers.
func unreachable(err error) bool {
	var op *net.OpError
	var dns *net.DNSError
	return errors.As(err, &op) || errors.As(err, &dns)
}

// retry runs f again while its errors may pass, with growing pauses of random
// length, or as long as the server asks.
func (c *client) retry(ctx context.Context, what string, f func(context.Context) error) error {
	pause := c.o.first
	for try := 1; ; try++ {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !passes(err) {
			return fmt.Errorf("%s: %w", what, clean(err))
		}
		if try == c.o.Retries || try == dialTries && dials(err) {
			return fmt.Errorf("%s: given up after %d tries: %w", what, try, clean(err))
		}
		wait := pause/2 + rand.N(pause/2+1)
		var b *busyError
		if errors.As(err, &b) && b.after > wait {
			if b.after > longestAfter {
				return fmt.Errorf("%s: %w, and asks to wait for %s: try later", what, b, b.after.Round(time.Second))
			}
			wait = b.after
		}
		c.o.Warn(fmt.Sprintf("%s: %v; again in %s", what, clean(err), wait.Round(10*time.Millisecond)))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(2*pause, longestPause)
	}
}

// cleaned is an error without what URLs may hold: signatures, tokens, users.
type cleaned struct {
	text string
	err  error
}

func (e *cleaned) Error() string { return e.text }
func (e *cleaned) Unwrap() error { return e.err }

var query = regexp.MustCompile(`(https?://[^\s"?]*)\?[^\s"]*`)

func clean(err error) error {
	text := hide(query.ReplaceAllString(err.Error(), "$1?…"))
	if len(text) > 2000 {
		text = text[:2000] + "…"
	}
	switch {
	case errors.Is(err, syscall.ENOSPC):
		text += " (the disk is full: `rebake images prune` frees space, then run it again: what is here is not fetched again)"
	case errors.Is(err, http.ErrSchemeMismatch):
		text += " (a registry without TLS needs --plain-http)"
	}
	return &cleaned{text, err}
}

// moving cancels its context when no byte passes for a while.
type moving struct {
	io.Reader
	t     *time.Timer
	stall time.Duration
	seen  func(n int)
}

func (m *moving) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	if n > 0 {
		m.t.Reset(m.stall)
		m.seen(n)
	}
	return n, err
}

// watch returns a context that ends when the reader that it wraps stalls.
func (c *client) watch(ctx context.Context, seen func(n int)) (context.Context, func(io.Reader) io.Reader, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	t := time.AfterFunc(c.o.Stall, func() { cancel(fmt.Errorf("no byte for %s", c.o.Stall)) })
	return ctx, func(r io.Reader) io.Reader { return &moving{r, t, c.o.Stall, seen} }, func() { t.Stop(); cancel(nil) }
}
