package fake

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
)

// Retire implements artifact.Retirer.
func (s *Store) Retire(_ context.Context, img artifact.Image, why string, at time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, err := s.resolve(artifact.Ref{Name: img.Name, Digest: img.Digest})
	if err != nil {
		return err
	}
	if !slices.Equal(now.Tags, slices.Sorted(slices.Values(img.Tags))) {
		return fmt.Errorf("%s:%s has tags %q now: %w", img.Name, img.Version, now.Tags, artifact.ErrInUse)
	}
	s.forget(now)
	s.detach(func(a attached) bool { return a.to == now.Digest && a.Size > artifact.MaxKept })
	s.removed = append(s.removed, artifact.Removed{Image: now, Why: why, At: at.UTC().Truncate(time.Second)})
	return nil
}

// Removed implements artifact.Retirer.
func (s *Store) Removed(_ context.Context, name string) ([]artifact.Removed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []artifact.Removed
	for _, r := range s.removed {
		if name == "" || r.Name == name {
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b artifact.Removed) int {
		return cmp.Or(b.At.Compare(a.At), artifact.NewestFirst(a.Image, b.Image))
	})
	return out, nil
}

// forget takes an image and its tags out of sight.
func (s *Store) forget(img artifact.Image) {
	delete(s.images, img.Name+":"+img.Version)
	for _, t := range img.Tags {
		delete(s.tags, img.Name+":"+t)
	}
}

// taken tells whether another image of this version was retired.
func (s *Store) taken(img artifact.Image) bool {
	return slices.ContainsFunc(s.removed, func(r artifact.Removed) bool {
		return r.Name == img.Name && r.Version == img.Version && r.Digest != img.Digest
	})
}

// gone is the error of a reference that names nothing, or what was retired.
func (s *Store) gone(ref artifact.Ref) error {
	for _, r := range s.removed {
		if r.Name == ref.Name && (ref.Digest == "" && r.Version == ref.Tag || ref.Digest != "" && strings.HasPrefix(string(r.Digest), string(ref.Digest))) {
			return &artifact.RemovedError{Removed: r}
		}
	}
	return fmt.Errorf("%s: %w", ref, artifact.ErrNotFound)
}
