package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"
)

// Result says what a transfer did.
type Result struct {
	Image  artifact.Image `json:"image"`
	Ref    string         `json:"ref"`    // where the image is now
	Blobs  int            `json:"blobs"`  // that it needs
	Moved  int            `json:"moved"`  // that traveled: they were not there, and could not be mounted
	Bytes  int64          `json:"bytes"`  // of those
	Shared int64          `json:"shared"` // bytes of the others

	Attached int `json:"attached"` // documents (signatures, statements, …) that traveled with it, or after it
}

// gauge adds up the bytes of many goroutines. What is moved again does not count.
type gauge struct {
	mu          sync.Mutex
	done, total int64
	tell        func(done, total int64)
}

func (g *gauge) blob(size int64) (seen func(n int), again func()) {
	var best, at int64
	return func(n int) {
			at += int64(n)
			if at <= best || at > size {
				return
			}
			g.mu.Lock()
			defer g.mu.Unlock()
			g.done, best = g.done+at-best, at
			if g.tell != nil {
				g.tell(g.done, g.total)
			}
		}, func() {
			at = 0
		}
}

func (c *client) sum(blobs []v1.Descriptor) *gauge {
	g := &gauge{tell: c.o.Progress}
	for _, b := range blobs {
		g.total += b.Size
	}
	return g
}

func needs(m v1.Manifest) []v1.Descriptor {
	var out []v1.Descriptor
	seen := map[string]bool{}
	for _, b := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if !seen[string(b.Digest)] {
			seen[string(b.Digest)] = true
			out = append(out, b)
		}
	}
	return out
}

// lacking asks the repository which blobs it does not have.
func (c *client) lacking(ctx context.Context, r *remote.Repository, blobs []v1.Descriptor) ([]v1.Descriptor, error) {
	have := make([]bool, len(blobs))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * c.o.Parallel)
	for i, b := range blobs {
		g.Go(func() error {
			return c.retry(ctx, "look for blob "+short(b), func(ctx context.Context) (err error) {
				have[i], err = r.Blobs().Exists(ctx, b)
				return err
			})
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var out []v1.Descriptor
	for i, b := range blobs {
		if !have[i] {
			out = append(out, b)
		}
	}
	return out, nil
}

func short(d v1.Descriptor) string { return artifact.Digest(d.Digest).Hex()[:12] }

// Push brings an image with its tags from the local layout to a store. Only
// blobs that are not there travel; the version is visible when all are there.
// ErrExists if the version is there as another image.
func Push(ctx context.Context, from *oci.Store, img artifact.Image, to Address, o Options) (Result, error) {
	c, err := newClient(o)
	if err != nil {
		return Result{}, err
	}
	raw, m, desc, err := from.ReadManifest(img.Digest)
	if err != nil {
		return Result{}, err
	}
	docs, err := from.Documents(ctx, img.Digest)
	if err != nil {
		return Result{}, err
	}
	return c.send(ctx, parcel{img, raw, m, desc, docs, opens(from), to.parent(img)}, to.Of(img.Name, img.Version))
}

// opens reads blobs of the local layout.
func opens(s *oci.Store) opener {
	return func(_ context.Context, b v1.Descriptor) (io.ReadCloser, error) {
		f, err := s.OpenBlob(b)
		if err != nil {
			return nil, localError{err}
		}
		return f, nil
	}
}

// parcel is an image that is sent, and where its blobs come from.
type parcel struct {
	img   artifact.Image // with the moving tags to set
	raw   []byte
	m     v1.Manifest
	desc  v1.Descriptor
	docs  []oci.Document
	open  opener
	mount string // the repository that its blobs may be mounted from, or ""
}

// parent is the repository that blobs of an image may be mounted from, or "".
func (a Address) parent(img artifact.Image) string {
	r, err := artifact.ParseRef(img.Lineage.Parent)
	if err != nil || r.Name == img.Name || img.Lineage.ParentDigest.Validate() != nil {
		return ""
	}
	return a.Of(r.Name, "").Path
}

// Copy brings an image from one registry to another store; blobs of one host
// are mounted, not moved. Its moving tags stay behind. Of a version with images of
// several platforms all are copied, and the result is the last one's, with all sums.
func Copy(ctx context.Context, src, to Address, o Options) (Result, error) {
	c, err := newClient(o)
	if err != nil {
		return Result{}, err
	}
	r := c.repo(src)
	have, found, err := c.head(ctx, r, src.reference())
	if err != nil || !found || have.MediaType != v1.MediaTypeImageIndex {
		if err != nil {
			return Result{}, err
		}
		return c.copyOne(ctx, src, to)
	}
	raw, err := c.manifest(ctx, r, have)
	if err != nil {
		return Result{}, err
	}
	idx, err := readIndex(raw)
	if err != nil {
		return Result{}, err
	}
	var sum Result
	for _, d := range idx.Manifests {
		one := src
		one.Tag, one.Dig = "", artifact.Digest(d.Digest)
		res, err := c.copyOne(ctx, one, to)
		if err != nil {
			return res, err
		}
		res.Blobs, res.Moved, res.Bytes = res.Blobs+sum.Blobs, res.Moved+sum.Moved, res.Bytes+sum.Bytes
		res.Shared, res.Attached = res.Shared+sum.Shared, res.Attached+sum.Attached
		sum = res
	}
	return sum, nil
}

func (c *client) copyOne(ctx context.Context, src, to Address) (Result, error) {
	raw, m, img, err := c.image(ctx, src, "")
	if err != nil {
		return Result{}, err
	}
	from := c.repo(src)
	mount := ""
	if src.Host == to.Host {
		mount = src.Path
	}
	docs, err := c.documents(ctx, src, img.Digest, func(artifact.Digest) bool { return false })
	if err != nil {
		return Result{}, err
	}
	desc := content.NewDescriptorFromBytes(v1.MediaTypeImageManifest, raw)
	open := func(ctx context.Context, b v1.Descriptor) (io.ReadCloser, error) { return from.Blobs().Fetch(ctx, b) }
	return c.send(ctx, parcel{img, raw, m, desc, docs, open, mount}, to.Of(img.Name, img.Version))
}

// send brings an image to dst: its blobs, its manifest by digest, what is attached
// to it, and then its version and tags, which is when it is seen.
func (c *client) send(ctx context.Context, p parcel, dst Address) (Result, error) {
	res, err := c.stage(ctx, p, dst)
	if err != nil {
		return res, err
	}
	r := c.repo(dst)
	t, err := c.sendVersion(ctx, dst, p)
	if err != nil {
		return res, err
	}
	return res, c.sendTags(ctx, r, p.img.Version, t, p.img.Tags)
}

// stage sends all of an image but what makes it visible.
func (c *client) stage(ctx context.Context, p parcel, dst Address) (Result, error) {
	r := c.repo(dst)
	res := Result{Image: p.img, Ref: dst.String()}
	there, err := c.place(ctx, r, p)
	if err != nil {
		return res, err
	}
	blobs := needs(p.m)
	missing, err := c.lacking(ctx, r, blobs)
	if err != nil {
		return res, err
	}
	res.Blobs, res.Shared = len(blobs), c.sum(blobs).total
	res.Moved, res.Bytes, err = c.sendBlobs(ctx, r, missing, p.open, p.mount)
	res.Shared -= res.Bytes
	if err != nil {
		return res, err
	}
	if there == nil || !there.mine {
		err := c.whole(ctx, r, blobs, p.open, "finish "+dst.String(), func(ctx context.Context) error {
			return r.Manifests().Push(ctx, p.desc, bytes.NewReader(p.raw))
		})
		if err != nil {
			return res, err
		}
	}
	res.Attached, err = c.sendDocuments(ctx, dst, artifact.Digest(p.desc.Digest), p.docs, p.open)
	return res, err
}

// whole sends a manifest whose blobs were sent. A registry may lose one of two
// uploads of the same blob at once, and says so when the manifest comes: what it
// lacks then is sent again.
func (c *client) whole(ctx context.Context, r *remote.Repository, blobs []v1.Descriptor, open opener, what string, manifest func(context.Context) error) error {
	first := true
	return c.retry(ctx, what, func(ctx context.Context) error {
		if !first {
			lost, err := c.lacking(ctx, r, blobs)
			if err == nil {
				_, _, err = c.sendBlobs(ctx, r, lost, open, "")
			}
			if err != nil {
				return final(err)
			}
		}
		first = false
		err := c.retry(ctx, "write the manifest", manifest)
		if !lostBlob(err) {
			return final(err)
		}
		return errors.New("the registry lost blobs that were sent")
	})
}

// sendBlobs says how many blobs, and how many bytes of them, traveled: what the
// registry mounted did not.
func (c *client) sendBlobs(ctx context.Context, r *remote.Repository, blobs []v1.Descriptor, open opener, mount string) (moved int, size int64, err error) {
	gauge := c.sum(blobs)
	opened := make([]bool, len(blobs))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(c.o.Parallel)
	for i, b := range blobs {
		noted := func(ctx context.Context, b v1.Descriptor) (io.ReadCloser, error) {
			opened[i] = true
			return open(ctx, b)
		}
		g.Go(func() error { return c.sendBlob(ctx, r, b, noted, mount, gauge) })
	}
	err = g.Wait()
	for i, b := range blobs {
		if opened[i] {
			moved, size = moved+1, size+b.Size
		}
	}
	return moved, size, err
}

// final marks an error that was tried often enough.
func final(err error) error {
	if err == nil {
		return nil
	}
	return localError{err}
}

func (c *client) sendBlob(ctx context.Context, r *remote.Repository, b v1.Descriptor, open opener, mount string, g *gauge) error {
	seen, again := g.blob(b.Size)
	return c.retry(ctx, "push blob "+short(b), func(ctx context.Context) error {
		again()
		ctx, wrap, stop := c.watch(ctx, seen)
		defer stop()
		body := func() (io.ReadCloser, error) {
			f, err := open(ctx, b)
			if err != nil {
				return nil, err
			}
			return struct {
				io.Reader
				io.Closer
			}{wrap(f), f}, nil
		}
		if mount != "" {
			return caused(ctx, r.Mount(ctx, b, mount, body))
		}
		f, err := body()
		if err != nil {
			return err
		}
		defer f.Close()
		return caused(ctx, r.Blobs().Push(ctx, b, f))
	})
}

// caused says why a transfer was ended by watch.
func caused(ctx context.Context, err error) error {
	if why := context.Cause(ctx); err != nil && why != nil && !errors.Is(why, context.Canceled) {
		return why
	}
	return err
}

// image reads an image's manifest and config; arch picks from an index.
func (c *client) image(ctx context.Context, a Address, arch string) ([]byte, v1.Manifest, artifact.Image, error) {
	raw, m, img, err := c.imageIn(ctx, c.repo(a), a.reference(), arch)
	if err != nil {
		return nil, m, img, fmt.Errorf("%s: %w", a, err)
	}
	if "/"+a.Path != "/"+img.Name && !strings.HasSuffix("/"+a.Path, "/"+img.Name) {
		return nil, m, img, fmt.Errorf("%s: %w: the image there says that its name is %.150q", a, artifact.ErrCorrupt, img.Name)
	}
	return raw, m, img, nil
}

func (c *client) imageIn(ctx context.Context, r *remote.Repository, reference, arch string) (raw []byte, m v1.Manifest, img artifact.Image, err error) {
	desc, found, err := c.head(ctx, r, reference)
	if err == nil && !found {
		err = artifact.ErrNotFound
	}
	if err == nil && desc.MediaType == v1.MediaTypeImageIndex {
		var idx []byte
		if idx, err = c.manifest(ctx, r, desc); err == nil {
			desc, err = pick(idx, arch)
		}
	}
	if err != nil {
		return nil, m, img, err
	}
	raw, config, err := c.readImage(ctx, r, string(desc.Digest))
	if err != nil {
		return nil, m, img, err
	}
	if m, err = oci.CheckManifest(raw); err != nil {
		return nil, m, img, err
	}
	if err := json.Unmarshal(config, &img); err != nil {
		return nil, m, img, fmt.Errorf("%w: the image's config: %w", artifact.ErrCorrupt, err)
	}
	img.Digest, img.Tags = artifact.Digest(content.NewDescriptorFromBytes("", raw).Digest), nil
	return raw, m, img, nil
}

// readImage reads an image's manifest, checked, and its config.
func (c *client) readImage(ctx context.Context, r *remote.Repository, digest string) (raw, config []byte, err error) {
	desc, found, err := c.head(ctx, r, digest)
	if err == nil && !found {
		err = artifact.ErrNotFound
	}
	if err != nil {
		return nil, nil, err
	}
	if raw, err = c.manifest(ctx, r, desc); err != nil {
		return nil, nil, err
	}
	m, err := oci.CheckManifest(raw)
	if err != nil {
		return nil, nil, err
	}
	err = c.retry(ctx, "read the image's config", func(ctx context.Context) error {
		rc, err := r.Blobs().Fetch(ctx, m.Config)
		if err != nil {
			return err
		}
		defer rc.Close()
		config, err = content.ReadAll(rc, m.Config) // no more than its size, and its digest
		return mismatch(err)
	})
	return raw, config, err
}

func mismatch(err error) error {
	if errors.Is(err, content.ErrMismatchedDigest) || errors.Is(err, content.ErrTrailingData) || errors.Is(err, content.ErrInvalidDescriptorSize) {
		return fmt.Errorf("%w: %w", artifact.ErrCorrupt, err)
	}
	return err
}

func (c *client) manifest(ctx context.Context, r *remote.Repository, desc v1.Descriptor) (raw []byte, err error) {
	if desc.Size > oci.MaxManifest {
		return nil, fmt.Errorf("%w: a manifest of %d bytes", artifact.ErrCorrupt, desc.Size)
	}
	err = c.retry(ctx, "read the manifest", func(ctx context.Context) error {
		rc, err := r.Manifests().Fetch(ctx, desc)
		if err != nil {
			return err
		}
		defer rc.Close()
		raw, err = content.ReadAll(rc, desc)
		return mismatch(err)
	})
	return raw, err
}
