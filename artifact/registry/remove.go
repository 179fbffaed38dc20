package registry

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// ErrNoDelete is of a registry that deletes nothing, or nothing of this kind.
var ErrNoDelete = errors.New("the registry does not allow it to be deleted")

// Remove implements artifact.Deleter, as far as the registry deletes: many need a
// setting for it (docker-registry: storage.delete.enabled). ErrNoDelete if it does not.
func (s *Store) Remove(ctx context.Context, ref artifact.Ref) error {
	release, err := s.local.Exclusive(ctx, "publish")
	if err != nil {
		return err
	}
	defer release()
	img, t, err := s.find(ctx, ref)
	if err != nil {
		return s.told(err)
	}
	a := s.repo(img.Name)
	if ref.Digest == "" && ref.Tag != img.Version {
		if err := s.c.deleteTag(ctx, a, remoteTag(ref.Tag)); err != nil {
			return s.told(fmt.Errorf("remove the tag %s: %w", ref, err))
		}
		return nil
	}
	if err := s.removeImage(ctx, img, t); err != nil {
		return s.told(fmt.Errorf("remove %s: %w", ref, err))
	}
	return s.local.Forget(ctx, s.String(), func(d artifact.Digest) bool { return d == img.Digest })
}

// removeImage deletes an image, first what makes it visible.
func (s *Store) removeImage(ctx context.Context, img artifact.Image, t v1.Descriptor) error {
	a := s.repo(img.Name)
	attached, _, err := s.c.referrers(ctx, a, img.Digest)
	if err != nil {
		return err
	}
	tags, err := s.tagsOf(ctx, img, t)
	if err != nil {
		return err
	}
	if t.MediaType == v1.MediaTypeImageIndex {
		if err := s.c.deleteTag(ctx, a, claimTag(img.Version, img.Digest)); err != nil { // or the next writer takes it back
			return err
		}
		last, err := s.leaveIndex(ctx, img, t)
		if err != nil {
			return err
		}
		if !last {
			tags = nil // they name what is left of the version
		}
	} else {
		tags = append([]string{remoteTag(img.Version)}, tags...)
	}
	// By its digest, which takes the tags along in some registries and not in others.
	if err := s.c.delete(ctx, a, string(img.Digest)); err != nil {
		return err
	}
	for _, tag := range tags {
		if err := s.c.deleteTag(ctx, a, tag); err != nil {
			return err
		}
	}
	for _, d := range attached {
		if err := errors.Join(s.c.delete(ctx, a, string(d.Digest)), s.c.deleteTag(ctx, a, documentTag(img.Digest, artifact.Digest(d.Digest)))); err != nil {
			return err
		}
	}
	return s.c.deleteTag(ctx, a, referrersTag(img.Digest))
}

// leaveIndex takes an image out of the index of its version, with the moving tags
// that name it; last: nothing is left of the version, which is deleted.
func (s *Store) leaveIndex(ctx context.Context, img artifact.Image, t v1.Descriptor) (last bool, err error) {
	a := s.repo(img.Name)
	r := s.c.repo(a)
	raw, err := s.c.manifest(ctx, r, t)
	if err != nil {
		return false, err
	}
	idx, err := readIndex(raw)
	if err != nil {
		return false, err
	}
	left := slices.DeleteFunc(idx.Manifests, func(d v1.Descriptor) bool { return artifact.Digest(d.Digest) == img.Digest })
	if len(left) == 0 {
		return true, errors.Join(s.c.delete(ctx, a, string(t.Digest)), s.c.deleteTag(ctx, a, remoteTag(img.Version)))
	}
	fewer, err := indexOf(left)
	if err != nil {
		return false, err
	}
	heads, err := s.heads(ctx, img.Name, func(string) bool { return false })
	if err != nil {
		return false, err
	}
	for tag, d := range heads { // the version's own tag is among them
		if d.Digest == t.Digest {
			if err := s.c.put(ctx, r, fewer, tag); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// Prune implements artifact.Deleter for what is here: the registry has a GC of its
// own. Copies of images that are not there any more go; all is kept when it
// cannot tell.
func (s *Store) Prune(ctx context.Context, grace time.Duration, keep []artifact.Digest) (freed int64, err error) {
	copies, err := s.local.Copies(ctx, s.String())
	if err != nil {
		return 0, fmt.Errorf("nothing was deleted: %w", err)
	}
	gone := map[artifact.Digest]bool{}
	for _, i := range copies {
		_, there, err := s.c.head(ctx, s.c.repo(s.repo(i.Name)), string(i.Digest))
		if err != nil {
			return 0, s.told(fmt.Errorf("nothing was deleted: %w", err))
		}
		gone[i.Digest] = !there
	}
	if err := s.local.Forget(ctx, s.String(), func(d artifact.Digest) bool { return gone[d] }); err != nil {
		return 0, err
	}
	return s.local.Prune(ctx, grace, keep)
}

// deleteTag deletes a tag, if it is there. Registries that delete manifests alone
// (docker-registry) take its tags along: there the tag is pointed at an empty
// index of its own first.
func (c *client) deleteTag(ctx context.Context, a Address, tag string) error {
	r := c.repo(a)
	if _, found, err := c.head(ctx, r, tag); err != nil || !found {
		return err
	}
	if err := c.delete(ctx, a, tag); !errors.Is(err, ErrNoDelete) {
		return err
	}
	raw, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{},
		Annotations: map[string]string{"dev.rebake.deleting": rand.Text()}})
	if err != nil {
		return err
	}
	t := target{content.NewDescriptorFromBytes(v1.MediaTypeImageIndex, raw), raw}
	// Asked first: where nothing is deleted, the tag must not be lost to what cannot go.
	if err := c.delete(ctx, a, string(t.desc.Digest)); err != nil {
		return err
	}
	if err := c.put(ctx, r, t, tag); err != nil {
		return err
	}
	if err := c.delete(ctx, a, string(t.desc.Digest)); err != nil {
		return err
	}
	if _, found, err := c.head(ctx, r, tag); err != nil || found {
		return errors.Join(err, only(ErrNoDelete, found))
	}
	return nil
}

// delete deletes a tag or a manifest; one that is not there is no error.
func (c *client) delete(ctx context.Context, a Address, reference string) error {
	r := c.repo(a)
	scheme := "https"
	if r.PlainHTTP {
		scheme = "http"
	}
	url := fmt.Sprintf("%s://%s/v2/%s/manifests/%s", scheme, r.Reference.Host(), a.Path, reference)
	return c.retry(ctx, "delete "+reference, func(ctx context.Context) error {
		ctx = auth.AppendRepositoryScope(ctx, r.Reference, auth.ActionDelete)
		req, err := http.NewRequestWithContext(ctx, http.MethodDelete, url, nil)
		if err != nil {
			return final(err)
		}
		resp, err := c.auth.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		switch resp.StatusCode {
		case http.StatusAccepted, http.StatusOK, http.StatusNoContent, http.StatusNotFound:
			return nil
		case http.StatusMethodNotAllowed, http.StatusBadRequest, http.StatusNotImplemented:
			return final(ErrNoDelete)
		}
		return &errcode.ErrorResponse{Method: req.Method, URL: req.URL, StatusCode: resp.StatusCode}
	})
}
