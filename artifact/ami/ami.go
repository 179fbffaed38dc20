// Package ami publishes images of the store as AMIs, without an instance: the
// disk goes block by block through the EBS direct APIs into a snapshot, on top of
// the snapshot of an earlier image where there is one, so that only what changed
// travels. What was made in a region is recorded as an attachment of the image.
//
// Everything is found by its tags and names, which are derived from the image: a
// publication that was killed goes on where it was, and two at once make one AMI.
package ami

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/logging"
	"github.com/rebake/rebake/artifact"
)

// The tags of what rebake makes.
const (
	TagImage   = "rebake:image"   // name:version
	TagDigest  = "rebake:digest"  // of the image's manifest
	TagContent = "rebake:content" // of its disk
)

// Cloud is one region's services.
type Cloud struct {
	Region  string
	EC2     *ec2.Client
	EBS     *ebs.Client
	Scaling *autoscaling.Client // asked who uses an AMI
	STS     *sts.Client         // asked whose AMIs are seen
}

// Config reads credentials, profile, region and endpoints the SDK's own way.
// region "" is the environment's. Calls that are throttled slow down all others
// of a client that is made of it.
func Config(ctx context.Context, region string) (aws.Config, error) {
	opts := []func(*config.LoadOptions) error{config.WithRetryMode(aws.RetryModeAdaptive), config.WithRetryMaxAttempts(8),
		config.WithLogger(logging.Nop{})} // what it warns of is in the errors, and it would write between the lines of others
	if region != "" {
		opts = append(opts, config.WithRegion(region))
	}
	cfg, err := config.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return cfg, fmt.Errorf("AWS configuration: %w", err)
	}
	if cfg.Region == "" {
		return cfg, fmt.Errorf("no AWS region: give --region, or set AWS_REGION")
	}
	return cfg, nil
}

// Connect opens the services of a region; "" is the environment's.
func Connect(ctx context.Context, region string) (*Cloud, error) {
	cfg, err := Config(ctx, region)
	if err != nil {
		return nil, err
	}
	return CloudOf(cfg), nil
}

// CloudOf opens the services of a configuration's region.
func CloudOf(cfg aws.Config) *Cloud {
	return &Cloud{Region: cfg.Region, EC2: ec2.NewFromConfig(cfg), EBS: ebs.NewFromConfig(cfg), Scaling: autoscaling.NewFromConfig(cfg), STS: sts.NewFromConfig(cfg)}
}

// Options of a publication. The zero value will do.
type Options struct {
	Work        string            // directory for the state of an upload that was cut off; "": it begins anew
	Parallel    int               // blocks at once; 0: 16
	KMSKey      string            // key of the snapshot; "": not encrypted unless the account says so
	Tags        map[string]string // more tags, of snapshot and AMI
	VolumeType  string            // of the root volume; "": gp3
	Copy        []*Cloud          // regions that get a copy
	CopyKMSKeys map[string]string // by region: key of the copy's snapshot
	Users       []string          // who else may launch it: accounts, ARNs of organisations and of their units
	BootMode    string            // legacy-bios, uefi or uefi-preferred; "": as the image's firmware
	Deprecate   time.Duration     // from its registration, when it is no longer shown to others; 0: never
	Protect     bool              // against deregistration
	Parents     []Record          // earlier AMIs of this region that may be built on, the likeliest first
	Progress    func(done, total int64)
	Info        func(text string) // what was found and what is waited for, from many goroutines; may be nil

	poll time.Duration // longest time between questions about state; 0: 4 s
	seen time.Duration // for how long an AMI that was just made need not be found; 0: 90 s
}

// Record is what is kept of an AMI, as an attachment of its image.
type Record struct {
	Region   string          `json:"region"`
	Account  string          `json:"account,omitempty"` // whose it is; "": not known
	AMI      string          `json:"ami"`
	Snapshot string          `json:"snapshot"`
	Name     string          `json:"name"`
	Content  artifact.Digest `json:"content"`           // of the disk that the snapshot holds
	KMSKey   string          `json:"kms_key,omitempty"` // of the snapshot
	Sent     int64           `json:"sent"`              // bytes that travelled; 0 for a copy
	From     string          `json:"from,omitempty"`    // snapshot that it was built on, or AMI that it is a copy of
	Time     time.Time       `json:"time"`              // when it was registered
}

// Publish makes an AMI of the image in c's region and copies of it in others,
// and returns a record of each, this region's first. What is there already is not made again.
func Publish(ctx context.Context, c *Cloud, s artifact.Store, img artifact.Image, o Options) ([]Record, error) {
	opener, ok := s.(artifact.Opener)
	if !ok {
		return nil, fmt.Errorf("the store %T cannot open disks", s)
	}
	if o.poll == 0 {
		o.poll = 4 * time.Second
	}
	if o.Info == nil {
		o.Info = func(string) {}
	}
	if o.Parallel == 0 {
		o.Parallel = 16
	}
	for _, to := range o.Copy { // one that cannot be reached is known before the disk travels
		if _, err := to.image(ctx, img); err != nil {
			return nil, err
		}
	}
	first, err := c.first(ctx, opener, img, o)
	if err != nil {
		return nil, err
	}
	made, err := c.settle(ctx, first.AMI, img, o)
	if err != nil {
		return []Record{first}, err
	}
	first.Account = aws.ToString(made.OwnerId)
	return c.copies(ctx, first, img, o)
}

// first finds or makes the AMI of c's region.
func (c *Cloud) first(ctx context.Context, s artifact.Opener, img artifact.Image, o Options) (Record, error) {
	r := Record{Region: c.Region, Name: Name(img), Content: img.Content, KMSKey: o.KMSKey}
	found, err := c.image(ctx, img)
	if err != nil {
		return r, err
	}
	if found != nil {
		o.Info(fmt.Sprintf("%s is in %s already", aws.ToString(found.ImageId), c.Region))
		r.AMI, r.Snapshot, r.Time = aws.ToString(found.ImageId), rootSnapshot(found), created(found)
		return r, nil
	}
	if r.Snapshot, err = c.findSnapshot(ctx, img, o); err == nil && (r.Snapshot == "" || halfSent(o.Work, c.Region, img)) {
		r.Snapshot, r.From, r.Sent, err = c.snapshot(ctx, s, img, o)
	}
	if err != nil {
		return r, fmt.Errorf("snapshot in %s: %w", c.Region, err)
	}
	if r.AMI, r.Time, err = c.register(ctx, img, r.Snapshot, o); err != nil {
		return r, fmt.Errorf("register %s in %s: %w", r.Name, c.Region, err)
	}
	return r, nil
}

// copies makes those in other regions, all at once: each takes EC2 minutes. One that
// fails stops no other.
func (c *Cloud) copies(ctx context.Context, first Record, img artifact.Image, o Options) ([]Record, error) {
	made, errs := make([]Record, len(o.Copy)), make([]error, len(o.Copy))
	var wg sync.WaitGroup
	for i, to := range o.Copy {
		if to.Region == c.Region {
			continue
		}
		wg.Go(func() {
			var err error
			if made[i], err = to.copyFrom(ctx, c.Region, first, img, o); err != nil {
				errs[i] = fmt.Errorf("copy %s to %s: %w", first.AMI, to.Region, err)
			}
		})
	}
	wg.Wait()
	records := []Record{first}
	for i, r := range made {
		if errs[i] == nil && r.AMI != "" {
			records = append(records, r)
		}
	}
	return records, errors.Join(errs...)
}

var notInName = regexp.MustCompile(`[^A-Za-z0-9()\[\]./'@_-]`)

// Name is what the image's AMI is called: another image, though of the same
// version, has another name. At most 128 characters, as EC2 asks.
func Name(img artifact.Image) string {
	id := img.Digest.Hex()[:12]
	name := notInName.ReplaceAllString("rebake/"+img.Name+"/"+img.Version, "_")
	return name[:min(len(name), 128-1-len(id))] + "/" + id
}

// BootModes are those that an AMI can have.
var BootModes = []string{"legacy-bios", "uefi", "uefi-preferred"}

var sharers = regexp.MustCompile(`^([0-9]{12}|arn:aws[a-z-]*:organizations::[0-9]{12}:(organization/o-[a-z0-9]+|ou/o-[a-z0-9]+/ou-[a-z0-9-]+))$`)

// CanShare tells whether an AMI can be shared with who: an account, or the ARN of
// an organisation or a unit of one.
func CanShare(who string) bool { return sharers.MatchString(who) }

// token is a client token that names one intent: the same for the same words.
func token(words ...string) string {
	h := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	return "rebake-" + hex.EncodeToString(h[:])[:48]
}
