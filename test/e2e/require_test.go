//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rebake/rebake/internal/statement"
)

// TestAFleetRefusesWhatItDoesNotTrust is the policy on real parts: one machine
// makes images and another runs them, and they share a registry. The fleet takes
// a signed and tested image, and refuses an unsigned, an untested, a revoked and a
// tampered one, each in its own words, while the one before serves.
func TestAFleetRefusesWhatItDoesNotTrust(t *testing.T) {
	t.Parallel() // it waits more than it works
	maker, w := newWorld(t), newWorld(t)
	addr := freeAddr(t)
	url := "http://" + addr + "/cgi-bin/app"
	plain := strings.Replace(fleetTemplate(addr), "fleet:\n", "fleet:\n  require: {signed_by: [release], tests: passed, provenance: true, not_revoked: true, channel: stable, max_age: 30d}\n", 1)
	store := "store: oci://" + startRegistry(t) + "/team\n"
	at := strings.TrimSpace(strings.TrimPrefix(store, "store: "))
	maker.write("t.yaml", "sign: release\n"+store+plain)
	maker.write("unsigned.yaml", store+plain)
	maker.rebake(0, "key", "generate", "release", "--type", statement.Ed25519)
	key, _ := maker.rebake(0, "key", "show", "release")
	w.write("release.pub", key)
	w.write("t.yaml", store+strings.Replace(plain, "[release]", "[release.pub]", 1))

	maker.rebake(0, "build", "t.yaml", "--var", "release=1")
	maker.rebake(0, "--store", at, "promote", "tiny:latest", "stable", "--reason", "the first")
	w.rebake(0, "deploy", "t.yaml", "--var", "release=1")
	if got := body(t, url); got != "release 1\n" {
		t.Fatalf("the signed image serves %q", got)
	}
	out, _ := w.rebake(0, "--store", at, "verify", "tiny:latest", "--key", "release.pub")
	if !strings.Contains(out, "signed by key release") || !strings.Contains(out, "ok     bytes") {
		t.Errorf("verify: %s", out)
	}
	refused := func(what string, words ...string) {
		t.Helper()
		_, log := w.rebake(7, "deploy", "t.yaml", "--image", "tiny:latest", "--var", "release=2")
		for _, word := range words {
			if !strings.Contains(log, word) {
				t.Errorf("%s: no %q in:\n%s", what, word, log)
			}
		}
		if got := body(t, url); got != "release 1\n" {
			t.Errorf("%s: it serves %q", what, got)
		}
	}
	maker.rebake(0, "build", "unsigned.yaml", "--var", "release=2", "--skip-test")
	refused("unsigned, untested", "unsigned: it carries no signature", "untested: no test result", "without provenance: none is attached", "not in channel stable: that is tiny:")
	maker.rebake(0, "--store", at, "sign", "tiny:latest", "--key", "release")
	refused("signed, untested", "untested: no test result")

	maker.rebake(0, "build", "t.yaml", "--var", "release=3")
	maker.rebake(0, "--store", at, "promote", "tiny:latest", "stable", "--reason", "tested")
	out, _ = w.rebake(0, "--store", at, "images", "show", "tiny:latest")
	content := between(out, "sha256:", "\n", "content")
	disk := filepath.Join(w.home, "cache", "disks", content+".raw")
	w.rebake(0, "--store", at, "images", "export", "tiny:latest", disk, "--format", "raw") // as a launch leaves it
	b, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/3] ^= 1
	if err := os.WriteFile(disk, b, 0o600); err != nil {
		t.Fatal(err)
	}
	refused("tampered", "tampered: ", "holds other bytes than the image")
	if err := os.Remove(disk); err != nil {
		t.Fatal(err)
	}
	maker.rebake(0, "--store", at, "revoke", "tiny:latest", "--reason", "CVE-2026-1")
	refused("revoked", "revoked: CVE-2026-1 (by ")
	maker.rebake(0, "--store", at, "restore", "tiny:latest", "--reason", "a false alarm")
	w.rebake(0, "deploy", "t.yaml", "--image", "tiny:latest", "--var", "release=3")
	if got := body(t, url); got != "release 3\n" {
		t.Errorf("the good one serves %q", got)
	}
	maker.rebake(0, "--store", at, "revoke", "tiny:stable", "--reason", "it leaks")
	if out, _ := w.rebake(0, "fleet", "status", "tiny"); !strings.Contains(out, "which runs: it leaks (by ") || body(t, url) != "release 3\n" {
		t.Errorf("it runs, and is revoked: %s", out)
	}
	w.rebake(0, "fleet", "destroy", "tiny", "--yes")
	w.nothingRuns()
}

// between is the text after a word on the line that begins with key.
func between(text, after, end, key string) string {
	for _, line := range strings.SplitAfter(text, "\n") {
		if rest, ok := strings.CutPrefix(line, key); ok {
			_, rest, _ = strings.Cut(rest, after)
			rest, _, _ = strings.Cut(rest, end)
			return strings.TrimSpace(rest)
		}
	}
	return ""
}
