//go:build e2e

package awsfleet_test

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/test/awsfake"
)

// perInstance are the calls that take one instance, where another call takes many.
var perInstance = []string{"autoscaling:TerminateInstanceInAutoScalingGroup", "ec2:TerminateInstances", "ec2:RunInstances", "ec2:GetConsoleOutput", "ec2:CreateTags"}

// swapCalls are the calls of a swap of a fleet of that size in three zones, under
// the limits that AWS documents, once for looking and once for changing.
func swapCalls(t *testing.T, size int) (looks, changes int, all map[string]int) {
	w := newWorld(t, false, "1", "2")
	w.checks.Interval = 200 * time.Second // at a thousand times the pace
	w.d = w.deployer()
	w.cloud.Set(func() { w.cloud.Throttle = awsfake.Documented })
	request := func(version string) fleet.Request {
		req := w.request(version, size)
		req.Wait, req.Policy.KeepOld = true, 10*ms
		req.Policy.Grace = 30 * time.Second
		return req
	}
	if _, err := w.d.Deploy(t.Context(), request("1")); err != nil {
		t.Fatal(err)
	}
	w.cloud.ResetCalls()
	res, err := w.d.Deploy(t.Context(), request("2"))
	if err != nil || res.State != fleet.Done {
		t.Fatalf("%s: %v", res.State, err)
	}
	all = w.cloud.Calls()
	for name, n := range all {
		if verb := name[strings.Index(name, ":")+1:]; strings.HasPrefix(verb, "Describe") || strings.HasPrefix(verb, "Get") {
			looks += n
		} else {
			changes += n
		}
	}
	for _, name := range perInstance {
		if all[name] > 0 {
			t.Errorf("%d instances: %d calls of %s, which takes one at a time", size, all[name], name)
		}
	}
	return looks, changes, all
}

// The calls that change something grow by one for each hundred instances and zone
// that is launched, and for each two hundred that are deregistered: at most
// 40 + size/10 in all. Those that look are so many per look, whatever the size is,
// but for the pages of lists; how often is looked is a matter of time, not of size.
// REBAKE_SCALE=1000 is a fleet of a thousand.
func TestCallsOfASwapGrowWithBatches(t *testing.T) {
	var lines []string
	large := 120
	if n, err := strconv.Atoi(os.Getenv("REBAKE_SCALE")); err == nil && n > 0 {
		large = n
	}
	for _, size := range []int{3, large} {
		looks, changes, all := swapCalls(t, size)
		if most := 40 + size/10; changes > most {
			t.Errorf("%d instances: %d calls change something, at most %d may", size, changes, most)
		}
		lines = append(lines, fmt.Sprintf("%d instances: %d calls that change something, %d that look", size, changes, looks))
		for _, name := range slices.Sorted(maps.Keys(all)) {
			lines = append(lines, fmt.Sprintf("  %s %d", name, all[name]))
		}
	}
	t.Log(strings.Join(lines, "\n"))
}
