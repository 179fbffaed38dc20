package alb

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	cwtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"

	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/event"
)

const (
	period = time.Minute     // of ELB's metrics
	late   = 5 * time.Minute // how long a minute's figures may still rise
	window = 6 * time.Hour   // counters begin anew so often, at the same times for everybody
)

// minute is what a target group did in one.
type minute struct {
	requests, errors int64
	latency          time.Duration // mean
}

// metrics are CloudWatch's figures of the two target groups since the window began.
type metrics struct {
	asked, from time.Time
	minutes     map[fleet.Slot]map[time.Time]minute
	warned      bool
}

// queries are the three metrics of each target group: one call for all.
var queries = []struct{ id, name, stat string }{
	{"req", "RequestCount", "Sum"}, {"err", "HTTPCode_Target_5XX_Count", "Sum"}, {"lat", "TargetResponseTime", "Average"},
}

// count fills in what the members did. CloudWatch knows it of a slot and not of
// a member, so each has its part of the slot's: their sums are right, and that is
// what gates look at. If CloudWatch does not answer the counters stand still,
// which to a gate is that too little is known.
func (r *Router) count(ctx context.Context, members map[fleet.Slot][]fleet.MemberStatus) {
	if now := time.Now(); now.Sub(r.metrics.asked) >= r.o.Ask {
		r.metrics.asked = now
		if err := r.ask(ctx, now); err != nil && !r.metrics.warned && ctx.Err() == nil {
			r.metrics.warned = true
			event.Warnf(ctx, "CloudWatch does not tell what the target groups did: %v", err)
		}
	}
	for s, ms := range members {
		var there []time.Time
		for at := range r.metrics.minutes[s] {
			there = append(there, at)
		}
		slices.SortFunc(there, time.Time.Compare)
		var sum minute
		n := int64(len(ms))
		for _, at := range there {
			m := r.metrics.minutes[s][at]
			was := sum
			sum.requests, sum.errors = sum.requests+m.requests, sum.errors+m.errors
			for i := range ms {
				part := share(sum.requests, n, i) - share(was.requests, n, i)
				ms[i].Latency = fleet.Mean(ms[i].Latency, share(was.requests, n, i), m.latency, part)
			}
		}
		for i := range ms {
			ms[i].Requests, ms[i].Errors5x = share(sum.requests, n, i), min(share(sum.errors, n, i), share(sum.requests, n, i))
		}
	}
}

// share is the i-th of n parts: they add up to all, and none falls as all rises.
func share(all, n int64, i int) int64 { return (all + n - 1 - int64(i)) / n }

// ask reads the minutes that may have changed.
func (r *Router) ask(ctx context.Context, now time.Time) error {
	from := now.Truncate(window)
	if !from.Equal(r.metrics.from) {
		r.metrics.from, r.metrics.minutes = from, map[fleet.Slot]map[time.Time]minute{fleet.Blue: {}, fleet.Green: {}}
	} else if recent := now.Add(-late - period).Truncate(period); recent.After(from) {
		from = recent
	}
	in := &cloudwatch.GetMetricDataInput{StartTime: &from, EndTime: aws.Time(now.Add(period).Truncate(period)), ScanBy: cwtypes.ScanByTimestampAscending}
	if len(r.metrics.minutes[fleet.Blue])+len(r.metrics.minutes[fleet.Green]) == 0 {
		in.StartTime = &r.metrics.from
	}
	for _, s := range slots {
		group := r.groups[s].arn[strings.Index(r.groups[s].arn, ":targetgroup/")+1:]
		for _, q := range queries {
			in.MetricDataQueries = append(in.MetricDataQueries, cwtypes.MetricDataQuery{Id: aws.String(q.id + "_" + string(s)), MetricStat: &cwtypes.MetricStat{
				Period: aws.Int32(int32(period.Seconds())), Stat: aws.String(q.stat),
				Metric: &cwtypes.Metric{Namespace: aws.String("AWS/ApplicationELB"), MetricName: aws.String(q.name), Dimensions: []cwtypes.Dimension{
					{Name: aws.String("TargetGroup"), Value: aws.String(group)}, {Name: aws.String("LoadBalancer"), Value: aws.String(r.cfg.balancer())}}}}})
		}
	}
	pages := cloudwatch.NewGetMetricDataPaginator(r.cw, in)
	for pages.HasMorePages() {
		out, err := pages.NextPage(ctx)
		if err != nil {
			return err
		}
		for _, res := range out.MetricDataResults {
			kind, slot, _ := strings.Cut(aws.ToString(res.Id), "_")
			of := r.metrics.minutes[fleet.Slot(slot)]
			for i, at := range res.Timestamps {
				if of == nil || i >= len(res.Values) || at.Before(r.metrics.from) {
					continue
				}
				m := of[at]
				switch v := res.Values[i]; kind {
				case "req":
					m.requests = max(m.requests, int64(v))
				case "err":
					m.errors = max(m.errors, int64(v))
				case "lat":
					m.latency = time.Duration(v * float64(time.Second))
				}
				of[at] = m
			}
		}
	}
	return nil
}

// Alarms asks CloudWatch for alarms: one that is in ALARM fails, one that knows
// too little, or that is not there, is no answer that a deployment may go on by.
func Alarms(ctx context.Context, region string, names []string) (fleet.Verdict, string, error) {
	cfg, err := ami.Config(ctx, region)
	if err != nil {
		return fleet.Error, "", err
	}
	cw := cloudwatch.NewFromConfig(cfg)
	is := map[string]string{} // state and why
	for part := range slices.Chunk(names, 100) {
		out, err := cw.DescribeAlarms(ctx, &cloudwatch.DescribeAlarmsInput{AlarmNames: part, MaxRecords: aws.Int32(100),
			AlarmTypes: []cwtypes.AlarmType{cwtypes.AlarmTypeMetricAlarm, cwtypes.AlarmTypeCompositeAlarm}})
		if err != nil {
			return fleet.Error, "", fmt.Errorf("ask for alarms: %w", err)
		}
		for _, a := range out.MetricAlarms {
			is[aws.ToString(a.AlarmName)] = string(a.StateValue) + " " + aws.ToString(a.StateReason)
		}
		for _, a := range out.CompositeAlarms {
			is[aws.ToString(a.AlarmName)] = string(a.StateValue) + " " + aws.ToString(a.StateReason)
		}
	}
	var bad, unsure []string
	for _, n := range names {
		state, why, _ := strings.Cut(is[n], " ")
		switch cwtypes.StateValue(state) {
		case cwtypes.StateValueOk:
		case cwtypes.StateValueAlarm:
			bad = append(bad, strings.TrimSpace(n+" is in ALARM: "+why))
		case "":
			return fleet.Error, "", fmt.Errorf("there is no alarm %s in %s", n, cfg.Region)
		default:
			unsure = append(unsure, n+" has too little data")
		}
	}
	switch {
	case len(bad) > 0:
		return fleet.Fail, strings.Join(bad, "; "), nil
	case len(unsure) > 0:
		return fleet.Inconclusive, strings.Join(unsure, "; "), nil
	}
	return fleet.Pass, fmt.Sprintf("%d alarms are OK", len(names)), nil
}
