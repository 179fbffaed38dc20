package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rebake/rebake/fleet"
)

// answer is what a gate that is asked says, at which step.
type answer func(step, times int) (fleet.Verdict, string, error)

func asking(a answer, log *[]string) fleet.Ask {
	times := map[int]int{}
	return func(_ context.Context, q fleet.Question) (fleet.Verdict, string, error) {
		times[q.Step]++
		*log = append(*log, fmt.Sprint(q.Step))
		return a(q.Step, times[q.Step])
	}
}

func TestGatesThatAreAsked(t *testing.T) {
	pass := func(int, int) (fleet.Verdict, string, error) { return fleet.Pass, "", nil }
	for name, c := range map[string]struct {
		answer answer
		policy func(*fleet.Policy)
		reason string // "" is deployed
		asked  string // steps, in their order, each once
	}{
		"pass": {answer: pass, asked: "-1 0 1 2"},
		"a test is asked before traffic alone": {answer: pass, asked: "-1",
			policy: func(p *fleet.Policy) { p.Gates = []fleet.Gate{{Test: true}} }},
		"fails before traffic": {answer: func(int, int) (fleet.Verdict, string, error) { return fleet.Fail, "the page is empty", nil },
			reason: "gate smoke: the page is empty", asked: "-1"},
		"fails at the second step": {answer: func(step, _ int) (fleet.Verdict, string, error) {
			if step == 1 {
				return fleet.Fail, "slow", nil
			}
			return fleet.Pass, "", nil
		}, reason: "gate smoke: slow", asked: "-1 0 1"},
		"inconclusive for a while": {answer: func(_, times int) (fleet.Verdict, string, error) {
			if times < 3 {
				return fleet.Inconclusive, "no data yet", nil
			}
			return fleet.Pass, "", nil
		}, asked: "-1 0 1 2"},
		"inconclusive for ever": {answer: func(step, _ int) (fleet.Verdict, string, error) {
			if step < 0 {
				return fleet.Pass, "", nil
			}
			return fleet.Inconclusive, "no data", nil
		}, reason: "inconclusive after 20s: gate smoke: no data", asked: "-1 0"},
		"inconclusive for ever, which may pass": {answer: func(step, _ int) (fleet.Verdict, string, error) {
			if step < 0 {
				return fleet.Pass, "", nil
			}
			return fleet.Inconclusive, "no data", nil
		}, policy: func(p *fleet.Policy) { p.OnInconclusive = "pass" }, asked: "-1 0 1 2"},
		"cannot be asked twice": {answer: func(_, times int) (fleet.Verdict, string, error) {
			if times < 3 {
				return "", "", errors.New("no such host")
			}
			return fleet.Pass, "", nil
		}, asked: "-1 0 1 2"},
		"cannot be asked": {answer: func(int, int) (fleet.Verdict, string, error) { return "", "", errors.New("no such host") },
			reason: "gate smoke: it could not be asked 3 times: no such host", asked: "-1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
					t.Fatal(err)
				}
				req, log := request("2"), []string{}
				req.Policy.MaxHold, req.Policy.Verify = 20*time.Second, time.Minute
				req.Policy.Gates = []fleet.Gate{{Name: "smoke", Command: &fleet.CommandGate{Args: []string{"true"}}}}
				if c.policy != nil {
					c.policy(&req.Policy)
				}
				w.d.Ask = asking(c.answer, &log)
				_, err := w.d.Deploy(t.Context(), req)
				if got := strings.Join(dedupe(log), " "); got != c.asked {
					t.Errorf("asked at %q, want %q", got, c.asked)
				}
				if c.reason == "" {
					if err != nil {
						t.Fatal(err)
					}
					w.sound("2")
					return
				}
				if !errors.Is(err, fleet.ErrRolledBack) || !strings.Contains(err.Error(), c.reason) {
					t.Errorf("%v, want %q", err, c.reason)
				}
				w.sound("1")
			})
		})
	}
}

func TestNoTrafficIsNoSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
			t.Fatal(err)
		}
		req := request("2")
		req.Policy.Gates = []fleet.Gate{{ErrorRate: &fleet.ErrorRateGate{Max: 0.01}}}
		_, err := w.d.Deploy(t.Context(), req)
		if !errors.Is(err, fleet.ErrRolledBack) || !strings.Contains(err.Error(), "inconclusive after 1m0s: gate error_rate: 0 requests, at least 20 are needed to tell") {
			t.Errorf("%v", err)
		}
		w.sound("1")
		defer w.traffic()()
		if _, err := w.d.Deploy(t.Context(), req); err != nil {
			t.Errorf("with traffic: %v", err)
		}
	})
}

func TestABaselineOfTheOldImageComesAndGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
			t.Fatal(err)
		}
		if err := w.d.Tend(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		stop := w.traffic()
		req := request("2")
		req.Policy.KeepOld, w.extra = time.Minute, 1
		req.Policy.Steps = []fleet.Step{{Permille: 500, Hold: 20 * time.Second}, {Permille: 1000}}
		req.Policy.Gates = []fleet.Gate{{Canary: &fleet.CanaryGate{Metric: "errors", Baseline: 1}}}
		most := 0
		go func() {
			for range 200 {
				time.Sleep(100 * time.Millisecond)
				_, gs := w.look()
				most = max(most, len(gs))
			}
		}()
		res, err := w.d.Deploy(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if _, gs := w.look(); len(gs) != 2 {
			t.Errorf("%d groups once it is promoted: the baseline is still there", len(gs))
		}
		if most != 3 {
			t.Errorf("%d groups at most: no baseline?", most)
		}
		found := false
		for _, f := range res.Findings {
			found = found || strings.Contains(f.Detail, "errors 0 % of the new instances against 0 % of the old ones")
		}
		if !found {
			t.Errorf("findings %+v", res.Findings)
		}
		if err := w.d.Tend(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if sent, failed := stop(); failed != 0 {
			t.Errorf("%d of %d failed", failed, sent)
		}
		w.sound("2")
	})
}

// No traffic is no success, but in a fleet's first deployment there is none, and
// nothing to go back to.
func TestWithoutTrafficOnlyAFirstDeploymentGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		var asked []string
		deploy := func(version string) (fleet.Result, error) {
			req := request(version)
			req.Policy.MaxHold = 20 * time.Second
			req.Policy.Gates = []fleet.Gate{{ErrorRate: &fleet.ErrorRateGate{Max: 0.01}}, {HTTP: &fleet.HTTPGate{}}}
			w.d.Ask = asking(func(int, int) (fleet.Verdict, string, error) { return fleet.Pass, "", nil }, &asked)
			return w.d.Deploy(t.Context(), req)
		}
		began := time.Now()
		res, err := deploy("1")
		if got := strings.Join(dedupe(asked), " "); got != "-1 2" { // nobody is served: all traffic at once
			t.Errorf("the gate that is asked was asked at steps %q", got)
		}
		if err != nil || !strings.Contains(res.Waived, "0 requests") || time.Since(began) > 10*time.Second {
			t.Errorf("the first: waived %q after %s, %v", res.Waived, time.Since(began), err)
		}
		w.sound("1")
		if res, err := deploy("2"); !errors.Is(err, fleet.ErrRolledBack) || !strings.Contains(res.Reason, "inconclusive after 20s") {
			t.Errorf("the second: %q, %v", res.Reason, err)
		}
		w.sound("1")
	})
}
