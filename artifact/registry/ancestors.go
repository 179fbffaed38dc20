package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
)

// maxAncestors bounds how many ancestors of an image are asked about.
const maxAncestors = 32

// fetchAncestry brings here what the registry knows of the images that an image was
// made from: their metadata, and what of the kinds in o.Ancestry is attached to
// them, without their disks. So it is known here if one of them is revoked. Those
// that are not in the same place are passed over; what cannot be asked is told.
func (c *client) fetchAncestry(ctx context.Context, src Address, img artifact.Image, to *oci.Store) (added int) {
	if len(c.o.Ancestry) == 0 {
		return 0
	}
	place := src
	place.Path, place.Tag, place.Dig = strings.TrimSuffix(strings.TrimSuffix(src.Path, img.Name), "/"), "", ""
	all := append([]artifact.Ancestor{{Ref: img.Lineage.Parent, Digest: img.Lineage.ParentDigest}}, img.Lineage.Ancestors...)
	for _, a := range all[:min(len(all), maxAncestors)] {
		ref, err := artifact.ParseRef(a.Ref)
		if err != nil || a.Digest.Validate() != nil {
			continue // no image
		}
		n, err := c.fetchAncestor(ctx, place, ref.Name, a.Digest, to)
		if added += n; err != nil && !errors.Is(err, artifact.ErrNotFound) && !notThere(err) {
			c.o.Warn(fmt.Sprintf("what is said of %s, which %s:%s was made from, did not come: %v", a.Ref, img.Name, img.Version, err))
		}
	}
	return added
}

func (c *client) fetchAncestor(ctx context.Context, place Address, name string, d artifact.Digest, to *oci.Store) (added int, err error) {
	at := place.Of(name, "")
	_, err = to.Resolve(ctx, artifact.Ref{Name: name, Digest: d})
	gone := (*artifact.RemovedError)(nil)
	if errors.Is(err, artifact.ErrNotFound) && !errors.As(err, &gone) {
		raw, config, err := c.readImage(ctx, c.repo(at), string(d))
		if err != nil {
			return 0, err
		}
		if _, err := to.Keep(ctx, place.String(), raw, config); err != nil {
			return 0, err
		}
	} else if err != nil && gone == nil {
		return 0, err
	}
	had, err := to.Attached(ctx, d, "")
	if err != nil {
		return 0, err
	}
	docs, err := c.documents(ctx, at, d, func(doc artifact.Digest) bool {
		return slices.ContainsFunc(had, func(a artifact.Attachment) bool { return a.Digest == doc })
	})
	if err != nil {
		return 0, err
	}
	docs = slices.DeleteFunc(docs, func(doc oci.Document) bool { return !slices.Contains(c.o.Ancestry, doc.Desc.ArtifactType) })
	if err := c.fetchDocuments(ctx, at, docs, to); err != nil {
		return 0, err
	}
	return to.AdoptDocuments(ctx, d, docs)
}
