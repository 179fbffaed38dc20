package awsfake

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
)

type targetGroup struct {
	elbtypes.TargetGroup
	attrs   map[string]string
	targets table[*target]
	traffic Traffic
	turn    int // of round robin
}

// target is a registration: an instance, or an address, and a port.
type target struct {
	id       string
	port     int32
	state    elbtypes.TargetHealthStateEnum
	reason   elbtypes.TargetHealthReasonEnum
	about    string
	good     int32
	bad      int32
	watched  bool      // a check of it is due
	drained  time.Time // when a draining one is gone
	gone     bool
	ctx      context.Context // of requests in flight
	cut      context.CancelFunc
	inflight int
	since    time.Time // when it became healthy
}

func (g *targetGroup) seconds(attr string) time.Duration {
	n, _ := strconv.Atoi(g.attrs[attr])
	return time.Duration(n) * time.Second
}

func targetKey(id string, port int32) string { return id + ":" + strconv.Itoa(int(port)) }

func (g *targetGroup) port(d elbtypes.TargetDescription) int32 {
	if d.Port != nil {
		return *d.Port
	}
	return aws.ToInt32(g.Port)
}

// machine is the instance behind a target, or nil.
func (r *region) machine(t *target) *instance {
	if i, ok := r.instances.get(t.id); ok {
		return i
	}
	for _, i := range r.instances.all() {
		if aws.ToString(i.PrivateIpAddress) == t.id {
			return i
		}
	}
	return nil
}

func (r *region) registerTargets(in *elb.RegisterTargetsInput) (*elb.RegisterTargetsOutput, error) {
	g, err := r.targetGroup(aws.ToString(in.TargetGroupArn))
	if err != nil {
		return nil, err
	}
	for _, d := range in.Targets {
		if g.TargetType != elbtypes.TargetTypeEnumInstance {
			continue
		}
		i, ok := r.instances.get(aws.ToString(d.Id))
		if !ok {
			return nil, refuse("InvalidTarget", "The following targets are not valid instances: '%s'", aws.ToString(d.Id))
		}
		if i.state() != ec2types.InstanceStateNameRunning {
			return nil, refuse("InvalidTarget", "The following targets are not in a running state and cannot be registered: '%s'", *d.Id)
		}
	}
	for _, d := range in.Targets {
		r.register(g, *d.Id, g.port(d))
	}
	return &elb.RegisterTargetsOutput{}, nil
}

func (r *region) register(g *targetGroup, id string, port int32) {
	key := targetKey(id, port)
	if t, ok := g.targets.get(key); ok && t.state != elbtypes.TargetHealthStateEnumDraining {
		return
	}
	t := &target{id: id, port: port, state: elbtypes.TargetHealthStateEnumInitial, reason: elbtypes.TargetHealthReasonEnumRegistrationInProgress, about: "Target registration is in progress"}
	t.ctx, t.cut = context.WithCancel(context.Background())
	g.targets.put(key, t)
	t.watched = true
	r.cloud.after(r.cloud.Delays.Register, func() {
		if t.reason == elbtypes.TargetHealthReasonEnumRegistrationInProgress {
			t.reason, t.about = elbtypes.TargetHealthReasonEnumInitialHealthChecking, "Initial health checks in progress"
		}
		r.check(g, t)
	})
}

func (r *region) deregisterTargets(in *elb.DeregisterTargetsInput) (*elb.DeregisterTargetsOutput, error) {
	g, err := r.targetGroup(aws.ToString(in.TargetGroupArn))
	if err != nil {
		return nil, err
	}
	for _, d := range in.Targets {
		for _, t := range g.targets.all() {
			if t.id == aws.ToString(d.Id) && (d.Port == nil || *d.Port == t.port) {
				r.deregister(g, t)
			}
		}
	}
	return &elb.DeregisterTargetsOutput{}, nil
}

// deregister drains a target and removes it when the delay has passed; what is in
// flight then is cut. It returns how long that takes.
func (r *region) deregister(g *targetGroup, t *target) time.Duration {
	if t.state == elbtypes.TargetHealthStateEnumDraining {
		return max(0, time.Until(t.drained))
	}
	delay := g.seconds("deregistration_delay.timeout_seconds")
	if len(r.usedBy(*g.TargetGroupArn)) == 0 {
		delay = 0
	}
	t.state, t.reason, t.about = elbtypes.TargetHealthStateEnumDraining, elbtypes.TargetHealthReasonEnumDeregistrationInProgress, "Target deregistration is in progress"
	t.drained = time.Now().Add(r.cloud.wall(delay))
	r.cloud.after(delay, func() {
		t.gone = true
		t.cut()
		if now, ok := g.targets.get(targetKey(t.id, t.port)); ok && now == t {
			g.targets.del(targetKey(t.id, t.port))
		}
	})
	return r.cloud.wall(delay)
}

// unregister takes an instance that has ended out of every group, as ELB does.
func (r *region) unregister(i *instance) {
	for _, g := range r.targetGroups.all() {
		for _, t := range g.targets.all() {
			if t.id == *i.InstanceId {
				t.gone = true
				t.cut()
				g.targets.del(targetKey(t.id, t.port))
			}
		}
	}
}

// wake looks at the targets of groups that a rule refers to since now.
func (r *region) wake() {
	for _, g := range r.targetGroups.all() {
		for _, t := range g.targets.all() {
			if !t.watched {
				t.watched = true
				r.cloud.after(0, func() { r.check(g, t) })
			}
		}
	}
}

// check asks a target for its health and comes again after the interval.
func (r *region) check(g *targetGroup, t *target) {
	t.watched = false
	if t.gone || t.state == elbtypes.TargetHealthStateEnumDraining {
		return
	}
	if len(r.usedBy(*g.TargetGroupArn)) == 0 {
		t.state, t.reason, t.about = elbtypes.TargetHealthStateEnumInitial, elbtypes.TargetHealthReasonEnumInitialHealthChecking, "Initial health checks in progress"
		t.good, t.bad = 0, 0
		return // wake comes back to it
	}
	t.watched = true
	interval := time.Duration(aws.ToInt32(g.HealthCheckIntervalSeconds)) * time.Second
	i := r.machine(t)
	if i != nil && i.serving && i.addr == "" && r.cloud.Status == nil && r.cloud.Backend == nil {
		r.judge(g, t, nil)
		t.watched = t.state != elbtypes.TargetHealthStateEnumHealthy // nothing changes but by its end, which is seen without a check
		if t.watched {
			r.cloud.after(interval, func() { r.check(g, t) })
		}
		return
	}
	h := r.hopTo(g, t)
	path, codes := aws.ToString(g.HealthCheckPath), aws.ToString(g.Matcher.HttpCode)
	// On a busy machine a timeout of milliseconds would say nothing of the target.
	timeout := max(r.cloud.wall(time.Duration(aws.ToInt32(g.HealthCheckTimeoutSeconds))*time.Second), 2*time.Second)
	if p := aws.ToString(g.HealthCheckPort); p != "traffic-port" && p != "" {
		if n, err := strconv.Atoi(p); err == nil {
			h.port = int32(n)
		}
	}
	go func() {
		err := h.probe(path, codes, timeout)
		r.cloud.locked(func() {
			if !t.gone && t.state != elbtypes.TargetHealthStateEnumDraining {
				r.judge(g, t, err)
			}
			r.cloud.after(interval, func() { r.check(g, t) })
		})
	}()
}

// errMismatch is an answer with another status than the group wants.
type errMismatch int

func (e errMismatch) Error() string {
	return "Health checks failed with these codes: [" + strconv.Itoa(int(e)) + "]"
}

func (h *hop) probe(path, codes string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(context.WithValue(ctx, hopKey{}, h), http.MethodGet, "http://target"+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "ELB-HealthChecker/2.0")
	res, err := h.cloud.RoundTrip(req)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, res.Body)
	res.Body.Close()
	if !codeFits(codes, res.StatusCode) {
		return errMismatch(res.StatusCode)
	}
	return nil
}

// codeFits tells whether a status is in a list as "200,301-399".
func codeFits(codes string, status int) bool {
	for part := range strings.SplitSeq(codes, ",") {
		from, to, ok := strings.Cut(part, "-")
		if !ok {
			to = from
		}
		a, err1 := strconv.Atoi(from)
		b, err2 := strconv.Atoi(to)
		if err1 == nil && err2 == nil && a <= status && status <= b {
			return true
		}
	}
	return false
}

// judge counts the outcome of a check.
func (r *region) judge(g *targetGroup, t *target, err error) {
	var mismatch errMismatch
	var timeout net.Error
	switch {
	case err == nil:
		t.good, t.bad = t.good+1, 0
		// The first success is enough for a target that was never checked before.
		if t.state == elbtypes.TargetHealthStateEnumInitial || t.state == elbtypes.TargetHealthStateEnumUnhealthy && t.good >= aws.ToInt32(g.HealthyThresholdCount) {
			t.state, t.reason, t.about, t.since = elbtypes.TargetHealthStateEnumHealthy, "", "", time.Now()
		}
		return
	case errors.As(err, &mismatch):
		t.about = err.Error()
		if t.bad++; t.bad >= aws.ToInt32(g.UnhealthyThresholdCount) {
			t.state, t.reason = elbtypes.TargetHealthStateEnumUnhealthy, elbtypes.TargetHealthReasonEnumResponseCodeMismatch
		}
	default:
		reason, about := elbtypes.TargetHealthReasonEnumFailedHealthChecks, "Health checks failed"
		if errors.As(err, &timeout) && timeout.Timeout() {
			reason, about = elbtypes.TargetHealthReasonEnumTimeout, "Request timed out"
		}
		if t.bad++; t.bad >= aws.ToInt32(g.UnhealthyThresholdCount) {
			t.state, t.reason, t.about = elbtypes.TargetHealthStateEnumUnhealthy, reason, about
		}
	}
	t.good = 0
}

// health is what DescribeTargetHealth says of a target.
func (r *region) health(g *targetGroup, t *target) *elbtypes.TargetHealth {
	return r.healthIn(g, t, len(r.usedBy(*g.TargetGroupArn)) > 0)
}

// healthIn is health, for those who know whether a rule refers to the group. That an
// instance is going is not seen: its target gets requests until a check has failed
// often enough, or it has stopped.
func (r *region) healthIn(g *targetGroup, t *target, used bool) *elbtypes.TargetHealth {
	h := &elbtypes.TargetHealth{State: t.state, Reason: t.reason}
	if t.about != "" {
		h.Description = aws.String(t.about)
	}
	if t.state == elbtypes.TargetHealthStateEnumDraining {
		return h
	}
	if !used {
		return &elbtypes.TargetHealth{State: elbtypes.TargetHealthStateEnumUnused, Reason: elbtypes.TargetHealthReasonEnumNotInUse, Description: aws.String("Target group is not configured to receive traffic from the load balancer")}
	}
	if i, ok := r.instances.get(t.id); ok && i.state() == ec2types.InstanceStateNameStopped {
		return &elbtypes.TargetHealth{State: elbtypes.TargetHealthStateEnumUnused, Reason: elbtypes.TargetHealthReasonEnumInvalidState, Description: aws.String("Target is in the stopped state")}
	}
	if aws.ToBool(g.HealthCheckEnabled) {
		return h
	}
	return &elbtypes.TargetHealth{State: elbtypes.TargetHealthStateEnumUnavailable, Reason: elbtypes.TargetHealthReasonEnumHealthCheckDisabled}
}

func (r *region) describeTargetHealth(in *elb.DescribeTargetHealthInput) (*elb.DescribeTargetHealthOutput, error) {
	g, err := r.targetGroup(aws.ToString(in.TargetGroupArn))
	if err != nil {
		return nil, err
	}
	out, used := &elb.DescribeTargetHealthOutput{TargetHealthDescriptions: []elbtypes.TargetHealthDescription{}}, len(r.usedBy(*g.TargetGroupArn)) > 0
	for _, t := range g.targets.all() {
		if len(in.Targets) > 0 && !slices.ContainsFunc(in.Targets, func(d elbtypes.TargetDescription) bool { return *d.Id == t.id && (d.Port == nil || *d.Port == t.port) }) {
			continue
		}
		out.TargetHealthDescriptions = append(out.TargetHealthDescriptions, elbtypes.TargetHealthDescription{Target: &elbtypes.TargetDescription{Id: aws.String(t.id), Port: aws.Int32(t.port)},
			HealthCheckPort: aws.String(strconv.Itoa(int(t.port))), TargetHealth: r.healthIn(g, t, used)})
	}
	for _, d := range in.Targets {
		if !slices.ContainsFunc(out.TargetHealthDescriptions, func(h elbtypes.TargetHealthDescription) bool { return *h.Target.Id == *d.Id }) {
			out.TargetHealthDescriptions = append(out.TargetHealthDescriptions, elbtypes.TargetHealthDescription{Target: &d, TargetHealth: &elbtypes.TargetHealth{State: elbtypes.TargetHealthStateEnumUnused,
				Reason: elbtypes.TargetHealthReasonEnumNotRegistered, Description: aws.String("Target is not registered to the target group")}})
		}
	}
	return out, nil
}
