package registry

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"
)

// annotationDisktype tells the builder of an index's entry, as podman has it.
const annotationDisktype = "disktype"

// A version's tag names the image's manifest, as long as there is one image of
// that version. When one of another platform (architecture × builder) comes, it
// names an index of both: the manifests, and so the images' digests, are the same.
type target struct {
	desc v1.Descriptor
	raw  []byte
}

// entry is an image as an index lists it.
func entry(desc v1.Descriptor, img artifact.Image) v1.Descriptor {
	return v1.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size, ArtifactType: desc.ArtifactType,
		Platform: &v1.Platform{OS: "linux", Architecture: img.Arch}, Annotations: map[string]string{annotationDisktype: img.Lineage.Builder}}
}

func samePlatform(a, b v1.Descriptor) bool {
	return a.Platform == nil || b.Platform == nil || a.Platform.Architecture == b.Platform.Architecture &&
		a.Annotations[annotationDisktype] == b.Annotations[annotationDisktype]
}

func readIndex(raw []byte) (v1.Index, error) {
	var idx v1.Index
	if err := json.Unmarshal(raw, &idx); err != nil {
		return idx, fmt.Errorf("%w: the index: %w", artifact.ErrCorrupt, err)
	}
	idx.Manifests = slices.DeleteFunc(idx.Manifests, func(d v1.Descriptor) bool {
		return d.MediaType != v1.MediaTypeImageManifest || artifact.Digest(d.Digest).Validate() != nil || d.Size <= 0
	})
	return idx, nil
}

// pick finds the image for an architecture in an index; "" is any, if there is one.
func pick(raw []byte, arch string) (v1.Descriptor, error) {
	idx, err := readIndex(raw)
	if err != nil {
		return v1.Descriptor{}, err
	}
	var found []v1.Descriptor
	var all []string
	for _, d := range idx.Manifests {
		if arch == "" || d.Platform != nil && d.Platform.Architecture == arch {
			found = append(found, d)
		}
		if d.Platform != nil {
			all = append(all, fmt.Sprintf("%.30s/%.30s @%s", d.Platform.Architecture, d.Annotations[annotationDisktype], d.Digest))
		}
	}
	if len(found) != 1 {
		return v1.Descriptor{}, fmt.Errorf("the index has %d images for %s: choose one by --arch, or by its digest, as in …@sha256:…; it has %.1000s", len(found), cmp.Or(arch, "any"), strings.Join(all, ", "))
	}
	return found[0], nil
}

// placed is what a version's tag names: one image, or an index.
type placed struct {
	desc    v1.Descriptor
	raw     []byte          // of an index
	entries []v1.Descriptor // the images, as an index lists them
	mine    bool            // the image that was asked about is among them
}

// place looks whether an image may have its version: ErrExists if that is
// another image's. nil: the version is free.
func (c *client) place(ctx context.Context, r *remote.Repository, p parcel) (*placed, error) {
	have, found, err := c.head(ctx, r, remoteTag(p.img.Version))
	if err != nil || !found {
		return nil, err
	}
	at := &placed{desc: have, mine: have.Digest == p.desc.Digest}
	exists := fmt.Errorf("%s:%s is %s there: %w", p.img.Name, p.img.Version, have.Digest, artifact.ErrExists)
	switch {
	case at.mine:
		at.entries = []v1.Descriptor{entry(have, p.img)}
		return at, nil
	case have.MediaType == v1.MediaTypeImageIndex:
		if at.raw, err = c.manifest(ctx, r, have); err != nil {
			return nil, err
		}
		idx, err := readIndex(at.raw)
		if err != nil {
			return nil, err
		}
		at.entries, at.mine = idx.Manifests, hasDigest(idx.Manifests, p.desc)
	default:
		_, _, other, err := c.imageIn(ctx, r, string(have.Digest), "")
		if err != nil && !errors.Is(err, artifact.ErrCorrupt) {
			return nil, err
		}
		if err != nil || other.Name != p.img.Name || other.Version != p.img.Version || other.Arch == "" { // no image of ours, or a moving tag
			return nil, exists
		}
		at.entries = []v1.Descriptor{entry(have, other)}
	}
	if !at.mine && (p.img.Arch == "" || slices.ContainsFunc(at.entries, func(d v1.Descriptor) bool { return samePlatform(d, entry(p.desc, p.img)) })) {
		return nil, exists
	}
	return at, nil
}

// A claim is a tag of an image's own that says that it is of a version which has
// images of several platforms. Whoever writes the index claims first, and lists
// the claims again after it wrote: so the last writer knows of all.
func claims(version string) string {
	return "sha256-" + digest.FromString("version "+version).Encoded() + ".p."
}

func claimTag(version string, d artifact.Digest) string { return claims(version) + d.Hex()[:40] }

// union adds the claims of a version to the images of its index. Of two images of
// one platform that one stays which is in the index, else the first by its digest.
func (c *client) union(ctx context.Context, a Address, version string, entries []v1.Descriptor) ([]v1.Descriptor, error) {
	tags, err := c.tags(ctx, a)
	if err != nil {
		return nil, err
	}
	slices.Sort(tags) // by digest
	out := slices.Clone(entries)
	r := c.repo(a)
	for _, tag := range tags {
		if !strings.HasPrefix(tag, claims(version)) || slices.ContainsFunc(out, func(d v1.Descriptor) bool { return tag == claimTag(version, artifact.Digest(d.Digest)) }) {
			continue
		}
		d, found, err := c.head(ctx, r, tag)
		if err != nil || !found {
			if err != nil {
				return nil, err
			}
			continue
		}
		_, _, img, err := c.imageIn(ctx, r, string(d.Digest), "")
		if errors.Is(err, artifact.ErrCorrupt) || errors.Is(err, artifact.ErrNotFound) || err == nil && img.Version != version {
			continue
		}
		if err != nil {
			return nil, err
		}
		if e := entry(d, img); !slices.ContainsFunc(out, func(have v1.Descriptor) bool { return samePlatform(have, e) }) {
			out = append(out, e)
		}
	}
	return out, nil
}

// indexOf is the index of some images, the same whoever came first.
func indexOf(entries []v1.Descriptor) (target, error) {
	slices.SortFunc(entries, func(a, b v1.Descriptor) int {
		return cmp.Or(cmp.Compare(platform(a), platform(b)), cmp.Compare(a.Digest, b.Digest))
	})
	raw, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: entries})
	return target{content.NewDescriptorFromBytes(v1.MediaTypeImageIndex, raw), raw}, err
}

func platform(d v1.Descriptor) string {
	if d.Platform == nil {
		return ""
	}
	return d.Platform.Architecture + "/" + d.Annotations[annotationDisktype]
}

// sendVersion makes the image visible under its version. Of two writers of a
// free version at the same instant the later one stays, so it looks again after
// some more time than it took itself from its look to its write.
func (c *client) sendVersion(ctx context.Context, a Address, p parcel) (target, error) {
	r, tag, claimed := c.repo(a), remoteTag(p.img.Version), false
	for range 16 {
		began := time.Now()
		at, err := c.place(ctx, r, p)
		if err != nil {
			return target{}, err
		}
		if at == nil {
			if err := c.put(ctx, r, target{p.desc, p.raw}, tag); err != nil {
				return target{}, err
			}
			took := time.Since(began)
			select {
			case <-time.After(3*took + rand.N(took+1)):
			case <-ctx.Done():
				return target{}, ctx.Err()
			}
			continue
		}
		if at.raw == nil && at.mine {
			return target{p.desc, p.raw}, nil
		}
		if !claimed {
			if err := c.put(ctx, r, target{p.desc, p.raw}, claimTag(p.img.Version, artifact.Digest(p.desc.Digest))); err != nil {
				return target{}, err
			}
			claimed = true
		}
		all, err := c.union(ctx, a, p.img.Version, at.entries)
		if err != nil {
			return target{}, err
		}
		if !hasDigest(all, p.desc) {
			return target{}, fmt.Errorf("%s:%s: another image of %s came first: %w", p.img.Name, p.img.Version, p.img.Arch, artifact.ErrExists)
		}
		t, err := indexOf(all)
		if err != nil || at.mine && len(all) == len(at.entries) {
			return target{at.desc, at.raw}, err
		}
		if err := c.put(ctx, r, t, tag); err != nil {
			return t, err
		}
	}
	return target{}, fmt.Errorf("%s:%s: others write it all the time: try again", p.img.Name, p.img.Version)
}

// sendTags points moving tags at what the version's tag names, also if that has
// become another index meanwhile.
func (c *client) sendTags(ctx context.Context, r *remote.Repository, version string, t target, tags []string) error {
	for _, tag := range tags {
		for try := 0; ; try++ {
			if err := c.sendTag(ctx, r, t, tag); err != nil {
				return err
			}
			now, found, err := c.head(ctx, r, remoteTag(version))
			if err != nil {
				return err
			}
			if !found || now.Digest == t.desc.Digest || now.MediaType != v1.MediaTypeImageIndex || try == 8 {
				break
			}
			raw, err := c.manifest(ctx, r, now)
			if err != nil {
				return err
			}
			t = target{now, raw}
		}
	}
	return nil
}

// put points a tag at a manifest or index: one request, all or nothing.
func (c *client) put(ctx context.Context, r *remote.Repository, t target, tag string) error {
	return c.retry(ctx, "write "+tag, func(ctx context.Context) error {
		return r.Manifests().PushReference(ctx, t.desc, bytes.NewReader(t.raw), tag)
	})
}

// versionAt is the version of the image, or of an image of the index, that a tag
// names; "" if it names no image of ours.
func (c *client) versionAt(ctx context.Context, r *remote.Repository, tag string) (version string, desc v1.Descriptor, found bool, err error) {
	desc, found, err = c.head(ctx, r, tag)
	if err != nil || !found {
		return "", desc, found, err
	}
	reference := string(desc.Digest)
	if desc.MediaType == v1.MediaTypeImageIndex {
		raw, err := c.manifest(ctx, r, desc)
		if err != nil {
			return "", desc, true, err
		}
		idx, err := readIndex(raw)
		if err != nil || len(idx.Manifests) == 0 {
			return "", desc, true, err
		}
		reference = string(idx.Manifests[0].Digest)
	}
	_, _, img, err := c.imageIn(ctx, r, reference, "")
	return img.Version, desc, true, err
}

// sendTag moves a moving tag.
func (c *client) sendTag(ctx context.Context, r *remote.Repository, t target, tag string) error {
	version, desc, found, err := c.versionAt(ctx, r, remoteTag(tag))
	switch {
	case err != nil:
		return fmt.Errorf("tag %s: %w", tag, err)
	case found && desc.Digest == t.desc.Digest:
		return nil
	case found && remoteTag(version) == remoteTag(tag):
		return fmt.Errorf("%s is a version there, which never moves: %w", tag, artifact.ErrExists)
	}
	return c.put(ctx, r, t, remoteTag(tag))
}
