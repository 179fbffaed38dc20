package qemu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/event"
)

// stored is a base that is an image of the store.
type stored struct {
	ref  artifact.Ref
	cfg  Config
	deps Deps
	may  artifact.Digest // of the image that may be used
}

func newStored(cfg Config, deps Deps) (source, error) {
	ref, err := artifact.ParseRef(cfg.From.Image)
	if err != nil {
		return nil, fmt.Errorf("from.image: %w", err)
	}
	return &stored{ref: ref, cfg: cfg, deps: deps}, nil
}

// resolve finds the image, and asks whether it may be a base.
func (s *stored) resolve(ctx context.Context) (artifact.Image, error) {
	img, err := s.deps.Store.Resolve(ctx, s.ref)
	if err == nil && s.deps.Use != nil && img.Digest != s.may {
		err = s.deps.Use(ctx, img)
	}
	if err != nil {
		return img, fmt.Errorf("from.image: %w", err)
	}
	s.may = img.Digest
	return img, nil
}

func (s *stored) key(ctx context.Context, in *artifact.Inputs) error {
	img, err := s.resolve(ctx)
	if err == nil {
		in.Add("from.image", string(img.Digest))
	}
	return err
}

func (s *stored) prepare(ctx context.Context) (base, error) {
	img, err := s.resolve(ctx)
	if err != nil {
		return base{}, err
	}
	b := base{path: filepath.Join(s.deps.State.Disks(), img.Content.Hex()+".raw"), content: img.Content, Base: builder.Base{
		Ref: img.Name + ":" + img.Version, Digest: img.Digest, Arch: img.Arch, Firmware: img.Firmware, Seed: img.Seed,
		User: orElse(s.cfg.SSH.User, img.User), DiskSize: img.DiskSize}}
	// While its disk is fetched the image is in use, as it is once a machine stands on it.
	if err := os.MkdirAll(s.deps.State.Disks(), 0o700); err != nil {
		return base{}, err
	}
	l, err := waitLock(ctx, b.path+useEnd, true)
	if err != nil {
		return base{}, err
	}
	defer l.Close()
	if _, err := s.deps.Store.Resolve(ctx, artifact.Ref{Name: img.Name, Digest: img.Digest}); err != nil { // it went before the lock
		return base{}, fmt.Errorf("from.image: %w", err)
	}
	return b, once(ctx, b.path, func(tmp string) error {
		return s.deps.Store.Fetch(ctx, img.Content, tmp, event.Progressing(ctx))
	})
}
