// Package s3 is a fleet.Home in a bucket of S3, or of a server that speaks its
// protocol and honours conditional writes: operators on different machines deploy
// the same fleet. docs/adr has the decisions; in short:
//
//	PREFIX/fleets/NAME.json                         the fleet's Config
//	PREFIX/fleets/NAME/LIFE/journal/00000042.json   one record, never overwritten
//	PREFIX/fleets/NAME/LIFE/packs/00000128.jsonl    the 128 records up to that one, to read them at once
//	PREFIX/leases/NAME.json                         who may write; stays when the fleet is destroyed
//
// The lease (lease.go) keeps operators apart; what makes it safe is the journal
// (journal.go): a record can be made once, so that whoever was taken over cannot
// add a word. LIFE counts how often a fleet of the name was made.
package s3

import (
	"context"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/fleet"
)

// DefaultLease is for how long an operator holds a fleet without renewing it: as
// long as others wait for one who died.
const DefaultLease = 30 * time.Second

// Options of a Home. The zero value will do.
type Options struct {
	Lease  time.Duration                        // 0: DefaultLease
	Client *awss3.Client                        // nil: one by the environment
	Tell   func(ctx context.Context, of string) // what is waited for; nil: nobody is told
}

// Home are the fleets below one prefix. It is safe for concurrent use.
type Home struct {
	bucket
	lease time.Duration
	tell  func(context.Context, string)

	mu     sync.Mutex
	proved bool // the server honours conditions
}

// Open is the home at an address: s3://BUCKET or s3://BUCKET/PREFIX. Credentials,
// region and endpoint are found the SDK's own way. It makes no call.
func Open(ctx context.Context, address string, o Options) (*Home, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "s3" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, fmt.Errorf("%q is no shared state: s3://BUCKET or s3://BUCKET/PREFIX", address)
	}
	c := o.Client
	if c == nil {
		cfg, err := ami.Config(ctx, "")
		if err != nil {
			return nil, err
		}
		c = awss3.NewFromConfig(cfg, func(o *awss3.Options) {
			o.UsePathStyle = o.BaseEndpoint != nil
			o.DisableLogOutputChecksumValidationSkipped = true // a line for each answer of a server without checksums
		})
	}
	h := &Home{bucket: bucket{c: c, name: u.Host, prefix: strings.Trim(path.Clean("/"+u.Path), "/")}, lease: o.Lease, tell: o.Tell}
	if h.prefix != "" {
		h.prefix += "/"
	}
	if h.lease == 0 {
		h.lease = DefaultLease
	}
	if h.tell == nil {
		h.tell = func(context.Context, string) {}
	}
	return h, nil
}

// Names lists the fleets that have a Config.
func (h *Home) Names(ctx context.Context) ([]string, error) {
	keys, _, err := h.list(ctx, "fleets/", "", "/")
	var out []string
	for _, k := range keys {
		if name, ok := strings.CutSuffix(strings.TrimPrefix(k, "fleets/"), ".json"); ok {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, err
}

// Orphans lists the journals that have records and no Config.
func (h *Home) Orphans(ctx context.Context) ([]string, error) {
	keys, dirs, err := h.list(ctx, "fleets/", "", "/")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, d := range dirs {
		name := path.Base(d)
		if slices.Contains(keys, "fleets/"+name+".json") {
			continue
		}
		b := h.books(name)
		life, err := b.life(ctx)
		if err != nil {
			return nil, err
		}
		if life == 0 {
			continue // destroyed, but for what its end could not remove
		}
		recs, _, err := h.list(ctx, b.dir(life)+"journal/", "", "")
		if err != nil {
			return nil, err
		}
		if len(recs) > 0 {
			out = append(out, h.where(b.dir(life)))
		}
	}
	return out, nil
}

// Books are the state of a fleet.
func (h *Home) Books(name string) fleet.Books { return h.books(name) }

func (h *Home) books(name string) *books { return &books{h: h, name: name} }
