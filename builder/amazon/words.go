package amazon

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/aws/smithy-go"
)

// code is what an API refused with, or "".
func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

func isOne(err error, codes ...string) bool { return err != nil && slices.Contains(codes, code(err)) }

// deniedCodes are how services say that a permission is missing.
var deniedCodes = []string{"UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "Client.UnauthorizedOperation"}

// inWords makes an error of an API one that says what to do, and one of an ended
// context its cause.
func inWords(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return fmt.Errorf("%w (%w)", cause, err)
	}
	var op *smithy.OperationError
	if !errors.As(err, &op) {
		return err
	}
	action := permission(op)
	var say string
	switch c := code(err); {
	case slices.Contains(deniedCodes, c):
		if m := performs.FindStringSubmatch(err.Error()); m != nil { // it may be one that the call needs besides its own
			action = m[1]
		}
		say = "the AWS identity lacks the permission " + action + " (`rebake aws policy` prints all that the template needs)"
	case c == "AuthFailure" || c == "InvalidClientTokenId" || c == "UnrecognizedClientException" || c == "ExpiredToken" || c == "ExpiredTokenException" || c == "RequestExpired":
		say = "AWS does not know these credentials, or they have expired (`aws sts get-caller-identity` tells)"
	case c == "OptInRequired":
		say = "this AWS account has not enabled the region, or the product of that AMI"
	case c == "InvalidKMSKey.InvalidState" || c == "KMSKeyNotAccessibleFault" || strings.HasPrefix(c, "KMS."):
		say = "the KMS key cannot be used: it is disabled, in another region, or its policy does not name this identity"
	case strings.Contains(err.Error(), "get identity: get credentials"):
		say = "no AWS credentials were found (`aws configure`, AWS_PROFILE, or the environment's)"
	default:
		return err
	}
	return fmt.Errorf("%s: %w", say, err)
}

var performs = regexp.MustCompile(`not authorized to perform:? ([a-z0-9-]+:[A-Za-z]+)`)

// permission is the IAM action of a call.
func permission(op *smithy.OperationError) string {
	return strings.ToLower(op.Service()) + ":" + op.Operation()
}

// noCapacity tells refusals after which another type, zone or market may do.
func noCapacity(err error) bool {
	return isOne(err, "InsufficientInstanceCapacity", "InsufficientHostCapacity", "InsufficientCapacity", "SpotMaxPriceTooLow",
		"MaxSpotInstanceCountExceeded", "InsufficientFreeAddressesInSubnet", "Unsupported", "InstanceLimitExceeded", "VcpuLimitExceeded")
}

// why tells such a refusal in a few words.
func why(err error) string {
	switch c := code(err); c {
	case "InsufficientInstanceCapacity", "InsufficientHostCapacity", "InsufficientCapacity":
		return "no capacity"
	case "SpotMaxPriceTooLow":
		return "the spot price is above max_price"
	case "MaxSpotInstanceCountExceeded", "InstanceLimitExceeded", "VcpuLimitExceeded":
		return "the account's quota is used up"
	case "InsufficientFreeAddressesInSubnet":
		return "the subnet has no free address"
	case "Unsupported":
		return "this type is not offered there"
	default:
		return c
	}
}
