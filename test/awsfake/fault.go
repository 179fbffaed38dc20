package awsfake

import (
	"net/http"
	"path"
	"strings"
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

// Bucket holds at most Size tokens; one call takes one, and Rate come back each second of AWS.
type Bucket struct {
	Size int
	Rate float64
}

// Documented are AWS's own limits, where its documents state them: of EC2 per
// action, of ELB for all that describes together. Of the others they say only that
// there are limits; those here are low on purpose.
var Documented = map[string]Bucket{
	"ec2:describe": {100, 20}, "ec2:mutating": {50, 5},
	"elasticloadbalancing:describe": {40, 10}, "elasticloadbalancing:mutating": {20, 3},
	"autoscaling:describe": {40, 10}, "autoscaling:mutating": {20, 5},
	"cloudwatch:describe": {50, 50}, "ebs:PutSnapshotBlock": {1000, 1000}, "ebs:GetSnapshotBlock": {1000, 1000},
	"ebs:describe": {50, 50}, "ebs:mutating": {10, 10},
}

type level struct {
	tokens float64
	at     time.Time
}

// class is which bucket's limit an action has, the most special that Throttle
// names first: the action itself, its kind, its service. EC2 counts each action by
// itself, the other services each kind together.
func (c *Cloud) class(q request, name string) (limit, counter string) {
	kind := ":mutating"
	if strings.HasPrefix(q.name, "Describe") || strings.HasPrefix(q.name, "Get") || strings.HasPrefix(q.name, "List") {
		kind = ":describe"
	}
	for _, limit := range []string{name, q.service + kind, q.service} {
		if _, ok := c.Throttle[limit]; ok {
			if q.service == "ec2" {
				return limit, name
			}
			return limit, limit
		}
	}
	return "", ""
}

// admit takes a token for a call; false is that there is none.
func (c *Cloud) admit(q request, name string) bool {
	limit, counter := c.class(q, name)
	if limit == "" {
		return true
	}
	b, now := c.Throttle[limit], time.Now()
	l := c.buckets[q.region+counter]
	if l == nil {
		l = &level{tokens: float64(b.Size), at: now}
		c.buckets[q.region+counter] = l
	}
	l.tokens = min(float64(b.Size), l.tokens+now.Sub(l.at).Seconds()*b.Rate*c.Speed)
	l.at = now
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}

func throttled(service string) error {
	switch service {
	case "ec2":
		return &refusal{"RequestLimitExceeded", "Request limit exceeded.", http.StatusServiceUnavailable}
	case "ebs":
		return &refusal{"RequestThrottledException", "The number of API requests has exceeded the maximum allowed.", http.StatusBadRequest}
	case "elasticloadbalancing", "ssm":
		return &refusal{"ThrottlingException", "Rate exceeded", http.StatusBadRequest}
	}
	return &refusal{"Throttling", "Rate exceeded", http.StatusBadRequest}
}
