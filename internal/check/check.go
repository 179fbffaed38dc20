// Package check holds the checks of a template's test: block. Each looks at one
// thing in a booted guest and fails with the evidence.
package check

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/provisioner"
)

// Target is the machine under test.
type Target struct {
	Guest provisioner.Guest
	Dial  builder.Dialer
}

// Check looks at one thing. Run's error says what was found instead.
type Check interface {
	Name() string
	Run(ctx context.Context, t Target) error
}

// config is what a template decodes into; it knows the check that it means.
type config interface {
	check() (Check, error)
}

// Kinds are the checks by their key in a template, each with a constructor of
// its configuration.
func Kinds() map[string]func() any {
	return map[string]func() any{
		"shell":   func() any { return new(Shell) },
		"command": func() any { return new(Command) },
		"http":    func() any { return new(HTTP) },
		"tcp":     func() any { return new(TCP) },
		"file":    func() any { return new(File) },
		"service": func() any { return new(Service) },
		"package": func() any { return new(Package) },
	}
}

// New makes the check of a configuration that Kinds constructed.
func New(cfg any) (Check, error) {
	c, ok := cfg.(config)
	if !ok {
		return nil, fmt.Errorf("%T is no check", cfg)
	}
	return c.check()
}

// Do runs a check and times it.
func Do(ctx context.Context, name string, c Check, t Target) artifact.TestResult {
	began := time.Now()
	err := c.Run(ctx, t)
	r := artifact.TestResult{Name: name, Passed: err == nil, Seconds: time.Since(began).Seconds()}
	if err != nil {
		r.Message = err.Error()
	}
	return r
}

// simple is a check made of a name and a function.
type simple struct {
	name   string
	within time.Duration // try again until then
	port   int           // that it connects to, if it does
	run    func(ctx context.Context, t Target) error
}

func (s simple) Name() string { return s.name }

// Port is the guest's port that the check connects to, or 0.
func (s simple) Port() int { return s.port }

func (s simple) Run(ctx context.Context, t Target) error {
	end := time.Now().Add(s.within)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := s.run(ctx, t)
		if err == nil || ctx.Err() != nil || !time.Now().Before(end) {
			if err != nil && s.within > 0 {
				err = fmt.Errorf("%w (tried for %s)", err, s.within)
			}
			return err
		}
		if perr := provisioner.Sleep(ctx, pause); perr != nil {
			return errors.Join(err, perr)
		}
	}
}

const maxOutput = 64 << 10

// output runs a command in the guest and returns what it printed, of both
// streams, and its exit status.
func output(ctx context.Context, g provisioner.Guest, line string, env map[string]string) (string, int, error) {
	var out limited
	err := g.Run(ctx, provisioner.Cmd{Line: line, Env: env, Stdout: &out, Stderr: &out})
	var exit *provisioner.ExitError
	if errors.As(err, &exit) {
		if exit.Signal != "" {
			return out.String(), 128, nil
		}
		return out.String(), exit.Code, nil
	}
	return out.String(), 0, err
}

// limited keeps the first bytes of what is written to it.
type limited struct{ b strings.Builder }

func (l *limited) Write(p []byte) (int, error) {
	if room := maxOutput - l.b.Len(); room > 0 {
		l.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (l *limited) String() string { return l.b.String() }

// excerpt is the end of an output, short enough for a message.
func excerpt(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 500 {
		s = "…" + s[len(s)-500:]
	}
	if s == "" {
		return "it printed nothing"
	}
	return "it printed: " + s
}
