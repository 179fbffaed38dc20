package fleet

import (
	"context"
	"time"
)

// Verdict is what a gate says of a deployment.
type Verdict string

// The verdicts. Inconclusive prolongs the hold; Error is the gate's own trouble
// (it could not be asked), counted apart from its failures.
const (
	Pass         Verdict = "pass"
	Fail         Verdict = "fail"
	Inconclusive Verdict = "inconclusive"
	Error        Verdict = "error"
)

// Gate is a condition for going on. Exactly one of its kinds is set. The first
// three are judged by Judge from the router's own counters; the others are run
// by the deployment, before traffic and at the end of each hold.
type Gate struct {
	Name      string         `json:"name"` // unique in a policy; default: its kind
	ErrorRate *ErrorRateGate `json:"error_rate,omitempty"`
	Latency   *LatencyGate   `json:"latency,omitempty"`
	Canary    *CanaryGate    `json:"canary,omitempty"`
	Command   *CommandGate   `json:"command,omitempty"`
	HTTP      *HTTPGate      `json:"http,omitempty"`
	Test      bool           `json:"test,omitempty"` // the template's test: block, in each new instance, before traffic alone
}

// ErrorRateGate fails when more than Max of the new slot's answers are 5xx.
type ErrorRateGate struct {
	Max      float64 `json:"max"`      // share, 0 to 1
	Requests int     `json:"requests"` // fewer than so many in this hold are inconclusive; default 20
}

// LatencyGate fails when the new slot's mean time to answer is above Max.
type LatencyGate struct {
	Max      time.Duration `json:"max"`
	Requests int           `json:"requests"` // as above
}

// CanaryGate compares the new slot with the old one over the samples of this
// hold by a one-sided Mann-Whitney test: it fails when the new one is worse
// with the significance that was asked for, and by more than Tolerance. With
// Baseline the comparison is with fresh instances of the old image, started
// with the new ones, so that warm caches do not count as a regression.
type CanaryGate struct {
	Metric       string  `json:"metric"`             // "errors" (share of 5xx) or "latency"
	Significance float64 `json:"significance"`       // default 0.01
	Tolerance    float64 `json:"tolerance"`          // how much worse is still good, as a share of the old median; default 0.1
	Samples      int     `json:"samples"`            // of each side, fewer are inconclusive; default 8
	Baseline     int     `json:"baseline,omitempty"` // fresh instances of the old image to compare with; 0: the old slot as it is
}

// CommandGate is a program on the machine that deploys: exit status 0 passes,
// 75 (EX_TEMPFAIL) is inconclusive, anything else fails. It gets REBAKE_FLEET,
// REBAKE_DEPLOYMENT, REBAKE_IMAGE, REBAKE_SLOT, REBAKE_STEP (percent) and
// REBAKE_INSTANCES (space-separated host:port of the traffic port).
type CommandGate struct {
	Args    []string      `json:"args"`
	Timeout time.Duration `json:"timeout"` // default 1m; longer is an error
}

// HTTPGate asks each new instance itself, not through the router.
type HTTPGate struct {
	Port    int           `json:"port"` // guest port; default the traffic port
	Path    string        `json:"path"`
	Status  int           `json:"status"`         // default 200
	Body    string        `json:"body,omitempty"` // must be contained in the first MiB
	Timeout time.Duration `json:"timeout"`        // default 5s
	// Version: the answer must tell the image's version (or its digest, or
	// name:version): in the header named here, or anywhere in the body if "body".
	Version string `json:"version,omitempty"`
}

// Counters are what instances did, summed; Latency is a mean, weighted by requests.
type Counters struct {
	Requests int64         `json:"requests"`
	Errors   int64         `json:"errors"` // 5xx
	Latency  time.Duration `json:"latency,omitempty"`
}

// Sample is what happened between two looks at the router, at most one a second.
type Sample struct {
	At  time.Time `json:"at"`
	New Counters  `json:"new"`
	Old Counters  `json:"old"` // of the baseline instances where there are some
}

// Finding is what one gate says.
type Finding struct {
	Gate    string    `json:"gate"`
	Verdict Verdict   `json:"verdict"`
	Detail  string    `json:"detail"` // one line with figures
	At      time.Time `json:"at,omitzero"`
	Step    int       `json:"step"`             // -1: before traffic
	Errors  int       `json:"errors,omitempty"` // times in a row that it could not be asked
}

// Question is one gate, asked of a deployment at one point of it.
type Question struct {
	Gate      Gate
	Plan      Plan
	Step      int        // index of Policy.Steps; -1: before traffic
	Instances []Instance // the new ones, all running
}

// Ask answers a Question of a kind that Judge does not know: command, http or
// test. The string is the Finding's Detail. An error is Verdict Error: it could
// not be asked. A test on other steps than -1 passes.
type Ask func(ctx context.Context, q Question) (Verdict, string, error)
