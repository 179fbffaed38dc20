package template

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// deployBlock is fleet.deploy as it is written.
type deployBlock struct {
	Strategy       string         `yaml:"strategy" jsonschema:"enum=blue-green,enum=rolling,enum=refresh" jsonschema_description:"all new instances beside the old ones, a few at a time, or in place by Auto Scaling itself: an instance refresh of the group that pool.asg.adopt names (blue-green)"`
	MaxSurge       *Count         `yaml:"max_surge" jsonschema_description:"rolling: instances above size, a number or a share rounded up (1); refresh: above the group's own size (10%)"`
	MaxUnavailable *Count         `yaml:"max_unavailable" jsonschema_description:"rolling: instances below size, a number or a share rounded down (0)"`
	Batch          int            `yaml:"batch" jsonschema_description:"rolling: most new instances at a time (1)"`
	MinHealthy     *Share         `yaml:"min_healthy" jsonschema_description:"share of size that must be able to serve at all times (50%; refresh: 100%)"`
	Steps          []weightBlock  `yaml:"steps" jsonschema_description:"shares of the traffic for the new image, rising to 100 (10 % for 10s, then all for 20s)"`
	KeepOld        *time.Duration `yaml:"keep_old" jsonschema_description:"how long the old instances stay for a rollback (10m)"`
	Drain          *time.Duration `yaml:"drain_timeout" jsonschema_description:"longest wait for requests in flight (30s)"`
	OnFailure      string         `yaml:"on_failure" jsonschema:"enum=rollback,enum=pause" jsonschema_description:"what is done about an unhealthy image (rollback)"`
	Quarantine     time.Duration  `yaml:"quarantine" jsonschema_description:"how long failed instances stay for a look, without traffic (0s)"`
	Gates          []gateBlock    `yaml:"gates" jsonschema_description:"what the new image must do well in, besides the health check"`
	MaxHold        time.Duration  `yaml:"max_hold" jsonschema_description:"longest hold while gates are inconclusive (ten times the hold, at least 1m)"`
	OnInconclusive string         `yaml:"on_inconclusive" jsonschema:"enum=fail,enum=pass,enum=pause" jsonschema_description:"what is done when max_hold is over (fail)"`
	Hooks          []hookBlock    `yaml:"hooks" jsonschema_description:"who is told of a deployment's stages"`
	Freeze         []freezeBlock  `yaml:"freeze" jsonschema_description:"times in which no deployment may begin"`
}

type weightBlock struct {
	Weight   int           `yaml:"weight" rebake:"required" jsonschema_description:"percent of the traffic"`
	Hold     time.Duration `yaml:"hold" jsonschema_description:"how long it is watched before the next step"`
	Pause    bool          `yaml:"pause" jsonschema_description:"then wait for rebake deploy resume (false)"`
	PauseFor time.Duration `yaml:"pause_for" jsonschema_description:"longest such wait, then the old image gets the traffic back; no limit where it is not given"`
}

// gateBlock is one gate: one of its kinds, and a name.
type gateBlock struct {
	Name      string         `yaml:"name" jsonschema_description:"what the gate is called; its kind where it is not given"`
	ErrorRate *errorRateGate `yaml:"error_rate" jsonschema_description:"the share of 5xx among the answers of the new instances"`
	Latency   *latencyGate   `yaml:"latency" jsonschema_description:"the mean time to answer of the new instances"`
	Canary    *canaryGate    `yaml:"canary" jsonschema_description:"the new instances compared with the old ones, by a Mann-Whitney test"`
	Command   *commandGate   `yaml:"command" jsonschema_description:"a program on this machine: status 0 passes, 75 is inconclusive, others fail"`
	HTTP      *httpGate      `yaml:"http" jsonschema_description:"a request to each new instance itself"`
	Alarm     *alarmGate     `yaml:"alarm" jsonschema_description:"alarms of CloudWatch, none of which may be in ALARM"`
	Test      bool           `yaml:"test" jsonschema_description:"true: the template's test block, in each new instance, before traffic"`
}

type errorRateGate struct {
	Max      Share `yaml:"max" rebake:"required" jsonschema_description:"largest share, such as 1%"`
	Requests int   `yaml:"requests" jsonschema_description:"fewer are inconclusive (20)"`
}

type latencyGate struct {
	Max      time.Duration `yaml:"max" rebake:"required" jsonschema_description:"longest mean"`
	Requests int           `yaml:"requests" jsonschema_description:"fewer are inconclusive (20)"`
}

type canaryGate struct {
	Metric       string  `yaml:"metric" rebake:"required" jsonschema:"enum=errors,enum=latency" jsonschema_description:"what is compared"`
	Significance float64 `yaml:"significance" jsonschema_description:"how sure it must be that the new one is worse (0.01)"`
	Tolerance    *Share  `yaml:"tolerance" jsonschema_description:"how much worse is still good, as a share of the old one's (10%)"`
	Samples      int     `yaml:"samples" jsonschema_description:"seconds with requests that are needed on each side (8)"`
	Baseline     int     `yaml:"baseline" jsonschema_description:"fresh instances of the old image to compare with (0: the old instances as they are)"`
}

type commandGate struct {
	Run     []string      `yaml:"run" rebake:"required,shorthand" jsonschema_description:"the program and its arguments; no shell"`
	Timeout time.Duration `yaml:"timeout" jsonschema_description:"longest time (1m)"`
}

type httpGate struct {
	Port    int           `yaml:"port" jsonschema_description:"port in the guest (that of the traffic)"`
	Path    string        `yaml:"path" jsonschema_description:"path of the request (/)"`
	Status  int           `yaml:"status" jsonschema_description:"status of a good answer (200)"`
	Body    string        `yaml:"body" jsonschema_description:"text that the answer must hold"`
	Version string        `yaml:"version" jsonschema_description:"a response header, or the word body, that must tell the image's version"`
	Timeout time.Duration `yaml:"timeout" jsonschema_description:"longest time (5s)"`
}

type alarmGate struct {
	Names  []string `yaml:"names" rebake:"required,shorthand" jsonschema_description:"names of the alarms"`
	Region string   `yaml:"region" jsonschema_description:"AWS region (that of the environment)"`
}

type hookBlock struct {
	On      []string      `yaml:"on" jsonschema_description:"start, traffic, paused, promoted, done, failed, rolled-back, blocked (all)"`
	Command []string      `yaml:"command" jsonschema_description:"a program that reads the notice as JSON; no shell"`
	URL     string        `yaml:"url" rebake:"secret" jsonschema_description:"where the notice is posted as JSON"`
	Timeout time.Duration `yaml:"timeout" jsonschema_description:"longest time (10s)"`
}

type freezeBlock struct {
	Days   []string `yaml:"days" jsonschema_description:"mon to sun, on which it begins (every day)"`
	From   string   `yaml:"from" rebake:"required" jsonschema_description:"time of day, such as \"16:00\""`
	To     string   `yaml:"to" rebake:"required" jsonschema_description:"time of day; on the next day if it is not later than from"`
	Zone   string   `yaml:"zone" jsonschema_description:"time zone, such as Europe/Berlin (UTC)"`
	Reason string   `yaml:"reason" jsonschema_description:"what is said to who wants to deploy"`
}

// Deploy is how a fleet is replaced.
type Deploy struct {
	Strategy       string // blue-green, rolling or refresh
	MaxSurge       int    // rolling: instances above the size; refresh: percent of the group's
	MaxUnavailable int    // rolling: below it
	Batch          int
	MinHealthy     int // percent
	Steps          []Weight
	KeepOld        time.Duration
	Drain          time.Duration // longest wait for requests in flight
	OnFailure      string        // rollback or pause
	Quarantine     time.Duration
	Gates          []Gate
	MaxHold        time.Duration
	OnInconclusive string
	Hooks          []Hook
	Freeze         []Freeze
}

// Weight is one step of traffic: percent to the new slot, held for Hold.
type Weight struct {
	Percent  int
	Hold     time.Duration
	Pause    bool
	PauseFor time.Duration // 0: for ever
}

// Gate is one condition; exactly one of its kinds is set.
type Gate struct {
	Name      string
	ErrorRate *struct {
		Max      float64
		Requests int
	}
	Latency *struct {
		Max      time.Duration
		Requests int
	}
	Canary *struct {
		Metric                  string
		Significance, Tolerance float64
		Samples, Baseline       int
	}
	Command *struct {
		Run     []string
		Timeout time.Duration
	}
	HTTP *struct {
		Port, Status        int
		Path, Body, Version string
		Timeout             time.Duration
	}
	Alarm *struct {
		Names  []string
		Region string
	}
	Test bool
}

// Hook is told of stages.
type Hook struct {
	On, Command []string
	URL         string
	Timeout     time.Duration
}

// Freeze is a time in which no deployment may begin.
type Freeze struct {
	Days                   []string
	From, To, Zone, Reason string
}

// Share is a part of a whole, written as 1% or 12.5%.
type Share float64

// UnmarshalText reads a percentage.
func (s *Share) UnmarshalText(b []byte) error {
	digits, ok := strings.CutSuffix(strings.TrimSpace(string(b)), "%")
	f, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	if !ok || err != nil || !(f >= 0 && f <= 1000) {
		return fmt.Errorf("%q is not a share such as 1%% or 12.5%%", b)
	}
	*s = Share(f / 100)
	return nil
}

// Count is a number of instances, or a share of the fleet's size.
type Count struct {
	N     int
	Share Share
}

// UnmarshalText reads 2 or 25%.
func (c *Count) UnmarshalText(b []byte) error {
	if strings.HasSuffix(string(b), "%") {
		return c.Share.UnmarshalText(b)
	}
	n, err := strconv.Atoi(string(b))
	if err != nil || n < 0 || n > 1000 {
		return fmt.Errorf("%q is neither a number of instances nor a share such as 25%%", b)
	}
	c.N = n
	return nil
}

// of is the number of a size, rounded up or down.
func (c Count) of(size int, up bool) int {
	if c.Share == 0 {
		return c.N
	}
	exact := float64(c.Share) * float64(size)
	if n := int(exact); !up || float64(n) == exact {
		return n
	}
	return int(exact) + 1
}

// deploy reads fleet.deploy and sets its defaults.
func deploy(d deployBlock, size int, tests bool, at Block) (Deploy, error) {
	out := Deploy{Strategy: d.Strategy, Batch: d.Batch, MinHealthy: 50, KeepOld: 10 * time.Minute, Drain: 30 * time.Second,
		OnFailure: d.OnFailure, Quarantine: d.Quarantine, MaxHold: d.MaxHold, OnInconclusive: d.OnInconclusive}
	for _, word := range []struct{ v, def *string }{{&out.Strategy, ptr("blue-green")}, {&out.OnFailure, ptr("rollback")}, {&out.OnInconclusive, ptr("fail")}} {
		if *word.v == "" {
			*word.v = *word.def
		}
	}
	if d.KeepOld != nil {
		out.KeepOld = *d.KeepOld
	}
	if d.Drain != nil {
		out.Drain = *d.Drain
	}
	if d.MinHealthy != nil {
		if *d.MinHealthy > 1 {
			return out, at.Errorf("deploy.min_healthy", "min_healthy is at most 100%%")
		}
		out.MinHealthy = int(*d.MinHealthy*100 + 0.5)
	}
	if out.Strategy == "refresh" {
		out.refresh(d, size)
	}
	if err := out.rolling(d, size, at); err != nil {
		return out, err
	}
	if err := out.steps(d, at); err != nil {
		return out, err
	}
	for i, g := range d.Gates {
		gate, err := g.gate(fmt.Sprintf("deploy.gates.%d", i), tests, out, at)
		if err != nil {
			return out, err
		}
		if slices.ContainsFunc(out.Gates, func(have Gate) bool { return have.Name == gate.Name }) {
			return out, at.Errorf(fmt.Sprintf("deploy.gates.%d", i), "two gates are named %q: give one another name", gate.Name)
		}
		out.Gates = append(out.Gates, gate)
	}
	for i, h := range d.Hooks {
		if (len(h.Command) == 0) == (h.URL == "") {
			return out, at.Errorf(fmt.Sprintf("deploy.hooks.%d", i), "a hook has a command or a url, and not both")
		}
		out.Hooks = append(out.Hooks, Hook(h))
	}
	for _, f := range d.Freeze {
		out.Freeze = append(out.Freeze, Freeze(f))
	}
	return out, nil
}

func ptr(s string) *string { return &s }

// refresh sets the bounds of one, which are shares of whatever size the group has.
func (out *Deploy) refresh(d deployBlock, size int) {
	if d.MinHealthy == nil {
		out.MinHealthy = 100
	}
	switch s := d.MaxSurge; {
	case s == nil:
		out.MaxSurge = 10
	case s.Share != 0:
		out.MaxSurge = int(s.Share*100 + 0.5)
	default:
		out.MaxSurge = (100*s.N + size - 1) / size
	}
}

func (out *Deploy) rolling(d deployBlock, size int, at Block) error {
	if out.Strategy != "rolling" {
		for key, set := range map[string]bool{"max_surge": d.MaxSurge != nil && out.Strategy != "refresh", "max_unavailable": d.MaxUnavailable != nil, "batch": d.Batch != 0} {
			if set {
				return at.Errorf("deploy."+key, "%s is for strategy: rolling", key)
			}
		}
		return nil
	}
	out.MaxSurge = 1
	if d.MaxSurge != nil {
		out.MaxSurge = d.MaxSurge.of(size, true)
	}
	if d.MaxUnavailable != nil {
		out.MaxUnavailable = d.MaxUnavailable.of(size, false)
	}
	switch {
	case out.MaxSurge+out.MaxUnavailable == 0:
		return at.Errorf("deploy.max_surge", "max_surge and max_unavailable come to 0 of %d instances: nothing could be replaced", size)
	case size-out.MaxUnavailable < (size*out.MinHealthy+99)/100:
		return at.Errorf("deploy.max_unavailable", "%d of %d instances may be out, and min_healthy is %d%%: one of them must give way", out.MaxUnavailable, size, out.MinHealthy)
	case len(d.Steps) > 1 || len(d.Steps) == 1 && d.Steps[0].Weight != 100:
		return at.Errorf("deploy.steps", "a rolling deployment has one step of weight 100: what it holds is held after each batch")
	}
	return nil
}

func (out *Deploy) steps(d deployBlock, at Block) error {
	last := 0
	for _, s := range d.Steps {
		if s.Weight <= last || s.Weight > 100 {
			return at.Errorf("deploy.steps", "weights must rise, from at least 1 to 100: %d comes after %d", s.Weight, last)
		}
		if s.PauseFor > 0 && !s.Pause {
			return at.Errorf("deploy.steps", "pause_for is how long a pause may last: add pause: true")
		}
		last = s.Weight
		out.Steps = append(out.Steps, Weight{Percent: s.Weight, Hold: s.Hold, Pause: s.Pause, PauseFor: s.PauseFor})
	}
	switch {
	case len(d.Steps) == 0 && out.Strategy != "blue-green":
		out.Steps = []Weight{{Percent: 100, Hold: 10 * time.Second}}
	case len(d.Steps) == 0:
		out.Steps = []Weight{{Percent: 10, Hold: 10 * time.Second}, {Percent: 100, Hold: 20 * time.Second}}
	case last != 100:
		return at.Errorf("deploy.steps", "the last step must have weight 100, not %d", last)
	}
	return nil
}

// gate is the block as it is used. What fleet.Policy would refuse of its
// figures is refused there, with the gate's name.
func (b gateBlock) gate(path string, tests bool, d Deploy, at Block) (Gate, error) {
	g := Gate{Name: b.Name, Test: b.Test}
	var kinds []string
	add := func(kind string, set bool) bool {
		if set {
			kinds = append(kinds, kind)
		}
		return set
	}
	if add("error_rate", b.ErrorRate != nil) {
		g.ErrorRate = &struct {
			Max      float64
			Requests int
		}{float64(b.ErrorRate.Max), b.ErrorRate.Requests}
	}
	if add("latency", b.Latency != nil) {
		g.Latency = &struct {
			Max      time.Duration
			Requests int
		}{b.Latency.Max, b.Latency.Requests}
	}
	if add("canary", b.Canary != nil) {
		c := b.Canary
		g.Canary = &struct {
			Metric                  string
			Significance, Tolerance float64
			Samples, Baseline       int
		}{c.Metric, c.Significance, 0.1, c.Samples, c.Baseline}
		if c.Tolerance != nil {
			g.Canary.Tolerance = float64(*c.Tolerance)
		}
		if d.Strategy == "rolling" || len(d.Steps) == 1 {
			return g, at.Errorf(path, "a canary is compared with the old image under traffic: give steps one below 100 (and not strategy: rolling)")
		}
	}
	if add("command", b.Command != nil) {
		g.Command = &struct {
			Run     []string
			Timeout time.Duration
		}{b.Command.Run, b.Command.Timeout}
	}
	if add("http", b.HTTP != nil) {
		h := b.HTTP
		g.HTTP = &struct {
			Port, Status        int
			Path, Body, Version string
			Timeout             time.Duration
		}{h.Port, h.Status, h.Path, h.Body, h.Version, h.Timeout}
	}
	if add("alarm", b.Alarm != nil) {
		g.Alarm = &struct {
			Names  []string
			Region string
		}{b.Alarm.Names, b.Alarm.Region}
	}
	add("test", b.Test)
	if len(kinds) != 1 {
		return g, at.Errorf(path, "a gate is one of error_rate, latency, canary, command, http, alarm and test: true; this one has %d of them", len(kinds))
	}
	if g.Test && !tests {
		return g, at.Errorf(path+".test", "test: true runs the template's test block, and there is none")
	}
	if g.Name == "" {
		g.Name = kinds[0]
	}
	return g, nil
}
