package check

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rebake/rebake/provisioner"
)

// Shell runs lines of a script in the guest: all must succeed.
type Shell struct {
	Inline []string          `yaml:"inline" json:"inline" rebake:"required,shorthand" jsonschema_description:"lines of a script; the check passes if it ends with 0"`
	Env    map[string]string `yaml:"env" json:"env,omitempty" rebake:"secret" jsonschema_description:"its environment"`
	Within time.Duration     `yaml:"within" json:"within,omitempty" jsonschema_description:"try again until it passes, for so long"`
}

func (c *Shell) check() (Check, error) {
	if len(c.Inline) == 0 {
		return nil, errors.New("inline: give at least one line")
	}
	script := "set -e\n" + strings.Join(c.Inline, "\n")
	return simple{"shell " + c.Inline[0], c.Within, 0, func(ctx context.Context, t Target) error {
		out, code, err := output(ctx, t.Guest, "sh -c "+provisioner.Quote(script), c.Env)
		if err == nil && code != 0 {
			err = fmt.Errorf("exit status %d; %s", code, excerpt(out))
		}
		return err
	}}, nil
}

// Command runs one command and compares what came of it.
type Command struct {
	Run            string        `yaml:"run" json:"run" rebake:"required,shorthand" jsonschema_description:"the command"`
	Exit           int           `yaml:"exit" json:"exit,omitempty" jsonschema_description:"its exit status; default 0"`
	StdoutContains string        `yaml:"stdout_contains" json:"stdout_contains,omitempty" jsonschema_description:"text that it must print"`
	Within         time.Duration `yaml:"within" json:"within,omitempty" jsonschema_description:"try again until it passes, for so long"`
}

func (c *Command) check() (Check, error) {
	if c.Run == "" {
		return nil, errors.New("run: which command?")
	}
	return simple{"command " + c.Run, c.Within, 0, func(ctx context.Context, t Target) error {
		out, code, err := output(ctx, t.Guest, c.Run, nil)
		switch {
		case err != nil:
			return err
		case code != c.Exit:
			return fmt.Errorf("exit status %d, want %d; %s", code, c.Exit, excerpt(out))
		case !strings.Contains(out, c.StdoutContains):
			return fmt.Errorf("no %q in its output; %s", c.StdoutContains, excerpt(out))
		}
		return nil
	}}, nil
}

// HTTP asks a port of the guest.
type HTTP struct {
	Port     int               `yaml:"port" json:"port,omitempty" jsonschema:"minimum=1,maximum=65535" jsonschema_description:"default 80"`
	Path     string            `yaml:"path" json:"path,omitempty" jsonschema_description:"default /"`
	Method   string            `yaml:"method" json:"method,omitempty" jsonschema_description:"default GET"`
	Header   map[string]string `yaml:"header" json:"header,omitempty" jsonschema_description:"request headers"`
	Status   int               `yaml:"status" json:"status,omitempty" jsonschema_description:"default 200"`
	Contains string            `yaml:"contains" json:"contains,omitempty" jsonschema_description:"text that the body must hold"`
	Within   time.Duration     `yaml:"within" json:"within,omitempty" jsonschema_description:"try again until it passes, for so long; default 30s: a service may still be starting"`
}

func (c *HTTP) check() (Check, error) {
	port, path, method, status, within := orInt(c.Port, 80), orStr(c.Path, "/"), orStr(c.Method, http.MethodGet), orInt(c.Status, 200), c.Within
	if !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("path: %q does not start with /", path)
	}
	if within == 0 {
		within = 30 * time.Second
	}
	return simple{fmt.Sprintf("http %s :%d%s", method, port, path), within, port, func(ctx context.Context, t Target) error {
		return c.ask(ctx, t, port, path, method, status)
	}}, nil
}

func (c *HTTP) ask(ctx context.Context, t Target, port int, path, method string, status int) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	client := &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return t.Dial(ctx, port) }},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1:"+strconv.Itoa(port)+path, nil)
	if err != nil {
		return err
	}
	for k, v := range c.Header {
		if strings.EqualFold(k, "host") {
			req.Host = v
			continue
		}
		req.Header.Set(k, v)
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(bufio.NewReader(res.Body), 1<<20))
	if err != nil {
		return err
	}
	if res.StatusCode != status {
		return fmt.Errorf("status %d, want %d; %s", res.StatusCode, status, excerpt(string(body)))
	}
	if !strings.Contains(string(body), c.Contains) {
		return fmt.Errorf("no %q in the body; %s", c.Contains, excerpt(string(body)))
	}
	return nil
}

// TCP connects to a port of the guest.
type TCP struct {
	Port   int           `yaml:"port" json:"port" rebake:"required,shorthand" jsonschema:"minimum=1,maximum=65535" jsonschema_description:"the port"`
	Within time.Duration `yaml:"within" json:"within,omitempty" jsonschema_description:"try again until it passes, for so long; default 30s"`
}

func (c *TCP) check() (Check, error) {
	if c.Port < 1 || c.Port > 65535 {
		return nil, fmt.Errorf("port: %d is not a port", c.Port)
	}
	within := c.Within
	if within == 0 {
		within = 30 * time.Second
	}
	return simple{fmt.Sprintf("tcp :%d", c.Port), within, c.Port, func(ctx context.Context, t Target) error {
		conn, err := t.Dial(ctx, c.Port)
		if err != nil {
			return err
		}
		return conn.Close()
	}}, nil
}

// File looks at a file of the guest.
type File struct {
	Path     string `yaml:"path" json:"path" rebake:"required" jsonschema_description:"absolute path"`
	Exists   *bool  `yaml:"exists" json:"exists,omitempty" jsonschema_description:"false: it must not be there; default true"`
	Mode     string `yaml:"mode" json:"mode,omitempty" jsonschema_description:"octal mode, for example 0644"`
	Owner    string `yaml:"owner" json:"owner,omitempty" jsonschema_description:"user that owns it"`
	Contains string `yaml:"contains" json:"contains,omitempty" jsonschema_description:"text that it must hold"`
	SHA256   string `yaml:"sha256" json:"sha256,omitempty" jsonschema_description:"digest of its bytes, in hex"`
}

func (c *File) check() (Check, error) {
	if !strings.HasPrefix(c.Path, "/") {
		return nil, fmt.Errorf("path: %q is not absolute", c.Path)
	}
	mode, err := strconv.ParseUint(orStr(c.Mode, "0"), 8, 12)
	if err != nil {
		return nil, fmt.Errorf("mode: %q is no octal mode such as 0644", c.Mode)
	}
	return simple{"file " + c.Path, 0, 0, func(ctx context.Context, t Target) error { return c.look(ctx, t, mode) }}, nil
}

func (c *File) look(ctx context.Context, t Target, mode uint64) error {
	p := provisioner.Quote(c.Path)
	out, code, err := output(ctx, t.Guest, "stat -L -c '%a %U' "+p, nil)
	if err != nil {
		return err
	}
	if exists := code == 0; c.Exists != nil && !*c.Exists {
		if exists {
			return errors.New("it is there")
		}
		return nil
	} else if !exists {
		return errors.New("it is not there")
	}
	gotMode, owner, _ := strings.Cut(strings.TrimSpace(out), " ")
	if m, err := strconv.ParseUint(gotMode, 8, 16); c.Mode != "" && (err != nil || m != mode) {
		return fmt.Errorf("mode %s, want %s", gotMode, c.Mode)
	}
	if c.Owner != "" && owner != c.Owner {
		return fmt.Errorf("owner %s, want %s", owner, c.Owner)
	}
	if c.Contains != "" {
		if _, code, err := output(ctx, t.Guest, "grep -qF -e "+provisioner.Quote(c.Contains)+" "+p, nil); err != nil {
			return err
		} else if code != 0 {
			head, _, _ := output(ctx, t.Guest, "head -c 300 "+p, nil)
			return fmt.Errorf("no %q in it; it starts: %s", c.Contains, strings.TrimSpace(head))
		}
	}
	if c.SHA256 != "" {
		out, _, err := output(ctx, t.Guest, "sha256sum "+p, nil)
		if err != nil {
			return err
		}
		if got, _, _ := strings.Cut(out, " "); !strings.EqualFold(got, strings.TrimPrefix(c.SHA256, "sha256:")) {
			return fmt.Errorf("sha256 %s, want %s", got, c.SHA256)
		}
	}
	return nil
}

// Service looks whether a service runs: systemd's, else a process of that name.
type Service struct {
	Name   string        `yaml:"name" json:"name" rebake:"required,shorthand" jsonschema_description:"unit or process"`
	State  string        `yaml:"state" json:"state,omitempty" jsonschema:"enum=active,enum=inactive" jsonschema_description:"default active"`
	Within time.Duration `yaml:"within" json:"within,omitempty" jsonschema_description:"try again until it passes, for so long; default 30s"`
}

func (c *Service) check() (Check, error) {
	if c.Name == "" || strings.HasPrefix(c.Name, "-") {
		return nil, fmt.Errorf("name: %q is no service", c.Name)
	}
	want := orStr(c.State, "active")
	within := c.Within
	if within == 0 {
		within = 30 * time.Second
	}
	n := provisioner.Quote(c.Name)
	line := "if [ -d /run/systemd/system ]; then systemctl is-active -- " + n + " || { systemctl status --no-pager -n 5 -- " + n + " >&2; true; }; " +
		"else pidof " + n + " >/dev/null && echo active || echo inactive; fi"
	return simple{"service " + c.Name, within, 0, func(ctx context.Context, t Target) error {
		out, _, err := output(ctx, t.Guest, line, nil)
		if err != nil {
			return err
		}
		got, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
		if (got == "active") != (want == "active") {
			return fmt.Errorf("%s, want %s; %s", got, want, excerpt(out))
		}
		return nil
	}}, nil
}

// Package looks whether a package is installed, by dpkg, rpm or apk.
type Package struct {
	Name      string `yaml:"name" json:"name" rebake:"required,shorthand" jsonschema_description:"package"`
	Version   string `yaml:"version" json:"version,omitempty" jsonschema_description:"exact version"`
	Installed *bool  `yaml:"installed" json:"installed,omitempty" jsonschema_description:"false: it must not be installed; default true"`
}

func (c *Package) check() (Check, error) {
	if c.Name == "" || strings.HasPrefix(c.Name, "-") {
		return nil, fmt.Errorf("name: %q is no package", c.Name)
	}
	n := provisioner.Quote(c.Name)
	line := "if command -v dpkg-query >/dev/null; then dpkg-query -W -f '${db:Status-Status} ${Version}\\n' " + n + " 2>/dev/null | sed -n 's/^installed //p'; " +
		"elif command -v rpm >/dev/null; then rpm -q --qf '%{VERSION}-%{RELEASE}\\n' " + n + " | grep -v 'not installed'; " +
		"elif command -v apk >/dev/null; then apk list -I " + n + " 2>/dev/null | sed 's/^" + "[^ ]*-\\([0-9][^ ]*\\) .*/\\1/'; else echo no package manager; exit 3; fi; true"
	return simple{"package " + c.Name, 0, 0, func(ctx context.Context, t Target) error {
		out, code, err := output(ctx, t.Guest, line, nil)
		if err != nil {
			return err
		}
		if code != 0 {
			return errors.New("the guest has neither dpkg, rpm nor apk")
		}
		got := strings.TrimSpace(out)
		switch want := c.Installed == nil || *c.Installed; {
		case want && got == "":
			return errors.New("it is not installed")
		case !want && got != "":
			return fmt.Errorf("version %s is installed", got)
		case want && c.Version != "" && got != c.Version:
			return fmt.Errorf("version %s is installed, want %s", got, c.Version)
		}
		return nil
	}}, nil
}

func orInt(n, or int) int {
	if n == 0 {
		return or
	}
	return n
}

func orStr(s, or string) string {
	if s == "" {
		return or
	}
	return s
}

// BuiltIn are the checks that every image gets.
func BuiltIn() []Check {
	return []Check{
		simple{"no failed units", 0, 0, func(ctx context.Context, t Target) error {
			// Wait for the boot to end: a unit that is still starting has not failed yet.
			line := "[ -d /run/systemd/system ] || exit 0; systemctl is-system-running --wait >/dev/null 2>&1; " +
				"systemctl list-units --state=failed --plain --no-legend --no-pager"
			out, _, err := output(ctx, t.Guest, line, nil)
			if err == nil && strings.TrimSpace(out) != "" {
				err = errors.New(strings.TrimSpace(out))
			}
			return err
		}},
		simple{"the root file system is writable and has room", 0, 0, func(ctx context.Context, t Target) error {
			out, code, err := output(ctx, t.Guest, "f=$(mktemp /var/tmp/rebake.XXXXXX) && echo x > \"$f\" && rm \"$f\"", nil)
			if err == nil && code != 0 {
				err = errors.New(excerpt(out))
			}
			return err
		}},
	}
}
