package amazon

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/cache"
	"github.com/rebake/rebake/internal/check"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/inventory"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/provisioner"
	"github.com/rebake/rebake/provisioner/shell"
)

// env is a pipeline around this builder, as cmd/rebake puts it together.
func (w *world) env() pipeline.Env {
	env := pipeline.Env{State: w.deps.State, Store: w.store, Version: "test"}
	env.Backends = pipeline.Backends{
		Kinds: template.Kinds{
			Builders:     map[string]func() any{"amazon": func() any { return new(Config) }},
			Provisioners: map[string]func() any{"shell": func() any { return new(shell.Config) }}, Checks: check.Kinds(),
		},
		Builder: func(_ pipeline.Env, b template.Build) (builder.Builder, error) {
			var cfg Config
			if err := b.Block.Decode(&cfg); err != nil {
				return nil, err
			}
			return New(cfg, w.deps)
		},
		Provisioner: func(s template.Step, e pipeline.StepEnv) (provisioner.Provisioner, error) {
			cfg := shell.Config{Keyed: new(shell.Config)}
			if err := errors.Join(s.Block.Masked().Decode(cfg.Keyed), s.Block.Decode(&cfg)); err != nil {
				return nil, err
			}
			cfg.Exports = e.Env
			return shell.New(cfg, e.Dir)
		},
		Check: func(s template.Step) (check.Check, error) {
			cfg := check.Kinds()[s.Kind]()
			if err := s.Block.Decode(cfg); err != nil {
				return nil, err
			}
			return check.New(cfg)
		},
		Destroy: func(pipeline.Env, string) func(string) error {
			return func(id string) error { return Destroy(context.Background(), w.deps, id) }
		},
		Sweep:  func(context.Context, pipeline.Env) ([]string, error) { return nil, nil },
		Cached: func(pipeline.Env, []artifact.Digest) ([]cache.Entry, error) { return nil, nil },
	}
	return env
}

func (w *world) template(env pipeline.Env, name, source, step string) *template.Template {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), name+".yaml")
	text := fmt.Sprintf("name: %s\nbuild:\n  amazon:\n    source: {%s}\n    instance_type: t3.small\n    ssh: {user: root, port: %d}\n    ami: {copy_to: [%s]}\nprovision:\n  - shell: {inline: [%q]}\ntest:\n  - file: {path: /root/built, contains: it}\n",
		name, source, w.port, there, step)
	w.ok(os.WriteFile(path, []byte(text), 0o600))
	tpl, err := template.Load(path, template.Options{Kinds: env.Backends.Kinds, Now: time.Now()})
	w.ok(err)
	return tpl
}

// What is baked in AWS is an image as any: tested, with an inventory and
// statements, and its AMIs are recorded before it can be seen.
func TestABakeInAWSIsAnImageAsAny(t *testing.T) {
	w := newWorld(t)
	w.deps.settle = time.Minute // what answered is not waited for
	others := w.foreign()
	env := w.env()
	var mu sync.Mutex
	var log []string
	ctx := event.With(t.Context(), func(e event.Event) {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, e.Text+e.Err)
	}, &event.Redactor{})
	done, err := pipeline.Bake(ctx, env, w.template(env, "web", "ami: "+w.base, "echo it >$HOME/built"), pipeline.BakeOptions{})
	if err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(log, "\n"))
	}
	img := done[0].Image
	for _, r := range img.Tests {
		if !r.Passed {
			t.Errorf("%s: %s", r.Name, r.Message)
		}
	}
	if len(img.Tests) < 5 || img.Lineage.Parent != w.base || img.Lineage.Builder != "amazon" || img.Seed != "nocloud" {
		t.Errorf("%+v", img)
	}
	w.ok(w.store.Verify(t.Context(), img, nil))
	kinds := map[string]int{}
	all, err := w.store.Attached(t.Context(), img.Digest, "")
	w.ok(err)
	for _, a := range all {
		kinds[a.Kind]++
	}
	if kinds[ami.Kind] != 2 || kinds[inventory.Kind] != 1 || len(all) < 5 {
		t.Errorf("attached: %v", kinds)
	}
	records, err := ami.Records(t.Context(), w.store, img)
	w.ok(err)
	mine := func(s string) bool {
		return slices.ContainsFunc(records, func(r ami.Record) bool { return strings.Contains(s, r.AMI) || strings.Contains(s, r.Snapshot) })
	}
	for _, s := range w.all() {
		if !slices.Contains(others, s) && !mine(s) || mine(s) && strings.Contains(s, TagBuild) {
			t.Errorf("left: %s", s)
		}
	}

	// On top of it: only what changed is read.
	next, err := pipeline.Bake(ctx, env, w.template(env, "child", `image: "web:latest"`, "echo it too >$HOME/built"), pipeline.BakeOptions{})
	w.ok(err)
	if l := next[0].Image.Lineage; l.ParentDigest != img.Digest || l.From != "web:latest" {
		t.Errorf("%+v", l)
	}
	w.ok(w.store.Verify(t.Context(), next[0].Image, nil))

	// A bake that fails leaves nothing, nor does one whose process died.
	before := w.all()
	if _, err := pipeline.Bake(ctx, env, w.template(env, "bad", "ami: "+w.base, "exit 3"), pipeline.BakeOptions{}); err == nil {
		t.Error("a failed step was baked")
	}
	if after := w.all(); !slices.Equal(after, before) {
		t.Errorf("a failed bake left %q", slices.DeleteFunc(after, func(s string) bool { return slices.Contains(before, s) }))
	}
	id := "01kdead"
	w.ok(os.MkdirAll(w.deps.State.Builds(), 0o700))
	w.ok(os.WriteFile(filepath.Join(w.deps.State.Builds(), id+".json"), []byte(`{"id":"01kdead","kind":"amazon","template":"web.yaml","pid":1}`), 0o600))
	b := w.builder()
	d := w.baked(b, id)
	_, err = b.BootTest(t.Context(), id+"-t2", d, nil)
	w.ok(errors.Join(err, d.Close(), b.letGo(id), b.letGo(id+"-t2")))
	gone, err := pipeline.GC(t.Context(), env)
	if err != nil || len(gone) != 2 {
		t.Errorf("gc removed %+v, %v", gone, err)
	}
	if after := w.all(); !slices.Equal(after, before) {
		t.Errorf("gc left %q", slices.DeleteFunc(after, func(s string) bool { return slices.Contains(before, s) }))
	}
}

// A block that arrives otherwise than EBS has it is not stored.
func TestABlockIsHeldToItsChecksum(t *testing.T) {
	w := newWorld(t)
	b := w.builder()
	bad := true
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if bad && regexp.MustCompile(`/blocks/\d+$`).MatchString(r.URL.Path) {
			rec := httptest.NewRecorder()
			w.cloud.ServeHTTP(rec, r)
			body := bytes.Clone(rec.Body.Bytes())
			body[1000] ^= 1
			for k, v := range rec.Header() {
				rw.Header()[k] = v
			}
			_, _ = rw.Write(body)
			return
		}
		w.cloud.ServeHTTP(rw, r)
	}))
	defer srv.Close()
	b.deps.Config = w.config(srv.URL)
	d := w.baked(b, "01a")
	defer d.Close()
	if _, _, err := w.store.Write(t.Context(), d, nil); !errors.Is(err, artifact.ErrCorrupt) {
		t.Errorf("a changed block was stored: %v", err)
	}
	bad = false
	content, _, err := w.store.Write(t.Context(), d, nil)
	w.ok(err)
	again, err := w.store.OpenDisk(t.Context(), content, "")
	w.ok(err)
	defer again.Close()
	head := make([]byte, 4096)
	if _, err := again.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) || bytes.Count(head, []byte{0}) == len(head) {
		t.Errorf("%v, %s", err, base64.StdEncoding.EncodeToString(head[:64]))
	}
	w.ok(b.Destroy(t.Context(), "01a"))
}
