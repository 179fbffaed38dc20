package fleet

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Strategies of a deployment.
const (
	BlueGreen = "blue-green" // all of the new slot beside all of the old one, then traffic in steps
	Rolling   = "rolling"    // a few instances at a time, where the fleet cannot run twice; Refresh is the third
)

// Step is a share of traffic for the new slot, and how long it must do well with it.
type Step struct {
	Permille int           `json:"permille"`
	Hold     time.Duration `json:"hold"`
	Pause    bool          `json:"pause,omitempty"`     // after the hold wait for a person's `deploy resume`
	PauseFor time.Duration `json:"pause_for,omitempty"` // longest such wait, then the deployment goes back; 0: for ever
}

// Roll is how a rolling deployment goes on.
type Roll struct {
	MaxSurge       int `json:"max_surge"`       // instances above the fleet's size; of a refresh: percent of the group's
	MaxUnavailable int `json:"max_unavailable"` // instances below it
	Batch          int `json:"batch"`           // most new instances at a time; default 1
}

// Policy is how a fleet is replaced. The zero value of each field is its default.
type Policy struct {
	Strategy  string        `json:"strategy,omitempty"` // default BlueGreen
	Roll      Roll          `json:"roll,omitzero"`      // of Rolling
	Port      int           `json:"port"`               // guest port that the router sends traffic to
	Steps     []Step        `json:"steps"`              // rising; default: everything at once
	KeepOld   time.Duration `json:"keep_old"`           // how long the old slot stays warm; 0: not at all
	Launch    time.Duration `json:"launch"`             // default 2m: to start the instances' processes
	Within    time.Duration `json:"within"`             // default 5m: from started to healthy
	Refuse    time.Duration `json:"refuse"`             // how long a new instance may answer wrongly before it is refused within Within; 0: for all of it
	Verify    time.Duration `json:"verify"`             // default 5m: for the gates before traffic
	Drain     time.Duration `json:"drain"`              // default 60s: longest wait for requests in flight, then they are cut
	Restore   time.Duration `json:"restore"`            // default 60s: for the old slot to be able to serve again
	Grace     time.Duration `json:"grace"`              // default 2s: how long a new instance may be unhealthy under traffic
	Retries   int           `json:"retries"`            // default 3: failures of one call in a row that are a failed deployment
	OnFailure string        `json:"on_failure"`         // "rollback" (default) or "pause": stop where it is, for a human

	MinHealthy     int           `json:"min_healthy,omitempty"`     // percent of the size that must be able to serve at all times; default 50
	Gates          []Gate        `json:"gates,omitempty"`           // besides the router's health check
	MaxHold        time.Duration `json:"max_hold,omitempty"`        // how long a hold may last while gates are inconclusive; default ten times the hold, at least 1m
	OnInconclusive string        `json:"on_inconclusive,omitempty"` // then: "fail" (default), "pass" or "pause"
	Quarantine     time.Duration `json:"quarantine,omitempty"`      // how long a failed slot's machines stay for a look, without traffic; 0: they go at once
}

// grace is as long as an instance may be unhealthy where nothing else is said. A
// group that is refreshed replaces one by itself.
func grace(strategy string) time.Duration {
	if strategy == Refresh {
		return 30 * time.Second
	}
	return 2 * time.Second
}

// Complete fills in defaults and refuses what makes no sense.
func (p Policy) Complete() (Policy, error) {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&p.Launch, 2 * time.Minute}, {&p.Within, 5 * time.Minute}, {&p.Verify, 5 * time.Minute},
		{&p.Drain, time.Minute}, {&p.Restore, time.Minute}, {&p.Grace, grace(p.Strategy)},
	} {
		if *d.v < 0 {
			return p, fmt.Errorf("deploy: %s is no duration to wait for", *d.v)
		}
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if p.KeepOld < 0 || p.Retries < 0 {
		return p, fmt.Errorf("deploy: keep_old %s, retries %d: not less than zero", p.KeepOld, p.Retries)
	}
	if p.Retries == 0 {
		p.Retries = 3
	}
	for _, w := range []struct {
		key  string
		v    *string
		good []string // the first is the default
	}{
		{"strategy", &p.Strategy, []string{BlueGreen, Rolling, Refresh}},
		{"on_failure", &p.OnFailure, []string{"rollback", "pause"}},
		{"on_inconclusive", &p.OnInconclusive, []string{"fail", "pass", "pause"}},
	} {
		if *w.v == "" {
			*w.v = w.good[0]
		}
		if !slices.Contains(w.good, *w.v) {
			return p, fmt.Errorf("deploy.%s: %q is none of %s", w.key, *w.v, strings.Join(w.good, ", "))
		}
	}
	if p.MinHealthy == 0 {
		p.MinHealthy = 50
	}
	if p.MinHealthy < 0 || p.MinHealthy > 100 || p.MaxHold < 0 || p.Quarantine < 0 {
		return p, fmt.Errorf("deploy: min_healthy %d %%, max_hold %s, quarantine %s: out of range", p.MinHealthy, p.MaxHold, p.Quarantine)
	}
	if p.Port < 1 || p.Port > 65535 {
		return p, fmt.Errorf("deploy: %d is not a port that traffic can be sent to", p.Port)
	}
	var err error
	if p.Gates, err = completeGates(p.Gates, p.Port); err != nil {
		return p, err
	}
	last := 0
	for _, s := range p.Steps {
		if s.Permille <= last || s.Permille > 1000 || s.Hold < 0 || s.PauseFor < 0 {
			return p, fmt.Errorf("deploy.steps: weights must rise from above 0 to 100 percent, %.1f follows %.1f", float64(s.Permille)/10, float64(last)/10)
		}
		last = s.Permille
	}
	if last < 1000 {
		p.Steps = append(slices.Clone(p.Steps), Step{Permille: 1000})
	}
	for _, g := range p.Gates {
		if g.Canary != nil && (p.Strategy == Rolling || len(p.Steps) == 1) {
			return p, fmt.Errorf("deploy.gates[%s]: a canary is compared with the old image under traffic: give deploy.steps one below 100 %% (and not strategy: rolling)", g.Name)
		}
	}
	if p.Strategy == Refresh {
		return p.inPlace()
	}
	if p.Strategy != Rolling {
		p.Roll = Roll{}
		return p, nil
	}
	if p.Roll.Batch == 0 {
		p.Roll.Batch = 1
	}
	p.Steps, p.KeepOld = p.Steps[len(p.Steps)-1:], 0 // the hold of each batch; the old ones go as the new ones come
	if p.Roll.Batch < 0 || p.Roll.MaxSurge < 0 || p.Roll.MaxUnavailable < 0 || p.Roll.MaxSurge+p.Roll.MaxUnavailable == 0 {
		return p, fmt.Errorf("deploy: max_surge %d and max_unavailable %d: at least one of them must be above zero, or nothing can move", p.Roll.MaxSurge, p.Roll.MaxUnavailable)
	}
	return p, nil
}

func completeGates(gates []Gate, port int) ([]Gate, error) {
	out, names := slices.Clone(gates), map[string]bool{}
	for i, g := range out {
		g, err := g.complete(port)
		if err != nil {
			return nil, err
		}
		if names[g.Name] {
			return nil, fmt.Errorf("deploy.gates: two are named %q: give one another name", g.Name)
		}
		out[i], names[g.Name] = g, true
	}
	return out, nil
}

// fits refuses a size that the policy cannot replace.
func (p Policy) fits(size int) error {
	if need := p.floor(size); p.Strategy == Rolling && size-p.Roll.MaxUnavailable < need {
		return fmt.Errorf("deploy.max_unavailable: %d of %d instances may be out, but min_healthy of %d %% wants %d to serve", p.Roll.MaxUnavailable, size, p.MinHealthy, need)
	}
	return nil
}

// floor is how many instances must be able to serve: min_healthy of the size, rounded up.
func (p Policy) floor(size int) int { return (size*p.MinHealthy + 99) / 100 }

// maxHold is how long a hold may last in all while the gates are inconclusive.
func (p Policy) maxHold(hold time.Duration) time.Duration {
	if p.MaxHold > 0 {
		return max(hold, p.MaxHold)
	}
	return max(10*hold, time.Minute)
}

// baseline is how many fresh instances of the old image the gates compare with.
func (p Policy) baseline() (n int) {
	for _, g := range p.Gates {
		if g.Canary != nil {
			n = max(n, g.Canary.Baseline)
		}
	}
	return n
}
