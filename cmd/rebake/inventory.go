package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/inventory"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/ui"
	"github.com/urfave/cli/v2"
)

// errDiffers is of two images that differ in what --fail-on names.
var errDiffers = errors.New("the images differ in what --fail-on names")

func diffCommand() *cli.Command {
	return &cli.Command{
		Name: "diff", Usage: "what tells two images apart: packages, setuid files, ports, users, …", ArgsUsage: "REF REF",
		Description: help("Reads the inventories that are attached to the images, no disk. Files outside of /etc are counted by\nthe package that owns them; --files names each (docs/inventory.md).",
			"rebake diff web:stable web:latest\nrebake diff web:1.4.0 web:1.5.0 --fail-on setuid,port,user", "7 the images differ in what --fail-on names, or cannot tell"),
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "fail-on", Usage: "exit status 7 if one of `KINDS` was added or changed: " + strings.Join(inventory.Gates(), ", ")},
			&cli.BoolFlag{Name: "files", Usage: "name every file"},
		},
		Action: with(imagesDiff),
	}
}

func imagesDiff(s *session) error {
	if s.c.NArg() != 2 {
		return usagef("`rebake diff web:stable web:latest`", "diff takes two references; got %d arguments", s.c.NArg())
	}
	var gates []string
	for _, f := range s.c.StringSlice("fail-on") {
		gates = append(gates, strings.Split(f, ",")...)
	}
	if _, err := (inventory.Diff{}).Broken(gates); err != nil {
		return usagef("for example --fail-on setuid,port,user", "--fail-on: %v", err)
	}
	var imgs [2]artifact.Image
	for i := range imgs {
		var err error
		if imgs[i], err = s.known(s.c.Args().Get(i)); err != nil {
			return err
		}
	}
	d, err := pipeline.Diff(s.ctx, s.Env, imgs[0], imgs[1])
	if err != nil {
		return uninventoried(err)
	}
	broken, err := d.Broken(gates)
	if err != nil {
		return err
	}
	sum := d.Summary()
	err = s.result(struct {
		From    artifact.Digest   `json:"from"`
		To      artifact.Digest   `json:"to"`
		Summary inventory.Summary `json:"summary"`
		Broken  []string          `json:"broken"` // of --fail-on
		inventory.Diff
	}{imgs[0].Digest, imgs[1].Digest, sum, append([]string{}, broken...), d}, describeDiff(imgs, d, s.c.Bool("files")))
	if err == nil && len(broken) > 0 {
		err = fmt.Errorf("%w: %s", errDiffers, strings.Join(broken, "; "))
	}
	return err
}

// known finds the image that a command names, also one that was removed and of
// which the store keeps what was said.
func (s *session) known(text string) (artifact.Image, error) {
	ref, img, err := s.resolve(text)
	if err != nil && errors.Is(err, artifact.ErrNotFound) {
		img, _, err = artifact.Known(s.ctx, s.Store, ref)
	}
	return img, err
}

// uninventoried says what to do about an image without an inventory.
func uninventoried(err error) error {
	if errors.Is(err, pipeline.ErrNoInventory) {
		return hinted(err, "bake it again: `rebake build TEMPLATE --force`")
	}
	return err
}

func describeDiff(imgs [2]artifact.Image, d inventory.Diff, every bool) string {
	var rows [][]string
	add := func(kind string, l []inventory.Change) {
		for _, c := range l {
			from, to := plainFacts(kind, c)
			rows = append(rows, []string{kind, c.What, c.Name, from, to})
		}
	}
	add("package", d.Packages)
	add("kernel", d.Kernel)
	for _, path := range d.SetID {
		rows = append(rows, []string{"setuid", inventory.Added, path, "", ""})
	}
	add("port", d.Ports)
	add("user", d.Users)
	add("group", d.Groups)
	add("unit", d.Units)
	add("cron", d.Cron)
	add("sshd", d.SSHD)
	add("config", d.Config)
	if every {
		add("file", d.Files)
	} else {
		rows = append(rows, ownerRows(d.Owners)...)
	}
	for _, size := range d.Sizes {
		sign := "+"
		if size.Grew < 0 {
			sign = ""
		}
		rows = append(rows, []string{"size", sign + ui.Size(size.Grew), size.Dir, "", ""})
	}
	head := fmt.Sprintf("%s:%s (%s) to %s:%s (%s): %s\n", imgs[0].Name, imgs[0].Version, short(imgs[0].Digest), imgs[1].Name, imgs[1].Version, short(imgs[1].Digest), d.Summary())
	if len(rows) == 0 {
		return head
	}
	return head + ui.Table(append([][]string{{"OF", "WHAT", "NAME", "WAS", "IS"}}, rows...))
}

// ownerRows count files by the package that owns them.
func ownerRows(owners []inventory.Owned) (rows [][]string) {
	for _, o := range owners {
		of := o.Package
		if of == "" {
			of = "(of no package)"
		}
		var parts []string
		for _, n := range []struct {
			n    int
			what string
		}{{o.Added, inventory.Added}, {o.Removed, inventory.Removed}, {o.Changed, inventory.Changed}} {
			if n.n > 0 {
				parts = append(parts, fmt.Sprintf("%d %s", n.n, n.what))
			}
		}
		rows = append(rows, []string{"files", strings.Join(parts, ", "), of, "", ""})
	}
	return rows
}

// plainFacts leaves digests out, which tell a person nothing.
func plainFacts(kind string, c inventory.Change) (from, to string) {
	if kind != "config" && kind != "file" {
		return c.From, c.To
	}
	cut := func(s string) string {
		for _, d := range []string{" sha256:", " md5:"} {
			s, _, _ = strings.Cut(s, d)
		}
		return s
	}
	if from, to = cut(c.From), cut(c.To); from == to {
		return from, "other content"
	}
	return from, to
}

func blameCommand() *cli.Command {
	var flags []cli.Flag
	usage := map[string]string{"package": "`NAME` of a package, or NAME:ARCH", "file": "`PATH` of a file", "user": "`NAME` of an account", "group": "`NAME` of a group",
		"unit": "`NAME` of an enabled unit", "port": "`PORT` that is listened on: 22, or as `rebake diff` writes it"}
	for _, kind := range inventory.Things() {
		flags = append(flags, &cli.StringFlag{Name: kind, Usage: usage[kind]})
	}
	return &cli.Command{
		Name: "blame", Usage: "which version of an image brought a package, a file, a user, …", ArgsUsage: "NAME", Flags: flags,
		Description: help("Walks the versions of an image in the order in which they were made, by their inventories, and says\nin which one the thing came, changed and went, and whether it came with the base.",
			"rebake blame web --package openssl\nrebake blame web --port 8080"),
		Action: with(blame),
	}
}

func blame(s *session) error {
	name, err := arg(s.c, "the name of an image")
	if err != nil {
		return err
	}
	if err := artifact.CheckName(name); err != nil {
		return usagef("`rebake blame web --package openssl`: all versions are walked", "%v", err)
	}
	var of []inventory.Thing
	for _, kind := range inventory.Things() {
		if v := s.c.String(kind); v != "" {
			of = append(of, inventory.Thing{Kind: kind, Name: v})
		}
	}
	if len(of) != 1 {
		return usagef("`rebake blame web --package openssl`", "give one of --%s", strings.Join(inventory.Things(), ", --"))
	}
	b, err := pipeline.Blame(s.ctx, s.Env, name, of[0])
	if err != nil {
		return err
	}
	switch {
	case b.Looked == 0:
		return hinted(fmt.Errorf("no version of %s tells: %w", name, pipeline.ErrNoInventory), "bake it again: `rebake build TEMPLATE --force`")
	case len(b.History) == 0:
		return hinted(fmt.Errorf("none of %d versions of %s has %s", b.Looked, name, of[0]), "`rebake sbom %s --format inventory` lists what it holds", name)
	}
	return s.result(b, describeBlame(b, of[0]))
}

func describeBlame(b pipeline.Blamed, t inventory.Thing) string {
	last := b.History[len(b.History)-1]
	said := map[string]string{"there": "was there in the first version that tells, %s", inventory.Added: "came with %s", inventory.Removed: "went with %s"}[last.What]
	if said == "" {
		said = "is what it is since %s"
	}
	text := fmt.Sprintf(t.String()+" "+said, b.Name+":"+last.Version)
	if last.Base != "" {
		text += ", from its base " + last.Base
	}
	rows := [][]string{{"VERSION", "CREATED", "WHAT", "WAS", "IS", "BASE"}}
	for _, h := range b.History {
		rows = append(rows, []string{h.Version, h.Created.Local().Format("2006-01-02 15:04"), h.What, h.From, h.To, h.Base})
	}
	text = ui.Table([][]string{{text}}) + ui.Table(rows)
	if len(b.Untold) > 0 {
		text += fmt.Sprintf("%d versions do not tell: %s\n", len(b.Untold), strings.Join(b.Untold, ", "))
	}
	return text
}

var billFormats = map[string]string{"spdx": inventory.SPDXKind, "cyclonedx": inventory.CycloneDXKind, "inventory": inventory.Kind}

func sbomCommand() *cli.Command {
	return &cli.Command{
		Name: "sbom", Usage: "print an image's bill of materials, or all that it holds", ArgsUsage: "REF",
		Flags: []cli.Flag{&cli.StringFlag{Name: "format", Value: "spdx", Usage: "`spdx` (2.3), cyclonedx (1.6) or inventory (rebake's own: files, users, ports too)"}},
		Description: help("Prints the document that is attached to the image, as JSON.",
			"rebake sbom web:1.4.0 > web.spdx.json\nrebake sbom web:stable --format cyclonedx\nrebake sbom web:stable --format inventory | jq '.ports'"),
		Action: with(func(s *session) error {
			name, err := arg(s.c, "an image reference")
			if err != nil {
				return err
			}
			kind := billFormats[s.c.String("format")]
			if kind == "" {
				return usagef("one of spdx, cyclonedx, inventory", "unknown --format %q", s.c.String("format"))
			}
			img, err := s.known(name)
			if err != nil {
				return err
			}
			raw, err := document(s, img, kind)
			if err != nil {
				return uninventoried(err)
			}
			return s.result(json.RawMessage(raw), string(raw))
		}),
	}
}

func document(s *session, img artifact.Image, kind string) ([]byte, error) {
	if kind != inventory.Kind {
		return pipeline.Bill(s.ctx, s.Env, img, kind)
	}
	inv, err := pipeline.Inventory(s.ctx, s.Env, img)
	if err != nil {
		return nil, err
	}
	return json.Marshal(inv)
}
