// Package hook tells others of a deployment: a program of this machine, which
// gets a fleet.Notice on its standard input, or a URL, to which it is posted.
// Delivery is at least once. Nothing here decides about a deployment: that is
// what gates are for.
package hook

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/spell"
)

// Timeout is that of a hook which names none.
const Timeout = 10 * time.Second

// Stages are all that a hook can be told of, in their order.
var Stages = []fleet.Stage{
	fleet.StageStart, fleet.StageTraffic, fleet.StagePaused, fleet.StagePromoted, fleet.StageDone,
	fleet.StageFailed, fleet.StageRolledBack, fleet.StageBlocked,
}

// Check says what is wrong with a hook. It never shows a URL: it may hold a secret.
func Check(h fleet.Hook) error {
	for _, on := range h.On {
		if !slices.Contains(Stages, on) {
			hint := ""
			if near := spell.Nearest(string(on), words()); near != "" {
				hint = fmt.Sprintf(", did you mean %q?", near)
			}
			return fmt.Errorf("on: %q is no stage%s There are %s", on, cmp.Or(hint, "."), strings.Join(words(), ", "))
		}
	}
	switch {
	case h.Timeout < 0:
		return fmt.Errorf("timeout: %s is no time to wait for", h.Timeout)
	case len(h.Args) > 0 && h.URL != "":
		return errors.New("a hook is a program or a url, this one is both: make two of it")
	case len(h.Args) == 0 && h.URL == "":
		return errors.New("a hook is a program or a url, this one is neither: give it one")
	case h.URL == "" && h.Args[0] == "":
		return errors.New("which program? The first word is empty")
	case h.URL == "":
		return nil
	}
	u, err := url.Parse(h.URL)
	switch {
	case err != nil || u.Hostname() == "":
		return errors.New("url: it cannot be read as https://HOST/PATH (it is not shown, for it may hold a secret)")
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("url: %q is neither http nor https", u.Scheme)
	}
	return nil
}

func words() []string {
	all := make([]string, len(Stages))
	for i, s := range Stages {
		all[i] = string(s)
	}
	return all
}

// Notify delivers to these hooks. Programs run in dir.
func Notify(hooks []fleet.Hook, dir string) fleet.Notify {
	return func(ctx context.Context, n fleet.Notice) error {
		body, err := payload(n)
		if err != nil {
			return err
		}
		errs := make([]error, len(hooks))
		var wg sync.WaitGroup
		for i, h := range hooks {
			if len(h.On) > 0 && !slices.Contains(h.On, n.Stage) {
				continue
			}
			wg.Go(func() {
				if err := tell(ctx, h, dir, n, body); err != nil {
					errs[i] = fmt.Errorf("hook %d (%s): %w", i+1, name(h), err)
				}
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	}
}

// payload is the notice as it is sent: one line of JSON. Its form is held by
// testdata/notice.json and shown in docs/hooks.md.
func payload(n fleet.Notice) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // it is no page, and people read it
	if err := e.Encode(n); err != nil {
		return nil, fmt.Errorf("write the notice of %s: %w", n.Stage, err)
	}
	return b.Bytes(), nil
}

// name is how errors and logs call a hook: nothing that may be a secret, which
// is a program's arguments, and of a URL all but the host (some keep the token
// in the path).
func name(h fleet.Hook) string {
	if len(h.Args) > 0 {
		return h.Args[0]
	}
	if u, err := url.Parse(h.URL); err == nil {
		return u.Scheme + "://" + u.Host
	}
	return "a url"
}

func tell(ctx context.Context, h fleet.Hook, dir string, n fleet.Notice, body []byte) error {
	limit := cmp.Or(h.Timeout, Timeout)
	late := fmt.Errorf("no success within %s: give the hook a longer timeout, or let it only take the notice down", limit)
	in, stop := context.WithTimeoutCause(ctx, limit, late)
	defer stop()
	var err error
	if len(h.Args) > 0 {
		err = run(in, h.Args, dir, n, body)
	} else {
		err = post(in, h.URL, limit, delivery(n), body)
	}
	if err == nil || in.Err() == nil {
		return err
	}
	return fmt.Errorf("%w; %w", context.Cause(in), err)
}

// delivery is the same for each delivery of one moment of one deployment.
func delivery(n fleet.Notice) string { return n.Deployment + "/" + n.Key }

// most is how much of what a hook says is in an error, in bytes.
const most = 200

func oneLine(s string) string { return strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ") }
