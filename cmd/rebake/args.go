package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// flagsFirst moves a command's flags before its arguments, and the global ones
// before the command, because urfave/cli stops at the first argument and would
// take `build t.yaml --force` for two arguments. What follows "--" is left as it is.
func flagsFirst(app *cli.App, args []string) []string {
	if len(args) == 0 || args[len(args)-1] == "--generate-bash-completion" { // it must stay the last
		return args
	}
	flags, commands := app.Flags, app.Commands
	out, global := []string{args[0]}, []string{}
	i := 1
	for i < len(args) {
		a := args[i]
		if a == "--" {
			break
		}
		if isFlag(a) {
			n := flagWidth(flags, a)
			if i+n > len(args) { // its value is missing
				if has(app.Flags, a) {
					out = out[:1]
				}
				return append(append(append([]string{args[0]}, global...), out[1:]...), a)
			}
			take := args[i : i+n]
			if i += n; has(app.Flags, a) {
				global = append(global, take...)
			} else {
				out = append(out, take...)
			}
			continue
		}
		c := find(commands, a)
		if c == nil {
			break
		}
		out = append(out, a)
		flags, commands = append(append([]cli.Flag{}, app.Flags...), c.Flags...), c.Subcommands
		i++
	}
	var opts, rest []string
	for i < len(args) {
		a := args[i]
		switch {
		case a == "--":
			rest = append(rest, args[i:]...)
			i = len(args)
		case (a == "--help" || a == "-h") && len(out) > 1:
			return append(out, a) // of the command, whatever else was given
		case isFlag(a):
			n := flagWidth(flags, a)
			if i+n > len(args) { // its value is missing, and rest must not become it
				rest = nil
				if has(app.Flags, a) {
					return append(append(out[:1], global...), a)
				}
			}
			take := args[i:min(i+n, len(args))]
			if i += n; has(app.Flags, a) {
				global = append(global, take...)
			} else {
				opts = append(opts, take...)
			}
		default:
			rest = append(rest, a)
			i++
		}
	}
	all := append([]string{out[0]}, global...)
	all = append(all, out[1:]...)
	return append(append(all, opts...), rest...)
}

// has tells whether arg is one of the flags.
func has(flags []cli.Flag, arg string) bool {
	name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	for _, f := range flags {
		for _, n := range f.Names() {
			if n == name {
				return true
			}
		}
	}
	return false
}

func isFlag(a string) bool { return len(a) > 1 && a[0] == '-' }

func find(cs []*cli.Command, name string) *cli.Command {
	for _, c := range cs {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

// flagWidth is 2 if the flag takes its value from the next argument.
func flagWidth(flags []cli.Flag, arg string) int {
	name := strings.TrimLeft(arg, "-")
	if strings.Contains(name, "=") {
		return 1
	}
	for _, f := range flags {
		for _, n := range f.Names() {
			if n == name {
				if _, ok := f.(*cli.BoolFlag); ok {
					return 1
				}
				return 2
			}
		}
	}
	return 1
}
