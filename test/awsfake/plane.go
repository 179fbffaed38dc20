package awsfake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
)

// Traffic counts what a target group got.
type Traffic struct {
	Requests int            // that were sent to a target
	Codes    map[int]int    // by the target's status
	Targets  map[string]int // requests by target id
	Unasked  int            // requests that went, by fail-open, to a target that was not healthy
	ELB5xx   int            // answered by the load balancer: no target, no connection, cut
	Left     int            // whose client went away before the end
	Inflight int
}

// Traffic is what each target group got since the start, by the group's name.
func (c *Cloud) Traffic(regionName string) map[string]Traffic {
	out := map[string]Traffic{}
	c.in(regionName, func(r *region) {
		for _, g := range r.targetGroups.all() {
			t := g.traffic
			t.Codes, t.Targets = maps.Clone(t.Codes), maps.Clone(t.Targets)
			out[*g.TargetGroupName] = t
		}
	})
	return out
}

// ListenerURL is where a listener really serves, as "http://127.0.0.1:4711".
func (c *Cloud) ListenerURL(arn string) string {
	addr := ""
	if p := strings.Split(arn, ":"); len(p) > 3 {
		c.in(p[3], func(r *region) {
			if l, ok := r.listeners.get(arn); ok {
				addr = "http://" + l.socket.Addr().String()
			}
		})
	}
	return addr
}

// listener is one of a load balancer: it really listens.
type listener struct {
	elbtypes.Listener
	region *region
	socket net.Listener
	server *http.Server
	proxy  *httputil.ReverseProxy
}

// open listens at the balancer's own address and port where the system lets it,
// else at any port of loopback.
func (l *listener) open(host string, port int) (err error) {
	if l.socket, err = net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port))); err != nil {
		if l.socket, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return err
		}
	}
	quiet := log.New(io.Discard, "", 0)
	l.proxy = &httputil.ReverseProxy{Transport: l.region.cloud, ErrorLog: quiet, ErrorHandler: badGateway, Rewrite: func(p *httputil.ProxyRequest) {
		p.SetURL(&url.URL{Scheme: "http", Host: "target"})
		p.Out.Host = p.In.Host
		p.SetXForwarded()
	}}
	l.server = &http.Server{Handler: l, ErrorLog: quiet}
	go func() { _ = l.server.Serve(l.socket) }()
	return nil
}

func (l *listener) close() {
	if l.server != nil {
		_ = l.server.Close()
	}
}

// hop is where one request goes.
type hop struct {
	cloud    *Cloud
	region   *region
	group    *targetGroup
	target   *target
	port     int32
	addr     string   // of the backend; "" with serving: the cloud itself
	serving  bool     // something answers
	who      Instance // when the cloud itself answers
	err      error    // of the way there
	wellKept bool     // the target was healthy
}

type hopKey struct{}

// hopTo is the way to a target.
func (r *region) hopTo(g *targetGroup, t *target) *hop {
	h := &hop{cloud: r.cloud, region: r, group: g, target: t, port: t.port}
	i := r.machine(t)
	if i == nil { // an address that is no instance's
		h.addr, h.serving = t.id, g.TargetType == elbtypes.TargetTypeEnumIp
		return h
	}
	h.addr, h.serving = i.addr, i.serving && i.state() == ec2types.InstanceStateNameRunning
	if h.addr == "" {
		h.who = r.public(i)
	}
	return h
}

var direct = &http.Transport{DisableKeepAlives: true, DisableCompression: true, // a connection that is kept would be tried twice without a word
	DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext}

// RoundTrip sends a request to the target that its context names.
func (c *Cloud) RoundTrip(req *http.Request) (*http.Response, error) {
	h, ok := req.Context().Value(hopKey{}).(*hop)
	if !ok {
		return nil, errors.New("awsfake: no target")
	}
	if !h.serving {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	}
	if h.addr != "" {
		out := req.Clone(req.Context())
		out.URL.Host = h.addr
		if _, _, err := net.SplitHostPort(h.addr); err != nil {
			out.URL.Host = net.JoinHostPort(h.addr, strconv.Itoa(int(h.port)))
		}
		return direct.RoundTrip(out)
	}
	status := http.StatusOK
	if c.Status != nil {
		status = c.Status(h.who, req)
	}
	if req.Body != nil {
		_, _ = io.Copy(io.Discard, req.Body)
		req.Body.Close()
	}
	text := h.who.ID + " " + h.who.Image + "\n"
	return &http.Response{StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req, ContentLength: int64(len(text)), Body: io.NopCloser(strings.NewReader(text)),
		Header: http.Header{"X-Instance-Id": {h.who.ID}, "X-Image-Id": {h.who.Image}, "Content-Type": {"text/plain"}}}, nil
}

// badGateway is what a client gets whose target did not answer.
func badGateway(w http.ResponseWriter, req *http.Request, err error) {
	if h, ok := req.Context().Value(hopKey{}).(*hop); ok {
		h.err = err
	}
	w.Header().Set("Server", "awselb/2.0")
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		w.WriteHeader(http.StatusGatewayTimeout)
		return
	}
	w.WriteHeader(http.StatusBadGateway)
}

// status keeps the code that was sent.
type status struct {
	http.ResponseWriter
	code int
}

func (s *status) WriteHeader(code int) {
	if s.code == 0 && code >= 200 || code == http.StatusSwitchingProtocols {
		s.code = code
	}
	s.ResponseWriter.WriteHeader(code)
}

func (s *status) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func (l *listener) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	var h *hop
	var fixed *elbtypes.FixedResponseActionConfig
	var group *targetGroup
	c := l.region.cloud
	c.locked(func() {
		group, fixed = l.choose(req)
		if group == nil {
			return
		}
		if h = l.pick(group, req); h == nil {
			group.traffic.ELB5xx++
			l.region.record(sample{group: *group.TargetGroupArn, balancer: *l.LoadBalancerArn, elb: http.StatusServiceUnavailable})
			return
		}
		h.target.inflight++
		group.traffic.Inflight++
	})
	switch {
	case fixed != nil:
		code, _ := strconv.Atoi(aws.ToString(fixed.StatusCode))
		w.Header().Set("Content-Type", aws.ToString(fixed.ContentType))
		w.WriteHeader(code)
		fmt.Fprint(w, aws.ToString(fixed.MessageBody))
		return
	case h == nil:
		w.Header().Set("Server", "awselb/2.0")
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	_ = http.NewResponseController(w).EnableFullDuplex() // an answer may begin before its request has ended
	for _, k := range l.stick(h) {
		http.SetCookie(w, k)
	}
	ctx, cancel := context.WithCancel(context.WithValue(req.Context(), hopKey{}, h))
	defer cancel()
	defer context.AfterFunc(h.target.ctx, cancel)()
	s, began := &status{ResponseWriter: w}, time.Now()
	defer func() {
		left := req.Context().Err() != nil // the client did
		c.locked(func() { l.done(h, s.code, time.Since(began), left) })
	}()
	l.proxy.ServeHTTP(s, req.WithContext(ctx))
}

// done counts a request that has ended.
func (l *listener) done(h *hop, code int, took time.Duration, left bool) {
	t := &h.group.traffic
	h.target.inflight--
	t.Inflight--
	s := sample{group: *h.group.TargetGroupArn, balancer: *l.LoadBalancerArn, seconds: took.Seconds()}
	if t.Codes == nil {
		t.Codes, t.Targets = map[int]int{}, map[string]int{}
	}
	t.Requests++
	t.Targets[h.target.id]++
	if !h.wellKept {
		t.Unasked++
	}
	switch {
	case left:
		t.Left++
	case h.err != nil:
		t.ELB5xx++
		s.elb = code
	default:
		t.Codes[code]++
		s.code = code
	}
	l.region.record(s)
}

// choose finds the target group, or the fixed answer, that the rules give a request.
func (l *listener) choose(req *http.Request) (*targetGroup, *elbtypes.FixedResponseActionConfig) {
	for _, u := range l.region.inOrder(l) {
		if !applies(u.Conditions, req) {
			continue
		}
		for _, a := range u.live {
			if a.FixedResponseConfig != nil {
				return nil, a.FixedResponseConfig
			}
			if a.ForwardConfig == nil {
				continue
			}
			return l.weigh(a.ForwardConfig, req), nil
		}
		return nil, nil
	}
	return nil, nil
}

// weigh picks a group by weight, or the one that the client's cookie names, which
// counts more than weights do.
func (l *listener) weigh(f *elbtypes.ForwardActionConfig, req *http.Request) *targetGroup {
	sum := 0
	for _, t := range f.TargetGroups {
		if s := f.TargetGroupStickinessConfig; s != nil && aws.ToBool(s.Enabled) {
			if k, err := req.Cookie("AWSALBTG"); err == nil && k.Value == url.QueryEscape(*t.TargetGroupArn) {
				g, _ := l.region.targetGroups.get(*t.TargetGroupArn)
				return g
			}
		}
		sum += int(*t.Weight)
	}
	if sum == 0 {
		return nil
	}
	n := l.region.cloud.rand.IntN(sum)
	for _, t := range f.TargetGroups {
		if n -= int(*t.Weight); n < 0 {
			g, _ := l.region.targetGroups.get(*t.TargetGroupArn)
			return g
		}
	}
	return nil
}

// pick chooses a target: a healthy one or, with fewer healthy ones than the group
// asks for, any that is not draining.
func (l *listener) pick(g *targetGroup, req *http.Request) *hop {
	var healthy, all []*target
	used := len(l.region.usedBy(*g.TargetGroupArn)) > 0
	for _, t := range g.targets.all() {
		h := l.region.healthIn(g, t, used)
		switch h.State {
		case elbtypes.TargetHealthStateEnumHealthy, elbtypes.TargetHealthStateEnumUnavailable:
			healthy = append(healthy, t)
		case elbtypes.TargetHealthStateEnumDraining:
			continue
		case elbtypes.TargetHealthStateEnumUnused:
			continue
		}
		all = append(all, t)
	}
	from, open := g.warm(healthy, l.region.cloud), len(healthy) < g.least(len(all))
	if open {
		from = all
	}
	if len(from) == 0 {
		return nil
	}
	g.turn++
	t := from[g.turn%len(from)]
	if k, err := req.Cookie("AWSALB"); err == nil && g.attrs["stickiness.enabled"] == "true" {
		for _, s := range from {
			if k.Value == url.QueryEscape(targetKey(s.id, s.port)) {
				t = s
			}
		}
	}
	h := l.region.hopTo(g, t)
	h.wellKept = !open || t.state == elbtypes.TargetHealthStateEnumHealthy
	return h
}

// least is how many healthy targets of so many the group needs not to fail open.
func (g *targetGroup) least(of int) int {
	const attr = "target_group_health.unhealthy_state_routing.minimum_healthy_targets."
	n, err := strconv.Atoi(g.attrs[attr+"count"])
	if err != nil {
		n = 1
	}
	if percent, err := strconv.Atoi(g.attrs[attr+"percentage"]); err == nil {
		n = max(n, (of*percent+99)/100)
	}
	return n
}

// warm leaves out, by chance, targets that are in their slow start: their share
// rises with time. Those of a group that has no other are not slowed.
func (g *targetGroup) warm(healthy []*target, c *Cloud) []*target {
	slow := c.wall(g.seconds("slow_start.duration_seconds"))
	var out []*target
	old := false
	for _, t := range healthy {
		age := time.Since(t.since)
		old = old || age >= slow
		if age >= slow || c.rand.Float64() < age.Seconds()/slow.Seconds() {
			out = append(out, t)
		}
	}
	if !old {
		return healthy
	}
	return out
}

// stick are the cookies of a rule's and of a group's stickiness.
func (l *listener) stick(h *hop) (out []*http.Cookie) {
	l.region.cloud.locked(func() {
		for _, u := range l.region.inOrder(l) {
			for _, a := range u.live {
				if a.ForwardConfig == nil || a.ForwardConfig.TargetGroupStickinessConfig == nil || !aws.ToBool(a.ForwardConfig.TargetGroupStickinessConfig.Enabled) {
					continue
				}
				for _, t := range a.ForwardConfig.TargetGroups {
					if *t.TargetGroupArn == *h.group.TargetGroupArn && len(out) == 0 {
						out = append(out, &http.Cookie{Name: "AWSALBTG", Value: url.QueryEscape(*t.TargetGroupArn), Path: "/",
							Expires: time.Now().Add(l.region.cloud.wall(time.Duration(*a.ForwardConfig.TargetGroupStickinessConfig.DurationSeconds) * time.Second)).Add(time.Second)})
					}
				}
			}
		}
		if h.group.attrs["stickiness.enabled"] == "true" {
			out = append(out, &http.Cookie{Name: "AWSALB", Value: url.QueryEscape(targetKey(h.target.id, h.target.port)), Path: "/"})
		}
	})
	return out
}

// applies tells whether a request fulfils all conditions of a rule.
func applies(conds []elbtypes.RuleCondition, req *http.Request) bool {
	for _, c := range conds {
		ok := false
		switch aws.ToString(c.Field) {
		case "path-pattern":
			ok = matches(c.PathPatternConfig.Values, req.URL.Path)
		case "host-header":
			host, _, err := net.SplitHostPort(req.Host)
			if err != nil {
				host = req.Host
			}
			ok = matches(c.HostHeaderConfig.Values, strings.ToLower(host))
		case "http-header":
			for _, v := range req.Header.Values(aws.ToString(c.HttpHeaderConfig.HttpHeaderName)) {
				ok = ok || matches(c.HttpHeaderConfig.Values, v)
			}
		case "http-request-method":
			ok = matches(c.HttpRequestMethodConfig.Values, req.Method)
		case "query-string":
			for _, v := range c.QueryStringConfig.Values {
				for key, values := range req.URL.Query() {
					for _, have := range values {
						wantKey, _ := path.Match(aws.ToString(v.Key), key)
						ok = ok || (v.Key == nil || wantKey) && matches([]string{aws.ToString(v.Value)}, have)
					}
				}
			}
		case "source-ip":
			host, _, _ := net.SplitHostPort(req.RemoteAddr)
			for _, cidr := range c.SourceIpConfig.Values {
				_, n, err := net.ParseCIDR(cidr)
				ok = ok || err == nil && n.Contains(net.ParseIP(host))
			}
		}
		if !ok {
			return false
		}
	}
	return true
}
