package qemu

import (
	"context"
	"errors"
	"fmt"
	"github.com/rebake/rebake/internal/atomicfile"
	"os"
	"path/filepath"
	"strings"

	xssh "golang.org/x/crypto/ssh"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/internal/ssh"
)

const (
	keyName     = "ssh.key"  // of the fleet
	hostKeyName = "host.key" // of an instance: seeded, so that it can be pinned
)

// Door tells how to log in to a running instance over SSH, its host key pinned.
func (p *Pool) Door(ctx context.Context, inst string) (ssh.Target, error) {
	groups, err := p.Groups(ctx, p.name)
	if err != nil {
		return ssh.Target{}, err
	}
	for _, g := range groups {
		for _, in := range g.Instances {
			if in.ID != inst {
				continue
			}
			if !in.Running {
				return ssh.Target{}, fmt.Errorf("instance %s does not run: see `rebake fleet logs %s %s`", inst, p.name, inst)
			}
			rec, err := readGroup(groupFile(p.deps.State.Fleet(p.name), g.ID))
			if err != nil {
				return ssh.Target{}, err
			}
			key, err := readIdentity(filepath.Join(p.deps.State.Fleet(p.name), keyName))
			if err != nil {
				return ssh.Target{}, err
			}
			host, err := readIdentity(filepath.Join(p.dir(p.name, inst), hostKeyName))
			if err != nil {
				return ssh.Target{}, err
			}
			user := rec.Spec.Image.User
			if user == "" {
				user = "root"
			}
			return ssh.Target{Addr: in.Ports[22], User: user, Signer: key.signer, HostKeys: []xssh.PublicKey{host.signer.PublicKey()}}, nil
		}
	}
	return ssh.Target{}, fmt.Errorf("fleet %s has no instance %q: `rebake fleet status %s` lists them", p.name, inst, p.name)
}

// Logs returns the last n bytes of an instance's console.
func (p *Pool) Logs(_ context.Context, inst string, n int) (string, error) {
	if !strings.HasPrefix(inst, p.name+"-") || strings.ContainsAny(inst, "/\x00") {
		return "", fmt.Errorf("fleet %s has no instance %q", p.name, inst)
	}
	text, err := p.vms.console(p.dir(p.name, inst), n)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("fleet %s has no instance %q: `rebake fleet status %s` lists them", p.name, inst, p.name)
	}
	return text, err
}

// evidenceBytes of each console are kept when an image is refused.
const evidenceBytes = 4 << 10

// Evidence returns the ends of the consoles of a group's instances, for the
// record of why an image was refused.
func (p *Pool) Evidence(ctx context.Context, id fleet.GroupID) (string, error) {
	if err := p.check(id); err != nil {
		return "", err
	}
	ids, err := p.instances(id)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, inst := range ids {
		text, err := p.Logs(ctx, inst, evidenceBytes)
		if err != nil {
			text = "(" + err.Error() + ")"
		}
		fmt.Fprintf(&b, "console of %s:\n%s\n", inst, strings.TrimSpace(text))
	}
	return b.String(), nil
}

// identity is an ed25519 key pair in a file that only its owner can read.
type identity struct {
	signer xssh.Signer
	pem    []byte
}

func (k identity) authorized() string { return ssh.AuthorizedLine(k.signer.PublicKey()) }

// key is the fleet's own, made at its first use.
func (p *Pool) key() (identity, error) {
	path := filepath.Join(p.deps.State.Fleet(p.name), keyName)
	k, err := readIdentity(path)
	if errors.Is(err, os.ErrNotExist) {
		return newIdentity(path)
	}
	return k, err
}

func newIdentity(path string) (identity, error) {
	k, err := ssh.NewKey()
	if err != nil {
		return identity{}, err
	}
	return identity{k.Signer, k.PEM}, atomicfile.Write(path, k.PEM, 0o600)
}

func readIdentity(path string) (identity, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return identity{}, err
	}
	signer, err := xssh.ParsePrivateKey(data)
	if err != nil {
		return identity{}, fmt.Errorf("read %s: %w", path, err)
	}
	return identity{signer, data}, nil
}
