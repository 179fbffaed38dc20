// Package lifecycle is what is said of an image after it was made: that it was
// promoted to a channel (promote.go, history.go), that it was revoked or restored
// (revoke.go), and that it came from a base that has moved on (outdated.go). What
// is said is attached to the image, as in-toto statements, so that it goes where
// the image goes; any store that keeps attachments will do.
//
// Nothing here is changed once it is said: a channel's history only grows, and a
// restored image carries its revocation too. Stores have no compare and swap, so
// the records decide, and each has a serial that is above all that its author saw:
// see Compare.
package lifecycle

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/statement"
)

// Kinds of attachments.
const (
	PromotionKind  = "application/vnd.rebake.promotion.v1+json"
	RevocationKind = "application/vnd.rebake.revocation.v1+json"
)

// Predicate types of the statements: docs/channels.md says what is in them.
const (
	PromotionType  = "https://github.com/rebake/rebake/blob/main/docs/channels.md#promotion-v1"
	RevocationType = "https://github.com/rebake/rebake/blob/main/docs/channels.md#revocation-v1"
)

// ErrRevoked says that an image, or one that it was made from, was revoked.
var ErrRevoked = errors.New("revoked")

// maxRecords bounds how many records of a kind are read of one image.
const maxRecords = 1000

// Store is what records are kept in.
type Store interface {
	artifact.Store
	artifact.Lister
	artifact.Attacher
}

// In is the store as one that can keep records.
func In(s artifact.Store) (Store, error) {
	if st, ok := s.(Store); ok {
		return st, nil
	}
	return nil, fmt.Errorf("the store %T cannot list images and keep attachments: channels and revocations need both", s)
}

// Said is who said something, when, and why.
type Said struct {
	Serial int       `json:"serial"` // above all of its kind that the author saw
	ID     string    `json:"id"`     // tells two apart that are alike
	At     time.Time `json:"at"`     // by the author's clock
	By     string    `json:"by"`
	Reason string    `json:"reason"`
}

// Author is who says it, and by which clock.
type Author struct {
	By  string
	Now func() time.Time
}

// Me is this user on this machine, by its clock.
func Me() Author {
	name, host := strconv.Itoa(os.Getuid()), "localhost"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	return Author{name + "@" + host, time.Now}
}

func (a Author) says(reason string, serial int) Said {
	var id [8]byte
	_, _ = rand.Read(id[:]) // it never fails
	return Said{serial, hex.EncodeToString(id[:]), a.Now().UTC(), a.By, reason}
}

// Compare orders what was said: who saw another's record comes after it, whatever
// the clocks say; of two that were made at once the later by the clock comes last.
func (a Said) Compare(b Said) int {
	return cmp.Or(cmp.Compare(a.Serial, b.Serial), a.At.Compare(b.At), cmp.Compare(a.ID, b.ID))
}

func name(img artifact.Image) string { return img.Name + ":" + img.Version }

// write attaches a record to an image.
func write(ctx context.Context, s Store, img artifact.Image, kind, predicate string, at time.Time, record any) error {
	st, err := statement.New(name(img), img.Digest, predicate, record)
	if err != nil {
		return err
	}
	_, err = s.Attach(ctx, img.Digest, artifact.Attachment{
		Kind: kind, Media: statement.Media, Created: at.UTC().Truncate(time.Second),
		Notes: map[string]string{statement.NotePredicate: predicate},
	}, st.Bytes())
	return err
}

// unreadable is a record that is there and cannot be understood.
type unreadable struct {
	what artifact.Digest
	err  error
}

func (u *unreadable) Error() string { return fmt.Sprintf("attachment %s: %v", u.what, u.err) }
func (u *unreadable) Unwrap() error { return u.err }

// listing lists an image's attachments of a kind.
type listing func(ctx context.Context, img artifact.Image) ([]artifact.Attachment, error)

// each asks the store about one image after the other.
func each(s Store, kind string) listing {
	return func(ctx context.Context, img artifact.Image) ([]artifact.Attachment, error) {
		return s.Attached(ctx, img.Digest, kind)
	}
}

// atOnce asks about all of them at the first question, where the store can do that.
func atOnce(s Store, kind string) listing {
	l, ok := s.(artifact.AttachedLister)
	if !ok {
		return each(s, kind)
	}
	var all map[artifact.Digest][]artifact.Attachment
	return func(ctx context.Context, img artifact.Image) (_ []artifact.Attachment, err error) {
		if all == nil {
			if all, err = l.AttachedAll(ctx, kind); err != nil {
				return nil, err
			}
		}
		return all[img.Digest], nil
	}
}

// read returns the records of a kind that an image has, in no order, and what is
// wrong with those that cannot be understood. An error is that they could not be read.
func read[T any](ctx context.Context, s Store, ask listing, img artifact.Image, kind, predicate string) (out []T, bad []*unreadable, err error) {
	list, err := ask(ctx, img)
	if err != nil {
		return nil, nil, fmt.Errorf("read what is attached to %s: %w", name(img), err)
	}
	if len(list) > maxRecords {
		return nil, nil, fmt.Errorf("%s has %d records of kind %s, more than %d", name(img), len(list), kind, maxRecords)
	}
	for _, a := range list {
		var one T
		raw, err := s.ReadAttachment(ctx, a)
		if err != nil {
			if gone, lerr := isGone(ctx, s, img, a); lerr == nil && gone {
				continue // it was removed with its image meanwhile
			}
			return nil, nil, fmt.Errorf("read a record of %s: %w", name(img), err)
		}
		if one, err = parse[T](raw, img.Digest, predicate); err != nil {
			bad = append(bad, &unreadable{a.Digest, err})
			continue
		}
		out = append(out, one)
	}
	return out, bad, nil
}

func isGone(ctx context.Context, s Store, img artifact.Image, a artifact.Attachment) (bool, error) {
	list, err := s.Attached(ctx, img.Digest, a.Kind)
	return !slices.ContainsFunc(list, func(b artifact.Attachment) bool { return a.Digest == b.Digest }), err
}

func parse[T any](raw []byte, about artifact.Digest, predicate string) (out T, err error) {
	st, err := statement.Parse(raw)
	switch {
	case err != nil:
		return out, err
	case st.PredicateType != predicate:
		return out, fmt.Errorf("it is a %.100q, not %s", st.PredicateType, predicate)
	case !st.About(about):
		return out, errors.New("it is about another image")
	}
	return out, json.Unmarshal(st.Predicate, &out)
}
