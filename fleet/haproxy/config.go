package haproxy

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/rebake/rebake/fleet"
)

// Names of the files in dir.
const (
	configName  = "haproxy.cfg"
	mapName     = "fleet.map" // HAProxy runs in dir and knows the map by this name
	membersName = "members.json"
	pidName     = "haproxy.pid"
	logName     = "haproxy.log"
	lockName    = "router.lock"
	epochName   = "router.epoch" // the highest session that changed it
)

func (r *Router) file(name string) string { return filepath.Join(r.dir, name) }
func (r *Router) socketPath() string      { return filepath.Join(r.runDir, "haproxy.sock") }

// quote writes s as one word of HAProxy's configuration language.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`).Replace(s) + `"`
}

func ms(d time.Duration) int64 { return max(1, d.Milliseconds()) }

// checkArgs are the parts of the health check that belong to a server. While
// a server changes its state it is checked more often, so that a boot is noticed soon.
func (r *Router) checkArgs() string {
	fast := max(min(r.hc.Interval/4, time.Second), 50*time.Millisecond)
	return fmt.Sprintf("inter %d fastinter %d downinter %d rise %d fall %d",
		ms(r.hc.Interval), ms(fast), ms(fast), r.hc.Rise, r.hc.Fall)
}

// config is the whole configuration; nothing in it changes with a deployment.
func (r *Router) config() string {
	var b strings.Builder
	p := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	p("# The router of fleet %s. Written by rebake; never reloaded: what changes, changes by the socket.", r.name)
	p("global")
	p("  stats socket %s mode 600 level admin", quote(r.socketPath()))
	p("  stats timeout 1m")
	p("  log stdout format raw local0 notice")
	p("  noreuseport # another router on the same address must be an error, not a share of its requests")
	p("defaults")
	p("  mode %s", r.cfg.Mode)
	p("  log global")
	p("  timeout connect 2s")
	p("  timeout client 1m")
	p("  timeout server 1m")
	p("  timeout queue 10s")
	p("  timeout tunnel 1h")
	p("  timeout check %d", ms(r.hc.Timeout))
	p("  retries 3")
	p("  option redispatch 1")
	if r.cfg.Mode == "http" {
		p("  timeout http-request 30s")
		p("  option forwardfor")
		if r.cfg.Idempotent {
			p("  retry-on conn-failure empty-response")
		} else {
			p("  retry-on conn-failure")
		}
	}
	p("frontend %s", r.name)
	p("  bind %s", quote(r.cfg.Listen))
	// The one place that decides: permille of green, below zero for no traffic at all.
	if r.cfg.Mode == "http" {
		p("  http-request set-var(txn.green) str(green),map_str_int(%s,-1)", mapName)
		p(`  http-request return status 503 content-type text/plain string "no image is in service\n" if { var(txn.green) -m int lt 0 }`)
	} else {
		p("  tcp-request content set-var(txn.green) str(green),map_str_int(%s,-1)", mapName)
		p("  tcp-request content reject if { var(txn.green) -m int lt 0 }")
	}
	p("  use_backend %s if { rand(1000),sub(txn.green) -m int lt 0 }", r.backend(fleet.Green))
	p("  default_backend %s", r.backend(fleet.Blue))
	for _, s := range slots {
		p("backend %s", r.backend(s))
		p("  balance leastconn") // allows servers to come and go
		if r.hc.Type == "http" {
			p("  option httpchk")
			p("  http-check send meth GET uri %s ver HTTP/1.1 hdr Host localhost hdr User-Agent rebake-health", quote(r.hc.Path))
			p("  http-check expect status %d", r.hc.Status)
		}
	}
	return b.String()
}
