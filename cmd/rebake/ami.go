package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/ui"
	"github.com/urfave/cli/v2"
)

func amiCommand() *cli.Command {
	return &cli.Command{
		Name: "ami", Usage: "AMIs of images that were baked here: publish, ls, rm, restore",
		Subcommands: append([]*cli.Command{
			{Name: "publish", Usage: "make an AMI of an image, without an instance", ArgsUsage: "REF",
				Description: help("The disk goes block by block (EBS direct APIs) into a snapshot, on top of the snapshot of an earlier image\nwhere there is one: then only what changed travels. The same image again makes nothing; a command that\nwas killed goes on where it was. Credentials, profile, region and endpoint are found as the AWS CLI finds them.",
					"rebake ami publish web:1.4.0 --region eu-central-1 --copy-to us-west-2"),
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "region", Usage: "`REGION` of the AMI; as AWS_REGION or the profile says by default"},
					&cli.StringSliceFlag{Name: "copy-to", Usage: "copy it to this `REGION[=KEY]` too, encrypted with that key there; may be given several times"},
					&cli.StringSliceFlag{Name: "share", Usage: "let this `ACCOUNT` launch it, or an organisation or unit of one by its ARN; may be given several times"},
					&cli.StringSliceFlag{Name: "label", Usage: "one more tag, `KEY=VALUE`, of snapshot and AMI; may be given several times"},
					&cli.StringFlag{Name: "kms-key", Usage: "`ARN` of the key that encrypts the snapshot"},
					&cli.StringFlag{Name: "volume-type", Value: "gp3", Usage: "`TYPE` of the root volume"},
					&cli.StringFlag{Name: "boot-mode", Usage: "`MODE` of the AMI: " + strings.Join(ami.BootModes, ", ") + "; as the image's firmware by default"},
					&cli.DurationFlag{Name: "deprecate-after", Usage: "no longer show it to others after this `TIME`, as in 2160h"},
					&cli.BoolFlag{Name: "protect", Usage: "refuse deregistration until the protection is taken away"},
					&cli.IntFlag{Name: "parallel", Value: 16, Usage: "send at most `N` blocks at once"},
				}, Action: with(amiPublish)},
		}, amiLifeCommands()...),
	}
}

func amiPublish(s *session) error {
	if _, err := arg(s.c, "an image"); err != nil {
		return err
	}
	o := ami.Options{Work: s.State.Uploads(), Parallel: s.c.Int("parallel"), KMSKey: s.c.String("kms-key"),
		VolumeType: s.c.String("volume-type"), Users: s.c.StringSlice("share"), Deprecate: s.c.Duration("deprecate-after"), Protect: s.c.Bool("protect"), Tags: map[string]string{},
		BootMode: s.c.String("boot-mode"), CopyKMSKeys: map[string]string{}}
	if o.BootMode != "" && !slices.Contains(ami.BootModes, o.BootMode) {
		return usagef("one of "+strings.Join(ami.BootModes, ", "), "--boot-mode %q is none", o.BootMode)
	}
	for _, u := range o.Users {
		if !ami.CanShare(u) {
			return usagef("for example 111122223333, or arn:aws:organizations::111122223333:organization/o-abc", "--share %q is no account, and no ARN of an organisation or a unit of one", u)
		}
	}
	if o.Parallel < 1 {
		return usagef("for example --parallel 16", "--parallel %d is below one", o.Parallel)
	}
	for _, l := range s.c.StringSlice("label") {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" || strings.HasPrefix(k, "aws:") || strings.HasPrefix(k, "rebake:") {
			return usagef("for example --label team=web", "--label %q is no tag of yours", l)
		}
		o.Tags[k] = v
	}
	_, img, err := s.resolve(s.c.Args().First())
	if err != nil {
		return err
	}
	keep, ok := s.Store.(artifact.Attacher)
	if !ok {
		return fmt.Errorf("the store %T cannot record AMIs", s.Store)
	}
	if _, ok := s.Store.(artifact.Opener); !ok {
		return hinted(fmt.Errorf("the disk of %s is not here", imageName(img)),
			"`rebake pull` it, `rebake --store local ami publish %s`, and `rebake push` it: the record of its AMIs goes with it", imageName(img))
	}
	c, err := ami.Connect(s.ctx, s.c.String("region"))
	if err != nil {
		return err
	}
	for _, r := range s.c.StringSlice("copy-to") {
		region, key, _ := strings.Cut(r, "=")
		to, err := ami.Connect(s.ctx, region)
		if err != nil {
			return err
		}
		if key != "" {
			o.CopyKMSKeys[to.Region] = key
		}
		o.Copy = append(o.Copy, to)
	}
	if o.Parents, err = ami.Parents(s.ctx, s.Store, img, c.Region); err != nil {
		return err
	}
	records, err := event.Do(s.ctx, "publish "+img.Name+":"+img.Version+" to "+c.Region, func(ctx context.Context) ([]ami.Record, error) {
		o.Progress = event.Progressing(ctx)
		o.Info = func(text string) { event.Infof(ctx, "%s", text) }
		records, err := ami.Publish(ctx, c, s.Store, img, o)
		for _, r := range records { // what was made is recorded though the rest failed
			if kerr := ami.Keep(ctx, keep, img, r); kerr != nil {
				return records, fmt.Errorf("record %s in %s: %w", r.AMI, r.Region, kerr)
			}
		}
		return records, err
	})
	if err != nil {
		return err
	}
	return s.result(records, amiTable(records))
}

func amiTable(records []ami.Record) string {
	rows := [][]string{{"REGION", "AMI", "SNAPSHOT", "SENT", "FROM", "MADE"}}
	for _, r := range records {
		rows = append(rows, []string{r.Region, r.AMI, r.Snapshot, ui.Size(r.Sent), r.From, r.Time.Format(time.DateTime)})
	}
	return ui.Table(rows)
}
