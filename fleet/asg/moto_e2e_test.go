//go:build e2e

package asg_test

import (
	"testing"

	"github.com/rebake/rebake/test/conformance"
	"github.com/rebake/rebake/test/moto"
)

// What moto's server does not have: LaunchInstances, scaling activities, instance
// refreshes. There the pool sets the desired capacity.
func TestPoolOnMoto(t *testing.T) {
	moto.Start(t)
	conformance.Pool(t, func(t *testing.T) conformance.PoolWorld {
		return poolWorld(t)
	})
}
