package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/ui"
	"github.com/urfave/cli/v2"
)

// amiLifeCommands are those about AMIs that are there.
func amiLifeCommands() []*cli.Command {
	region := &cli.StringSliceFlag{Name: "region", Usage: "only the AMI in this `REGION`; may be given several times; all regions by default"}
	return []*cli.Command{
		{Name: "ls", Usage: "list the AMIs that were made of an image", ArgsUsage: "REF",
			Flags: []cli.Flag{&cli.BoolFlag{Name: "check", Usage: "ask AWS whether each is there, and its state"}},
			Description: help("Lists what is recorded with the image, also with one that was removed; AWS is not asked without --check,\nwhich needs ec2:DescribeImages and ec2:DescribeImageAttribute.",
				"rebake ami ls web:1.4.0 --check"), Action: with(amiLs)},
		{Name: "rm", Usage: "deregister an image's AMIs and delete their snapshots", ArgsUsage: "REF",
			Flags: []cli.Flag{region, &cli.BoolFlag{Name: "dry-run", Usage: "say what would go, or why it stays, and do nothing"},
				&cli.BoolFlag{Name: "shared", Usage: "also what other accounts may launch"},
				&cli.BoolFlag{Name: "gone", Usage: "take an AMI that is not seen for gone, though it is not known whose it was"},
				&cli.StringFlag{Name: "reason", Usage: "why, to be kept", Value: "by hand"}},
			Description: help("An AMI that an instance, a launch template or an Auto Scaling group of its region refers to stays, and so\ndoes one that a fleet needs, that is protected, or that other accounts may launch; if one stays, all do. If AWS\ndoes not say so, nothing is removed. The image itself stays in the store. A command that was killed goes on\nwhere it was. Snapshots that later ones were built on go too: EBS keeps the blocks that those need.",
				"rebake ami rm web:1.3.0 --dry-run\nrebake ami rm web:1.3.0 --region us-west-2"), Action: with(amiRm)},
		{Name: "restore", Usage: "make disabled and deprecated AMIs of an image usable again", ArgsUsage: "REF",
			Flags: []cli.Flag{region, &cli.StringFlag{Name: "reason", Usage: "why, to be kept", Value: "by hand"}},
			Description: help("Undoes the first two steps of retention: {ami: …}, which then leaves these AMIs alone. Whom a disabled AMI was\nshared with EC2 forgets; what was removed does not come back.",
				"rebake ami restore web:1.3.0"), Action: with(amiRestore)},
	}
}

// amisOf finds an image, also one that was removed, and its AMIs.
func (s *session) amisOf() (artifact.Attacher, artifact.Image, []ami.Made, error) {
	name, err := arg(s.c, "an image")
	if err != nil {
		return nil, artifact.Image{}, nil, err
	}
	img, err := s.evenRemoved(name)
	if err != nil {
		return nil, img, nil, err
	}
	a, err := can[artifact.Attacher](s)
	if err != nil {
		return nil, img, nil, err
	}
	all, err := ami.All(s.ctx, a, img)
	return a, img, all, err
}

// chosen are those of the AMIs that --region names and that are not gone.
func (s *session) chosen(img artifact.Image, all []ami.Made) (out []ami.Made, err error) {
	regions := s.c.StringSlice("region")
	for _, m := range all {
		if !m.Gone() && (len(regions) == 0 || slices.Contains(regions, m.Region)) {
			out = append(out, m)
		}
	}
	if len(out) == 0 {
		where := ""
		if len(regions) > 0 {
			where = " in " + strings.Join(regions, ", ")
		}
		return nil, hinted(fmt.Errorf("%s has no AMI%s", imageName(img), where), "`rebake ami ls %s` lists what is recorded", imageName(img))
	}
	return out, nil
}

// shownAMI is an AMI as it is listed.
type shownAMI struct {
	ami.Record
	Step  ami.Step   `json:"step,omitempty"`  // the last that rebake took
	Found *ami.Found `json:"found,omitempty"` // what AWS says, with --check
}

func amiLs(s *session) error {
	_, img, all, err := s.amisOf()
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return s.result([]shownAMI{}, "no AMI was made of "+imageName(img))
	}
	var found map[string]ami.Found
	if s.c.Bool("check") {
		if found, err = s.look(img, all); err != nil {
			return err
		}
	}
	shown := []shownAMI{}
	rows := [][]string{{"REGION", "AMI", "SNAPSHOT", "SENT", "FROM", "MADE", "STATE"}}
	for _, m := range all {
		v := shownAMI{m.Record, m.Last().Step, nil}
		state := string(v.Step)
		if f, ok := found[m.Region+"/"+m.AMI]; ok {
			v.Found = &f
			state = describeFound(f)
		}
		shown = append(shown, v)
		rows = append(rows, []string{m.Region, m.AMI, m.Snapshot, ui.Size(m.Sent), m.From, m.Time.Format(time.DateTime), state})
	}
	return s.result(shown, ui.Table(rows))
}

// look asks AWS about AMIs that were not removed, region by region.
func (s *session) look(img artifact.Image, all []ami.Made) (map[string]ami.Found, error) {
	byRegion := map[string][]ami.Of{}
	for _, m := range all {
		if m.Gone() {
			continue
		}
		byRegion[m.Region] = append(byRegion[m.Region], ami.Of{Image: img, Made: m})
	}
	out := map[string]ami.Found{}
	for region, amis := range byRegion {
		c, err := ami.Connect(s.ctx, region)
		if err != nil {
			return nil, err
		}
		found, err := c.Look(s.ctx, amis)
		if err != nil {
			return nil, err
		}
		for id, f := range found {
			out[region+"/"+id] = f
		}
	}
	return out, nil
}

// describeFound is what AWS says of an AMI, in a few words.
func describeFound(f ami.Found) string {
	if !f.There() {
		return strings.TrimSuffix("gone: "+f.Foreign, ": ")
	}
	words := []string{f.State}
	switch {
	case f.Deprecated.IsZero():
	case f.Deprecated.After(time.Now()):
		words = append(words, "deprecated from "+minute(f.Deprecated))
	default:
		words = append(words, "deprecated")
	}
	if f.Protected != "" {
		words = append(words, "protected")
	}
	if len(f.Shared) > 0 {
		words = append(words, "shared with "+f.Sharers())
	}
	if f.Foreign != "" {
		words = append(words, "NOT OURS: "+f.Foreign)
	}
	return strings.Join(words, ", ")
}

func amiRm(s *session) error {
	_, img, all, err := s.amisOf()
	if err != nil {
		return err
	}
	why, err := s.reason()
	if err != nil {
		return err
	}
	left, err := s.chosen(img, all)
	if err != nil {
		return err
	}
	if err := s.unused(img); err != nil {
		return err
	}
	l, err := s.ladder(false)
	if err != nil {
		return err
	}
	wishes := []ami.Wish{{Image: img, AMIs: left, Step: ami.Removed, Why: why, Shared: s.c.Bool("shared"), Gone: s.c.Bool("gone")}}
	verdicts, err := l.Plan(s.ctx, wishes)
	if err != nil {
		return unanswered(err, "")
	}
	lines, text, stays := amiLines(verdicts)
	if s.c.Bool("dry-run") {
		return s.result(lines, text+"nothing was done (--dry-run)\n")
	}
	if stays != "" {
		return hinted(fmt.Errorf("%s: %s", imageName(img), stays), "`rebake ami ls %s --check` shows each; --shared removes what other accounts may launch", imageName(img))
	}
	done, err := event.Do(s.ctx, "remove the AMIs of "+imageName(img), func(ctx context.Context) ([]ami.Verdict, error) { return l.Apply(ctx, wishes) })
	lines, text = []plannedAMI{}, ""
	for _, v := range done {
		lines = append(lines, plannedAMI{imageName(v.Image), v.Region, v.AMI, v.Do, v.Why})
		text += fmt.Sprintf("removed %s in %s of %s\n", v.AMI, v.Region, imageName(v.Image))
	}
	if err == nil && len(done) < len(left) {
		err = errors.New("what began to be used meanwhile stays")
	}
	return errors.Join(err, s.result(lines, text))
}

// unused is an error if a fleet needs the image.
func (s *session) unused(img artifact.Image) error {
	who, err := pipeline.UsedBy(s.ctx, s.Env, img.Digest)
	if err != nil {
		return fmt.Errorf("cannot tell whether a fleet uses it, so its AMIs stay: %w", err)
	}
	if who != "" {
		return hinted(&pipeline.UsedError{Image: imageName(img), Fleet: who}, "deploy another image first, or `rebake fleet destroy %s`", who)
	}
	return nil
}

// amiLines are verdicts for machines and people; stays is why the first of them
// stays that does.
func amiLines(verdicts []ami.Verdict) (lines []plannedAMI, text, stays string) {
	p := amiPlan{lines: []plannedAMI{}}
	for _, v := range verdicts {
		p.lines = append(p.lines, plannedAMI{imageName(v.Image), v.Region, v.AMI, v.Do, v.Why})
		if v.Do == "" {
			stays = cmp.Or(stays, v.Why)
		}
	}
	return p.lines, p.describe(), stays
}

func amiRestore(s *session) error {
	a, img, all, err := s.amisOf()
	if err != nil {
		return err
	}
	why, err := s.reason()
	if err != nil {
		return err
	}
	left, err := s.chosen(img, all)
	if err != nil {
		return err
	}
	var lines []string
	var errs []error
	for _, m := range left {
		c, err := ami.Connect(s.ctx, m.Region)
		if err == nil {
			_, err = c.Restore(s.ctx, a, ami.Of{Image: img, Made: m}, why)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		lines = append(lines, fmt.Sprintf("%s in %s can be launched again", m.AMI, m.Region))
	}
	return errors.Join(errors.Join(errs...), s.result(map[string][]string{"restored": lines}, strings.Join(lines, "\n")))
}

// keepAMIs refuses to forget an image with its AMIs' records.
func (s *session) keepAMIs(ref artifact.Ref, img artifact.Image) error {
	a, ok := s.Store.(artifact.Attacher)
	if !ok || ref.Digest == "" && ref.Tag != img.Version {
		return nil
	}
	records, err := ami.Records(s.ctx, a, img)
	if err != nil || len(records) == 0 {
		return err
	}
	return hinted(fmt.Errorf("%s has AMIs, such as %s in %s, of which nothing would be known", imageName(img), records[0].AMI, records[0].Region),
		"`rebake ami rm %s` first", imageName(img))
}

// amisStay says that AMIs of an image that was removed are there still, or "".
func (s *session) amisStay(ref artifact.Ref, img artifact.Image) string {
	a, ok := s.Store.(artifact.Attacher)
	if !ok || ref.Digest == "" && ref.Tag != img.Version {
		return ""
	}
	records, err := ami.Records(s.ctx, a, img)
	if err != nil || len(records) == 0 {
		return ""
	}
	its := fmt.Sprintf("its %d AMIs stay", len(records))
	if len(records) == 1 {
		its = "its AMI stays"
	}
	return fmt.Sprintf("\n%s until retention: {ami: …} or `rebake ami rm %s` removes what was published", its, imageName(img))
}
