package amazon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/artifact"
)

// using holds the image that a machine starts from, as every builder of this
// state directory does (HEX.raw.use), so that nobody removes it meanwhile: what is
// captured inherits its chunks. nil: the source is no image.
func (b *Builder) using(ctx context.Context, s *source) (*flock.Flock, error) {
	if s.img.Digest == "" {
		return nil, nil
	}
	if err := os.MkdirAll(b.deps.State.Disks(), 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(b.deps.State.Disks(), s.img.Content.Hex()+".raw.use")
	for {
		l := flock.New(path, flock.SetPermissions(0o600), flock.SetFlag(os.O_CREATE|os.O_RDWR))
		if ok, err := l.TryRLockContext(ctx, 20*time.Millisecond); err != nil || !ok {
			return nil, errors.Join(fmt.Errorf("lock the source: %w", err), l.Close())
		}
		mine, err := l.Stat()
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		if there, err := os.Stat(path); err != nil || !os.SameFile(mine, there) { // who had it removed it
			if err := l.Close(); err != nil {
				return nil, err
			}
			continue
		}
		if _, err := b.deps.Store.Resolve(ctx, artifact.Ref{Name: s.img.Name, Digest: s.img.Digest}); err != nil { // it went before the lock
			return nil, errors.Join(fmt.Errorf("source: %w", err), l.Close())
		}
		return l, nil
	}
}
