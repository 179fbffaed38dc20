//go:build e2e

package awsfleet_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/asg"
	"github.com/rebake/rebake/test/conformance"
)

func TestInPlace(t *testing.T) {
	conformance.InPlace(t, func(t *testing.T) conformance.InPlaceWorld {
		w := newWorld(t, true, "1", "2", "3")
		w.somebodys(4)
		g, err := asg.NewInPlace(asg.Config{Adopt: "web-prod"}, asg.Deps{Store: w.Store, Poll: 5 * ms}, "suite")
		w.ok(err)
		return conformance.InPlaceWorld{Group: g, Bake: 47 * time.Hour, Patience: 20 * time.Second,
			Cancel: func(*testing.T) {
				_, err := w.AS.CancelInstanceRefresh(t.Context(), &autoscaling.CancelInstanceRefreshInput{AutoScalingGroupName: aws.String("web-prod"), WaitForTransitioningInstances: aws.Bool(false)})
				w.ok(err)
			},
			Spec: func(n int, sick bool) fleet.Spec {
				v := strconv.Itoa(n)
				if sick {
					w.breaks(v, 500)
				}
				return fleet.Spec{Image: w.images[v], Size: 4, Ports: []int{guestPort}}
			}}
	})
}
