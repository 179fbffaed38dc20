package main

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/registry"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/lifecycle"
	"github.com/rebake/rebake/internal/ui"
	"github.com/urfave/cli/v2"
)

func registryFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "plain-http", Usage: "speak http without TLS to a registry that is not on this machine"},
		&cli.IntFlag{Name: "parallel", Value: 4, Usage: "move at most `N` blobs at once"},
	}
}

func pushCommand() *cli.Command {
	return &cli.Command{
		Name: "push", Usage: "bring an image and its tags to an OCI registry", ArgsUsage: "REF oci://HOST/PREFIX",
		Description: help("The image web becomes the repository HOST/PREFIX/web, its version and its moving tags are tags there.\nOnly what the registry lacks travels, and what is attached to the image (signatures, statements) goes with it,\nalso to an image that is there already. Credentials come from docker's config and its helpers.",
			"rebake push web:1.4.0 oci://registry.example.com/team"),
		Flags: registryFlags(), Action: with(imagePush),
	}
}

func pullCommand() *cli.Command {
	return &cli.Command{
		Name: "pull", Usage: "bring an image from an OCI registry here", ArgsUsage: "oci://HOST/PREFIX/NAME:VERSION",
		Description: help("Only what is not here travels; everything is checked before the image is seen. What was attached to it\nsince comes with a second pull. A tag, or @sha256:…,\nnames an image as well as a version; a tag is moved here too.",
			"rebake pull oci://registry.example.com/team/web:1.4.0"),
		Flags: append(registryFlags(), &cli.StringFlag{Name: "arch", Value: runtime.GOARCH, Usage: "which image of an index: `amd64` or arm64"}), Action: with(imagePull),
	}
}

func copyCommand() *cli.Command {
	return &cli.Command{
		Name: "copy", Usage: "copy an image from one registry to another, or to another prefix", ArgsUsage: "oci://HOST/PREFIX/NAME:VERSION oci://HOST/PREFIX",
		Description: help("Nothing is stored here; within one registry no blob travels. Moving tags stay behind.",
			"rebake copy oci://registry.example.com/test/web:1.4.0 oci://registry.example.com/prod"),
		Flags: registryFlags(), Action: with(imageCopy),
	}
}

// transfer runs a push, pull or copy as a task, and prints what came of it.
func (s *session) transfer(name, done string, f func(context.Context, registry.Options) (registry.Result, error)) error {
	if s.c.Int("parallel") < 1 {
		return usagef("for example --parallel 4", "--parallel %d is below one", s.c.Int("parallel"))
	}
	res, err := event.Do(s.ctx, name, func(ctx context.Context) (registry.Result, error) {
		return f(ctx, registry.Options{PlainHTTP: s.c.Bool("plain-http"), Parallel: s.c.Int("parallel"), Progress: event.Progressing(ctx),
			Ancestry: []string{lifecycle.RevocationKind},
			Warn:     func(text string) { event.Warnf(ctx, "%s", text) }})
	})
	if err != nil {
		return err
	}
	return s.result(res, fmt.Sprintf("%s %s  %s  %d of %d blobs moved (%s), %s were there, %d new documents attached",
		done, res.Ref, short(res.Image.Digest), res.Moved, res.Blobs, ui.Size(res.Bytes), ui.Size(res.Shared), res.Attached))
}

const addressHint = "for example oci://registry.example.com/team"

// address reads the argument at i; an image, or a store, which has no tag.
func (s *session) address(i int, image bool) (registry.Address, error) {
	a, err := registry.Parse(s.c.Args().Get(i))
	switch {
	case err != nil:
		return a, usagef(addressHint, "%v", err)
	case image && a.Path == "":
		return a, usagef(addressHint+"/web:1.4.0", "%s names no image", a)
	case !image && (a.Tag != "" || a.Dig != ""):
		return a, usagef(addressHint+": the image keeps its name and version", "%s is an image, not a place for one", a)
	}
	return a, nil
}

func imagePush(s *session) error {
	if s.c.NArg() != 2 {
		return usagef("`rebake push web:1.4.0 oci://registry.example.com/team`", "push takes a reference and a registry; got %d arguments", s.c.NArg())
	}
	to, err := s.address(1, false)
	if err != nil {
		return err
	}
	from, err := s.local()
	if err != nil {
		return err
	}
	s.Env.Store, s.Env.Address = from, "" // what is pushed is here
	_, img, err := s.resolve(s.c.Args().First())
	if err != nil {
		return err
	}
	return s.transfer("push "+img.Name+":"+img.Version, "pushed", func(ctx context.Context, o registry.Options) (registry.Result, error) {
		return registry.Push(ctx, from, img, to, o)
	})
}

func imagePull(s *session) error {
	if _, err := arg(s.c, "an image of a registry"); err != nil {
		return err
	}
	src, err := s.address(0, true)
	if err != nil {
		return err
	}
	to, err := s.local()
	if err != nil {
		return err
	}
	return s.transfer("pull "+strings.TrimPrefix(src.String(), registry.Scheme), "pulled", func(ctx context.Context, o registry.Options) (registry.Result, error) {
		res, err := missing(registry.Pull(ctx, src, to, s.c.String("arch"), o))
		if err != nil {
			return res, err
		}
		if why, err := lifecycle.Revoked(ctx, to, res.Image, time.Now()); err != nil {
			event.Warnf(ctx, "cannot tell whether %s is revoked: %v", res.Ref, err)
		} else if why != "" {
			event.Warnf(ctx, "%s is revoked: %s", res.Ref, why)
		}
		return res, nil
	})
}

func imageCopy(s *session) error {
	if s.c.NArg() != 2 {
		return usagef("`rebake copy oci://registry.example.com/test/web:1.4.0 oci://registry.example.com/prod`", "copy takes an image and a registry; got %d arguments", s.c.NArg())
	}
	src, err := s.address(0, true)
	if err != nil {
		return err
	}
	to, err := s.address(1, false)
	if err != nil {
		return err
	}
	return s.transfer("copy "+strings.TrimPrefix(src.String(), registry.Scheme), "copied to", func(ctx context.Context, o registry.Options) (registry.Result, error) {
		return missing(registry.Copy(ctx, src, to, o))
	})
}

// missing gives an image that a registry lacks a hint of its own.
func missing(res registry.Result, err error) (registry.Result, error) {
	if err != nil && strings.HasSuffix(err.Error(), artifact.ErrNotFound.Error()) {
		err = hinted(err, "an image web of oci://HOST/team is oci://HOST/team/web:VERSION; a private one needs `docker login HOST`")
	}
	return res, err
}
