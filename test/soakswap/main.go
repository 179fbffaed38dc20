// Command soakswap is `make soak-swap`: 50 swaps and 10 rollbacks in a row behind
// a real HAProxy, under requests on kept and on new connections, slow ones, and
// one that streams for seconds. The instances are HTTP servers of this process,
// so that half a million requests take minutes and not days. It fails if one
// request did.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/haproxy"
	"github.com/rebake/rebake/internal/load"
	"github.com/rebake/rebake/test/servers"
)

// What a request of each kind takes.
const (
	slowFor   = 400 * time.Millisecond
	streamFor = 3 * time.Second
)

func main() {
	swaps := flag.Int("swaps", 50, "swaps")
	rollbacks := flag.Int("rollbacks", 10, "rollbacks")
	requests := flag.Int64("requests", 500_000, "go on under load until so many were sent")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := soak(ctx, *swaps, *rollbacks, *requests)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak-swap: "+err.Error())
		os.Exit(1)
	}
}

// kinds are the loads, each by itself, for the whole run.
var kinds = []struct {
	name, path         string
	concurrency, fresh int
}{
	{"kept connections", "/", 6, -1},
	{"new connections", "/", 2, 2},
	{"slow", "/slow", 4, 2},
}

func soak(ctx context.Context, swaps, rollbacks int, requests int64) (err error) {
	dir, err := os.MkdirTemp("", "soak-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	pool := &servers.Pool{Handler: handler}
	defer pool.Close()
	addr, err := servers.FreeAddr()
	if err != nil {
		return err
	}
	health := fleet.HealthCheck{Type: "http", Port: 80, Path: "/health", Interval: 100 * time.Millisecond, Timeout: time.Second, Rise: 2, Fall: 3}
	router, err := haproxy.New(haproxy.Config{Listen: addr}, filepath.Join(dir, "router"), filepath.Join(dir, "run"), "soak", health)
	if err != nil {
		return err
	}
	policy, err := fleet.Policy{Port: 80, KeepOld: time.Hour, Drain: 30 * time.Second, Steps: []fleet.Step{{Permille: 1000}}}.Complete()
	if err != nil {
		return err
	}
	d := &fleet.Deployer{Dir: filepath.Join(dir, "fleet"), Pool: pool, Router: router, Poll: 20 * time.Millisecond,
		Config: fleet.Config{Name: "soak", Size: 2, PoolKind: "servers", RouterKind: "haproxy", Health: health, Policy: policy}}
	defer func() { err = errors.Join(err, d.Destroy(context.WithoutCancel(ctx))) }()
	deploy := func(n int) (fleet.Result, error) {
		version := fmt.Sprintf("1.0.%d", n)
		img := artifact.Image{Name: "soak", Version: version, Digest: artifact.Digest("sha256:" + version)}
		return d.Deploy(ctx, fleet.Request{Spec: fleet.Spec{Image: img, Size: 2, Ports: []int{80}}, Policy: policy})
	}
	if _, err := deploy(0); err != nil {
		return err
	}
	url := "http://" + addr
	l := begin(ctx, url)
	steady, err := window(ctx, url, 5*time.Second, nil)
	if err != nil {
		return err
	}
	var drained, back time.Duration
	during, err := window(ctx, url, 0, func() error {
		for n := 1; n <= swaps; n++ {
			res, err := deploy(n)
			if err != nil {
				return fmt.Errorf("swap %d: %w", n, err)
			}
			if now := time.Duration(res.SwapSeconds() * float64(time.Second)); now > drained {
				drained = now
			}
			if n%(max(swaps/max(rollbacks, 1), 1)) == 0 && rollbacks > 0 {
				began := time.Now()
				res, err := d.Rollback(ctx, "soak")
				if err != nil {
					return fmt.Errorf("rollback after swap %d: %w", n, err)
				}
				if took := res.Weights[len(res.Weights)-1].Time.Sub(began); took > back {
					back = took
				}
			}
			fmt.Printf("\r%d of %d swaps, %d requests, %d failed ", n, swaps, l.live.Sent.Load(), l.live.Failed.Load())
		}
		return nil
	})
	if err != nil {
		return err
	}
	for l.live.Sent.Load() < requests && ctx.Err() == nil { // more swaps, until enough was sent
		swaps++
		if _, err := deploy(swaps); err != nil {
			return fmt.Errorf("swap %d: %w", swaps, err)
		}
		fmt.Printf("\r%d swaps, %d requests, %d failed ", swaps, l.live.Sent.Load(), l.live.Failed.Load())
	}
	fmt.Println()
	return errors.Join(ctx.Err(), l.report(swaps, rollbacks, steady, during, drained, back))
}

// loads is the traffic of the whole run.
type loads struct {
	live    load.Counter
	stop    context.CancelFunc
	results []chan load.Result
	streams chan [2]int // done, failed
}

func begin(ctx context.Context, url string) *loads {
	l := &loads{}
	ctx, l.stop = context.WithCancel(ctx)
	for _, k := range kinds {
		done := make(chan load.Result, 1)
		l.results = append(l.results, done)
		go func() {
			done <- load.Run(ctx, load.Options{URL: url + k.path, Concurrency: k.concurrency, Fresh: k.fresh, Live: &l.live})
		}()
	}
	l.streams = make(chan [2]int, 1)
	go func() {
		var n [2]int
		for ctx.Err() == nil {
			n[0]++
			if err := stream(context.WithoutCancel(ctx), url); err != nil {
				n[1]++
				fmt.Println("\nstream:", err)
			}
		}
		l.streams <- n
	}()
	return l
}

// stream reads one long answer to its end.
func stream(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/stream", nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil && (len(body) < 4 || string(body[len(body)-4:]) != "end\n") {
		err = fmt.Errorf("it ended after %d bytes", len(body))
	}
	return err
}

// window measures the same requests beside the load for a while, or as long as f runs.
func window(ctx context.Context, url string, d time.Duration, f func() error) (load.Result, error) {
	wctx, stop := context.WithCancel(ctx)
	if f == nil {
		wctx, stop = context.WithTimeout(ctx, d)
	}
	defer stop()
	done := make(chan load.Result, 1)
	go func() { done <- load.Run(wctx, load.Options{URL: url + "/", Concurrency: 2, Fresh: -1}) }()
	var err error
	if f != nil {
		err = f()
		stop()
	}
	return <-done, err
}

func (l *loads) report(swaps, rollbacks int, steady, during load.Result, drained, back time.Duration) error {
	l.stop()
	sent, failed := steady.Sent+during.Sent, steady.Failed+during.Failed
	for i, done := range l.results {
		r := <-done
		sent, failed = sent+r.Sent, failed+r.Failed
		fmt.Printf("%-18s %8d requests  %d failed  p50 %-10s p99 %-10s longest %s %v\n", kinds[i].name, r.Sent, r.Failed, r.P50, r.P99, r.Longest.Round(time.Millisecond), r.FirstErrors)
	}
	n := <-l.streams
	fmt.Printf("%-18s %8d requests  %d failed\n", "streams", n[0], n[1])
	sent, failed = sent+n[0], failed+n[1]
	ratio := float64(during.P99) / float64(steady.P99)
	fmt.Printf("%d swaps, %d rollbacks, %d requests, %d failed\n", swaps, rollbacks, sent, failed)
	fmt.Printf("p99 %s while swapping, %s while steady: %.2f (at most 1.5)\n", during.P99, steady.P99, ratio)
	fmt.Printf("slowest drain %s after the traffic moved; the longest request takes %s (at most 0.3 s more)\n", drained.Round(time.Millisecond), streamFor)
	fmt.Printf("slowest rollback: traffic was back after %s (at most 1 s)\n", back.Round(time.Millisecond))
	if failed > 0 {
		return fmt.Errorf("%d of %d requests failed", failed, sent)
	}
	return nil
}
