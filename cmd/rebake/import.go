package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/importer"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/fetch"
	"github.com/rebake/rebake/internal/ui"
	"github.com/urfave/cli/v2"
)

const importExample = "`rebake import debian-12.qcow2 debian:12.8`"

func importCommand() *cli.Command {
	return &cli.Command{
		Name: "import", Usage: "make an image of a qcow2, a raw disk or a Vagrant box", ArgsUsage: "FILE|URL NAME:VERSION",
		Description: help("The image can be a base (from: {image: NAME:VERSION}), be deployed and be exported. Nothing of it is run,\nno other file that it names is opened, and what lies about its size is refused (docs/formats.md).\nA URL needs --checksum.",
			"rebake import debian-12-genericcloud-amd64.qcow2 debian:12.8\nrebake import web.box web:1.0.0 --seed credentials --user root"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "checksum", Usage: "`sha256:…` of the file"},
			&cli.StringFlag{Name: "format", Usage: "`" + strings.Join(importer.Formats, ", ") + "`; default: what the file looks like"},
			&cli.StringFlag{Name: "arch", Usage: "`amd64` or arm64; default: what a box says, else this computer's"},
			&cli.StringFlag{Name: "firmware", Usage: "`bios` or uefi; default: what the disk's boot sector and partitions say"},
			&cli.StringFlag{Name: "seed", Usage: "how a guest is told its keys: `nocloud` (cloud-init) or credentials (systemd 252 or later); default: nocloud for qcow2, else credentials"},
			&cli.StringFlag{Name: "user", Usage: "the `ACCOUNT` that keys are for; default root"},
			&cli.StringFlag{Name: "max-disk", Usage: "refuse a disk larger than `SIZE`", Value: "1T"},
		}, Action: with(imageImport),
	}
}

var accountName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

// imports is what one import was asked for.
type imports struct {
	from, path string // what the user gave; the file, once it is here
	url        *url.URL
	sum        artifact.Digest // "" if none was given
	img        artifact.Image  // name, version, and what flags say of the machine
	open       importer.Options
}

func imageImport(s *session) error {
	im, err := s.importArgs()
	if err != nil {
		return err
	}
	release, err := s.importFile(&im)
	if err != nil {
		return err
	}
	img, there, err := s.importAs(im)
	if err := errors.Join(err, release()); err != nil {
		return err
	}
	text := fmt.Sprintf("imported %s:%s (%s): %s, %s new; %s, %s, seeded by %s, user %s\nnext: a template with from: {image: %s:%s}", img.Name, img.Version, short(img.Digest),
		ui.Size(img.DiskSize), ui.Size(img.StoredNew), img.Arch, img.Firmware, img.Seed, img.User, img.Name, img.Version)
	if there {
		text = fmt.Sprintf("%s:%s (%s) was imported from that file already", img.Name, img.Version, short(img.Digest))
	}
	return s.result(img, text)
}

func (s *session) importArgs() (im imports, err error) {
	if s.c.NArg() != 2 {
		return im, usagef(importExample, "import takes a file or URL, and the name and version for the image; got %d arguments", s.c.NArg())
	}
	im.from = s.c.Args().Get(0)
	ref, err := artifact.ParseRef(s.c.Args().Get(1))
	if err != nil || ref.Digest != "" || !strings.Contains(s.c.Args().Get(1), ":") {
		return im, usagef(importExample, "%q is no name and version for an image", s.c.Args().Get(1))
	}
	im.img = artifact.Image{Name: ref.Name, Version: ref.Tag, Arch: s.c.String("arch"), Firmware: s.c.String("firmware"), Seed: s.c.String("seed"), User: s.c.String("user")}
	for _, f := range []struct {
		flag, value string
		values      []string
	}{
		{"arch", im.img.Arch, []string{"amd64", "arm64"}}, {"firmware", im.img.Firmware, []string{"bios", "uefi"}},
		{"seed", im.img.Seed, []string{"nocloud", "credentials"}}, {"format", s.c.String("format"), importer.Formats},
	} {
		if f.value != "" && !slices.Contains(f.values, f.value) {
			return im, usagef("one of "+strings.Join(f.values, ", "), "unknown --%s %q", f.flag, f.value)
		}
	}
	if im.img.User != "" && !accountName.MatchString(im.img.User) {
		return im, usagef("for example --user root", "--user %q is no account", im.img.User)
	}
	if im.sum = artifact.Digest(s.c.String("checksum")); im.sum != "" {
		if err := im.sum.Validate(); err != nil {
			return im, usagef("sha256: and the 64 hex digits that the publisher gives", "--checksum: %v", err)
		}
	}
	im.open = importer.Options{Format: s.c.String("format"), Dir: s.State.Disks()}
	if im.open.Limit, err = sizeFlag(s.c, "max-disk"); err != nil {
		return im, err
	}
	if strings.HasPrefix(im.from, "http:") || strings.HasPrefix(im.from, "https:") {
		if im.url, err = url.Parse(im.from); err != nil || im.url.Host == "" {
			return im, usagef("for example https://example.com/debian.qcow2", "%q is no URL", im.from)
		}
		if im.sum == "" {
			return im, usagef("sha256: and the 64 hex digits that the publisher gives", "a URL needs --checksum: what a server sends may change")
		}
	} else if strings.Contains(im.from, "://") {
		return im, usagef("give a file, or an http or https URL", "%q cannot be read", im.from)
	}
	return im, nil
}

// importFile has the file here, and its checksum right. release removes what
// was downloaded.
func (s *session) importFile(im *imports) (release func() error, err error) {
	release = func() error { return nil }
	im.path = im.from
	if im.url != nil {
		im.path = filepath.Join(s.State.Downloads(), im.sum.Hex()+".import")
		if err := os.MkdirAll(filepath.Dir(im.path), 0o700); err != nil {
			return nil, err
		}
		lock, err := alone(im.path + ".lock")
		if err != nil {
			return nil, fmt.Errorf("import the file with checksum %s: %w", im.sum, err)
		}
		release = func() error { return errors.Join(os.Remove(im.path), os.Remove(im.path+".lock"), lock.Close()) }
		err = event.Run(s.ctx, "download "+filepath.Base(im.url.Path), func(ctx context.Context) error { return fetch.File(ctx, im.url, im.path) })
		if err != nil { // what is there is for the next try
			return nil, errors.Join(err, lock.Close())
		}
	}
	sum, err := event.Do(s.ctx, "checksum", func(ctx context.Context) (artifact.Digest, error) { return fetch.Sum(ctx, im.path) })
	if err != nil {
		return nil, errors.Join(err, release())
	}
	if im.sum != "" && sum != im.sum {
		return nil, errors.Join(hinted(fmt.Errorf("%s has checksum %s, not %s", redacted(im.from), sum, im.sum), "it is another file than the one that was meant, or was changed"), release())
	}
	im.sum = sum
	return release, nil
}

// alone takes a lock whose file goes with it.
func alone(path string) (*flock.Flock, error) {
	for {
		lock := flock.New(path, flock.SetPermissions(0o600), flock.SetFlag(os.O_CREATE|os.O_RDWR))
		if ok, err := lock.TryLock(); err != nil || !ok {
			return nil, errors.Join(errors.New("another rebake is at it"), err, lock.Close())
		}
		mine, err := lock.Stat()
		if err != nil {
			return nil, errors.Join(err, lock.Close())
		}
		if there, err := os.Stat(path); err == nil && os.SameFile(mine, there) {
			return lock, nil
		}
		if err := lock.Close(); err != nil { // it was removed in between
			return nil, err
		}
	}
}

// redacted is a URL without its secrets: of the user, and in the query.
func redacted(from string) string {
	u, err := url.Parse(from)
	if err != nil || u.Host == "" {
		return from
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

// importAs stores the file as the image, and points latest at it. there: the
// same file was imported as that version before.
func (s *session) importAs(im imports) (img artifact.Image, there bool, err error) {
	name := im.img.Name + ":" + im.img.Version
	have, err := s.Store.Resolve(s.ctx, artifact.Ref{Name: im.img.Name, Tag: im.img.Version})
	switch same := func(flag, is string) bool { return flag == "" || flag == is }; {
	case err == nil && have.Version == im.img.Version && have.Lineage.Builder == importer.Builder && have.Lineage.ParentDigest == im.sum &&
		same(im.img.Arch, have.Arch) && same(im.img.Firmware, have.Firmware) && same(im.img.Seed, have.Seed) && same(im.img.User, have.User):
		return have, true, nil
	case err == nil:
		return img, false, hinted(fmt.Errorf("%s: %w", name, artifact.ErrExists), "versions never change: give another")
	case !errors.Is(err, artifact.ErrNotFound):
		return img, false, err
	}
	if err := os.MkdirAll(im.open.Dir, 0o700); err != nil {
		return img, false, err
	}
	before, err := os.Stat(im.path)
	if err != nil {
		return img, false, err
	}
	src, err := event.Do(s.ctx, "read "+filepath.Base(im.path), func(ctx context.Context) (*importer.Source, error) {
		im.open.Progress = event.Progressing(ctx)
		return importer.Open(ctx, im.path, im.open)
	})
	if err != nil {
		return img, false, hinted(err, "--format says what it is; docs/formats.md says what is refused, and why")
	}
	defer src.Disk.Close()
	img = im.image(src)
	img.Created, img.Lineage.Rebake = time.Now().UTC().Truncate(time.Second), s.Version
	err = event.Run(s.ctx, "store "+name, func(ctx context.Context) error {
		img.Content, img.StoredNew, err = s.Store.Write(ctx, src.Disk, event.Progressing(ctx))
		return err
	})
	if err != nil {
		return img, false, err
	}
	if after, err := os.Stat(im.path); err != nil || after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) {
		return img, false, errors.Join(fmt.Errorf("%s was changed while it was read", im.path), err)
	}
	if img, err = s.Store.Register(s.ctx, img); err != nil {
		return img, false, err
	}
	return img, false, s.Store.Tag(s.ctx, img.Name, artifact.Latest, img.Digest)
}

// image is what flags say, else the file, else the usual.
func (im imports) image(src *importer.Source) artifact.Image {
	first := func(vs ...string) string {
		return vs[slices.IndexFunc(vs, func(v string) bool { return v != "" })]
	}
	seed := "credentials"
	if src.Format == "qcow2" { // a distribution's cloud image
		seed = "nocloud"
	}
	img, f := im.img, src.Facts
	img.Arch, img.Firmware = first(img.Arch, f.Arch, runtime.GOARCH), first(img.Firmware, f.Firmware)
	img.Seed, img.User = first(img.Seed, f.Seed, seed), first(img.User, f.User, "root")
	img.DiskSize = src.Disk.Size()
	parent := "file:" + filepath.Base(im.path) // not its folder, which concerns nobody else
	if im.url != nil {
		parent = redacted(im.from)
	}
	img.Lineage = artifact.Lineage{Parent: parent, ParentDigest: im.sum, Builder: importer.Builder}
	return img
}
