// Package load sends requests without pause and counts which of them failed.
// It is the judge of a swap: POST requests that no client or proxy may send
// again in silence, partly on connections that are kept and partly on fresh
// ones, each answer assigned to the version that gave it.
package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Options say what is sent.
type Options struct {
	URL         string
	Concurrency int           // requests at a time; 0: 4
	Fresh       int           // of the workers, so many use a new connection for each request; 0: half, -1: none
	Timeout     time.Duration // a request without an answer for so long failed; 0: 30 s
	Pause       time.Duration // of a worker between two requests; 0: none
	Header      string        // response header that tells the version; "": X-Release, else the first line of the body
	Live        *Counter      // counts as it goes; may be nil
}

// Counter can be read while Run runs.
type Counter struct{ Sent, Failed atomic.Int64 }

// Result is what was measured.
type Result struct {
	Sent        int            // requests that were answered or failed
	Failed      int            // no answer, or a status other than 2xx
	FirstErrors []string       // at most 10
	ByVersion   map[string]int // answers with 2xx
	P50, P99    time.Duration  // of all, within 2 %
	Longest     time.Duration
}

const (
	maxErrors   = 10
	maxVersions = 100
	maxBody     = 64 << 10
)

// Run sends requests until ctx ends; those in flight then are waited for and
// count.
func Run(ctx context.Context, o Options) Result {
	if o.Concurrency <= 0 {
		o.Concurrency = 4
	}
	if o.Fresh == 0 {
		o.Fresh = o.Concurrency / 2
	}
	if o.Timeout <= 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Live == nil {
		o.Live = new(Counter)
	}
	kept := &http.Transport{MaxIdleConnsPerHost: o.Concurrency, DisableCompression: true}
	fresh := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	defer kept.CloseIdleConnections()
	t := tally{res: Result{ByVersion: map[string]int{}}}
	var wg sync.WaitGroup
	for i := range o.Concurrency {
		tr := kept
		if i < o.Fresh {
			tr = fresh
		}
		wg.Go(func() { worker(ctx, o, tr, &t) })
	}
	wg.Wait()
	return t.result()
}

func worker(ctx context.Context, o Options, tr *http.Transport, t *tally) {
	for ctx.Err() == nil {
		began := time.Now()
		// The end of the run does not cut a request: it must still be answered.
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.Timeout)
		version, err := once(rctx, o, tr)
		cancel()
		o.Live.Sent.Add(1)
		if err != nil {
			o.Live.Failed.Add(1)
		}
		t.add(time.Since(began), version, err)
		if o.Pause > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(o.Pause):
			}
		}
	}
}

// body has no GetBody, so that Go's client cannot send the request again on a
// connection that died: it would hide what a swap broke.
type body struct{ io.Reader }

func once(ctx context.Context, o Options, tr *http.Transport) (version string, err error) {
	const text = "rebake"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.URL, body{strings.NewReader(text)})
	if err != nil {
		return "", err
	}
	req.ContentLength = int64(len(text))
	res, err := tr.RoundTrip(req) // not a Client: no redirects
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<20))
	}
	if err != nil {
		return "", fmt.Errorf("read the answer: %w", err)
	}
	header := o.Header
	if header == "" {
		header = "X-Release"
	}
	version = res.Header.Get(header)
	if version == "" {
		version, _, _ = strings.Cut(string(data), "\n")
	}
	version = strings.TrimSpace(version)
	if len(version) > 64 {
		version = version[:64]
	}
	if res.StatusCode/100 != 2 {
		return "", errors.New("status " + res.Status + " " + version)
	}
	return version, nil
}

// tally adds up; its size does not grow with the number of requests.
type tally struct {
	mu      sync.Mutex
	res     Result
	buckets [2048]int
}

const growth = 1.02 // of one bucket to the next, from 1 µs on

func bucket(d time.Duration) int {
	us := float64(d.Microseconds())
	if us < 1 {
		return 0
	}
	return min(int(math.Log(us)/math.Log(growth)), 2047)
}

func (t *tally) add(d time.Duration, version string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.res.Sent++
	t.buckets[bucket(d)]++
	t.res.Longest = max(t.res.Longest, d)
	if err != nil {
		t.res.Failed++
		if len(t.res.FirstErrors) < maxErrors {
			t.res.FirstErrors = append(t.res.FirstErrors, err.Error())
		}
		return
	}
	if _, ok := t.res.ByVersion[version]; !ok && len(t.res.ByVersion) >= maxVersions {
		version = "(others)"
	}
	t.res.ByVersion[version]++
}

func (t *tally) result() Result {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.res.P50, t.res.P99 = t.quantile(0.50), t.quantile(0.99)
	return t.res
}

// quantile is the upper end of the bucket that holds it.
func (t *tally) quantile(q float64) time.Duration {
	need, sum := int(math.Ceil(q*float64(t.res.Sent))), 0
	for i, n := range t.buckets {
		sum += n
		if n > 0 && sum >= need {
			return min(time.Duration(math.Pow(growth, float64(i+1))*float64(time.Microsecond)), t.res.Longest)
		}
	}
	return 0
}
