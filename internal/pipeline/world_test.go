package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/cache"
	"github.com/rebake/rebake/internal/check"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/provisioner"
	"github.com/rebake/rebake/provisioner/breakpoint"
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
	// told is told every event.
	told func(event.Event)
	time *clock // nil: this computer's

	mu     sync.Mutex
	events []event.Event
	red    event.Redactor
}

// clock stands still until it is moved.
type clock struct{ atomic.Int64 }

func (c *clock) now() time.Time           { return time.Unix(0, c.Load()) }
func (c *clock) forward(by time.Duration) { c.Add(int64(by)) }

// stop gives the world a clock that stands still, but for two seconds in each
// step: the state after it is worth to be saved.
func (w *world) stop() *clock {
	w.time = new(clock)
	w.time.Store(time.Now().UnixNano())
	w.env.Now = w.time.now
	w.told = func(e event.Event) {
		if e.Kind == event.Start && strings.HasPrefix(e.Name, "provision: ") {
			w.time.forward(2 * time.Second)
		}
	}
	return w.time
}

// config is that of the fake builder.
type config struct {
	Motd   string `yaml:"motd"`
	Image  string `yaml:"image"`
	Memory int64  `yaml:"memory"`
	Plain  bool   `yaml:"plain"` // it makes no checkpoints
	Old    bool   `yaml:"old"`   // its guests cannot be reseeded
}

// based is a fake builder whose base is an image.
type based struct {
	*fake.Builder
	config
	store artifact.Store
}

func (b based) Parent() string { return b.Image }
func (b based) Memory() int64  { return b.config.Memory }

// Key implements builder.Builder: the base is the image that there is now.
func (b based) Key(ctx context.Context) (artifact.Inputs, error) {
	img, err := b.store.Resolve(ctx, artifact.Ref{Name: b.Image, Tag: "latest"})
	if err != nil {
		return "", err
	}
	b.Base = map[string]string{"etc/motd": string(img.Digest)}
	return b.Builder.Key(ctx)
}

// plain is a builder and no more.
type plain struct{ builder.Builder }

func newWorld(t testing.TB, dir string, store artifact.Store) *world {
	w := &world{t: t, dir: dir}
	w.env = pipeline.Env{State: state.Dir(dir), Store: store, Version: "test", Backends: pipeline.Backends{
		Kinds: template.Kinds{
			Builders:     map[string]func() any{"fake": func() any { return new(config) }},
			Provisioners: map[string]func() any{"shell": func() any { return new(shell.Config) }, "file": func() any { return new(file.Config) }, "breakpoint": func() any { return new(breakpoint.Config) }},
			Checks:       check.Kinds(),
		},
		Builder: func(_ pipeline.Env, b template.Build) (builder.Builder, error) {
			var cfg config
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
			if cfg.Old {
				fb.Base = map[string]string{"etc/no-reseed": ""}
			}
			switch {
			case cfg.Plain:
				return plain{fb}, nil
			case cfg.Image != "" || cfg.Memory > 0:
				return based{fb, cfg, store}, nil
			}
			return fb, nil
		},
		Provisioner: func(s template.Step, e pipeline.StepEnv) (provisioner.Provisioner, error) {
			if s.Kind == "breakpoint" {
				var cfg breakpoint.Config
				err := s.Block.Decode(&cfg)
				return breakpoint.New(cfg), err
			}
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
		Sweep:  func(context.Context, pipeline.Env) ([]string, error) { return w.builder().Sweep() },
		Cached: func(pipeline.Env, []artifact.Digest) ([]cache.Entry, error) { return w.builder().Cached() },
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
	return w.loadIn(w.t.TempDir(), text, vars...)
}

func (w *world) loadIn(dir, text string, vars ...string) *template.Template {
	w.t.Helper()
	path := filepath.Join(dir, "web.yaml")
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
		if w.told != nil {
			w.told(e)
		}
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

// ran lists the steps that were begun, with "boot" or "after STEP" before them,
// since it was last called.
func (w *world) ran() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var names []string
	for _, e := range w.events {
		if e.Kind != event.Start {
			continue
		}
		if name, ok := strings.CutPrefix(e.Name, "provision: "); ok {
			names = append(names, name)
		}
		if strings.HasPrefix(e.Name, "boot fake") {
			names = append(names, "boot")
		}
		if m := wentOn.FindStringSubmatch(e.Name); m != nil {
			names = append(names, m[1]+" "+m[2])
		}
	}
	w.events = nil
	return strings.Join(names, ", ")
}

var wentOn = regexp.MustCompile(`^(?:go on|boot as it was) (after) "(.*)"`)

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
