// Package shell is the provisioner that runs scripts in the guest. A script
// travels over stdin into a directory that only its user can read and whose name
// nobody can guess, runs, and is removed: one command, one round trip.
package shell

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/provisioner"
)

// Config is a shell: block of a template.
type Config struct {
	Inline            []string          `yaml:"inline" json:"inline,omitempty" rebake:"shorthand" jsonschema_description:"lines of a script"`
	Script            string            `yaml:"script" json:"script,omitempty" jsonschema_description:"a script file, relative to the template"`
	Scripts           []string          `yaml:"scripts" json:"scripts,omitempty" jsonschema_description:"script files, run in this order"`
	Env               map[string]string `yaml:"env" json:"env,omitempty" rebake:"secret" jsonschema_description:"environment of the script; never on a command line or in a log"`
	Interpreter       string            `yaml:"interpreter" json:"interpreter,omitempty" jsonschema_description:"command that runs the script; default: its #! line, else /bin/sh -e"`
	Sudo              bool              `yaml:"sudo" json:"sudo,omitempty" jsonschema_description:"run as root by sudo -n if the user is not root"`
	ValidExitCodes    []int             `yaml:"valid_exit_codes" json:"valid_exit_codes,omitempty" jsonschema_description:"exit codes that are a success; default 0"`
	ExpectDisconnect  bool              `yaml:"expect_disconnect" json:"expect_disconnect,omitempty" jsonschema_description:"the script may reboot the guest; rebake waits for it and goes on"`
	StartRetryTimeout time.Duration     `yaml:"start_retry_timeout" json:"start_retry_timeout,omitempty" jsonschema_description:"how long to try to start a script in a guest that cannot be reached; default 5m"`
	PauseAfter        time.Duration     `yaml:"pause_after" json:"pause_after,omitempty" jsonschema_description:"wait after the last script"`
	RemoteFolder      string            `yaml:"remote_folder" json:"remote_folder,omitempty" jsonschema_description:"where the script's directory is made; default /tmp"`
	SkipClean         bool              `yaml:"skip_clean" json:"skip_clean,omitempty" jsonschema_description:"leave the script in the guest"`
	Binary            bool              `yaml:"binary" json:"binary,omitempty" jsonschema_description:"send the script as it is, without mending CR LF line ends"`

	Exports map[string]string `yaml:"-" json:"-"` // REBAKE_… of the caller; Env wins
	Keyed   *Config           `yaml:"-" json:"-"` // the same with var:NAME for each sensitive value, for the key; nil: there is none
}

// maxScript bounds what is read into memory.
const maxScript = 16 << 20

type step struct {
	cfg     Config
	scripts []script
}

type script struct {
	name string
	body []byte
}

// New checks the config and reads its scripts, relative to dir: what is wrong
// is said before a machine boots.
func New(cfg Config, dir string) (provisioner.Provisioner, error) {
	s := &step{cfg: cfg}
	given := 0
	for _, is := range []bool{len(cfg.Inline) > 0, cfg.Script != "", len(cfg.Scripts) > 0} {
		if is {
			given++
		}
	}
	if given != 1 {
		return nil, errors.New("give one of inline, script and scripts")
	}
	if len(cfg.Inline) > 0 {
		s.add("inline script", []byte(strings.Join(cfg.Inline, "\n")+"\n"))
	}
	files := cfg.Scripts
	if cfg.Script != "" {
		files = []string{cfg.Script}
	}
	for _, name := range files {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		body, err := read(path)
		if err != nil {
			return nil, fmt.Errorf("script %s: %w", name, err)
		}
		s.add(name, body)
	}
	for _, c := range cfg.ValidExitCodes {
		if c < 0 || c > 255 {
			return nil, fmt.Errorf("valid_exit_codes: %d is not between 0 and 255", c)
		}
	}
	if f := cfg.RemoteFolder; f != "" && !strings.HasPrefix(f, "/") {
		return nil, fmt.Errorf("remote_folder: %s is not an absolute path", f)
	}
	if cfg.StartRetryTimeout < 0 || cfg.PauseAfter < 0 {
		return nil, errors.New("start_retry_timeout and pause_after must not be negative")
	}
	return s, nil
}

func (s *step) add(name string, body []byte) {
	if !s.cfg.Binary {
		body = bytes.ReplaceAll(body, []byte("\r\n"), []byte("\n"))
	}
	s.scripts = append(s.scripts, script{name, body})
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, errors.Unwrap(err) // the path was said already
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	body, err := io.ReadAll(io.LimitReader(f, maxScript+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxScript {
		return nil, fmt.Errorf("larger than %d MiB; send data with a file step", maxScript>>20)
	}
	return body, nil
}

// maxShown bounds the scripts that the key shows as they are.
const maxShown = 4 << 10

// Key implements provisioner.Provisioner.
func (s *step) Key(context.Context) (in artifact.Inputs, ok bool, err error) {
	k := s.cfg
	if k.Keyed != nil {
		k = *k.Keyed
	}
	if len(k.Inline) > 0 {
		in.Add("inline", strings.Join(k.Inline, "\n"))
	} else {
		for i, sc := range s.scripts {
			body := string(sc.body)
			if len(body) > maxShown || !utf8.ValidString(body) {
				sum := sha256.Sum256(sc.body)
				body = "sha256:" + hex.EncodeToString(sum[:])
			}
			in.Add(fmt.Sprintf("script %d", i+1), body)
		}
	}
	env := map[string]string{}
	maps.Copy(env, s.cfg.Exports)
	maps.Copy(env, k.Env)
	for _, name := range slices.Sorted(maps.Keys(env)) {
		in.Add("env "+name, env[name])
	}
	in.Add("interpreter", k.Interpreter)
	in.Add("sudo", fmt.Sprint(k.Sudo))
	in.Add("valid_exit_codes", fmt.Sprint(k.ValidExitCodes))
	in.Add("expect_disconnect", fmt.Sprint(k.ExpectDisconnect))
	in.Add("remote_folder", k.RemoteFolder)
	in.Add("skip_clean", fmt.Sprint(k.SkipClean))
	in.Add("binary", fmt.Sprint(k.Binary))
	return in, true, nil
}

// Fetches says that a script may read the network, which no key can tell.
func (s *step) Fetches() bool { return true }

func (s *step) env() map[string]string {
	env := map[string]string{}
	maps.Copy(env, s.cfg.Exports)
	maps.Copy(env, s.cfg.Env)
	return env
}

// Provision implements provisioner.Provisioner.
func (s *step) Provision(ctx context.Context, g provisioner.Guest) error {
	for _, sc := range s.scripts {
		if len(s.scripts) > 1 {
			event.Infof(ctx, "script %s", sc.name)
		}
		if err := s.run(ctx, g, sc); err != nil {
			return fmt.Errorf("%s: %w", sc.name, err)
		}
	}
	if s.cfg.PauseAfter > 0 {
		event.Waiting(ctx, "%s, as pause_after says", s.cfg.PauseAfter)
		return provisioner.Sleep(ctx, s.cfg.PauseAfter)
	}
	return nil
}

// started is what the guest says once the script is whole and about to run.
const started = "rebake: script started"

func (s *step) run(ctx context.Context, g provisioner.Guest, sc script) error {
	limit := s.cfg.StartRetryTimeout
	if limit == 0 {
		limit = 5 * time.Minute
	}
	end := time.Now().Add(limit)
	for {
		began, err := s.once(ctx, g, sc)
		lost := errors.Is(err, provisioner.ErrDisconnected)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case lost && !began && time.Now().Before(end):
			event.Warnf(ctx, "%v before the script started; trying again", err)
			if err := g.Reconnect(ctx); err != nil {
				return err
			}
			continue
		case lost && s.cfg.ExpectDisconnect:
			return g.Reconnect(ctx)
		case lost:
			return fmt.Errorf("%w (a script that reboots on purpose needs expect_disconnect: true)", err)
		}
		if err := s.judge(err); err != nil {
			return err
		}
		if s.cfg.ExpectDisconnect {
			return g.Reconnect(ctx) // `reboot` returns at once; the guest goes down a little later
		}
		return nil
	}
}

// judge applies valid_exit_codes.
func (s *step) judge(err error) error {
	code := 0
	var exit *provisioner.ExitError
	if errors.As(err, &exit) && exit.Signal == "" {
		code = exit.Code
	} else if err != nil {
		return err
	}
	valid := s.cfg.ValidExitCodes
	if len(valid) == 0 {
		return err
	}
	if slices.Contains(valid, code) {
		return nil
	}
	return fmt.Errorf("exit status %d is none of valid_exit_codes %v", code, valid)
}

func (s *step) once(ctx context.Context, g provisioner.Guest, sc script) (began bool, err error) {
	out := event.Writer(ctx)
	seen := &startWatch{w: out}
	err = g.Run(ctx, provisioner.Cmd{
		Line: s.line(sc), Env: s.env(), Stdin: bytes.NewReader(sc.body),
		Stdout: out, Stderr: seen, Sudo: s.cfg.Sudo,
	})
	return seen.began, errors.Join(err, seen.flush(), out.Close())
}

// line stores the script, makes sure that all of it came, and runs it.
func (s *step) line(sc script) string {
	folder := s.cfg.RemoteFolder
	if folder == "" {
		folder = "/tmp"
	}
	run := s.cfg.Interpreter + ` "$f"`
	if s.cfg.Interpreter == "" {
		run = `/bin/sh -e "$f"`
		if bytes.HasPrefix(sc.body, []byte("#!")) {
			run = `"$f"`
		}
	}
	clean := `rm -rf "$d"; `
	if s.cfg.SkipClean {
		clean = ""
	}
	return fmt.Sprintf(`u=$(umask); umask 077; mkdir -p %[1]s; d=$(mktemp -d %[1]s/rebake.XXXXXXXXXX) || exit 1; f=$d/script; `+
		`cat >"$f" && [ "$(wc -c <"$f")" -eq %[2]d ] && chmod 700 "$f" || { %[4]s echo "rebake: the script did not arrive whole" >&2; exit 1; }; `+
		`umask "$u"; echo "%[5]s" >&2; %[3]s </dev/null; s=$?; %[4]sexit $s`,
		provisioner.Quote(folder), len(sc.body), run, clean, started)
}

// startWatch takes the line that says started out of the stream.
type startWatch struct {
	w     io.Writer
	head  []byte
	began bool
}

func (s *startWatch) Write(p []byte) (int, error) {
	if s.began {
		return s.w.Write(p)
	}
	s.head = append(s.head, p...)
	mark := []byte(started + "\n")
	if i := bytes.Index(s.head, mark); i >= 0 {
		s.began = true
		rest := append(s.head[:i:i], s.head[i+len(mark):]...)
		s.head = nil
		if _, err := s.w.Write(rest); err != nil {
			return 0, err
		}
	} else if len(s.head) > 64<<10 {
		if err := s.flush(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (s *startWatch) flush() error {
	_, err := s.w.Write(s.head)
	s.head = nil
	return err
}
