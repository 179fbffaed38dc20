package pipeline_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rebake/rebake/artifact"
	"github.com/rebake/rebake/internal/inventory"
	"github.com/rebake/rebake/internal/keyring"
	"github.com/rebake/rebake/internal/pipeline"
	"github.com/rebake/rebake/internal/require"
	"github.com/rebake/rebake/internal/statement"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/test/fake"
)

// attached are the statements of an image by predicate type, signed ones by "signed "+type.
func attached(t *testing.T, s *fake.Store, img artifact.Image, keys ...statement.Public) map[string]statement.Statement {
	t.Helper()
	list, err := s.Attached(t.Context(), img.Digest, "")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]statement.Statement{}
	for _, a := range list {
		raw, err := s.ReadAttachment(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(raw, []byte("s3cr3t-t0ken")) {
			t.Errorf("a secret is in %s", raw)
		}
		if a.Kind == inventory.Kind || a.Kind == inventory.SPDXKind || a.Kind == inventory.CycloneDXKind {
			continue
		}
		var one statement.Statement
		kind := ""
		if a.Media == statement.BundleMedia {
			one, _, err = statement.Verify(raw, keys...)
			kind = "signed "
		} else {
			one, err = statement.Parse(raw)
		}
		if err != nil || !one.About(img.Digest) || a.Kind != a.Media || a.Notes[statement.NotePredicate]+a.Notes[statement.NoteBundlePredicate] != one.PredicateType {
			t.Fatalf("%+v: %v", a, err)
		}
		out[kind+one.PredicateType] = one
	}
	return out
}

func provenanceOf(t *testing.T, s statement.Statement) statement.Provenanced {
	t.Helper()
	p, err := s.BuiltBy()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A bake says how it came about, and of a step that it did not run, in which run it was.
func TestStatementsOfABake(t *testing.T) {
	store := new(fake.Store)
	w := newWorld(t, t.TempDir(), store)
	w.stop()
	one := w.one(web("", ""), pipeline.BakeOptions{}).Image
	said := attached(t, store, one)
	if len(said) != 2 {
		t.Fatalf("%d statements", len(said))
	}
	tests, err := said[statement.TestResult].Tests()
	if err != nil || tests.Result != statement.Passed || len(tests.PassedTests) != len(one.Tests) {
		t.Errorf("%+v, %v", tests, err)
	}
	first := provenanceOf(t, said[statement.Provenance])
	if e := first.BuildDefinition.ExternalParameters; e.Variables["release"] != "1" || !slices.Equal(e.Secrets, []string{"token"}) || e.Template.Digest["sha256"] == "" ||
		e.Target.Image != "web:"+one.Version {
		t.Errorf("%+v", e)
	}
	run := first.RunDetails.Metadata
	if run.InvocationID != one.Lineage.BuildID || run.FinishedOn.Before(run.StartedOn) {
		t.Errorf("%+v", run)
	}
	if got := cachedIn(first); len(got) > 0 {
		t.Errorf("nothing was cached, and it says %v", got)
	}
	log := first.RunDetails.Byproducts[0]
	if !strings.HasPrefix(log.Name, "log: ") || log.Digest["sha256"] == "" {
		t.Errorf("%+v", log)
	}

	two := w.one(web("  - shell: {name: more, inline: [\"true\"]}\n", ""), pipeline.BakeOptions{}).Image
	second := provenanceOf(t, attached(t, store, two)[statement.Provenance])
	got := cachedIn(second)
	if len(got) == 0 || slices.Contains(slices.Sorted(maps.Keys(got)), "more") {
		t.Fatalf("cached: %v", got)
	}
	for step, by := range got {
		if by != one.Lineage.BuildID {
			t.Errorf("%s was run by %s, not %s", step, one.Lineage.BuildID, by)
		}
	}
	if !slices.Contains(second.BuildDefinition.InternalParameters.Steps, "more") {
		t.Errorf("steps %v", second.BuildDefinition.InternalParameters.Steps)
	}
	if _, tested := attached(t, store, w.one(web("", ""), pipeline.BakeOptions{SkipTest: true, Force: true}).Image)[statement.TestResult]; tested {
		t.Error("an untested image has a test result")
	}
}

// cachedIn are the steps that a run says it did not run, and the run that did.
func cachedIn(p statement.Provenanced) map[string]string {
	out := map[string]string{}
	for _, b := range p.RunDetails.Byproducts {
		if step, ok := strings.CutPrefix(b.Name, "cached: "); ok {
			out[step], _ = b.Annotations["invocationId"].(string)
		}
	}
	return out
}

// Every local file that decides the image is named with its digest, and changes it.
func TestProvenanceNamesTheInputs(t *testing.T) {
	store := new(fake.Store)
	w := newWorld(t, t.TempDir(), store)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "site.conf"), []byte("listen 80\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("listen 80\n"))
	tpl := w.loadIn(dir, web("  - file: {source: site.conf, destination: /etc/site.conf}\n", ""))
	baked, err := pipeline.Bake(w.record(t.Context()), w.env, tpl, pipeline.BakeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := provenanceOf(t, attached(t, store, baked[0].Image)[statement.Provenance])
	if !slices.ContainsFunc(p.BuildDefinition.ResolvedDependencies, func(r statement.Resource) bool {
		return r.Digest["sha256"] == hex.EncodeToString(sum[:])
	}) {
		t.Errorf("site.conf is not in %+v", p.BuildDefinition.ResolvedDependencies)
	}
}

func TestABakeSigns(t *testing.T) {
	store := new(fake.Store)
	w := newWorld(t, t.TempDir(), store)
	ring := keyring.Dir(w.env.State.Keys())
	ours, err := ring.Generate("release", statement.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.bake("sign: nobody\n"+web("", ""), pipeline.BakeOptions{}); err == nil || !strings.Contains(err.Error(), "rebake key generate nobody") {
		t.Fatal("a key that is not there:", err)
	}
	if w.began("connect") {
		t.Error("it booted before it looked for the key")
	}
	img := w.one("sign: release\n"+web("", ""), pipeline.BakeOptions{}).Image
	said := attached(t, store, img, ours)
	for _, kind := range []string{statement.Signature, statement.Provenance, statement.TestResult, require.PredicateOf(inventory.SPDXKind), require.PredicateOf(inventory.CycloneDXKind)} {
		if _, ok := said["signed "+kind]; !ok {
			t.Errorf("no signed %s", kind)
		}
	}
	rules, err := pipeline.Rules(w.env, template.Require{SignedBy: []string{"release"}, Tests: true, SBOM: true, Provenance: true}, "")
	if err != nil {
		t.Fatal(err)
	}
	refused := func(img artifact.Image) string {
		t.Helper()
		found, err := pipeline.VerifyImage(w.record(t.Context()), w.env, img, rules)
		if err != nil {
			t.Fatal(err)
		}
		if err := require.Refused(img, found); err != nil {
			return err.Error()
		}
		return ""
	}
	if why := refused(img); why != "" {
		t.Error(why)
	}
	later := w.one(web("", ""), pipeline.BakeOptions{Force: true}).Image
	if why := refused(later); !strings.Contains(why, "unsigned") || !strings.Contains(why, "untested") || !strings.Contains(why, "without provenance") {
		t.Error(why)
	}
	key, err := ring.Private("release", "")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // again changes nothing
		if _, err := pipeline.Sign(w.record(t.Context()), w.env, later, key); err != nil {
			t.Fatal(err)
		}
		if list, _ := store.Attached(t.Context(), later.Digest, statement.BundleMedia); len(list) != 5 { // the image, provenance, test result, two SBOMs
			t.Errorf("%d signed statements", len(list))
		}
	}
	if why := refused(later); why != "" {
		t.Error(why)
	}
}
