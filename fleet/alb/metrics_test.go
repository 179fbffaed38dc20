package alb

import (
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"

	"github.com/rebake/rebake/fleet"
)

// Members share what is told of their slot: sums are right whatever their number,
// and none falls as time goes on.
func TestCountersAddUp(t *testing.T) {
	at := time.Now().Truncate(window)
	r := &Router{metrics: metrics{asked: time.Now().Add(time.Hour), from: at, minutes: map[fleet.Slot]map[time.Time]minute{fleet.Blue: {}, fleet.Green: {}}}}
	was := make([]fleet.MemberStatus, 3)
	requests, errors := int64(0), int64(0)
	for n := range 20 {
		m := minute{requests: int64(n * 17 % 11), errors: int64(n % 3), latency: time.Duration(10+n) * time.Millisecond}
		m.errors = min(m.errors, m.requests)
		requests, errors = requests+m.requests, errors+m.errors
		r.metrics.minutes[fleet.Blue][at.Add(time.Duration(n)*period)] = m
		is := map[fleet.Slot][]fleet.MemberStatus{fleet.Blue: make([]fleet.MemberStatus, 3)}
		r.count(t.Context(), is)
		var sum, bad int64
		for i, one := range is[fleet.Blue] {
			sum, bad = sum+one.Requests, bad+one.Errors5x
			if one.Requests < was[i].Requests || one.Errors5x < was[i].Errors5x {
				t.Errorf("minute %d: member %d fell from %+v to %+v", n, i, was[i], one)
			}
		}
		if sum != requests || bad != errors {
			t.Errorf("minute %d: the members' sums are %d and %d, want %d and %d", n, sum, bad, requests, errors)
		}
		was = is[fleet.Blue]
	}
	for _, m := range was {
		if m.Latency < 15*time.Millisecond || m.Latency > 30*time.Millisecond {
			t.Errorf("mean %s", m.Latency)
		}
	}
}

// The words are those that the rest of rebake reads.
func TestHealthInWords(t *testing.T) {
	for want, h := range map[string]types.TargetHealth{
		"L7OK":      {State: types.TargetHealthStateEnumHealthy},
		"L7STS/503": {State: types.TargetHealthStateEnumUnhealthy, Reason: types.TargetHealthReasonEnumResponseCodeMismatch, Description: aws.String("Health checks failed with these codes: [503]")},
		"not checked: no rule forwards to its target group": {State: types.TargetHealthStateEnumUnused, Reason: types.TargetHealthReasonEnumNotInUse},
		"no answer in time: Request timed out":              {State: types.TargetHealthStateEnumUnhealthy, Reason: types.TargetHealthReasonEnumTimeout, Description: aws.String("Request timed out")},
		"draining":                                          {State: types.TargetHealthStateEnumDraining, Reason: types.TargetHealthReasonEnumDeregistrationInProgress},
		"unhealthy Target.New: so":                          {State: types.TargetHealthStateEnumUnhealthy, Reason: "Target.New", Description: aws.String("so")},
	} {
		if got := Words(types.TargetHealthDescription{TargetHealth: &h}); got != want {
			t.Errorf("%+v: %q, want %q", h, got, want)
		}
	}
}

func TestConfigIsRefused(t *testing.T) {
	const listener, rule = "arn:aws:elasticloadbalancing:eu-central-1:1:listener/app/front/50dc/f2f7", "arn:aws:elasticloadbalancing:eu-central-1:1:listener-rule/app/front/50dc/f2f7/9683"
	for want, c := range map[string]Config{
		"give listener, in which rebake makes a rule, or rule":      {},
		"priority: 0 is not between 1 and 50000":                    {Listener: listener},
		"is not the ARN of an application load balancer's rule":     {Rule: listener},
		"priority, hosts and paths are of a rule that rebake makes": {Rule: rule, Paths: []string{"/*"}},
		"give blue and green, two of them, or none":                 {Rule: rule, TargetGroups: TargetGroups{Blue: "x"}},
		"give header and priority":                                  {Listener: listener, Priority: 9, Preview: Preview{Header: "X"}},
		"beside " + rule + " make it yourself":                      {Rule: rule, Preview: Preview{Header: "X", Priority: 8}},
		"must come before that of the rule, 9":                      {Listener: listener, Priority: 9, Preview: Preview{Header: "X", Priority: 8}},
	} {
		if _, err := New(c, "web", fleet.HealthCheck{}, Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	r, err := New(Config{Listener: listener, Priority: 9, Region: "eu-central-1"}, "a-fleet-with-a-name-of-40-letters-or-less", fleet.HealthCheck{}, Options{})
	if err != nil || len(r.groupName(fleet.Green)) > 32 || r.cfg.balancer() != "app/front/50dc" {
		t.Errorf("%v, %q, %q", err, r.groupName(fleet.Green), r.cfg.balancer())
	}
	p := fleet.Policy{Steps: []fleet.Step{{Permille: 1000, Hold: time.Minute}}, Gates: []fleet.Gate{{Name: "e", ErrorRate: &fleet.ErrorRateGate{}}}}
	if _, err := r.Fit(t.Context(), p, 1); err == nil || !strings.Contains(err.Error(), "hold 1m0s at 100% is too short for gate e") {
		t.Errorf("a short hold: %v", err)
	}
	p.Steps[0].Hold = 2 * time.Minute
	if p, err := r.Fit(t.Context(), p, 1); err != nil || p.Drain != time.Minute {
		t.Errorf("%+v, %v", p, err)
	}
}
