package fleet

import (
	"fmt"
	"testing"
	"time"
)

// A group that grew by itself while it warmed up: all that is there has to be
// healthy, not only as many as were asked for; under traffic those are enough.
func TestAGroupThatGrewIsWarmOnceAllOfItIs(t *testing.T) {
	now := time.Now()
	p, err := Policy{Port: 80}.Complete()
	if err != nil {
		t.Fatal(err)
	}
	id := GroupID{Fleet: "web", Slot: Blue, Deployment: "01A"}
	r := Record{Plan: Plan{ID: "01A", Fleet: "web", Policy: p, New: Release{Group: id, Spec: Spec{Size: 2}}}}
	r.State, r.Since, r.Deadline = Warming, now, now.Add(time.Minute)
	look := func(healthy int) Observation {
		g, ms := Group{ID: id}, []MemberStatus{}
		for n := range 3 {
			name, addr := fmt.Sprintf("i-%d", n), fmt.Sprintf("10.0.0.%d:80", n)
			g.Instances = append(g.Instances, Instance{ID: name, Running: true, Ports: map[int]string{80: addr}})
			ms = append(ms, MemberStatus{Member: Member{ID: name, Addr: addr}, Admin: "ready", Healthy: n < healthy})
		}
		return Observation{Groups: []Group{g}, Router: RouterStatus{Up: true, Weights: map[Slot]int{}, Members: map[Slot][]MemberStatus{Blue: ms}}}
	}
	if next, act := Next(r, look(2), p, now); next.State != Warming || act.Op != Wait {
		t.Errorf("2 of 3 are healthy: %s, %s", next.State, act.Op)
	}
	if next, _ := Next(r, look(3), p, now); next.State != Verifying {
		t.Errorf("all 3 are healthy: %s", next.State)
	}
	r.State = Verifying
	r.Verified = true
	if next, _ := Next(r, look(2), p, now); next.State != Shifting || !next.Sick.IsZero() {
		t.Errorf("2 of 3 are healthy afterwards: %s, sick since %s", next.State, next.Sick)
	}
	r.State = Provisioning
	if next, act := Next(r, look(0), p, now); next.State != Warming {
		t.Errorf("3 of 2 run: %s, %s", next.State, act.Op)
	}
}
