package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"github.com/rebake/rebake/artifact/oci"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/spell"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/internal/ui"
	"github.com/urfave/cli/v2"
)

// stdio is what a command reads and writes.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// run is the whole command line: it returns the exit status.
func run(ctx context.Context, args []string, std stdio) int {
	if len(args) > 1 && args[1] == "help" { // as many type it
		args = slices.Concat(args[:1], args[2:], []string{"--help"})
	}
	var unknown error
	app := newApp(std, func(err error) { unknown = err })
	err := app.RunContext(ctx, flagsFirst(app, args))
	if err == nil {
		err = unknown
	}
	if err != nil && context.Cause(ctx) == errInterrupted {
		err = errors.Join(errInterrupted, err)
	}
	if err != nil {
		printError(std.err, err)
	}
	return status(err)
}

func newApp(std stdio, unknown func(error)) *cli.App {
	app := &cli.App{
		Name:                      "rebake",
		Usage:                     "bake machine images and replace running fleets with them",
		UsageText:                 "rebake [--output text|json] [--store ADDRESS] [--state ADDRESS] [--debug] COMMAND [options] [arguments]",
		Description:               "Don't patch servers. Rebake them. `rebake init web && rebake up web.yaml` is the whole of it.",
		Version:                   version,
		Writer:                    std.out,
		ErrWriter:                 std.err,
		Reader:                    std.in,
		DisableSliceFlagSeparator: true,
		HideHelpCommand:           true,
		EnableBashCompletion:      true,
		Suggest:                   true,
		ExitErrHandler:            func(*cli.Context, error) {},
		OnUsageError:              onUsageError,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "output", Usage: "how to tell what happens: `text` (a live view on a terminal), plain or json", Value: "text", EnvVars: []string{"REBAKE_OUTPUT"}},
			storeFlag(), stateFlag(),
			&cli.BoolFlag{Name: "debug", Usage: "show every line that guests and tools print", EnvVars: []string{"REBAKE_DEBUG"}},
		},
		Commands: commands(),
	}
	app.CommandNotFound = func(c *cli.Context, name string) {
		names := app.VisibleCommands()
		if len(c.Command.Subcommands) > 0 {
			names = c.Command.Subcommands
		}
		unknown(usagef(didYouMean(names, name)+"`rebake --help` lists the commands", "unknown command %q", name))
	}
	for _, c := range app.Commands {
		finish(c)
	}
	return app
}

// didYouMean is the start of a hint: the command nearest to a name.
func didYouMean(commands []*cli.Command, name string) string {
	var names []string
	for _, c := range commands {
		names = append(names, c.Name)
	}
	if near := spell.Nearest(name, names); near != "" {
		return fmt.Sprintf("did you mean %q? ", near)
	}
	return ""
}

var fleetName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,39}$`)

// finish gives every command the same manners, and holds it to its ArgsUsage:
// without one it takes no argument, and a FLEET is a name, never a path.
func finish(c *cli.Command) {
	c.OnUsageError = onUsageError
	c.HideHelpCommand = true
	for _, s := range c.Subcommands {
		finish(s)
	}
	if c.Description == "" && len(c.Subcommands) > 0 {
		first := "rebake " + c.Name + " " + c.Subcommands[0].Name
		c.Description = help("`rebake "+c.Name+" COMMAND --help` says more of each, and its exit statuses.", first+"\n"+first+" --help")
	}
	action := c.Action
	c.Action = func(ctx *cli.Context) error {
		arg := ctx.Args().First()
		switch {
		case len(c.Subcommands) > 0 && (action == nil && arg != "" || ctx.NArg() > 1):
			return usagef(didYouMean(c.Subcommands, arg)+"`rebake "+c.Name+" --help` lists them", "unknown command %q", c.Name+" "+arg)
		case action == nil:
			return cli.ShowSubcommandHelp(ctx)
		case c.ArgsUsage == "" && ctx.NArg() > 0:
			return usagef("`"+c.HelpName+" --help` shows what it takes", "%s takes no argument; got %q", c.HelpName, arg)
		case strings.HasPrefix(c.ArgsUsage, "FLEET") && ctx.NArg() > 0 && !fleetName.MatchString(arg):
			return usagef("`rebake fleet ls` lists the fleets", "%q cannot name a fleet: lower-case letters, digits and -, at most 40", arg)
		}
		return action(ctx)
	}
}

func onUsageError(c *cli.Context, err error, _ bool) error {
	name, flags, text := "rebake", c.App.Flags, err.Error()
	if c.Command != nil && c.Command.HelpName != "" {
		name, flags = c.Command.HelpName, append(append([]cli.Flag{}, c.Command.Flags...), flags...)
	}
	hint := "`" + name + " --help` shows what it takes"
	if bad, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		text = fmt.Sprintf("unknown option %q", "--"+strings.TrimPrefix(bad, "-"))
		var names []string
		for _, f := range flags {
			names = append(names, f.Names()[0])
		}
		if near := spell.Nearest(strings.TrimLeft(bad, "-"), names); near != "" {
			hint = fmt.Sprintf("did you mean %q? ", "--"+near) + hint
		}
	}
	return usagef(hint, "%s", text)
}

func commands() []*cli.Command {
	return []*cli.Command{
		upCommand(), buildCommand(), validateCommand(), initCommand(),
		deployCommand(), rollbackCommand(), fleetCommand(), imagesCommand(), pushCommand(), pullCommand(), copyCommand(), importCommand(), vagrantCommand(), amiCommand(), awsCommand(), keyCommand(), signCommand(), verifyCommand(),
		diffCommand(), blameCommand(), sbomCommand(), tagCommand(), promoteCommand(), channelCommand(), revokeCommand(), restoreCommand(), planCommand(), cacheCommand(), shellCommand(),
		doctorCommand(), gcCommand(), schemaCommand(), docsCommand(), completionCommand(), versionCommand(),
	}
}

// help is a command's description: an example to paste and its exit statuses.
func help(text, example string, statuses ...string) string {
	var b strings.Builder
	b.WriteString(text)
	b.WriteString("\n\nExample:\n")
	for _, l := range strings.Split(strings.TrimSpace(example), "\n") {
		b.WriteString("  " + strings.TrimSpace(l) + "\n")
	}
	b.WriteString("\nExit status: 0 done, 1 failed, 2 bad input")
	for _, s := range statuses {
		b.WriteString(", " + s)
	}
	b.WriteString(", 130 interrupted")
	return b.String()
}

// session is one command's run: its environment and its way of telling.
type session struct {
	pipeline.Env
	ctx context.Context
	c   *cli.Context
	ui  ui.UI
	red *event.Redactor

	account   *account // for a summary; nil: none is kept
	templates int      // whose store was asked for
}

func (s *session) interrupted() bool { return context.Cause(s.c.Context) == errInterrupted }

// with opens the state and the store, runs f with a UI, and closes the UI
// before an error is printed.
func with(f func(*session) error) cli.ActionFunc {
	return func(c *cli.Context) (err error) {
		env, err := openEnv()
		if err != nil {
			return err
		}
		u, err := newUI(c)
		if err != nil {
			return err
		}
		env.Ask = asker(c, u)
		s := &session{Env: env, c: c, ui: u, red: &event.Redactor{}}
		s.ctx = event.With(c.Context, u.Sink(), s.red)
		s.Backends.Store = s.openStore
		defer func() {
			err = s.red.Error(errors.Join(err, u.Close())) // what a guest said may be in it
		}()
		if s.Shared, err = sharedState(c.String("state")); err != nil {
			return err
		}
		if c.String("store") != "" {
			if err := s.useStore(c.String("store")); err != nil {
				return err
			}
		}
		return f(s)
	}
}

func openEnv() (pipeline.Env, error) {
	const elsewhere = "set REBAKE_HOME to a directory that you can write to"
	dir, err := state.Open()
	if err != nil {
		return pipeline.Env{}, hinted(err, elsewhere)
	}
	store, err := oci.Open(dir.Store())
	if err != nil {
		return pipeline.Env{}, hinted(err, elsewhere)
	}
	return pipeline.Env{State: dir, Store: store, Backends: backends(), Version: version}, nil
}

// newUI picks the reader of events. Results go to standard output, events to
// standard error, except that --output json puts both on standard output as
// one stream of objects.
func newUI(c *cli.Context) (ui.UI, error) {
	mode := c.String("output")
	w := c.App.ErrWriter
	switch mode {
	case "json":
		w = c.App.Writer
	case "text", "":
		f, ok := w.(*os.File)
		if !ok || !ui.IsTerminal(f) || c.Bool("debug") {
			mode = "plain"
		} else {
			mode = "live"
		}
	case "plain":
	default:
		return nil, usagef("one of text, plain, json", "unknown --output %q", mode)
	}
	return ui.New(mode, c.Bool("debug"), w), nil
}

// result prints what a command came to: an object for machines, text for people.
func (s *session) result(v any, text string) error {
	if err := s.ui.Close(); err != nil {
		return err
	}
	if s.c.String("output") == "json" {
		return writeJSON(s.c.App.Writer, map[string]any{"kind": "result", "result": v})
	}
	if s.account.told() {
		return nil
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	_, err := io.WriteString(s.c.App.Writer, text)
	return err
}

// arg is the only argument, or a usage error that names it.
func arg(c *cli.Context, what string) (string, error) {
	if c.NArg() != 1 {
		return "", usagef("`"+c.Command.HelpName+" --help` shows an example", "%s takes one argument, %s; got %d", c.Command.HelpName, what, c.NArg())
	}
	return c.Args().First(), nil
}

// render fills a small text template.
func render(tpl string, v any) (string, error) {
	t, err := template.New("").Parse(tpl)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = t.Execute(&b, v)
	return b.String(), err
}
