package pipeline

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

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
	way, err := k.wayIn(ctx, id, mach, g)
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

// wayIn gives a person a key of their own and tells the command to use it. Its
// files go with the machine's directory.
func (k *bake) wayIn(ctx context.Context, id string, mach builder.Machine, g provisioner.Guest) (string, error) {
	if g == nil {
		return "", errors.New("the machine does not accept SSH")
	}
	ep, err := mach.Endpoint(ctx)
	if err != nil {
		return "", err
	}
	host, port, err := net.SplitHostPort(ep.Addr)
	if err != nil {
		return "", err
	}
	key, err := ssh.NewKey()
	if err != nil {
		return "", err
	}
	err = g.Run(ctx, provisioner.Cmd{
		Line:  `umask 077; mkdir -p "$HOME/.ssh" && cat >>"$HOME/.ssh/authorized_keys"`,
		Stdin: strings.NewReader(key.Authorized + "\n"),
	})
	if err != nil {
		return "", fmt.Errorf("add a key: %w", err)
	}
	var known strings.Builder
	for _, h := range ep.HostKeys {
		fmt.Fprintln(&known, knownhosts.Line([]string{ep.Addr}, h))
	}
	dir := k.env.State.Build(id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	keyFile, knownFile := filepath.Join(dir, "ssh.key"), filepath.Join(dir, "known_hosts")
	if err := errors.Join(atomicfile.Write(keyFile, key.PEM, 0o600), atomicfile.Write(knownFile, []byte(known.String()), 0o600)); err != nil {
		return "", err
	}
	return fmt.Sprintf("ssh -i %s -o IdentitiesOnly=yes -o UserKnownHostsFile=%s -p %s %s@%s",
		provisioner.Quote(keyFile), provisioner.Quote(knownFile), port, ep.User, host), nil
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
