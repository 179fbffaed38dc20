package registry

import (
	"context"
	"errors"
	"slices"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"golang.org/x/sync/errgroup"
)

// Describe implements artifact.Attacher.
func (s *Store) Describe(ctx context.Context, img artifact.Image) (artifact.Image, error) {
	return s.local.Describe(ctx, img)
}

// Attach implements artifact.Attacher. To an image that is not there yet it
// attaches here, and Register sends it.
func (s *Store) Attach(ctx context.Context, to artifact.Digest, a artifact.Attachment, body []byte) (artifact.Attachment, error) {
	a, err := s.local.Attach(ctx, to, a, body)
	if err != nil {
		return a, err
	}
	img, err := s.local.Manifested(to)
	if err != nil {
		return a, err
	}
	repo := s.repo(img.Name)
	_, there, err := s.c.head(ctx, s.c.repo(repo), string(to))
	if err != nil || !there {
		return a, s.told(err)
	}
	docs, err := s.local.Documents(ctx, to)
	if err != nil {
		return a, err
	}
	docs = slices.DeleteFunc(docs, func(d oci.Document) bool { return artifact.Digest(d.Desc.Digest) != a.Digest })
	_, err = s.c.sendDocuments(ctx, repo, to, docs, opens(s.local))
	return a, s.told(err)
}

// Attached implements artifact.Attacher. What is attached there and not here comes here.
func (s *Store) Attached(ctx context.Context, to artifact.Digest, kind string) ([]artifact.Attachment, error) {
	img, err := s.local.Manifested(to)
	if errors.Is(err, artifact.ErrCorrupt) { // no image that was asked for, or described, here
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	had, err := s.local.Attached(ctx, to, "")
	if err != nil {
		return nil, err
	}
	repo := s.repo(img.Name)
	docs, err := s.c.documents(ctx, repo, to, func(d artifact.Digest) bool {
		return slices.ContainsFunc(had, func(a artifact.Attachment) bool { return a.Digest == d })
	})
	if err == nil {
		err = s.c.fetchDocuments(ctx, repo, docs, s.local)
	}
	if err == nil {
		_, err = s.local.AdoptDocuments(ctx, to, docs)
	}
	if err != nil {
		return nil, s.told(err)
	}
	return s.local.Attached(ctx, to, kind)
}

// AttachedAll implements artifact.AttachedLister for the images that were asked
// for here, some at once.
func (s *Store) AttachedAll(ctx context.Context, kind string) (map[artifact.Digest][]artifact.Attachment, error) {
	copies, err := s.local.Copies(ctx, s.String())
	if err != nil {
		return nil, err
	}
	lists := make([][]artifact.Attachment, len(copies))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * s.c.o.Parallel)
	for i, img := range copies {
		g.Go(func() (err error) {
			lists[i], err = s.Attached(gctx, img.Digest, kind)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := map[artifact.Digest][]artifact.Attachment{}
	for i, img := range copies {
		if len(lists[i]) > 0 {
			out[img.Digest] = lists[i]
		}
	}
	return out, nil
}

// ReadAttachment implements artifact.Attacher.
func (s *Store) ReadAttachment(ctx context.Context, a artifact.Attachment) ([]byte, error) {
	return s.local.ReadAttachment(ctx, a)
}
