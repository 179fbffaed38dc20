package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
)

func TestFlagsMayStandAnywhere(t *testing.T) {
	app := newApp(stdio{}, func(error) {})
	for in, want := range map[string]string{
		"build t.yaml --force":                          "build --force t.yaml",
		"build t.yaml --var a=1,2 --output json":        "--output json build --var a=1,2 t.yaml",
		"fleet ssh web web-1 -- uptime --pretty":        "fleet ssh web web-1 -- uptime --pretty",
		"images export web:1 out.raw --format raw":      "images export --format raw web:1 out.raw",
		"deploy status web":                             "deploy status web",
		"--debug up t.yaml --var=release=2 --skip-test": "--debug up --var=release=2 --skip-test t.yaml",
	} {
		got := strings.Join(flagsFirst(app, append([]string{"rebake"}, strings.Fields(in)...)), " ")
		if got != "rebake "+want {
			t.Errorf("%s\n got %s\nwant rebake %s", in, got, want)
		}
	}
}

// cli runs a command line as a user types it.
func command(t *testing.T, line string) (status int, out, errOut string) {
	t.Helper()
	t.Setenv("REBAKE_HOME", t.TempDir())
	var o, e bytes.Buffer
	status = run(context.Background(), append([]string{"rebake"}, strings.Fields(line)...), stdio{in: strings.NewReader(""), out: &o, err: &e})
	return status, o.String(), e.String()
}

func TestBadInputEndsWithStatusTwoAndSaysWhatToDo(t *testing.T) {
	for _, line := range []string{"bild", "build", "build nothing.yaml", "build a b", "images frob", "images show UPPER", "deploy --nonsense x", "docs nonsense", "init nonsense", "fleet destroy web x"} {
		status, _, errOut := command(t, line)
		if status != exitUsage || !strings.Contains(errOut, "rebake: error: ") || strings.Contains(errOut, "panic") {
			t.Errorf("%s: status %d\n%s", line, status, errOut)
		}
	}
}

func TestEveryCommandHasAnExampleAndItsStatuses(t *testing.T) {
	for _, c := range commands() {
		all := c.Subcommands
		if len(all) == 0 || c.Name == "deploy" {
			all = append(all, c)
		}
		for _, s := range all {
			if !strings.Contains(s.Description, "Example:\n  rebake ") && !strings.Contains(s.Description, "source <(rebake") || !strings.Contains(s.Description, "Exit status: 0 done") {
				t.Errorf("%s %s: %q", c.Name, s.Name, s.Description)
			}
		}
	}
}

func TestWhatNeedsNoMachineWorks(t *testing.T) {
	for line, want := range map[string]string{
		"--version": "rebake", "schema": "$schema", "docs fleet": "fleet", "images ls": "no images yet", "fleet ls": "no fleets yet",
		"gc": "nothing to remove", "completion bash": "complete", "--output json images ls": `"kind":"result"`,
	} {
		if status, out, errOut := command(t, line); status != 0 || !strings.Contains(out, want) {
			t.Errorf("%s: status %d, %q\n%s", line, status, out, errOut)
		}
	}
}

func TestAnErrorCannotDriveTheTerminal(t *testing.T) {
	var b bytes.Buffer
	printError(&b, errors.New("its console ends with:\n\x1b]0;owned\x07\x1b[2J"))
	if strings.ContainsAny(b.String(), "\x1b\x07") || !strings.HasPrefix(b.String(), "rebake: error: its console") {
		t.Errorf("%q", b.String())
	}
}
