package awsfake_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	asgtypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/rebake/rebake/test/awsfake"
)

func (r *rig) refresh(name string) asgtypes.InstanceRefresh {
	r.t.Helper()
	return must(r.asg.DescribeInstanceRefreshes(r.ctx, &autoscaling.DescribeInstanceRefreshesInput{AutoScalingGroupName: &name}))(r.t).InstanceRefreshes[0]
}

func (r *rig) start(name, template string, p asgtypes.RefreshPreferences) string {
	r.t.Helper()
	return *must(r.asg.StartInstanceRefresh(r.ctx, &autoscaling.StartInstanceRefreshInput{AutoScalingGroupName: &name, Preferences: &p,
		DesiredConfiguration: &asgtypes.DesiredConfiguration{LaunchTemplate: &asgtypes.LaunchTemplateSpecification{LaunchTemplateId: &template, Version: aws.String("2")}}}))(r.t).InstanceRefreshId
}

func (r *rig) ends(name string, want asgtypes.InstanceRefreshStatus) asgtypes.InstanceRefresh {
	r.t.Helper()
	eventually(r.t, "the refresh ends", func() bool { return r.refresh(name).EndTime != nil })
	f := r.refresh(name)
	if f.Status != want {
		r.t.Fatalf("%s (%s), want %s", f.Status, aws.ToString(f.StatusReason), want)
	}
	return f
}

// versions counts the instances of a group by the version they were launched from.
func (r *rig) versions(name string) map[string]int {
	r.t.Helper()
	n := map[string]int{}
	for _, i := range r.group(name).Instances {
		n[*i.LaunchTemplate.Version]++
	}
	return n
}

// newer waits until n of a group's instances, all in service, are of version 2.
func (r *rig) newer(name string, n, of int) {
	r.t.Helper()
	eventually(r.t, "some are new", func() bool {
		news := 0
		list := r.group(name).Instances
		for _, i := range list {
			if i.LifecycleState != asgtypes.LifecycleStateInService {
				return false
			}
			if *i.LaunchTemplate.Version == "2" {
				news++
			}
		}
		return news == n && len(list) == of
	})
}

func TestARefreshReplacesWithinItsBounds(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	one, two := images(c)
	lt := r.template("web", one, two)
	_, _, groups := r.balance(map[string]int32{"blue": 1})
	r.fleet("web", lt, "1", 5, groups["blue"])
	eventually(t, "healthy", func() bool { return r.health(groups["blue"])["healthy"] == 5 })
	var least atomic.Int32
	least.Store(100)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			default:
				least.Store(min(least.Load(), int32(r.health(groups["blue"])["healthy"])))
			}
		}
	}()
	r.start("web", lt, asgtypes.RefreshPreferences{MinHealthyPercentage: aws.Int32(80), InstanceWarmup: aws.Int32(0), BakeTime: aws.Int32(30)})
	_, err := r.asg.StartInstanceRefresh(r.ctx, &autoscaling.StartInstanceRefreshInput{AutoScalingGroupName: aws.String("web")})
	wantCode(t, err, "InstanceRefreshInProgress")
	if v := *r.group("web").LaunchTemplate.Version; v != "1" {
		t.Errorf("the group says version %s before the refresh has ended", v)
	}
	f := r.ends("web", asgtypes.InstanceRefreshStatusSuccessful)
	close(done)
	if *f.PercentageComplete != 100 || *r.group("web").LaunchTemplate.Version != "2" {
		t.Errorf("%+v", f)
	}
	r.settled("web", 5)
	if v := r.versions("web"); v["2"] != 5 {
		t.Errorf("%v", v)
	}
	if least.Load() < 4 {
		t.Errorf("only %d of 5 were healthy at a time", least.Load())
	}
}

func TestARefreshLaunchesFirst(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	one, two := images(c)
	lt := r.template("web", one, two)
	r.fleet("web", lt, "1", 2)
	r.start("web", lt, asgtypes.RefreshPreferences{MinHealthyPercentage: aws.Int32(100), MaxHealthyPercentage: aws.Int32(150), InstanceWarmup: aws.Int32(0)})
	least := 2
	for r.refresh("web").EndTime == nil {
		n := 0
		for _, i := range r.group("web").Instances {
			if i.LifecycleState == asgtypes.LifecycleStateInService {
				n++
			}
		}
		least = min(least, n)
	}
	r.ends("web", asgtypes.InstanceRefreshStatusSuccessful)
	r.settled("web", 2)
	if v := r.versions("web"); v["2"] != 2 || least < 2 {
		t.Errorf("%v, at least %d in service", v, least)
	}
}

func TestARefreshWaitsAtACheckpointAndScalesOutWithTheNew(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	one, two := images(c)
	lt := r.template("web", one, two)
	r.fleet("web", lt, "1", 4)
	r.start("web", lt, asgtypes.RefreshPreferences{MinHealthyPercentage: aws.Int32(50), InstanceWarmup: aws.Int32(0), CheckpointPercentages: []int32{25, 100}, CheckpointDelay: aws.Int32(172800)})
	r.newer("web", 1, 4)
	time.Sleep(50 * time.Millisecond) // many looks of Auto Scaling
	if v := r.versions("web"); v["2"] != 1 {
		t.Errorf("it did not wait: %v", v)
	}
	must(r.asg.SetDesiredCapacity(r.ctx, &autoscaling.SetDesiredCapacityInput{AutoScalingGroupName: aws.String("web"), DesiredCapacity: aws.Int32(6)}))(t)
	r.settled("web", 6)
	if v := r.versions("web"); v["1"] != 3 || v["2"] != 3 {
		t.Errorf("scale-out in a refresh: %v", v)
	}
	must(r.asg.RollbackInstanceRefresh(r.ctx, &autoscaling.RollbackInstanceRefreshInput{AutoScalingGroupName: aws.String("web")}))(t)
	f := r.ends("web", asgtypes.InstanceRefreshStatusRollbackSuccessful)
	r.settled("web", 6)
	if v := r.versions("web"); v["1"] != 6 || f.RollbackDetails == nil || *r.group("web").LaunchTemplate.Version != "1" {
		t.Errorf("%v %+v", v, f)
	}
}

func TestAnAlarmRollsBack(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	one, two := images(c)
	lt := r.template("web", one, two)
	r.fleet("web", lt, "1", 3)
	c.SetAlarm(region, "web-5xx", "OK", "")
	r.start("web", lt, asgtypes.RefreshPreferences{AutoRollback: aws.Bool(true), InstanceWarmup: aws.Int32(0), BakeTime: aws.Int32(172800), AlarmSpecification: &asgtypes.AlarmSpecification{Alarms: []string{"web-5xx"}}})
	eventually(t, "it bakes", func() bool { return r.refresh("web").Status == asgtypes.InstanceRefreshStatusBaking })
	c.SetAlarm(region, "web-5xx", "ALARM", "too many")
	r.ends("web", asgtypes.InstanceRefreshStatusRollbackSuccessful)
	r.settled("web", 3)
	if v := r.versions("web"); v["1"] != 3 {
		t.Errorf("%v", v)
	}
}

func TestARefreshIsCancelled(t *testing.T) {
	c := awsfake.Start(t)
	r := clients(t)
	one, two := images(c)
	lt := r.template("web", one, two)
	r.fleet("web", lt, "1", 2)
	_, err := r.asg.CancelInstanceRefresh(r.ctx, &autoscaling.CancelInstanceRefreshInput{AutoScalingGroupName: aws.String("web")})
	wantCode(t, err, "ActiveInstanceRefreshNotFound")
	r.start("web", lt, asgtypes.RefreshPreferences{MinHealthyPercentage: aws.Int32(50), InstanceWarmup: aws.Int32(0), CheckpointPercentages: []int32{50, 100}, CheckpointDelay: aws.Int32(172800)})
	r.newer("web", 1, 2)
	must(r.asg.CancelInstanceRefresh(r.ctx, &autoscaling.CancelInstanceRefreshInput{AutoScalingGroupName: aws.String("web")}))(t)
	r.ends("web", asgtypes.InstanceRefreshStatusCancelled)
	if v := r.versions("web"); v["1"] != 1 || v["2"] != 1 || *r.group("web").LaunchTemplate.Version != "1" {
		t.Errorf("what was replaced stays: %v", v)
	}
}
