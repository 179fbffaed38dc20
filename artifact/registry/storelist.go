package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/oci"
	"golang.org/x/sync/errgroup"
)

// complete finds the only image whose digest begins so.
func (s *Store) complete(ctx context.Context, ref artifact.Ref) (artifact.Digest, error) {
	images, err := s.listOne(ctx, ref.Name, "")
	if err != nil {
		return "", err
	}
	var found []artifact.Digest
	for _, i := range images {
		if strings.HasPrefix(string(i.Digest), string(ref.Digest)) {
			found = append(found, i.Digest)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("%s: %w", ref, artifact.ErrNotFound)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%s names %d images: give more digits", ref, len(found))
}

// tagsOf lists the moving tags of an image: those that name what its version
// does, or itself. Tags that are known to be versions are not asked for.
func (s *Store) tagsOf(ctx context.Context, img artifact.Image, t v1.Descriptor) ([]string, error) {
	copies, err := s.local.Copies(ctx, s.String())
	if err != nil {
		return nil, err
	}
	versions := map[string]bool{}
	for _, i := range copies {
		if i.Name == img.Name {
			versions[remoteTag(i.Version)] = true
		}
	}
	heads, err := s.heads(ctx, img.Name, func(tag string) bool { return versions[tag] })
	if err != nil {
		return nil, err
	}
	var out []string
	for tag, d := range heads {
		if tag != remoteTag(img.Version) && (d.Digest == t.Digest || artifact.Digest(d.Digest) == img.Digest) {
			out = append(out, tag)
		}
	}
	slices.Sort(out)
	return out, nil
}

// heads asks what each tag of an image's repository names, but for those to skip.
func (s *Store) heads(ctx context.Context, name string, skip func(tag string) bool) (map[string]v1.Descriptor, error) {
	a := s.repo(name)
	tags, err := s.c.tags(ctx, a)
	if err != nil {
		return nil, err
	}
	tags = slices.DeleteFunc(tags, func(tag string) bool { return aside(tag) || skip(tag) })
	r := s.c.repo(a)
	descs, there := make([]v1.Descriptor, len(tags)), make([]bool, len(tags))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * s.c.o.Parallel)
	for i, tag := range tags {
		g.Go(func() (err error) {
			descs[i], there[i], err = s.c.head(gctx, r, tag)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := map[string]v1.Descriptor{}
	for i, tag := range tags {
		if there[i] {
			out[tag] = descs[i]
		}
	}
	return out, nil
}

// List implements artifact.Lister. Of a version with images of several platforms
// it lists this machine's, or all if there is none.
func (s *Store) List(ctx context.Context, name string) ([]artifact.Image, error) {
	names := []string{name}
	if name == "" {
		var err error
		if names, err = s.names(ctx); err != nil {
			return nil, s.told(err)
		}
	}
	var out []artifact.Image
	for _, n := range names {
		images, err := s.listOne(ctx, n, s.arch)
		if err != nil {
			return nil, s.told(err)
		}
		out = append(out, images...)
	}
	slices.SortStableFunc(out, artifact.NewestFirst)
	return out, nil
}

// listOne lists the images of a name; arch prefers those of one architecture.
func (s *Store) listOne(ctx context.Context, name, arch string) ([]artifact.Image, error) {
	if artifact.CheckName(name) != nil {
		return nil, nil
	}
	heads, err := s.heads(ctx, name, func(string) bool { return false })
	if err != nil {
		return nil, err
	}
	var out []artifact.Image
	for tag, t := range heads {
		entries := []v1.Descriptor{t}
		if t.MediaType == v1.MediaTypeImageIndex {
			if entries, err = s.entries(ctx, name, t, arch); err != nil {
				return nil, err
			}
		}
		for _, d := range entries {
			if artifact.Digest(d.Digest).Validate() != nil {
				continue
			}
			img, err := s.image(ctx, name, artifact.Digest(d.Digest))
			if errors.Is(err, artifact.ErrCorrupt) && !errors.Is(err, oci.ErrNoImage) { // anybody may put it there
				s.c.o.Warn(fmt.Sprintf("%s:%s is left out: %v", name, tag, err))
			}
			if errors.Is(err, artifact.ErrCorrupt) || errors.Is(err, artifact.ErrNotFound) || err == nil && remoteTag(img.Version) != tag {
				continue // no image of ours, removed meanwhile, or a moving tag
			}
			if err != nil {
				return nil, err
			}
			for other, o := range heads {
				if other != tag && (o.Digest == t.Digest || artifact.Digest(o.Digest) == img.Digest) {
					img.Tags = append(img.Tags, other)
				}
			}
			slices.Sort(img.Tags)
			out = append(out, img)
		}
	}
	return out, nil
}

func (s *Store) entries(ctx context.Context, name string, t v1.Descriptor, arch string) ([]v1.Descriptor, error) {
	raw, err := s.c.manifest(ctx, s.c.repo(s.repo(name)), t)
	if err != nil {
		return nil, err
	}
	idx, err := readIndex(raw)
	if err != nil {
		return nil, err
	}
	mine := slices.DeleteFunc(slices.Clone(idx.Manifests), func(d v1.Descriptor) bool {
		return d.Platform == nil || d.Platform.Architecture != arch
	})
	if len(mine) > 0 {
		return mine, nil
	}
	return idx.Manifests, nil
}

// names lists the images of this place, by the registry's catalog; where it has
// none, those that were used here.
func (s *Store) names(ctx context.Context) ([]string, error) {
	all, err := s.c.catalog(ctx, s.at)
	if err == nil || !lacksCatalog(err) {
		return all, err
	}
	copies, cerr := s.local.Copies(ctx, s.String())
	if cerr != nil {
		return nil, cerr
	}
	for _, i := range copies {
		if !slices.Contains(all, i.Name) {
			all = append(all, i.Name)
		}
	}
	s.c.o.Warn(fmt.Sprintf("%s does not list its repositories: these are the images that were used here", s.at.Host))
	return all, nil
}
