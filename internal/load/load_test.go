package load

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// until runs the load until stop says so of the counter.
func until(t *testing.T, o Options, stop func(sent, failed int64) bool) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	o.Live = new(Counter)
	done := make(chan Result, 1)
	go func() { done <- Run(ctx, o) }()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if stop(o.Live.Sent.Load(), o.Live.Failed.Load()) {
				cancel()
				return <-done
			}
		case <-done:
			t.Fatal("the load never got that far")
		}
	}
}

func TestCountsWhatTheServerSaw(t *testing.T) {
	var served, posts, fresh atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b, err := io.ReadAll(r.Body); err == nil && string(b) == "rebake" && r.Method == http.MethodPost {
			posts.Add(1)
		}
		if r.Close {
			fresh.Add(1)
		}
		if served.Add(1)%2 == 0 {
			w.Header().Set("X-Release", "two")
		}
		io.WriteString(w, "one\nmore\n")
	}))
	defer srv.Close()
	res := until(t, Options{URL: srv.URL}, func(sent, _ int64) bool { return sent >= 200 })
	if res.Failed != 0 || int64(res.Sent) != served.Load() || posts.Load() != served.Load() {
		t.Errorf("sent %d, failed %d %v; the server saw %d, of them good POSTs %d", res.Sent, res.Failed, res.FirstErrors, served.Load(), posts.Load())
	}
	if res.ByVersion["one"] == 0 || res.ByVersion["two"] == 0 || res.ByVersion["one"]+res.ByVersion["two"] != res.Sent {
		t.Errorf("by version: %v of %d", res.ByVersion, res.Sent)
	}
	if f := fresh.Load(); f == 0 || f == served.Load() {
		t.Errorf("%d of %d requests on connections of their own: want a mix", f, served.Load())
	}
	if res.P50 <= 0 || res.P50 > res.P99 || res.P99 > res.Longest {
		t.Errorf("p50 %s, p99 %s, longest %s", res.P50, res.P99, res.Longest)
	}
}

func TestErrorStatusFails(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "broken", http.StatusInternalServerError)
	}))
	defer srv.Close()
	res := until(t, Options{URL: srv.URL}, func(_, failed int64) bool { return failed >= 20 })
	if res.Failed != res.Sent || len(res.FirstErrors) != maxErrors || !strings.Contains(res.FirstErrors[0], "500") {
		t.Errorf("failed %d of %d: %v", res.Failed, res.Sent, res.FirstErrors)
	}
}

// A server that closes a kept connection just as the next request comes is
// what a bad swap looks like. Go's client would send that request again.
func TestDeadKeptConnectionIsNotHidden(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 4096)
				if _, err := c.Read(buf); err != nil {
					return
				}
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
				c.Read(buf) // the second request is taken and never answered
			}()
		}
	}()
	res := until(t, Options{URL: "http://" + l.Addr().String(), Concurrency: 1, Fresh: -1}, func(_, failed int64) bool { return failed >= 3 })
	if res.Failed < 3 {
		t.Errorf("failed %d of %d", res.Failed, res.Sent)
	}
}

func TestRequestInFlightAtTheEndIsWaitedFor(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		cancel()
		<-ctx.Done()
		io.WriteString(w, "late")
	}))
	defer srv.Close()
	res := Run(ctx, Options{URL: srv.URL, Concurrency: 1})
	if res.Sent != 1 || res.Failed != 0 || res.ByVersion["late"] != 1 {
		t.Errorf("%+v", res)
	}
}

func TestQuantilesAreWithinTwoPercent(t *testing.T) {
	ta := tally{res: Result{ByVersion: map[string]int{}}}
	for i := 1; i <= 1000; i++ {
		ta.add(time.Duration(i)*time.Millisecond, "v", nil)
	}
	for q, want := range map[float64]time.Duration{0.5: 500 * time.Millisecond, 0.99: 990 * time.Millisecond} {
		if got := ta.quantile(q); got < want || float64(got) > 1.021*float64(want) {
			t.Errorf("quantile %v: %s, want %s and at most 2 %% more", q, got, want)
		}
	}
}
