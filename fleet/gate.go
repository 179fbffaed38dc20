package fleet

import (
	"context"
	"errors"
	"fmt"
	"strings"
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
	Alarm     *AlarmGate     `json:"alarm,omitempty"`
	Test      bool           `json:"test,omitempty"` // the template's test: block, in each new instance, before traffic alone
}

// ErrorRateGate fails as soon as more than Max of the new slot's answers in this
// hold are 5xx. One error in few requests is a large share: where a single one
// is no reason to go back, Requests is at least 1/Max.
type ErrorRateGate struct {
	Max      float64 `json:"max"`      // share, 0 to 1
	Requests int     `json:"requests"` // fewer than so many in this hold are inconclusive; default 20
}

// LatencyGate fails when the new slot's mean time to answer is above Max. The
// router tells it in milliseconds.
type LatencyGate struct {
	Max      time.Duration `json:"max"`
	Requests int           `json:"requests"` // as above
}

// CanaryGate compares the new slot with the old one over the samples of this
// hold by a one-sided Mann-Whitney test: it fails when the new one is worse
// with the significance that was asked for, and by more than Tolerance. With
// Baseline the comparison is with fresh instances of the old image, started
// with the new ones, so that warm caches do not count as a regression.
//
// It looks after Samples samples, then whenever there are half as many again.
// The n-th look fails below Significance/(n(n+1)), which adds up to
// Significance: that share of good images at most is refused, however long the
// hold is.
type CanaryGate struct {
	Metric       string  `json:"metric"`             // "errors" (share of 5xx) or "latency"
	Significance float64 `json:"significance"`       // default 0.01
	Tolerance    float64 `json:"tolerance"`          // how much worse is still good, as a share of the old share of errors or median latency (and 1 ms at least, which is how exactly it is known); default 0.1
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

// AlarmGate asks CloudWatch: an alarm in ALARM fails, one with too little data is inconclusive.
type AlarmGate struct {
	Names  []string `json:"names"`
	Region string   `json:"region,omitempty"` // default the environment's
}

// Counters are what instances did, summed. Latency is the mean of the last Timed
// answers, which may reach back before this sample; 0 of them: it is not known,
// or too little of the router's own mean is new.
type Counters struct {
	Requests int64         `json:"requests"`
	Errors   int64         `json:"errors"` // 5xx
	Latency  time.Duration `json:"latency,omitempty"`
	Timed    int64         `json:"timed,omitempty"`
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

// Ask answers a Question of a kind that Judge does not know: command, http, alarm
// or test. The string is the Finding's Detail. An error is Verdict Error: it could
// not be asked. A test on other steps than -1 passes.
type Ask func(ctx context.Context, q Question) (Verdict, string, error)

// kinds are the kinds of gate that are set: one, in a good gate.
func (g Gate) kinds() (set []string) {
	for _, k := range []struct {
		name string
		set  bool
	}{
		{"error_rate", g.ErrorRate != nil}, {"latency", g.Latency != nil}, {"canary", g.Canary != nil},
		{"command", g.Command != nil}, {"http", g.HTTP != nil}, {"alarm", g.Alarm != nil}, {"test", g.Test},
	} {
		if k.set {
			set = append(set, k.name)
		}
	}
	return set
}

// complete fills in a gate's defaults and refuses what makes no sense. port is
// the one that traffic goes to. What g points to is not changed.
func (g Gate) complete(port int) (Gate, error) {
	kinds := g.kinds()
	if g.Name == "" && len(kinds) > 0 {
		g.Name = kinds[0]
	}
	var err error
	switch {
	case len(kinds) != 1:
		err = fmt.Errorf("give it one of error_rate, latency, canary, command, http, alarm and test; it has %s", orWord(strings.Join(kinds, " and "), "none"))
	case g.ErrorRate != nil:
		c := *g.ErrorRate
		err, g.ErrorRate = c.complete(), &c
	case g.Latency != nil:
		c := *g.Latency
		err, g.Latency = c.complete(), &c
	case g.Canary != nil:
		c := *g.Canary
		err, g.Canary = c.complete(), &c
	case g.Command != nil:
		c := *g.Command
		err, g.Command = c.complete(), &c
	case g.HTTP != nil:
		c := *g.HTTP
		err, g.HTTP = c.complete(port), &c
	}
	if g.Alarm != nil && len(g.Alarm.Names) == 0 {
		err = errors.New("names: of which alarms?")
	}
	if err != nil {
		err = fmt.Errorf("deploy.gates[%s]: %w", g.Name, err)
	}
	return g, err
}

// fewest is the default of the fewest requests that tell something.
const fewest = 20

func (g *ErrorRateGate) complete() error {
	g.Requests = orNumber(g.Requests, fewest)
	switch {
	case !(g.Max >= 0 && g.Max < 1):
		return fmt.Errorf("max: %g is no share of errors from 0 to below 1", g.Max)
	case g.Requests < 0:
		return fmt.Errorf("requests: %d is less than none", g.Requests)
	}
	return nil
}

func (g *LatencyGate) complete() error {
	g.Requests = orNumber(g.Requests, fewest)
	switch {
	case g.Max < time.Millisecond:
		return fmt.Errorf("max: %s: give a time of 1ms or more, the router does not tell less", g.Max)
	case g.Requests < 0:
		return fmt.Errorf("requests: %d is less than none", g.Requests)
	}
	return nil
}

func (g *CanaryGate) complete() error {
	const leastSamples, mostSamples, mostBaseline = 4, maxSamples / 2, 100
	g.Significance, g.Tolerance, g.Samples = orNumber(g.Significance, 0.01), orNumber(g.Tolerance, 0.1), orNumber(g.Samples, 8)
	switch {
	case g.Metric != "errors" && g.Metric != "latency":
		return fmt.Errorf("metric: %q is neither errors nor latency", g.Metric)
	case !(g.Significance > 0 && g.Significance < 0.5):
		return fmt.Errorf("significance: %g is not between 0 and 0.5", g.Significance)
	case !(g.Tolerance >= 0 && g.Tolerance <= 10):
		return fmt.Errorf("tolerance: %g is not between 0 and 10", g.Tolerance)
	case g.Samples < leastSamples || g.Samples > mostSamples:
		return fmt.Errorf("samples: %d is not between %d and %d", g.Samples, leastSamples, mostSamples)
	case g.Baseline < 0 || g.Baseline > mostBaseline:
		return fmt.Errorf("baseline: %d is no number of instances from 0 to %d", g.Baseline, mostBaseline)
	}
	return nil
}

func (g *CommandGate) complete() error {
	g.Timeout = orNumber(g.Timeout, time.Minute)
	switch {
	case len(g.Args) == 0 || g.Args[0] == "":
		return errors.New("command: which program?")
	case g.Timeout < 0:
		return fmt.Errorf("timeout: %s is no time to wait for", g.Timeout)
	}
	return nil
}

func (g *HTTPGate) complete(port int) error {
	g.Port, g.Path, g.Status, g.Timeout = orNumber(g.Port, port), orWord(g.Path, "/"), orNumber(g.Status, 200), orNumber(g.Timeout, 5*time.Second)
	switch {
	case g.Port < 1 || g.Port > 65535:
		return fmt.Errorf("port: %d is not a port", g.Port)
	case !strings.HasPrefix(g.Path, "/"):
		return fmt.Errorf("path: %q does not start with /", g.Path)
	case g.Status < 100 || g.Status > 599:
		return fmt.Errorf("status: %d is no status of HTTP", g.Status)
	case g.Timeout < 0:
		return fmt.Errorf("timeout: %s is no time to wait for", g.Timeout)
	case strings.ContainsAny(g.Version, " \t\r\n:"):
		return fmt.Errorf("version: %q is neither the name of a header nor body", g.Version)
	}
	return nil
}

func orNumber[N int | float64 | time.Duration](n, or N) N {
	if n == 0 {
		return or
	}
	return n
}
