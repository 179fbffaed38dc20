package alb_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/alb"
	"github.com/rebake/rebake/test/awsfake"
	"github.com/rebake/rebake/test/awsfleet"
	"github.com/rebake/rebake/test/conformance"
)

// What CloudWatch tells of a slot's target group is what its members add up to.
func TestCountersOfCloudWatch(t *testing.T) {
	cloud := awsfake.Start(t)
	b := &backends{set: map[string]func(int){}}
	cloud.Set(func() { cloud.Backend = b.of })
	w := awsfleet.New(t)
	ami := w.AMI(t, w.Image(t, "1"))
	hc := health
	hc.Port, hc.Interval = guestPort, 300e9 // it does not become unhealthy meanwhile
	r, err := alb.New(alb.Config{Listener: w.Listener, Priority: 10}, "suite", hc, alb.Options{Poll: 2 * ms, Ask: ms})
	ok(t, err)
	ctx := t.Context()
	ok(t, r.Ensure(ctx))
	one, two := machine(t, w, ami, guestPort), machine(t, w, ami, guestPort)
	ok(t, r.Attach(ctx, fleet.Blue, []fleet.Member{one, two}))
	await(t, r, "two healthy", func(st fleet.RouterStatus) bool {
		m := st.Members[fleet.Blue]
		return len(m) == 2 && m[0].Healthy && m[1].Healthy
	})
	ok(t, r.SetWeights(ctx, map[fleet.Slot]int{fleet.Blue: 1000}))
	to, err := url.Parse(cloud.ListenerURL(w.Listener))
	ok(t, err)
	send := conformance.HTTPSend(to.Host)
	const n = 41
	good := 0
	for i := range n {
		if i == n-6 {
			b.status(one.ID)(503)
			b.status(two.ID)(503)
		}
		if _, end, err := send(false); err == nil {
			good++
			_ = end()
		}
	}
	if good < n-6 {
		t.Fatalf("%d of %d answers were good", good, n)
	}
	await(t, r, "what was sent is counted", func(st fleet.RouterStatus) bool {
		var requests, errors int64
		for _, m := range st.Members[fleet.Blue] {
			requests, errors = requests+m.Requests, errors+m.Errors5x
			if m.Requests > 0 && m.Latency == 0 {
				t.Errorf("%+v has no latency", m)
			}
		}
		return requests == n && errors == int64(n-good)
	})
}

func TestAlarms(t *testing.T) {
	cloud := awsfake.Start(t)
	cloud.SetAlarm("eu-central-1", "fine", "OK", "")
	cloud.SetAlarm("eu-central-1", "loud", "ALARM", "12 is more than 10")
	cloud.SetAlarm("eu-central-1", "new", "INSUFFICIENT_DATA", "")
	for _, c := range []struct {
		names string
		want  fleet.Verdict
		says  string
	}{
		{"fine", fleet.Pass, "1 alarms are OK"},
		{"fine loud new", fleet.Fail, "loud is in ALARM: 12 is more than 10"},
		{"fine new", fleet.Inconclusive, "new has too little data"},
	} {
		v, says, err := alb.Alarms(t.Context(), "eu-central-1", strings.Fields(c.names))
		if err != nil || v != c.want || says != c.says {
			t.Errorf("%s: %s %q, %v", c.names, v, says, err)
		}
	}
	if v, _, err := alb.Alarms(t.Context(), "", []string{"gone"}); v != fleet.Error || err == nil || !strings.Contains(err.Error(), "there is no alarm gone in eu-central-1") {
		t.Errorf("one that is not there: %s, %v", v, err)
	}
	cloud.Set(func() { cloud.Deny = func(action string) bool { return action == "cloudwatch:DescribeAlarms" } })
	if v, _, err := alb.Alarms(t.Context(), "", []string{"fine"}); v != fleet.Error || err == nil {
		t.Errorf("CloudWatch does not say: %s, %v", v, err)
	}
}
