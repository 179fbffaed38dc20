package statement

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// Types of keys.
const (
	Ed25519   = "ed25519"
	ECDSAP256 = "ecdsa-p256"
)

// Types lists them, the default first. ECDSA is what cosign makes itself, and
// what every release of it reads.
func Types() []string { return []string{ECDSAP256, Ed25519} }

// Key is a private key.
type Key struct{ signer crypto.Signer }

// Public is a public key, with the name that a person gave it or "".
type Public struct {
	Name string
	key  crypto.PublicKey
	der  []byte
}

// Generate makes a key.
func Generate(kind string) (*Key, error) {
	switch kind {
	case Ed25519:
		_, k, err := ed25519.GenerateKey(rand.Reader)
		return &Key{k}, err
	case ECDSAP256:
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		return &Key{k}, err
	}
	return nil, fmt.Errorf("%.50q is no type of key: use %s", kind, strings.Join(Types(), " or "))
}

// PEM is the key as PKCS #8, not encrypted.
func (k *Key) PEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.signer)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Public is the key's other half.
func (k *Key) Public() Public {
	p, err := public(k.signer.Public())
	if err != nil {
		panic(err) // it is one of the two types
	}
	return p
}

// sign signs a message: ed25519 the message itself, ECDSA its sha256, as ASN.1.
func (k *Key) sign(message []byte) ([]byte, error) {
	if _, pure := k.signer.(ed25519.PrivateKey); pure {
		return k.signer.Sign(rand.Reader, message, crypto.Hash(0))
	}
	sum := sha256.Sum256(message)
	return k.signer.Sign(rand.Reader, sum[:], crypto.SHA256)
}

// maxPEM bounds a key file.
const maxPEM = 64 << 10

func block(b []byte, what string) (*pem.Block, error) {
	if len(b) > maxPEM {
		return nil, fmt.Errorf("a key file of %d bytes is none", len(b))
	}
	p, rest := pem.Decode(b)
	switch {
	case p == nil:
		return nil, errors.New("no key in PEM form")
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, errors.New("more than one key: give each a file of its own")
	case strings.Contains(p.Type, "ENCRYPTED") || p.Headers["DEK-Info"] != "":
		return nil, fmt.Errorf("an encrypted key (%s) cannot be used: `rebake key generate NAME` makes one, `openssl pkcs8 -topk8 -nocrypt` decrypts PKCS #8", p.Type)
	case p.Type != what:
		return nil, fmt.Errorf("a %.40q where a %q is needed", p.Type, what)
	}
	return p, nil
}

// ParseKey reads a private key: PKCS #8 in PEM, of one of the types.
func ParseKey(b []byte) (*Key, error) {
	p, err := block(b, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(p.Bytes)
	if err != nil {
		return nil, errors.New("no private key of PKCS #8") // the cause might quote it
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T: use %s", k, strings.Join(Types(), " or "))
	}
	_, err = public(s.Public())
	return &Key{s}, err
}

// ParsePublic reads a public key: PKIX in PEM, of one of the types.
func ParsePublic(name string, b []byte) (Public, error) {
	p, err := block(b, "PUBLIC KEY")
	if err != nil {
		return Public{}, err
	}
	k, err := x509.ParsePKIXPublicKey(p.Bytes)
	if err != nil {
		return Public{}, fmt.Errorf("no public key: %w", err)
	}
	out, err := public(k)
	out.Name = name
	return out, err
}

func public(k crypto.PublicKey) (Public, error) {
	switch t := k.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if t.Curve != elliptic.P256() {
			return Public{}, fmt.Errorf("an ECDSA key on curve %s: use P-256", t.Curve.Params().Name)
		}
	default:
		return Public{}, fmt.Errorf("a key of type %T: use %s", k, strings.Join(Types(), " or "))
	}
	der, err := x509.MarshalPKIXPublicKey(k)
	return Public{key: k, der: der}, err
}

// Type is one of Types.
func (p Public) Type() string {
	if _, ok := p.key.(ed25519.PublicKey); ok {
		return Ed25519
	}
	return ECDSAP256
}

// PEM is the key as others read it.
func (p Public) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: p.der})
}

// Hint tells keys apart: base64 of the sha256 of the DER form, as sigstore's.
func (p Public) Hint() string {
	sum := sha256.Sum256(p.der)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// ID is the same digest in hex.
func (p Public) ID() string {
	sum := sha256.Sum256(p.der)
	return hex.EncodeToString(sum[:])
}

// Same says whether two are one key.
func (p Public) Same(q Public) bool { return bytes.Equal(p.der, q.der) && len(p.der) > 0 }

// String is what a person calls the key.
func (p Public) String() string {
	if len(p.der) == 0 {
		return "no key"
	}
	id := p.ID()[:12]
	if p.Name == "" {
		return "key " + id
	}
	return "key " + p.Name + " (" + id + ")"
}

// verify says whether the key made the signature. The key decides how, never
// the envelope: a signature cannot choose its own algorithm.
func (p Public) verify(message, sig []byte) bool {
	switch k := p.key.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(k, message, sig)
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(message)
		return ecdsa.VerifyASN1(k, sum[:], sig)
	}
	return false
}
