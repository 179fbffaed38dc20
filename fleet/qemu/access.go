package qemu

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/rebake/rebake/fleet"
)

const (
	keyName     = "ssh.key"  // of the fleet
	hostKeyName = "host.key" // of an instance: seeded, so that it can be pinned
)

// Endpoint is the way into an instance. Data only: the caller dials.
type Endpoint struct {
	Addr     string // host:port of sshd
	User     string
	Signer   ssh.Signer
	HostKeys []ssh.PublicKey // pinned, never empty
	Ports    map[int]string  // guest port → host:port
}

// Endpoint tells how to reach a running instance over SSH.
func (p *Pool) Endpoint(ctx context.Context, inst string) (Endpoint, error) {
	groups, err := p.Groups(ctx, p.name)
	if err != nil {
		return Endpoint{}, err
	}
	for _, g := range groups {
		for _, in := range g.Instances {
			if in.ID != inst {
				continue
			}
			if !in.Running {
				return Endpoint{}, fmt.Errorf("instance %s does not run: see `rebake fleet logs %s %s`", inst, p.name, inst)
			}
			rec, err := readGroup(groupFile(p.deps.State.Fleet(p.name), g.ID))
			if err != nil {
				return Endpoint{}, err
			}
			key, err := readIdentity(filepath.Join(p.deps.State.Fleet(p.name), keyName))
			if err != nil {
				return Endpoint{}, err
			}
			host, err := readIdentity(filepath.Join(p.dir(p.name, inst), hostKeyName))
			if err != nil {
				return Endpoint{}, err
			}
			user := rec.Spec.Image.User
			if user == "" {
				user = "root"
			}
			return Endpoint{Addr: in.Ports[22], User: user, Signer: key.signer, HostKeys: []ssh.PublicKey{host.signer.PublicKey()}, Ports: in.Ports}, nil
		}
	}
	return Endpoint{}, fmt.Errorf("fleet %s has no instance %q: `rebake fleet status %s` lists them", p.name, inst, p.name)
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
	signer ssh.Signer
	pem    []byte
}

func (k identity) authorized() string {
	return string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(k.signer.PublicKey()))) + " rebake-fleet"
}

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
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return identity{}, fmt.Errorf("generate a key pair: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "rebake")
	if err != nil {
		return identity{}, fmt.Errorf("generate a key pair: %w", err)
	}
	if err := writeFile(path, pem.EncodeToMemory(block)); err != nil {
		return identity{}, err
	}
	return readIdentity(path)
}

func readIdentity(path string) (identity, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return identity{}, err
	}
	signer, err := ssh.ParsePrivateKey(data)
	if err != nil {
		return identity{}, fmt.Errorf("read %s: %w", path, err)
	}
	return identity{signer, data}, nil
}
