package awsfake

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	asgtypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
)

// member is an instance of a group.
type member struct {
	asgtypes.Instance
	activity *asgtypes.Activity
	since    time.Time // in service
	drained  time.Time // when its deregistration ends
	hook     *asgtypes.LifecycleHook
	passed   []string // hooks that let it go on
	until    time.Time
	token    string
	result   string // of the hook that it waits for
}

const (
	launching   = "autoscaling:EC2_INSTANCE_LAUNCHING"
	terminating = "autoscaling:EC2_INSTANCE_TERMINATING"
)

func (m *member) ending() bool { return strings.HasPrefix(string(m.LifecycleState), "Terminat") }

// counts tells whether an instance is part of the group's capacity.
func (m *member) counts() bool {
	return strings.HasPrefix(string(m.LifecycleState), "Pending") || m.LifecycleState == asgtypes.LifecycleStateInService
}

// kick makes Auto Scaling look at a group soon.
func (r *region) kick(g *group) { r.lookIn(g, min(r.cloud.Delays.Scale, time.Second)) }

func (r *region) lookIn(g *group, d time.Duration) {
	g.looks++
	n := g.looks
	r.cloud.after(max(d, time.Nanosecond), func() {
		if n == g.looks {
			r.look(g)
		}
	})
}

// look is one round of Auto Scaling with a group: each instance a step further,
// then launches and terminations towards the desired capacity.
func (r *region) look(g *group) {
	name := *g.AutoScalingGroupName
	if now, ok := r.asgs.get(name); !ok || now != g {
		return
	}
	busy := false
	for _, m := range slices.Clone(g.members) {
		r.step(g, m)
		busy = busy || m.LifecycleState != asgtypes.LifecycleStateInService && m.LifecycleState != asgtypes.LifecycleStateStandby
	}
	if g.deleting {
		if len(g.members) == 0 {
			r.asgs.del(name)
			return
		}
		r.lookIn(g, r.cloud.Delays.Scale)
		return
	}
	r.refreshStep(g)
	r.scale(g)
	if busy || g.active() != nil || g.size() != int(*g.DesiredCapacity) {
		r.lookIn(g, r.cloud.Delays.Scale)
		return
	}
	r.lookIn(g, 6*r.cloud.Delays.Scale)
}

func (g *group) size() (n int) {
	for _, m := range g.members {
		if m.counts() {
			n++
		}
	}
	return n
}

// step brings one instance a step further.
func (r *region) step(g *group, m *member) {
	i, ok := r.instances.get(*m.InstanceId)
	alive := ok && (i.state() == ec2types.InstanceStateNameRunning || i.state() == ec2types.InstanceStateNamePending)
	switch m.LifecycleState {
	case asgtypes.LifecycleStatePending:
		switch {
		case !alive:
			r.finish(m.activity, "Instance failed to launch: it became "+stateOf(i))
			r.retire(g, m, "the instance did not come up")
		case i.state() == ec2types.InstanceStateNameRunning && (i.serving || r.cloud.Backend == nil):
			r.hooked(g, m, launching, asgtypes.LifecycleStatePendingWait, asgtypes.LifecycleStatePendingProceed)
		}
	case asgtypes.LifecycleStatePendingWait:
		if !alive {
			r.finish(m.activity, "Instance failed during its lifecycle hook")
			r.retire(g, m, "the instance ended in a lifecycle hook")
			return
		}
		switch r.outcome(m) {
		case "CONTINUE":
			r.hooked(g, m, launching, asgtypes.LifecycleStatePendingWait, asgtypes.LifecycleStatePendingProceed)
		case "ABANDON":
			r.finish(m.activity, "Lifecycle action was abandoned or timed out: "+*m.hook.LifecycleHookName)
			r.retire(g, m, "a lifecycle hook was abandoned")
		}
	case asgtypes.LifecycleStatePendingProceed:
		r.serve(g, m)
	case asgtypes.LifecycleStateInService:
		r.care(g, m, alive)
	case asgtypes.LifecycleStateTerminating:
		if time.Now().Before(m.drained) {
			m.activity.StatusCode = asgtypes.ScalingActivityStatusCodeWaitingForELBConnectionDraining
			return
		}
		if g.deleting {
			m.LifecycleState = asgtypes.LifecycleStateTerminatingProceed
		} else {
			r.hooked(g, m, terminating, asgtypes.LifecycleStateTerminatingWait, asgtypes.LifecycleStateTerminatingProceed)
		}
		if m.LifecycleState == asgtypes.LifecycleStateTerminatingProceed && ok {
			r.end(i)
		}
	case asgtypes.LifecycleStateTerminatingWait:
		switch r.outcome(m) {
		case "CONTINUE":
			r.hooked(g, m, terminating, asgtypes.LifecycleStateTerminatingWait, asgtypes.LifecycleStateTerminatingProceed)
		case "ABANDON":
			if p := g.InstanceLifecyclePolicy; p != nil && p.RetentionTriggers != nil && p.RetentionTriggers.TerminateHookAbandon == asgtypes.RetentionActionRetain {
				m.LifecycleState = asgtypes.LifecycleStateTerminatingRetained
				r.finish(m.activity, "")
				return
			}
			m.LifecycleState = asgtypes.LifecycleStateTerminatingProceed
		}
		if m.LifecycleState == asgtypes.LifecycleStateTerminatingProceed && ok {
			r.end(i)
		}
	case asgtypes.LifecycleStateTerminatingProceed:
		if !ok || i.state() == ec2types.InstanceStateNameTerminated {
			g.members = slices.DeleteFunc(slices.Clone(g.members), func(o *member) bool { return o == m })
			r.finish(m.activity, "")
		}
	}
}

func stateOf(i *instance) string {
	if i == nil {
		return "unknown"
	}
	return string(i.state())
}

// hooked sends an instance into the next hook of a transition, or on.
func (r *region) hooked(g *group, m *member, transition string, wait, proceed asgtypes.LifecycleState) {
	for _, h := range g.hooks.all() {
		if *h.LifecycleTransition != transition || slices.Contains(m.passed, *h.LifecycleHookName) {
			continue
		}
		m.LifecycleState, m.hook, m.result, m.token = wait, h, "", r.cloud.elbID()
		m.passed = append(m.passed, *h.LifecycleHookName)
		m.until = time.Now().Add(r.cloud.wall(time.Duration(*h.HeartbeatTimeout) * time.Second))
		m.activity.StatusCode = asgtypes.ScalingActivityStatusCodeMidLifecycleAction
		return
	}
	m.LifecycleState, m.hook = proceed, nil
	if proceed == asgtypes.LifecycleStatePendingProceed {
		r.serve(g, m)
	}
}

// outcome is what the hook that an instance waits for says; "" is nothing yet.
func (r *region) outcome(m *member) string {
	if m.result == "" && time.Now().After(m.until) {
		m.result = *m.hook.DefaultResult
	}
	return m.result
}

// serve puts an instance into service: registered, unless that process is suspended.
func (r *region) serve(g *group, m *member) {
	m.LifecycleState, m.since, m.passed = asgtypes.LifecycleStateInService, time.Now(), nil
	r.finish(m.activity, "")
	if g.suspended("AddToLoadBalancer") {
		return
	}
	for _, arn := range g.TargetGroupARNs {
		if tg, ok := r.targetGroups.get(arn); ok {
			r.register(tg, *m.InstanceId, aws.ToInt32(tg.Port))
		}
	}
}

// care replaces an instance in service that is no longer healthy.
func (r *region) care(g *group, m *member, alive bool) {
	grace := r.cloud.wall(time.Duration(aws.ToInt32(g.HealthCheckGracePeriod)) * time.Second)
	if !g.suspended("HealthCheck") {
		if !alive {
			m.HealthStatus = aws.String("Unhealthy")
		} else if strings.Contains(aws.ToString(g.HealthCheckType), "ELB") && time.Since(m.since) > grace && r.sick(g, m) {
			m.HealthStatus = aws.String("Unhealthy")
		}
	}
	if *m.HealthStatus == "Unhealthy" && !g.suspended("ReplaceUnhealthy") {
		r.retire(g, m, "an instance was taken out of service in response to a health check that says it is unhealthy.")
	}
}

// sick tells whether a load balancer says that an instance is unhealthy.
func (r *region) sick(g *group, m *member) bool {
	for _, arn := range g.TargetGroupARNs {
		tg, ok := r.targetGroups.get(arn)
		if !ok {
			continue
		}
		for _, t := range tg.targets.all() {
			if t.id == *m.InstanceId && r.health(tg, t).State == elbtypes.TargetHealthStateEnumUnhealthy {
				return true
			}
		}
	}
	return false
}

// retire begins the end of an instance: out of the load balancer first.
func (r *region) retire(g *group, m *member, cause string) {
	if m.ending() {
		return
	}
	m.LifecycleState, m.hook, m.passed = asgtypes.LifecycleStateTerminating, nil, nil
	m.activity = r.record1(g, "Terminating EC2 instance: "+*m.InstanceId, cause)
	m.drained = time.Now()
	for _, arn := range g.TargetGroupARNs {
		tg, ok := r.targetGroups.get(arn)
		if !ok {
			continue
		}
		for _, t := range tg.targets.all() {
			if t.id == *m.InstanceId {
				if until := time.Now().Add(r.deregister(tg, t)); until.After(m.drained) {
					m.drained = until
				}
			}
		}
	}
	r.kick(g)
}

// scale launches and terminates towards the desired capacity.
func (r *region) scale(g *group) {
	lack := int(*g.DesiredCapacity) - g.size()
	if f := g.active(); f != nil {
		lack += f.surge
	}
	switch {
	case lack > 0 && !g.suspended("Launch") && !time.Now().Before(g.wait):
		r.grow(g, lack)
	case lack < 0 && !g.suspended("Terminate"):
		for _, m := range g.victims(-lack) {
			r.retire(g, m, "an instance was taken out of service in response to a difference between desired and actual capacity, shrinking the capacity.")
		}
	}
}

// grow launches instances, balanced over the zones that have capacity. When a zone
// has none another is tried; when none has, it waits before the next try.
func (r *region) grow(g *group, n int) {
	var full []string
	for n > 0 {
		zone := g.smallest(full)
		if zone == "" {
			g.failures++
			g.wait = time.Now().Add(r.cloud.wall(time.Duration(min(g.failures, 8)) * 30 * time.Second))
			return
		}
		if _, err := r.launchInto(g, zone, 1); err != nil {
			a := r.record1(g, "Launching a new EC2 instance.  Status Reason: "+messageOf(err), "an instance was started in response to a difference between desired and actual capacity.")
			r.finish(a, messageOf(err)+" Launching EC2 instance failed.")
			full = append(full, zone)
			continue
		}
		n--
	}
	g.failures = 0
}

func messageOf(err error) string {
	if e, ok := err.(*refusal); ok {
		return e.message
	}
	return err.Error()
}

// smallest is the zone with the fewest instances, of those not named.
func (g *group) smallest(without []string) string {
	best, least := "", 0
	for _, z := range g.AvailabilityZones {
		n := g.inZone(z)
		if !slices.Contains(without, z) && (best == "" || n < least) {
			best, least = z, n
		}
	}
	return best
}

func (g *group) inZone(zone string) (n int) {
	for _, m := range g.members {
		if m.counts() && *m.AvailabilityZone == zone {
			n++
		}
	}
	return n
}

// victims are whom a scale-in ends: of the fullest zone the one with the oldest
// version, never one that is protected.
func (g *group) victims(n int) (out []*member) {
	left := slices.DeleteFunc(slices.Clone(g.members), func(m *member) bool { return !m.counts() || aws.ToBool(m.ProtectedFromScaleIn) })
	for ; n > 0 && len(left) > 0; n-- {
		zones := map[string]int{}
		for _, m := range left {
			zones[*m.AvailabilityZone]++
		}
		best := 0
		for k, m := range left {
			if b := left[best]; zones[*m.AvailabilityZone] > zones[*b.AvailabilityZone] || zones[*m.AvailabilityZone] == zones[*b.AvailabilityZone] && older(m, b) {
				best = k
			}
		}
		out = append(out, left[best])
		left = slices.Delete(left, best, best+1)
	}
	return out
}

func older(a, b *member) bool {
	return fmt.Sprintf("%9s", a.version()) < fmt.Sprintf("%9s", b.version())
}

func (m *member) version() string {
	if m.LaunchTemplate == nil {
		return ""
	}
	return aws.ToString(m.LaunchTemplate.Version)
}
