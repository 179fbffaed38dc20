package pipeline

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/check"
	"github.com/rebake/rebake/internal/child"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/internal/template"
)

// askFor asks the gates that are not judged from counters. tests gives those of
// the test gate: of the template where it is at hand (fleetTests), else those
// that the fleet's record keeps (keptTests).
func askFor(cfg fleet.Config, pool fleet.Pool, tests func() ([]namedCheck, error)) fleet.Ask {
	return func(ctx context.Context, q fleet.Question) (fleet.Verdict, string, error) {
		switch g := q.Gate; {
		case g.Command != nil:
			return askCommand(ctx, filepath.Dir(cfg.Template), q)
		case g.HTTP != nil:
			return askHTTP(ctx, q)
		case g.Test && q.Step >= 0:
			return fleet.Pass, "", nil
		case g.Test:
			checks, err := tests()
			if err == nil && len(checks) == 0 {
				err = errors.New("the template has no test: block; add one, or take the test gate out")
			}
			if err != nil {
				return fleet.Error, "", err
			}
			return askTests(ctx, pool, q, checks)
		}
		return fleet.Error, "", fmt.Errorf("gate %s is of a kind that this rebake does not know", q.Gate.Name)
	}
}

// withAlarms asks the cloud for the gates of alarms, and the other ask for the rest.
func withAlarms(env Env, ask fleet.Ask) fleet.Ask {
	return func(ctx context.Context, q fleet.Question) (fleet.Verdict, string, error) {
		if a := q.Gate.Alarm; a != nil && env.Backends.Alarms != nil {
			return env.Backends.Alarms(ctx, a.Region, a.Names)
		}
		return ask(ctx, q)
	}
}

// gatePorts are the guest ports that the gates ask, besides the traffic port:
// instances must be started with them.
func gatePorts(p fleet.Policy) []int {
	ports := []int{p.Port}
	for _, g := range p.Gates {
		if g.HTTP != nil && g.HTTP.Port != 0 && !slices.Contains(ports, g.HTTP.Port) {
			ports = append(ports, g.HTTP.Port)
		}
	}
	return ports
}

// tempFail is the exit status of a command that cannot tell yet: EX_TEMPFAIL.
const tempFail = 75

// askCommand runs a program on this machine, in the template's folder. When its
// time is over, or ctx, it is killed with all that it started.
func askCommand(ctx context.Context, dir string, q fleet.Question) (fleet.Verdict, string, error) {
	g := q.Gate.Command
	run, stop := context.WithTimeoutCause(ctx, g.Timeout,
		fmt.Errorf("%s did not end within %s (timeout of gate %s)", g.Args[0], g.Timeout, q.Gate.Name))
	defer stop()
	var said tail
	told := event.Writer(event.Tee(run, said.keep)) // what is kept is redacted too
	cmd := exec.CommandContext(run, g.Args[0], g.Args[1:]...)
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		cmd.Dir = dir
	}
	cmd.Env = append(os.Environ(), commandEnv(q)...)
	cmd.Stdout, cmd.Stderr = told, told
	err := child.RunGroup(cmd)
	_ = told.Close()
	var exit *exec.ExitError
	switch {
	case run.Err() != nil:
		return fleet.Error, "", fmt.Errorf("%w%s", context.Cause(run), said.after("; it printed: "))
	case err != nil && !errors.As(err, &exit):
		return fleet.Error, "", fmt.Errorf("start the gate's command in %s: %w", cmp.Or(cmd.Dir, "this folder"), err)
	}
	switch code := cmd.ProcessState.ExitCode(); code {
	case 0:
		return fleet.Pass, said.after(""), nil
	case tempFail:
		return fleet.Inconclusive, fmt.Sprintf("exit status %d%s", code, said.after(": ")), nil
	}
	return fleet.Fail, cmd.ProcessState.String() + said.after(": "), nil
}

// commandEnv is what a command is told of the deployment.
func commandEnv(q fleet.Question) []string {
	permille := 0
	if q.Step >= 0 && q.Step < len(q.Plan.Policy.Steps) {
		permille = q.Plan.Policy.Steps[q.Step].Permille
	}
	var at []string
	for _, i := range q.Instances {
		if addr := i.Ports[q.Plan.Policy.Port]; addr != "" {
			at = append(at, addr)
		}
	}
	img := q.Plan.New.Spec.Image
	return []string{
		"REBAKE_FLEET=" + q.Plan.Fleet, "REBAKE_DEPLOYMENT=" + q.Plan.ID, "REBAKE_IMAGE=" + img.Name + ":" + img.Version,
		"REBAKE_SLOT=" + string(q.Plan.New.Group.Slot), "REBAKE_STEP=" + strconv.FormatFloat(float64(permille)/10, 'f', -1, 64),
		"REBAKE_INSTANCES=" + strings.Join(at, " "),
	}
}

// tail keeps the last lines of an output, for a message.
type tail struct {
	mu    sync.Mutex
	lines []string
}

const tailLines = 3

func (t *tail) keep(e event.Event) {
	if e.Kind != event.Output || strings.TrimSpace(e.Text) == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, strings.TrimSpace(e.Text))
	t.lines = slices.Clone(t.lines[max(0, len(t.lines)-tailLines):])
}

// after is the kept text after some words, or nothing.
func (t *tail) after(words string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lines) == 0 {
		return ""
	}
	text := strings.Join(t.lines, " / ")
	const most = 400
	if len(text) > most {
		text = "…" + strings.ToValidUTF8(text[len(text)-most:], "")
	}
	return words + text
}

// told is what an instance answered to a gate.
type told struct {
	bad string // what is wrong with the answer
	err error  // there was none
}

// askAll asks every new instance at once. One wrong answer is a failure; no
// answer is trouble, which is asked again.
func askAll(ctx context.Context, q fleet.Question, pass string, ask func(context.Context, fleet.Instance) told) (fleet.Verdict, string, error) {
	if len(q.Instances) == 0 {
		return fleet.Error, "", errors.New("there are no new instances to ask")
	}
	got := make([]told, len(q.Instances))
	var wg sync.WaitGroup
	for n, i := range q.Instances {
		wg.Go(func() { got[n] = ask(ctx, i) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return fleet.Error, "", context.Cause(ctx)
	}
	var bad []string
	var errs []error
	for n, a := range got {
		if a.bad != "" {
			bad = append(bad, q.Instances[n].ID+": "+a.bad)
		}
		if a.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", q.Instances[n].ID, a.err))
		}
	}
	switch {
	case len(bad) > 0:
		return fleet.Fail, fmt.Sprintf("%d of %d instances: %s", len(bad), len(got), strings.Join(bad, "; ")), nil
	case len(errs) > 0:
		return fleet.Error, "", errors.Join(errs...)
	}
	return fleet.Pass, fmt.Sprintf("%d instances %s", len(got), pass), nil
}

// maxBody is how much of an answer is looked at.
const maxBody = 1 << 20

// askHTTP asks each new instance itself: not through the router, nor a proxy.
func askHTTP(ctx context.Context, q fleet.Question) (fleet.Verdict, string, error) {
	g := q.Gate.HTTP
	pass := fmt.Sprintf("answered %d", g.Status)
	if g.Version != "" {
		pass += ", version " + q.Plan.New.Spec.Image.Version
	}
	return askAll(ctx, q, pass, func(ctx context.Context, i fleet.Instance) told {
		ctx, stop := context.WithTimeoutCause(ctx, g.Timeout, fmt.Errorf("no answer within %s (timeout of gate %s)", g.Timeout, q.Gate.Name))
		defer stop()
		bad, err := askOne(ctx, g, i, q.Plan.New.Spec.Image)
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return told{bad, err}
	})
}

func askOne(ctx context.Context, g *fleet.HTTPGate, i fleet.Instance, img artifact.Image) (bad string, err error) {
	addr := i.Ports[g.Port]
	if addr == "" {
		return "", fmt.Errorf("its port %d is not reachable from here", g.Port)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+g.Path, nil)
	if err != nil {
		return "", err
	}
	res, err := direct().Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	switch {
	case res.StatusCode != g.Status:
		return fmt.Sprintf("status %d, want %d", res.StatusCode, g.Status), nil
	case err != nil:
		return "", fmt.Errorf("read its answer: %w", err)
	case !bytes.Contains(body, []byte(g.Body)):
		return fmt.Sprintf("no %q in %s", g.Body, show(string(body))), nil
	case g.Version == "":
		return "", nil
	case g.Version == "body":
		if !tells(string(body), img) {
			return fmt.Sprintf("it tells version %s, want %s", show(string(body)), img.Version), nil
		}
		return "", nil
	}
	if is := strings.TrimSpace(res.Header.Get(g.Version)); !isVersion(is, img) {
		return fmt.Sprintf("%s is %s, want %s", g.Version, show(is), img.Version), nil
	}
	return "", nil
}

// direct is a client that knows no proxy, whatever the environment says, and
// takes a redirect for the answer.
func direct() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// isVersion says that a text is one of the image's names for its version.
func isVersion(s string, img artifact.Image) bool {
	return s != "" && (s == img.Version || s == string(img.Digest) || s == img.Name+":"+img.Version)
}

// tells says that one of the words of a text is the image's version.
func tells(text string, img artifact.Image) bool {
	words := strings.FieldsFunc(text, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("._:+-", r)
	})
	for _, w := range words {
		w = strings.Trim(w, ".:-")
		if isVersion(w, img) || isVersion(strings.TrimPrefix(w, "version:"), img) {
			return true
		}
	}
	return false
}

// show is the beginning of what was found, on one line.
func show(s string) string {
	const most = 100
	s = strings.Join(strings.Fields(s), " ")
	if s == "" {
		return "nothing"
	}
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strconv.Quote(s)
}

// keptTest is a test of the template as fleet.Config keeps it: what the check
// decodes from. One that uses a sensitive value is kept by its name alone.
type keptTest struct {
	Name   string          `json:"name"`
	Kind   string          `json:"kind"`
	Config json.RawMessage `json:"config,omitempty"`
	Secret bool            `json:"secret,omitempty"`
}

// fleetTests are the tests of a template that apply to an image of that kind of
// builder: all of them, and as later commands, which have no template, keep them.
func fleetTests(env Env, tpl *template.Template, builder string) (kept json.RawMessage, all []namedCheck, err error) {
	var list []keptTest
	for _, s := range tpl.Tests {
		if !slices.ContainsFunc(tpl.Builds, func(b template.Build) bool {
			return s.Applies(b.Name) && (builder == "" || b.Kind == builder)
		}) {
			continue
		}
		c, err := env.Backends.Check(s)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, namedCheck{s.Name, c})
		is, err := decoded(env, s.Kind, s.Block)
		if err != nil {
			return nil, nil, err
		}
		masked, err := decoded(env, s.Kind, s.Block.Masked())
		one := keptTest{Name: s.Name, Kind: s.Kind, Config: is}
		if err != nil || !bytes.Equal(is, masked) { // a masked value may be of the wrong form
			one.Config, one.Secret = nil, true
		}
		list = append(list, one)
	}
	if len(list) == 0 {
		return nil, nil, nil
	}
	kept, err = json.Marshal(list)
	return kept, all, err
}

func decoded(env Env, kind string, b template.Block) (json.RawMessage, error) {
	blank, ok := env.Backends.Kinds.Checks[kind]
	if !ok {
		return nil, b.Errorf("", "%q is no kind of check", kind)
	}
	cfg := blank()
	if err := b.Decode(cfg); err != nil {
		return nil, err
	}
	return json.Marshal(cfg)
}

// keptTests makes the checks that a fleet's record keeps.
func keptTests(env Env, kept json.RawMessage) (all []namedCheck, err error) {
	var list []keptTest
	if len(kept) > 0 {
		if err := json.Unmarshal(kept, &list); err != nil {
			return nil, fmt.Errorf("read the tests that the fleet keeps: %w", err)
		}
	}
	for _, t := range list {
		blank, ok := env.Backends.Kinds.Checks[t.Kind]
		switch {
		case t.Secret:
			return nil, fmt.Errorf("test %q uses a sensitive value, which is not kept: go on with `rebake deploy TEMPLATE`, which has it", t.Name)
		case !ok:
			return nil, fmt.Errorf("test %q is of kind %s, which this rebake does not know: deploy with the one that began", t.Name, t.Kind)
		}
		cfg := blank()
		if err := json.Unmarshal(t.Config, cfg); err != nil {
			return nil, fmt.Errorf("read test %q that the fleet keeps: %w", t.Name, err)
		}
		c, err := check.New(cfg)
		if err != nil {
			return nil, fmt.Errorf("test %q: %w", t.Name, err)
		}
		all = append(all, namedCheck{t.Name, c})
	}
	return all, nil
}

// askTests runs the template's tests in each new instance.
func askTests(ctx context.Context, pool fleet.Pool, q fleet.Question, tests []namedCheck) (fleet.Verdict, string, error) {
	return askAll(ctx, q, fmt.Sprintf("passed %d tests", len(tests)), func(ctx context.Context, i fleet.Instance) told {
		guest, err := Connect(ctx, pool, i.ID, 2*time.Minute)
		if err != nil {
			return told{err: err}
		}
		defer guest.Close()
		target := check.Target{Guest: guest, Dial: instanceDialer(i, guest)}
		var failed []string
		for _, c := range tests {
			one := check.Do(ctx, c.name, c.Check, target)
			if ctx.Err() != nil {
				return told{err: context.Cause(ctx)}
			}
			if !one.Passed {
				failed = append(failed, warned(ctx, fmt.Sprintf("failed in %s: %s: %s", i.ID, one.Name, one.Message)))
			}
		}
		return told{bad: strings.Join(failed, "; ")}
	})
}

// warned tells a warning and returns its words as they were told: redacted.
func warned(ctx context.Context, text string) string {
	event.Warnf(event.Tee(ctx, func(e event.Event) { text = e.Text }), "%s", text)
	return text
}

// instanceDialer reaches an instance's port as traffic does, else through SSH.
func instanceDialer(i fleet.Instance, g *ssh.Client) func(context.Context, int) (net.Conn, error) {
	return func(ctx context.Context, port int) (net.Conn, error) {
		if addr := i.Ports[port]; addr != "" {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
		return g.DialPort(ctx, port)
	}
}
