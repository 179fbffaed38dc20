package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/export"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/lifecycle"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/ui"
	"github.com/urfave/cli/v2"
)

func imagesCommand() *cli.Command {
	return &cli.Command{
		Name: "images", Usage: "what the store holds: ls, show, tag, outdated, rm, export, verify, prune",
		Subcommands: []*cli.Command{
			{Name: "ls", Usage: "list images, newest first", ArgsUsage: "[NAME]",
				Flags:       []cli.Flag{&cli.BoolFlag{Name: "removed", Usage: "those that were removed: when, and why"}},
				Description: help("Lists every image, or those of one name. A tag with * is a channel (`rebake channel history`).", "rebake images ls web\nrebake images ls --removed"), Action: with(imagesLs)},
			{Name: "show", Aliases: []string{"inspect"}, Usage: "everything known about an image", ArgsUsage: "REF",
				Description: help("Prints version, digest, lineage and test results of name:version, name:tag or name@digest; of an\nimage that was removed also when and why.", "rebake images show web:latest"), Action: with(imagesShow)},
			{Name: "tag", Usage: "point a moving tag at an image", ArgsUsage: "REF TAG",
				Description: help("The same as `rebake tag`.", "rebake images tag web:20261124.1 nightly"), Action: with(imagesTag)},
			{Name: "outdated", Usage: "list images that were made from an older base than they would be today",
				Flags: []cli.Flag{&cli.BoolFlag{Name: "all", Usage: "every version, not only the newest of each name, what has a tag and what a fleet uses"},
					&cli.BoolFlag{Name: "fail-on-outdated", Usage: "exit status 1 if there is one"}},
				Description: help("An image that was made from a tag or channel (from: {image: base:stable}) is outdated once that points\nelsewhere; one that was made from a version, once the base has a higher one that is not revoked; and so is\nwhat was made from an outdated image. Bases that are no images of the store are not looked at.",
					"rebake images outdated\nrebake --output json images outdated --fail-on-outdated"), Action: with(imagesOutdated)},
			{Name: "rm", Usage: "remove an image, or only a moving tag", ArgsUsage: "REF",
				Flags:       []cli.Flag{&cli.StringFlag{Name: "reason", Usage: "why, to be kept", Value: "by hand"}, &cli.BoolFlag{Name: "forget", Usage: "keep nothing of it: its version is free again"}},
				Description: help("name:version removes the image with its tags, name:tag only the tag. An image that a fleet\nruns or can go back to is refused. What is known of it stays (`rebake images ls --removed`), and its\nversion is not used again. `rebake images prune` frees the space.", "rebake images rm web:20261101.1 --reason \"a key is in it\""), Action: with(imagesRm)},
			{Name: "export", Usage: "write an image as a bootable disk file", ArgsUsage: "REF FILE",
				Flags: append([]cli.Flag{&cli.StringFlag{Name: "format", Usage: "`" + strings.Join(export.Formats, ", ") + "`", Value: "qcow2"}, &cli.BoolFlag{Name: "force", Usage: "replace FILE if it exists"},
					&cli.BoolFlag{Name: "allow-revoked", Usage: "export an image that is revoked too"},
					&cli.StringFlag{Name: "provider", Usage: "of a vagrant box: `libvirt` or qemu; one box serves both"}}, boxFlags()...),
				Description: help("The file boots by itself, in plain QEMU or under libvirt. vmdk and vhd are for other hypervisors;\ncontainerdisk is a tar of an OCI image for KubeVirt, vagrant a box (docs/formats.md, docs/vagrant.md).", "rebake images export web:latest web.qcow2\nqemu-system-x86_64 -m 512 -nographic web.qcow2"), Action: with(imagesExport)},
			{Name: "verify", Usage: "re-hash everything that images need", ArgsUsage: "[REF]",
				Description: help("Reads every chunk and compares it with its digest; without REF, of all images.", "rebake images verify"), Action: with(imagesVerify)},
			imagesPruneCommand(),
		},
	}
}

// resolve finds the image that a command names.
func (s *session) resolve(text string) (artifact.Ref, artifact.Image, error) {
	ref, err := artifact.ParseRef(text)
	if err != nil {
		return ref, artifact.Image{}, usagef("for example web:1.4.0, web:stable or web@sha256:…", "%v", err)
	}
	img, err := s.Store.Resolve(s.ctx, ref)
	return ref, img, err
}

func short(d artifact.Digest) string {
	hex := strings.TrimPrefix(string(d), "sha256:")
	return hex[:min(12, len(hex))]
}

func imagesLs(s *session) error {
	if s.c.NArg() > 1 {
		return usagef("`rebake images ls web`", "images ls takes at most one name")
	}
	st, err := can[artifact.Lister](s)
	if err != nil {
		return err
	}
	if s.c.Bool("removed") {
		return lsRemoved(s)
	}
	images, err := st.List(s.ctx, s.c.Args().First())
	if err != nil {
		return err
	}
	if name := s.c.Args().First(); len(images) == 0 && name != "" {
		return s.result([]artifact.Image{}, "no image of the name "+name+": `rebake images ls` lists all")
	}
	if len(images) == 0 {
		return s.result([]artifact.Image{}, "no images yet: `rebake init minimal && rebake build minimal.yaml` bakes one")
	}
	shown, err := s.life(images)
	if err != nil {
		return err
	}
	rows := [][]string{{"IMAGE", "VERSION", "TAGS", "DIGEST", "DISK", "NEW", "CREATED", "FROM", ""}}
	for _, i := range shown {
		var tags []string
		for _, t := range i.Tags {
			if slices.Contains(i.Channels, t) {
				t += "*"
			}
			tags = append(tags, t)
		}
		state := ""
		if i.Revoked != "" {
			state = "revoked: " + i.Revoked
		}
		rows = append(rows, []string{i.Name, i.Version, strings.Join(tags, ","), short(i.Digest), ui.Size(i.DiskSize), ui.Size(i.StoredNew),
			i.Created.Local().Format("2006-01-02 15:04"), i.Lineage.Parent, state})
	}
	return s.result(shown, ui.Table(rows))
}

const showTemplate = `image     {{.Name}}:{{.Version}}
digest    {{.Digest}}
content   {{.Content}}
tags      {{range .Tags}}{{.}} {{end}}
{{if .Channels}}channels  {{range .Channels}}{{.}} {{end}}
{{end}}{{if .Revoked}}REVOKED   {{.Revoked}}
{{end}}created   {{.Created}}
machine   {{.Arch}}, {{.Firmware}}, seeded by {{.Seed}}, user {{.User}}
from      {{.Lineage.Parent}} {{.Lineage.ParentDigest}}
template  {{.Lineage.Template}} {{.Lineage.TemplateDigest}}
commit    {{if .Lineage.GitCommit}}{{.Lineage.GitCommit}}{{if .Lineage.GitDirty}} (dirty){{end}}{{else}}none{{end}}
build     {{.Lineage.BuildID}} by {{.Lineage.Builder}}, rebake {{.Lineage.Rebake}}
{{range .Tests}}test      {{if .Passed}}passed{{else}}FAILED{{end}}  {{.Name}}{{if .Message}}: {{.Message}}{{end}}
{{end}}`

func imagesShow(s *session) error {
	name, err := arg(s.c, "an image reference")
	if err != nil {
		return err
	}
	_, img, err := s.resolve(name)
	gone := (*artifact.RemovedError)(nil)
	if errors.As(err, &gone) {
		img, err = gone.Removed.Image, nil
	}
	if err != nil {
		return err
	}
	shown, err := s.life([]artifact.Image{img})
	if err != nil {
		return err
	}
	text, err := render(showTemplate, shown[0])
	if err != nil {
		return err
	}
	if gone != nil {
		r := gone.Removed
		return s.result(shownRemoved{shown[0], r.At, r.Why}, fmt.Sprintf("removed   %s: %s\n", minute(r.At), r.Why)+text)
	}
	return s.result(shown[0], text)
}

func imagesTag(s *session) error {
	if s.c.NArg() != 2 {
		return usagef("`rebake tag web:20261124.1 nightly`", "tag takes a reference and a tag; got %d arguments", s.c.NArg())
	}
	tag := s.c.Args().Get(1)
	if err := artifact.CheckTag(tag); err != nil {
		return usagef("`rebake tag web:20261124.1 nightly`", "%v", err)
	}
	_, img, err := s.resolve(s.c.Args().Get(0))
	if err != nil {
		return err
	}
	if st, err := lifecycle.In(s.Store); err == nil {
		if is, err := lifecycle.IsChannel(s.ctx, st, img.Name, tag); err != nil {
			return err
		} else if is {
			return hinted(fmt.Errorf("%s:%s is a channel, which keeps a history", img.Name, tag), "`rebake promote %s:%s %s --reason TEXT` moves it", img.Name, img.Version, tag)
		}
	}
	if err := s.Store.Tag(s.ctx, img.Name, tag, img.Digest); err != nil {
		return err
	}
	return s.result(map[string]string{"tag": img.Name + ":" + tag, "digest": string(img.Digest)},
		fmt.Sprintf("%s:%s is now %s (%s)", img.Name, tag, img.Version, short(img.Digest)))
}

func imagesRm(s *session) error {
	name, err := arg(s.c, "an image reference")
	if err != nil {
		return err
	}
	st, err := can[artifact.Deleter](s)
	if err != nil {
		return err
	}
	ref, img, err := s.resolve(name)
	if err != nil {
		return err
	}
	why, err := s.reason()
	if err != nil {
		return err
	}
	if ref.Digest == "" && ref.Tag != img.Version {
		err = st.Remove(s.ctx, ref)
	} else if s.c.Bool("forget") {
		err = s.keepRevoked(ref, img)
	}
	if _, remembers := s.Store.(artifact.Retirer); err == nil && (s.c.Bool("forget") || !remembers) {
		err = s.keepAMIs(ref, img)
	}
	if err == nil && (ref.Digest != "" || ref.Tag == img.Version) {
		err = pipeline.Remove(s.ctx, s.Env, img, why, s.c.Bool("forget"))
	}
	if used := (*pipeline.UsedError)(nil); errors.As(err, &used) {
		return hinted(err, "deploy another image first, or `rebake fleet destroy %s`", used.Fleet)
	} else if err != nil {
		return err
	}
	return s.result(map[string]string{"removed": name}, "removed "+name+s.amisStay(ref, img))
}

func imagesExport(s *session) error {
	if s.c.NArg() != 2 {
		return usagef("`rebake images export web:latest web.qcow2`", "images export takes a reference and a file; got %d arguments", s.c.NArg())
	}
	_, img, err := s.resolve(s.c.Args().Get(0))
	if err != nil {
		return err
	}
	if err := s.notRevoked(img); err != nil {
		return err
	}
	format := s.c.String("format")
	if !slices.Contains(export.Formats, format) {
		return usagef("one of "+strings.Join(export.Formats, ", "), "unknown --format %q", format)
	}
	path, err := filepath.Abs(s.c.Args().Get(1))
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil && !s.c.Bool("force") {
		return usagef("give another file, or --force replaces it", "%s exists", path)
	}
	box, err := s.boxOptions(format == "vagrant")
	if err != nil {
		return err
	}
	err = event.Run(s.ctx, "export "+filepath.Base(path), func(ctx context.Context) error {
		if format == "vagrant" {
			_, err := export.Vagrant(ctx, s.Store, img, box, path, event.Progressing(ctx))
			return err
		}
		return export.Disk(ctx, s.Store, img, format, path, event.Progressing(ctx))
	})
	if err != nil {
		return err
	}
	return s.result(map[string]string{"file": path, "format": format, "image": string(img.Digest)},
		fmt.Sprintf("wrote %s (%s) from %s:%s", path, format, img.Name, img.Version))
}

// notRevoked refuses an image that is revoked, or of which nobody can tell.
func (s *session) notRevoked(img artifact.Image) error {
	if _, err := lifecycle.In(s.Store); err != nil || s.c.Bool("allow-revoked") {
		return nil
	}
	why, err := s.Revoked(s.ctx, img)
	if err != nil {
		return fmt.Errorf("ask whether %s:%s was revoked: %w", img.Name, img.Version, err)
	}
	if why != "" {
		return fmt.Errorf("%s:%s is %w: %s", img.Name, img.Version, lifecycle.ErrRevoked, why)
	}
	return nil
}

func imagesVerify(s *session) error {
	st, err := can[artifact.Verifier](s)
	if err != nil {
		return err
	}
	ls, err := can[artifact.Lister](s)
	if err != nil {
		return err
	}
	if s.c.NArg() > 1 {
		return usagef("`rebake images verify web:latest`", "images verify takes at most one reference; got %d", s.c.NArg())
	}
	var images []artifact.Image
	if s.c.NArg() == 0 {
		if images, err = ls.List(s.ctx, ""); err != nil {
			return err
		}
	} else {
		_, img, err := s.resolve(s.c.Args().First())
		if err != nil {
			return err
		}
		images = append(images, img)
	}
	var bad []string
	var errs []error
	for _, img := range images {
		name := img.Name + ":" + img.Version
		_, err := event.Do(s.ctx, "verify "+name, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, st.Verify(ctx, img, event.Progressing(ctx))
		})
		if s.ctx.Err() != nil {
			return err
		}
		if err != nil { // the others are looked at all the same
			bad, errs = append(bad, name), append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	if len(bad) > 0 {
		return hinted(errors.Join(errs...), "the store is damaged: bake or pull %s again", strings.Join(bad, ", "))
	}
	return s.result(map[string]int{"verified": len(images)}, fmt.Sprintf("%d images verified", len(images)))
}
