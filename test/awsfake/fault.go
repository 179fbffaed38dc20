package awsfake

import (
	"net/http"
	"path"
	"time"
)

// Fault is a rule for calls that go wrong. The first rule that fits a call applies.
type Fault struct {
	Action string           // pattern, as "ec2:RunInstances", "autoscaling:*" or "*"
	Match  func(*Call) bool // what else the call has to be; nil is anything
	Skip   int              // how many of such calls go well first
	Times  int              // how many go wrong then; 0 is all
	Chance float64          // of each, by the cloud's seed; 0 is certain

	Code    string        // refuse with this code
	Message string        // …and this text
	HTTP    int           // …and this status; 0 is 400, or 503 and 500 for the codes that have them
	After   bool          // do the call first. Without a Code the connection is cut: the caller knows nothing
	Wait    time.Duration // of this process's time, before the answer
	Stale   time.Duration // of AWS's: answer as the same question was answered before, for so long

	hits, seen int
}

// Fault adds a rule. What it returns takes the rule away again.
func (c *Cloud) Fault(f Fault) (remove func()) {
	p := &f
	c.locked(func() { c.faults = append(c.faults, p) })
	return func() {
		c.locked(func() {
			for i := range c.faults {
				if c.faults[i] == p {
					c.faults = append(c.faults[:i:i], c.faults[i+1:]...)
					return
				}
			}
		})
	}
}

// Hits is how many calls went wrong by the rules that are in force.
func (c *Cloud) Hits() (n int) {
	c.locked(func() {
		for _, f := range c.faults {
			n += f.hits
		}
	})
	return n
}

// hit finds the fault that a call meets.
func (c *Cloud) hit(call *Call) *Fault {
	for _, f := range c.faults {
		if ok, _ := path.Match(f.Action, call.Action); !ok && f.Action != "*" || f.Match != nil && !f.Match(call) {
			continue
		}
		if f.seen++; f.seen <= f.Skip || f.Times > 0 && f.hits >= f.Times || f.Chance > 0 && c.rand.Float64() >= f.Chance {
			continue
		}
		f.hits++
		return f
	}
	return nil
}

func (f *Fault) refusal() error {
	r := &refusal{code: f.Code, message: f.Message, status: f.HTTP}
	if r.message == "" {
		r.message = "a fault of the test"
	}
	if r.status == 0 {
		switch r.code {
		case "RequestLimitExceeded", "Unavailable", "ServiceUnavailable":
			r.status = http.StatusServiceUnavailable
		case "InternalError", "InternalFailure", "InternalServerException":
			r.status = http.StatusInternalServerError
		default:
			r.status = http.StatusBadRequest
		}
	}
	return r
}
