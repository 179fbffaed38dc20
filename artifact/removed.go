package artifact

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// MaxKept is how many bytes an attachment may have to outlive its image's disk.
const MaxKept = 8 << 20

// Removed is what stays of an image whose disk was removed: all that was said of it.
// Its Tags are those that it had then.
type Removed struct {
	Image
	At  time.Time `json:"removed"` // to the second, UTC
	Why string    `json:"why"`
}

// Retirer is the optional power to remove an image's disk and to keep what is
// known of the image, for as long as the store is there.
type Retirer interface {
	// Retire removes an image with its tags, and keeps its metadata and those of
	// its attachments that have at most MaxKept bytes: Attached lists them still.
	// Its version stays taken: Register refuses another image of it with ErrExists,
	// and the same image again is there again. img is as it was read: ErrInUse if
	// it has other tags now, ErrNotFound if it is gone. Prune gives back the space.
	Retire(ctx context.Context, img Image, why string, at time.Time) error
	// Removed lists what was retired, the last removed first; name "" is all.
	Removed(ctx context.Context, name string) ([]Removed, error)
}

// RemovedError is the ErrNotFound of an image that was retired: Resolve returns it.
type RemovedError struct{ Removed Removed }

func (e *RemovedError) Error() string {
	r := e.Removed
	return fmt.Sprintf("%s:%s was removed on %s: %s", r.Name, r.Version, r.At.Local().Format("2006-01-02 15:04"), r.Why)
}

// Unwrap makes it an ErrNotFound.
func (e *RemovedError) Unwrap() error { return ErrNotFound }

// Known is Resolve for those who need no disk: gone is not nil if the image was
// removed, and img is what it was then.
func Known(ctx context.Context, s Store, ref Ref) (img Image, gone *Removed, err error) {
	img, err = s.Resolve(ctx, ref)
	if e := (*RemovedError)(nil); errors.As(err, &e) {
		return e.Removed.Image, &e.Removed, nil
	}
	return img, nil, err
}
