package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/atomicfile"
	"github.com/rebake/rebake/internal/event"
	"github.com/rebake/rebake/internal/ssh"
	"github.com/rebake/rebake/provisioner"
	"golang.org/x/crypto/ssh/knownhosts"
)

// keep holds a failed machine up for a person, when asked to, and says how to
// get in. g is nil if nobody ever got in.
func (k *bake) keep(ctx context.Context, id string, mach builder.Machine, g provisioner.Guest, failed error) error {
	if !k.opts.KeepFails || ctx.Err() != nil {
		return failed
	}
	select {
	case <-mach.Done():
		return failed
	default:
	}
	event.Warnf(ctx, "%v", failed)
	way, _, err := k.wayIn(ctx, id, mach, g)
	if err != nil {
		k.keepConsole(ctx, mach, id)
		way = fmt.Sprintf("nobody can log in (%v); its console is in %s", err, k.env.State.Logs())
	}
	event.Waiting(ctx, "you: machine %s is kept; %s; interrupt to destroy it, `rebake gc` does once this process is gone", id, way)
	select {
	case <-ctx.Done():
	case <-mach.Done():
	}
	return failed
}

// Way is how a person gets into the machine of a build that waits for them.
type Way struct {
	ID       string   `json:"id"`
	Addr     string   `json:"addr"`
	User     string   `json:"user"`
	HostKeys []string `json:"host_keys"` // lines of authorized_keys
	Key      string   `json:"key"`       // file of the private key
}

const wayName = "way.json"

// wayIn gives a person a key of their own and tells the command to use it. Its
// files go with the machine's directory. shut takes the key out of the guest; it
// is there after an error too, unless the guest was not touched.
func (k *bake) wayIn(ctx context.Context, id string, mach builder.Machine, g provisioner.Guest) (way string, shut func(context.Context) error, err error) {
	if g == nil {
		return "", nil, errors.New("the machine does not accept SSH")
	}
	ep, err := mach.Endpoint(ctx)
	if err != nil {
		return "", nil, err
	}
	key, err := ssh.NewKey()
	if err != nil {
		return "", nil, err
	}
	host, port, err := net.SplitHostPort(ep.Addr)
	if err != nil {
		return "", nil, err
	}
	dir := k.env.State.Build(id)
	w, knownFile := Way{ID: id, Addr: ep.Addr, User: ep.User, Key: filepath.Join(dir, "person.key")}, filepath.Join(dir, "known_hosts")
	var known strings.Builder
	for _, h := range ep.HostKeys {
		w.HostKeys = append(w.HostKeys, ssh.AuthorizedLine(h))
		fmt.Fprintln(&known, knownhosts.Line([]string{ep.Addr}, h))
	}
	err = os.MkdirAll(dir, 0o700)
	if err == nil {
		err = errors.Join(atomicfile.Write(w.Key, key.PEM, 0o600), atomicfile.Write(knownFile, []byte(known.String()), 0o600))
	}
	if err != nil {
		return "", nil, err
	}
	// From here on the key may be in the guest, and shut is the way to get it out.
	shut = func(ctx context.Context) error {
		err := g.Run(ctx, provisioner.Cmd{
			Line: `f="$HOME/.ssh/authorized_keys"; { grep -vxF -- "$K" "$f" >"$f.new" || [ $? = 1 ]; } && cat "$f.new" >"$f" && rm "$f.new"`,
			Env:  map[string]string{"K": key.Authorized},
		})
		if err != nil {
			err = fmt.Errorf("take the person's key out of the guest: %w", err)
		}
		for _, p := range []string{filepath.Join(dir, wayName), w.Key} {
			if rerr := os.Remove(p); !errors.Is(rerr, os.ErrNotExist) {
				err = errors.Join(err, rerr)
			}
		}
		return err
	}
	err = g.Run(ctx, provisioner.Cmd{
		Line:  `umask 077; mkdir -p "$HOME/.ssh" && cat >>"$HOME/.ssh/authorized_keys"`,
		Stdin: strings.NewReader(key.Authorized + "\n"),
	})
	if err != nil {
		return "", shut, fmt.Errorf("add a key: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(dir, wayName), jsonLine(w), 0o600); err != nil {
		return "", shut, err
	}
	return fmt.Sprintf("`rebake shell %s` enters it (or: ssh -i %s -o IdentitiesOnly=yes -o UserKnownHostsFile=%s -p %s %s@%s)", id,
		provisioner.Quote(w.Key), provisioner.Quote(knownFile), port, ep.User, host), shut, nil
}

// Ways lists the machines that wait for a person.
func Ways(env Env) ([]Way, error) {
	found, err := filepath.Glob(filepath.Join(env.State.Builds(), "*", wayName))
	if err != nil {
		return nil, err
	}
	var ways []Way
	for _, path := range found {
		raw, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		var w Way
		if err == nil {
			err = json.Unmarshal(raw, &w)
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		if lives, err := alive(env.State, buildID(w.ID)); err != nil || !lives {
			continue // `rebake gc` removes it
		}
		ways = append(ways, w)
	}
	return ways, nil
}

// Enter dials a machine that waits for a person.
func Enter(ctx context.Context, w Way) (*ssh.Client, error) {
	pem, err := os.ReadFile(w.Key)
	if err != nil {
		return nil, err
	}
	key, err := ssh.ParseKey(pem)
	if err != nil {
		return nil, err
	}
	t := ssh.Target{Addr: w.Addr, User: w.User, Signer: key.Signer}
	for _, line := range w.HostKeys {
		h, err := ssh.ParseAuthorized(line)
		if err != nil {
			return nil, err
		}
		t.HostKeys = append(t.HostKeys, h)
	}
	return ssh.Dial(ctx, t, ssh.Options{Timeout: 30 * time.Second})
}

// A person's answers.
const (
	answerRetry = "retry"
	answerSkip  = "skip"
	answerStop  = "give up"
	answerGoOn  = "go on"
)

// decide asks a person about a failed step, or about a breakpoint, with a way
// into the machine open meanwhile. What they did there nobody can tell, so
// nothing after it is cached.
func (k *bake) decide(ctx context.Context, r *rig, question string, choices ...string) (string, error) {
	k.cannotTell(r)
	way, shut, err := k.wayIn(ctx, r.id, r.mach, r.guest)
	if err != nil {
		way = fmt.Sprintf("nobody can log in: %v", err)
	}
	event.Waiting(ctx, "you: %s; %s", question, way)
	answer, err := k.env.Ask(ctx, question+"; "+way, choices)
	if err != nil {
		return "", err
	}
	if shut == nil {
		return answer, nil
	}
	return answer, shut(ctx)
}

// cannotTell says that what the machine holds does not follow from its inputs:
// nothing of it is saved, and its image has none.
func (k *bake) cannotTell(r *rig) {
	k.touched, k.inputs, r.silent = true, "", true
}

// keepConsole saves a failed machine's console beside the log.
func (k *bake) keepConsole(ctx context.Context, mach builder.Machine, id string) {
	text := mach.Console(1 << 20)
	if text == "" {
		return
	}
	var secrets event.Redactor // a script may have written to the console
	secrets.Add(k.tpl.Secrets...)
	path := filepath.Join(k.env.State.Logs(), k.tpl.Name+"-"+id+"-console.log")
	if err := atomicfile.Write(path, []byte(secrets.Clean(text)), 0o600); err != nil {
		event.Warnf(ctx, "the console of %s is not kept: %v", id, err)
	}
}
