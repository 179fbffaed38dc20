package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// Bounds of what is read about one image: anybody who may push there may attach.
const (
	maxDocuments = 1000
	maxManifests = 32 << 20 // bytes of their manifests, which are in memory
	maxBodies    = 1 << 30  // bytes of all that is attached
)

// A registry without the referrers API gets the index of the referrers tag
// schema (sha256-HEX), which oras and cosign read. Of two writers of it at the
// same instant one loses, so each document has a tag of its own as well,
// sha256-HEX.DOCUMENT, which also keeps it from a GC of what is untagged.
func referrersTag(to artifact.Digest) string { return "sha256-" + to.Hex() }

func documentTag(to, doc artifact.Digest) string { return referrersTag(to) + "." + doc.Hex()[:40] }

// aside tells tags that name what is attached, by us or others, from those of images.
func aside(tag string) bool {
	h, ok := strings.CutPrefix(tag, "sha256-")
	h, _, _ = strings.Cut(h, ".")
	return ok && len(h) == 64 && strings.Trim(h, "0123456789abcdef") == ""
}

// referrers lists the manifests that are said to have an image as their subject.
// api tells whether the registry has the referrers API.
func (c *client) referrers(ctx context.Context, a Address, to artifact.Digest) (list []v1.Descriptor, api bool, err error) {
	add := func(some []v1.Descriptor) error {
		for _, d := range some {
			if d.MediaType != v1.MediaTypeImageManifest || artifact.Digest(d.Digest).Validate() != nil || hasDigest(list, d) {
				continue
			}
			if list = append(list, d); len(list) > maxDocuments {
				return fmt.Errorf("%w: more than %d documents are attached to %s in %s", artifact.ErrCorrupt, maxDocuments, to, a)
			}
		}
		return nil
	}
	r := c.repo(a)
	_ = r.SetReferrersCapability(true) // r is new; it is to ask for nothing but the API
	err = c.retry(ctx, "ask what is attached", func(ctx context.Context) error {
		list = nil
		return r.Referrers(ctx, v1.Descriptor{Digest: digest.Digest(to)}, "", add)
	})
	if !lacksAPI(err) {
		if notThere(err) { // no such repository
			err = nil
		}
		return list, true, err
	}
	if list, err = c.referrersIndex(ctx, a, to); err == nil {
		list, err = c.tagged(ctx, a, to, list)
	}
	if err == nil {
		some := list
		list = nil
		err = add(some)
	}
	return list, false, err
}

func hasDigest(list []v1.Descriptor, d v1.Descriptor) bool {
	return slices.ContainsFunc(list, func(have v1.Descriptor) bool { return have.Digest == d.Digest })
}

// lacksAPI tells whether a registry answered that it has no referrers API.
func lacksAPI(err error) bool {
	var resp *errcode.ErrorResponse
	return errors.Is(err, errdef.ErrUnsupported) || errors.As(err, &resp) &&
		slices.Contains([]int{http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented}, resp.StatusCode)
}

// tagged adds what has a tag of its own to what the referrers tag schema names.
func (c *client) tagged(ctx context.Context, a Address, to artifact.Digest, named []v1.Descriptor) ([]v1.Descriptor, error) {
	list := slices.Clone(named)
	tags, err := c.tags(ctx, a)
	if err != nil {
		return nil, err
	}
	r := c.repo(a)
	for _, tag := range tags {
		if !strings.HasPrefix(tag, referrersTag(to)+".") || slices.ContainsFunc(list, func(d v1.Descriptor) bool {
			return artifact.Digest(d.Digest).Validate() == nil && tag == documentTag(to, artifact.Digest(d.Digest))
		}) {
			continue
		}
		d, found, err := c.head(ctx, r, tag)
		if err != nil {
			return nil, err
		}
		if !found || artifact.Digest(d.Digest).Validate() != nil || tag != documentTag(to, artifact.Digest(d.Digest)) {
			continue
		}
		raw, err := c.manifest(ctx, r, d)
		if err != nil {
			return nil, err
		}
		if doc, err := oci.CheckDocument(raw, to); err == nil { // with its type and notes, as the list has them
			list = append(list, doc.Desc)
		}
	}
	return list, nil
}

// tags lists all tags of a repository; one that is not there has none.
func (c *client) tags(ctx context.Context, a Address) (all []string, err error) {
	err = c.retry(ctx, "list the tags of "+a.String(), func(ctx context.Context) error {
		all = nil
		return c.repo(a).Tags(ctx, "", func(some []string) error {
			if all = append(all, some...); len(all) > maxTags {
				return fmt.Errorf("%w: %s has more than %d tags", artifact.ErrCorrupt, a, maxTags)
			}
			return nil
		})
	})
	if notThere(err) {
		return nil, nil
	}
	return all, err
}

// notThere tells whether a registry answered that there is no such thing.
func notThere(err error) bool {
	var resp *errcode.ErrorResponse
	return errors.Is(err, errdef.ErrNotFound) || errors.As(err, &resp) && resp.StatusCode == http.StatusNotFound
}

const maxTags = 100_000

// referrersIndex reads the index of the referrers tag schema; none is an empty one.
func (c *client) referrersIndex(ctx context.Context, a Address, to artifact.Digest) ([]v1.Descriptor, error) {
	r := c.repo(a)
	desc, found, err := c.head(ctx, r, referrersTag(to))
	if err != nil || !found || desc.MediaType != v1.MediaTypeImageIndex {
		return nil, err
	}
	raw, err := c.manifest(ctx, r, desc)
	if err != nil {
		return nil, err
	}
	var idx v1.Index
	if err := json.Unmarshal(raw, &idx); err != nil {
		return nil, fmt.Errorf("%w: the list of what is attached to %s: %w", artifact.ErrCorrupt, to, err)
	}
	return idx.Manifests, nil
}

// documents reads the manifests of what is attached to an image, but for those
// that skip tells. What is no attachment of it is left out, with a warning.
func (c *client) documents(ctx context.Context, a Address, to artifact.Digest, skip func(artifact.Digest) bool) ([]oci.Document, error) {
	list, _, err := c.referrers(ctx, a, to)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(d v1.Descriptor) bool { return skip(artifact.Digest(d.Digest)) })
	manifests, bodies := int64(0), int64(0)
	var out []oci.Document
	for _, d := range list {
		if manifests += d.Size; d.Size <= 0 || manifests > maxManifests {
			return nil, fmt.Errorf("%w: what is attached to %s in %s has manifests of more than %d bytes", artifact.ErrCorrupt, to, a, maxManifests)
		}
		raw, err := c.manifest(ctx, c.repo(a), d)
		if notThere(err) {
			c.o.Warn(fmt.Sprintf("%s: the document %s that is listed there is gone", a, d.Digest))
			continue
		}
		if err != nil {
			return nil, err
		}
		doc, err := oci.CheckDocument(raw, to)
		if err != nil {
			c.o.Warn(fmt.Sprintf("%s: %s stays there: %v", a, d.Digest, err))
			continue
		}
		for _, b := range doc.Blobs {
			bodies += b.Size
		}
		if bodies > maxBodies {
			return nil, fmt.Errorf("%w: more than %d bytes are attached to %s in %s", artifact.ErrCorrupt, maxBodies, to, a)
		}
		out = append(out, doc)
	}
	return out, nil
}

// sendDocuments attaches those of the documents that the registry does not have
// to an image whose manifest is there, and returns how many they were.
func (c *client) sendDocuments(ctx context.Context, a Address, to artifact.Digest, docs []oci.Document, open opener) (int, error) {
	if len(docs) == 0 {
		return 0, nil
	}
	have, api, err := c.referrers(ctx, a, to)
	if err != nil {
		return 0, err
	}
	docs = slices.DeleteFunc(slices.Clone(docs), func(d oci.Document) bool { return hasDigest(have, d.Desc) })
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(c.o.Parallel)
	for _, d := range docs {
		g.Go(func() error { return c.sendDocument(gctx, a, to, d, open, api) })
	}
	if err := g.Wait(); err != nil || api {
		return len(docs), err
	}
	return len(docs), c.indexDocuments(ctx, a, to, docs, open)
}

func (c *client) sendDocument(ctx context.Context, a Address, to artifact.Digest, d oci.Document, open opener, api bool) error {
	r := c.repo(a)
	_ = r.SetReferrersCapability(true) // r is new; the index is ours to write
	reference := string(d.Desc.Digest)
	if !api {
		reference = documentTag(to, artifact.Digest(d.Desc.Digest))
	}
	missing, err := c.lacking(ctx, r, d.Blobs)
	if err == nil {
		_, _, err = c.sendBlobs(ctx, r, missing, open, "")
	}
	if err != nil {
		return err
	}
	return c.whole(ctx, r, d.Blobs, open, "attach "+d.Desc.ArtifactType, func(ctx context.Context) error {
		return r.Manifests().PushReference(ctx, d.Desc, bytes.NewReader(d.Raw), reference)
	})
}

// indexDocuments adds documents to the index of the referrers tag schema, and all
// others that have a tag. It looks again after it wrote, as another writer may have
// come between: the last one knows of all. What is missing after some tries is
// found by its own tag.
func (c *client) indexDocuments(ctx context.Context, a Address, to artifact.Digest, docs []oci.Document, open opener) error {
	r := c.repo(a)
	dead := map[string]bool{}
	for try := range 8 {
		was, err := c.referrersIndex(ctx, a, to)
		if err != nil {
			return err
		}
		list, err := c.tagged(ctx, a, to, was)
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(d v1.Descriptor) bool { return dead[string(d.Digest)] })
		if !slices.ContainsFunc(list, func(d v1.Descriptor) bool { return !hasDigest(was, d) }) {
			return nil
		}
		raw, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: list})
		if err != nil {
			return err
		}
		err = c.put(ctx, r, target{content.NewDescriptorFromBytes(v1.MediaTypeImageIndex, raw), raw}, referrersTag(to))
		if lostBlob(err) { // one of two uploads of one manifest at once was lost, or the index of others dangles
			for _, d := range docs {
				if err := c.sendDocument(ctx, a, to, d, open, false); err != nil {
					return err
				}
			}
			for _, d := range list {
				_, found, err := c.head(ctx, r, string(d.Digest))
				if err != nil {
					return err
				}
				dead[string(d.Digest)] = !found
			}
		} else if err != nil {
			return err
		}
		select {
		case <-time.After(rand.N(c.o.first) * time.Duration(try)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// lostBlob tells whether a registry misses what a manifest names.
func lostBlob(err error) bool {
	var resp *errcode.ErrorResponse
	return errors.As(err, &resp) && slices.ContainsFunc(resp.Errors, func(e errcode.Error) bool { return e.Code == errcode.ErrorCodeManifestBlobUnknown })
}

// fetchDocuments brings the blobs of documents here.
func (c *client) fetchDocuments(ctx context.Context, a Address, docs []oci.Document, to *oci.Store) error {
	var blobs []v1.Descriptor
	for _, d := range docs {
		blobs = append(blobs, d.Blobs...)
	}
	missing, err := to.Missing(ctx, blobs)
	if err != nil {
		return err
	}
	return c.fetchBlobs(ctx, a, missing, to, nil)
}

// opener gives a blob that is to be sent.
type opener func(context.Context, v1.Descriptor) (io.ReadCloser, error)
