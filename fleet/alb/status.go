package alb

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	"github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"

	"github.com/rebake/rebake/fleet"
)

// Status implements fleet.Router: one call for the rule, one for each target group,
// one now and then for the metrics, and one for instances whose address is not known.
func (r *Router) Status(ctx context.Context) (st fleet.RouterStatus, err error) {
	st = fleet.RouterStatus{Listen: r.cfg.balancer(), Weights: map[fleet.Slot]int{fleet.Blue: 0, fleet.Green: 0}, Members: map[fleet.Slot][]fleet.MemberStatus{}}
	err = r.locked(ctx, func() error {
		rule, err := r.live(ctx)
		if err != nil || rule == nil {
			return err
		}
		all := map[fleet.Slot][]types.TargetHealthDescription{}
		for _, s := range slots {
			if all[s], err = r.health(ctx, s); err != nil {
				return err
			}
			all[s] = slices.DeleteFunc(all[s], func(t types.TargetHealthDescription) bool { return Draining(t) && r.let[id(t)] })
		}
		if err := r.addresses(ctx, all); err != nil {
			return err
		}
		st.Up, st.Weights = true, r.split(rule)
		r.seen = st.Weights
		for _, s := range slots {
			for _, t := range all[s] {
				st.Members[s] = append(st.Members[s], r.member(t))
			}
			slices.SortFunc(st.Members[s], func(a, b fleet.MemberStatus) int { return strings.Compare(a.ID, b.ID) })
		}
		r.count(ctx, st.Members)
		return nil
	})
	return st, err
}

func (r *Router) member(t types.TargetHealthDescription) fleet.MemberStatus {
	m := fleet.MemberStatus{Member: fleet.Member{ID: id(t)}, Admin: "ready", Check: Words(t), Healthy: Healthy(t)}
	if host, ok := r.addrs.Load(m.ID); ok {
		m.Addr = net.JoinHostPort(host.(string), strconv.Itoa(int(aws.ToInt32(t.Target.Port))))
	}
	if Draining(t) {
		m.Admin, m.InFlight = "drain", 1 // how many nobody tells: there may be some
	}
	return m
}

func id(t types.TargetHealthDescription) string {
	if t.Target == nil {
		return ""
	}
	return aws.ToString(t.Target.Id)
}

// health is what the load balancer says of a slot's targets.
func (r *Router) health(ctx context.Context, s fleet.Slot) ([]types.TargetHealthDescription, error) {
	groups, err := r.targets(ctx)
	if err != nil {
		return nil, err
	}
	if groups[s].arn == "" {
		return nil, fmt.Errorf("unknown slot %q", s)
	}
	out, err := r.elb.DescribeTargetHealth(ctx, &elb.DescribeTargetHealthInput{TargetGroupArn: aws.String(groups[s].arn)})
	if err != nil {
		return nil, fmt.Errorf("the health of slot %s: %w", s, err)
	}
	return out.TargetHealthDescriptions, nil
}

// addresses looks up those that are not known yet. An instance tells by its tag
// which of its addresses the fleet speaks of.
func (r *Router) addresses(ctx context.Context, all map[fleet.Slot][]types.TargetHealthDescription) error {
	var ask []string
	for _, s := range slots {
		for _, t := range all[s] {
			if _, known := r.addrs.Load(id(t)); !known && strings.HasPrefix(id(t), "i-") {
				ask = append(ask, id(t))
			}
		}
	}
	for part := range slices.Chunk(ask, 200) { // the most values of a filter
		pages := ec2.NewDescribeInstancesPaginator(r.ec2, &ec2.DescribeInstancesInput{Filters: []ec2types.Filter{{Name: aws.String("instance-id"), Values: part}}})
		for pages.HasMorePages() {
			out, err := pages.NextPage(ctx)
			if err != nil {
				return fmt.Errorf("the addresses of the targets: %w", err)
			}
			for _, rsv := range out.Reservations {
				for _, i := range rsv.Instances {
					if host := addressOf(i); host != "" {
						r.addrs.Store(aws.ToString(i.InstanceId), host)
					}
				}
			}
		}
	}
	return nil
}

func addressOf(i ec2types.Instance) string {
	for _, t := range i.Tags {
		if aws.ToString(t.Key) != "rebake:address" {
			continue
		}
		switch aws.ToString(t.Value) {
		case "public":
			return aws.ToString(i.PublicIpAddress)
		case "ipv6":
			return aws.ToString(i.Ipv6Address)
		}
	}
	return aws.ToString(i.PrivateIpAddress)
}
