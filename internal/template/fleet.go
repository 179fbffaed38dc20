package template

import (
	"strings"
	"time"
)

// IsState tells of the address of a shared state.
func IsState(address string) bool { return statePattern.MatchString(address) }

// fleet reads fleet: and sets its defaults.
func (l *loader) fleet(e *entry, doc document, kinds Kinds) (*Fleet, error) {
	f, n := doc.Fleet, e.value
	at := Block{n: n, src: l.s, dir: l.scope.dir, line: e.line, column: e.column}
	out := &Fleet{Block: at, Name: f.Name, Size: f.Size, UserData: f.UserData, State: strings.TrimRight(f.State, "/")}
	if out.Name == "" {
		out.Name = strings.NewReplacer("/", "-", ".", "-", "_", "-").Replace(doc.Name)
	}
	if !fleetPattern.MatchString(out.Name) {
		return nil, at.Errorf("name", "%q cannot name a fleet: at most 40 lower-case letters, digits and - (set fleet.name)", out.Name)
	}
	if f.State != "" && !IsState(f.State) {
		return nil, at.Errorf("state", "%q is no shared state: s3://BUCKET or s3://BUCKET/PREFIX", f.State)
	}
	if n.get("size") == nil {
		out.Size = 1
	}
	if out.Size < 1 || out.Size > 1000 {
		return nil, at.Errorf("size", "size must be between 1 and 1000")
	}
	var err error
	if out.Pool, err = l.backend(f.Pool, "pool", kinds.Pools); err != nil {
		return nil, err
	}
	switch refresh := f.Deploy.Strategy == "refresh"; {
	case refresh && n.get("router") != nil:
		return nil, at.Errorf("router", "with strategy: refresh traffic is the business of whatever load balancer the group is behind: leave router out")
	case !refresh && n.get("router") == nil:
		return nil, at.Errorf("", "fleet needs key \"router\": one of %s", strings.Join(keys(kinds.Routers), ", "))
	case !refresh:
		if out.Router, err = l.backend(f.Router, "router", kinds.Routers); err != nil {
			return nil, err
		}
	}
	out.PoolKind, out.RouterKind = out.Pool.kind, out.Router.kind
	if out.Health, err = health(f.Health, n.get("health"), at); err != nil {
		return nil, err
	}
	if out.Require, err = f.Require.read("require.", at); err != nil {
		return nil, err
	}
	out.Deploy, err = deploy(f.Deploy, out.Size, len(doc.Test) > 0, at)
	return out, err
}

// backend reads pool: or router:, a mapping of one kind, or its name alone.
func (l *loader) backend(b Block, what string, kinds map[string]func() any) (Block, error) {
	n := b.n
	if name, ok := n.value.(string); n.kind == scalarNode && ok && len(n.taint) == 0 {
		n = &node{kind: mapNode, line: n.line, column: n.column, entries: []entry{{key: name, line: n.line, column: n.column, value: &node{line: n.line, column: n.column}}}}
	}
	if n.kind != mapNode || len(n.entries) != 1 {
		return b, l.fail(n.line, n.column, what+"s: "+strings.Join(keys(kinds), ", "), "%q must have one key, the %s to use", what, what)
	}
	e := n.entries[0]
	out := Block{n: e.value, src: l.s, dir: l.scope.dir, kind: e.key, line: e.line, column: e.column}
	return out, l.check(out, e, what, kinds)
}

func health(h healthBlock, e *entry, at Block) (Health, error) {
	out := Health{Interval: h.Interval, Timeout: h.Timeout, Rise: h.Rise, Fall: h.Fall, Within: h.Within, Refuse: h.Refuse, Commands: h.Commands}
	switch {
	case h.HTTP != nil && h.TCP != nil:
		return out, at.Errorf("health.tcp", "health is judged by http or by tcp, not by both")
	case h.HTTP != nil:
		out.Type, out.Port, out.Path, out.Status = "http", h.HTTP.Port, h.HTTP.Path, h.HTTP.Status
		if out.Path == "" {
			out.Path = "/"
		}
		if !strings.HasPrefix(out.Path, "/") || strings.ContainsAny(out.Path, " \t\r\n") {
			return out, at.Errorf("health.http.path", "path must start with / and hold no spaces")
		}
		if out.Status == 0 {
			out.Status = 200
		}
		if out.Status < 100 || out.Status > 599 {
			return out, at.Errorf("health.http.status", "status must be between 100 and 599")
		}
	case h.TCP != nil:
		out.Type, out.Port = "tcp", h.TCP.Port
	default:
		return out, at.Errorf("health", "health needs http: {port: 80} or tcp: {port: 80}")
	}
	if out.Port < 1 || out.Port > 65535 {
		return out, at.Errorf("health."+out.Type+".port", "port must be between 1 and 65535")
	}
	for _, d := range []struct {
		key   string
		value *time.Duration
		def   time.Duration
	}{{"interval", &out.Interval, time.Second}, {"timeout", &out.Timeout, 3 * time.Second}, {"within", &out.Within, 5 * time.Minute}} {
		if e.value.get(d.key) == nil {
			*d.value = d.def
		}
		if *d.value < 10*time.Millisecond {
			return out, at.Errorf("health."+d.key, "%s must be at least 10ms", d.key)
		}
	}
	for _, c := range []struct {
		key   string
		value *int
		def   int
	}{{"rise", &out.Rise, 2}, {"fall", &out.Fall, 3}} {
		if e.value.get(c.key) == nil {
			*c.value = c.def
		}
		if *c.value < 1 || *c.value > 100 {
			return out, at.Errorf("health."+c.key, "%s must be between 1 and 100", c.key)
		}
	}
	return out, nil
}
