package pipeline

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/check"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/test/fake"
	gossh "golang.org/x/crypto/ssh"
)

const secret = "s3cr3t-t0ken"

// listener keeps what was told.
type listener struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *listener) ctx(t *testing.T) context.Context {
	red := new(event.Redactor)
	red.Add(secret)
	return event.With(t.Context(), func(e event.Event) {
		l.mu.Lock()
		defer l.mu.Unlock()
		fmt.Fprintf(&l.all, "%s %s %s\n", e.Kind, e.Text, e.Err)
	}, red)
}

func (l *listener) said() string { l.mu.Lock(); defer l.mu.Unlock(); return l.all.String() }

func question(g fleet.Gate, addrs ...string) fleet.Question {
	q := fleet.Question{Gate: g, Step: 1, Plan: fleet.Plan{ID: "01DEPLOY", Fleet: "web",
		New: fleet.Release{Group: fleet.GroupID{Fleet: "web", Slot: fleet.Green, Deployment: "01DEPLOY"},
			Spec: fleet.Spec{Image: artifact.Image{Name: "web", Version: "20260102.1", Digest: "sha256:abc"}}},
		Policy: fleet.Policy{Port: 80, Steps: []fleet.Step{{Permille: 100}, {Permille: 125}, {Permille: 1000}}}}}
	for n, a := range addrs {
		q.Instances = append(q.Instances, fleet.Instance{ID: fmt.Sprintf("web-green-%d", n+1), Running: true, Ports: map[int]string{80: a}})
	}
	return q
}

// script is a program in a template's folder.
func script(t *testing.T, text string) (cfg fleet.Config, dir string) {
	t.Helper()
	dir = t.TempDir()
	// The shell reads it: a file that was just written may not be run while another test forks.
	if err := os.WriteFile(filepath.Join(dir, "smoke"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return fleet.Config{Template: filepath.Join(dir, "web.yaml")}, dir
}

func command(timeout time.Duration, args ...string) fleet.Gate {
	return fleet.Gate{Name: "smoke", Command: &fleet.CommandGate{Args: args, Timeout: timeout}}
}

func TestACommandsStatusIsTheVerdict(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		want   fleet.Verdict
		detail string
	}{
		"pass":                    {"echo fine", fleet.Pass, "fine"},
		"pass in silence":         {"exit 0", fleet.Pass, ""},
		"cannot tell yet":         {"echo no data; exit 75", fleet.Inconclusive, "exit status 75: no data"},
		"fail":                    {"echo out; echo err >&2; exit 1", fleet.Fail, "exit status 1: out / err"},
		"its last lines":          {"for i in 1 2 3 4 5; do echo line $i; echo; done; exit 3", fleet.Fail, "exit status 3: line 3 / line 4 / line 5"},
		"killed":                  {"kill -9 $$", fleet.Fail, "signal: killed"},
		"it leaves something on":  {"sleep 30 & echo $! >left; exit 0", fleet.Pass, ""},
		"it knows no secret":      {"echo the " + secret + "; exit 1", fleet.Fail, "exit status 1: the ‹redacted›"},
		"a long line":             {"head -c 100000 /dev/zero | tr '\\0' x; exit 1", fleet.Fail, "exit status 1: …xxx"},
		"it runs in the template": {"cat smoke | head -c 3; exit 1", fleet.Fail, "exit status 1: cat"},
		"no input":                {"cat; echo end", fleet.Pass, "end"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg, dir := script(t, c.script)
			var l listener
			v, detail, err := askFor(cfg, nil, nil)(l.ctx(t), question(command(10*time.Second, "sh", "./smoke")))
			if err != nil || v != c.want || !strings.HasPrefix(detail, c.detail) || len(detail) > 500 {
				t.Errorf("%s %q %v, want %s %q", v, detail, err, c.want, c.detail)
			}
			if strings.Contains(l.said()+detail, secret) {
				t.Error("the secret was told")
			}
			if c.detail == "fine" && l.said() != "output fine \n" {
				t.Errorf("told %q", l.said())
			}
			if b, err := os.ReadFile(filepath.Join(dir, "left")); err == nil { // this test's own sleep
				pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		})
	}
}

func TestACommandKnowsTheDeployment(t *testing.T) {
	cfg, _ := script(t, `echo "$REBAKE_FLEET $REBAKE_DEPLOYMENT $REBAKE_IMAGE $REBAKE_SLOT $REBAKE_STEP"; echo "$REBAKE_INSTANCES"; echo "$GATE_TEST_OWN"`)
	t.Setenv("GATE_TEST_OWN", "of this process")
	t.Setenv("REBAKE_FLEET", "another")
	q := question(command(time.Minute, "sh", "smoke"), "127.0.0.1:1001", "127.0.0.1:1002")
	_, detail, err := askFor(cfg, nil, nil)(t.Context(), q)
	if want := "web 01DEPLOY web:20260102.1 green 12.5 / 127.0.0.1:1001 127.0.0.1:1002 / of this process"; err != nil || detail != want {
		t.Errorf("%q, %v; want %q", detail, err, want)
	}
	q.Step = -1
	if _, detail, err = askFor(cfg, nil, nil)(t.Context(), q); err != nil || !strings.Contains(detail, "green 0 /") {
		t.Errorf("before traffic: %q, %v", detail, err)
	}
}

func TestACommandThatCannotBeAsked(t *testing.T) {
	cfg, _ := script(t, "")
	v, _, err := askFor(cfg, nil, nil)(t.Context(), question(command(time.Minute, "./no-such-program")))
	if v != fleet.Error || err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("%s %v", v, err)
	}
}

// It and what it started are gone when its time is over, or when nobody waits.
func TestACommandIsKilledWithItsGroup(t *testing.T) {
	for name, c := range map[string]struct {
		timeout time.Duration
		cancel  bool
		want    string
	}{
		"timeout": {300 * time.Millisecond, false, "sh did not end within 300ms (timeout of gate smoke); it printed: started"},
		"cancel":  {time.Minute, true, "nobody waits"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg, dir := script(t, "sh -c 'echo $$ >child; exec sleep 60' & echo $$ >parent; echo started; wait")
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			pids := func() (all []int) {
				for _, f := range []string{"child", "parent"} {
					b, _ := os.ReadFile(filepath.Join(dir, f))
					if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
						all = append(all, pid)
					}
				}
				return all
			}
			if c.cancel {
				go func() {
					for len(pids()) < 2 {
						time.Sleep(5 * time.Millisecond)
					}
					cancel(errors.New("nobody waits"))
				}()
			}
			began := time.Now()
			v, _, err := askFor(cfg, nil, nil)(ctx, question(command(c.timeout, "sh", "smoke")))
			if v != fleet.Error || err == nil || !strings.HasPrefix(err.Error(), c.want) || time.Since(began) > 20*time.Second {
				t.Errorf("%s %v after %s", v, err, time.Since(began))
			}
			for _, pid := range pids() {
				for end := time.Now().Add(5 * time.Second); lives(pid); time.Sleep(5 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("process %d lives on", pid)
					}
				}
			}
			if len(pids()) != 2 {
				t.Errorf("%d processes were started", len(pids()))
			}
		})
	}
}

// lives: a zombie, which an init that reaps nobody leaves, is not.
func lives(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	return err == nil && !strings.HasPrefix(rest, "Z")
}

func serve(t *testing.T, h http.HandlerFunc) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func page(status int, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}
}

func TestInstancesAreAsked(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	good := page(200, "welcome to release 7", "X-Version", "20260102.1")
	for name, c := range map[string]struct {
		gate   fleet.HTTPGate
		pages  []http.HandlerFunc // nil: nobody listens
		want   fleet.Verdict
		detail string
	}{
		"all well":                         {fleet.HTTPGate{Body: "release 7"}, []http.HandlerFunc{good, good}, fleet.Pass, "2 instances answered 200"},
		"one has another status":           {fleet.HTTPGate{}, []http.HandlerFunc{good, page(503, "")}, fleet.Fail, "1 of 2 instances: web-green-2: status 503, want 200"},
		"the status that is wanted":        {fleet.HTTPGate{Status: 404}, []http.HandlerFunc{page(404, "")}, fleet.Pass, "1 instances answered 404"},
		"another body":                     {fleet.HTTPGate{Body: "release 8"}, []http.HandlerFunc{good}, fleet.Fail, `web-green-1: no "release 8" in "welcome to release 7"`},
		"a redirect is an answer":          {fleet.HTTPGate{}, []http.HandlerFunc{page(302, "", "Location", "/elsewhere")}, fleet.Fail, "status 302, want 200"},
		"nobody listens":                   {fleet.HTTPGate{}, []http.HandlerFunc{good, nil}, fleet.Error, "web-green-2: "},
		"a wrong answer is more than none": {fleet.HTTPGate{}, []http.HandlerFunc{nil, page(500, "")}, fleet.Fail, "1 of 2 instances: web-green-2: status 500"},
		"no instance":                      {fleet.HTTPGate{}, nil, fleet.Error, "no new instances"},
		"no such port":                     {fleet.HTTPGate{Port: 81}, []http.HandlerFunc{good}, fleet.Error, "its port 81 is not reachable"},
		"the path": {fleet.HTTPGate{Path: "/health?deep=1"}, []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RequestURI() != "/health?deep=1" || r.Method != "GET" {
				w.WriteHeader(400)
			}
		}}, fleet.Pass, ""},
		"it takes too long": {fleet.HTTPGate{Timeout: 50 * time.Millisecond}, []http.HandlerFunc{func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-time.After(10 * time.Second):
			}
		}}, fleet.Error, "no answer within 50ms (timeout of gate page)"},
		"a body without end": {fleet.HTTPGate{Body: "never"}, []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}}, fleet.Fail, `no "never" in`},
		"what comes after a MiB does not count": {fleet.HTTPGate{Body: "never"}, []http.HandlerFunc{page(200, strings.Repeat(".", 1<<20)+"never")}, fleet.Fail, `no "never" in`},
		"the end of a MiB counts":               {fleet.HTTPGate{Body: "always"}, []http.HandlerFunc{page(200, strings.Repeat(".", 1<<20-6)+"always")}, fleet.Pass, ""},

		"version in a header": {fleet.HTTPGate{Version: "X-Version"}, []http.HandlerFunc{good}, fleet.Pass, "1 instances answered 200, version 20260102.1"},
		"name and version":    {fleet.HTTPGate{Version: "X-Version"}, []http.HandlerFunc{page(200, "", "X-Version", "web:20260102.1")}, fleet.Pass, ""},
		"digest":              {fleet.HTTPGate{Version: "X-Version"}, []http.HandlerFunc{page(200, "", "X-Version", "sha256:abc")}, fleet.Pass, ""},
		"another version":     {fleet.HTTPGate{Version: "X-Version"}, []http.HandlerFunc{page(200, "", "X-Version", "20260102.10")}, fleet.Fail, `X-Version is "20260102.10", want 20260102.1`},
		"no version":          {fleet.HTTPGate{Version: "X-Version"}, []http.HandlerFunc{page(200, "20260102.1")}, fleet.Fail, `X-Version is nothing, want 20260102.1`},
		"version in the body": {fleet.HTTPGate{Version: "body"}, []http.HandlerFunc{page(200, `{"v":"20260102.1"}`), page(200, "<b>web:20260102.1.</b>"), page(200, "version:20260102.1"), page(200, "this is 20260102.1.\n"), page(200, "at sha256:abc,")}, fleet.Pass, ""},
		"another in the body": {fleet.HTTPGate{Version: "body"}, []http.HandlerFunc{page(200, "20260102.10"), page(200, "120260102.1"), page(200, "20260102.1-rc1"), page(200, "")}, fleet.Fail,
			`4 of 4 instances: web-green-1: it tells version "20260102.10", want 20260102.1`},
	} {
		t.Run(name, func(t *testing.T) {
			var addrs []string
			for _, p := range c.pages {
				if p == nil {
					addrs = append(addrs, closed.Listener.Addr().String())
				} else {
					addrs = append(addrs, serve(t, p))
				}
			}
			g := c.gate
			p, err := fleet.Policy{Port: 80, Gates: []fleet.Gate{{Name: "page", HTTP: &g}}}.Complete()
			if err != nil {
				t.Fatal(err)
			}
			v, detail, err := askFor(fleet.Config{}, nil, nil)(t.Context(), question(p.Gates[0], addrs...))
			if (err != nil) != (c.want == fleet.Error) {
				t.Fatalf("%s %q %v", v, detail, err)
			}
			if err != nil {
				detail = err.Error()
			}
			if v != c.want || !strings.Contains(detail, c.detail) {
				t.Errorf("%s %q, want %s %q", v, detail, c.want, c.detail)
			}
		})
	}
}

// All are asked at once: none answers before all were asked.
func TestInstancesAreAskedAtOnce(t *testing.T) {
	var asked sync.WaitGroup
	asked.Add(3)
	var addrs []string
	for range 3 {
		addrs = append(addrs, serve(t, func(http.ResponseWriter, *http.Request) { asked.Done(); asked.Wait() }))
	}
	g := fleet.Gate{Name: "page", HTTP: &fleet.HTTPGate{Port: 80, Path: "/", Status: 200, Timeout: 10 * time.Second}}
	if v, detail, err := askFor(fleet.Config{}, nil, nil)(t.Context(), question(g, addrs...)); v != fleet.Pass {
		t.Errorf("%s %q %v", v, detail, err)
	}
}

// Of 127.0.0.1 net/http never asks a proxy, and it reads the environment once in
// a process: so this looks at the client itself.
func TestInstancesAreAskedDirectly(t *testing.T) {
	if tr, ok := direct().Transport.(*http.Transport); !ok || tr.Proxy != nil {
		t.Errorf("a client with a proxy: %+v", direct().Transport)
	}
}

func TestGatePorts(t *testing.T) {
	p := fleet.Policy{Port: 80, Gates: []fleet.Gate{{HTTP: &fleet.HTTPGate{Port: 9000}}, {Test: true}, {HTTP: &fleet.HTTPGate{Port: 80}}, {HTTP: &fleet.HTTPGate{Port: 9000}}, {HTTP: &fleet.HTTPGate{}}}}
	if got := fmt.Sprint(gatePorts(p)); got != "[80 9000]" {
		t.Errorf("%s", got)
	}
}

// doors is a pool whose instances are SSH servers of this process.
type doors struct {
	*fake.Pool
	targets map[string]ssh.Target
}

func (d doors) Door(_ context.Context, instance string) (ssh.Target, error) {
	t, ok := d.targets[instance]
	if !ok {
		return t, fmt.Errorf("no instance %s", instance)
	}
	return t, nil
}

func newKey(t *testing.T) gossh.Signer {
	t.Helper()
	_, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := gossh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sshMachines makes a pool of n such instances, their folders and a question to them.
func sshMachines(t *testing.T, n int) (doors, []string, fleet.Question) {
	t.Helper()
	d, login := doors{new(fake.Pool), map[string]ssh.Target{}}, newKey(t)
	var dirs, addrs []string
	for i := range n {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "root/.ssh"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "root/.ssh/authorized_keys"), gossh.MarshalAuthorizedKey(login.PublicKey()), 0o600); err != nil {
			t.Fatal(err)
		}
		s := &fake.SSHD{HostKey: newKey(t), Root: dir}
		if err := s.Start(""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Stop)
		d.targets[fmt.Sprintf("web-green-%d", i+1)] = ssh.Target{Addr: s.Addr(), User: "root", Signer: login, HostKeys: []gossh.PublicKey{s.HostKey.PublicKey()}}
		dirs = append(dirs, filepath.Join(dir, "root"))
		addrs = append(addrs, serve(t, page(200, "release 7")))
	}
	q := question(fleet.Gate{Name: "test", Test: true}, addrs...)
	q.Step = -1
	return d, dirs, q
}

var checkEnv = Env{Backends: Backends{
	Kinds: template.Kinds{Builders: map[string]func() any{"fake": func() any { return new(struct{}) }, "other": func() any { return new(struct{}) }},
		Checks: check.Kinds()},
	Check: func(s template.Step) (check.Check, error) {
		cfg := check.Kinds()[s.Kind]()
		if err := s.Block.Decode(cfg); err != nil {
			return nil, err
		}
		return check.New(cfg)
	},
}}

func loadTests(t *testing.T, tests string) *template.Template {
	t.Helper()
	path := filepath.Join(t.TempDir(), "web.yaml")
	text := "name: web\nvariables: {token: {default: " + secret + ", sensitive: true}}\nbuild: {fake: {}, other: {}}\n" + tests
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	tpl, err := template.Load(path, template.Options{Kinds: checkEnv.Backends.Kinds, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return tpl
}

const someTests = `test:
  - http: {port: 80, contains: release 7}
  - shell: {name: says, inline: ["test -e ready || { echo not ready; exit 3; }"]}
  - command: {run: "echo hello", stdout_contains: hello, within: 2s}
  - tcp: {port: 9, only: [other]}
`

func TestTheTemplatesTestsRunInEachInstance(t *testing.T) {
	tpl := loadTests(t, someTests)
	kept, all, err := fleetTests(checkEnv, tpl, "fake")
	if err != nil || len(all) != 3 {
		t.Fatalf("%d tests, %v", len(all), err)
	}
	var again json.RawMessage
	if err := json.Unmarshal(kept, &again); err != nil { // as fleet.json does
		t.Fatal(err)
	}
	for name, tests := range map[string]func() ([]namedCheck, error){
		"of the template": func() ([]namedCheck, error) { return all, nil },
		"that were kept":  func() ([]namedCheck, error) { return keptTests(checkEnv, again) },
	} {
		t.Run(name, func(t *testing.T) {
			d, dirs, q := sshMachines(t, 2)
			var l listener
			ask := askFor(fleet.Config{}, d, tests)
			for _, dir := range dirs {
				v, detail, err := ask(l.ctx(t), q)
				if err != nil || v != fleet.Fail || !strings.Contains(detail, "says: exit status 3; it printed: not ready") || !strings.Contains(detail, "web-green-2") {
					t.Fatalf("%s %q %v", v, detail, err)
				}
				if err := os.WriteFile(filepath.Join(dir, "ready"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if v, detail, err := ask(l.ctx(t), q); err != nil || v != fleet.Pass || detail != "2 instances passed 3 tests" {
				t.Errorf("%s %q %v", v, detail, err)
			}
			if !strings.Contains(l.said(), "warning failed in web-green-1: says") {
				t.Errorf("told %s", l.said())
			}
			q.Step = 0
			if v, _, err := ask(t.Context(), question(q.Gate)); err != nil || v != fleet.Pass { // no instances: nobody is asked
				t.Errorf("under traffic: %s %v", v, err)
			}
		})
	}
}

// A test that needs a secret runs where the template is, and the secret is
// neither kept nor told.
func TestASecretOfATestIsNotKept(t *testing.T) {
	tpl := loadTests(t, `test:
  - shell: {name: token, env: {TOKEN: "${{ var.token }}"}, inline: ["echo $TOKEN; exit 1"]}
  - command: echo
`)
	kept, all, err := fleetTests(checkEnv, tpl, "")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(kept), secret) || !strings.Contains(string(kept), `"name":"token"`) {
		t.Errorf("kept %s", kept)
	}
	d, _, q := sshMachines(t, 1)
	var l listener
	v, detail, err := askFor(fleet.Config{}, d, func() ([]namedCheck, error) { return all, nil })(l.ctx(t), q)
	if err != nil || v != fleet.Fail || !strings.Contains(detail, "it printed: ‹redacted›") || strings.Contains(l.said()+detail, secret) {
		t.Errorf("%s %q %v; told %s", v, detail, err, l.said())
	}
	v, _, err = askFor(fleet.Config{}, d, func() ([]namedCheck, error) { return keptTests(checkEnv, kept) })(l.ctx(t), q)
	if v != fleet.Error || err == nil || !strings.Contains(err.Error(), `test "token" uses a sensitive value, which is not kept`) || !strings.Contains(err.Error(), "rebake deploy TEMPLATE") {
		t.Errorf("%s %v", v, err)
	}
}

func TestTestsThatCannotRun(t *testing.T) {
	d, _, q := sshMachines(t, 2)
	type source = func() ([]namedCheck, error)
	kept := func(text string) source {
		return func() ([]namedCheck, error) { return keptTests(checkEnv, []byte(text)) }
	}
	ok := `[{"name":"x","kind":"command","config":{"run":"true"}}]`
	for want, c := range map[string]struct {
		pool  fleet.Pool
		tests source
	}{
		"the template has no test: block":      {d, kept("")},
		`test "x" is of kind dance`:            {d, kept(`[{"name":"x","kind":"dance","config":{}}]`)},
		"read the tests that the fleet keeps":  {d, kept(`{`)},
		`read test "x" that the fleet keeps`:   {d, kept(`[{"name":"x","kind":"http","config":{"port":"x"}}]`)},
		`test "x": run: which command?`:        {d, kept(`[{"name":"x","kind":"command","config":{}}]`)},
		"has no way to log in":                 {new(fake.Pool), kept(ok)},
		"web-green-2: no instance web-green-2": {doors{d.Pool, map[string]ssh.Target{"web-green-1": d.targets["web-green-1"]}}, kept(ok)},
	} {
		if v, detail, err := askFor(fleet.Config{}, c.pool, c.tests)(t.Context(), q); v != fleet.Error || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s %q %v, want %q", v, detail, err, want)
		}
	}
	if _, _, err := askFor(fleet.Config{}, d, nil)(t.Context(), question(fleet.Gate{Name: "x", Canary: &fleet.CanaryGate{}})); err == nil {
		t.Error("a gate of another kind was asked")
	}
}
