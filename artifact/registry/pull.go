package registry

import (
	"context"
	"errors"
	"io"
	"slices"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/registry/remote"
)

// Pull brings an image into the local layout. Blobs that are here are not
// fetched; one that broke off goes on where it was, if the registry takes
// ranges. Every blob and every chunk is hashed before the image is visible.
// What is attached to it comes too, also to an image that is here already, and of
// o.Ancestry what is attached to those that it was made from. A moving tag that the address names is moved here too. arch picks from an index.
func Pull(ctx context.Context, src Address, to *oci.Store, arch string, o Options) (Result, error) {
	c, err := newClient(o)
	if err != nil {
		return Result{}, err
	}
	raw, m, img, err := c.image(ctx, src, arch)
	if err != nil {
		return Result{}, err
	}
	blobs := needs(m)
	missing, err := to.Missing(ctx, blobs)
	if err != nil {
		return Result{}, err
	}
	res := Result{Ref: img.Name + ":" + img.Version, Blobs: len(blobs), Moved: len(missing), Bytes: c.sum(missing).total}
	for _, b := range blobs {
		res.Shared += b.Size
	}
	res.Shared -= res.Bytes
	if err := c.fetchBlobs(ctx, src, missing, to, c.o.Progress); err != nil {
		return res, err
	}
	had, err := to.Attached(ctx, img.Digest, "")
	if err != nil {
		return res, err
	}
	docs, err := c.documents(ctx, src, img.Digest, func(d artifact.Digest) bool {
		return slices.ContainsFunc(had, func(a artifact.Attachment) bool { return a.Digest == d })
	})
	if err != nil {
		return res, err
	}
	if err := c.fetchDocuments(ctx, src, docs, to); err != nil {
		return res, err
	}
	res.Attached = len(docs)
	if res.Image, err = to.Adopt(ctx, raw, artifact.Ref{Name: img.Name}, docs...); err != nil {
		return res, err
	}
	res.Attached += c.fetchAncestry(ctx, src, img, to)
	if tag := src.Tag; src.Dig == "" && remoteTag(tag) != remoteTag(img.Version) {
		set(&tag, artifact.Latest)
		if err := to.Tag(ctx, img.Name, tag, res.Image.Digest); err != nil {
			return res, err
		}
		res.Image.Tags = []string{tag}
	}
	return res, nil
}

// fetchBlobs brings blobs here, some at once.
func (c *client) fetchBlobs(ctx context.Context, a Address, blobs []v1.Descriptor, to *oci.Store, progress func(done, total int64)) error {
	r, gauge := c.repo(a), c.sum(blobs)
	gauge.tell = progress
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(c.o.Parallel)
	for _, b := range blobs {
		g.Go(func() error { return c.fetchBlob(ctx, r, b, to, gauge) })
	}
	return g.Wait()
}

func (c *client) fetchBlob(ctx context.Context, r *remote.Repository, b v1.Descriptor, to *oci.Store, g *gauge) error {
	seen, _ := g.blob(b.Size)
	return to.PutBlob(b, func(w io.Writer) error {
		var at int64 // bytes that are in w
		return c.retry(ctx, "pull blob "+short(b), func(ctx context.Context) error {
			ctx, wrap, stop := c.watch(ctx, seen)
			defer stop()
			rc, err := r.Blobs().Fetch(ctx, b)
			if err != nil {
				return caused(ctx, err)
			}
			defer rc.Close()
			if s, ok := rc.(io.Seeker); ok && at > 0 {
				_, err = s.Seek(at, io.SeekStart)
			} else if at > 0 { // from the beginning, and thrown away up to there
				_, err = io.CopyN(io.Discard, rc, at)
			}
			if err != nil {
				return caused(ctx, err)
			}
			n, err := io.Copy(storing{w}, wrap(rc))
			if at += n; err == nil && at < b.Size {
				err = io.ErrUnexpectedEOF
			}
			return caused(ctx, err)
		})
	})
}

// storing marks the errors of writing as this side's.
type storing struct{ w io.Writer }

func (s storing) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	if err != nil && !errors.Is(err, artifact.ErrCorrupt) {
		err = localError{err}
	}
	return n, err
}
