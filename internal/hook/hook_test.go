package hook_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/hook"
)

var update = flag.Bool("update", false, "write the golden file anew")

// notice has a value in every field.
func notice() fleet.Notice {
	noon := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	return fleet.Notice{
		Version: 1, Key: "failed", Stage: fleet.StageFailed, Fleet: "web", Deployment: "01K3QF4S8H2Z5V7X9B1C3D5E7G", By: "ops@deploy1",
		Time: noon.Add(90*time.Second + 250*time.Millisecond), Began: noon, Image: "web:1.5.0", Digest: "sha256:6b1f0c2d3e4a5968778695a4b3c2d1e0f9e8d7c6b5a493827160f5e4d3c2b1a0",
		From: "web:1.4.0", FromDigest: "sha256:0a1b2c3d4e5f60718293a4b5c6d7e8f9f0e1d2c3b4a5968778695a4b3c2d1e0f", Slot: fleet.Green, State: fleet.Restoring,
		Step: 1, Percent: 50, Reason: "gate errors: 12 of 240 answers were 5xx (5 % > 1 %)",
		Findings: []fleet.Finding{{Gate: "errors", Verdict: fleet.Fail, Detail: "12 of 240 answers were 5xx (5 % > 1 %)", At: noon.Add(89 * time.Second), Step: 1}},
		Rollback: false,
	}
}

// received is what came to a receiver of deliveries.
type received struct {
	mu     sync.Mutex
	bodies []string
	heads  []http.Header
}

// receive starts a receiver; answer may be nil, for 200.
func receive(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request)) (*received, string) {
	got := &received{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var b bytes.Buffer
		_, _ = b.ReadFrom(r.Body)
		got.mu.Lock()
		got.bodies, got.heads = append(got.bodies, b.String()), append(got.heads, r.Header)
		n := len(got.bodies)
		got.mu.Unlock()
		if answer != nil {
			answer(n, w, r)
		}
	}))
	t.Cleanup(s.Close)
	return got, s.URL
}

func (r *received) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.bodies)
}

// script is a hook that a shell runs.
func script(lines string) fleet.Hook {
	return fleet.Hook{Args: []string{"/bin/sh", "-c", lines}, Timeout: 20 * time.Second}
}

func TestThePayloadIsAsPromised(t *testing.T) {
	dir := t.TempDir()
	got, address := receive(t, nil)
	hooks := []fleet.Hook{script("cat >body; echo $REBAKE_STAGE $REBAKE_FLEET $REBAKE_DEPLOYMENT $REBAKE_IMAGE >words; pwd -P >where"), {URL: address + "/hook"}}
	if err := hook.Notify(hooks, dir)(t.Context(), notice()); err != nil {
		t.Fatal(err)
	}
	sent := read(t, dir, "body")
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, []byte(sent), "", "  "); err != nil {
		t.Fatal(err)
	}
	const path = "testdata/notice.json"
	if *update {
		if err := os.WriteFile(path, pretty.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(path)
	if err != nil || pretty.String() != string(golden) {
		t.Errorf("%v; a notice has another form than %s (fields are only ever added; go test ./internal/hook -update): %s", err, path, pretty.String())
	}
	if strings.Count(sent, "\n") != 1 || !strings.HasSuffix(sent, "\n") {
		t.Errorf("it is not one line: %q", sent)
	}
	if got.count() != 1 || got.bodies[0] != sent {
		t.Errorf("posted %q", got.bodies)
	}
	h := got.heads[0]
	if h.Get("Content-Type") != "application/json" || h.Get("X-Rebake-Delivery") != "01K3QF4S8H2Z5V7X9B1C3D5E7G/failed" {
		t.Errorf("posted with %v", h)
	}
	real, _ := filepath.EvalSymlinks(dir)
	if words, where := read(t, dir, "words"), read(t, dir, "where"); words != "failed web 01K3QF4S8H2Z5V7X9B1C3D5E7G web:1.5.0\n" || where != real+"\n" {
		t.Errorf("environment %q, folder %q", words, where)
	}
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestArgumentsAreNoShell(t *testing.T) {
	dir := t.TempDir()
	h := fleet.Hook{Args: []string{"touch", "a b", "$HOME;x", "*"}}
	if err := hook.Notify([]fleet.Hook{h}, dir)(t.Context(), notice()); err != nil {
		t.Fatal(err)
	}
	files, _ := os.ReadDir(dir)
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
	}
	if !slices.Equal(names, []string{"$HOME;x", "*", "a b"}) {
		t.Errorf("%q", names)
	}
}

func TestOnlyThoseThatAskedAreTold(t *testing.T) {
	got, address := receive(t, nil)
	hooks := []fleet.Hook{{URL: address}, {URL: address, On: []fleet.Stage{fleet.StageDone, fleet.StageFailed}}, {URL: address, On: []fleet.Stage{fleet.StageStart}}}
	tell := hook.Notify(hooks, t.TempDir())
	for stage, want := range map[fleet.Stage]int{fleet.StageFailed: 2, fleet.StageStart: 2, fleet.StagePaused: 1} {
		before := got.count()
		n := notice()
		n.Stage = stage
		if err := tell(t.Context(), n); err != nil || got.count()-before != want {
			t.Errorf("%s: %d deliveries, want %d; %v", stage, got.count()-before, want, err)
		}
	}
}

func TestAllHooksRunAtOnceAndTheirErrorsAreJoined(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Each end of a pipe waits for the other: one after the other they would hang.
	hooks := []fleet.Hook{script("echo x >fifo; exit 3"), script("read x <fifo; echo 'why: '$x >&2; exit 4"), script("true"), {Args: []string{"./none"}}}
	err := hook.Notify(hooks, dir)(t.Context(), notice())
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"hook 1 (/bin/sh): exit status 3; it said: nothing\n", "hook 2 (/bin/sh): exit status 4; it said: why: x\n", "hook 4 (./none): it does not start in " + dir + ": no such file"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
	if strings.Contains(err.Error(), "hook 3") {
		t.Error(err)
	}
}

// alive says that a process is there, and not only as a zombie that waits for init.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return syscall.Kill(pid, 0) == nil && !errors.Is(err, os.ErrNotExist)
	}
	return !strings.Contains(string(b), ") Z ")
}

func TestAHangingHookIsKilledInTime(t *testing.T) {
	hang := make(chan struct{})
	_, address := receive(t, func(int, http.ResponseWriter, *http.Request) { <-hang })
	t.Cleanup(func() { close(hang) }) // before the receiver is closed
	for name, tt := range map[string]struct {
		hook   fleet.Hook
		cancel bool
	}{
		"program":           {fleet.Hook{Args: []string{"/bin/sh", "-c", "sleep 300 & echo $! >child; echo busy; wait"}, Timeout: time.Second}, false},
		"program, canceled": {fleet.Hook{Args: []string{"/bin/sh", "-c", "sleep 300 & echo $! >child; echo busy; wait"}, Timeout: time.Minute}, true},
		"url":               {fleet.Hook{URL: address + "/?token=hunter2hunter2", Timeout: time.Second}, false},
		"url, canceled":     {fleet.Hook{URL: address + "/?token=hunter2hunter2", Timeout: time.Minute}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, began := t.TempDir(), time.Now()
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			why, want := errors.New("the operator left"), "no success within 1s: give the hook a longer timeout"
			if tt.cancel {
				want = why.Error()
				time.AfterFunc(time.Second, func() { cancel(why) })
			}
			err := hook.Notify([]fleet.Hook{tt.hook}, dir)(ctx, notice())
			if took := time.Since(began); took > 15*time.Second { // a busy machine; not 300 s
				t.Errorf("it took %s", took)
			}
			if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v, want %s", err, want)
			}
			if len(tt.hook.Args) == 0 {
				return
			}
			if !strings.Contains(err.Error(), "it was killed; it said: busy") {
				t.Error(err)
			}
			pid, perr := strconv.Atoi(strings.TrimSpace(read(t, dir, "child")))
			if perr != nil {
				t.Fatal(perr)
			}
			for end := time.Now().Add(10 * time.Second); alive(pid); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					_ = syscall.Kill(pid, syscall.SIGKILL)
					t.Fatal("a child of the hook lives on")
				}
			}
		})
	}
}

func TestWhatAHookLeavesInTheBackgroundIsNotWaitedFor(t *testing.T) {
	began, dir := time.Now(), t.TempDir()
	err := hook.Notify([]fleet.Hook{script("sleep 300 & echo $! >child")}, dir)(t.Context(), notice())
	if took := time.Since(began); err != nil || took > 15*time.Second {
		t.Errorf("%v after %s", err, took)
	}
	if pid, _ := strconv.Atoi(strings.TrimSpace(read(t, dir, "child"))); pid > 1 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

func TestAnswers(t *testing.T) {
	other, elsewhere := receive(t, nil)
	for name, tt := range map[string]struct {
		answer func(n int, w http.ResponseWriter, r *http.Request)
		asked  int
		want   string // part of the error; "": success
	}{
		"204": {func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, 1, ""},
		"not at first": {func(n int, w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(map[int]int{1: 503, 2: 429, 3: 200}[n])
		}, 3, ""},
		"never":                 {func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) }, 3, "it answered 502 Bad Gateway: nothing more"},
		"refused":               {func(_ int, w http.ResponseWriter, _ *http.Request) { http.Error(w, "no such\nhook", 404) }, 1, "it answered 404 Not Found: no such hook"},
		"the connection breaks": {func(n int, _ http.ResponseWriter, _ *http.Request) { panicIf(n < 3) }, 3, ""},
		"to the same host":      {func(_ int, w http.ResponseWriter, r *http.Request) { moved(w, r, "/there", 307) }, 2, ""},
		"to another host":       {func(_ int, w http.ResponseWriter, r *http.Request) { moved(w, r, elsewhere, 308) }, 1, "it answered 308 Permanent Redirect, which leads to another host or loses the notice"},
		"as a GET":              {func(_ int, w http.ResponseWriter, r *http.Request) { moved(w, r, "/there", 302) }, 1, "it answered 302 Found"},
		"round and round": {func(_ int, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/hook", http.StatusTemporaryRedirect)
		}, 4, "it answered 307 Temporary Redirect"},
		"an answer without end": {func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(400); pour(w) }, 1, "it answered 400 Bad Request: xxx"},
		"a success without end": {func(_ int, w http.ResponseWriter, _ *http.Request) { pour(w) }, 1, ""},
		"a redirect to somewhere": {func(_ int, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "http://%zz/?token=hunter2hunter2")
			w.WriteHeader(307)
		}, 3, "failed to parse Location"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, address := receive(t, tt.answer)
			err := hook.Notify([]fleet.Hook{{URL: address + "/hook?token=hunter2hunter2", Timeout: 20 * time.Second}}, "")(t.Context(), notice())
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if got.count() != tt.asked || other.count() != 0 {
				t.Errorf("asked %d times, want %d; another host %d times", got.count(), tt.asked, other.count())
			}
			for i, b := range got.bodies {
				if b != got.bodies[0] || b == "" || got.heads[i].Get("X-Rebake-Delivery") != got.heads[0].Get("X-Rebake-Delivery") {
					t.Errorf("delivery %d: %v %q", i, got.heads[i], b)
				}
			}
			if err != nil && (strings.Contains(err.Error(), "hunter2") || len(err.Error()) > 600) {
				t.Errorf("the error is %s", err)
			}
		})
	}
}

func panicIf(is bool) {
	if is {
		panic(http.ErrAbortHandler)
	}
}

func moved(w http.ResponseWriter, r *http.Request, to string, status int) {
	if r.URL.Path != "/there" {
		http.Redirect(w, r, to, status)
	}
}

// pour writes until the other side has enough.
func pour(w http.ResponseWriter) {
	b := bytes.Repeat([]byte("x"), 64<<10)
	for {
		if _, err := w.Write(b); err != nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Whatever goes wrong, nothing of a URL but its host is in an error or an event.
func TestTokensAreNeverTold(t *testing.T) {
	const user, password, path, query = "ops-user", "p4ssw0rd-p4ssw0rd", "T0PSECRETPATH9", "t0k/n+value"
	secret := func(base string) string {
		scheme, host, _ := strings.Cut(base, "://")
		return scheme + "://" + user + ":" + password + "@" + host + "/services/" + path + "/hook?token=t0k%2Fn%2Bvalue#anchor-anchor"
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := "http://" + l.Addr().String()
	l.Close()
	got, echo := receive(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		u, p, _ := r.BasicAuth()
		w.WriteHeader(403)
		fmt.Fprintln(w, r.URL.String(), r.URL.Query().Get("token"), u+":"+p, r.Header.Get("Authorization"))
	})
	tls := httptest.NewUnstartedServer(http.NotFoundHandler())
	tls.Config.ErrorLog = log.New(io.Discard, "", 0) // it complains about who does not trust it
	tls.StartTLS()
	t.Cleanup(tls.Close)
	for name, base := range map[string]string{
		"nobody listens": closed, "it says all again": echo, "no such host": "http://no-such-host.invalid",
		"unknown authority": tls.URL, "no TLS": strings.Replace(echo, "http:", "https:", 1),
	} {
		t.Run(name, func(t *testing.T) {
			var told strings.Builder
			ctx := event.With(t.Context(), func(e event.Event) { fmt.Fprintln(&told, e.Text, e.Err, e.Name) }, nil)
			err := hook.Notify([]fleet.Hook{{URL: secret(base), Timeout: 5 * time.Second}}, "")(ctx, notice())
			if err == nil {
				t.Fatal("no error")
			}
			text := err.Error() + told.String()
			for _, word := range []string{"Post", user, password, path, query, "t0k%2F", "anchor", "services", "b3BzLXVzZXI", "token="} {
				if strings.Contains(text, word) {
					t.Errorf("%q is in %s", word, text)
				}
			}
			if !strings.Contains(text, strings.TrimPrefix(base, "https://")) && !strings.Contains(text, base) {
				t.Errorf("it does not say which host: %s", text)
			}
		})
	}
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	if got.count() == 0 || got.heads[0].Get("Authorization") != basic {
		t.Errorf("the credentials did not arrive: %v", got.heads)
	}
}

// What a program says is redacted, and its arguments are not told at all.
func TestWhatAProgramSaysIsRedacted(t *testing.T) {
	var red event.Redactor
	red.Add("hunter2hunter2")
	var told strings.Builder
	ctx := event.With(t.Context(), func(e event.Event) { fmt.Fprintln(&told, e.Text) }, &red)
	err := hook.Notify([]fleet.Hook{script("echo said hunter2hunter2; exit 1 # argument-argument")}, "")(ctx, notice())
	if err == nil || !strings.Contains(err.Error(), "it said: said ‹redacted›") || strings.Contains(err.Error()+told.String(), "hunter2") || strings.Contains(err.Error(), "argument") {
		t.Errorf("%v; told %s", err, told.String())
	}
}

func TestALongTaleIsCut(t *testing.T) {
	err := hook.Notify([]fleet.Hook{script("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; exit 1")}, "")(t.Context(), notice())
	if err == nil || len(err.Error()) > 400 || !strings.HasSuffix(err.Error(), "line 2999") {
		t.Error(err)
	}
}

func TestCheck(t *testing.T) {
	url := []string{"curl"}
	for name, tt := range map[string]struct {
		h    fleet.Hook
		want string
	}{
		"program":  {fleet.Hook{Args: url, On: hook.Stages}, ""},
		"url":      {fleet.Hook{URL: "https://user:pass@example.com/x?token=y", Timeout: time.Minute}, ""},
		"both":     {fleet.Hook{Args: url, URL: "https://example.com"}, "this one is both"},
		"neither":  {fleet.Hook{}, "this one is neither"},
		"no word":  {fleet.Hook{Args: []string{"", "x"}}, "which program?"},
		"scheme":   {fleet.Hook{URL: "ftp://example.com/hunter2"}, `url: "ftp" is neither http nor https`},
		"no host":  {fleet.Hook{URL: "https:///hunter2"}, "cannot be read as https://HOST/PATH"},
		"no url":   {fleet.Hook{URL: "https://hunter2:hunter2@x:y/%zz"}, "cannot be read as https://HOST/PATH"},
		"relative": {fleet.Hook{URL: "example.com/hunter2"}, "cannot be read as https://HOST/PATH"},
		"timeout":  {fleet.Hook{Args: url, Timeout: -1}, "timeout: "},
		"stage":    {fleet.Hook{Args: url, On: []fleet.Stage{"start", "rolledback"}}, `on: "rolledback" is no stage, did you mean "rolled-back"? There are start, `},
		"stage 2":  {fleet.Hook{Args: url, On: []fleet.Stage{"pause"}}, `did you mean "paused"?`},
		"stage 3":  {fleet.Hook{Args: url, On: []fleet.Stage{""}}, "There are start, traffic, paused, promoted, done, failed, rolled-back, blocked"},
	} {
		err := hook.Check(tt.h)
		if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

// Stages has every constant of that type.
func TestStagesAreAll(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "../../fleet/hook.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var all []fleet.Stage
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := v.Type.(*ast.Ident); ok && id.Name == "Stage" {
			s, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, fleet.Stage(s))
		}
		return true
	})
	sorted := slices.Sorted(slices.Values(hook.Stages))
	slices.Sort(all)
	if len(all) < 8 || !slices.Equal(sorted, all) {
		t.Errorf("Stages are %q, fleet/hook.go has %q", sorted, all)
	}
}
