package fleet

import (
	"fmt"
	"slices"
	"time"
)

// Strategies of a deployment.
const (
	BlueGreen = "blue-green" // all of the new slot beside all of the old one, then traffic in steps
	Rolling   = "rolling"    // a few instances at a time, where the fleet cannot run twice
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
	MaxSurge       int `json:"max_surge"`       // instances above the fleet's size
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

// Complete fills in defaults and refuses what makes no sense.
func (p Policy) Complete() (Policy, error) {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&p.Launch, 2 * time.Minute}, {&p.Within, 5 * time.Minute}, {&p.Verify, 5 * time.Minute},
		{&p.Drain, time.Minute}, {&p.Restore, time.Minute}, {&p.Grace, 2 * time.Second},
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
	if p.OnFailure == "" {
		p.OnFailure = "rollback"
	}
	if p.OnFailure != "rollback" && p.OnFailure != "pause" {
		return p, fmt.Errorf("deploy.on_failure: %q is neither rollback nor pause", p.OnFailure)
	}
	if p.Port < 1 || p.Port > 65535 {
		return p, fmt.Errorf("deploy: %d is not a port that traffic can be sent to", p.Port)
	}
	last := 0
	for _, s := range p.Steps {
		if s.Permille <= last || s.Permille > 1000 || s.Hold < 0 {
			return p, fmt.Errorf("deploy.steps: weights must rise from above 0 to 100 percent, %.1f follows %.1f", float64(s.Permille)/10, float64(last)/10)
		}
		last = s.Permille
	}
	if last < 1000 {
		p.Steps = append(slices.Clone(p.Steps), Step{Permille: 1000})
	}
	return p, nil
}
