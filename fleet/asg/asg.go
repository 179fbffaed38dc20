// Package asg is the pool of a fleet in AWS: each group is an Auto Scaling group
// of its own, with a launch template of its own, so that blue and green never
// share anything that one of them could change under the other.
//
// Both have the name rebake-FLEET-SLOT-DEPLOYMENT, which is known before they
// exist and is the key of every retry, and the tags rebake:fleet, rebake:slot,
// rebake:deployment and rebake:digest. Nothing is remembered here: what is there
// is what the API tells. A group always launches version 1 of its own template,
// so that whatever makes it grow, a person, a policy or a replacement, grows it
// by the image it was made for.
//
// While both slots have a group they are pinned: none shrinks below what it was
// told, nor loses an instance to its load balancer's checks, which rebake itself
// watches. What they go back to is in the tag rebake:pinned.
package asg

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/smithy-go"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/awscalls"
)

// Tags of what the pool makes. Those of a group are its instances' too, but
// TagPinned and TagEpoch.
const (
	TagFleet      = "rebake:fleet"
	TagSlot       = "rebake:slot"
	TagDeployment = "rebake:deployment"
	TagDigest     = ami.TagDigest
	TagAddress    = "rebake:address" // which of an instance's addresses the fleet speaks of: private, public or ipv6
	TagPinned     = "rebake:pinned"  // "MIN CHECK": the least size and kind of health check that the group goes back to
	TagEpoch      = "rebake:epoch"   // of the session that changed it last
)

// Deps are what the pool stands on.
type Deps struct {
	Store artifact.Store
	Work  string // directory for uploads that were cut off, of publish: true

	// Calls is where what changes something is written down before it is done; nil:
	// nowhere.
	Calls *awscalls.Journal

	// Poll is the time between two looks at what is waited for; 0: 3 s.
	Poll time.Duration
}

// Pool implements fleet.Pool.
type Pool struct {
	cfg  Config
	deps Deps
	name string
	// filter finds the fleet's instances.
	filter  ec2Filter
	inPlace bool // the group is somebody else's, and has not the fleet's tags

	once    sync.Once
	err     error // of once
	region  string
	as      *autoscaling.Client
	ec2     *ec2.Client
	targets fleet.Targets
	mine    atomic.Int64 // epoch; 0: not told

	plain    atomic.Bool  // the endpoint has no LaunchInstances
	silent   atomic.Bool  // the endpoint does not tell what a group did
	looked   atomic.Bool  // no launch template is without its group
	refusals atomic.Int64 // launches that were answered with an error
	mu       sync.Mutex
	last     map[string]machine // what EC2 told of the fleet's instances
	told     time.Time          // when
	addrs    sync.Map           // instance id → string: what was seen once does not change while it runs
}

var (
	_ fleet.Pool     = (*Pool)(nil)
	_ fleet.Fencer   = (*Pool)(nil)
	_ fleet.Witness  = (*Pool)(nil)
	_ fleet.Preparer = (*Pool)(nil)
	_ fleet.Grower   = (*Pool)(nil)
	_ fleet.Behind   = (*Pool)(nil)
	_ fleet.Fitter   = (*Pool)(nil)
)

// fleetRE bounds what goes into names and filters.
var fleetRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$`)

// New checks the configuration; it calls nobody.
func New(cfg Config, deps Deps, fleetName string) (*Pool, error) {
	if !fleetRE.MatchString(fleetName) {
		return nil, fmt.Errorf("fleet name %q: use at most 40 letters, digits, dots, dashes and underscores", fleetName)
	}
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	if deps.Poll <= 0 {
		deps.Poll = 3 * time.Second
	}
	return &Pool{cfg: cfg, deps: deps, name: fleetName, filter: ec2Filter{Name: aws.String("tag:" + TagFleet), Values: []string{fleetName}}}, nil
}

// SetTargets implements fleet.Behind.
func (p *Pool) SetTargets(t fleet.Targets) { p.targets = t }

// connect opens the clients at the first call.
func (p *Pool) connect(ctx context.Context) error {
	p.once.Do(func() {
		cfg, err := p.config(context.WithoutCancel(ctx))
		if err != nil {
			p.err = err
			return
		}
		p.region, p.as, p.ec2 = cfg.Region, autoscaling.NewFromConfig(cfg), ec2.NewFromConfig(cfg)
	})
	return errors.Join(p.err, ctx.Err())
}

// config is of clients that write down what they change.
func (p *Pool) config(ctx context.Context) (aws.Config, error) {
	cfg, err := ami.Config(ctx, p.cfg.Region)
	return p.deps.Calls.In(cfg), err
}

// groupName names the Auto Scaling group and the launch template of a group.
func groupName(id fleet.GroupID) string {
	return "rebake-" + id.Fleet + "-" + string(id.Slot) + "-" + id.Deployment
}

// token is a client token that names one intent: the same for the same words.
func token(words ...string) string {
	h := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	return "rebake-" + hex.EncodeToString(h[:])[:48]
}

// group is an Auto Scaling group of the fleet.
type group struct {
	astypes.AutoScalingGroup
	id   fleet.GroupID
	tags map[string]string
}

func (g group) name() string { return aws.ToString(g.AutoScalingGroupName) }

// live are the instances that are not on their way out.
func (g group) live() (all []astypes.Instance) {
	for _, i := range g.Instances {
		if s := string(i.LifecycleState); !strings.HasPrefix(s, "Terminat") && !strings.HasPrefix(s, "Detach") && !strings.HasPrefix(s, "Warmed") {
			all = append(all, i)
		}
	}
	return all
}

// groups are all of the fleet's.
func (p *Pool) groups(ctx context.Context, name string) (all []group, err error) {
	pages := autoscaling.NewDescribeAutoScalingGroupsPaginator(p.as, &autoscaling.DescribeAutoScalingGroupsInput{
		MaxRecords: aws.Int32(100), Filters: []astypes.Filter{{Name: aws.String("tag:" + TagFleet), Values: []string{name}}}})
	for pages.HasMorePages() {
		out, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list the groups of fleet %s: %w", name, err)
		}
		for _, g := range out.AutoScalingGroups {
			tags := map[string]string{}
			for _, t := range g.Tags {
				tags[aws.ToString(t.Key)] = aws.ToString(t.Value)
			}
			id := fleet.GroupID{Fleet: tags[TagFleet], Slot: fleet.Slot(tags[TagSlot]), Deployment: tags[TagDeployment]}
			if id.Fleet != name || groupName(id) != aws.ToString(g.AutoScalingGroupName) { // the filter is a hint; tags were copied by somebody
				continue
			}
			all = append(all, group{g, id, tags})
		}
	}
	slices.SortFunc(all, func(a, b group) int { return strings.Compare(a.name(), b.name()) })
	return all, nil
}

// find is the group of an id, nil where there is none, and the fleet's others.
// It refuses, as every change begins with it, where another operator took over.
func (p *Pool) find(ctx context.Context, id fleet.GroupID) (mine *group, others []group, err error) {
	if err := p.connect(ctx); err != nil {
		return nil, nil, err
	}
	all, err := p.groups(ctx, id.Fleet)
	if err != nil {
		return nil, nil, err
	}
	for i := range all {
		if e := epochOf(all[i]); e > p.mine.Load() && p.mine.Load() != 0 {
			return nil, nil, fmt.Errorf("%w: as epoch %d, and this is %d", fleet.ErrStale, e, p.mine.Load())
		}
		if all[i].id == id {
			mine = &all[i]
		} else {
			others = append(others, all[i])
		}
	}
	return mine, others, nil
}

func epochOf(g group) int64 {
	n, err := strconv.ParseInt(g.tags[TagEpoch], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// Fence implements fleet.Fencer: the epoch is a tag of the fleet's groups. Tags
// know no compare-and-swap, so this catches an operator who was replaced a while
// ago, and the lock of the fleet's state keeps two from acting at once.
func (p *Pool) Fence(ctx context.Context, epoch int64) error {
	if err := p.connect(ctx); err != nil {
		return err
	}
	all, err := p.groups(ctx, p.name)
	if err != nil {
		return err
	}
	var tags []astypes.Tag
	for _, g := range all {
		if e := epochOf(g); e > epoch {
			return fmt.Errorf("%w: as epoch %d, and this is %d", fleet.ErrStale, e, epoch)
		} else if e < epoch {
			// with the fleet's tag, by which a policy may allow it
			tags = append(tags, tag(g.name(), TagEpoch, strconv.FormatInt(epoch, 10), false), tag(g.name(), TagFleet, p.name, true))
		}
	}
	if len(tags) > 0 {
		if _, err := p.as.CreateOrUpdateTags(ctx, &autoscaling.CreateOrUpdateTagsInput{Tags: tags}); err != nil {
			return fmt.Errorf("write the epoch down: %w", err)
		}
	}
	p.mine.Store(epoch)
	return nil
}

func tag(of, key, value string, instances bool) astypes.Tag {
	return astypes.Tag{ResourceId: aws.String(of), ResourceType: aws.String("auto-scaling-group"),
		Key: aws.String(key), Value: aws.String(value), PropagateAtLaunch: aws.Bool(instances)}
}

// Groups implements fleet.Pool: one list of groups and, where one of their instances
// is new and else every few looks, one of the fleet's instances. An instance that
// EC2 does not show yet is not there yet.
func (p *Pool) Groups(ctx context.Context, name string) ([]fleet.Group, error) {
	if !fleetRE.MatchString(name) {
		return nil, fmt.Errorf("fleet name %q is not one", name)
	}
	if err := p.connect(ctx); err != nil {
		return nil, err
	}
	all, err := p.groups(ctx, name)
	if err != nil {
		return nil, err
	}
	out, err := p.orphans(ctx, name, all)
	if err != nil || len(all) == 0 {
		return out, err
	}
	machines, err := p.known(ctx, name, all)
	if err != nil {
		return nil, err
	}
	for _, g := range all {
		one := fleet.Group{ID: g.id, Image: artifact.Digest(g.tags[TagDigest])}
		for _, i := range g.live() {
			m, ok := machines[aws.ToString(i.InstanceId)]
			if !ok {
				continue
			}
			one.Instances = append(one.Instances, m.instance(p.ports(g)))
		}
		sortInstances(one.Instances)
		out = append(out, one)
	}
	return out, nil
}

// End implements fleet.Pool: the group is that much smaller afterwards.
func (p *Pool) End(ctx context.Context, id fleet.GroupID, instance string) error {
	if err := p.check(id); err != nil {
		return err
	}
	if !strings.HasPrefix(instance, "i-") {
		return fmt.Errorf("instance %q is none of the group's", instance)
	}
	g, _, err := p.find(ctx, id)
	if err != nil || g == nil {
		return err
	}
	if !slices.ContainsFunc(g.live(), func(i astypes.Instance) bool { return aws.ToString(i.InstanceId) == instance }) {
		return p.left(ctx, id, instance)
	}
	if want := aws.ToInt32(g.DesiredCapacity) - 1; want < aws.ToInt32(g.MinSize) {
		if _, err := p.as.UpdateAutoScalingGroup(ctx, &autoscaling.UpdateAutoScalingGroupInput{
			AutoScalingGroupName: g.AutoScalingGroupName, MinSize: aws.Int32(max(0, want))}); err != nil {
			return fmt.Errorf("let group %s shrink: %w", g.name(), err)
		}
	}
	_, err = p.as.TerminateInstanceInAutoScalingGroup(ctx, &autoscaling.TerminateInstanceInAutoScalingGroupInput{
		InstanceId: &instance, ShouldDecrementDesiredCapacity: aws.Bool(true)})
	if err != nil && !gone(err) {
		return fmt.Errorf("end %s: %w", instance, err)
	}
	return p.left(ctx, id, instance)
}

// left waits until an instance is no longer in its group.
func (p *Pool) left(ctx context.Context, id fleet.GroupID, instance string) error {
	return p.wait(ctx, func() (string, error) {
		g, _, err := p.find(ctx, id)
		if err != nil || g == nil || !slices.ContainsFunc(g.Instances, func(i astypes.Instance) bool { return aws.ToString(i.InstanceId) == instance }) {
			return "", err
		}
		return fmt.Sprintf("%s to end", instance), nil
	})
}

func (p *Pool) check(id fleet.GroupID) error {
	if id.Fleet != p.name {
		return fmt.Errorf("group of fleet %q in the pool of %q", id.Fleet, p.name)
	}
	if id.Slot != fleet.Blue && id.Slot != fleet.Green {
		return fmt.Errorf("unknown slot %q", id.Slot)
	}
	if !fleetRE.MatchString(id.Deployment) {
		return fmt.Errorf("deployment id %q is not one", id.Deployment)
	}
	return nil
}

// code is what an API refused with, or "".
func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// gone says that what was to be removed, or changed, is not there.
func gone(err error) bool {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return false
	}
	text := strings.ToLower(api.ErrorMessage())
	return strings.HasSuffix(api.ErrorCode(), ".NotFound") || strings.HasSuffix(api.ErrorCode(), ".NotFoundException") ||
		api.ErrorCode() == "ValidationError" && (strings.Contains(text, "not found") || strings.Contains(text, "no managed instance"))
}

// maybe is for calls that not every endpoint has: those are not asked for long.
func maybe(o *autoscaling.Options) {
	o.Retryer = retry.AddWithMaxAttempts(o.Retryer, 2)
}

// unknown says that the endpoint does not have the call at all. One that answers
// with a page instead of the API's own form of an error does not.
func unknown(err error) bool {
	if err == nil {
		return false
	}
	var form *smithy.DeserializationError
	if errors.As(err, &form) {
		return true
	}
	switch code(err) {
	case "InvalidAction", "UnknownOperationException", "NotImplemented", "UnsupportedOperation", "InvalidRequest":
		return true
	}
	var status interface{ HTTPStatusCode() int }
	return errors.As(err, &status) && (status.HTTPStatusCode() == 404 || status.HTTPStatusCode() == 501)
}

func orElse[T comparable](v, other T) T {
	var zero T
	if v == zero {
		return other
	}
	return v
}
