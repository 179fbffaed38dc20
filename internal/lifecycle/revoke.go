package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
)

// Revocation says that an image must not be used from some time on, or that it
// may be again. It is attached to the image.
type Revocation struct {
	Said
	Revoked bool      `json:"revoked"`       // false: it was restored
	From    time.Time `json:"from,omitzero"` // since when, or from when on, it holds; zero: at once, by whatever clock
}

// compare orders them: of two that were said at once, that it is revoked counts.
func (r Revocation) compare(q Revocation) int {
	rank := map[bool]int{true: 1}
	return cmp.Or(cmp.Compare(r.Serial, q.Serial), cmp.Compare(rank[r.Revoked], rank[q.Revoked]), r.Said.Compare(q.Said))
}

// String is why, by whom and since when, without control characters or line breaks.
func (r Revocation) String() string {
	return fmt.Sprintf("%s (by %s, since %s)", OneLine(r.Reason), OneLine(r.By), r.since().UTC().Format("2006-01-02 15:04 MST"))
}

func (r Revocation) since() time.Time {
	if r.From.IsZero() {
		return r.At
	}
	return r.From
}

// OneLine is a text of somebody's without line breaks and control characters.
func OneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r < ' ' || r == 0x7f }), " ")
}

// State is whether an image is revoked by itself.
type State struct {
	Now  *Revocation  // nil: it is not revoked
	Next *Revocation  // one that holds from a later time on; nil: none
	All  []Revocation // what was said, oldest first
}

// revocations reads what was said of an image. A record that cannot be understood
// is an error: it may say that the image is revoked.
func revocations(ctx context.Context, s Store, ask listing, img artifact.Image, now time.Time) (State, error) {
	all, bad, err := read[Revocation](ctx, s, ask, img, RevocationKind, RevocationType)
	if err == nil && len(bad) > 0 {
		err = fmt.Errorf("a revocation or restoration of %s cannot be understood: %w", name(img), bad[0])
	}
	if err != nil {
		return State{}, err
	}
	slices.SortFunc(all, Revocation.compare)
	st := State{All: all}
	for i, r := range all {
		if r.From.After(now) {
			if r.Revoked {
				st.Next = &all[i]
			}
			continue
		}
		st.Now, st.Next = &all[i], nil // what was said before for later is overruled
	}
	if st.Now != nil && !st.Now.Revoked {
		st.Now = nil
	}
	return st, nil
}

// Revoke says that an image is revoked, with all that was made from it: from a
// time on, or at once where it is zero.
func Revoke(ctx context.Context, s Store, who Author, img artifact.Image, from time.Time, reason string) (Revocation, error) {
	return say(ctx, s, who, img, Revocation{Revoked: true, From: from}, reason)
}

// ErrNotRevoked is of an image that cannot be restored.
var ErrNotRevoked = errors.New("is not revoked")

// Restore says that an image that was revoked, or will be, may be used again.
// ErrNotRevoked if it is not, or only because of what it was made from.
func Restore(ctx context.Context, s Store, who Author, img artifact.Image, reason string) (Revocation, error) {
	now := who.Now()
	st, err := revocations(ctx, s, each(s, RevocationKind), img, now)
	if err != nil {
		return Revocation{}, err
	}
	if st.Now == nil && st.Next == nil {
		why, err := Revoked(ctx, s, img, now)
		if err == nil && why != "" {
			err = fmt.Errorf("%s %w by itself: %s", name(img), ErrNotRevoked, why)
		} else if err == nil {
			err = fmt.Errorf("%s %w", name(img), ErrNotRevoked)
		}
		return Revocation{}, err
	}
	return say(ctx, s, who, img, Revocation{}, reason)
}

// say writes one down, and again if a registry lost it to another at once.
func say(ctx context.Context, s Store, who Author, img artifact.Image, r Revocation, reason string) (Revocation, error) {
	for range tries {
		st, err := revocations(ctx, s, each(s, RevocationKind), img, who.Now())
		if err != nil {
			return r, err
		}
		if slices.ContainsFunc(st.All, func(q Revocation) bool { return q.ID == r.ID && r.ID != "" }) {
			return r, nil
		}
		if r.ID == "" {
			r.Said = who.says(reason, 1)
			if n := len(st.All); n > 0 {
				r.Serial = st.All[n-1].Serial + 1
			}
		}
		if err := write(ctx, s, img, RevocationKind, RevocationType, r.At, r); err != nil {
			return r, err
		}
	}
	return r, fmt.Errorf("what is said of %s is lost again and again: the registry's list of referrers is overwritten by others", name(img))
}

// Revoked is why an image, or one that it was made from, is revoked at a time; "":
// it is not. A base that the store does not have says nothing; what cannot be
// read is an error.
func Revoked(ctx context.Context, s artifact.Store, img artifact.Image, now time.Time) (string, error) {
	st, err := In(s)
	if err != nil {
		return "", err
	}
	return NewLineage(st, now).Revoked(ctx, img)
}

// maxAncestors bounds how many images are followed.
const maxAncestors = 1000

// Lineage answers for many images at once, and reads each only once. It is for
// one goroutine, and for a short time: it does not see what changes meanwhile.
type Lineage struct {
	store Store
	ask   listing
	now   time.Time
	known map[artifact.Digest]*artifact.Image // nil: not in the store
	said  map[artifact.Digest]State
}

// NewLineage asks a store, as of now. Images that are at hand are not read again, and
// the records of all are listed at once.
func NewLineage(s Store, now time.Time, have ...artifact.Image) *Lineage {
	ask := each(s, RevocationKind)
	if len(have) > 0 {
		ask = atOnce(s, RevocationKind)
	}
	l := &Lineage{s, ask, now, map[artifact.Digest]*artifact.Image{}, map[artifact.Digest]State{}}
	for i := range have {
		l.known[have[i].Digest] = &have[i]
	}
	return l
}

// Revoked is as the function of that name.
func (l *Lineage) Revoked(ctx context.Context, img artifact.Image) (string, error) {
	// The image may come from a fleet's record: a registry's store must see it before
	// it can say what is attached to it.
	if _, err := l.find(ctx, artifact.Ancestor{Ref: name(img), Digest: img.Digest}); err != nil {
		return "", fmt.Errorf("find %s: %w", name(img), err)
	}
	st, err := l.state(ctx, img)
	if err != nil {
		return "", err
	}
	if st.Now != nil {
		return st.Now.String(), nil
	}
	above, err := l.Ancestors(ctx, img)
	if err != nil {
		return "", err
	}
	for _, a := range above {
		if st, err = l.state(ctx, a); err != nil {
			return "", err
		}
		if st.Now != nil {
			return fmt.Sprintf("it was made from %s, which is revoked: %s", name(a), st.Now), nil
		}
	}
	return "", nil
}

// State is whether the image is revoked by itself.
func (l *Lineage) state(ctx context.Context, img artifact.Image) (State, error) {
	if st, ok := l.said[img.Digest]; ok {
		return st, nil
	}
	st, err := revocations(ctx, l.store, l.ask, img, l.now)
	if err == nil {
		l.said[img.Digest] = st
	}
	return st, err
}

// Ancestors are the images that an image was made from and the store has, nearest
// first. One that is gone does not hide those above it, where the image knows them.
func (l *Lineage) Ancestors(ctx context.Context, img artifact.Image) ([]artifact.Image, error) {
	var out []artifact.Image
	seen := map[artifact.Digest]bool{img.Digest: true}
	next := parents(img)
	for len(next) > 0 {
		p := next[0]
		if next = next[1:]; seen[p.Digest] {
			continue
		}
		if seen[p.Digest] = true; len(seen) > maxAncestors {
			return nil, fmt.Errorf("%s has more than %d ancestors", name(img), maxAncestors)
		}
		a, err := l.find(ctx, p)
		if err != nil {
			return nil, fmt.Errorf("read %s, which %s was made from: %w", p.Ref, name(img), err)
		}
		if a != nil {
			out = append(out, *a)
			next = append(next, parents(*a)...)
		}
	}
	return out, nil
}

// parents are those that the image itself names.
func parents(img artifact.Image) []artifact.Ancestor {
	l := img.Lineage
	return append([]artifact.Ancestor{{Ref: l.Parent, Digest: l.ParentDigest}}, l.Ancestors...)
}

// find is the image of the store, or nil.
func (l *Lineage) find(ctx context.Context, p artifact.Ancestor) (*artifact.Image, error) {
	if img, ok := l.known[p.Digest]; ok {
		return img, nil
	}
	ref, err := artifact.ParseRef(p.Ref)
	if err != nil || p.Digest.Validate() != nil {
		return nil, nil // no image of a store
	}
	// What was removed and left a tombstone can be revoked all the same.
	img, _, err := artifact.Known(ctx, l.store, artifact.Ref{Name: ref.Name, Digest: p.Digest})
	if k, ok := l.store.(keeper); ok && errors.Is(err, artifact.ErrNotFound) {
		var found bool
		if img, found, err = k.Kept(ctx, p.Digest); err == nil && !found {
			err = artifact.ErrNotFound
		}
	}
	switch {
	case errors.Is(err, artifact.ErrNotFound):
		l.known[p.Digest] = nil
		return nil, nil
	case err != nil:
		return nil, err
	}
	l.known[p.Digest] = &img
	return &img, nil
}

// keeper is the optional power of a store to know images of others, of which it has
// no disk: the ancestors of one that was pulled.
type keeper interface {
	Kept(ctx context.Context, d artifact.Digest) (img artifact.Image, found bool, err error)
}

// Descendants are the images of the store that were made from an image, newest first.
func Descendants(ctx context.Context, s Store, img artifact.Image) ([]artifact.Image, error) {
	all, err := s.List(ctx, "")
	if err != nil {
		return nil, err
	}
	l := NewLineage(s, time.Time{}, all...)
	var out []artifact.Image
	for _, child := range all {
		above, err := l.Ancestors(ctx, child)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(above, func(a artifact.Image) bool { return a.Digest == img.Digest }) {
			out = append(out, child)
		}
	}
	return out, nil
}

// Needed is why an image must not be removed without a trace: it is revoked, or
// will be, and images are there that were made from it and would lose that; "": it may.
func Needed(ctx context.Context, s Store, now time.Time, img artifact.Image) (string, error) {
	st, err := revocations(ctx, s, each(s, RevocationKind), img, now)
	if err != nil || st.Now == nil && st.Next == nil {
		return "", err
	}
	below, err := Descendants(ctx, s, img)
	if err != nil || len(below) == 0 {
		return "", err
	}
	return fmt.Sprintf("%s is revoked, and %s was made from it, which would not be known to be revoked any more", name(img), name(below[0])), nil
}
