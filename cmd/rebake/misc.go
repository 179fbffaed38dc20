package main

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/rebake/rebake/internal/doctor"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/internal/ui"
	"github.com/rebake/rebake/templates"
	"github.com/urfave/cli/v2"
)

func initCommand() *cli.Command {
	return &cli.Command{
		Name: "init", Usage: "write an example template to start from", ArgsUsage: "NAME",
		Description: help("Writes NAME.yaml and the files it uses into the current directory (or --dir); nothing is\noverwritten. Names: "+strings.Join(templates.Names(), ", ")+".\n--ci writes a job for every night instead (docs/nightly.md).", "rebake init web && rebake up web.yaml\nrebake init --ci systemd"),
		Flags: []cli.Flag{&cli.StringFlag{Name: "dir", Usage: "the `DIRECTORY` to write to", Value: "."},
			&cli.StringFlag{Name: "ci", Usage: "write the files of a job for every night: `" + strings.Join(templates.CIKinds(), ", ") + "`"}},
		Action: func(c *cli.Context) error {
			if c.IsSet("ci") {
				return initCI(c)
			}
			name, err := arg(c, "one of "+strings.Join(templates.Names(), ", "))
			if err != nil {
				return err
			}
			if !slices.Contains(templates.Names(), name) {
				return usagef("names: "+strings.Join(templates.Names(), ", "), "there is no template %q", name)
			}
			files, err := templates.Write(name, c.String("dir"))
			if err != nil {
				return unwritten(err)
			}
			_, err = fmt.Fprintf(c.App.Writer, "wrote %s\nnext: rebake validate %s, then rebake build or rebake up\n", strings.Join(files, "\nwrote "), files[0])
			return err
		},
	}
}

// initCI writes the files of a nightly job.
func initCI(c *cli.Context) error {
	kind := c.String("ci")
	if c.NArg() > 0 {
		return usagef("`rebake init NAME` writes a template", "--ci takes no template; got %q", c.Args().First())
	}
	if !slices.Contains(templates.CIKinds(), kind) {
		return usagef("one of "+strings.Join(templates.CIKinds(), ", "), "there are no files for --ci %q", kind)
	}
	files, err := templates.WriteCI(kind, c.String("dir"))
	if err != nil {
		return unwritten(err)
	}
	_, err = fmt.Fprintf(c.App.Writer, "wrote %s\nnext: each says where it goes and what to change in it; docs/nightly.md\n", strings.Join(files, "\nwrote "))
	return err
}

// unwritten is the error of a file that could not be written.
func unwritten(err error) error {
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		return hinted(err, "--dir names another directory")
	}
	return usagef("nothing was written", "%v", err)
}

func schemaCommand() *cli.Command {
	return &cli.Command{
		Name: "schema", Usage: "print the JSON Schema of the template language",
		Description: help("For editors: they complete and check templates with it.", "rebake schema > rebake.schema.json"),
		Action: func(c *cli.Context) error {
			out, err := template.Schema(backends().Kinds)
			if err != nil {
				return err
			}
			_, err = c.App.Writer.Write(append(out, '\n'))
			return err
		},
	}
}

func docsCommand() *cli.Command {
	return &cli.Command{
		Name: "docs", Usage: "print the template reference", ArgsUsage: "[SECTION]",
		Description: help("Sections: "+strings.Join(template.Sections(), ", ")+". Every example in them is checked by the validator's own tests.", "rebake docs provision"),
		Action: func(c *cli.Context) error {
			sections := template.Sections()
			if c.NArg() > 0 {
				sections = c.Args().Slice()
			}
			for _, s := range sections {
				text, err := template.Docs(s)
				if err != nil {
					return usagef("sections: "+strings.Join(template.Sections(), ", "), "%v", err)
				}
				if _, err := fmt.Fprintln(c.App.Writer, text); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func gcCommand() *cli.Command {
	return &cli.Command{
		Name: "gc", Usage: "remove what killed runs left, and do what fleets have due",
		Description: help("Destroys the machines of builds whose process is gone, half-written files, and old slots whose\nkeep_old time is over. What is alive stays.", "rebake gc", "4 something could not be removed"),
		Action: with(func(s *session) error {
			gone, err := pipeline.GC(s.ctx, s.Env)
			more, terr := pipeline.TendAll(s.ctx, s.Env)
			gone = append(gone, more...)
			var b strings.Builder
			for _, r := range gone {
				fmt.Fprintf(&b, "removed %s (%s)\n", r.What, r.Why)
			}
			if err = errors.Join(err, terr); err != nil {
				return errors.Join(pipeline.ErrLeftovers, err)
			}
			if len(gone) == 0 {
				gone = []pipeline.Removed{} // an empty list, not null
				b.WriteString("nothing to remove\n")
			}
			return s.result(gone, b.String())
		}),
	}
}

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name: "doctor", Usage: "check the external parts, or with --aws what AWS allows, and say how to get what is missing", ArgsUsage: "[TEMPLATE]",
		Description: help("Lists each part with its version, whether it will do, and the command that mends it.\nWith --aws: whose credentials were found, the region, the clock, and each permission that the template needs, asked\nby dry runs and reads: nothing is made or changed. What is missing is printed as a policy to attach.",
			"rebake doctor\nrebake doctor --aws web.yaml\nrebake doctor --aws --with retention --region eu-central-1"),
		Flags: append([]cli.Flag{&cli.BoolFlag{Name: "aws", Usage: "check credentials and permissions in AWS instead"}, withFlag(),
			&cli.StringFlag{Name: "region", Usage: "the `REGION` that is asked; as the template, AWS_REGION or the profile says by default"}}, templateFlags()...),
		Action: with(func(s *session) error {
			if s.c.Bool("aws") {
				return doctorAWS(s)
			}
			if s.c.NArg() > 0 {
				return usagef("`rebake doctor --aws "+s.c.Args().First()+"` asks AWS for what it needs", "doctor takes a template only with --aws")
			}
			return doctorParts(s)
		}),
	}
}

func doctorParts(s *session) error {
	found := doctor.Check(s.ctx, string(s.State))
	rows := [][]string{{"PART", "VERSION", "STATE", "NEEDED FOR", "NOTE"}}
	bad := 0
	for _, f := range found {
		state, note := "ok", f.Why
		if !f.OK {
			state = "missing"
			if f.Optional {
				state = "optional"
			} else {
				bad++
			}
			if f.Fix != "" {
				note = strings.TrimSpace(note + "; mend: " + f.Fix)
			}
		}
		rows = append(rows, []string{f.Part, f.Version, state, f.Needed, note})
	}
	if err := s.result(found, ui.Table(rows)); err != nil {
		return err
	}
	if bad > 0 {
		return hinted(fmt.Errorf("%d parts are missing", bad), "run the commands in the last column, then `rebake doctor` again")
	}
	return nil
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name: "version", Usage: "print the version",
		Description: help("The same line as --version.", "rebake version"),
		Action: func(c *cli.Context) error {
			_, err := fmt.Fprintf(c.App.Writer, "rebake version %s\n", version)
			return err
		},
	}
}

const bashCompletion = `_rebake() {
  local cur opts; cur="${COMP_WORDS[COMP_CWORD]}"
  opts=$("${COMP_WORDS[@]:0:$COMP_CWORD}" ${cur:+"$cur"} --generate-bash-completion 2>/dev/null)
  COMPREPLY=($(compgen -W "${opts}" -f -- "$cur"))
}
complete -o bashdefault -o default -F _rebake rebake
`

const zshCompletion = `#compdef rebake
_rebake() {
  local -a opts
  opts=("${(@f)$(${words[@]:0:#words[@]-1} --generate-bash-completion 2>/dev/null)}")
  _describe 'values' opts
  _files
}
compdef _rebake rebake
`

func completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print a shell completion script", ArgsUsage: "bash|zsh|fish",
		Description: help("Completes commands and options.", "source <(rebake completion bash)"),
		Action: func(c *cli.Context) error {
			shell, err := arg(c, "bash, zsh or fish")
			if err != nil {
				return err
			}
			text := map[string]string{"bash": bashCompletion, "zsh": zshCompletion}[shell]
			if shell == "fish" {
				if text, err = c.App.ToFishCompletion(); err != nil {
					return err
				}
			}
			if text == "" {
				return usagef("bash, zsh or fish", "no completion for %q", shell)
			}
			_, err = fmt.Fprint(c.App.Writer, text)
			return err
		},
	}
}
