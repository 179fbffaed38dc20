package hook_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/hook"
	"gopkg.in/yaml.v3"
)

// page is docs/hooks.md; blocks are its examples of a language.
func page(t *testing.T, language string) (text string, blocks []string) {
	t.Helper()
	text = read(t, "../../docs", "hooks.md")
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(text, -1) {
		blocks = append(blocks, m[1])
	}
	if len(blocks) == 0 {
		t.Fatalf("docs/hooks.md has no example in %s", language)
	}
	return text, blocks
}

func TestTheDocumentShowsTheNotice(t *testing.T) {
	text, blocks := page(t, "json")
	if golden := read(t, "testdata", "notice.json"); blocks[0] != golden {
		t.Errorf("docs/hooks.md shows another notice than testdata/notice.json")
	}
	_, table, _ := strings.Cut(text, "| field | meaning |")
	fields := map[string]any{}
	if err := json.Unmarshal([]byte(blocks[0]), &fields); err != nil {
		t.Fatal(err)
	}
	for f := range fields {
		if !strings.Contains(table, "`"+f+"`") {
			t.Errorf("the field %s is in no row of the table", f)
		}
	}
	for _, s := range hook.Stages {
		if !strings.Contains(text, "| `"+string(s)+"` |") {
			t.Errorf("the stage %s has no row", s)
		}
	}
}

func TestTheDocumentsTemplateIsGood(t *testing.T) {
	_, blocks := page(t, "yaml")
	var tpl struct {
		Fleet struct {
			Deploy struct {
				Hooks []struct {
					On      []fleet.Stage
					Command []string
					URL     string
					Timeout time.Duration
				}
			}
		}
	}
	d := yaml.NewDecoder(strings.NewReader(blocks[0]))
	d.KnownFields(true)
	if err := d.Decode(&tpl); err != nil {
		t.Fatal(err)
	}
	for i, h := range tpl.Fleet.Deploy.Hooks {
		if err := hook.Check(fleet.Hook{On: h.On, Args: h.Command, URL: h.URL, Timeout: h.Timeout}); err != nil {
			t.Errorf("hook %d: %v", i, err)
		}
	}
	if len(tpl.Fleet.Deploy.Hooks) != 2 {
		t.Errorf("%d hooks", len(tpl.Fleet.Deploy.Hooks))
	}
}

// fakeCurl takes down its arguments and what it would send.
const fakeCurl = "#!/bin/sh\nprintf '%s\\n' \"$@\" >\"$SEEN/arguments\"\ncat >\"$SEEN/body\"\n"

func TestTheDocumentsScriptsWork(t *testing.T) {
	_, blocks := page(t, "sh")
	dir := t.TempDir()
	var hooks []fleet.Hook
	for i, b := range blocks {
		path := filepath.Join(dir, fmt.Sprintf("hook%d.sh", i))
		if err := os.WriteFile(path, []byte(b), 0o755); err != nil {
			t.Fatal(err)
		}
		hooks = append(hooks, fleet.Hook{Args: []string{"/bin/sh", path}, Timeout: time.Minute})
	}
	if err := os.WriteFile(filepath.Join(dir, "curl"), []byte(fakeCurl), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("SEEN", dir)
	for range 2 {
		if err := hook.Notify(hooks, dir)(t.Context(), notice()); err != nil {
			t.Fatal(err)
		}
	}
	var said struct{ Text string }
	if err := json.Unmarshal([]byte(read(t, dir, "body")), &said); err != nil || said.Text != "web: failed, web:1.5.0 (deployment 01K3QF4S8H2Z5V7X9B1C3D5E7G)" {
		t.Errorf("sent to the chat: %q %v", said.Text, err)
	}
	if args := read(t, dir, "arguments"); !strings.Contains(args, "--config\n/etc/rebake/slack.curl\n") || !strings.Contains(args, "--fail\n") || strings.Contains(args, "://") {
		t.Errorf("curl was called with %q", args)
	}
	lines := strings.Split(strings.TrimSpace(read(t, dir, "notices.jsonl")), "\n")
	var n fleet.Notice
	if err := json.Unmarshal([]byte(lines[0]), &n); err != nil || len(lines) != 2 || lines[0] != lines[1] || n.Image != notice().Image {
		t.Errorf("%d lines, %v: %+v", len(lines), err, n)
	}
}
