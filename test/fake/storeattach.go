package fake

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rebake/rebake/artifact"
)

type attached struct {
	artifact.Attachment
	to   artifact.Digest
	body []byte
	sum  artifact.Digest // of body, as it was attached
	at   time.Time
}

// Describe implements artifact.Attacher.
func (s *Store) Describe(_ context.Context, img artifact.Image) (artifact.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.describe(img)
}

// Attach implements artifact.Attacher.
func (s *Store) Attach(_ context.Context, to artifact.Digest, a artifact.Attachment, body []byte) (artifact.Attachment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := artifact.CheckAttachment(a, body); err != nil {
		return a, err
	}
	if !s.known[to] {
		return a, fmt.Errorf("attach to %s: %w", to, artifact.ErrNotFound)
	}
	a.Digest, a.Size, a.Created, a.Notes = "", int64(len(body)), a.Created.UTC(), maps.Clone(a.Notes)
	sum := sumOf(body)
	id, err := json.Marshal([]any{to, a, sum})
	if err != nil {
		return a, err
	}
	a.Digest = sumOf(id)
	if !slices.ContainsFunc(s.attached, func(have attached) bool { return have.Digest == a.Digest }) {
		s.attached = append(s.attached, attached{a, to, bytes.Clone(body), sum, time.Now()})
	}
	return a, nil
}

// Attached implements artifact.Attacher.
func (s *Store) Attached(_ context.Context, to artifact.Digest, kind string) ([]artifact.Attachment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []artifact.Attachment
	for _, a := range s.attached {
		if a.to == to && (kind == "" || a.Kind == kind) {
			a.Notes = maps.Clone(a.Notes)
			out = append(out, a.Attachment)
		}
	}
	slices.SortStableFunc(out, func(a, b artifact.Attachment) int { return a.Created.Compare(b.Created) })
	return out, nil
}

// ReadAttachment implements artifact.Attacher.
func (s *Store) ReadAttachment(_ context.Context, want artifact.Attachment) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.attached {
		if a.Digest != want.Digest {
			continue
		}
		if sumOf(a.body) != a.sum {
			return nil, fmt.Errorf("attachment %s: %w", a.Digest, artifact.ErrCorrupt)
		}
		return bytes.Clone(a.body), nil
	}
	return nil, fmt.Errorf("attachment %s is not there: %w", want.Digest, artifact.ErrCorrupt)
}

// Tamper changes a byte of every attachment with this body.
func (s *Store) Tamper(body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.attached {
		if bytes.Equal(a.body, body) {
			a.body[len(a.body)-1] ^= 1
		}
	}
}

// detach forgets those that drop tells. Nothing is attached to attachments here.
func (s *Store) detach(drop func(attached) bool) {
	s.attached = slices.DeleteFunc(s.attached, drop)
}
