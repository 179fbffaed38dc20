// Package alb is the router of a fleet in AWS: one rule of an Application Load
// Balancer's listener, whose forward action splits the traffic between two target
// groups, one for each slot.
//
// ModifyRule replaces all of a rule's actions and knows no compare-and-swap. So a
// change of weights reads the rule, refuses if somebody else changed the split
// since it was last looked at, writes it with everything else as it was, and reads
// it back. Nothing is remembered but what an answer may be compared with.
//
// What an ALB cannot do, and HAProxy can: a healthy target takes traffic as soon as
// its slot has weight, so there is nothing between attached and ready; nobody tells
// how many requests are in flight, only that a target is draining; and what was
// answered is told by CloudWatch, for the whole target group, minutes late.
package alb

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	"github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
	"github.com/aws/smithy-go"

	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/awscalls"
	"github.com/rebake/rebake/internal/event"
)

// Tags of what the router makes, and of the rule that it writes to.
const (
	TagFleet  = "rebake:fleet"
	TagSlot   = "rebake:slot"
	TagEpoch  = "rebake:epoch"  // of the session that changed it last
	TagWrote  = "rebake:wrote"  // the split that was written last, for a person
	TagBefore = "rebake:before" // what other target groups of the rule had before rebake's got traffic
)

// ErrChanged is a rule that somebody else changed since it was last looked at.
var ErrChanged = errors.New("somebody else changed the rule")

// Options of a router; the zero value will do.
type Options struct {
	// Calls is where what changes something is written down before it is done; nil:
	// nowhere.
	Calls *awscalls.Journal
	Poll  time.Duration // between two looks at what is waited for; 0: 3 s
	Ask   time.Duration // between two questions to CloudWatch; 0: 20 s
}

// Router implements fleet.Router. It is safe for concurrent use.
type Router struct {
	cfg  Config
	o    Options
	name string
	hc   fleet.HealthCheck

	once sync.Once
	err  error // of once
	elb  *elb.Client
	ec2  *ec2.Client
	cw   *cloudwatch.Client

	mu      sync.Mutex // one change at a time; and what follows
	groups  map[fleet.Slot]target
	ruleARN string
	seen    map[fleet.Slot]int // the split that was last read or written here
	let     map[string]bool    // targets that drain and were let go
	epoch   atomic.Int64
	addrs   sync.Map // instance id → string
	metrics metrics
}

var (
	_ fleet.Router  = (*Router)(nil)
	_ fleet.Fencer  = (*Router)(nil)
	_ fleet.Targets = (*Router)(nil)
	_ fleet.Fitter  = (*Router)(nil)
	_ fleet.Paced   = (*Router)(nil)
	_ fleet.Noter   = (*Router)(nil)
)

// target is a slot's target group.
type target struct {
	arn  string
	port int32
}

var slots = []fleet.Slot{fleet.Blue, fleet.Green}

// New checks the configuration; it calls nobody.
func New(cfg Config, name string, hc fleet.HealthCheck, o Options) (*Router, error) {
	if hc.Type != "" && hc.Type != "http" {
		return nil, fmt.Errorf("health check %q: the router alb checks by http", hc.Type)
	}
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	if o.Poll <= 0 {
		o.Poll = 3 * time.Second
	}
	if o.Ask <= 0 {
		o.Ask = 20 * time.Second
	}
	return &Router{cfg: cfg, o: o, name: name, hc: hc, let: map[string]bool{}}, nil
}

// PollEvery implements fleet.Paced.
func (r *Router) PollEvery() time.Duration { return r.o.Poll }

func (r *Router) connect(ctx context.Context) error {
	r.once.Do(func() {
		cfg, err := ami.Config(context.WithoutCancel(ctx), r.cfg.Region)
		if err != nil {
			r.err = err
			return
		}
		cfg = r.o.Calls.In(cfg)
		r.elb, r.ec2, r.cw = elb.NewFromConfig(cfg), ec2.NewFromConfig(cfg), cloudwatch.NewFromConfig(cfg)
	})
	return errors.Join(r.err, ctx.Err())
}

// locked runs f alone. Of several processes one at a time has the fleet.
func (r *Router) locked(ctx context.Context, f func() error) error {
	if err := r.connect(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return f()
}

// change runs f on the live rule, once it is clear that this operator still has the fleet.
func (r *Router) change(ctx context.Context, f func(rule *types.Rule) error) error {
	return r.locked(ctx, func() error {
		rule, err := r.live(ctx)
		if err != nil {
			return err
		}
		if rule == nil {
			return fmt.Errorf("the rule of fleet %s is not there: somebody removed it, and the next look makes it anew", r.name)
		}
		if err := r.current(ctx); err != nil {
			return err
		}
		return f(rule)
	})
}

// current is fleet.ErrStale once another session wrote a higher epoch.
func (r *Router) current(ctx context.Context) error {
	mine := r.epoch.Load()
	if mine == 0 {
		return nil
	}
	tags, err := r.tags(ctx, r.ruleARN)
	if err != nil {
		return err
	}
	if last, _ := strconv.ParseInt(tags[TagEpoch], 10, 64); last > mine {
		return fmt.Errorf("%w: as epoch %d, and this is %d", fleet.ErrStale, last, mine)
	}
	return nil
}

// Fence implements fleet.Fencer: the epoch is a tag of the rule. Tags know no
// compare-and-swap, so this catches an operator who was replaced a while ago, and
// the lock of the fleet's state keeps two from acting at once.
func (r *Router) Fence(ctx context.Context, epoch int64) error {
	return r.locked(ctx, func() error {
		rule, err := r.live(ctx)
		if err != nil {
			return err
		}
		if rule != nil {
			tags, err := r.tags(ctx, r.ruleARN)
			if err != nil {
				return err
			}
			last, _ := strconv.ParseInt(tags[TagEpoch], 10, 64)
			if last > epoch {
				return fmt.Errorf("%w: as epoch %d, and this is %d", fleet.ErrStale, last, epoch)
			}
			if last < epoch {
				if err := r.tag(ctx, TagEpoch, strconv.FormatInt(epoch, 10)); err != nil {
					return err
				}
			}
		}
		r.epoch.Store(epoch)
		return nil
	})
}

func (r *Router) tags(ctx context.Context, arn string) (map[string]string, error) {
	out, err := r.elb.DescribeTags(ctx, &elb.DescribeTagsInput{ResourceArns: []string{arn}})
	if err != nil {
		return nil, fmt.Errorf("read the tags of %s: %w", arn, err)
	}
	tags := map[string]string{}
	for _, d := range out.TagDescriptions {
		for _, t := range d.Tags {
			tags[aws.ToString(t.Key)] = aws.ToString(t.Value)
		}
	}
	return tags, nil
}

// tag sets tags of the rule: key, value, key, value, …
func (r *Router) tag(ctx context.Context, pairs ...string) error {
	var tags []types.Tag
	if r.cfg.Rule == "" { // it has it; a policy may allow no tags without
		pairs = append(pairs, TagFleet, r.name)
	}
	for p := range slices.Chunk(pairs, 2) {
		tags = append(tags, types.Tag{Key: aws.String(p[0]), Value: aws.String(p[1])})
	}
	if _, err := r.elb.AddTags(ctx, &elb.AddTagsInput{ResourceArns: []string{r.ruleARN}, Tags: tags}); err != nil {
		return fmt.Errorf("tag the rule: %w", err)
	}
	return nil
}

// Target implements fleet.Targets: the ARN of the slot's target group.
func (r *Router) Target(ctx context.Context, s fleet.Slot) (arn string, err error) {
	err = r.locked(ctx, func() error {
		groups, err := r.targets(ctx)
		if err != nil {
			return err
		}
		if arn = groups[s].arn; arn == "" {
			return fmt.Errorf("slot %s has no target group yet", s)
		}
		return nil
	})
	return arn, err
}

// Attach implements fleet.Router. What an Auto Scaling group registered itself is
// there already; a target that drains is taken back.
func (r *Router) Attach(ctx context.Context, s fleet.Slot, ms []fleet.Member) error {
	for _, m := range ms {
		host, _, err := net.SplitHostPort(m.Addr)
		if err != nil || !strings.HasPrefix(m.ID, "i-") {
			return fmt.Errorf("member %s at %q is no instance with an address and port", m.ID, m.Addr)
		}
		r.addrs.Store(m.ID, host)
	}
	return r.change(ctx, func(*types.Rule) error {
		have, err := r.health(ctx, s)
		if err != nil {
			return err
		}
		var add []types.TargetDescription
		for _, m := range ms {
			_, port, _ := net.SplitHostPort(m.Addr)
			n, err := strconv.ParseInt(port, 10, 32)
			if err != nil {
				return fmt.Errorf("member %s: %q is not a port", m.ID, port)
			}
			there := slices.ContainsFunc(have, func(t types.TargetHealthDescription) bool {
				return id(t) == m.ID && aws.ToInt32(t.Target.Port) == int32(n) && !Draining(t)
			})
			if !there {
				add = append(add, types.TargetDescription{Id: aws.String(m.ID), Port: aws.Int32(int32(n))})
			}
		}
		return r.register(ctx, s, add)
	})
}

// mostTargets go into one call.
const mostTargets = 200

func (r *Router) register(ctx context.Context, s fleet.Slot, add []types.TargetDescription) error {
	for part := range slices.Chunk(add, mostTargets) {
		if _, err := r.elb.RegisterTargets(ctx, &elb.RegisterTargetsInput{TargetGroupArn: aws.String(r.groups[s].arn), Targets: part}); err != nil {
			return fmt.Errorf("register %d targets of slot %s: %w", len(part), s, err)
		}
		for _, t := range part {
			delete(r.let, aws.ToString(t.Id))
		}
	}
	return nil
}

// Ready implements fleet.Router: what is healthy takes traffic anyway; what was
// drained is registered again.
func (r *Router) Ready(ctx context.Context, s fleet.Slot) error {
	return r.change(ctx, func(*types.Rule) error {
		have, err := r.health(ctx, s)
		if err != nil {
			return err
		}
		if len(have) == 0 {
			return fmt.Errorf("%w: slot %s has no members", fleet.ErrNotHealthy, s)
		}
		var again []types.TargetDescription
		var sick []string
		for _, t := range have {
			switch {
			case Draining(t):
				again = append(again, types.TargetDescription{Id: t.Target.Id, Port: t.Target.Port})
				sick = append(sick, id(t)+" (was drained, and is registered again)")
			case !Healthy(t):
				sick = append(sick, id(t)+" ("+Words(t)+")")
			}
		}
		if err := r.register(ctx, s, again); err != nil {
			return err
		}
		if len(sick) > 0 {
			return fmt.Errorf("%w: %s", fleet.ErrNotHealthy, strings.Join(sick, ", "))
		}
		return nil
	})
}

// Drain implements fleet.Router: the targets are deregistered, and get nothing new
// while their requests end, for the target group's deregistration delay.
func (r *Router) Drain(ctx context.Context, s fleet.Slot, ids ...string) error {
	return r.change(ctx, func(*types.Rule) error {
		_, err := r.deregister(ctx, s, ids)
		return err
	})
}

// deregister drains and returns who is draining still.
func (r *Router) deregister(ctx context.Context, s fleet.Slot, ids []string) (still []string, err error) {
	have, err := r.health(ctx, s)
	if err != nil {
		return nil, err
	}
	var off []types.TargetDescription
	for _, t := range have {
		switch {
		case len(ids) > 0 && !slices.Contains(ids, id(t)):
		case Draining(t):
			still = append(still, id(t))
		default:
			off = append(off, types.TargetDescription{Id: t.Target.Id, Port: t.Target.Port})
		}
	}
	for part := range slices.Chunk(off, mostTargets) {
		if _, err := r.elb.DeregisterTargets(ctx, &elb.DeregisterTargetsInput{TargetGroupArn: aws.String(r.groups[s].arn), Targets: part}); err != nil {
			return still, fmt.Errorf("deregister %d targets of slot %s: %w", len(part), s, err)
		}
	}
	if len(off) == 0 {
		return still, nil
	}
	if have, err = r.health(ctx, s); err != nil {
		return still, err
	}
	still = nil
	for _, t := range have {
		if len(ids) == 0 || slices.Contains(ids, id(t)) {
			still = append(still, id(t))
		}
	}
	return still, nil
}

// Detach implements fleet.Router. An ALB does not cut a request, it forgets the
// target when its delay is over: with force the targets are not waited for, and
// cut counts those that were draining still, as nobody tells of their requests.
func (r *Router) Detach(ctx context.Context, s fleet.Slot, force bool, ids ...string) (cut int, err error) {
	err = r.change(ctx, func(*types.Rule) error {
		still, err := r.deregister(ctx, s, ids)
		if err != nil {
			return err
		}
		still = slices.DeleteFunc(still, func(id string) bool { return r.let[id] })
		if len(still) > 0 && !force {
			return fmt.Errorf("%w: %s drain until the deregistration delay is over", fleet.ErrBusy, strings.Join(still, ", "))
		}
		for _, id := range still {
			r.let[id] = true
		}
		cut = len(still)
		return nil
	})
	return cut, err
}

// code is what an API refused with, or "".
func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// settle looks until so, at most for a while, as an API may be behind itself.
func (r *Router) settle(ctx context.Context, what string, so func() (bool, error)) error {
	const tries = 10
	for n := 0; ; n++ {
		ok, err := so()
		if err != nil || ok {
			return err
		}
		if n == tries {
			return errors.New(what)
		}
		if n == 1 {
			event.Waiting(ctx, "the load balancer to tell what it was told")
		}
		t := time.NewTimer(r.o.Poll)
		select {
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		case <-t.C:
		}
	}
}
