package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rebake/rebake/templates"
	"github.com/urfave/cli/v2"
	"gopkg.in/yaml.v3"
)

// commandLines are the lines of a file that run rebake: what a continued line goes
// on with is part of it, what a shell makes of the rest is not.
func commandLines(text string) (out [][]string) {
	text = strings.ReplaceAll(text, "\\\n", " ")
	for _, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		for _, at := range runsRebake.FindAllStringIndex(line, -1) {
			if words := shellWords(line[at[1]:]); len(words) > 0 {
				out = append(out, append([]string{"rebake"}, words...))
			}
		}
	}
	return out
}

// runsRebake is the program's name where a command may begin.
var runsRebake = regexp.MustCompile(`(?:^\s*(?:- )?|\$ |&& |ExecStart=/usr/local/bin/|REBAKE_HOME=\S+ )rebake `)

// expansion is what a shell or a CI system fills in.
var expansion = regexp.MustCompile(`\$\{\{[^}]*\}\}|\$\{[^}]*\}|\$\w+`)

// shellWords splits what follows, up to where the command ends.
func shellWords(s string) (words []string) {
	s = expansion.ReplaceAllString(s, "x")
	word, in, quote := "", false, byte(0)
	end := func() {
		if in {
			words = append(words, word)
		}
		word, in = "", false
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word += string(c)
		case c == '"' || c == '\'':
			quote, in = c, true
		case c == ' ' || c == '\t':
			end()
		case strings.IndexByte("|&;<>#", c) >= 0:
			end()
			return words
		default:
			word, in = word+string(c), true
		}
	}
	end()
	return words
}

// parses runs a command line up to where the command would begin its work.
func parses(ctx context.Context, args []string) (ran string, err error) {
	var out bytes.Buffer
	unknown := error(nil)
	app := newApp(stdio{in: &out, out: &out, err: &out}, func(err error) { unknown = err })
	var still func([]*cli.Command)
	still = func(commands []*cli.Command) {
		for _, c := range commands {
			c.Action = func(ctx *cli.Context) error {
				ran = ctx.Command.HelpName
				if c.ArgsUsage == "" && ctx.NArg() > 0 || len(c.Subcommands) > 0 && ctx.NArg() > 1 {
					return usagef("", "%v are too many arguments", ctx.Args().Slice())
				}
				return nil
			}
			still(c.Subcommands)
		}
	}
	still(app.Commands)
	if err = app.RunContext(ctx, flagsFirst(app, args)); err == nil {
		err = unknown
	}
	return ran, err
}

// Every line in the files for cron, systemd and CI, and in the page about them, is
// one that this program understands.
func TestEveryCommandLineOfTheNightlyFilesIsUnderstood(t *testing.T) {
	files := map[string]string{}
	for _, kind := range templates.CIKinds() {
		dir := t.TempDir()
		written, err := templates.WriteCI(kind, dir)
		if err != nil || len(written) == 0 {
			t.Fatal(written, err)
		}
		for _, path := range written {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files[kind+" "+filepath.Base(path)] = string(raw)
		}
	}
	page, err := os.ReadFile("../../docs/nightly.md")
	if err != nil {
		t.Fatal(err)
	}
	files["docs/nightly.md"] = string(page)
	lines := 0
	for name, text := range files {
		for _, args := range commandLines(text) {
			lines++
			if ran, err := parses(t.Context(), args); err != nil || ran == "" {
				t.Errorf("%s: %q: %v", name, args, err)
			}
		}
	}
	if lines < 20 {
		t.Errorf("only %d lines were found: the test is blind", lines)
	}
	for _, bad := range []string{"rebake up web.yaml --if-change", "rebake pul x", "rebake up web.yaml --junit", "rebake gc now"} {
		if ran, err := parses(t.Context(), strings.Fields(bad)); err == nil {
			t.Errorf("%q is understood, as %s", bad, ran)
		}
	}
}

// The files for GitHub and GitLab are YAML with what these two want to see in it.
func TestTheWorkflowsAreYAML(t *testing.T) {
	for _, kind := range []string{"github", "gitlab"} {
		written, err := templates.WriteCI(kind, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range written {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var doc map[string]any
			if err := yaml.Unmarshal(raw, &doc); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if kind == "gitlab" {
				for _, job := range []string{"nightly", "release", "check"} {
					if j, ok := doc[job].(map[string]any); !ok || j["script"] == nil || j["rules"] == nil {
						t.Errorf("%s: job %s is %v", path, job, doc[job])
					}
				}
				continue
			}
			jobs, ok := doc["jobs"].(map[string]any)
			if !ok || doc["on"] == nil || doc["permissions"] == nil || doc["concurrency"] == nil {
				t.Fatalf("%s: %v", path, doc)
			}
			for name, j := range jobs {
				job := j.(map[string]any)
				if job["runs-on"] == nil || job["timeout-minutes"] == nil || len(job["steps"].([]any)) == 0 {
					t.Errorf("%s: job %s is %v", path, name, job)
				}
				// An expression within a script is text of whoever can name a branch or a tag.
				for _, s := range job["steps"].([]any) {
					if run, _ := s.(map[string]any)["run"].(string); strings.Contains(run, "${{") {
						t.Errorf("%s: job %s has an expression in a script: %s", path, name, run)
					}
				}
			}
		}
	}
}

// unitKeys are the settings that the units use, by section.
var unitKeys = map[string][]string{
	"Unit": {"Description", "Documentation", "Wants", "After", "OnFailure"},
	"Service": {"Type", "User", "DynamicUser", "WorkingDirectory", "StateDirectory", "StateDirectoryMode", "Environment", "EnvironmentFile", "ExecStart", "SuccessExitStatus",
		"TimeoutStartSec", "TimeoutStopSec", "KillMode", "PrivateTmp", "UMask", "ProtectSystem", "ReadWritePaths", "ProtectHome",
		"DevicePolicy", "DeviceAllow"},
	"Timer":   {"OnCalendar", "RandomizedDelaySec", "FixedRandomDelay", "Persistent"},
	"Install": {"WantedBy"},
}

// The units hold settings that there are, and those without which a fleet would
// not outlive its nightly job.
func TestTheUnitsAreSettings(t *testing.T) {
	written, err := templates.WriteCI("systemd", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range written {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		section, all := "", map[string]string{}
		for n, line := range strings.Split(string(raw), "\n") {
			key, value, ok := strings.Cut(line, "=")
			switch {
			case line == "" || strings.HasPrefix(line, "#"):
			case strings.HasPrefix(line, "["):
				section = strings.Trim(line, "[]")
			case !ok || !slices.Contains(unitKeys[section], key):
				t.Errorf("%s:%d: [%s] %s", filepath.Base(path), n+1, section, line)
			default:
				all[key] = value
			}
		}
		if strings.HasSuffix(path, "rebake.service") && (all["KillMode"] != "process" || all["PrivateTmp"] != "no" || all["Type"] != "oneshot") {
			t.Errorf("the fleet would end with the unit: %v", all)
		}
	}
}
