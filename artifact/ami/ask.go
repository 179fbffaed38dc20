package ami

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	"github.com/rebake/rebake/artifact"
)

// Of is an AMI that was made of an image.
type Of struct {
	Image artifact.Image
	Made
}

// Found is what AWS says of an AMI.
type Found struct {
	State      string    `json:"state"`                // available, disabled, pending, …; "": it is not there
	Deprecated time.Time `json:"deprecated,omitzero"`  // from when on
	Protected  string    `json:"protected,omitempty"`  // against deregistration: how
	Shared     []string  `json:"shared,omitempty"`     // who else may launch it: accounts, ARNs, "all"
	Uses       []string  `json:"uses,omitempty"`       // who refers to it, in a few words each
	Foreign    string    `json:"foreign,omitempty"`    // why it is not taken for the image's, or not for gone; "": it is
	Snapshots  []string  `json:"snapshots,omitempty"`  // of all its volumes
	LastLaunch time.Time `json:"last_launch,omitzero"` // as EC2 reports it, a day late
}

// There tells whether it is.
func (f Found) There() bool { return f.State != "" }

// DeniedError is a question or a call that AWS refuses to these credentials.
type DeniedError struct {
	Action, Region string // ec2:DescribeInstances
	Err            error
}

func (e *DeniedError) Error() string {
	return fmt.Sprintf("%s is not granted in %s: %v", e.Action, e.Region, e.Err)
}

// Unwrap is what AWS said.
func (e *DeniedError) Unwrap() error { return e.Err }

// Denied tells whether AWS refused for want of a permission.
func Denied(err error) bool {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return false
	}
	switch api.ErrorCode() {
	case "UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "UnauthorizedException", "OptInRequired", "AuthorizationError":
		return true
	}
	return false
}

// asked is the error of a call, with what to grant if that is what is missing.
func (c *Cloud) asked(action string, err error) error {
	switch {
	case err == nil:
		return nil
	case Denied(err):
		return &DeniedError{action, c.Region, err}
	case isCode(err, "AuthFailure"), isCode(err, "UnrecognizedClientException"), isCode(err, "InvalidClientTokenId"):
		return fmt.Errorf("%s in %s: %w (is the region enabled for this account?)", action, c.Region, err)
	}
	return fmt.Errorf("%s in %s: %w", action, c.Region, err)
}

// fresh is for how long EC2 may not show yet what was made.
const fresh = 15 * time.Minute

// atOnce is how many values EC2 takes in a filter.
const atOnce = 200

// Ask tells of each AMI, all of c's region, what AWS says of it and who refers to
// it: instances that are not terminated, the latest and the default version of
// every launch template, and what Auto Scaling groups launch. A question that is
// not answered is an error, and all of them are asked: nothing may be done then.
func (c *Cloud) Ask(ctx context.Context, amis []Of) (map[string]Found, error) {
	return c.ask(ctx, amis, true)
}

// Look is Ask without who refers to them.
func (c *Cloud) Look(ctx context.Context, amis []Of) (map[string]Found, error) {
	return c.ask(ctx, amis, false)
}

func (c *Cloud) ask(ctx context.Context, amis []Of, uses bool) (map[string]Found, error) {
	var ids []string
	for _, a := range amis {
		ids = append(ids, a.AMI)
	}
	there, err := c.images(ctx, ids)
	if err != nil {
		return nil, err
	}
	out := map[string]Found{}
	var errs []error
	for _, a := range amis {
		i, ok := there[a.AMI]
		if !ok {
			why, err := c.missing(ctx, a)
			errs = append(errs, err)
			out[a.AMI] = Found{Foreign: why}
			continue
		}
		f := found(i)
		f.Foreign = foreign(i, a)
		if f.Shared, err = c.shared(ctx, i); err != nil {
			errs = append(errs, err)
		}
		out[a.AMI] = f
	}
	if uses && len(there) > 0 {
		errs = append(errs, c.addUses(ctx, out))
	}
	return out, errors.Join(errs...)
}

// missing says why it is not believed that an AMI which is not seen is gone, or "".
func (c *Cloud) missing(ctx context.Context, a Of) (string, error) {
	if time.Since(a.Time) < fresh {
		return "it was made moments ago and is not seen yet", nil
	}
	out, err := c.STS.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return "", c.asked("sts:GetCallerIdentity", err)
	}
	mine := aws.ToString(out.Account)
	switch {
	case a.Account == mine, a.Account == "" && a.Last().Step == Removing:
		return "", nil
	case a.Account == "":
		return fmt.Sprintf("account %s does not have it, and whose it was is not recorded (--gone: take it for gone)", mine), nil
	}
	return fmt.Sprintf("it is account %s's, and these credentials are account %s's", a.Account, mine), nil
}

// images finds AMIs of this account by their ids, in whatever state.
func (c *Cloud) images(ctx context.Context, ids []string) (map[string]types.Image, error) {
	out := map[string]types.Image{}
	for some := range slices.Chunk(ids, atOnce) {
		pages := ec2.NewDescribeImagesPaginator(c.EC2, &ec2.DescribeImagesInput{Owners: []string{"self"},
			IncludeDeprecated: aws.Bool(true), IncludeDisabled: aws.Bool(true),
			Filters: []types.Filter{{Name: aws.String("image-id"), Values: some}}})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				return nil, c.asked("ec2:DescribeImages", err)
			}
			for _, i := range page.Images {
				if i.State == types.ImageStateDeregistered {
					continue
				}
				out[aws.ToString(i.ImageId)] = i
			}
		}
	}
	return out, nil
}

func found(i types.Image) Found {
	f := Found{State: cmp.Or(string(i.State), "unknown")}
	f.Deprecated, _ = time.Parse(time.RFC3339, aws.ToString(i.DeprecationTime)) // absent: zero
	f.LastLaunch, _ = time.Parse(time.RFC3339, aws.ToString(i.LastLaunchedTime))
	if p := aws.ToString(i.DeregistrationProtection); p != "" && p != "disabled" {
		f.Protected = p
	}
	for _, m := range i.BlockDeviceMappings {
		if m.Ebs != nil && aws.ToString(m.Ebs.SnapshotId) != "" {
			f.Snapshots = append(f.Snapshots, *m.Ebs.SnapshotId)
		}
	}
	return f
}

// foreign says why an AMI is not the one that was recorded, though its id is.
func foreign(i types.Image, a Of) string {
	switch {
	case tagOf(i.Tags, TagDigest) == "":
		return "it has no tag " + TagDigest
	case tagOf(i.Tags, TagDigest) != string(a.Image.Digest):
		return fmt.Sprintf("its tag %s is of another image", TagDigest)
	case a.Snapshot != "" && !slices.Contains(found(i).Snapshots, a.Snapshot):
		return "its snapshots are not " + a.Snapshot + ", which was recorded"
	}
	return ""
}

// shared lists who else may launch it. There is no call for several AMIs.
func (c *Cloud) shared(ctx context.Context, i types.Image) (out []string, err error) {
	if i.State == types.ImageStateDisabled { // nobody may
		return nil, nil
	}
	got, err := c.EC2.DescribeImageAttribute(ctx, &ec2.DescribeImageAttributeInput{ImageId: i.ImageId, Attribute: types.ImageAttributeNameLaunchPermission})
	if err != nil {
		return nil, c.asked("ec2:DescribeImageAttribute", err)
	}
	for _, p := range got.LaunchPermissions {
		out = append(out, cmp.Or(aws.ToString(p.UserId), aws.ToString(p.OrganizationArn), aws.ToString(p.OrganizationalUnitArn), string(p.Group)))
	}
	if aws.ToBool(i.Public) && !slices.Contains(out, "all") {
		out = append(out, "all")
	}
	slices.Sort(out)
	return slices.DeleteFunc(out, func(s string) bool { return s == "" || s == aws.ToString(i.OwnerId) }), nil
}

// Sharers is a list of who may launch an AMI, for people.
func (f Found) Sharers() string {
	var out []string
	for _, s := range f.Shared {
		if s == "all" {
			s = "everybody"
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}
