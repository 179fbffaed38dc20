//go:build e2e

package alb_test

import (
	"testing"

	"github.com/rebake/rebake/test/moto"
)

// moto's targets are healthy at once and leave at once, and no traffic flows: what
// is written to the rule is what can be seen.
func TestRuleOnMoto(t *testing.T) {
	moto.Start(t)
	ruleIsMade(t)
	ruleIsAdopted(t)
}
