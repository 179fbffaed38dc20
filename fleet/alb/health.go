package alb

import (
	"fmt"
	"regexp"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
)

// Draining says that a target gets no new requests.
func Draining(t types.TargetHealthDescription) bool {
	return t.TargetHealth != nil && (t.TargetHealth.State == types.TargetHealthStateEnumDraining || t.TargetHealth.State == types.TargetHealthStateEnumUnhealthyDraining)
}

// Healthy says that a target takes traffic.
func Healthy(t types.TargetHealthDescription) bool {
	return t.TargetHealth != nil && t.TargetHealth.State == types.TargetHealthStateEnumHealthy
}

var codesRE = regexp.MustCompile(`\[([0-9]{3})`)

// Words tell a target's health as the rest of rebake does: L7OK, L7STS/503 where
// it answers and not as it should, else what ELB's reason means.
func Words(t types.TargetHealthDescription) string {
	h := t.TargetHealth
	if h == nil {
		return "no check yet"
	}
	if h.State == types.TargetHealthStateEnumHealthy {
		return "L7OK"
	}
	said := ""
	if d := aws.ToString(h.Description); d != "" {
		said = ": " + d
	}
	switch h.Reason {
	case types.TargetHealthReasonEnumResponseCodeMismatch:
		if m := codesRE.FindStringSubmatch(said); m != nil {
			return "L7STS/" + m[1]
		}
		return "L7STS" + said
	case types.TargetHealthReasonEnumTimeout:
		return "no answer in time" + said
	case types.TargetHealthReasonEnumFailedHealthChecks:
		return "no connection, or no HTTP in the answer" + said
	case types.TargetHealthReasonEnumRegistrationInProgress:
		return "being registered"
	case types.TargetHealthReasonEnumInitialHealthChecking:
		return "not checked often enough yet"
	case types.TargetHealthReasonEnumNotInUse:
		return "not checked: no rule forwards to its target group"
	case types.TargetHealthReasonEnumNotRegistered:
		return "not registered"
	case types.TargetHealthReasonEnumInvalidState:
		return "the instance is stopped or ended"
	case types.TargetHealthReasonEnumIpUnusable:
		return "its address cannot be a target" + said
	case types.TargetHealthReasonEnumDeregistrationInProgress:
		return "draining"
	case types.TargetHealthReasonEnumHealthCheckDisabled:
		return "not checked: health checks of its target group are off"
	case types.TargetHealthReasonEnumInternalError:
		return "the load balancer could not check" + said
	}
	return fmt.Sprintf("%s %s%s", h.State, h.Reason, said)
}
