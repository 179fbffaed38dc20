package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
)

// proxy is an HTTP proxy that fetches a thing once: what the guests' apt gets
// then comes from this computer's memory, for both tools alike, and the network
// is no part of what is measured.
type proxy struct {
	server *http.Server
	port   int

	mu    sync.Mutex
	kept  map[string]*entry
	bytes int64
}

type entry struct {
	once   sync.Once
	status int
	header http.Header
	body   []byte
	err    error
}

const (
	maxBody = 256 << 20 // of one thing
	maxKept = 2 << 30   // of all
)

func startProxy() (*proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // a guest reaches it as 10.0.2.2
	if err != nil {
		return nil, err
	}
	p := &proxy{port: l.Addr().(*net.TCPAddr).Port, kept: map[string]*entry{}}
	p.server = &http.Server{Handler: p}
	go func() { _ = p.server.Serve(l) }()
	return p, nil
}

// url is how a guest names it.
func (p *proxy) url() string { return fmt.Sprintf("http://10.0.2.2:%d", p.port) }

func (p *proxy) close() error { return p.server.Close() }

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || r.URL.Host == "" || r.Header.Get("Range") != "" {
		http.Error(w, "only whole GETs of http: URLs go through this proxy", http.StatusNotImplemented)
		return
	}
	p.mu.Lock()
	e := p.kept[r.URL.String()]
	if e == nil {
		e = &entry{}
		p.kept[r.URL.String()] = e
	}
	p.mu.Unlock()
	e.once.Do(func() {
		e.fetch(context.WithoutCancel(r.Context()), r.URL.String())
		p.mu.Lock()
		defer p.mu.Unlock()
		p.bytes += int64(len(e.body))
		if e.err != nil || e.status >= 500 || p.bytes > maxKept {
			p.bytes -= int64(len(e.body))
			delete(p.kept, r.URL.String()) // the next one tries again
		}
	})
	if e.err != nil {
		http.Error(w, e.err.Error(), http.StatusBadGateway)
		return
	}
	for _, k := range []string{"Content-Type", "Last-Modified", "Etag"} {
		if v := e.header.Get(k); v != "" {
			w.Header().Set(k, v)
		}
	}
	if since := r.Header.Get("If-Modified-Since"); since != "" && since == e.header.Get("Last-Modified") {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(e.body)))
	w.WriteHeader(e.status)
	_, _ = w.Write(e.body)
}

func (e *entry) fetch(ctx context.Context, url string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		e.err = err
		return
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		e.err = err
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err == nil && len(body) > maxBody {
		err = errors.New("too large")
	}
	e.status, e.header, e.body, e.err = resp.StatusCode, resp.Header, body, err
}
