package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/rebake/rebake/provisioner"
)

// GuestOptions say how much of the suite a guest can pass.
type GuestOptions struct {
	// Dir returns a fresh absolute directory of the guest, which need not exist.
	Dir func(t *testing.T) string
	// NoShell: commands are not really run, so only files are tested.
	NoShell bool
}

// Guest is the suite of provisioner.Guest.
func Guest(t *testing.T, open func(t *testing.T) provisioner.Guest, o GuestOptions) {
	t.Run("upload and download", func(t *testing.T) { guestFiles(t, open(t), o) })
	t.Run("many concurrent uploads", func(t *testing.T) { guestConcurrent(t, open(t), o) })
	t.Run("an ended context ends every method", func(t *testing.T) { guestEnded(t, open(t), o) })
	if o.NoShell {
		return
	}
	t.Run("uploads keep modes and links", func(t *testing.T) { guestModes(t, open(t), o) })
	t.Run("exit status", func(t *testing.T) { guestStatus(t, open(t)) })
	t.Run("streams and environment", func(t *testing.T) { guestStreams(t, open(t)) })
	t.Run("environment is not on a command line", func(t *testing.T) { guestSecret(t, open(t)) })
	t.Run("cancel kills the remote processes", func(t *testing.T) { guestCancel(t, open(t), o) })
	t.Run("a daemon left behind does not hold its command up", func(t *testing.T) { guestDaemon(t, open(t)) })
	t.Run("thirty commands at once", func(t *testing.T) { guestMany(t, open(t)) })
}

func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func guestFiles(t *testing.T, g provisioner.Guest, o GuestOptions) {
	ctx, dir := limit(t), o.Dir(t)
	big := strings.Repeat("0123456789abcdef", 100_000) // more than one window
	src := fstest.MapFS{
		"a file":          {Data: []byte("one\n"), Mode: 0o644},
		"empty":           {Mode: 0o644},
		"sub/deep/it's $": {Data: []byte("quoted"), Mode: 0o600},
		"big":             {Data: []byte(big), Mode: 0o644},
		"-dash":           {Data: []byte("dash"), Mode: 0o644},
		"sub/ünï":         {Data: []byte("utf8"), Mode: 0o644},
	}
	if err := g.Upload(ctx, dir, src); err != nil {
		t.Fatal(err)
	}
	one := fstest.MapFS{"a file": {Data: []byte("two\n"), Mode: 0o644}} // overwrites
	if err := g.Upload(ctx, dir, one); err != nil {
		t.Fatal(err)
	}
	src["a file"] = one["a file"]
	for name, f := range src {
		var got bytes.Buffer
		if err := g.Download(ctx, path.Join(dir, name), &got); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !bytes.Equal(got.Bytes(), f.Data) {
			t.Errorf("%s: %d bytes came back, want %d", name, got.Len(), len(f.Data))
		}
	}
	for _, name := range []string{"missing", "sub"} {
		if err := g.Download(ctx, path.Join(dir, name), &bytes.Buffer{}); err == nil {
			t.Errorf("download of %s succeeded", name)
		} else if !strings.Contains(err.Error(), name) {
			t.Errorf("error %q does not name %s", err, name)
		}
	}
	if err := g.Upload(ctx, dir, fstest.MapFS{"pipe": {Mode: fs.ModeNamedPipe}}); err == nil {
		t.Error("a named pipe was uploaded")
	}
}

func guestConcurrent(t *testing.T, g provisioner.Guest, o GuestOptions) {
	ctx, dir := limit(t), o.Dir(t)
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			name := fmt.Sprintf("f%d", i)
			if err := g.Upload(ctx, dir, fstest.MapFS{name: {Data: []byte(name), Mode: 0o644}}); err != nil {
				t.Error(err)
				return
			}
			var got bytes.Buffer
			if err := g.Download(ctx, path.Join(dir, name), &got); err != nil || got.String() != name {
				t.Errorf("%s: %q, %v", name, got.String(), err)
			}
		})
	}
	wg.Wait()
}

func guestEnded(t *testing.T, g provisioner.Guest, o GuestOptions) {
	cause := errors.New("told to stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	dir := o.Dir(t)
	for name, f := range map[string]func() error{
		"Run":       func() error { return g.Run(ctx, provisioner.Cmd{Line: "true"}) },
		"Upload":    func() error { return g.Upload(ctx, dir, fstest.MapFS{"x": {Data: []byte("x"), Mode: 0o600}}) },
		"Download":  func() error { return g.Download(ctx, path.Join(dir, "x"), &bytes.Buffer{}) },
		"Reconnect": func() error { return g.Reconnect(ctx) },
	} {
		if err := f(); !errors.Is(err, cause) {
			t.Errorf("%s: %v, want the context's cause", name, err)
		}
	}
}

func guestModes(t *testing.T, g provisioner.Guest, o GuestOptions) {
	ctx := limit(t)
	src := fstest.MapFS{
		"bin/run":  {Data: []byte("#!/bin/sh\necho ran\n"), Mode: 0o755},
		"secret":   {Data: []byte("s"), Mode: 0o600},
		"ro":       {Mode: fs.ModeDir | 0o555},
		"ro/x":     {Data: []byte("x"), Mode: 0o444},
		"link":     {Data: []byte("bin/run"), Mode: fs.ModeSymlink | 0o777},
		"dangling": {Data: []byte("/no/such"), Mode: fs.ModeSymlink | 0o777},
		"a/b":      {Data: []byte("b"), Mode: 0o640},
	}
	few := fstest.MapFS{"bin/run": src["bin/run"], "secret": src["secret"]}
	for name, fsys := range map[string]fstest.MapFS{"many": src, "few": few} {
		dir := o.Dir(t)
		if err := g.Upload(ctx, dir, fsys); err != nil {
			t.Fatal(name, err)
		}
		for f, want := range fsys {
			var out bytes.Buffer
			line := `stat -c %a "$F"; readlink "$F"; true`
			if err := g.Run(ctx, provisioner.Cmd{Line: line, Env: map[string]string{"F": path.Join(dir, f)}, Stdout: &out, Stderr: &out}); err != nil {
				t.Fatal(err)
			}
			exp := fmt.Sprintf("%o\n", want.Mode.Perm())
			if want.Mode&fs.ModeSymlink != 0 {
				exp += string(want.Data) + "\n"
			}
			if out.String() != exp {
				t.Errorf("%s: %s is %q, want %q", name, f, out.String(), exp)
			}
		}
		if err := g.Run(ctx, provisioner.Cmd{Line: "chmod u+w " + dir + "/* || true"}); err != nil {
			t.Fatal(err)
		}
	}
}

func guestStatus(t *testing.T, g provisioner.Guest) {
	ctx := limit(t)
	if err := g.Run(ctx, provisioner.Cmd{Line: "true"}); err != nil {
		t.Errorf("true: %v", err)
	}
	var exit *provisioner.ExitError
	err := g.Run(ctx, provisioner.Cmd{Line: "echo said; echo why >&2; exit 7"})
	if !errors.As(err, &exit) || exit.Code != 7 {
		t.Fatalf("exit 7: %v", err)
	}
	if !strings.Contains(exit.Output, "why") || !strings.Contains(exit.Output, "said") {
		t.Errorf("output %q is not kept as evidence", exit.Output)
	}
	if err := g.Run(ctx, provisioner.Cmd{Line: "kill -9 $$"}); !errors.As(err, &exit) || (exit.Signal == "" && exit.Code != 137) {
		t.Errorf("kill -9: %v, want the signal", err)
	}
}

func guestStreams(t *testing.T, g provisioner.Guest) {
	values := map[string]string{
		"PLAIN": "x", "SPACES": "  a  b  ", "LINES": "one\ntwo\n\nfour\n", "QUOTES": `it's "$HOME" \n` + "`id`", "EMPTY": "", "UTF": "ü€", "BACK": `a\`,
	}
	for name, v := range values {
		var out, errOut bytes.Buffer
		in := "line one\nline two without end"
		err := g.Run(limit(t), provisioner.Cmd{
			Line: `printf '%s|' "$` + name + `"; cat; echo oops >&2`, Env: map[string]string{name: v},
			Stdin: strings.NewReader(in), Stdout: &out, Stderr: &errOut,
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if want := v + "|" + in; out.String() != want {
			t.Errorf("%s: stdout %q, want %q", name, out.String(), want)
		}
		if errOut.String() != "oops\n" {
			t.Errorf("%s: stderr %q", name, errOut.String())
		}
	}
	big := strings.Repeat("x", 3<<20)
	var out bytes.Buffer
	if err := g.Run(limit(t), provisioner.Cmd{Line: "cat", Stdin: strings.NewReader(big), Stdout: &out}); err != nil || out.Len() != len(big) {
		t.Errorf("3 MiB through cat: %d bytes, %v", out.Len(), err)
	}
	if err := g.Run(limit(t), provisioner.Cmd{Line: "exit 0", Stdin: strings.NewReader(big)}); err != nil {
		t.Errorf("a command that does not read its input: %v", err)
	}
	for _, env := range []map[string]string{{"A B": "x"}, {"A;reboot": "x"}, {"NUL": "a\x00b"}} {
		if err := g.Run(limit(t), provisioner.Cmd{Line: "true", Env: env}); err == nil {
			t.Errorf("environment %q was accepted", env)
		}
	}
}

func guestSecret(t *testing.T, g provisioner.Guest) {
	var out bytes.Buffer
	secret := "hunter2-" + fmt.Sprint(time.Now().UnixNano())
	err := g.Run(limit(t), provisioner.Cmd{
		Line: `p=$$; while [ "$p" -gt 1 ]; do tr '\0' ' ' </proc/$p/cmdline; echo; p=$(sed -n 's/^PPid:[^0-9]*//p' /proc/$p/status); done; echo "value:$S"`,
		Env:  map[string]string{"S": secret}, Stdout: &out,
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), secret); n != 1 || !strings.Contains(out.String(), "value:"+secret) {
		t.Errorf("the secret shows %d times, want once, as the value:\n%s", n, out.String())
	}
}

func guestCancel(t *testing.T, g provisioner.Guest, o GuestOptions) {
	cause := errors.New("told to stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	dir := o.Dir(t)
	// A child that ignores TERM and one in another session: both must go.
	line := `mkdir -p "$D"; trap "" TERM; setsid sleep 987654 & echo $! >"$D/pids"; sleep 987654 & echo $! >>"$D/pids"; echo $$ >>"$D/pids"; echo ready; wait; sleep 987654`
	ready := &signalWriter{ready: func() { cancel(cause) }}
	began := time.Now()
	err := g.Run(ctx, provisioner.Cmd{Line: line, Env: map[string]string{"D": dir}, Stdout: ready})
	if !errors.Is(err, cause) {
		t.Fatalf("got %v, want the context's cause", err)
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("took %s to end", d)
	}
	var alive bytes.Buffer
	err = g.Run(limit(t), provisioner.Cmd{
		Line:   `for p in $(cat "$D/pids"); do s=$(sed -n 's/^State:[^A-Z]*\([A-Z]\).*/\1/p' /proc/$p/status 2>/dev/null); [ -z "$s" ] || [ "$s" = Z ] || echo $p; done`,
		Env:    map[string]string{"D": dir},
		Stdout: &alive,
	})
	if err != nil {
		t.Fatal(err)
	}
	if alive.Len() > 0 {
		t.Errorf("still running after the cancel: %s", strings.Fields(alive.String()))
	}
}

type signalWriter struct {
	once  sync.Once
	ready func()
}

func (w *signalWriter) Write(p []byte) (int, error) {
	w.once.Do(w.ready)
	return len(p), nil
}

func guestDaemon(t *testing.T, g provisioner.Guest) {
	var out bytes.Buffer
	began := time.Now()
	if err := g.Run(limit(t), provisioner.Cmd{Line: "sleep 30 & echo started $!", Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > 15*time.Second {
		t.Errorf("waited %s for a daemon's end", d)
	}
	pid := strings.TrimPrefix(strings.TrimSpace(out.String()), "started ")
	if err := g.Run(limit(t), provisioner.Cmd{Line: "kill " + pid}); err != nil {
		t.Errorf("the daemon did not live on: %v", err)
	}
}

func guestMany(t *testing.T, g provisioner.Guest) {
	ctx := limit(t)
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			var out bytes.Buffer
			if err := g.Run(ctx, provisioner.Cmd{Line: fmt.Sprintf("echo %d", i), Stdout: &out}); err != nil || strings.TrimSpace(out.String()) != fmt.Sprint(i) {
				t.Errorf("%d: %q, %v", i, out.String(), err)
			}
		})
	}
	wg.Wait()
}
