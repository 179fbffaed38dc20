package asg_test

import (
	"testing"
	"time"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/asg"
	"github.com/rebake/rebake/test/awsfake"
	"github.com/rebake/rebake/test/awsfleet"
	"github.com/rebake/rebake/test/conformance"
)

func open(t testing.TB, w *awsfleet.World, name string, change func(*asg.Config)) *asg.Pool {
	t.Helper()
	cfg := asg.Config{Region: "eu-central-1", Subnets: w.Subnets, Instance: asg.Instance{Types: []string{"t3.small"}}}
	if change != nil {
		change(&cfg)
	}
	p, err := asg.New(cfg, asg.Deps{Store: w.Store, Poll: 2 * time.Millisecond}, name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// poolWorld is the suite's, in whatever cloud the environment points to.
func poolWorld(t *testing.T) conformance.PoolWorld {
	w := awsfleet.New(t)
	return conformance.PoolWorld{
		Pool:      open(t, w, "suite", nil),
		Spec:      fleet.Spec{Image: w.Image(t, "1"), Size: 2, Ports: []int{80}},
		Replaces:  true,
		Kill:      func(t *testing.T, i fleet.Instance) { w.Terminate(t, i.ID) },
		Again:     func(t *testing.T) fleet.Pool { return open(t, w, "suite", nil) },
		Leftovers: func(t *testing.T) []string { return w.Left(t, "suite") },
	}
}

func TestPool(t *testing.T) {
	conformance.Pool(t, func(t *testing.T) conformance.PoolWorld {
		awsfake.Start(t)
		return poolWorld(t)
	})
}
