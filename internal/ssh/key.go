// Package ssh is the way into a guest. Dial waits until a guest that is still
// booting answers with its pinned host key; the Client it returns implements
// provisioner.Guest over that one connection: commands whose environment never
// meets a process list and which die when their context does, uploads that
// stream, a reconnect after a reboot.
//
// Nothing here trusts a host key on first use, and there is no way to make it.
package ssh

import (
	"bytes"
	"fmt"

	"github.com/hashicorp/packer-plugin-sdk/communicator/sshkey"
	"golang.org/x/crypto/ssh"
)

// Key is a fresh ed25519 key pair: a build's own key, or the host key that a
// guest is seeded with.
type Key struct {
	Signer     ssh.Signer
	Authorized string // the public half as a line of authorized_keys, no newline
	PEM        []byte // the private half as OpenSSH writes it
}

// comment marks every line that rebake puts into an authorized_keys file.
const comment = "rebake"

// NewKey makes a key pair.
func NewKey() (Key, error) {
	pair, err := sshkey.GeneratePair(sshkey.ED25519, nil, 0)
	if err != nil {
		return Key{}, fmt.Errorf("generate a key pair: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(pair.Private)
	if err != nil {
		return Key{}, fmt.Errorf("read the generated key: %w", err)
	}
	return Key{Signer: signer, Authorized: AuthorizedLine(signer.PublicKey()), PEM: pair.Private}, nil
}

// ParseKey reads a private key as NewKey's PEM has it.
func ParseKey(pem []byte) (Key, error) {
	signer, err := ssh.ParsePrivateKey(pem)
	if err != nil {
		return Key{}, fmt.Errorf("read the private key: %w", err)
	}
	return Key{Signer: signer, Authorized: AuthorizedLine(signer.PublicKey()), PEM: pem}, nil
}

// AuthorizedLine is a public key as rebake writes it into authorized_keys.
func AuthorizedLine(k ssh.PublicKey) string {
	return string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(k))) + " " + comment
}

// ParseAuthorized reads a public key from a line as AuthorizedLine makes it.
func ParseAuthorized(line string) (ssh.PublicKey, error) {
	k, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	return k, err
}
