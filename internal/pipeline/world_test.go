package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/check"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/provisioner"
	"github.com/rebake/rebake/provisioner/file"
	"github.com/rebake/rebake/provisioner/shell"
	"github.com/rebake/rebake/test/fake"
)

// world is a pipeline of real parts around a fake builder.
type world struct {
	t   testing.TB
	dir string
	env pipeline.Env
	// before is asked by every builder that the pipeline makes.
	before func(ctx context.Context, op, id string) error

	mu     sync.Mutex
	events []event.Event
	red    event.Redactor
}

// none is the config of the fake builder.
type none struct {
	Motd string `yaml:"motd"`
}

func newWorld(t testing.TB, dir string, store artifact.Store) *world {
	w := &world{t: t, dir: dir}
	w.env = pipeline.Env{State: state.Dir(dir), Store: store, Version: "test", Backends: pipeline.Backends{
		Kinds: template.Kinds{
			Builders:     map[string]func() any{"fake": func() any { return new(none) }},
			Provisioners: map[string]func() any{"shell": func() any { return new(shell.Config) }, "file": func() any { return new(file.Config) }},
			Checks:       check.Kinds(),
		},
		Builder: func(_ pipeline.Env, b template.Build) (builder.Builder, error) {
			var cfg none
			if err := b.Block.Decode(&cfg); err != nil {
				return nil, err
			}
			fb := w.builder()
			fb.Before = func(ctx context.Context, op, id string) error {
				if w.before == nil {
					return nil
				}
				return w.before(ctx, op, id)
			}
			if cfg.Motd != "" {
				fb.Base = map[string]string{"etc/motd": cfg.Motd}
			}
			return fb, nil
		},
		Provisioner: func(s template.Step, e pipeline.StepEnv) (provisioner.Provisioner, error) {
			if s.Kind == "file" {
				var cfg file.Config
				if err := s.Block.Decode(&cfg); err != nil {
					return nil, err
				}
				cfg.Keyed = new(file.Config)
				if err := s.Block.Masked().Decode(cfg.Keyed); err != nil {
					return nil, err
				}
				return file.New(cfg, e.Dir)
			}
			var cfg shell.Config
			if err := s.Block.Decode(&cfg); err != nil {
				return nil, err
			}
			cfg.Exports, cfg.Keyed = e.Env, new(shell.Config)
			if err := s.Block.Masked().Decode(cfg.Keyed); err != nil {
				return nil, err
			}
			return shell.New(cfg, e.Dir)
		},
		Check: func(s template.Step) (check.Check, error) {
			cfg := check.Kinds()[s.Kind]()
			if err := s.Block.Decode(cfg); err != nil {
				return nil, err
			}
			return check.New(cfg)
		},
		Destroy: func(_ pipeline.Env, kind string) func(string) error {
			if kind != "fake" {
				return nil
			}
			return func(id string) error {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				defer cancel()
				return w.builder().Destroy(ctx, id)
			}
		},
		Sweep: func(context.Context, pipeline.Env) ([]string, error) { return nil, nil },
	}}
	return w
}

// builder is another one on the world's state, as another process has it.
func (w *world) builder() *fake.Builder {
	return &fake.Builder{Dir: w.env.State.Builds(), Cache: w.env.State.Bases()}
}

// web is a template whose parts are given: more steps, and more tests.
func web(steps, tests string) string {
	return `name: web
variables:
  release: {default: "1"}
  token: {default: "s3cr3t-t0ken", sensitive: true}
build:
  fake: {}
provision:
  - file: {content: "release ${{ var.release }}\n", destination: /www/index.html}
  - shell: {name: say, env: {TOKEN: "${{ var.token }}"}, inline: ["echo token $TOKEN", "echo $REBAKE_BUILD_NAME >$HOME/built"]}
` + steps + `test:
  - http: {port: 80, contains: release, within: 5s}
  - file: {path: /root/built, contains: web}
` + tests + `tags: [nightly]
`
}

func (w *world) load(text string, vars ...string) *template.Template {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "web.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	tpl, err := template.Load(path, template.Options{Vars: vars, Kinds: w.env.Backends.Kinds, Now: time.Now()})
	if err != nil {
		w.t.Fatal(err)
	}
	w.red.Add(tpl.Secrets...)
	return tpl
}

// record is a context whose events the world keeps.
func (w *world) record(ctx context.Context, more ...event.Sink) context.Context {
	return event.With(ctx, func(e event.Event) {
		w.mu.Lock()
		w.events = append(w.events, e)
		w.mu.Unlock()
		for _, s := range more {
			s(e)
		}
	}, &w.red)
}

func (w *world) bake(text string, o pipeline.BakeOptions, vars ...string) ([]pipeline.Baked, error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	return pipeline.Bake(w.record(ctx), w.env, w.load(text, vars...), o)
}

// one bakes what must go well.
func (w *world) one(text string, o pipeline.BakeOptions, vars ...string) pipeline.Baked {
	w.t.Helper()
	baked, err := w.bake(text, o, vars...)
	if err != nil || len(baked) != 1 {
		w.t.Fatalf("%d baked, %v", len(baked), err)
	}
	return baked[0]
}

func (w *world) images() []artifact.Image {
	w.t.Helper()
	images, err := w.env.Store.(artifact.Lister).List(w.t.Context(), "")
	if err != nil {
		w.t.Fatal(err)
	}
	return images
}

// said is all that was told, a line each.
func (w *world) said() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	for _, e := range w.events {
		fmt.Fprintf(&b, "%s %s %s %s\n", e.Kind, e.Name, e.Text, e.Err)
	}
	return b.String()
}

// began tells whether a task of that name was started.
func (w *world) began(name string) bool {
	return strings.Contains(w.said(), "start "+name+" ")
}

// builds lists what is in the state's builds directory, commands that run too.
func (w *world) builds() []string {
	w.t.Helper()
	var left []string
	entries, err := os.ReadDir(w.env.State.Builds())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		left = append(left, e.Name())
		if e.IsDir() {
			pids, err := w.builder().Commands(e.Name())
			if err != nil {
				w.t.Fatal(err)
			}
			if len(pids) > 0 {
				left = append(left, "processes of "+e.Name())
			}
		}
	}
	return left
}

func (w *world) nothingLeft() {
	w.t.Helper()
	if left := w.builds(); len(left) > 0 {
		w.t.Errorf("left in builds/: %q", left)
	}
}

// logs is the text of every file in logs/, by name.
func (w *world) logs() map[string]string {
	w.t.Helper()
	logs := map[string]string{}
	entries, err := os.ReadDir(w.env.State.Logs())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(w.env.State.Logs(), e.Name()))
		if err != nil {
			w.t.Fatal(err)
		}
		logs[e.Name()] = string(b)
	}
	return logs
}

func logOf(logs map[string]string, part string) string {
	for name, text := range logs {
		if strings.Contains(name, part) {
			return text
		}
	}
	return ""
}

func passed(tests []artifact.TestResult) (names []string) {
	for _, r := range tests {
		if r.Passed {
			names = append(names, r.Name)
		}
	}
	slices.Sort(names)
	return names
}
