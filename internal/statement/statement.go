// Package statement makes and reads what is said about an image in the forms
// that other tools read too: in-toto Statement v1 (statement.go) with the
// predicates of SLSA provenance v1 and of test results (predicates.go), signed as
// DSSE envelopes (dsse.go) in sigstore bundles v0.3 (bundle.go) with keys that
// are PEM files (key.go). Nothing here touches a store or a network.
package statement

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/rebake/rebake/artifact"
)

// Kinds of attachments, and media types of their bytes.
const (
	// Media is that of a statement that nobody signed; its attachment has
	// NotePredicate as an annotation.
	Media = "application/vnd.in-toto+json"
	// BundleMedia is that of a signed one.
	BundleMedia = "application/vnd.dev.sigstore.bundle.v0.3+json"

	NotePredicate = "in-toto.io/predicate-type" // on a statement

	// On a bundle, as cosign writes them.
	NoteContent         = "dev.sigstore.bundle.content"
	NoteBundlePredicate = "dev.sigstore.bundle.predicateType"
	ContentDSSE         = "dsse-envelope"
)

// Types of statements and predicates.
const (
	Type       = "https://in-toto.io/Statement/v1"
	Provenance = "https://slsa.dev/provenance/v1"
	TestResult = "https://in-toto.io/attestation/test-result/v0.1"
	// Signature says nothing but that the signer stands for the image: what
	// `cosign sign` writes and `cosign verify` looks for.
	Signature = "https://sigstore.dev/cosign/sign/v1"
)

// MaxBytes bounds a statement or a bundle that is read.
const MaxBytes = 16 << 20

// maxSubjects bounds the subjects of a statement that is read.
const maxSubjects = 1000

// Statement is in-toto's: what Predicate says of each Subject.
// https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
type Statement struct {
	Type          string          `json:"_type"`
	Subject       []Subject       `json:"subject"`
	PredicateType string          `json:"predicateType"`
	Predicate     json.RawMessage `json:"predicate,omitempty"`
}

// Subject is an artifact by its digests: algorithm to lower-case hex.
type Subject struct {
	Name   string            `json:"name,omitempty"`
	Digest map[string]string `json:"digest"`
}

// New says predicate of the image whose manifest has the digest.
func New(name string, manifest artifact.Digest, predicateType string, predicate any) (Statement, error) {
	if err := manifest.Validate(); err != nil {
		return Statement{}, err
	}
	raw, err := json.Marshal(predicate)
	if err != nil {
		return Statement{}, fmt.Errorf("write a %s statement: %w", predicateType, err)
	}
	return Statement{Type: Type, Subject: []Subject{{name, map[string]string{"sha256": manifest.Hex()}}}, PredicateType: predicateType, Predicate: raw}, nil
}

// Bytes is the statement as it is stored and signed.
func (s Statement) Bytes() []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // Predicate was marshalled or unmarshalled before
	}
	return b
}

// Parse reads a statement. Keys that it does not know are passed over, as
// in-toto wants; a key that is there twice is refused, because readers differ
// in which of them they believe.
func Parse(b []byte) (Statement, error) {
	var s Statement
	if err := decode(b, &s); err != nil {
		return s, fmt.Errorf("no in-toto statement: %w", err)
	}
	switch {
	case s.Type != Type:
		return s, fmt.Errorf("no in-toto statement of version 1: its _type is %.100q", s.Type)
	case len(s.Subject) == 0:
		return s, errors.New("the statement has no subject")
	case len(s.Subject) > maxSubjects:
		return s, fmt.Errorf("the statement has %d subjects, more than %d", len(s.Subject), maxSubjects)
	case s.PredicateType == "":
		return s, errors.New("the statement has no predicateType")
	}
	return s, nil
}

// About says whether the image with that manifest digest is a subject.
func (s Statement) About(manifest artifact.Digest) bool {
	if manifest.Validate() != nil {
		return false
	}
	for _, sub := range s.Subject {
		if sub.Digest["sha256"] == manifest.Hex() {
			return true
		}
	}
	return false
}

// decode reads one JSON value, within bounds, without trailing bytes and without
// a key that is there twice.
func decode(b []byte, into any) error {
	if len(b) > MaxBytes {
		return fmt.Errorf("%d bytes are more than %d", len(b), MaxBytes)
	}
	if err := once(b); err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// maxDepth bounds how deep JSON that is read may be nested.
const maxDepth = 100

// once refuses JSON in which an object has a key twice. Keys that differ in case
// alone count as the same: encoding/json would take either.
func once(b []byte) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	type object struct {
		keys map[string]bool // nil: an array
		key  bool            // a key comes next
	}
	var open []object
	for {
		t, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		top := len(open) - 1
		if top >= 0 && open[top].key {
			if k, ok := t.(string); ok {
				k = string(bytes.ToLower([]byte(k)))
				if open[top].keys[k] {
					return fmt.Errorf("key %.100q is there twice", k)
				}
				open[top].keys[k], open[top].key = true, false
				continue
			}
		}
		switch t {
		case json.Delim('{'):
			open = append(open, object{map[string]bool{}, true})
		case json.Delim('['):
			open = append(open, object{})
		case json.Delim('}'), json.Delim(']'):
			open = open[:top]
			if top--; top >= 0 {
				open[top].key = open[top].keys != nil
			}
			continue
		default:
			if top >= 0 {
				open[top].key = open[top].keys != nil
			}
			continue
		}
		if len(open) > maxDepth {
			return fmt.Errorf("nested more than %d deep", maxDepth)
		}
	}
}
