package require_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/require"
	"github.com/rebake/rebake/internal/statement"
	"github.com/rebake/rebake/test/fake"
)

var (
	now   = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	image = func() artifact.Image {
		img, _, err := stored()
		if err != nil {
			panic(err)
		}
		return img
	}()
)

// stored is a store with the one image.
func stored() (img artifact.Image, s *fake.Store, err error) {
	s = new(fake.Store)
	f, err := os.CreateTemp("", "disk-*")
	if err != nil {
		return img, s, err
	}
	defer os.Remove(f.Name())
	if err := errors.Join(f.Truncate(1<<16), f.Close()); err != nil {
		return img, s, err
	}
	d, err := artifact.FileDisk(f.Name())
	if err != nil {
		return img, s, err
	}
	defer d.Close()
	content, _, err := s.Write(context.Background(), d, nil)
	if err != nil {
		return img, s, err
	}
	img, err = s.Register(context.Background(), artifact.Image{Name: "web", Version: "1.0.0", Created: now.Add(-48 * time.Hour), Content: content})
	return img, s, err
}

type world struct {
	t     *testing.T
	store *fake.Store
	parts require.Parts
}

func newWorld(t *testing.T) *world {
	_, s, err := stored()
	if err != nil {
		t.Fatal(err)
	}
	return &world{t, s, require.Parts{Store: s, Now: func() time.Time { return now },
		Revoked: func(context.Context, artifact.Image) (string, error) { return "", nil },
		Bytes:   func(context.Context, artifact.Image) error { return nil }}}
}

func key(t *testing.T, kind string) *statement.Key {
	k, err := statement.Generate(kind)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func signer(name string, k *statement.Key) require.Signer {
	return require.Signer{Name: name, PEM: string(k.Public().PEM())}
}

// attach says something of the image, signed if there is a key.
func (w *world) attach(about artifact.Digest, predicate string, body any, k *statement.Key) {
	w.t.Helper()
	s, err := statement.New("web:1.0.0", about, predicate, body)
	if err != nil {
		w.t.Fatal(err)
	}
	raw, media := s.Bytes(), statement.Media
	if k != nil {
		media = statement.BundleMedia
		if raw, err = statement.Sign(s, k); err != nil {
			w.t.Fatal(err)
		}
	}
	w.raw(media, raw)
}

func (w *world) raw(media string, raw []byte) {
	w.t.Helper()
	if _, err := w.store.Attach(w.t.Context(), image.Digest, artifact.Attachment{Kind: media, Media: media, Created: now}, raw); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) check(r require.Rules) string {
	w.t.Helper()
	found, err := require.Check(w.t.Context(), w.parts, image, r)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := require.Refused(image, found); err != nil {
		return err.Error()
	}
	return ""
}

var (
	passed = statement.Tested{Result: statement.Passed, PassedTests: []string{"boots"}}
	failed = statement.Tested{Result: statement.Failed, FailedTests: []string{"http /"}}
	built  = statement.Provenanced{BuildDefinition: statement.BuildDefinition{BuildType: statement.BuildType},
		RunDetails: statement.RunDetails{Builder: statement.Builder{ID: "here"}, Metadata: statement.Metadata{InvocationID: "01ABC"}}}
)

// Each thing that is missing has words of its own.
func TestEachRefusal(t *testing.T) {
	ours, other := key(t, statement.Ed25519), key(t, statement.ECDSAP256)
	by := []require.Signer{signer("release", ours)}
	for name, c := range map[string]struct {
		rules require.Rules
		have  func(w *world)
		want  string // "" may run
	}{
		"nothing asked": {require.Rules{}, func(*world) {}, ""},
		"unsigned":      {require.Rules{SignedBy: by}, func(*world) {}, "unsigned: it carries no signature, and one by key release"},
		"signed":        {require.Rules{SignedBy: by}, func(w *world) { w.attach(image.Digest, statement.Signature, struct{}{}, ours) }, ""},
		"signed by both": {require.Rules{SignedBy: by}, func(w *world) {
			w.attach(image.Digest, statement.Signature, struct{}{}, other)
			w.attach(image.Digest, statement.Signature, struct{}{}, ours)
		}, ""},
		"another key": {require.Rules{SignedBy: by}, func(w *world) { w.attach(image.Digest, statement.Signature, struct{}{}, other) }, "signed by another key: 1 signatures of keys"},
		"another image": {require.Rules{SignedBy: by}, func(w *world) {
			w.attach("sha256:"+artifact.Digest(strings.Repeat("0", 64)), statement.Signature, struct{}{}, ours)
		}, "unsigned: it carries no signature"},
		"only its tests signed": {require.Rules{SignedBy: by}, func(w *world) { w.attach(image.Digest, statement.TestResult, passed, ours) }, "but no signature of the image"},
		"rubbish":               {require.Rules{SignedBy: by}, func(w *world) { w.raw(statement.BundleMedia, []byte("{")) }, "1 attachments cannot be read"},
		"untested":              {require.Rules{Tests: true}, func(*world) {}, "untested: no test result"},
		"tested":                {require.Rules{Tests: true}, func(w *world) { w.attach(image.Digest, statement.TestResult, passed, nil) }, ""},
		"tests failed":          {require.Rules{Tests: true}, func(w *world) { w.attach(image.Digest, statement.TestResult, failed, nil) }, "tests failed: http /"},
		"passed and failed": {require.Rules{Tests: true}, func(w *world) {
			w.attach(image.Digest, statement.TestResult, passed, nil)
			w.attach(image.Digest, statement.TestResult, failed, nil)
		}, "tests failed"},
		"tests nobody stands for": {require.Rules{SignedBy: by, Tests: true}, func(w *world) {
			w.attach(image.Digest, statement.Signature, struct{}{}, ours)
			w.attach(image.Digest, statement.TestResult, passed, nil)
			w.attach(image.Digest, statement.TestResult, passed, other)
		}, "untested"},
		"tests of another image": {require.Rules{Tests: true}, func(w *world) {
			w.attach("sha256:"+artifact.Digest(strings.Repeat("0", 64)), statement.TestResult, passed, nil)
		}, "untested"},
		"a signature is no test": {require.Rules{Tests: true}, func(w *world) { w.attach(image.Digest, statement.Signature, struct{}{}, ours) }, "untested"},
		"no SBOM":                {require.Rules{SBOM: true}, func(*world) {}, "without SBOM"},
		"SBOM as it is":          {require.Rules{SBOM: true}, func(w *world) { w.raw("application/spdx+json", []byte("{}")) }, ""},
		"SBOM not signed": {require.Rules{SBOM: true, SignedBy: by}, func(w *world) {
			w.attach(image.Digest, statement.Signature, struct{}{}, ours)
			w.raw("application/spdx+json", []byte("{}"))
		}, "without SBOM"},
		"SBOM signed": {require.Rules{SBOM: true, SignedBy: by}, func(w *world) {
			w.attach(image.Digest, statement.Signature, struct{}{}, ours)
			w.attach(image.Digest, require.PredicateOf("application/vnd.cyclonedx+json"), struct{}{}, ours)
		}, ""},
		"no provenance":    {require.Rules{Provenance: true}, func(*world) {}, "without provenance"},
		"provenance":       {require.Rules{Provenance: true}, func(w *world) { w.attach(image.Digest, statement.Provenance, built, nil) }, ""},
		"empty provenance": {require.Rules{Provenance: true}, func(w *world) { w.attach(image.Digest, statement.Provenance, struct{}{}, nil) }, "does not say what built"},
		"revoked": {require.Rules{NotRevoked: true}, func(w *world) {
			w.parts.Revoked = func(context.Context, artifact.Image) (string, error) { return "CVE-2026-1 in base:1", nil }
		}, "revoked: CVE-2026-1 in base:1"},
		"not revoked": {require.Rules{NotRevoked: true}, func(*world) {}, ""},
		"too old":     {require.Rules{MaxAge: 24 * time.Hour}, func(*world) {}, "too old: made 48h0m0s ago, at most 24h0m0s"},
		"young":       {require.Rules{MaxAge: 72 * time.Hour}, func(*world) {}, ""},
		"no channel":  {require.Rules{Channel: "stable"}, func(*world) {}, "not in channel stable: web:stable points at nothing"},
		"tampered": {require.Rules{}, func(w *world) {
			w.parts.Bytes = func(context.Context, artifact.Image) error { return fmt.Errorf("%w: chunk 7", artifact.ErrCorrupt) }
		}, "tampered: "},
	} {
		w := newWorld(t)
		c.have(w)
		got := w.check(c.rules)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestAllThatIsMissingIsSaid(t *testing.T) {
	w := newWorld(t)
	got := w.check(require.Rules{SignedBy: []require.Signer{signer("release", key(t, statement.Ed25519))}, Tests: true, SBOM: true, Provenance: true, MaxAge: time.Hour, Channel: "stable"})
	lines := strings.Split(got, "\n")
	if len(lines) != 7 || lines[0] != "web:1.0.0 may not run here" {
		t.Errorf("%d lines:\n%s", len(lines), got)
	}
}

// What cannot be told is an error, and never a pass.
func TestTrouble(t *testing.T) {
	for name, f := range map[string]func(*world, *require.Rules){
		"revocation": func(w *world, _ *require.Rules) { w.parts.Revoked = nil },
		"revocation's": func(w *world, _ *require.Rules) {
			w.parts.Revoked = func(context.Context, artifact.Image) (string, error) { return "", errors.New("offline") }
		},
		"bytes": func(w *world, _ *require.Rules) {
			w.parts.Bytes = func(context.Context, artifact.Image) error { return errors.New("I/O") }
		},
		"a broken key": func(_ *world, r *require.Rules) { r.SignedBy = []require.Signer{{Name: "x", PEM: "x"}} },
		"too many said": func(w *world, _ *require.Rules) {
			for i := range 1001 {
				w.raw("text/plain", fmt.Append(nil, i))
			}
		},
	} {
		w, r := newWorld(t), require.Rules{NotRevoked: true}
		f(w, &r)
		if found, err := require.Check(t.Context(), w.parts, image, r); err == nil {
			t.Errorf("%s: %v", name, found)
		}
	}
}
