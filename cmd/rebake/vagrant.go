package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/export"
	"github.com/rebake/rebake/internal/lifecycle"
	"github.com/rebake/rebake/internal/vagrant"
	"github.com/urfave/cli/v2"
)

const publishExample = "`rebake vagrant publish web:1.4.0 boxes`"

func vagrantCommand() *cli.Command {
	return &cli.Command{
		Name: "vagrant", Usage: "boxes for Vagrant, with a catalog of their versions: publish",
		Subcommands: []*cli.Command{
			{Name: "publish", Usage: "put boxes of images into a directory and its catalog", ArgsUsage: "REF… DIR",
				Description: help("Writes DIR/NAME.json and a box of each image below DIR/NAME. `vagrant box add` takes them by name, version\nand checksum. A version that is there stays; one with other content is refused (docs/vagrant.md).",
					"rebake vagrant publish web:1.4.0 boxes\nvagrant box add boxes/web.json --box-version '~> 1.4'", "7 an image is revoked"),
				Flags:  append([]cli.Flag{&cli.StringFlag{Name: "url-base", Usage: "where clients will find DIR, for example `https://boxes.example.com`; default: its file URL"}}, boxFlags()...),
				Action: with(vagrantPublish)},
		},
	}
}

// boxFlags say how the machines of a box are logged in to.
func boxFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "box-user", Usage: "`ACCOUNT` that Vagrant logs in to, made at the first boot if the image lacks it; default: the image's"},
		&cli.StringFlag{Name: "box-key", Usage: "`FILE` with the public key to let in; default: the one that every Vagrant has, and replaces at the first login"},
	}
}

const maxKeyFile = 64 << 10

// boxOptions reads boxFlags, which are for boxes alone.
func (s *session) boxOptions(box bool) (o export.BoxOptions, err error) {
	o.User = s.c.String("box-user")
	path, provider := s.c.String("box-key"), s.c.String("provider")
	switch {
	case !box && (o.User != "" || path != "" || provider != ""):
		return o, usagef("add --format vagrant", "--box-user, --box-key and --provider are for Vagrant boxes")
	case provider != "" && provider != "libvirt" && provider != "qemu":
		return o, usagef("libvirt or qemu", "unknown --provider %q", provider)
	case o.User != "" && !accountName.MatchString(o.User):
		return o, usagef("for example --box-user vagrant", "--box-user %q is no account", o.User)
	case path == "":
		return o, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return o, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return o, err
	}
	for _, l := range strings.Split(string(raw), "\n") {
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "#") {
			o.Keys = append(o.Keys, l)
		}
	}
	if len(o.Keys) == 0 {
		return o, usagef("for example --box-key ~/.ssh/id_ed25519.pub", "%s holds no public key", path)
	}
	return o, nil
}

func vagrantPublish(s *session) error {
	args := s.c.Args().Slice()
	if len(args) < 2 {
		return usagef(publishExample, "vagrant publish takes references and a directory; got %d arguments", len(args))
	}
	o := vagrant.Options{URLBase: s.c.String("url-base")}
	if err := vagrant.CheckURLBase(o.URLBase); err != nil {
		return usagef("for example --url-base https://boxes.example.com", "--url-base: %v", err)
	}
	var err error
	if o.Box, err = s.boxOptions(true); err != nil {
		return err
	}
	dir := args[len(args)-1]
	var images []artifact.Image
	for _, ref := range args[:len(args)-1] {
		_, img, err := s.resolve(ref)
		if err != nil {
			return err
		}
		why, err := s.Revoked(s.ctx, img)
		if err != nil {
			return err
		}
		if why != "" {
			return hinted(fmt.Errorf("%s:%s cannot be published: it is %w: %s", img.Name, img.Version, lifecycle.ErrRevoked, why), "`rebake images ls %s` shows which versions are not", img.Name)
		}
		images = append(images, img)
	}
	done, err := vagrant.Publish(s.ctx, s.Store, images, dir, o)
	if errors.Is(err, artifact.ErrExists) {
		return hinted(err, "bake another version, or publish into another directory")
	}
	if err != nil {
		return err
	}
	var b strings.Builder
	for _, p := range done {
		what := "published"
		if p.There {
			what = "is there:"
		}
		fmt.Fprintf(&b, "%s %s %s  %s  sha256:%s\n", what, p.Name, p.Version, p.URL, p.Checksum)
	}
	fmt.Fprintf(&b, "next: vagrant box add %s --provider libvirt\n", done[len(done)-1].Catalog)
	return s.result(done, b.String())
}
