// Package registry moves images between the local layout and OCI registries.
// A store is oci://host/prefix; the image web of it is the repository
// host/prefix/web, a version or tag of the image a tag of that repository, and
// its manifest there is the local one, byte for byte: the digest is the same.
package registry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
	"oras.land/oras-go/v2/errdef"
	ref "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// Scheme begins the address of a registry; PlainScheme, that of one without TLS.
const (
	Scheme      = "oci://"
	PlainScheme = "oci+http://"
)

// Options of a transfer. The zero value will do.
type Options struct {
	PlainHTTP bool                    // speak http to a host that is not loopback
	Parallel  int                     // blobs at once; 0: 4
	Retries   int                     // tries of one request or blob; 0: 6
	Stall     time.Duration           // a transfer without a byte for so long is tried again; 0: 1 m
	Progress  func(done, total int64) // bytes to move; never two calls at once; may be nil
	Warn      func(text string)       // what is tried again, and why; may be nil
	Ancestry  []string                // kinds of what is attached to an image's ancestors that a Pull brings; none: it asks nothing of them

	first time.Duration // pause after the first failure; 0: 500 ms
}

// Address is a place in a registry, with or without an image.
type Address struct {
	Host string // with port
	Path string // of the repository, or of the store
	Tag  string // version or tag; "" if none was given
	Dig  artifact.Digest

	Plain bool // without TLS
}

// Parse reads oci://host/path, oci://host/path:tag or oci://host/path@sha256:…, and
// the same with oci+http://.
func Parse(s string) (Address, error) {
	var a Address
	bad := func(format string, v ...any) (Address, error) {
		return Address{}, fmt.Errorf("registry address %.200q: "+format, append([]any{hide(s)}, v...)...)
	}
	rest, ok := strings.CutPrefix(s, Scheme)
	if !ok {
		rest, a.Plain = strings.CutPrefix(s, PlainScheme)
	}
	if !ok && !a.Plain {
		return bad("it begins with oci://, as in oci://registry.example.com/team")
	}
	a.Host, rest, _ = strings.Cut(rest, "/")
	if a.Host == "" || strings.Contains(a.Host, "@") {
		return bad("give a host and no user: credentials come from docker's config")
	}
	var dig string
	if rest, dig, ok = strings.Cut(rest, "@"); ok {
		a.Dig = artifact.Digest(dig)
		if err := a.Dig.Validate(); err != nil {
			return bad("%w", err)
		}
	}
	a.Path, a.Tag, ok = strings.Cut(strings.TrimSuffix(rest, "/"), ":")
	if ok && a.Dig != "" {
		return bad("give a tag or a digest, not both")
	}
	if ok {
		if err := artifact.CheckTag(a.Tag); err != nil {
			return bad("%w", err)
		}
	}
	if a.Path != "" {
		if err := artifact.CheckName(a.Path); err != nil {
			return bad("%w", err)
		}
	}
	if err := (ref.Reference{Registry: a.Host, Repository: "x"}).ValidateRegistry(); err != nil {
		return bad("its host is no host or host:port")
	}
	return a, nil
}

var userinfo = regexp.MustCompile(`//[^/@\s]*@`)

func hide(s string) string { return userinfo.ReplaceAllString(s, "//…@") }

// String is the address as Parse reads it.
func (a Address) String() string {
	s := Scheme + a.Host
	if a.Plain {
		s = PlainScheme + a.Host
	}
	if a.Path != "" {
		s += "/" + a.Path
	}
	switch {
	case a.Dig != "":
		s += "@" + string(a.Dig)
	case a.Tag != "":
		s += ":" + a.Tag
	}
	return s
}

// Of is where an image of this name is in the store that a is.
func (a Address) Of(name, tag string) Address {
	return Address{Host: a.Host, Path: strings.TrimPrefix(a.Path+"/"+name, "/"), Tag: tag, Plain: a.Plain}
}

// reference is what a registry knows the image of an address by.
func (a Address) reference() string {
	switch {
	case a.Dig != "":
		return string(a.Dig)
	case a.Tag != "":
		return remoteTag(a.Tag)
	}
	return artifact.Latest
}

// remoteTag is a version as a registry can hold it: a tag has no +.
func remoteTag(tag string) string { return strings.ReplaceAll(tag, "+", "_") }

func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// client is one host's, for all repositories of a transfer.
type client struct {
	o    Options
	auth *auth.Client
}

func newClient(o Options) (*client, error) {
	set(&o.Parallel, 4)
	set(&o.Retries, 6)
	set(&o.Stall, time.Minute)
	set(&o.first, 500*time.Millisecond)
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	creds, err := credentials.NewStoreFromDocker(credentials.StoreOptions{})
	if err != nil {
		return nil, fmt.Errorf("read docker's config: %w", err)
	}
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.MaxIdleConnsPerHost, base.ResponseHeaderTimeout = o.Parallel, o.Stall
	base.MaxResponseHeaderBytes = 256 << 10
	return &client{o, &auth.Client{Client: &http.Client{Transport: busy{base, o.Stall}}, Cache: auth.NewCache(),
		Credential: credentials.Credential(creds), ClientID: "rebake"}}, nil
}

func set[T comparable](p *T, v T) {
	var none T
	if *p == none {
		*p = v
	}
}

func (c *client) repo(a Address) *remote.Repository {
	return &remote.Repository{Client: c.auth, Reference: ref.Reference{Registry: a.Host, Repository: a.Path},
		PlainHTTP: c.o.PlainHTTP || a.Plain || loopback(a.Host), MaxMetadataBytes: 4 << 20, TagListMaxPages: 1000, ReferrerListMaxPages: 100}
}

// head resolves a tag or digest; found is false if there is none.
func (c *client) head(ctx context.Context, r *remote.Repository, reference string) (desc v1.Descriptor, found bool, err error) {
	err = c.retry(ctx, "ask "+r.Reference.Host()+" for "+reference, func(ctx context.Context) error {
		desc, err = r.Manifests().Resolve(ctx, reference)
		return err
	})
	if errors.Is(err, errdef.ErrNotFound) {
		return desc, false, nil
	}
	return desc, err == nil, err
}

// catalog lists the names of images below a place: its repositories.
func (c *client) catalog(ctx context.Context, a Address) (names []string, err error) {
	reg := &remote.Registry{}
	reg.Client, reg.Reference, reg.PlainHTTP = c.auth, ref.Reference{Registry: a.Host}, c.repo(a).PlainHTTP
	reg.MaxMetadataBytes = 4 << 20
	err = c.retry(ctx, "list the repositories of "+a.Host, func(ctx context.Context) error {
		names = nil
		return reg.Repositories(ctx, "", func(repos []string) error {
			for _, r := range repos {
				name, ok := strings.CutPrefix("/"+r, strings.TrimSuffix("/"+a.Path, "/")+"/")
				if ok && artifact.CheckName(name) == nil {
					names = append(names, name)
				}
			}
			if len(names) > maxTags {
				return fmt.Errorf("%w: %s has more than %d repositories", artifact.ErrCorrupt, a, maxTags)
			}
			return nil
		})
	})
	return names, err
}

// lacksCatalog tells whether a registry answered that it lists no repositories, to us.
func lacksCatalog(err error) bool {
	var resp *errcode.ErrorResponse
	return lacksAPI(err) || errors.As(err, &resp) && slices.Contains([]int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound}, resp.StatusCode)
}
