// Package access tells who these credentials are in AWS and which permissions they
// have, without doing anything: EC2 is asked by dry runs, other services by reads.
// What has neither is not told.
package access

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/rebake/rebake/artifact/ami"
	"golang.org/x/sync/errgroup"
)

// Who is whose credentials were found, and where they lead.
type Who struct {
	Account  string        `json:"account"`
	ARN      string        `json:"arn"`
	Source   string        `json:"source"` // where the credentials were found, as the SDK calls it
	Region   string        `json:"region"`
	Endpoint string        `json:"endpoint,omitempty"` // "": AWS's own
	Skew     time.Duration `json:"skew"`               // how much this machine's clock is behind AWS's, to the second
}

// MaxSkew is how far a clock may be off before AWS refuses what is signed by it.
const MaxSkew = 5 * time.Minute

// patience is for how long one question may take.
const patience = 20 * time.Second

// Session is a region with its clients.
type Session struct {
	cfg       aws.Config
	partition string
	ec2       *ec2.Client
	ebs       *ebs.Client
	scaling   *autoscaling.Client
	elb       *elb.Client
	alarms    *cloudwatch.Client
	s3        *s3.Client
	bucket    string // of state, with its prefix; "": none
	prefix    string
}

// Open reads the configuration as everything here does; region "" is the environment's.
// It asks less patiently than what works.
func Open(ctx context.Context, region string) (*Session, error) {
	cfg, err := ami.Config(ctx, region)
	if err != nil {
		return nil, err
	}
	cfg.RetryMaxAttempts = 2
	return &Session{cfg: cfg, partition: partition(cfg.Region), ec2: ec2.NewFromConfig(cfg), ebs: ebs.NewFromConfig(cfg), scaling: autoscaling.NewFromConfig(cfg),
		elb: elb.NewFromConfig(cfg), alarms: cloudwatch.NewFromConfig(cfg),
		s3: s3.NewFromConfig(cfg, func(o *s3.Options) {
			o.UsePathStyle, o.DisableLogOutputChecksumValidationSkipped = o.BaseEndpoint != nil, true
		})}, nil
}

// In says in which bucket, below which prefix, state is kept.
func (s *Session) In(bucket, prefix string) { s.bucket, s.prefix = bucket, prefix }

func partition(region string) string {
	switch {
	case strings.HasPrefix(region, "cn-"):
		return "aws-cn"
	case strings.HasPrefix(region, "us-gov-"):
		return "aws-us-gov"
	}
	return "aws"
}

// Region is the one that is asked.
func (s *Session) Region() string { return s.cfg.Region }

// Who asks who these credentials are. It needs no permission.
func (s *Session) Who(ctx context.Context) (Who, error) {
	w := Who{Region: s.cfg.Region, Endpoint: endpoints(os.Environ())}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer within %s", patience))
	defer cancel()
	creds, err := s.cfg.Credentials.Retrieve(ctx)
	if err != nil {
		return w, fmt.Errorf("no credentials: %w", cause(ctx, err))
	}
	w.Source = creds.Source
	out, err := sts.NewFromConfig(s.cfg).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return w, fmt.Errorf("credentials of %s: %w", creds.Source, cause(ctx, err))
	}
	w.Account, w.ARN = aws.ToString(out.Account), aws.ToString(out.Arn)
	if at, ok := awsmiddleware.GetServerTime(out.ResultMetadata); ok {
		w.Skew = time.Until(at).Round(time.Second)
	}
	return w, nil
}

// endpoints are those that the environment names instead of AWS's own, for all
// services or for one.
func endpoints(environ []string) string {
	var out []string
	for _, e := range environ {
		name, url, _ := strings.Cut(e, "=")
		if service, ok := strings.CutPrefix(name, "AWS_ENDPOINT_URL"); ok && url != "" {
			out = append(out, strings.ToLower(strings.TrimPrefix(service+" ", "_"))+url)
		}
	}
	slices.Sort(out)
	return strings.TrimSpace(strings.Join(out, ","))
}

func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// State is whether a permission is there.
type State string

// The states.
const (
	Granted State = "granted"
	Missing State = "missing"
	Untold  State = "not told" // it cannot be found out without doing it
)

// Answer is what is known of a permission.
type Answer struct {
	Action string `json:"action"`
	State  State  `json:"state"`
	Note   string `json:"note,omitempty"`
}

// Probed lists the actions that can be asked about.
func Probed() []string { return slices.Sorted(maps.Keys(probes)) }

// Ask finds out which of the actions these credentials may do, some at a time, and
// answers in their order. That AWS cannot be reached is an error.
func (s *Session) Ask(ctx context.Context, actions []string) ([]Answer, error) {
	out := make([]Answer, len(actions))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i, a := range actions {
		probe := probes[a]
		if strings.HasPrefix(a, "s3:") && s.bucket == "" {
			probe = nil
		}
		if probe == nil {
			out[i] = Answer{a, Untold, "it has no dry run"}
			continue
		}
		g.Go(func() error {
			ctx, cancel := context.WithTimeoutCause(gctx, patience, fmt.Errorf("no answer within %s", patience))
			defer cancel()
			var err error
			out[i], err = judge(a, cause(ctx, probe(ctx, s)))
			return err
		})
	}
	return out, g.Wait()
}

// judge reads what a probe came to.
func judge(action string, err error) (Answer, error) {
	var api smithy.APIError
	var answer *smithyhttp.ResponseError
	switch {
	case err == nil:
		return Answer{action, Granted, ""}, nil
	case !errors.As(err, &api) && errors.As(err, &answer):
		return Answer{action, Untold, fmt.Sprintf("it answered %d, in words that are none of AWS's", answer.HTTPStatusCode())}, nil
	case !errors.As(err, &api):
		return Answer{}, fmt.Errorf("ask for %s: %w", action, err)
	case api.ErrorCode() == "DryRunOperation":
		return Answer{action, Granted, ""}, nil
	case api.ErrorCode() == "AuthFailure", api.ErrorCode() == "InvalidClientTokenId", api.ErrorCode() == "UnrecognizedClientException", api.ErrorCode() == "SignatureDoesNotMatch":
		return Answer{}, fmt.Errorf("%s: AWS does not take these credentials here (is the region enabled?): %w", action, err)
	case ami.Denied(err):
		return Answer{action, Missing, api.ErrorMessage()}, nil
	case !strings.HasPrefix(action, "ec2:") && (strings.HasPrefix(api.ErrorCode(), "Validation") || strings.Contains(api.ErrorCode(), "NotFound") || api.ErrorCode() == "NoSuchKey"):
		return Answer{action, Granted, ""}, nil // a read of what is not there
	}
	return Answer{action, Untold, "AWS said " + api.ErrorCode()}, nil // it looked at the request before the permission
}
