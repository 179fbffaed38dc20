package awsfake

import (
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	asgtypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
)

// refresh is an instance refresh. target is what its instances are launched by; the
// group's own specification changes only when it has succeeded.
type refresh struct {
	asgtypes.InstanceRefresh
	target   *asgtypes.LaunchTemplateSpecification
	back     bool // on the way back
	surge    int  // launched above the desired capacity
	old      map[string]bool
	total    int
	stop     int       // index of the checkpoint that it goes to
	pause    time.Time // a checkpoint's or the bake's end
	progress time.Time // when something last happened
	left     int
}

func (f *refresh) over() bool {
	switch f.Status {
	case asgtypes.InstanceRefreshStatusSuccessful, asgtypes.InstanceRefreshStatusFailed, asgtypes.InstanceRefreshStatusCancelled,
		asgtypes.InstanceRefreshStatusRollbackFailed, asgtypes.InstanceRefreshStatusRollbackSuccessful:
		return true
	}
	return false
}

// active is the refresh that goes on, or nil.
func (g *group) active() *refresh {
	if n := len(g.refreshes); n > 0 && !g.refreshes[n-1].over() {
		return g.refreshes[n-1]
	}
	return nil
}

func (r *region) startRefresh(in *autoscaling.StartInstanceRefreshInput) (*autoscaling.StartInstanceRefreshOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	if f := g.active(); f != nil {
		return nil, refuse("InstanceRefreshInProgress", "An Instance Refresh is already in progress and blocks the execution of this Instance Refresh.")
	}
	f := &refresh{target: g.own(), InstanceRefresh: asgtypes.InstanceRefresh{AutoScalingGroupName: g.AutoScalingGroupName, InstanceRefreshId: aws.String(r.cloud.id("refresh")), StartTime: aws.Time(r.cloud.now().UTC()),
		Status: asgtypes.InstanceRefreshStatusPending, Strategy: asgtypes.RefreshStrategyRolling, PercentageComplete: aws.Int32(0), DesiredConfiguration: in.DesiredConfiguration}}
	f.Preferences = &asgtypes.RefreshPreferences{MinHealthyPercentage: aws.Int32(90), SkipMatching: aws.Bool(false), AutoRollback: aws.Bool(false), ScaleInProtectedInstances: asgtypes.ScaleInProtectedInstancesWait, StandbyInstances: asgtypes.StandbyInstancesWait}
	if m := g.InstanceMaintenancePolicy; m != nil {
		copyAs(f.Preferences, m)
	}
	if in.Preferences != nil {
		copyAs(f.Preferences, in.Preferences)
	}
	if d := in.DesiredConfiguration; d != nil && d.LaunchTemplate != nil {
		if f.target, err = r.checkTemplate(d.LaunchTemplate); err != nil {
			return nil, err
		}
	}
	p := f.Preferences
	if aws.ToBool(p.AutoRollback) && in.DesiredConfiguration == nil {
		return nil, refuse("ValidationError", "AutoRollback needs a desired configuration")
	}
	if high := p.MaxHealthyPercentage; high != nil && (*high < 100 || *high > 200 || *high-*p.MinHealthyPercentage > 100) {
		return nil, refuse("ValidationError", "MaxHealthyPercentage must be from 100 to 200 and at most 100 above MinHealthyPercentage")
	}
	if n := len(p.CheckpointPercentages); n > 0 && p.CheckpointDelay == nil {
		p.CheckpointDelay = aws.Int32(3600)
	}
	r.aim(g, f)
	g.refreshes = append(g.refreshes, f)
	r.kick(g)
	return &autoscaling.StartInstanceRefreshOutput{InstanceRefreshId: f.InstanceRefreshId}, nil
}

// aim notes which instances are to be replaced by the target's.
func (r *region) aim(g *group, f *refresh) {
	version := "none"
	if f.target == nil { // a launch configuration
	} else if t, err := r.template(f.target.LaunchTemplateId, f.target.LaunchTemplateName); err == nil {
		if n, _, err := t.version(f.target.Version); err == nil {
			version = *r.show1(t, n).LaunchTemplateId + " " + itoa(n)
		}
	}
	f.old, f.surge, f.stop, f.pause, f.progress = map[string]bool{}, 0, 0, time.Time{}, time.Now()
	for _, m := range g.members {
		match := m.LaunchTemplate != nil && *m.LaunchTemplate.LaunchTemplateId+" "+m.version() == version
		skip := match && (f.back || aws.ToBool(f.Preferences.SkipMatching)) ||
			aws.ToBool(m.ProtectedFromScaleIn) && f.Preferences.ScaleInProtectedInstances == asgtypes.ScaleInProtectedInstancesIgnore
		if m.counts() && !skip {
			f.old[*m.InstanceId] = true
		}
	}
	f.total = len(f.old)
	f.InstancesToUpdate, f.left = aws.Int32(int32(f.total)), f.total
}

func (r *region) endRefresh(f *refresh, status asgtypes.InstanceRefreshStatus, why string) {
	f.Status, f.EndTime, f.surge = status, aws.Time(r.cloud.now().UTC()), 0
	if why != "" {
		f.StatusReason = &why
	}
}

// backOut turns a refresh round, or fails it when that cannot be.
func (r *region) backOut(g *group, f *refresh, why string) {
	if !aws.ToBool(f.Preferences.AutoRollback) || f.back {
		status := asgtypes.InstanceRefreshStatusFailed
		if f.back {
			status = asgtypes.InstanceRefreshStatusRollbackFailed
		}
		r.endRefresh(f, status, why)
		return
	}
	r.rollBack(g, f, why)
}

func (r *region) rollBack(g *group, f *refresh, why string) {
	f.back, f.Status, f.target, f.StatusReason = true, asgtypes.InstanceRefreshStatusRollbackInProgress, g.own(), &why
	r.aim(g, f)
	f.RollbackDetails = &asgtypes.RollbackDetails{RollbackReason: &why, RollbackStartTime: aws.Time(r.cloud.now().UTC()), InstancesToUpdateOnRollback: f.InstancesToUpdate, PercentageCompleteOnRollback: f.PercentageComplete}
	r.kick(g)
}

// ready tells whether a new instance counts as healthy: in service, in the load
// balancer's eyes too, for the warm-up.
func (r *region) ready(g *group, f *refresh, m *member) bool {
	if m.LifecycleState != asgtypes.LifecycleStateInService || *m.HealthStatus != "Healthy" {
		return false
	}
	warm := aws.ToInt32(f.Preferences.InstanceWarmup)
	if f.Preferences.InstanceWarmup == nil {
		warm = aws.ToInt32(g.DefaultInstanceWarmup)
		if g.DefaultInstanceWarmup == nil {
			warm = aws.ToInt32(g.HealthCheckGracePeriod)
		}
	}
	if time.Since(m.since) < r.cloud.wall(time.Duration(warm)*time.Second) {
		return false
	}
	for _, arn := range g.TargetGroupARNs {
		tg, ok := r.targetGroups.get(arn)
		if !ok || g.suspended("AddToLoadBalancer") {
			continue
		}
		t, ok := tg.targets.get(targetKey(*m.InstanceId, aws.ToInt32(tg.Port)))
		if !ok {
			return false
		}
		if s := r.health(tg, t).State; s != elbtypes.TargetHealthStateEnumHealthy && s != elbtypes.TargetHealthStateEnumUnused {
			return false
		}
	}
	return true
}

// refreshStep brings the group's refresh a step further.
func (r *region) refreshStep(g *group) {
	f := g.active()
	if f == nil || g.suspended("InstanceRefresh") {
		return
	}
	var old, fresh, protected []*member
	healthy, warming := 0, 0
	for _, m := range g.members {
		switch {
		case !m.counts():
		case f.old[*m.InstanceId]:
			if m.LifecycleState == asgtypes.LifecycleStateInService {
				healthy++
			}
			if aws.ToBool(m.ProtectedFromScaleIn) && f.Preferences.ScaleInProtectedInstances == asgtypes.ScaleInProtectedInstancesWait {
				protected = append(protected, m)
			} else {
				old = append(old, m)
			}
		case r.ready(g, f, m):
			healthy++
			fresh = append(fresh, m)
		default:
			warming++
			fresh = append(fresh, m)
		}
	}
	left := len(old) + len(protected)
	if done := left + warming; done != f.left {
		f.left, f.progress = done, time.Now()
	}
	if f.total > 0 {
		f.PercentageComplete = aws.Int32(int32(max(0, 100*(f.total-left-warming)/f.total)))
		f.InstancesToUpdate = aws.Int32(int32(left + warming))
	}
	if r.refreshState(g, f) {
		return
	}
	if f.over() || f.Status == asgtypes.InstanceRefreshStatusCancelling && warming == 0 {
		if f.Status == asgtypes.InstanceRefreshStatusCancelling {
			r.endRefresh(f, asgtypes.InstanceRefreshStatusCancelled, "Cancelled due to user request.")
		}
		return
	}
	if f.Status == asgtypes.InstanceRefreshStatusCancelling {
		f.surge = 0
		return
	}
	if left == 0 && warming == 0 && len(fresh) >= int(*g.DesiredCapacity) {
		r.arrive(g, f)
		return
	}
	r.replace(g, f, old, left, healthy, warming)
}

// refreshState is what a refresh meets from outside: alarms, no progress for an
// hour. True is that it has ended, or turned round, by that.
func (r *region) refreshState(g *group, f *refresh) bool {
	if f.Status == asgtypes.InstanceRefreshStatusPending {
		f.Status = asgtypes.InstanceRefreshStatusInProgress
	}
	if a := f.Preferences.AlarmSpecification; a != nil && !f.back {
		for _, name := range a.Alarms {
			if al, ok := r.alarms.get(name); ok && al.state == "ALARM" {
				r.backOut(g, f, "The alarm "+name+" went into ALARM")
				return true
			}
		}
	}
	if f.Status != asgtypes.InstanceRefreshStatusBaking && f.pause.IsZero() && time.Since(f.progress) > r.cloud.wall(r.cloud.Delays.Stall) {
		r.backOut(g, f, "No progress for one hour")
		return true
	}
	return false
}

// arrive bakes, then ends a refresh that has replaced everything.
func (r *region) arrive(g *group, f *refresh) {
	f.surge, f.PercentageComplete = 0, aws.Int32(100)
	if f.back {
		r.endRefresh(f, asgtypes.InstanceRefreshStatusRollbackSuccessful, "")
		return
	}
	if bake := aws.ToInt32(f.Preferences.BakeTime); bake > 0 && f.Status != asgtypes.InstanceRefreshStatusBaking {
		f.Status, f.pause = asgtypes.InstanceRefreshStatusBaking, time.Now().Add(r.cloud.wall(time.Duration(bake)*time.Second))
	}
	if f.Status == asgtypes.InstanceRefreshStatusBaking && time.Now().Before(f.pause) {
		return
	}
	if d := f.DesiredConfiguration; d != nil {
		if d.LaunchTemplate != nil {
			g.LaunchTemplate, g.MixedInstancesPolicy = f.target, nil
		} else if d.MixedInstancesPolicy != nil {
			g.MixedInstancesPolicy, g.LaunchTemplate = d.MixedInstancesPolicy, nil
		}
	}
	r.endRefresh(f, asgtypes.InstanceRefreshStatusSuccessful, "")
}

// replace ends as many old instances as the bounds allow, and launches above the
// desired capacity when the maximum is given.
func (r *region) replace(g *group, f *refresh, old []*member, left, healthy, warming int) {
	n := int(*g.DesiredCapacity)
	floor := (n*int(*f.Preferences.MinHealthyPercentage) + 99) / 100
	may := healthy - floor
	if high := f.Preferences.MaxHealthyPercentage; high != nil {
		f.surge = min(max(1, n*int(*high)/100-n), left)
	} else if may <= 0 && warming == 0 && healthy >= n {
		may = 1
	}
	if list := f.Preferences.CheckpointPercentages; len(list) > 0 && !f.back {
		until := (f.total*int(list[min(f.stop, len(list)-1)]) + 99) / 100
		may = min(may, until-(f.total-left))
		if f.total-left >= until {
			f.surge = 0
			if !r.checkpoint(f, warming, list) {
				return
			}
		}
	}
	may = max(0, min(may, len(old)))
	f.surge = min(f.surge, left-may)
	for _, m := range old[:may] {
		r.retire(g, m, "an instance refresh replaces it")
	}
}

// checkpoint waits at one; true is that it was passed. A last checkpoint below 100
// is where a refresh ends.
func (r *region) checkpoint(f *refresh, warming int, list []int32) bool {
	switch {
	case warming > 0:
	case f.pause.IsZero():
		f.pause = time.Now().Add(r.cloud.wall(time.Duration(*f.Preferences.CheckpointDelay) * time.Second))
		f.StatusReason = aws.String("Waiting at a checkpoint")
	case time.Now().After(f.pause):
		f.pause, f.StatusReason, f.progress = time.Time{}, nil, time.Now()
		if f.stop++; f.stop >= len(list) && list[len(list)-1] < 100 {
			r.endRefresh(f, asgtypes.InstanceRefreshStatusSuccessful, "The last checkpoint was reached")
		}
		return true
	}
	return false
}

func (r *region) describeRefreshes(in *autoscaling.DescribeInstanceRefreshesInput) (*autoscaling.DescribeInstanceRefreshesOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	out := &autoscaling.DescribeInstanceRefreshesOutput{InstanceRefreshes: []asgtypes.InstanceRefresh{}}
	for _, f := range slices.Backward(g.refreshes) {
		if len(in.InstanceRefreshIds) == 0 || slices.Contains(in.InstanceRefreshIds, *f.InstanceRefreshId) {
			out.InstanceRefreshes = append(out.InstanceRefreshes, f.InstanceRefresh)
		}
	}
	out.InstanceRefreshes, out.NextToken, err = page(out.InstanceRefreshes, in.MaxRecords, in.NextToken, 100)
	return out, err
}

func (r *region) cancelRefresh(in *autoscaling.CancelInstanceRefreshInput) (*autoscaling.CancelInstanceRefreshOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	f := g.active()
	if f == nil {
		return nil, refuse("ActiveInstanceRefreshNotFound", "No in progress or pending Instance Refresh found for Auto Scaling group %s", *in.AutoScalingGroupName)
	}
	f.Status, f.surge = asgtypes.InstanceRefreshStatusCancelling, 0
	if in.WaitForTransitioningInstances != nil && !*in.WaitForTransitioningInstances {
		r.endRefresh(f, asgtypes.InstanceRefreshStatusCancelled, "Cancelled due to user request.")
	}
	r.kick(g)
	return &autoscaling.CancelInstanceRefreshOutput{InstanceRefreshId: f.InstanceRefreshId}, nil
}

func (r *region) rollbackRefresh(in *autoscaling.RollbackInstanceRefreshInput) (*autoscaling.RollbackInstanceRefreshOutput, error) {
	g, err := r.group(in.AutoScalingGroupName)
	if err != nil {
		return nil, err
	}
	f := g.active()
	switch {
	case f == nil:
		return nil, refuse("ActiveInstanceRefreshNotFound", "No in progress or pending Instance Refresh found for Auto Scaling group %s", aws.ToString(in.AutoScalingGroupName))
	case f.DesiredConfiguration == nil:
		return nil, refuse("IrreversibleInstanceRefresh", "The instance refresh has no desired configuration")
	case !f.back:
		r.rollBack(g, f, "Rollback due to user request.")
	}
	return &autoscaling.RollbackInstanceRefreshOutput{InstanceRefreshId: f.InstanceRefreshId}, nil
}
