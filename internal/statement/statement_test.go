package statement_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/statement"
)

const image = artifact.Digest("sha256:" + "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")

func newKey(t testing.TB, kind string) *statement.Key {
	t.Helper()
	k, err := statement.Generate(kind)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newStatement(t testing.TB) statement.Statement {
	t.Helper()
	tested, ok := statement.Test([]artifact.TestResult{{Name: "boots", Passed: true}, {Name: "http", Passed: true}}, statement.Of("web.yaml", image))
	if !ok {
		t.Fatal("two results are no test")
	}
	s, err := statement.New("web:1.0.0", image, statement.TestResult, tested)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func signed(t testing.TB, k *statement.Key) []byte {
	t.Helper()
	raw, err := statement.Sign(newStatement(t), k)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestRoundTrip(t *testing.T) {
	for _, kind := range statement.Types() {
		t.Run(kind, func(t *testing.T) {
			k := newKey(t, kind)
			text, err := k.PEM()
			if err != nil {
				t.Fatal(err)
			}
			again, err := statement.ParseKey(text)
			if err != nil {
				t.Fatal(err)
			}
			pub, err := statement.ParsePublic("ours", k.Public().PEM())
			if err != nil || !pub.Same(again.Public()) || pub.Type() != kind {
				t.Fatalf("%v, %v", pub, err)
			}
			s, by, err := statement.Verify(signed(t, again), newKey(t, kind).Public(), pub)
			if err != nil || by.Name != "ours" {
				t.Fatalf("%v, %v", by, err)
			}
			if !s.About(image) || s.About("sha256:"+artifact.Digest(strings.Repeat("0", 64))) {
				t.Error("the subject is another")
			}
			if r, err := s.Tests(); err != nil || r.Result != statement.Passed || len(r.PassedTests) != 2 {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

// A key of the wrong kind, or another of the same, never verifies; two signers
// are told apart.
func TestOtherKeys(t *testing.T) {
	for _, kind := range statement.Types() {
		raw := signed(t, newKey(t, kind))
		for _, other := range statement.Types() {
			if _, _, err := statement.Verify(raw, newKey(t, other).Public()); !errors.Is(err, statement.ErrSigner) {
				t.Errorf("signed with %s, verified with another %s: %v", kind, other, err)
			}
		}
		if _, _, err := statement.Verify(raw); !errors.Is(err, statement.ErrSigner) {
			t.Errorf("verified without a key: %v", err)
		}
	}
	a, b := newKey(t, statement.Ed25519), newKey(t, statement.ECDSAP256)
	for _, k := range []*statement.Key{a, b} {
		if _, by, err := statement.Verify(signed(t, k), a.Public(), b.Public()); err != nil || !by.Same(k.Public()) {
			t.Errorf("by %v: %v", by, err)
		}
	}
}

// Every byte of a bundle that is changed makes it void, but for what is no part
// of what was signed: the hint, and JSON's own freedoms.
func TestTampering(t *testing.T) {
	for _, kind := range statement.Types() {
		k := newKey(t, kind)
		raw := signed(t, k)
		want := string(newStatement(t).Bytes())
		for i := range raw {
			for _, to := range []byte{raw[i] ^ 1, 'A', '"', ' '} {
				bad := append([]byte{}, raw...)
				bad[i] = to
				s, _, err := statement.Verify(bad, k.Public())
				if err == nil && string(s.Bytes()) != want {
					t.Fatalf("byte %d as %q verifies as %s", i, to, s.Bytes())
				}
			}
		}
	}
}

// Every field is covered, each changed as an attacker would.
func TestTamperedFields(t *testing.T) {
	k := newKey(t, statement.Ed25519)
	edit := func(f func(b *statement.Bundle, s *statement.Statement)) []byte {
		b, s, err := statement.Read(signed(t, k))
		if err != nil {
			t.Fatal(err)
		}
		before := string(s.Bytes())
		f(&b, &s)
		if string(s.Bytes()) != before {
			b.DSSE.Payload = s.Bytes()
		}
		out, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if _, _, err := statement.Verify(edit(func(*statement.Bundle, *statement.Statement) {}), k.Public()); err != nil {
		t.Fatal("unchanged:", err)
	}
	for name, f := range map[string]func(b *statement.Bundle, s *statement.Statement){
		"subject": func(_ *statement.Bundle, s *statement.Statement) {
			s.Subject[0].Digest["sha256"] = strings.Repeat("f", 64)
		},
		"another subject": func(_ *statement.Bundle, s *statement.Statement) {
			s.Subject = append(s.Subject, statement.Subject{Digest: map[string]string{"sha256": strings.Repeat("f", 64)}})
		},
		"name":           func(_ *statement.Bundle, s *statement.Statement) { s.Subject[0].Name = "db:1" },
		"predicate type": func(_ *statement.Bundle, s *statement.Statement) { s.PredicateType = statement.Provenance },
		"predicate": func(_ *statement.Bundle, s *statement.Statement) {
			s.Predicate = json.RawMessage(`{"result":"FAILED"}`)
		},
		"type":         func(_ *statement.Bundle, s *statement.Statement) { s.Type += "0" },
		"payload type": func(b *statement.Bundle, _ *statement.Statement) { b.DSSE.PayloadType = "text/plain" },
		"media type":   func(b *statement.Bundle, _ *statement.Statement) { b.MediaType += "x" },
		"no envelope":  func(b *statement.Bundle, _ *statement.Statement) { b.DSSE = nil },
		"no signature": func(b *statement.Bundle, _ *statement.Statement) { b.DSSE.Signatures = nil },
		"empty signature": func(b *statement.Bundle, _ *statement.Statement) {
			b.DSSE.Signatures[0].Sig = nil
		},
		"short signature": func(b *statement.Bundle, _ *statement.Statement) {
			b.DSSE.Signatures[0].Sig = b.DSSE.Signatures[0].Sig[1:]
		},
		"long signature": func(b *statement.Bundle, _ *statement.Statement) {
			b.DSSE.Signatures[0].Sig = append(b.DSSE.Signatures[0].Sig, 0)
		},
		"many signatures": func(b *statement.Bundle, _ *statement.Statement) {
			for range 100 {
				b.DSSE.Signatures = append(b.DSSE.Signatures, b.DSSE.Signatures[0])
			}
		},
	} {
		if _, _, err := statement.Verify(edit(f), k.Public()); err == nil {
			t.Errorf("%s: it verifies", name)
		}
	}
	hinted := edit(func(b *statement.Bundle, _ *statement.Statement) { b.VerificationMaterial.PublicKey.Hint = "another" })
	if _, _, err := statement.Verify(hinted, k.Public()); err != nil {
		t.Error("a hint decides:", err)
	}
}

func TestHostile(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"empty":       {"", "no sigstore bundle"},
		"not JSON":    {"\x00\xff", "no sigstore bundle"},
		"deep":        {strings.Repeat(`{"a":`, 10000) + "1" + strings.Repeat("}", 10000), "nested more than"},
		"twice":       {`{"mediaType":"a","mediaType":"b"}`, "is there twice"},
		"twice, case": {`{"mediaType":"a","MEDIATYPE":"b"}`, "is there twice"},
		"two values":  {`{} {}`, "no sigstore bundle"},
		"huge":        {strings.Repeat(" ", statement.MaxBytes+1), "are more than"},
		"old":         {`{"mediaType":"application/vnd.dev.sigstore.bundle+json;version=0.1"}`, "its mediaType is"},
		"message":     {`{"mediaType":"` + statement.BundleMedia + `","messageSignature":{}}`, "no DSSE envelope"},
		"base64":      {`{"mediaType":"` + statement.BundleMedia + `","dsseEnvelope":{"payload":"!"}}`, "not base64"},
	} {
		if _, _, err := statement.Verify([]byte(c.in)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	many := statement.Statement{Type: statement.Type, PredicateType: "x"}
	for range 2000 {
		many.Subject = append(many.Subject, statement.Subject{})
	}
	if _, err := statement.Parse(many.Bytes()); err == nil {
		t.Error("2000 subjects")
	}
}

func TestKeysRefused(t *testing.T) {
	k := newKey(t, statement.Ed25519)
	private, err := k.PEM()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		in   string
		want string
	}{
		"nothing":   {"", "no key in PEM form"},
		"public":    {string(k.Public().PEM()), `a "PUBLIC KEY" where a "PRIVATE KEY" is needed`},
		"cosign's":  {"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n", "encrypted key"},
		"two":       {string(private) + string(private), "more than one key"},
		"not PKCS8": {"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key of PKCS #8"},
	} {
		if _, err := statement.ParseKey([]byte(c.in)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, err := statement.ParsePublic("", private); err == nil {
		t.Error("a private key was taken for a public one")
	}
	if _, err := statement.Generate("rsa"); err == nil || !strings.Contains(err.Error(), "ed25519") {
		t.Error(err)
	}
}

func TestTestResult(t *testing.T) {
	if _, ok := statement.Test(nil, statement.Resource{}); ok {
		t.Error("an untested image has a result")
	}
	r, ok := statement.Test([]artifact.TestResult{{Name: "a", Passed: true}, {Name: "b"}}, statement.Resource{})
	if !ok || r.Result != statement.Failed || len(r.FailedTests) != 1 || r.FailedTests[0] != "b" {
		t.Errorf("%+v", r)
	}
	s, err := statement.New("web", image, statement.TestResult, map[string]any{"result": "PASSED", "failedTests": []string{"b"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Tests(); err == nil {
		t.Error("passed with a test that failed")
	}
	if s, err = statement.New("web", image, statement.TestResult, map[string]any{"result": "GREAT"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Tests(); err == nil {
		t.Error("a result of another word")
	}
}

// OpenSSL agrees: what we sign is DSSE's encoding of the payload, signed as the
// key's type has it.
func TestOpenSSL(t *testing.T) {
	for _, kind := range statement.Types() {
		k := newKey(t, kind)
		b, _, err := statement.Read(signed(t, k))
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		message := statement.PAE(b.DSSE.PayloadType, b.DSSE.Payload)
		verify := func(message []byte) error {
			for name, data := range map[string][]byte{"key.pub": k.Public().PEM(), "message": message, "sig": b.DSSE.Signatures[0].Sig} {
				if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			args := []string{"pkeyutl", "-verify", "-pubin", "-inkey", "key.pub", "-rawin", "-in", "message", "-sigfile", "sig"}
			if kind == statement.ECDSAP256 {
				args = append(args, "-digest", "sha256")
			}
			cmd := exec.Command("openssl", args...)
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			t.Logf("%s: %s", kind, out)
			return err
		}
		if err := verify(message); err != nil {
			t.Errorf("%s: openssl does not verify it: %v", kind, err)
		}
		if err := verify(append(message, '\n')); err == nil {
			t.Errorf("%s: openssl verifies anything", kind)
		}
	}
}

func FuzzVerify(f *testing.F) {
	k := newKey(f, statement.Ed25519)
	raw := signed(f, k)
	want := string(newStatement(f).Bytes())
	f.Add(raw)
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, _, err := statement.Verify(b, k.Public())
		if err == nil && string(s.Bytes()) != want {
			t.Fatalf("verified: %s", s.Bytes())
		}
	})
}
