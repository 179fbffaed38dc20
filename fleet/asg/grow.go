package asg

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/template"
)

type ec2Filter = ec2types.Filter

// tagPorts are the guest ports that the group was launched for.
const tagPorts = "rebake:ports"

// mostAtOnce is what one LaunchInstances may ask for.
const mostAtOnce = 100

// spareLaunches of a group may fail before it counts as one whose instances die.
const spareLaunches = 3

// grow brings the group up to the size and waits until all are in service.
func (p *Pool) grow(ctx context.Context, g group, size int) error {
	known := map[string]bool{}
	if len(g.live()) < size {
		if err := p.failures(ctx, g.name(), known, true); err != nil {
			return err
		}
	}
	if n := int32(size); aws.ToInt32(g.MaxSize) < n {
		if _, err := p.as.UpdateAutoScalingGroup(ctx, &autoscaling.UpdateAutoScalingGroupInput{AutoScalingGroupName: g.AutoScalingGroupName, MaxSize: &n}); err != nil {
			return fmt.Errorf("let group %s grow to %d: %w", g.name(), size, err)
		}
	}
	if len(g.live()) < size {
		if err := p.launch(ctx, g, size); err != nil {
			return err
		}
	}
	return p.inService(ctx, g.id, size, known)
}

// launch asks for the missing instances, zone by zone, so that each zone's answer
// comes at once. Where the endpoint does not know that call, or the group is
// already told to be that large, it is told the size, which comes to the same
// when said twice.
func (p *Pool) launch(ctx context.Context, g group, size int) error {
	zones, have := g.AvailabilityZones, g.live()
	missing := size - max(len(have), int(aws.ToInt32(g.DesiredCapacity)))
	if missing <= 0 {
		return nil // they are being launched
	}
	if len(zones) == 0 || p.plain.Load() {
		return p.desire(ctx, g, size)
	}
	var ids []string
	for _, i := range have {
		ids = append(ids, aws.ToString(i.InstanceId))
	}
	slices.Sort(ids)
	for zone, n := range spread(zones, have, missing) {
		for part := 0; n > 0; part++ {
			batch := min(n, mostAtOnce)
			n -= batch
			// What is there is in the token: said again after a lost answer it is the same intent, after an End another one.
			in := &autoscaling.LaunchInstancesInput{AutoScalingGroupName: g.AutoScalingGroupName, RequestedCapacity: aws.Int32(int32(batch)), RetryStrategy: astypes.RetryStrategyNone,
				AvailabilityZones: []string{zones[zone]}, ClientToken: aws.String(token(append([]string{"launch", g.name(), zones[zone], strconv.Itoa(batch), strconv.Itoa(part), strconv.Itoa(size), strconv.FormatInt(p.refusals.Load(), 10)}, ids...)...))}
			out, err := p.as.LaunchInstances(ctx, in, maybe)
			switch {
			case unknown(err):
				p.plain.Store(true)
				return p.desire(ctx, g, size)
			case code(err) == "IdempotentCallInProgress" || code(err) == "IdempotentCallInProgressFault":
			case err != nil:
				return fmt.Errorf("launch %d instances in %s: %w", batch, zones[zone], capacity(code(err), err))
			case len(out.Errors) > 0:
				p.refusals.Add(1) // a token's answer stays as it is: the next try is another intent
				return refused(out.Errors)
			}
		}
	}
	return nil
}

// spread is how many of the missing instances each zone gets, so that they all
// come to the same number.
func spread(zones []string, have []astypes.Instance, missing int) []int {
	in, out := make([]int, len(zones)), make([]int, len(zones))
	for _, i := range have {
		if z := slices.Index(zones, aws.ToString(i.AvailabilityZone)); z >= 0 {
			in[z]++
		}
	}
	for range missing {
		least := 0
		for z := range in {
			if in[z] < in[least] {
				least = z
			}
		}
		in[least]++
		out[least]++
	}
	return out
}

func refused(errs []astypes.LaunchInstancesError) error {
	var all []string
	kind := ""
	for _, e := range errs {
		kind = orElse(kind, aws.ToString(e.ErrorCode))
		line := fmt.Sprintf("%s: %s: %s", aws.ToString(e.AvailabilityZone), aws.ToString(e.ErrorCode), aws.ToString(e.ErrorMessage))
		if t := aws.ToString(e.InstanceType); t != "" {
			line = t + " in " + line
		}
		if !slices.Contains(all, line) {
			all = append(all, line)
		}
	}
	return capacity(kind, errors.New(strings.Join(all, "; ")))
}

// capacity makes fleet.ErrNoCapacity of what says that there is no room.
func capacity(code string, err error) error {
	for _, word := range []string{"Insufficient", "Capacity", "LimitExceeded", "MaxSpot"} {
		if strings.Contains(code, word) {
			return fmt.Errorf("%w: %w; another instance type or subnet may have room (pool.asg)", fleet.ErrNoCapacity, err)
		}
	}
	return err
}

func (p *Pool) desire(ctx context.Context, g group, size int) error {
	if _, err := p.as.SetDesiredCapacity(ctx, &autoscaling.SetDesiredCapacityInput{
		AutoScalingGroupName: g.AutoScalingGroupName, DesiredCapacity: aws.Int32(int32(size)), HonorCooldown: aws.Bool(false)}); err != nil {
		return fmt.Errorf("set group %s to %d instances: %w", g.name(), size, err)
	}
	return nil
}

// inService waits until the group has that many instances in service, and EC2
// shows them with an address.
func (p *Pool) inService(ctx context.Context, id fleet.GroupID, size int, known map[string]bool) error {
	seen := map[string]bool{}
	return p.wait(ctx, func() (string, error) {
		g, _, err := p.find(ctx, id)
		if err != nil {
			return "", err
		}
		if g == nil {
			return "", fmt.Errorf("group %s is gone: somebody removed it", groupName(id))
		}
		ready, hooked := 0, ""
		for _, i := range g.Instances {
			seen[aws.ToString(i.InstanceId)] = true
			switch i.LifecycleState {
			case astypes.LifecycleStateInService:
				ready++
			case astypes.LifecycleStatePendingWait:
				hooked = fmt.Sprintf(", %s waits for its lifecycle hook", aws.ToString(i.InstanceId))
			}
		}
		if ready < size {
			if len(seen) > size+spareLaunches {
				return "", fmt.Errorf("the instances of group %s do not stay: %d were launched for %d places; `rebake fleet logs` of one tells why", g.name(), len(seen), size)
			}
			return fmt.Sprintf("%d of %d instances to be in service%s", size-ready, size, hooked), p.failures(ctx, g.name(), known, false)
		}
		machines, err := p.machines(ctx, id.Fleet)
		if err != nil {
			return "", err
		}
		for _, i := range g.live() {
			if m, ok := machines[aws.ToString(i.InstanceId)]; !ok || m.running && m.addr == "" {
				return fmt.Sprintf("the address of %s", aws.ToString(i.InstanceId)), nil
			}
		}
		return "", nil
	})
}

// failures are launches of the group that failed, in their own words, but for
// those that are known. With note they become known, and are no error.
func (p *Pool) failures(ctx context.Context, name string, known map[string]bool, note bool) error {
	if p.silent.Load() {
		return nil
	}
	out, err := p.as.DescribeScalingActivities(ctx, &autoscaling.DescribeScalingActivitiesInput{AutoScalingGroupName: &name, MaxRecords: aws.Int32(20)}, maybe)
	if err != nil {
		if unknown(err) || gone(err) {
			p.silent.Store(unknown(err))
			return nil
		}
		return fmt.Errorf("ask what group %s does: %w", name, err)
	}
	for _, a := range out.Activities {
		if a.StatusCode != astypes.ScalingActivityStatusCodeFailed {
			continue
		}
		if id := aws.ToString(a.ActivityId); note || known[id] {
			known[id] = true
			continue
		}
		why := aws.ToString(a.StatusMessage)
		err := fmt.Errorf("group %s: %s: %s", name, aws.ToString(a.Description), why)
		if strings.Contains(why, "sufficient") || strings.Contains(strings.ToLower(why), "capacity") || strings.Contains(why, "limit") {
			return capacity("Insufficient", err)
		}
		return err
	}
	return nil
}

// wait looks until nothing is waited for any more, and tells what is.
func (p *Pool) wait(ctx context.Context, look func() (for_ string, err error)) error {
	told := ""
	for {
		what, err := look()
		if err != nil || what == "" {
			return err
		}
		if what != told {
			event.Waiting(ctx, "%s", what)
			told = what
		}
		t := time.NewTimer(p.deps.Poll)
		select {
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("waiting for %s: %w", what, context.Cause(ctx))
		case <-t.C:
		}
	}
}

// machine reads an instance. Its address is kept: it does not change while it is
// there, and an answer that is behind may not have it.
func (p *Pool) machine(i ec2types.Instance) machine {
	m := machine{id: aws.ToString(i.InstanceId)}
	if i.State != nil {
		m.running = i.State.Name == ec2types.InstanceStateNamePending || i.State.Name == ec2types.InstanceStateNameRunning
	}
	if i.LaunchTime != nil {
		m.started = i.LaunchTime.UTC()
	}
	if m.addr = addressOf(i, p.cfg.Instance.Address); m.addr != "" {
		p.addrs.Store(m.id, m.addr)
	} else if v, ok := p.addrs.Load(m.id); ok {
		m.addr = v.(string)
	}
	return m
}

func addressOf(i ec2types.Instance, which string) string {
	switch which {
	case "public":
		return aws.ToString(i.PublicIpAddress)
	case "ipv6":
		return aws.ToString(i.Ipv6Address)
	}
	return aws.ToString(i.PrivateIpAddress)
}

func (p *Pool) ports(g group) (all []int) {
	for _, word := range strings.Fields(g.tags[tagPorts]) {
		if n, err := strconv.Atoi(word); err == nil {
			all = append(all, n)
		}
	}
	return all
}

func hostPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

func seconds(d template.Duration) int32 { return int32(time.Duration(d).Seconds()) }
