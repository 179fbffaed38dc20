package statement

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// Envelope is DSSE's: bytes of a type, and signatures over both.
// https://github.com/secure-systems-lab/dsse/blob/master/envelope.md
type Envelope struct {
	Payload     Base64 `json:"payload"`
	PayloadType string `json:"payloadType"`
	Signatures  []Sig  `json:"signatures"`
}

// Sig is one signature. KeyID is a hint that nothing is decided by.
type Sig struct {
	Sig   Base64 `json:"sig"`
	KeyID string `json:"keyid,omitempty"`
}

// Base64 is written in the standard alphabet with padding. The URL-safe one is
// read too, as DSSE wants; anything else, and bits that mean nothing, are refused.
type Base64 []byte

// MarshalText implements encoding.TextMarshaler.
func (b Base64) MarshalText() ([]byte, error) {
	return []byte(base64.StdEncoding.EncodeToString(b)), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *Base64) UnmarshalText(text []byte) error {
	raw, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil {
		if raw, err = base64.URLEncoding.Strict().DecodeString(string(text)); err != nil {
			return errors.New("not base64")
		}
	}
	*b = raw
	return nil
}

// PAE is what is signed: DSSE's pre-authentication encoding. Lengths are in it,
// so that no other type and payload come to the same bytes.
func PAE(payloadType string, payload []byte) []byte {
	b := []byte("DSSEv1 " + strconv.Itoa(len(payloadType)) + " " + payloadType + " " + strconv.Itoa(len(payload)) + " ")
	return append(b, payload...)
}

// maxSignatures bounds the work that an envelope can ask for.
const maxSignatures = 16

// Seal signs a payload.
func Seal(payloadType string, payload []byte, k *Key) (Envelope, error) {
	sig, err := k.sign(PAE(payloadType, payload))
	if err != nil {
		return Envelope{}, err
	}
	return Envelope{Payload: payload, PayloadType: payloadType, Signatures: []Sig{{Sig: sig}}}, nil
}

// Open returns the payload if one of the keys signed it, and which. ErrSigner if
// none did. The payload of an envelope means nothing before that.
func (e Envelope) Open(payloadType string, keys ...Public) ([]byte, Public, error) {
	switch {
	case e.PayloadType != payloadType:
		return nil, Public{}, fmt.Errorf("the envelope holds %.100q, not %s", e.PayloadType, payloadType)
	case len(e.Signatures) == 0:
		return nil, Public{}, fmt.Errorf("%w: the envelope has no signature", ErrSigner)
	case len(e.Signatures) > maxSignatures:
		return nil, Public{}, fmt.Errorf("the envelope has %d signatures, more than %d", len(e.Signatures), maxSignatures)
	}
	signed := PAE(e.PayloadType, e.Payload)
	for _, k := range keys {
		for _, s := range e.Signatures {
			if k.verify(signed, s.Sig) {
				return e.Payload, k, nil
			}
		}
	}
	return nil, Public{}, ErrSigner
}

// ErrSigner says that none of the keys made a signature.
var ErrSigner = errors.New("signed by another key, or not at all")

// Bundle is sigstore's, version 0.3, of an envelope that a key of ours signed:
// no certificate, no transparency log.
// https://github.com/sigstore/protobuf-specs/blob/main/protos/sigstore_bundle.proto
type Bundle struct {
	MediaType            string               `json:"mediaType"`
	VerificationMaterial VerificationMaterial `json:"verificationMaterial"`
	DSSE                 *Envelope            `json:"dsseEnvelope,omitempty"`
}

// VerificationMaterial says which key signed: a hint.
type VerificationMaterial struct {
	PublicKey *struct {
		Hint string `json:"hint"`
	} `json:"publicKey,omitempty"`
	Tlog []json.RawMessage `json:"tlogEntries,omitempty"`
}

// Sign makes a statement into a bundle.
func Sign(s Statement, k *Key) ([]byte, error) {
	e, err := Seal(Media, s.Bytes(), k)
	if err != nil {
		return nil, err
	}
	b := Bundle{MediaType: BundleMedia, DSSE: &e}
	b.VerificationMaterial.PublicKey = &struct {
		Hint string `json:"hint"`
	}{k.Public().Hint()}
	return json.Marshal(b)
}

// Read reads a bundle, whoever signed it, and the statement in it, which means
// nothing yet.
func Read(raw []byte) (Bundle, Statement, error) {
	var b Bundle
	if err := decode(raw, &b); err != nil {
		return b, Statement{}, fmt.Errorf("no sigstore bundle: %w", err)
	}
	if b.MediaType != BundleMedia {
		return b, Statement{}, fmt.Errorf("no sigstore bundle of version 0.3: its mediaType is %.100q", b.MediaType)
	}
	if b.DSSE == nil {
		return b, Statement{}, errors.New("the bundle holds no DSSE envelope")
	}
	if b.DSSE.PayloadType != Media {
		return b, Statement{}, fmt.Errorf("the bundle's envelope holds %.100q, not %s", b.DSSE.PayloadType, Media)
	}
	s, err := Parse(b.DSSE.Payload)
	return b, s, err
}

// Hint is the bundle's claim of the key, "" if it makes none.
func (b Bundle) Hint() string {
	if b.VerificationMaterial.PublicKey == nil {
		return ""
	}
	return b.VerificationMaterial.PublicKey.Hint
}

// Verify reads a bundle and returns its statement if one of the keys signed it,
// and which. ErrSigner if none did.
func Verify(raw []byte, keys ...Public) (Statement, Public, error) {
	b, _, err := Read(raw)
	if err != nil {
		return Statement{}, Public{}, err
	}
	payload, by, err := b.DSSE.Open(Media, keys...)
	if err != nil {
		return Statement{}, Public{}, err
	}
	s, err := Parse(payload)
	return s, by, err
}
