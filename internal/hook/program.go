package hook

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/child"
	"github.com/rebake/rebake/internal/event"
)

// run runs a program, which is killed with all that it started when ctx ends.
func run(ctx context.Context, args []string, dir string, n fleet.Notice, body []byte) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(),
		"REBAKE_STAGE="+string(n.Stage), "REBAKE_FLEET="+n.Fleet, "REBAKE_DEPLOYMENT="+n.Deployment, "REBAKE_IMAGE="+n.Image)
	cmd.Stdin = bytes.NewReader(body)
	var said tail
	told := event.Writer(event.Tee(ctx, said.keep)) // what is kept is redacted too
	cmd.Stdout, cmd.Stderr = told, told
	err := child.RunGroup(cmd)
	_ = told.Close()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("it was killed; it said: %s", said.String())
	case errors.As(err, &exit):
		return fmt.Errorf("%s; it said: %s", exit, said.String())
	}
	return fmt.Errorf("it does not start in %s: %w: mend the hook in the template", dir, cause(err))
}

// cause is an error of starting a program without its path, which the hook's
// name says already.
func cause(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	var lookup *exec.Error
	if errors.As(err, &lookup) {
		return lookup.Err
	}
	return err
}

// tail keeps the end of what a program says.
type tail struct {
	mu   sync.Mutex
	text string
}

func (t *tail) keep(e event.Event) {
	if e.Kind != event.Output {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.text += " " + e.Text; len(t.text) > 2*most {
		t.text = t.text[len(t.text)-2*most:]
	}
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := oneLine(t.text)
	if len(s) > most {
		s = "…" + strings.ToValidUTF8(s[len(s)-most:], "")
	}
	return cmp.Or(s, "nothing")
}
