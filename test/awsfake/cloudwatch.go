package awsfake

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	cwtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"
)

var cloudwatchActions = map[string]action{
	"GetMetricData": on((*region).getMetricData), "PutMetricData": on((*region).putMetricData), "DescribeAlarms": on((*region).describeAlarms),
	"PutMetricAlarm": on((*region).putAlarm), "DeleteAlarms": on((*region).deleteAlarms), "SetAlarmState": on((*region).setAlarmState),
}

// sample is one request through a load balancer, or one value that was put.
type sample struct {
	at              time.Time // by the cloud's clock
	seen            time.Time // by this process's
	group, balancer string    // ARNs
	code, elb       int       // of the target, of the load balancer itself
	seconds         float64

	space, name, dims string // of a value that was put
	value             float64
}

func (r *region) record(s sample) {
	s.at, s.seen = r.cloud.now(), time.Now()
	if len(r.metrics) >= 1<<20 {
		r.metrics = slices.Clone(r.metrics[1<<19:])
	}
	r.metrics = append(r.metrics, s)
}

// values of a metric that a sample has.
func (s *sample) of(space, name, dims string) (float64, bool) {
	if s.space != "" || space != "AWS/ApplicationELB" {
		return s.value, s.space == space && s.name == name && s.dims == dims
	}
	for d := range strings.SplitSeq(dims, ",") {
		key, value, _ := strings.Cut(d, "=")
		if key == "TargetGroup" && !strings.HasSuffix(s.group, ":"+value) || key == "LoadBalancer" && !strings.HasSuffix(s.balancer, ":loadbalancer/"+value) {
			return 0, false
		}
	}
	class := func(prefix string, code int) bool {
		return code > 0 && name == fmt.Sprintf("HTTPCode_%s_%dXX_Count", prefix, code/100)
	}
	switch {
	case name == "RequestCount":
		return 1, s.code > 0 || s.elb > 0
	case name == "TargetResponseTime":
		return s.seconds, s.code > 0
	case name == "TargetConnectionErrorCount":
		return 1, s.elb == 502
	case name == "HTTPCode_ELB_"+strconv.Itoa(s.elb)+"_Count":
		return 1, s.elb > 0
	}
	return 1, class("Target", s.code) || class("ELB", s.elb)
}

func dimensions(list []cwtypes.Dimension) string {
	var out []string
	for _, d := range list {
		out = append(out, aws.ToString(d.Name)+"="+aws.ToString(d.Value))
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

// getMetricData tells what happened until Delays.Metric ago, in buckets of the
// period. A bucket without a sample is left out, as CloudWatch does.
func (r *region) getMetricData(in *cloudwatch.GetMetricDataInput) (*cloudwatch.GetMetricDataOutput, error) {
	if in.StartTime == nil || in.EndTime == nil || !in.StartTime.Before(*in.EndTime) {
		return nil, refuse("ValidationError", "The parameter StartTime must be less than the parameter EndTime.")
	}
	if len(in.MetricDataQueries) > 500 {
		return nil, refuse("ValidationError", "At most 500 queries")
	}
	out := &cloudwatch.GetMetricDataOutput{MetricDataResults: []cwtypes.MetricDataResult{}}
	for _, q := range in.MetricDataQueries {
		if q.MetricStat == nil {
			return nil, refuse("ValidationError", "the fake has no metric math: %s", aws.ToString(q.Expression))
		}
		m := q.MetricStat
		period := int64(aws.ToInt32(m.Period))
		if period < 1 {
			return nil, refuse("ValidationError", "A period is needed")
		}
		buckets := map[int64][]float64{}
		dims := dimensions(m.Metric.Dimensions)
		for i := range r.metrics {
			s := &r.metrics[i]
			if time.Since(s.seen) < r.cloud.wall(r.cloud.Delays.Metric) || s.at.Before(*in.StartTime) || !s.at.Before(*in.EndTime) {
				continue
			}
			if v, ok := s.of(aws.ToString(m.Metric.Namespace), aws.ToString(m.Metric.MetricName), dims); ok {
				b := s.at.Unix() / period * period
				buckets[b] = append(buckets[b], v)
			}
		}
		r.hosts(buckets, aws.ToString(m.Metric.MetricName), dims, in.EndTime.Unix()/period*period)
		res := cwtypes.MetricDataResult{Id: q.Id, Label: q.Label, StatusCode: cwtypes.StatusCodeComplete, Timestamps: []time.Time{}, Values: []float64{}}
		if res.Label == nil {
			res.Label = m.Metric.MetricName
		}
		var order []int64
		for b := range buckets {
			order = append(order, b)
		}
		slices.Sort(order)
		if in.ScanBy != cwtypes.ScanByTimestampAscending {
			slices.Reverse(order)
		}
		for _, b := range order {
			v, err := statistic(aws.ToString(m.Stat), buckets[b])
			if err != nil {
				return nil, err
			}
			res.Timestamps, res.Values = append(res.Timestamps, time.Unix(b, 0).UTC()), append(res.Values, v)
		}
		out.MetricDataResults = append(out.MetricDataResults, res)
	}
	return out, nil
}

// hosts adds how many targets are healthy now to the last bucket.
func (r *region) hosts(buckets map[int64][]float64, name, dims string, last int64) {
	if name != "HealthyHostCount" && name != "UnHealthyHostCount" {
		return
	}
	for _, g := range r.targetGroups.all() {
		tail := (*g.TargetGroupArn)[strings.LastIndex(*g.TargetGroupArn, ":")+1:]
		if !strings.Contains(dims, "TargetGroup="+tail) {
			continue
		}
		n := 0.0
		for _, t := range g.targets.all() {
			if s := r.health(g, t).State; s == "healthy" && name == "HealthyHostCount" || s == "unhealthy" && name == "UnHealthyHostCount" {
				n++
			}
		}
		buckets[last] = append(buckets[last], n)
	}
}

func statistic(stat string, v []float64) (float64, error) {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	switch stat {
	case "Sum":
		return sum, nil
	case "Average":
		return sum / float64(len(v)), nil
	case "SampleCount":
		return float64(len(v)), nil
	case "Maximum":
		return slices.Max(v), nil
	case "Minimum":
		return slices.Min(v), nil
	}
	p, err := strconv.ParseFloat(strings.TrimPrefix(stat, "p"), 64)
	if err != nil || p < 0 || p > 100 {
		return 0, refuse("ValidationError", "The value %s for parameter Stat is not supported", stat)
	}
	slices.Sort(v)
	return v[min(len(v)-1, int(math.Ceil(p/100*float64(len(v))))-1+boolInt(p == 0))], nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (r *region) putMetricData(in *cloudwatch.PutMetricDataInput) (*cloudwatch.PutMetricDataOutput, error) {
	for _, d := range in.MetricData {
		s := sample{space: aws.ToString(in.Namespace), name: aws.ToString(d.MetricName), dims: dimensions(d.Dimensions)}
		for _, v := range d.Values {
			s.value = v
			r.record(s)
		}
		if d.Value != nil {
			s.value = *d.Value
			r.record(s)
		}
	}
	return &cloudwatch.PutMetricDataOutput{}, nil
}

type alarm struct {
	cwtypes.MetricAlarm
	state string
}

// SetAlarm makes an alarm or changes its state: OK, ALARM or INSUFFICIENT_DATA.
func (c *Cloud) SetAlarm(regionName, name, state, reason string) {
	c.in(regionName, func(r *region) { r.alarmed(name, state, reason) })
}

func (r *region) alarmed(name, state, reason string) {
	a, ok := r.alarms.get(name)
	if !ok {
		a = &alarm{MetricAlarm: cwtypes.MetricAlarm{AlarmName: &name, AlarmArn: aws.String(r.arn("cloudwatch", "alarm:"+name)), ActionsEnabled: aws.Bool(true)}}
		r.alarms.put(name, a)
	}
	a.state, a.StateValue, a.StateReason, a.StateUpdatedTimestamp = state, cwtypes.StateValue(state), &reason, aws.Time(r.cloud.now().UTC())
}

func (r *region) putAlarm(in *cloudwatch.PutMetricAlarmInput) (*cloudwatch.PutMetricAlarmOutput, error) {
	if _, ok := r.alarms.get(aws.ToString(in.AlarmName)); !ok {
		r.alarmed(*in.AlarmName, "INSUFFICIENT_DATA", "Unchecked: Initial alarm creation")
	}
	a, _ := r.alarms.get(*in.AlarmName)
	copyAs(&a.MetricAlarm, in)
	return &cloudwatch.PutMetricAlarmOutput{}, nil
}

func (r *region) deleteAlarms(in *cloudwatch.DeleteAlarmsInput) (*cloudwatch.DeleteAlarmsOutput, error) {
	for _, n := range in.AlarmNames {
		if _, ok := r.alarms.get(n); !ok {
			return nil, refuse("ResourceNotFound", "Alarm %s does not exist", n)
		}
		r.alarms.del(n)
	}
	return &cloudwatch.DeleteAlarmsOutput{}, nil
}

func (r *region) setAlarmState(in *cloudwatch.SetAlarmStateInput) (*cloudwatch.SetAlarmStateOutput, error) {
	if _, ok := r.alarms.get(aws.ToString(in.AlarmName)); !ok {
		return nil, refuse("ResourceNotFound", "Alarm %s does not exist", aws.ToString(in.AlarmName))
	}
	r.alarmed(*in.AlarmName, string(in.StateValue), aws.ToString(in.StateReason))
	return &cloudwatch.SetAlarmStateOutput{}, nil
}

func (r *region) describeAlarms(in *cloudwatch.DescribeAlarmsInput) (*cloudwatch.DescribeAlarmsOutput, error) {
	out := &cloudwatch.DescribeAlarmsOutput{MetricAlarms: []cwtypes.MetricAlarm{}}
	for _, a := range r.alarms.all() {
		if (len(in.AlarmNames) == 0 || slices.Contains(in.AlarmNames, *a.AlarmName)) && strings.HasPrefix(*a.AlarmName, aws.ToString(in.AlarmNamePrefix)) && (in.StateValue == "" || in.StateValue == a.StateValue) {
			out.MetricAlarms = append(out.MetricAlarms, a.MetricAlarm)
		}
	}
	var err error
	size := in.MaxRecords
	if size == nil {
		size = aws.Int32(50)
	}
	out.MetricAlarms, out.NextToken, err = page(out.MetricAlarms, size, in.NextToken, 100)
	return out, err
}
